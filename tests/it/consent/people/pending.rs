//! Pending flows: after a restart, after their lifetime, and after a change of the connection.

use serde_json::{Value, json};

use super::{OPERATOR, act_as_person, connection, get, link, web};
use crate::rig::manager::call;
use crate::rig::pages;
use crate::rig::peers::{AuthorizationServer, Upstream};
use crate::rig::raw;
use crate::rig::sidecar::Sidecar;
use crate::rig::wall_clock::WallClock;

#[tokio::test]
async fn a_pending_flow_survives_a_restart() {
    let server = AuthorizationServer::op(json!({})).await;
    let upstream = Upstream::start(&server).await;
    let sidecar = Sidecar::start(&connection(&server, &upstream, "", "p-web", &web(&server))).await;
    let flow = call(sidecar.admin(), "POST", "/connections/crm/authorize", &json!({})).await.json();
    let link = flow["authorization_url"].as_str().expect("a link");
    let back = act_as_person(link, "ann", &["--stop-before-callback"]).await;
    let (dir, addresses, _) = sidecar.crash().await;
    let sidecar = Sidecar::start_over(dir, addresses, &[]).await;
    let callback = back["callback"].as_str().expect("a callback");
    let query = callback.split_once('?').expect("a query").1;
    let path = format!("/oauth/callback?{query}");
    let (admin, cookies) = (sidecar.admin(), back["cookies"].as_str().expect("cookies"));
    let request = |cookie: &str| format!("GET {path} HTTP/1.1\r\nHost: {admin}\r\n{cookie}Connection: close\r\n\r\n");
    let other_browser = raw::send(admin, request("").as_bytes()).await;
    assert_eq!(
        (other_browser.status, other_browser.text().contains("Another browser")),
        (400, true),
        "{}",
        other_browser.text()
    );
    let response = raw::send(admin, request(&format!("Cookie: {cookies}\r\n")).as_bytes()).await;
    assert_eq!(response.status, 303, "{}\n{}", response.text(), sidecar.log());
    assert!(!response.header("location").expect("a location").contains("code"), "{response:?}");
    assert_eq!(get(&sidecar, "").await.json()["sub"], "ann");
    let again = raw::send(admin, request(&format!("Cookie: {cookies}\r\n")).as_bytes()).await;
    assert_eq!((again.status, again.text().contains("already used")), (400, true), "{}", again.text());
    assert_eq!(server.token_requests_by_grant("p-web", "authorization_code").await, 1);
}

#[tokio::test]
async fn a_link_and_its_flow_expire_after_ten_minutes() {
    let server = AuthorizationServer::op(json!({})).await;
    let upstream = Upstream::start(&server).await;
    let clock = WallClock::start();
    let keys = format!("{}tokens: per_subject, ", web(&server));
    let sidecar = Sidecar::start_in(&connection(&server, &upstream, "", "p-web", &keys), &clock.environment()).await;
    let sealed = link(&get(&sidecar, "Keybearer-Subject: ann\r\n").await);
    let flow = call(sidecar.admin(), "POST", "/connections/crm/authorize", &json!({ "subject": "ann" })).await.json();
    let opened = flow["authorization_url"].as_str().expect("a link");
    let back = act_as_person(opened, "ann", &["--stop-before-callback"]).await;
    let own = format!("{}?subject=ann", sealed.split('?').next().expect("a link"));
    let session = pages::visit(sidecar.admin(), "POST", &own, &pages::origin(&own), &format!("token={OPERATOR}")).await;
    let session = pages::cookie(&session);
    let pages_of = async || {
        let of = async |link: &str, lines: &str| pages::visit(sidecar.admin(), "GET", link, lines, "").await;
        [
            of(&sealed, "").await,
            of(opened, &format!("Cookie: {}\r\n", back["cookies"].as_str().expect("cookies"))).await,
            of(&own, &session).await,
        ]
    };
    let [.., early] = pages_of().await;
    clock.set("+9m");
    for shown in pages_of().await {
        assert_eq!(shown.status, 200, "{}", shown.text());
    }
    clock.set("+11m");
    // The operator is still signed in, but the earlier page is too old to confirm.
    let lines = format!("{}; {}", pages::cookie(&early).trim_end(), session.trim_start_matches("Cookie: "));
    let body = format!("confirmation={}", pages::confirmation(&early.text()));
    let late = pages::visit(sidecar.admin(), "POST", &own, &format!("{lines}{}", pages::origin(&own)), &body).await;
    assert_eq!((late.status, late.text().contains("confirm again")), (403, true), "{}", late.text());
    for link in [sealed.as_str(), opened] {
        let page = act_as_person(link, "ann", &[]).await;
        assert_eq!(page["status"], 400, "{page}");
        assert!(page["text"].as_str().expect("a text").contains("has expired"), "{page}");
    }
    let path = back["callback"].as_str().and_then(|url| url.split_once("/oauth/")).expect("a callback").1.to_owned();
    let (admin, cookies) = (sidecar.admin(), back["cookies"].as_str().expect("cookies"));
    let request =
        format!("GET /oauth/{path} HTTP/1.1\r\nHost: {admin}\r\nCookie: {cookies}\r\nConnection: close\r\n\r\n");
    let late = raw::send(admin, request.as_bytes()).await;
    assert_eq!((late.status, late.text().contains("has expired")), (400, true), "{}", late.text());
    let path = format!("/authorizations/{}", flow["id"].as_str().expect("an id"));
    assert_eq!(call(admin, "GET", &path, &Value::Null).await.json()["status"], "expired");
    assert_eq!(server.token_requests_by_grant("p-web", "authorization_code").await, 0);
}

#[tokio::test]
async fn a_code_is_refused_after_the_connection_has_changed() {
    let server = AuthorizationServer::op(json!({})).await;
    let upstream = Upstream::start(&server).await;
    let config = connection(&server, &upstream, "", "p-web", &web(&server));
    let sidecar = Sidecar::start(&config).await;
    let flow = call(sidecar.admin(), "POST", "/connections/crm/authorize", &json!({})).await.json();
    let back =
        act_as_person(flow["authorization_url"].as_str().expect("a link"), "ann", &["--stop-before-callback"]).await;
    let text = std::fs::read_to_string(sidecar.dir.path().join("keybearer.yaml")).expect("a readable file");
    std::fs::write(sidecar.dir.path().join("keybearer.yaml"), text.replace("api.read]", "api.write]")).expect("a file");
    let reloaded = call(sidecar.admin(), "POST", "/reload", &json!({})).await;
    assert_eq!(reloaded.status, 200, "{}", reloaded.text());
    let path = back["callback"].as_str().and_then(|url| url.split_once("/oauth/")).expect("a callback").1.to_owned();
    let (admin, cookies) = (sidecar.admin(), back["cookies"].as_str().expect("cookies"));
    let request =
        format!("GET /oauth/{path} HTTP/1.1\r\nHost: {admin}\r\nCookie: {cookies}\r\nConnection: close\r\n\r\n");
    let response = raw::send(admin, request.as_bytes()).await;
    assert_eq!((response.status, response.text().contains("has changed")), (400, true), "{}", response.text());
    assert_eq!(server.token_requests_by_grant("p-web", "authorization_code").await, 0);
}
