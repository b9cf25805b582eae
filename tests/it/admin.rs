//! The admin API as its users meet it: who may do what, what it says, and what it never says.

use std::net::SocketAddr;
use std::process::Output;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;

use crate::intercept::{interception, interception_ca};
use crate::rig::raw::{self, Answer, Conn};
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::{Sidecar, program};

/// Tokens of the three users, in the order of their rights.
const VIEWER: &str = "viewer-token-of-a-test-0123456789";
const OPERATOR: &str = "operator-token-of-a-test-0123456789";
const MANAGER: &str = "manager-token-of-a-test-0123456789";
const CLIENT_SECRET: &str = "the-clients-very-own-secret";
/// All tokens of the scripted server begin so.
const ACCESS_TOKEN: &str = "very-secret-access-token";
const PATIENCE: Duration = Duration::from_secs(30);

/// Every operation: the statuses for no token, a wrong one, viewer, operator, manager.
const ROWS: [(&str, &str, [u16; 5]); 18] = [
    ("get", "/api/v1/openapi.json", [401, 401, 200, 200, 200]),
    ("get", "/api/v1/connections", [401, 401, 200, 200, 200]),
    ("get", "/api/v1/connections/{name}", [401, 401, 200, 200, 200]),
    ("get", "/api/v1/connections/{name}/tokens", [401, 401, 200, 200, 200]),
    // Without a refresh token.
    ("put", "/api/v1/connections/{name}/tokens", [401, 401, 403, 422, 422]),
    ("delete", "/api/v1/connections/{name}/tokens", [401, 401, 403, 200, 200]),
    ("post", "/api/v1/connections/{name}/revoke", [401, 401, 403, 200, 200]),
    ("get", "/api/v1/secrets", [401, 401, 403, 403, 200]),
    // Without a value; and none of that name.
    ("put", "/api/v1/secrets/{secret}", [401, 401, 403, 403, 422]),
    ("delete", "/api/v1/secrets/{secret}", [401, 401, 403, 403, 404]),
    // Forced a moment ago by the operator.
    ("post", "/api/v1/connections/{name}/refresh", [401, 401, 403, 200, 409]),
    ("post", "/api/v1/connections/{name}/test", [401, 401, 403, 200, 200]),
    // Its grant needs nobody; there is no such authorization.
    ("post", "/api/v1/connections/{name}/authorize", [401, 401, 403, 409, 409]),
    ("get", "/api/v1/authorizations/{id}", [401, 401, 404, 404, 404]),
    // Without a token in the body.
    ("post", "/api/v1/session", [401, 401, 401, 401, 401]),
    ("delete", "/api/v1/session", [401, 401, 204, 204, 204]),
    ("post", "/api/v1/reload", [401, 401, 403, 403, 200]),
    ("get", "/api/v1/events", [401, 401, 200, 200, 200]),
];

struct Stage {
    sidecar: Sidecar,
    upstream: Scripted,
    server: Scripted,
}

impl Stage {
    /// A viewer's connection on which events arrive from now on.
    async fn listen(&self) -> Conn {
        let admin = self.sidecar.admin();
        let mut events = Conn::open(admin).await;
        let head = format!("GET /api/v1/events HTTP/1.1\r\nHost: {admin}\r\nAuthorization: Bearer {VIEWER}\r\n\r\n");
        events.write(head.as_bytes()).await;
        until(&mut events, ": heartbeat").await;
        events
    }

    async fn start() -> Stage {
        Stage::with("", |_, before| Reply::token(&format!("{ACCESS_TOKEN}-{before}"), 3600)).await
    }

