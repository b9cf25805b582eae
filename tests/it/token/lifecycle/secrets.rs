//! No secret leaks into logs, metrics, responses or the audit, even at trace level.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use super::{token_requests, wait_until};
use crate::rig::peers::{AuthorizationServer, CLIENT_SECRET, Peers, Upstream};
use crate::rig::raw::{self, Conn};
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::Sidecar;

#[tokio::test]
async fn no_secret_leaks_at_trace_level() {
    const ADMIN: &str = "admin-token-9c3e-0123456789";
    const CALLER: &str = "caller-secret-0d1f";
    const REFUSED: &str = "refused-secret-77aa";
    const QUERY: &str = "query-secret-5b5b";
    const OWN: &str = "own-bearer-41c2";
    const CANARY: &str = "canary-in-a-path";
    let real = AuthorizationServer::op(json!({"lifetime": 2})).await;
    let upstream = Upstream::start(&real).await;
    // Refuses, and echoes the request in its response.
    let echo = Scripted::start(|request, _| {
        let sent = format!("{} {}", request.head, String::from_utf8_lossy(&request.body));
        Reply::json(400, &json!({"error": "invalid_client", "error_description": sent}))
    })
    .await;
    let at = format!("127.0.0.1:{}", upstream.http_port());
    let ca = Peers::certs().ca.display().to_string();
    let config = format!(
        "log: {{level: trace, requests: all}}
audit: {{to: {{file: audit.jsonl}}}}
admin: {{users: [{{name: ops, role: manager, token: {ADMIN}}}]}}
trust: [\"{ca}\"]
hosts: {{api.test: \"{at}\", body.test: \"{at}\", basic.test: \"{at}\"}}
callers: [{{name: billing, secret: {CALLER}}}]
connections:
- {{name: crm, client_id: machine, client_secret: machine-secret, token_url: \"{}\",
   routes: [{{host: api.test, upstream_tls: false}}]}}
- {{name: refused-body, client_id: canary-client, client_secret: {REFUSED}, token_url: \"http://{echo}/a\",
   routes: [{{host: body.test, upstream_tls: false}}]}}
- {{name: refused-basic, client_id: canary-client, client_secret: {REFUSED}, token_url: \"http://{echo}/b\",
   send_credentials: basic, routes: [{{host: basic.test, upstream_tls: false}}]}}
",
        real.token_url(),
        echo = echo.address,
    );
    let mut sidecar = Sidecar::start(&config).await;
    let credential = |secret: &str| BASE64_STANDARD.encode(format!("billing:{secret}"));
    let good = format!("Proxy-Authorization: Basic {}\r\nAuthorization: Bearer {OWN}\r\n", credential(CALLER));
    let wrong = format!("Proxy-Authorization: Basic {}\r\n", credential("caller-secret-0d1f-x"));
    let mut captured: BTreeMap<&str, String> = BTreeMap::new();
    let mut capture = |source: &'static str, text: &str| captured.entry(source).or_default().push_str(text);
    let admin = sidecar.admin();
    let as_admin = async |path: &str, token: &str| {
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: {admin}\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
        );
        raw::send(admin, head.as_bytes()).await
    };
    let mut events = Conn::open(admin).await;
    let head = format!("GET /api/v1/events HTTP/1.1\r\nHost: {admin}\r\nAuthorization: Bearer {ADMIN}\r\n\r\n");
    events.write(head.as_bytes()).await;
    for (path, lines, status) in [
        (format!("api.test/{CANARY}?access_token={QUERY}"), &good, 200),
        (format!("api.test/status/401?access_token={QUERY}"), &good, 401),
        (format!("api.test/drop?access_token={QUERY}"), &good, 502),
        (format!("api.test/x?access_token={QUERY}"), &wrong, 407),
        (format!("body.test/x?access_token={QUERY}"), &good, 424),
        (format!("basic.test/x?access_token={QUERY}"), &good, 424),
    ] {
        let response = raw::get_through(sidecar.proxy(), &format!("http://{path}"), lines).await;
        assert_eq!(response.status, status, "{path}: {}", response.text());
        if !response.code().is_empty() {
            capture("responses", &format!("{}{:?}", response.text(), response.headers));
        }
    }
    // An outage, so that a failing refresh is logged as well.
    real.control(json!({"status": 503})).await;
    wait_until("a refresh fails", async || token_requests(&sidecar, "crm", "unavailable").await >= 1.0).await;
    capture("metrics", &raw::get(admin, "/metrics").await.text());
    for path in ["/readyz?verbose", "/", "/livez"] {
        capture("admin", &raw::get(admin, path).await.text());
    }
    let document = as_admin("/api/v1/openapi.json", ADMIN).await.json();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        if methods["get"].is_null() || path.ends_with("/events") {
            continue;
        }
        for name in ["crm", "refused-body", "refused-basic"] {
            let response = as_admin(&path.replace("{name}", name), ADMIN).await;
            // There is no authorization flow, and no logo.
            let is_absent = path.contains("{id}") || path.ends_with("/logo");
            assert_eq!(response.status, if is_absent { 404 } else { 200 }, "{path}");
            capture("API", &response.text());
        }
        capture("API", &as_admin(&path.replace("{name}", "crm"), &format!("{ADMIN}-x")).await.text());
    }
    let mut read = Vec::new();
    while !String::from_utf8_lossy(&read).contains("token_failed") {
        let mut bytes = [0; 4096];
        let count = events.stream.read(&mut bytes).await.expect("events");
        assert!(count > 0, "the events ended");
        read.extend_from_slice(&bytes[..count]);
    }
    capture("events", &String::from_utf8_lossy(&read));
    sidecar.wait_for_log("token acquisition failed").await;
    sidecar.signal("TERM");
    sidecar.exit().await;
    capture("stderr", &sidecar.log());
    capture("stdout", &sidecar.stdout());
    capture("audit", &std::fs::read_to_string(sidecar.dir.path().join("audit.jsonl")).expect("a readable file"));

    let records = upstream.records().await;
    let headers = records.iter().flat_map(|record| record["headers"].as_array().into_iter().flatten());
    let tokens = headers.filter_map(Value::as_str).filter_map(|value| value.strip_prefix("Bearer "));
    let tokens: BTreeSet<_> = tokens.map(str::to_owned).collect();
    assert!(!tokens.is_empty());
    let basic = BASE64_STANDARD.encode(format!("canary-client:{REFUSED}"));
    let secrets = [CLIENT_SECRET, CALLER, REFUSED, QUERY, OWN, ADMIN, &basic, &credential(CALLER)].map(str::to_owned);
    let sources_of = |secret: &str| {
        captured.iter().filter(|(_, text)| text.contains(secret)).map(|(source, _)| *source).collect::<Vec<_>>()
    };
    for secret in tokens.iter().chain(&secrets) {
        assert_eq!(sources_of(secret), [""; 0], "{secret} is in:\n{captured:?}");
    }
    // Controls: the same search finds public values where they are expected.
    // `GET activity` shows the audit records.
    assert_eq!(sources_of(CANARY), ["API", "audit", "stderr"]);
    assert_eq!(sources_of("canary-client"), ["API"]);
    assert_eq!(sources_of("refused-body"), ["API", "audit", "metrics", "responses", "stderr"]);
    assert_eq!(sources_of("[+]"), ["admin"]);
    assert_eq!(captured["stdout"], "", "`run` prints nothing to stdout");
}
