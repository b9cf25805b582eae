//! The metrics as Prometheus itself reads them, and each value compared with what was made to happen.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::time::timeout;

use crate::renewal::{MANAGER, call};
use crate::rig::peers::Peers;
use crate::rig::raw::{self, Conn};
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::{Sidecar, root, scale};

/// Every metric of the contract whose subject exists.
const BUILT: [&str; 23] = [
    "keybearer_build_info",
    "keybearer_certificate_expiry_timestamp_seconds",
    "keybearer_config_last_reload_success_timestamp_seconds",
    "keybearer_config_last_reload_successful",
    "keybearer_config_reloads_total",
    "keybearer_config_restart_required",
    "keybearer_errors_total",
    "keybearer_injections_total",
    "keybearer_log_lines_dropped_total",
    "keybearer_refresh_token_expiry_timestamp_seconds",
    "keybearer_replays_total",
    "keybearer_request_duration_seconds",
    "keybearer_request_overhead_seconds",
    "keybearer_requests_in_flight",
    "keybearer_requests_total",
    "keybearer_store_operations_total",
    "keybearer_stripped_total",
    "keybearer_token_expiry_timestamp_seconds",
    "keybearer_token_request_duration_seconds",
    "keybearer_token_requests_total",
    "keybearer_token_wait_seconds",
    "keybearer_tokens",
    "keybearer_upstream_connections",
];

const PROCESS: [&str; 7] = [
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_threads",
    "process_virtual_memory_bytes",
];

const CALLER: &str = "Proxy-Authorization: Bearer s3cret\r\n";

/// A sidecar that has lived through every outcome of a request and of a token request.
async fn lived(server: &Scripted, upstream: &Scripted) -> Sidecar {
    let refused = Scripted::start(|_, _| Reply::json(400, &serde_json::json!({"error": "invalid_scope"}))).await;
    let away = Scripted::start(|_, _| Reply::text(503, "text/plain", "away")).await;
    let nonsense = Scripted::start(|_, _| Reply::text(200, "text/plain", "no JSON")).await;
    let token = serde_json::json!({"access_token": "t", "refresh_token": "r", "refresh_token_expires_in": 864_000});
    let lasting = Scripted::start(move |_, _| Reply::json(200, &token)).await;
    let connection = |name: &str, server: &Scripted, routes: &str| {
        format!(
            "- {{name: {name}, client_id: a, token_url: \"http://{}/token\", routes: [{routes}]}}\n",
            server.address
        )
    };
    let connections = [
        connection(
            "crm",
            server,
            "{host: api.test, upstream_tls: false, strip: known}, {host: kept.test, upstream_tls: false, existing: keep}",
        ),
        connection("replayed", server, "{host: replayed.test, upstream_tls: false}"),
        connection(
            "broken",
            &refused,
            "{host: refused.test, upstream_tls: false}, {host: refused.test, path: /open, upstream_tls: false, without_token: forward}",
        ),
        connection("away", &away, ""),
        connection("nonsense", &nonsense, ""),
        connection("lasting", &lasting, ""),
    ];
    let sidecar = Sidecar::start(&format!(
        "hosts: {{api.test: \"{up}\", kept.test: \"{up}\", refused.test: \"{up}\", replayed.test: \"{up}\"}}\n\
         callers: [{{name: billing, secret: s3cret}}]\ntimeouts: {{response_head: 2s}}\ntrust: [\"{}\"]\nconnections:\n{}",
        Peers::certs().ca.display(),
        connections.concat(),
        up = upstream.address,
    ))
    .await;
    let statuses = [
        ("http://api.test/200", CALLER, 200),
        ("http://api.test/302", CALLER, 302),
        ("http://api.test/404", CALLER, 404),
        ("http://api.test/500", CALLER, 500),
        ("http://api.test/401", CALLER, 401),
        // Within ten seconds there is no further token to try.
        ("http://api.test/401", CALLER, 401),
        ("http://replayed.test/401-once", CALLER, 200),
        ("http://kept.test/200", "Proxy-Authorization: Bearer s3cret\r\nAuthorization: Bearer own\r\n", 200),
        ("http://refused.test/200", CALLER, 424),
        ("http://refused.test/open/200", CALLER, 200),
        ("http://api.test/200", "", 407),
    ];
    for (url, lines, status) in statuses {
        assert_eq!(raw::get_through(sidecar.proxy(), url, lines).await.status, status, "{url}");
    }
    sidecar
}