    /// `top`: further keys of the configuration. Its connections: `crm`, and `off`, which is inactive.
    async fn with<F>(top: &str, reply: F) -> Stage
    where
        F: Fn(&crate::rig::scripted::Received, usize) -> Reply + Send + Sync + 'static,
    {
        let (server, upstream) = (Scripted::start(reply).await, Scripted::upstream().await);
        let users = [("v", "viewer", VIEWER), ("o", "operator", OPERATOR), ("m", "manager", MANAGER)];
        let users = users.map(|(name, role, token)| format!("{{name: {name}, role: {role}, token: {token}}}"));
        let config = format!(
            "{top}admin: {{users: [{}], hosts: [keys.test, \"other.test:99\"]}}\nhosts: {{api.test: \"{}\"}}\n\
             connections:\n- {{name: crm, client_id: the-client, client_secret: {CLIENT_SECRET}, scopes: a b, \
             token_url: \"http://{}/token?key={CLIENT_SECRET}\", \
             token_params: {{hint: {CLIENT_SECRET}}}, routes: [{{host: api.test, path: /v1, upstream_tls: false}}]}}\n\
             - {{name: off, active: false, client_id: a, token_url: \"http://127.0.0.1:1/t\"}}\n",
            users.join(", "),
            upstream.address,
            server.address
        );
        Stage { sidecar: Sidecar::start(&config).await, upstream, server }
    }

    async fn call(&self, method: &str, path: &str, token: &str, body: Option<&Value>) -> Answer {
        call(self.sidecar.admin(), method, path, token, body).await
    }
}

async fn call(admin: SocketAddr, method: &str, path: &str, token: &str, body: Option<&Value>) -> Answer {
    let lines = if token.is_empty() { String::new() } else { format!("Authorization: Bearer {token}\r\n") };
    let body = body.map(Value::to_string);
    let kind = if body.is_some() { "Content-Type: application/json\r\n" } else { "" };
    say(admin, method, path, &format!("Host: {admin}\r\n{lines}{kind}"), body.unwrap_or_default().as_bytes()).await
}

/// A request with these header lines and this body.
async fn say(admin: SocketAddr, method: &str, path: &str, lines: &str, body: &[u8]) -> Answer {
    let method = method.to_uppercase();
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let head = format!("{method} {path} HTTP/1.1\r\n{lines}{length}Connection: close\r\n\r\n");
    raw::send(admin, &[head.as_bytes(), body].concat()).await
}

/// The status alone: the answer of `events` has no end.
async fn status(admin: SocketAddr, method: &str, path: &str, token: &str) -> u16 {
    if !path.ends_with("/events") {
        return call(admin, method, path, token, None).await.status;
    }
    let (mut conn, lines) = (Conn::open(admin).await, if token.is_empty() { "" } else { "Authorization: Bearer " });
    let end = if token.is_empty() { "" } else { "\r\n" };
    conn.write(format!("GET {path} HTTP/1.1\r\nHost: {admin}\r\n{lines}{token}{end}\r\n").as_bytes()).await;
    let line = until(&mut conn, "\r\n").await;
    line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
}

/// Reads until `text` has come; everything read.
async fn until(conn: &mut Conn, text: &str) -> String {
    use tokio::io::AsyncReadExt;
    let mut read = Vec::new();
    let reading = async {
        while !String::from_utf8_lossy(&read).contains(text) {
            let mut buffer = [0; 4096];
            let count = conn.stream.read(&mut buffer).await.expect("bytes");
            assert!(count > 0, "it ended before {text:?}");
            read.extend_from_slice(&buffer[..count]);
        }
    };
    timeout(PATIENCE, reading).await.unwrap_or_else(|_| panic!("{text:?} never came"));
    String::from_utf8(read).expect("text")
}

