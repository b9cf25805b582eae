//! Operations with side effects (refresh, test, reload), and their request bodies.

use serde_json::{Value, json};

use super::{ACCESS_TOKEN, MANAGER, OPERATOR, Stage, VIEWER, send, wait_until};
use crate::rig::scripted::Reply;

#[tokio::test]
async fn a_forced_refresh_is_rate_limited() {
    let stage = Stage::start().await;
    let before = stage.server.count();
    let refresh = || stage.call("post", "/api/v1/connections/crm/refresh", OPERATOR, None);
    let response = refresh().await;
    assert_eq!((response.status, &response.json()["state"]), (200, &json!("fresh")));
    assert_eq!(stage.server.count(), before + 1);
    let again = refresh().await;
    assert_eq!((again.status, &again.json()["code"]), (409, &json!("refreshed_lately")));
    let wait: u64 = again.header("retry-after").and_then(|value| value.parse().ok()).expect("Retry-After");
    assert!((1..=10).contains(&wait), "{wait}");
    assert_eq!(stage.server.count(), before + 1);
    let off = stage.call("post", "/api/v1/connections/off/refresh", OPERATOR, None).await;
    assert_eq!((off.status, &off.json()["code"]), (409, &json!("connection_inactive")));
    let other = json!({ "profile": "other" });
    assert_eq!(stage.call("post", "/api/v1/connections/crm/refresh", OPERATOR, Some(&other)).await.status, 404);
}

#[tokio::test]
async fn a_refusal_and_an_outage_have_different_statuses_and_actions() {
    let refused =
        Stage::with("", |_, _| Reply::json(400, &json!({"error": "invalid_client", "error_description": "no"}))).await;
    let down = Stage::with("", |_, _| Reply::text(503, "text/plain", "down")).await;
    for (stage, status, code, outcome) in
        [(&refused, 424, "token_refused", "refused"), (&down, 503, "token_unavailable", "unavailable")]
    {
        for call in ["refresh", "test"] {
            let response = stage.call("post", &format!("/api/v1/connections/crm/{call}"), OPERATOR, None).await;
            assert_eq!((response.status, &response.json()["code"]), (status, &json!(code)), "{call}");
            assert_eq!(response.header("retry-after").is_some(), status == 503, "{call}");
        }
        assert_eq!(stage.upstream.count(), 0);
        let tokens = stage.call("get", "/api/v1/connections/crm/tokens", VIEWER, None).await.json();
        let attempt = &tokens["items"][0]["last_attempt"];
        assert_eq!((&attempt["outcome"], &tokens["items"][0]["expires_at"]), (&json!(outcome), &Value::Null));
        assert!(attempt["at"].as_str() < attempt["next_at"].as_str(), "{attempt}");
    }
}

#[tokio::test]
async fn a_test_reaches_only_urls_that_the_connections_routes_match() {
    let stage = Stage::start().await;
    let (path, known) = ("/api/v1/connections/crm/test", &stage);
    let test = |body: Value| async move { known.call("post", path, OPERATOR, Some(&body)).await };
    let response = stage.call("post", "/api/v1/connections/crm/test", OPERATOR, None).await;
    let shown = response.json();
    assert_eq!((response.status, &shown["status"], &shown["token"]), (200, &json!(200), &json!("fresh")), "{shown}");
    assert!(shown["duration_ms"].is_u64() && shown["url"] == "http://api.test/v1", "{shown}");
    let received = stage.upstream.received();
    assert_eq!(received[0].request_line(), "GET /v1 HTTP/1.1");
    assert!(received[0].values("authorization")[0].starts_with(&format!("Bearer {ACCESS_TOKEN}")));
    assert_eq!(received[0].values("host"), ["api.test"]);
    assert_eq!(test(json!({"url": "http://api.test/v1/a?b=c", "method": "HEAD"})).await.status, 200);
    assert_eq!(stage.upstream.received()[1].request_line(), "HEAD /v1/a?b=c HTTP/1.1");
    for url in [
        "http://api.test/",
        "http://api.test/v10",
        "http://api.test/v1/%2e%2e/x",
        "http://api.test/v1/..%2f..%2fx",
        "http://api.test:81/v1",
        "https://api.test:444/v1",
        "http://evil.test/v1",
        "http://169.254.169.254/v1",
        "http://127.0.0.1:1/v1",
        "file:///etc/passwd",
        "ftp://api.test/v1",
        "http://u:p@api.test/v1",
        "api.test",
        "",
        "http://api.test\\@evil.test/v1",
        "javascript:1",
    ] {
        let response = test(json!({ "url": url })).await;
        assert_eq!((response.status, &response.json()["code"]), (422, &json!("url_refused")), "{url}");
    }
    assert_eq!(test(json!({"method": "POST"})).await.status, 422);
    assert_eq!(stage.upstream.count(), 2);
}