/// An authorization server, and an upstream that answers with the status at the end of the path.
async fn peers() -> (Scripted, Scripted) {
    let refusals = AtomicUsize::new(0);
    let upstream = Scripted::start(move |request, _| {
        let path = request.request_line().split(' ').nth(1).unwrap_or_default().to_owned();
        if path.ends_with("/silence") {
            return Reply::Silence;
        }
        let status = match path.rsplit('/').next().unwrap_or_default() {
            "401-once" if refusals.fetch_add(1, Ordering::Relaxed) == 0 => 401,
            last => last.parse().unwrap_or(200),
        };
        Reply::text(status, "text/plain", "x")
    });
    (Scripted::tokens(600).await, upstream.await)
}

#[tokio::test]
async fn each_outcome_is_counted_where_the_contract_says() {
    let (server, upstream) = peers().await;
    let sidecar = lived(&server, &upstream).await;
    let requests = |connection: &str, origin: &str, class: &str| {
        let profile = if connection.is_empty() { "" } else { "default" };
        let caller = if connection.is_empty() { "" } else { "billing" };
        format!(
            "keybearer_requests_total{{connection=\"{connection}\",profile=\"{profile}\",caller=\"{caller}\",origin=\"{origin}\",status_class=\"{class}\"}}"
        )
    };
    let injections = |connection: &str, outcome: &str| {
        format!("keybearer_injections_total{{connection=\"{connection}\",profile=\"default\",outcome=\"{outcome}\"}}")
    };
    let replays = |connection: &str, outcome: &str| {
        format!("keybearer_replays_total{{connection=\"{connection}\",outcome=\"{outcome}\"}}")
    };
    let token_requests = |connection: &str, outcome: &str| {
        format!(
            "keybearer_token_requests_total{{connection=\"{connection}\",profile=\"default\",grant=\"client_credentials\",outcome=\"{outcome}\"}}"
        )
    };
    let tokens = |connection: &str, state: &str| {
        format!("keybearer_tokens{{connection=\"{connection}\",profile=\"default\",state=\"{state}\"}}")
    };
    let table = [
        (requests("crm", "upstream", "2xx"), 2.0),
        (requests("crm", "upstream", "3xx"), 1.0),
        (requests("crm", "upstream", "4xx"), 3.0),
        (requests("crm", "upstream", "5xx"), 1.0),
        (requests("crm", "proxy", "4xx"), 0.0),
        (requests("replayed", "upstream", "2xx"), 1.0),
        (requests("broken", "proxy", "4xx"), 1.0),
        (requests("broken", "upstream", "2xx"), 1.0),
        (requests("", "proxy", "4xx"), 1.0),
        (injections("crm", "injected"), 6.0),
        (injections("crm", "kept"), 1.0),
        (injections("broken", "refused"), 1.0),
        (injections("broken", "forwarded"), 1.0),
        ("keybearer_errors_total{connection=\"broken\",code=\"token_refused\"}".to_owned(), 1.0),
        ("keybearer_errors_total{connection=\"\",code=\"caller_unknown\"}".to_owned(), 1.0),
        (replays("crm", "rejected"), 1.0),
        (replays("crm", "skipped"), 1.0),
        (replays("replayed", "accepted"), 1.0),
        (token_requests("crm", "ok"), 2.0),
        (token_requests("replayed", "ok"), 2.0),
        (token_requests("broken", "refused"), 1.0),
        ("keybearer_token_request_duration_seconds_count{connection=\"broken\"}".to_owned(), 1.0),
        ("keybearer_requests_in_flight".to_owned(), 0.0),
        ("keybearer_request_duration_seconds_count{connection=\"crm\"}".to_owned(), 7.0),
        ("keybearer_request_duration_seconds_count{connection=\"\"}".to_owned(), 1.0),
        ("keybearer_request_overhead_seconds_count".to_owned(), 9.0),
        (tokens("crm", "fresh"), 1.0),
        (tokens("broken", "misconfigured"), 1.0),
    ];
    for (series, value) in table {
        sidecar.until_metric(&series, |found| found == value).await;
    }
    // These are asked for again after two seconds.
    for (connection, outcome) in [("away", "unavailable"), ("nonsense", "invalid_answer")] {
        sidecar.until_metric(&token_requests(connection, outcome), |found| found >= 1.0).await;
    }
    let expiry = "keybearer_token_expiry_timestamp_seconds{connection=\"crm\",profile=\"default\"}";
    let left = sidecar.metric(expiry).await - now_s();
    assert!((500.0..=601.0).contains(&left), "{left} s left of 600");
    let expiry = "keybearer_refresh_token_expiry_timestamp_seconds{connection=\"lasting\",profile=\"default\"}";
    let left = sidecar.metric(expiry).await - now_s();
    assert!((863_800.0..=864_001.0).contains(&left), "{left} s left of ten days");
    let build = raw::get(sidecar.admin(), "/metrics").await.text();
    let build = build.lines().find(|line| line.starts_with("keybearer_build_info{")).expect("it is there").to_owned();
    let rustc = std::process::Command::new("rustc").arg("--version").output().expect("rustc runs").stdout;
    let rustc = String::from_utf8_lossy(&rustc).split(' ').nth(1).unwrap_or_default().to_owned();
    for part in [format!("version=\"{}\"", env!("CARGO_PKG_VERSION")), "revision=\"".to_owned(), rustc] {
        assert!(build.contains(&part) && build.ends_with("} 1"), "{part} is not in {build}");
    }
}

