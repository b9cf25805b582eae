//! The public listener, and sessions of signed-in browsers.

use serde_json::json;

use super::{OPERATOR, VIEWER, connection, web};
use crate::rig::manager::{MANAGER, call};
use crate::rig::pages;
use crate::rig::peers::{AuthorizationServer, Upstream};
use crate::rig::raw;
use crate::rig::sidecar::Sidecar;

#[tokio::test]
async fn the_public_listener_serves_only_consent_pages_and_builds_urls_from_the_configuration() {
    let server = AuthorizationServer::op(json!({})).await;
    let upstream = Upstream::start(&server).await;
    let top = "listeners: {proxy: \"127.0.0.1:0\", admin: \"127.0.0.1:0\", public: \"127.0.0.1:0\"}\n\
               public_url: https://keys.test/kb\n";
    let sidecar = Sidecar::start(&connection(&server, &upstream, top, "p-web", &web(&server))).await;
    let (public, admin) = (sidecar.address("public"), sidecar.admin());
    let flow = call(admin, "POST", "/connections/crm/authorize", &json!({})).await.json();
    let location =
        flow["authorization_url"].as_str().and_then(|url| url.strip_prefix("https://keys.test/kb")).expect("a link");
    let get = async |at, host: &str, path: &str| {
        raw::send(
            at,
            format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nX-Forwarded-Host: evil.test\r\nConnection: close\r\n\r\n")
                .as_bytes(),
        )
        .await
    };
    for path in ["/", "/api/v1/connections", "/metrics", "/readyz"] {
        assert_eq!(get(public, "keys.test", path).await.status, 404, "{path}");
    }
    for path in [location, "/connect/crm", "/oauth/callback?state=x&code=y"] {
        assert_eq!(get(admin, &admin.to_string(), path).await.status, 404, "{path}");
        assert_eq!(get(public, "evil.test", path).await.status, 421, "{path}");
    }
    assert_eq!(get(public, "keys.test", "/connect/crm").await.status, 401);
    let shown = get(public, "keys.test", location).await;
    assert_eq!(shown.status, 200, "{}", shown.text());
    // The reverse proxy strips `/kb`.
    let (sent, _) = pages::confirm(public, &format!("https://keys.test{location}"), "").await;
    assert_eq!(sent.status, 200, "{}", sent.text());
    for response in [&shown, &sent] {
        let cookie = response.header("set-cookie").expect("a cookie");
        for part in ["__Host-keybearer_browser=", "; Path=/;", "; HttpOnly", "; SameSite=Lax", "; Secure"] {
            assert!(cookie.contains(part), "{part}: {cookie}");
        }
    }
    // A page over http cannot confirm a page over https.
    let lines = format!("{}Origin: http://keys.test\r\n", pages::cookie(&shown));
    let body = format!("confirmation={}", pages::confirmation(&shown.text()));
    let refused = pages::visit(public, "POST", &format!("https://keys.test{location}"), &lines, &body).await;
    assert_eq!((refused.status, refused.header("set-cookie")), (403, None), "{}", refused.text());
    let target = pages::redirect_target(&sent);
    for part in [
        "redirect_uri=https%3A%2F%2Fkeys.test%2Fkb%2Foauth%2Fcallback",
        "code_challenge_method=S256",
        "prompt=consent&",
    ] {
        assert!(target.contains(part), "{part}: {target}");
    }
    assert!(!target.contains("evil"));
}

#[tokio::test]
async fn a_signed_in_browser_changes_nothing_without_the_csrf_token() {
    let server = AuthorizationServer::op(json!({})).await;
    let upstream = Upstream::start(&server).await;
    let sidecar = Sidecar::start(&connection(&server, &upstream, "", "p-web", &web(&server))).await;
    let admin = sidecar.admin();
    let send = async |method: &str, path: &str, lines: &str, body: &str| {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {admin}\r\n{lines}Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        raw::send(admin, head.as_bytes()).await
    };
    let wrong = send("POST", "/api/v1/session", "", r#"{"token": "unknown"}"#).await;
    assert_eq!((wrong.status, wrong.header("set-cookie")), (401, None));
    let signed = send("POST", "/api/v1/session", "", &json!({ "token": OPERATOR }).to_string()).await;
    assert_eq!((signed.status, &signed.json()["role"]), (200, &json!("operator")), "{}", signed.text());
    let cookie = signed.header("set-cookie").expect("a cookie");
    assert!(cookie.contains("; HttpOnly") && cookie.contains("; SameSite=Lax"), "{cookie}");
    let session = format!("Cookie: {}\r\n", cookie.split(';').next().expect("a pair"));
    let csrf = format!("X-CSRF-Token: {}\r\n", signed.json()["csrf_token"].as_str().expect("a token"));
    assert_eq!(send("GET", "/api/v1/connections", &session, "").await.status, 200);
    let begin = "/api/v1/connections/crm/authorize";
    assert_eq!(send("POST", begin, &session, "{}").await.status, 401);
    assert_eq!(send("POST", begin, &format!("{session}X-CSRF-Token: x\r\n"), "{}").await.status, 401);
    assert_eq!(send("POST", begin, &csrf, "{}").await.status, 401);
    assert_eq!(send("POST", begin, &format!("{session}{csrf}"), "{}").await.status, 201);
    assert_eq!(send("POST", "/api/v1/reload", &format!("{session}{csrf}"), "{}").await.status, 403);
    let both = format!("{session}{csrf}Authorization: Bearer unknown\r\n");
    assert_eq!(
        send("GET", "/api/v1/connections", &both, "").await.status,
        401,
        "with an Authorization header, the session is ignored"
    );
    // A viewer may view but not connect; an altered cookie is refused.
    let page = format!("http://{admin}/connect/crm");
    let form = async |lines: &str, body: &str| pages::visit(admin, "POST", &page, lines, body).await;
    let viewer = pages::cookie(&form(&pages::origin(&page), &format!("token={VIEWER}")).await);
    assert_eq!(send("GET", "/connect/crm", &viewer, "").await.status, 403);
    assert_eq!(send("GET", "/connect/crm", &session, "").await.status, 200);
    let broken = session.replace("keybearer_session=A", "keybearer_session=B");
    assert_eq!(send("GET", "/connect/crm", &broken, "").await.status, 401);
    for lines in ["", "Origin: null\r\n", "Origin: https://evil.test\r\n"] {
        let foreign = form(lines, &format!("token={OPERATOR}")).await;
        assert_eq!((foreign.status, foreign.header("set-cookie")), (403, None), "{lines}");
    }
    // A user whose token has changed is signed out.
    let path = sidecar.dir.path().join("keybearer.yaml");
    let text = std::fs::read_to_string(&path).expect("a readable file");
    std::fs::write(&path, text.replace(OPERATOR, "another-token-of-the-operator-0123456789")).expect("a file");
    assert_eq!(call(admin, "POST", "/reload", &json!({})).await.status, 200);
    assert_eq!(send("GET", "/api/v1/connections", &session, "").await.status, 401);
    let gone = send("DELETE", "/api/v1/session", &format!("Authorization: Bearer {MANAGER}\r\n"), "").await;
    assert!(gone.status == 204 && gone.header("set-cookie").is_some_and(|cookie| cookie.contains("Max-Age=0")));
    for secret in [OPERATOR, cookie.split(';').next().expect("a pair")] {
        assert!(!sidecar.log().contains(secret));
    }
}
