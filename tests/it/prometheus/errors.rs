//! Error counters by code.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::CALLER;
use crate::rig::manager::{MANAGER, call};
use crate::rig::raw::{self, Conn};
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::{Sidecar, root};

/// Triggers each code of the error table once.
#[tokio::test]
async fn each_error_is_counted_by_its_code() {
    let upstream = Scripted::start(|request, _| match request.request_line() {
        line if line.contains("/nonsense") => Reply::BytesThenClose(b"SSH-2.0\r\n\r\n".to_vec()),
        line if line.contains("/silence") => Reply::Silence,
        _ => Reply::ok(),
    });
    let (upstream, server) = (upstream.await, Scripted::tokens(600).await);
    let refused = Scripted::start(|_, _| Reply::json(400, &serde_json::json!({"error": "invalid_scope"}))).await;
    let away = Scripted::start(|_, _| Reply::text(503, "text/plain", "away")).await;
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let no_tls = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (up, plain) = (upstream.address, no_tls.local_addr().unwrap());
    let _no_tls = tokio::spawn(async move {
        while let Ok((mut stream, _)) = no_tls.accept().await {
            let _ = stream.write_all(b"HTTP/1.1 400 No TLS here\r\n\r\n").await;
        }
    });
    let connection = |name: &str, server: &Scripted, rest: &str| {
        format!("- {{name: {name}, client_id: a, token_url: \"http://{}/token\", {rest}}}\n", server.address)
    };
    let sidecar = Sidecar::start(&format!(
        "hosts: {{api.test: \"{up}\", scoped.test: \"{up}\", off.test: \"{up}\", closed.test: \"{up}\", tls.test: \"{plain}\", refused.test: \"{up}\", away.test: \"{up}\", odd.test: \"{up}\", gone.test: \"{gone}\"}}\n\
         callers: [{{name: billing, secret: s3cret}}, {{name: other, secret: s4cret}}]\n\
         timeouts: {{client_head: 1s, response_head: 1s, token_wait: 100ms}}\nlimits: {{head: 8KiB, tunnels: 1}}\nconnections:\n{}",
        [
            connection("crm", &server, "routes: [{host: api.test, upstream_tls: false}, {host: scoped.test, path: /v1}, {host: tls.test}, {host: gone.test, upstream_tls: false}]"),
            connection("off", &server, "active: false, routes: [{host: off.test}]"),
            connection("closed", &server, "accessible_from: [other], routes: [{host: closed.test}]"),
            connection("broken", &refused, "routes: [{host: refused.test, upstream_tls: false}]"),
            connection("away", &away, "routes: [{host: away.test, upstream_tls: false}]"),
            connection("odd", &server, "script: {source: 'fn token_response(r, c) { throw \"no\" }'}, routes: [{host: odd.test, upstream_tls: false}]"),
        ]
        .concat()
    ))
    .await;
    let get = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: x\r\n{CALLER}Connection: close\r\n\r\n");
    assert_eq!(raw::send(sidecar.proxy(), get("http://api.test/").as_bytes()).await.status, 200);
    let via = upstream.received()[0].values("via")[0].to_owned();
    let long = "a".repeat(9000);
    let connect = format!("CONNECT api.test:80 HTTP/1.1\r\nHost: api.test:80\r\n{CALLER}\r\n");
    let requests = [
        ("bad_request_target", "", get("ftp://api.test/")),
        ("caller_unknown", "", get("http://api.test/").replace("s3cret", "wrong")),
        ("caller_not_allowed", "closed", get("http://closed.test/")),
        ("no_route", "", get("http://scoped.test/v2")),
        ("connection_inactive", "off", get("http://off.test/")),
        ("egress_denied", "", get("http://169.254.1.1/")),
        ("no_mount", "", get("/nowhere").replace("Proxy-Auth", "Keybearer-Auth")),
        ("method_refused", "", get("http://api.test/").replace("GET", "TRACE")),
        ("loop_detected", "", get("http://api.test/").replace("Connection", &format!("Via: {via}\r\nConnection"))),
        ("target_too_long", "", get(&format!("http://api.test/{long}"))),
        ("head_too_large", "", get("http://api.test/").replace("Connection", &format!("X: {long}\r\nConnection"))),
        ("request_timeout", "", "GET http://api.test/ HTTP/1.1\r\nHo".to_owned()),
        ("token_refused", "broken", get("http://refused.test/")),
        ("script_failed", "odd", get("http://odd.test/")),
        ("token_unavailable", "away", get("http://away.test/")),
        ("upstream_unreachable", "crm", get("http://gone.test/")),
        ("upstream_protocol", "crm", get("http://api.test/nonsense")),
        ("upstream_tls", "crm", get("http://tls.test/")),
        ("upstream_timeout", "crm", get("http://api.test/silence")),
    ];
    let mut triggered = BTreeSet::new();
    let counted =
        |code: &str, connection: &str| format!("keybearer_errors_total{{connection=\"{connection}\",code=\"{code}\"}}");
    for (code, connection, request) in requests {
        let response = raw::send(sidecar.proxy(), request.as_bytes()).await;
        assert_eq!(response.code(), code, "{response:?}");
        assert_eq!(sidecar.metric(&counted(code, connection)).await, 1.0, "{code}");
        triggered.insert(code.to_owned());
    }
    // One tunnel with a request for another host inside; the limit refuses a second tunnel.
    let mut tunnel = Conn::open(sidecar.proxy()).await;
    tunnel.write(connect.as_bytes()).await;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tunnel.stream.read_u8().await.expect("a head"));
    }
    assert!(head.starts_with(b"HTTP/1.1 200 "));
    assert_eq!(raw::send(sidecar.proxy(), connect.as_bytes()).await.code(), "overloaded");
    tunnel.write(b"GET / HTTP/1.1\r\nHost: scoped.test\r\n\r\n").await;
    assert_eq!(tunnel.read_response().await.code(), "authority_mismatch");
    for code in ["overloaded", "authority_mismatch"] {
        assert_eq!(sidecar.metric(&counted(code, "")).await, 1.0, "{code}");
        triggered.insert(code.to_owned());
    }
    triggered.extend(consent_errors().await);
    let source = std::fs::read_to_string(root().join("src/proxy/error.rs")).expect("a readable file");
    let codes: BTreeSet<_> =
        source.split("Row(\"").skip(1).filter_map(|row| Some(row.split_once('"')?.0.to_owned())).collect();
    assert_eq!(triggered, codes, "each code is triggered by a request above");
}