fn now_s() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs_f64()
}

#[tokio::test]
async fn what_is_under_way_is_counted_while_it_is() {
    let (server, upstream) = peers().await;
    let sidecar = lived(&server, &upstream).await;
    let (active, idle) =
        ("keybearer_upstream_connections{state=\"active\"}", "keybearer_upstream_connections{state=\"idle\"}");
    sidecar.until_metric(active, |count| count == 0.0).await;
    assert!(sidecar.metric(idle).await >= 1.0, "no connection is kept");
    let mut conn = Conn::open(sidecar.proxy()).await;
    conn.write(format!("GET http://api.test/silence HTTP/1.1\r\nHost: api.test\r\n{CALLER}\r\n").as_bytes()).await;
    sidecar.until_metric(active, |count| count == 1.0).await;
    assert_eq!(sidecar.metric("keybearer_requests_in_flight").await, 1.0);
    assert_eq!(conn.answer().await.code(), "upstream_timeout");
    sidecar.until_metric(active, |count| count == 0.0).await;
    sidecar.until_metric("keybearer_requests_in_flight", |count| count == 0.0).await;
}

#[tokio::test]
async fn a_wait_for_a_token_is_measured() {
    let slow = Scripted::start(|_, before| match before {
        0 => Reply::text(503, "text/plain", "not yet"),
        _ => Reply::token("late", 600),
    });
    let (slow, upstream) = (slow.await, Scripted::upstream().await);
    let sidecar = Sidecar::start(&format!(
        "hosts: {{api.test: \"{}\"}}\nconnections: [{{name: crm, client_id: a, token_url: \"http://{}/t\", routes: [{{host: api.test, upstream_tls: false}}]}}]\n",
        upstream.address, slow.address
    ))
    .await;
    let answer = raw::get_through(sidecar.proxy(), "http://api.test/", "").await;
    let waited = sidecar.metric("keybearer_token_wait_seconds_count").await;
    assert_eq!(waited, 1.0, "{answer:?}");
}