#[tokio::test]
async fn a_body_must_be_a_small_json_object() {
    let stage = Stage::start().await;
    let admin = stage.sidecar.admin();
    let lines = |kind: &str| format!("Host: {admin}\r\nAuthorization: Bearer {MANAGER}\r\n{kind}");
    let json = "Content-Type: application/json\r\n";
    for path in ["/api/v1/connections/crm/refresh", "/api/v1/connections/crm/test", "/api/v1/reload"] {
        for (kind, body, status) in [
            ("", "{}".to_owned(), 415),
            ("Content-Type: text/plain\r\n", "{}".to_owned(), 415),
            ("Content-Type: application/x-www-form-urlencoded\r\n", "a=b".to_owned(), 415),
            (json, "{".to_owned(), 400),
            // serde would read the members from an array.
            (json, "[]".to_owned(), 400),
            (json, "[null, null]".to_owned(), 400),
            (json, "[".repeat(60_000), 400),
            (json, "{\"unknown\": 1}".to_owned(), 400),
            (json, "{\"profile\": 1, \"url\": 1}".to_owned(), 400),
            (json, format!("{{\"url\": \"{}\"}}", "x".repeat(65 * 1024)), 413),
        ] {
            let response = send(admin, "POST", path, &lines(kind), body.as_bytes()).await;
            assert_eq!(response.status, status, "{path} {kind} {:.40}", body);
        }
    }
}

#[tokio::test]
async fn a_reload_responds_with_its_outcome() {
    let stage = Stage::start().await;
    let path = stage.sidecar.dir.path().join("keybearer.yaml");
    let text = std::fs::read_to_string(&path).expect("a readable file");
    let reload = || stage.call("post", "/api/v1/reload", MANAGER, None);
    let mut events = stage.open_events().await;
    let unchanged = reload().await;
    assert_eq!((unchanged.status, unchanged.json()), (200, json!({"outcome": "unchanged", "restart_required": []})));
    std::fs::write(&path, text.replace("the-client,", "the-client, nonsense: 1,")).expect("written");
    let refused = reload().await.json();
    assert_eq!((&refused["status"], &refused["code"]), (&json!(422), &json!("configuration_refused")));
    assert_eq!(refused["problems"][0]["path"], "connections[0].nonsense");
    wait_until(&mut events, "configuration_refused").await;
    // The operator is demoted to a viewer.
    let fewer = text.replace("{name: o, role: operator,", "{name: o, role: viewer,");
    std::fs::write(&path, format!("workers: 7\n{fewer}")).expect("written");
    let applied = reload().await;
    let outcome = applied.json()["outcome"].clone();
    // The file watch may have applied the change first.
    assert!(applied.status == 200 && (outcome == "applied" || outcome == "unchanged"), "{}", applied.text());
    wait_until(&mut events, "\"restart_required\":[\"workers\"]").await;
    assert_eq!(stage.call("post", "/api/v1/connections/crm/refresh", OPERATOR, None).await.status, 403);
}

#[tokio::test]
async fn only_a_manager_may_check_a_definition_that_is_not_saved() {
    let stage = Stage::start().await;
    let token_url = format!("http://{}/token", stage.server.address);
    let definition = json!({ "name": "new", "client_id": "a", "client_secret": "b", "token_url": token_url });
    let body = json!({ "definition": definition });
    for (user, status) in [(VIEWER, 403), (OPERATOR, 403), (MANAGER, 200)] {
        let response = stage.call("post", "/api/v1/connections/new/preflight", user, Some(&body)).await;
        assert_eq!(response.status, status, "{user}: {}", response.text());
    }
    stage.sidecar.wait_for_log("role_too_low").await;
}
