//! JSON of connections and tokens, without a secret.

use serde_json::{Value, json};

use super::{ACCESS_TOKEN, CLIENT_SECRET, MANAGER, OPERATOR, ROWS, Stage, VIEWER, wait_until};
use crate::rig::raw;
use crate::rig::sidecar::Sidecar;

#[tokio::test]
async fn connections_and_tokens_are_shown_without_a_secret() {
    let stage = Stage::start().await;
    let list = stage.call("get", "/api/v1/connections", VIEWER, None).await;
    assert_eq!(list.header("cache-control"), Some("no-store"));
    assert_eq!(list.header("x-content-type-options"), Some("nosniff"));
    let (items, one) = (list.json(), stage.call("get", "/api/v1/connections/crm", VIEWER, None).await.json());
    assert_eq!(items["items"].as_array().map(Vec::len), Some(2));
    for member in ["name", "state", "client_id", "comments", "expires_at", "last_attempt"] {
        assert_eq!(items["items"][0][member], one[member], "{member}");
    }
    for member in ["active", "grant"] {
        assert_eq!(items["items"][0][member], one["effective"][member], "{member}");
    }
    assert_eq!((&one["name"], &one["active"], &one["state"]), (&json!("crm"), &Value::Null, &json!("fresh")));
    assert_eq!((&one["effective"]["grant"], &one["client_id"]), (&json!("client_credentials"), &json!("the-client")));
    assert_eq!((&one["client_secret"], &one["scopes"]), (&json!({"set": true}), &json!("a b")));
    assert_eq!((&one["token_url"], &one["token_params"]), (&json!({"set": true}), &json!({"hint": {"set": true}})));
    let effective = &one["effective"];
    assert_eq!((&effective["active"], &effective["scopes"]), (&json!(true), &json!(["a", "b"])));
    assert_eq!(effective["token_url"], format!("http://{}/token", stage.server.address));
    assert_eq!((&one["routes"][0]["host"], &one["routes"][0]["path"]), (&json!("api.test"), &json!("/v1")));
    let off = &items["items"][1];
    assert_eq!((&off["state"], &off["expires_at"]), (&json!("inactive"), &Value::Null));
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
        ("?state=tired", 400, None),
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
    let response = stage.call("delete", "/api/v1/connections", MANAGER, None).await;
    assert_eq!((response.status, response.json()["code"].as_str()), (405, Some("method_refused")));
}

/// A definition in which the values of secrets contain `canary`.
const CALENDAR: &str = "\
- name: calendar
  active: false
  client_id: id
  client_secret: [canary-1, {env: PATH}]
  authorization_url: \"https://as.test/authorize?prompt=consent&hd=acme.test\"
  authorize_params: {access_type: offline}
  token_url: https://as.test/token
  token_params: {tenant: canary-2, region: \"${env:PATH}\"}
  token_request: {headers: {X-Key: canary-3, X-Other: {env: PATH}}}
  refresh_token_lifespan: 100d
  scopes: [a, b]
  audience: ~
  comments: |
    two
    lines
  routes:
    - {host: api.test, set_headers: {X-Fixed: canary-4}}
";

#[tokio::test]
async fn a_definition_is_shown_as_written_and_each_value_with_its_source() {
    let users = format!("admin: {{users: [{{name: m, role: manager, token: {MANAGER}}}]}}\n");
    let sidecar = Sidecar::start(&format!("{users}connections:\n{CALENDAR}")).await;
    let get = async |query: &str| {
        let path = format!("/api/v1/connections/calendar{query}");
        super::call(sidecar.admin(), "get", &path, MANAGER, None).await
    };
    let response = get("").await;
    assert!(!response.text().contains("canary"), "{}", response.text());
    let mut shown = response.json();
    let set = json!({ "set": true });
    let definition = json!({
        "name": "calendar",
        "active": false,
        "client_id": "id",
        "client_secret": [set, {"env": "PATH"}],
        "authorization_url": "https://as.test/authorize?prompt=consent&hd=acme.test",
        "authorize_params": {"access_type": "offline"},
        "token_url": "https://as.test/token",
        "token_params": {"tenant": set, "region": "${env:PATH}"},
        "token_request": {"headers": {"X-Key": set, "X-Other": {"env": "PATH"}}},
        "refresh_token_lifespan": "100d",
        "scopes": ["a", "b"],
        "audience": null,
        "comments": "two\nlines\n",
        "routes": [{"host": "api.test", "set_headers": {"X-Fixed": set}}],
    });
    let states = ["state", "expires_at", "last_attempt", "shared_tokens", "effective", "source"];
    let state = states.map(|name| shown.as_object_mut().expect("an object").remove(name).expect(name));
    assert_eq!(shown, definition);
    assert_eq!((&state[0], &state[4]["grant"]), (&json!("inactive"), &json!("authorization_code")));
    let resolved = get("?resolved=true").await;
    assert!(!resolved.text().contains("canary"), "{}", resolved.text());
    let resolved = resolved.json();
    let source = |key: &str| {
        let source = resolved[key]["source"].as_str().unwrap_or_else(|| panic!("{key}: {resolved}"));
        source.rsplit('/').next().unwrap_or_default().to_owned()
    };
    for (key, value) in definition.as_object().expect("an object") {
        assert_eq!(resolved[key]["value"], *value, "{key}");
    }
    let text = std::fs::read_to_string(sidecar.dir.path().join("keybearer.yaml")).expect("the configuration");
    let line = |key: &str| {
        let at = text.lines().position(|line| line.trim_start_matches([' ', '-']).starts_with(&format!("{key}:")));
        at.expect("the key") + 1
    };
    for key in ["client_id", "token_url", "routes"] {
        assert!(source(key).ends_with(&format!(".yaml:{}", line(key))), "{key}: {}", source(key));
    }
    assert_eq!(resolved["grant"], json!({"value": "authorization_code", "source": "default"}));
    assert_eq!(resolved["refresh_ahead"], json!({"value": "5m", "source": "default"}));
    assert_eq!((&resolved["state"], &resolved["basic_encoding"]), (&json!("inactive"), &Value::Null));
    assert_eq!(get("?resolved=perhaps").await.status, 400);
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