/// Each code of the table of errors, made to happen once.
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
    let mut seen = BTreeSet::new();
    let counted =
        |code: &str, connection: &str| format!("keybearer_errors_total{{connection=\"{connection}\",code=\"{code}\"}}");
    for (code, connection, request) in requests {
        let answer = raw::send(sidecar.proxy(), request.as_bytes()).await;
        assert_eq!(answer.code(), code, "{answer:?}");
        assert_eq!(sidecar.metric(&counted(code, connection)).await, 1.0, "{code}");
        seen.insert(code.to_owned());
    }
    // One tunnel, whose inside asks for another host; beside it there is no place for a second.
    let mut tunnel = Conn::open(sidecar.proxy()).await;
    tunnel.write(connect.as_bytes()).await;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tunnel.stream.read_u8().await.expect("a head"));
    }
    assert!(head.starts_with(b"HTTP/1.1 200 "));
    assert_eq!(raw::send(sidecar.proxy(), connect.as_bytes()).await.code(), "overloaded");
    tunnel.write(b"GET / HTTP/1.1\r\nHost: scoped.test\r\n\r\n").await;
    assert_eq!(tunnel.answer().await.code(), "authority_mismatch");
    for code in ["overloaded", "authority_mismatch"] {
        assert_eq!(sidecar.metric(&counted(code, "")).await, 1.0, "{code}");
        seen.insert(code.to_owned());
    }
    seen.extend(errors_of_people().await);
    let source = std::fs::read_to_string(root().join("src/proxy/error.rs")).expect("the rows of the errors");
    let codes: BTreeSet<_> =
        source.split("Row(\"").skip(1).filter_map(|row| Some(row.split_once('"')?.0.to_owned())).collect();
    assert_eq!(seen, codes, "a code that no request here brings about");
}

/// The codes of connections that wait for a person, each counted once.
async fn errors_of_people() -> Vec<String> {
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
    let handed_in = serde_json::json!({ "refresh_token": "from-elsewhere" });
    assert_eq!(call(sidecar.admin(), "PUT", "/connections/worn/tokens", &handed_in).await.status, 200);
    let worn = async || call(sidecar.admin(), "GET", "/connections/worn", &serde_json::Value::Null).await.json();
    let is_worn = async {
        while worn().await["state"] != "reauthorize" {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(15), is_worn).await.expect("its refresh token is refused in time");
    let mut seen = Vec::new();
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
        seen.push(code.to_owned());
    }
    let tokens = "keybearer_tokens{connection=\"worn\",profile=\"default\",state=\"reauthorize\"}";
    assert_eq!(sidecar.metric(tokens).await, 1.0);
    let saved = "keybearer_store_operations_total{operation=\"save\",outcome=\"ok\"}";
    assert_eq!(sidecar.metric(saved).await, 2.0, "the token that was handed in, and that it is refused");
    seen
}

/// How many series there are.
async fn series(sidecar: &Sidecar) -> usize {
    let text = raw::get(sidecar.admin(), "/metrics").await.text();
    text.lines().filter(|line| !line.starts_with('#')).count()
}

/// OB-05
#[tokio::test]
async fn what_callers_send_adds_no_series() {
    let (server, upstream) = peers().await;
    let sidecar = Sidecar::start(&format!(
        "hosts: {{api.test: \"{}\"}}\negress: {{unmatched: deny}}\ncallers: [{{name: billing, secret: s3cret}}]\n\
         connections: [{{name: crm, client_id: a, token_url: \"http://{}/t\", routes: [{{host: api.test, upstream_tls: false}}]}}]\n",
        upstream.address, server.address
    ))
    .await;
    let round = async |number: u32| {
        let status = 200 + number % 399;
        let mut conn = Conn::open(sidecar.proxy()).await;
        let requests = [
            format!(
                "M{number} http://api.test/p{number}/{status} HTTP/1.1\r\nHost: x\r\n{CALLER}X-H{number}: 1\r\n\r\n"
            ),
            format!("GET http://h{number}.test:{}/ HTTP/1.1\r\nHost: x\r\n{CALLER}\r\n", number + 1),
            format!(
                "GET /m{number}/x HTTP/1.1\r\nHost: h{number}.test\r\nKeybearer-Authorization: Bearer s3cret\r\n\r\n"
            ),
            format!("GET http://api.test/ HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Basic dTpw{number:04}\r\n\r\n"),
        ];
        for request in requests {
            conn.write(request.as_bytes()).await;
            assert_ne!(conn.answer().await.status, 0, "{request}");
        }
    };
    // The first makes the series of its outcomes, a rejected token included.
    for number in [0, 1, 201] {
        round(number).await;
    }
    let before = series(&sidecar).await;
    for number in 2..150 * scale() {
        round(number).await;
    }
    let text = raw::get(sidecar.admin(), "/metrics").await.text();
    assert!(!text.contains("h77") && !text.contains("p77") && !text.contains("M77"), "a label came from a request");
    assert_eq!(series(&sidecar).await, before);
}