/// Triggers each code of connections that need a person once, and returns the codes.
async fn consent_errors() -> Vec<String> {
    let upstream = Scripted::upstream().await;
    let server = Scripted::start(|_, before| match before {
        0 => Reply::json(200, &serde_json::json!({"access_token": "t", "expires_in": 1, "refresh_token": "r"})),
        _ => Reply::json(400, &serde_json::json!({"error": "invalid_grant"})),
    })
    .await;
    let (up, url) = (upstream.address, format!("http://{}/token", server.address));
    let connection = |name: &str, keys: &str| {
        format!(
            "- {{name: {name}, client_id: a, token_url: \"{url}\", grant: authorization_code{keys}, \
             routes: [{{host: {name}.test, upstream_tls: false}}]}}\n"
        )
    };
    let each = ", tokens: per_subject";
    let sidecar = Sidecar::start(&format!(
        "hosts: {{new.test: \"{up}\", worn.test: \"{up}\", each.test: \"{up}\"}}\n\
         callers: [{{name: billing, secret: s3cret}}]\nadmin: {{users: [{{name: ops, role: manager, token: {MANAGER}}}]}}\n\
         connections:\n{}{}{}",
        connection("new", ""),
        connection("worn", ""),
        connection("each", each)
    ))
    .await;
    let import = serde_json::json!({ "refresh_token": "from-elsewhere" });
    assert_eq!(call(sidecar.admin(), "PUT", "/connections/worn/tokens", &import).await.status, 200);
    let worn = async || call(sidecar.admin(), "GET", "/connections/worn", &serde_json::Value::Null).await.json();
    let is_worn = async {
        while worn().await["state"] != "reauthorize" {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(15), is_worn).await.expect("its refresh token is refused in time");
    let mut triggered = Vec::new();
    for (code, name, lines) in [
        ("consent_required", "new", ""),
        ("refresh_token_expired", "worn", ""),
        ("subject_required", "each", "Keybearer-Subject: a b\r\n"),
        ("subject_not_allowed", "each", "Keybearer-Subject: ann\r\n"),
    ] {
        let (url, lines) = (format!("http://{name}.test/"), format!("{CALLER}{lines}"));
        assert_eq!(raw::get_through(sidecar.proxy(), &url, &lines).await.code(), code);
        let series = format!("keybearer_errors_total{{connection=\"{name}\",code=\"{code}\"}}");
        assert_eq!(sidecar.metric(&series).await, 1.0, "{code}");
        triggered.push(code.to_owned());
    }
    let tokens = "keybearer_tokens{connection=\"worn\",profile=\"default\",state=\"reauthorize\"}";
    assert_eq!(sidecar.metric(tokens).await, 1.0);
    let saved = "keybearer_store_operations_total{operation=\"save\",outcome=\"ok\"}";
    assert_eq!(sidecar.metric(saved).await, 2.0, "the import and the refusal");
    triggered
}