#[tokio::test]
async fn every_route_is_open_to_its_roles_alone() {
    let stage = Stage::start().await;
    let document = stage.call("get", "/api/v1/openapi.json", VIEWER, None).await.json();
    assert_eq!(document["openapi"], "3.1.0");
    let mut walked = 0;
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for (method, operation) in methods.as_object().expect("methods") {
            let row = ROWS.iter().find(|(row_method, row_path, _)| row_method == method && row_path == path);
            let (.., expected) = row.unwrap_or_else(|| panic!("{method} {path} has no row in this test: add one"));
            walked += 1;
            for (token, expected) in ["", "wrong", VIEWER, OPERATOR, MANAGER].into_iter().zip(expected) {
                let real = path.replace("{name}", "crm").replace("{secret}", "spare").replace("{id}", "c");
                let got = if path.ends_with("/test") && *expected == 200 {
                    let url = json!({ "url": "http://api.test/v1/x" });
                    stage.call(method, &real, token, Some(&url)).await.status
                } else {
                    status(stage.sidecar.admin(), method, &real, token).await
                };
                assert_eq!(got, *expected, "{method} {path} with {token:?}");
                let described = &operation["responses"][got.to_string()];
                assert!(described.is_object(), "{method} {path}: {got} is not described");
            }
        }
    }
    assert_eq!(walked, ROWS.len(), "a row without a route");
}

/// CI-15
#[tokio::test]
async fn the_interception_ca_is_served_by_no_route() {
    let stage = Stage::with(&interception(), |_, _| Reply::token("t", 3600)).await;
    let (certificate, key) = interception_ca();
    let lines = |path: &std::path::Path| {
        let text = std::fs::read_to_string(path).expect("PEM");
        let lines: Vec<_> = text.lines().filter(|line| !line.starts_with("-----")).map(str::to_owned).collect();
        lines
    };
    let secrets = [lines(certificate), lines(key)].concat();
    let document = stage.call("get", "/api/v1/openapi.json", MANAGER, None).await.json();
    let mut paths: Vec<String> = ["/", "/metrics", "/livez", "/readyz?verbose"].map(str::to_owned).into();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        if methods["get"].is_object() && !path.ends_with("/events") {
            paths.push(path.replace("{name}", "crm").replace("{id}", "c"));
        }
    }
    assert!(paths.len() > 8, "{paths:?}");
    for path in paths {
        let answer = stage.call("get", &path, MANAGER, None).await;
        let text = format!("{}{:?}", answer.text(), answer.headers);
        assert!(!text.contains("PRIVATE KEY") && !text.contains("BEGIN CERTIFICATE"), "{path}: {text}");
        assert!(!secrets.iter().any(|line| text.contains(line)), "{path}: {text}");
    }
}

#[tokio::test]
async fn what_is_not_a_users_token_opens_nothing() {
    let stage = Stage::with("callers: [{name: billing, secret: billing-secret}]\n", |_, _| Reply::token("t", 60)).await;
    let admin = stage.sidecar.admin();
    let host = format!("Host: {admin}\r\n");
    for credential in [
        "",
        "Authorization: Bearer billing-secret\r\n",
        "Authorization: Basic YmlsbGluZzpiaWxsaW5nLXNlY3JldA==\r\n",
        "Authorization: Bearer\r\n",
        "Authorization: Bearer \r\n",
        &format!("Authorization: Basic {MANAGER}\r\n"),
        &format!("Authorization: {MANAGER}\r\n"),
        &format!("Authorization: Bearer {MANAGER}x\r\n"),
        &format!("Authorization: Bearer {MANAGER}\r\nAuthorization: Bearer {MANAGER}\r\n"),
        &format!("Proxy-Authorization: Bearer {MANAGER}\r\n"),
        &format!("Cookie: token={MANAGER}\r\n"),
    ] {
        for path in ["/api/v1/connections", "/api/v1/nothing", "/api/v1/connections/nobody"] {
            let answer = say(admin, "GET", path, &format!("{host}{credential}"), b"").await;
            assert_eq!(answer.status, 401, "{path} {credential}");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer realm=\"keybearer\""));
            assert_eq!(answer.header("content-type"), Some("application/problem+json"));
            assert_eq!(answer.json()["code"], "user_unknown");
        }
    }
    let query = say(admin, "GET", &format!("/api/v1/connections?token={MANAGER}"), &host, b"").await;
    assert_eq!(query.status, 401);
    let lower = format!("{host}authorization: bearer {MANAGER}\r\n");
    assert_eq!(say(admin, "GET", "/api/v1/connections", &lower, b"").await.status, 200);
}