fn certificate(r#use: &str, name: &str) -> String {
    format!("keybearer_certificate_expiry_timestamp_seconds{{use=\"{use}\",name=\"{name}\"}}")
}

#[tokio::test]
async fn each_bundle_of_certificates_tells_its_first_end() {
    let certs = Peers::certs();
    let read = |name: &str| std::fs::read_to_string(certs.dir.join(name)).expect("a certificate");
    // The CA lives 30 days, the leaf 7.
    let both = read("ca.pem") + &read("server.pem");
    let server = Scripted::tokens(600).await;
    let connection = |name: &str, rest: &str| {
        format!("- {{name: {name}, client_id: a, token_url: \"http://{}/t\", {rest}}}\n", server.address)
    };
    let crm = connection(
        "crm",
        "authorization_server: {trust: [both.pem]}, routes: [{host: a.test, upstream_tls: {trust: [ca.pem]}}, {host: b.test, upstream_tls: {trust: [both.pem]}}]",
    );
    let plain = connection("plain", "routes: []");
    let listeners = "listeners: {proxy: \"127.0.0.1:0\", admin: \"127.0.0.1:0\"}\n";
    let sidecar = Sidecar::start_with(
        &format!("{listeners}trust: [ca.pem]\nconnections:\n{crm}{plain}"),
        &[("ca.pem", &read("ca.pem")), ("both.pem", &both)],
    )
    .await;
    let days = async |series: String| ((sidecar.metric(&series).await - now_s()) / 86400.0).round();
    assert_eq!(days(certificate("trust", "")).await, 30.0);
    assert_eq!(days(certificate("authorization_server_trust", "crm")).await, 7.0);
    assert_eq!(days(certificate("upstream_trust", "crm")).await, 7.0);
    let path = sidecar.dir.path().join("keybearer.yaml");
    // What is not there reads as 0.
    assert_eq!(sidecar.metric(&certificate("upstream_trust", "plain")).await, 0.0);
    std::fs::write(sidecar.dir.path().join("both.pem"), read("ca.pem")).unwrap();
    sidecar.signal("HUP");
    sidecar.until_metric(&certificate("upstream_trust", "crm"), |end| (end - now_s()) / 86400.0 > 29.0).await;
    std::fs::write(&path, format!("{listeners}trust: [ca.pem]\nconnections:\n{plain}")).unwrap();
    sidecar.signal("HUP");
    sidecar.until_metric(&certificate("upstream_trust", "crm"), |end| end == 0.0).await;
    assert_eq!(sidecar.metric(&certificate("authorization_server_trust", "crm")).await, 0.0);
    assert_eq!(days(certificate("trust", "")).await, 30.0);
    // A configuration that is refused changes none of it.
    std::fs::write(&path, format!("{listeners}connections: 1\n")).unwrap();
    sidecar.signal("HUP");
    sidecar.until_metric("keybearer_config_reloads_total{outcome=\"refused\"}", |count| count >= 1.0).await;
    assert_eq!(days(certificate("trust", "")).await, 30.0);
    for (series, value) in [
        ("keybearer_config_reloads_total{outcome=\"applied\"}", 2.0),
        ("keybearer_config_last_reload_successful", 0.0),
        ("keybearer_config_restart_required", 0.0),
    ] {
        assert_eq!(sidecar.metric(series).await, value, "{series}");
    }
    let success = sidecar.metric("keybearer_config_last_reload_success_timestamp_seconds").await;
    assert!(now_s() - success < 60.0, "{success}");
}

