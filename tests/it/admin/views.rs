//! JSON of connections and tokens, without a secret.

use serde_json::{Value, json};

use super::{ACCESS_TOKEN, CLIENT_SECRET, MANAGER, OPERATOR, ROWS, Stage, VIEWER, wait_until};
use crate::rig::raw;

#[tokio::test]
async fn connections_and_tokens_are_shown_without_a_secret() {
    let stage = Stage::start().await;
    let list = stage.call("get", "/api/v1/connections", VIEWER, None).await;
    assert_eq!(list.header("cache-control"), Some("no-store"));
    assert_eq!(list.header("x-content-type-options"), Some("nosniff"));
    let (items, one) = (list.json(), stage.call("get", "/api/v1/connections/crm", VIEWER, None).await.json());
    assert_eq!(items["items"].as_array().map(Vec::len), Some(2));
    assert_eq!(items["items"][0], one);
    assert_eq!((&one["name"], &one["active"], &one["state"]), (&json!("crm"), &json!(true), &json!("fresh")));
    assert_eq!((&one["grant"], &one["client_id"]), (&json!("client_credentials"), &json!("the-client")));
    assert_eq!((&one["client_secret"], &one["scopes"]), (&json!({"set": true}), &json!(["a", "b"])));
    assert_eq!(one["token_url"], format!("http://{}/token", stage.server.address));
    assert_eq!((&one["routes"][0]["host"], &one["routes"][0]["path"]), (&json!("api.test"), &json!("/v1")));
    let off = &items["items"][1];
    assert_eq!((&off["state"], &off["client_secret"]), (&json!("inactive"), &Value::Null));
    let tokens = stage.call("get", "/api/v1/connections/crm/tokens", VIEWER, None).await.json();
    assert_eq!((&tokens["cursor"], tokens["items"].as_array().map(Vec::len)), (&Value::Null, Some(1)));
    let token = &tokens["items"][0];
    let keys: Vec<_> = token.as_object().expect("a JSON object").keys().map(String::as_str).collect();
    let expected =
        "expires_at last_attempt obtained_at profile refresh_at refresh_token_expires_at scopes state subject";
    assert_eq!(keys.join(" "), expected);
    assert_eq!(
        (&token["profile"], &token["subject"], &token["state"]),
        (&json!("default"), &Value::Null, &json!("fresh"))
    );
    assert_eq!((&token["scopes"], &token["last_attempt"]["outcome"]), (&json!(["a", "b"]), &json!("ok")));
    for time in ["obtained_at", "refresh_at", "expires_at"] {
        let text = token[time].as_str().unwrap_or_default();
        assert!(text.len() == 20 && text.ends_with('Z') && text.as_bytes()[10] == b'T', "{time}: {text}");
    }
    assert!(token["obtained_at"].as_str() < token["refresh_at"].as_str());
    assert!(token["refresh_at"].as_str() < token["expires_at"].as_str());
    for (query, status, count) in [
        ("?profile=default&state=fresh&limit=1", 200, Some(1)),
        ("?profile=other", 404, None),
        ("?state=due", 200, Some(0)),
        ("?subject=alice", 200, Some(0)),
        ("?limit=0", 400, None),
        ("?cursor=x", 400, None),
        ("?colour=red", 400, None),
    ] {
        let response = stage.call("get", &format!("/api/v1/connections/crm/tokens{query}"), VIEWER, None).await;
        assert_eq!((response.status, response.json()["items"].as_array().map(Vec::len)), (status, count), "{query}");
    }
    for path in ["connections/absent", "connections/absent/tokens", "nothing", "connections/%2e%2e"] {
        let response = stage.call("get", &format!("/api/v1/{path}"), VIEWER, None).await;
        assert_eq!((response.status, response.header("cache-control")), (404, Some("no-store")), "{path}");
    }
    let response = stage.call("delete", "/api/v1/connections/crm", MANAGER, None).await;
    assert_eq!((response.status, response.json()["code"].as_str()), (405, Some("method_refused")));
}

#[tokio::test]
async fn no_response_contains_a_token_or_a_secret() {
    let stage = Stage::start().await;
    let admin = stage.sidecar.admin();
    let mut events = stage.open_events().await;
    let mut shown = String::new();
    for (method, path, _) in ROWS.iter().filter(|(_, path, _)| !path.ends_with("/events")) {
        for name in ["crm", "off", "absent"] {
            let body = path.ends_with("/test").then(|| json!({"url": "http://api.test/v1/x?key=very-secret-query"}));
            let response = stage.call(method, &path.replace("{name}", name), MANAGER, body.as_ref()).await;
            shown += &format!("{:?}\n{}\n", response.headers, response.text());
        }
    }
    shown += &wait_until(&mut events, "token_obtained").await;
    shown += &raw::get(admin, "/metrics").await.text();
    shown += &raw::get(admin, "/readyz?verbose").await.text();
    shown += &stage.sidecar.log();
    // Control: the search finds texts that are there.
    assert!(shown.contains("the-client") && shown.contains("token_obtained"), "{shown}");
    let sent = stage.upstream.received();
    assert!(sent.iter().any(|request| request.head.contains(ACCESS_TOKEN)), "the test request carried no token");
    assert!(stage.server.received().iter().any(|r| String::from_utf8_lossy(&r.body).contains(CLIENT_SECRET)));
    for secret in [ACCESS_TOKEN, CLIENT_SECRET, "very-secret-query", VIEWER, OPERATOR, MANAGER] {
        // A configuration warning names a position in the file, never its content.
        assert!(!shown.contains(secret), "{secret} is shown");
    }
}