#[tokio::test]
async fn only_names_of_its_own_are_answered() {
    let stage = Stage::start().await;
    let admin = stage.sidecar.admin();
    let port = admin.port();
    let with = |hosts: String| async move {
        let lines = format!("{hosts}Authorization: Bearer {VIEWER}\r\n");
        say(admin, "GET", "/api/v1/connections", &lines, b"").await.status
    };
    for good in [
        format!("127.0.0.1:{port}"),
        format!("LOCALHOST:{port}"),
        "keys.test".into(),
        "keys.test:1".into(),
        "other.test:99".into(),
    ] {
        assert_eq!(with(format!("Host: {good}\r\n")).await, 200, "{good}");
    }
    let bad = [
        "evil.test",
        "127.0.0.1",
        "localhost:1",
        "other.test",
        "other.test:98",
        "127.0.0.2:8081",
        "keys.test.evil",
        "",
        "a b",
    ];
    for bad in bad {
        assert_eq!(with(format!("Host: {bad}\r\n")).await, 421, "{bad}");
    }
    assert_eq!(with(String::new()).await, 421);
    assert_eq!(with("Host: keys.test\r\nHost: keys.test\r\n".to_owned()).await, 421);
    let lines = format!("Host: keys.test\r\nAuthorization: Bearer {VIEWER}\r\n");
    assert_eq!(say(admin, "GET", "http://evil.test/api/v1/connections", &lines, b"").await.status, 421);
    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(say(admin, "GET", path, "Host: evil.test\r\n", b"").await.status, 200, "{path}");
    }
}

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
    let keys: Vec<_> = token.as_object().expect("an object").keys().map(String::as_str).collect();
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
        let answer = stage.call("get", &format!("/api/v1/connections/crm/tokens{query}"), VIEWER, None).await;
        assert_eq!((answer.status, answer.json()["items"].as_array().map(Vec::len)), (status, count), "{query}");
    }
    for path in ["connections/nobody", "connections/nobody/tokens", "nothing", "connections/%2e%2e"] {
        let answer = stage.call("get", &format!("/api/v1/{path}"), VIEWER, None).await;
        assert_eq!((answer.status, answer.header("cache-control")), (404, Some("no-store")), "{path}");
    }
    let answer = stage.call("delete", "/api/v1/connections/crm", MANAGER, None).await;
    assert_eq!((answer.status, answer.json()["code"].as_str()), (405, Some("method_refused")));
}

#[tokio::test]
async fn no_answer_holds_a_token_or_a_secret() {
    let stage = Stage::start().await;
    let admin = stage.sidecar.admin();
    let mut events = stage.listen().await;
    let mut said = String::new();
    for (method, path, _) in ROWS.iter().filter(|(_, path, _)| !path.ends_with("/events")) {
        for name in ["crm", "off", "nobody"] {
            let body = path.ends_with("/test").then(|| json!({"url": "http://api.test/v1/x?key=very-secret-query"}));
            let answer = stage.call(method, &path.replace("{name}", name), MANAGER, body.as_ref()).await;
            said += &format!("{:?}\n{}\n", answer.headers, answer.text());
        }
    }
    said += &until(&mut events, "token_obtained").await;
    said += &raw::get(admin, "/metrics").await.text();
    said += &raw::get(admin, "/readyz?verbose").await.text();
    said += &stage.sidecar.log();
    // The grep itself can find something.
    assert!(said.contains("the-client") && said.contains("token_obtained"), "{said}");
    let sent = stage.upstream.received();
    assert!(sent.iter().any(|request| request.head.contains(ACCESS_TOKEN)), "the test request carried no token");
    assert!(stage.server.received().iter().any(|r| String::from_utf8_lossy(&r.body).contains(CLIENT_SECRET)));
    for secret in [ACCESS_TOKEN, CLIENT_SECRET, "very-secret-query", VIEWER, OPERATOR, MANAGER] {
        // A warning of the configuration names a place, never what stands there.
        assert!(!said.contains(secret), "{secret} is shown");
    }
}