#[tokio::test]
async fn check_warns_of_an_expired_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let expired = Peers::certs().dir.join("expired.pem");
    let (file, list) = (dir.path().join("keybearer.yaml"), Path::new("list.pem"));
    std::fs::write(dir.path().join(list), std::fs::read(Peers::certs().ca.as_path()).unwrap()).unwrap();
    std::fs::write(&file, format!("trust: [list.pem, \"{}\"]\nconnections:\n- {{name: a, client_id: a, token_url: \"http://127.0.0.1:1/t\"}}\n", expired.display())).unwrap();
    let output =
        crate::rig::sidecar::program().args(["check", "--json", "--config"]).arg(&file).output().await.unwrap();
    assert_eq!(output.status.code(), Some(0));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let [warning] = report["warnings"].as_array().expect("a list").as_slice() else { panic!("{report}") };
    assert_eq!(warning["path"], "trust[1]");
    let message = warning["message"].as_str().unwrap_or_default();
    assert!(
        message.contains("expired.pem holds a certificate that expired on ") && message.ends_with(" GMT"),
        "{warning}"
    );
}

#[tokio::test]
async fn only_listed_names_are_exposed_and_promtool_is_content() {
    let (server, upstream) = peers().await;
    let sidecar = lived(&server, &upstream).await;
    let text = raw::get(sidecar.admin(), "/metrics").await.text();
    let names: BTreeSet<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert_eq!(names.into_iter().collect::<Vec<_>>(), [&BUILT[..], &PROCESS[..]].concat());
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("promtool; run tests/rig/install.sh");
    child.stdin.take().unwrap().write_all(text.as_bytes()).await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.trim().is_empty(), "{said}");
}

#[test]
fn the_readme_tells_of_each_metric() {
    let readme = std::fs::read_to_string(root().join("README.md")).expect("README.md");
    let rows = readme.lines().filter_map(|line| line.strip_prefix("| `keybearer_")?.split_once('`'));
    let listed: BTreeSet<String> = rows.map(|(name, _)| format!("keybearer_{name}")).collect();
    assert_eq!(listed, BUILT.map(str::to_owned).into());
}

#[tokio::test]
async fn a_real_prometheus_scrapes_it() {
    let (server, upstream) = peers().await;
    let sidecar = lived(&server, &upstream).await;
    let dir = tempfile::tempdir().unwrap();
    let config = format!(
        "global: {{scrape_interval: 1s}}\nscrape_configs: [{{job_name: keybearer, static_configs: [{{targets: [\"{}\"]}}]}}]\n",
        sidecar.admin()
    );
    std::fs::write(dir.path().join("prometheus.yml"), config).unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let mut command = Command::new("prometheus");
    command.arg(format!("--config.file={}", dir.path().join("prometheus.yml").display()));
    command.arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()));
    command.arg(format!("--web.listen-address={address}")).kill_on_drop(true).stderr(Stdio::null());
    let _prometheus = command.spawn().expect("prometheus; run tests/rig/install.sh");
    let query = "/api/v1/query?query=sum(keybearer_injections_total)";
    let scraped = async {
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            if tokio::net::TcpStream::connect(address).await.is_err() {
                continue;
            }
            let answer = raw::get(address, query).await;
            if answer.status == 200 && !answer.json()["data"]["result"].as_array().unwrap().is_empty() {
                return answer.json()["data"]["result"][0]["value"][1].clone();
            }
        }
    };
    assert_eq!(timeout(Duration::from_secs(30), scraped).await.expect("a scrape in time"), "10");
}
