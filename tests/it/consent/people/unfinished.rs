//! Authorizations between their two ends: over a restart, past ten minutes, and with the connection changed.

use serde_json::{Value, json};

use super::{OPERATOR, ask, connection, link, person, web};
use crate::rig::manager::call;
use crate::rig::pages;
use crate::rig::peers::{AuthorizationServer, Upstream};
use crate::rig::raw;
use crate::rig::sidecar::Sidecar;
use crate::rig::wall_clock::WallClock;

#[tokio::test]
async fn a_restarted_program_finishes_what_a_person_has_begun() {
    let server = AuthorizationServer::op(json!({})).await;
    let upstream = Upstream::start(&server).await;
    let sidecar = Sidecar::start(&connection(&server, &upstream, "", "p-web", &web(&server))).await;
    let begun = call(sidecar.admin(), "POST", "/connections/crm/authorize", &json!({})).await.json();
    let begun = begun["authorization_url"].as_str().expect("a link").to_owned();
    let back = person(&begun, "ann", &["--stop-before-callback"]).await;
    let (dir, addresses, _) = sidecar.crash().await;
    let sidecar = Sidecar::start_over(dir, addresses, &[]).await;
    let callback = back["callback"].as_str().expect("a callback");
    let query = callback.split_once('?').expect("a query").1;
    let path = format!("/oauth/callback?{query}");
    let (admin, cookies) = (sidecar.admin(), back["cookies"].as_str().expect("cookies"));
    let request = |cookie: &str| format!("GET {path} HTTP/1.1\r\nHost: {admin}\r\n{cookie}Connection: close\r\n\r\n");
    let stranger = raw::send(admin, request("").as_bytes()).await;
    assert_eq!((stranger.status, stranger.text().contains("Another browser")), (400, true), "{}", stranger.text());
    let answer = raw::send(admin, request(&format!("Cookie: {cookies}\r\n")).as_bytes()).await;
    assert_eq!(answer.status, 303, "{}\n{}", answer.text(), sidecar.log());
    assert!(!answer.header("location").expect("a place").contains("code"), "{answer:?}");
    assert_eq!(ask(&sidecar, "").await.json()["sub"], "ann");
    let again = raw::send(admin, request(&format!("Cookie: {cookies}\r\n")).as_bytes()).await;
    assert_eq!((again.status, again.text().contains("already used")), (400, true), "{}", again.text());
    assert_eq!(server.token_requests_by_grant("p-web", "authorization_code").await, 1);
}

#[tokio::test]
async fn a_link_and_what_was_begun_with_it_are_over_after_ten_minutes() {
    let server = AuthorizationServer::op(json!({})).await;
    let upstream = Upstream::start(&server).await;
    let clock = WallClock::start();
    let keys = format!("{}tokens: per_subject, ", web(&server));
    let sidecar = Sidecar::start_in(&connection(&server, &upstream, "", "p-web", &keys), &clock.environment()).await;
    let sealed = link(&ask(&sidecar, "Keybearer-Subject: ann\r\n").await);
    let begun = call(sidecar.admin(), "POST", "/connections/crm/authorize", &json!({ "subject": "ann" })).await.json();
    let opened = begun["authorization_url"].as_str().expect("a link");
    let back = person(opened, "ann", &["--stop-before-callback"]).await;
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
    // The operator is signed in still; the page of before is too old to confirm.
    let lines = format!("{}; {}", pages::cookie(&early).trim_end(), session.trim_start_matches("Cookie: "));
    let body = format!("confirmation={}", pages::confirmation(&early.text()));
    let late = pages::visit(sidecar.admin(), "POST", &own, &format!("{lines}{}", pages::origin(&own)), &body).await;
    assert_eq!((late.status, late.text().contains("confirm again")), (403, true), "{}", late.text());
    for link in [sealed.as_str(), opened] {
        let page = person(link, "ann", &[]).await;
        assert_eq!(page["status"], 400, "{page}");
        assert!(page["text"].as_str().expect("a text").contains("has expired"), "{page}");
    }
    let path = back["callback"].as_str().and_then(|url| url.split_once("/oauth/")).expect("a callback").1.to_owned();
    let (admin, cookies) = (sidecar.admin(), back["cookies"].as_str().expect("cookies"));
    let request =
        format!("GET /oauth/{path} HTTP/1.1\r\nHost: {admin}\r\nCookie: {cookies}\r\nConnection: close\r\n\r\n");
    let late = raw::send(admin, request.as_bytes()).await;
    assert_eq!((late.status, late.text().contains("has expired")), (400, true), "{}", late.text());
    let path = format!("/authorizations/{}", begun["id"].as_str().expect("an id"));
    assert_eq!(call(admin, "GET", &path, &Value::Null).await.json()["status"], "expired");
    assert_eq!(server.token_requests_by_grant("p-web", "authorization_code").await, 0);
}

#[tokio::test]
async fn a_connection_that_changed_meanwhile_takes_no_code() {
    let server = AuthorizationServer::op(json!({})).await;
    let upstream = Upstream::start(&server).await;
    let config = connection(&server, &upstream, "", "p-web", &web(&server));
    let sidecar = Sidecar::start(&config).await;
    let begun = call(sidecar.admin(), "POST", "/connections/crm/authorize", &json!({})).await.json();
    let back = person(begun["authorization_url"].as_str().expect("a link"), "ann", &["--stop-before-callback"]).await;
    let text = std::fs::read_to_string(sidecar.dir.path().join("keybearer.yaml")).expect("the configuration");
    std::fs::write(sidecar.dir.path().join("keybearer.yaml"), text.replace("api.read]", "api.write]")).expect("a file");
    let reloaded = call(sidecar.admin(), "POST", "/reload", &json!({})).await;
    assert_eq!(reloaded.status, 200, "{}", reloaded.text());
    let path = back["callback"].as_str().and_then(|url| url.split_once("/oauth/")).expect("a callback").1.to_owned();
    let (admin, cookies) = (sidecar.admin(), back["cookies"].as_str().expect("cookies"));
    let request =
        format!("GET /oauth/{path} HTTP/1.1\r\nHost: {admin}\r\nCookie: {cookies}\r\nConnection: close\r\n\r\n");
    let answer = raw::send(admin, request.as_bytes()).await;
    assert_eq!((answer.status, answer.text().contains("has changed")), (400, true), "{}", answer.text());
    assert_eq!(server.token_requests_by_grant("p-web", "authorization_code").await, 0);
}