#[tokio::test]
async fn a_refresh_goes_through_one_flight_and_no_back_off() {
    let stage = Stage::start().await;
    let before = stage.server.count();
    let refresh = || stage.call("post", "/api/v1/connections/crm/refresh", OPERATOR, None);
    let answer = refresh().await;
    assert_eq!((answer.status, &answer.json()["state"]), (200, &json!("fresh")));
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
async fn a_refusal_and_an_outage_are_told_apart() {
    let refused =
        Stage::with("", |_, _| Reply::json(400, &json!({"error": "invalid_client", "error_description": "no"}))).await;
    let down = Stage::with("", |_, _| Reply::text(503, "text/plain", "down")).await;
    for (stage, status, code, outcome) in
        [(&refused, 424, "token_refused", "refused"), (&down, 503, "token_unavailable", "unavailable")]
    {
        for call in ["refresh", "test"] {
            let answer = stage.call("post", &format!("/api/v1/connections/crm/{call}"), OPERATOR, None).await;
            assert_eq!((answer.status, &answer.json()["code"]), (status, &json!(code)), "{call}");
            assert_eq!(answer.header("retry-after").is_some(), status == 503, "{call}");
        }
        assert_eq!(stage.upstream.count(), 0);
        let tokens = stage.call("get", "/api/v1/connections/crm/tokens", VIEWER, None).await.json();
        let attempt = &tokens["items"][0]["last_attempt"];
        assert_eq!((&attempt["outcome"], &tokens["items"][0]["expires_at"]), (&json!(outcome), &Value::Null));
        assert!(attempt["at"].as_str() < attempt["next_at"].as_str(), "{attempt}");
    }
}

#[tokio::test]
async fn a_test_reaches_only_what_the_connections_routes_take() {
    let stage = Stage::start().await;
    let (path, known) = ("/api/v1/connections/crm/test", &stage);
    let test = |body: Value| async move { known.call("post", path, OPERATOR, Some(&body)).await };
    let answer = stage.call("post", "/api/v1/connections/crm/test", OPERATOR, None).await;
    let shown = answer.json();
    assert_eq!((answer.status, &shown["status"], &shown["token"]), (200, &json!(200), &json!("fresh")), "{shown}");
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
        let answer = test(json!({ "url": url })).await;
        assert_eq!((answer.status, &answer.json()["code"]), (422, &json!("url_refused")), "{url}");
    }
    assert_eq!(test(json!({"method": "POST"})).await.status, 422);
    assert_eq!(stage.upstream.count(), 2);
}

#[tokio::test]
async fn bodies_are_small_json() {
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
            (json, "[".repeat(60_000), 400),
            (json, "{\"unknown\": 1}".to_owned(), 400),
            (json, "{\"profile\": 1, \"url\": 1}".to_owned(), 400),
            (json, format!("{{\"url\": \"{}\"}}", "x".repeat(65 * 1024)), 413),
        ] {
            let answer = say(admin, "POST", path, &lines(kind), body.as_bytes()).await;
            assert_eq!(answer.status, status, "{path} {kind} {:.40}", body);
        }
    }
}

#[tokio::test]
async fn a_reload_answers_with_what_came_of_it() {
    let stage = Stage::start().await;
    let path = stage.sidecar.dir.path().join("keybearer.yaml");
    let text = std::fs::read_to_string(&path).expect("the configuration");
    let reload = || stage.call("post", "/api/v1/reload", MANAGER, None);
    let mut events = stage.listen().await;
    let unchanged = reload().await;
    assert_eq!((unchanged.status, unchanged.json()), (200, json!({"outcome": "unchanged", "restart_required": []})));
    std::fs::write(&path, text.replace("the-client,", "the-client, nonsense: 1,")).expect("written");
    let refused = reload().await.json();
    assert_eq!((&refused["status"], &refused["code"]), (&json!(422), &json!("configuration_refused")));
    assert_eq!(refused["problems"][0]["path"], "connections[0].nonsense");
    until(&mut events, "configuration_refused").await;
    // The operator is let go, and becomes a manager's token no more.
    let fewer = text.replace("{name: o, role: operator,", "{name: o, role: viewer,");
    std::fs::write(&path, format!("workers: 7\n{fewer}")).expect("written");
    let applied = reload().await;
    let outcome = applied.json()["outcome"].clone();
    // The watch may have been quicker.
    assert!(applied.status == 200 && (outcome == "applied" || outcome == "unchanged"), "{}", applied.text());
    until(&mut events, "\"restart_required\":[\"workers\"]").await;
    assert_eq!(stage.call("post", "/api/v1/connections/crm/refresh", OPERATOR, None).await.status, 403);
}

#[tokio::test]
async fn the_proxy_does_not_lead_to_the_admin_side() {
    let stage = Stage::start().await;
    let (proxy, admin) = (stage.sidecar.proxy(), stage.sidecar.admin());
    let lines = format!("Authorization: Bearer {MANAGER}\r\n");
    for host in
        [admin.to_string(), format!("localhost:{}", admin.port()), format!("[::ffff:127.0.0.1]:{}", admin.port())]
    {
        let answer = raw::get_through(proxy, &format!("http://{host}/api/v1/connections"), &lines).await;
        assert!(answer.status != 200 && !answer.code().is_empty(), "{host}: {} {}", answer.status, answer.text());
        let mut tunnel = Conn::open(proxy).await;
        tunnel.write(format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await;
        let opened = until(&mut tunnel, "\r\n\r\n").await;
        if opened.starts_with("HTTP/1.1 200") {
            let request = format!("GET /api/v1/connections HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n");
            tunnel.write(request.as_bytes()).await;
            let inside = tunnel.answer().await;
            assert!(inside.status != 200 && !inside.code().is_empty(), "{host}: {}", inside.text());
        }
    }
}

#[tokio::test]
async fn without_users_the_token_file_opens_the_api() {
    let sidecar = Sidecar::start("connections: []\n").await;
    let path = sidecar.dir.path().join("state/admin-token");
    let token = std::fs::read_to_string(&path).expect("the token file");
    let (token, admin) = (token.trim_end(), sidecar.admin());
    assert!(token.len() == 43, "{} characters", token.len());
    assert_eq!(call(admin, "post", "/api/v1/reload", token, None).await.status, 200);
    assert_eq!(call(admin, "get", "/api/v1/connections", "", None).await.status, 401);
    let log = sidecar.log();
    assert!(log.contains("state/admin-token") && !log.contains(token), "{log}");
}

#[tokio::test]
async fn a_state_directory_that_cannot_be_written_costs_only_the_api() {
    let sidecar = Sidecar::start("state_dir: /proc/keybearer\nconnections: []\n").await;
    sidecar.logged("no admin token can be kept").await;
    assert_eq!(call(sidecar.admin(), "get", "/api/v1/connections", "anything", None).await.status, 401);
    assert_eq!(raw::get(sidecar.admin(), "/livez").await.status, 200);
}

#[tokio::test]
async fn with_a_telemetry_listener_each_listener_has_its_own_side() {
    let config =
        "listeners: {proxy: \"127.0.0.1:0\", admin: \"127.0.0.1:0\", telemetry: \"127.0.0.1:0\"}\nconnections: []\n";
    let sidecar = Sidecar::spawn(config, &[]).await;
    let (admin, telemetry) = (sidecar.admin(), sidecar.address("telemetry"));
    assert_eq!(raw::get(telemetry, "/livez").await.status, 200);
    assert_eq!(raw::get(telemetry, "/api/v1/connections").await.status, 404);
    assert_eq!(raw::get(admin, "/metrics").await.status, 404);
    assert_eq!(raw::get(admin, "/api/v1/connections").await.status, 401);
}

/// Runs a command against the stage's instance.
async fn command(stage: &Stage, token: &str, arguments: &[&str]) -> Output {
    let url = format!("http://{}", stage.sidecar.admin());
    let mut command = program();
    command.args(arguments).env("KEYBEARER_ADMIN_URL", url).env("KEYBEARER_ADMIN_TOKEN", token);
    timeout(PATIENCE, command.output()).await.expect("in time").expect("it runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

#[tokio::test]
async fn commands_ask_a_running_instance() {
    let stage = Stage::start().await;
    let shown = command(&stage, VIEWER, &["connections"]).await;
    let lines: Vec<_> = text(&shown.stdout).lines().map(str::to_owned).collect();
    assert_eq!((shown.status.code(), lines.len()), (Some(0), 3), "{lines:?} {}", text(&shown.stderr));
    assert!(lines[0].starts_with("NAME  STATE     GRANT") && lines[1].contains("api.test/v1"), "{lines:?}");
    assert!(lines[2].starts_with("off   inactive"), "{lines:?}");
    let json: Value =
        serde_json::from_slice(&command(&stage, VIEWER, &["connections", "--json"]).await.stdout).expect("JSON");
    assert_eq!(json["items"][0]["name"], "crm");
    let refused = command(&stage, VIEWER, &["refresh", "crm"]).await;
    assert_eq!((refused.status.code(), text(&refused.stdout).as_str()), (Some(1), ""));
    assert!(text(&refused.stderr).starts_with("role_too_low: "), "{}", text(&refused.stderr));
    let refreshed = command(&stage, OPERATOR, &["refresh", "crm"]).await;
    assert!(refreshed.status.success() && text(&refreshed.stdout).starts_with("crm/default: fresh, expires 2"));
    let tested = command(&stage, OPERATOR, &["test", "crm", "http://api.test/v1/x", "--json"]).await;
    let tested: Value = serde_json::from_slice(&tested.stdout).expect("JSON");
    assert_eq!(tested["status"], 200);
    let refused = command(&stage, OPERATOR, &["test", "crm", "http://evil.test/", "--json"]).await;
    let problem: Value = serde_json::from_slice(&refused.stdout).expect("JSON");
    assert_eq!((refused.status.code(), &problem["code"]), (Some(1), &json!("url_refused")));
    let healthy = command(&stage, "", &["healthcheck"]).await;
    assert_eq!((healthy.status.code(), text(&healthy.stdout).contains("is ready")), (Some(0), true));
}

#[tokio::test]
async fn commands_find_the_instance_and_its_token_by_the_configuration() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let admin = taken.local_addr().expect("an address");
    drop(taken);
    // Whoever asks does not have the secret that the file refers to.
    let config = format!(
        "listeners: {{proxy: \"127.0.0.1:0\", admin: \"{admin}\"}}\nstate_dir: kept\nconnections:\n\
         - {{name: crm, active: false, client_id: a, client_secret: {{file: secret}}, token_url: \"http://127.0.0.1:1/t\"}}\n"
    );
    let mut sidecar = Sidecar::start_with(&config, &[("secret", "x")]).await;
    std::fs::remove_file(sidecar.dir.path().join("secret")).expect("removed");
    let file = sidecar.dir.path().join("keybearer.yaml");
    let run = |command: &'static str| {
        let file = file.clone();
        async move { program().args([command, "--config"]).arg(file).output().await.expect("it runs") }
    };
    let shown = run("connections").await;
    assert!(shown.status.success() && text(&shown.stdout).contains("crm   inactive"), "{shown:?}");
    assert!(run("healthcheck").await.status.success());
    sidecar.signal("TERM");
    sidecar.exit().await;
    for command in ["connections", "healthcheck"] {
        let output = run(command).await;
        let said = text(&output.stderr);
        assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{said}");
        assert!(said.contains(&format!("no instance answers at http://{admin}/; ")), "{said}");
    }
}
