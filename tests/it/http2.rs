//! HTTP/2 downstream and upstream: forwarding, multiplexing, retries, floods.

mod forward;
mod grpc;

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use crate::rig::peers::{Http2Server, Peers, WebSocketServer, node, python, run_script};
use crate::rig::raw;
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::Sidecar;

/// A sidecar with tokens `t-0`, `t-1`, …; `https://api.test` and the mount `/crm` are served by `server`.
async fn start(server: &Http2Server, top: &str) -> (Sidecar, Scripted) {
    let tokens = Scripted::start(|_, before| Reply::token(&format!("t-{before}"), 3600)).await;
    let port = server.port();
    let config = format!(
        "hosts: {{api.test: \"127.0.0.1:{port}\"}}\ntrust: [{}]\n{top}connections:\n- {{name: crm, client_id: a, client_secret: b, \
         token_url: \"http://{}/token\", routes: [{{host: api.test}}, {{mount: /crm, upstream: \"https://api.test\"}}]}}\n",
        Peers::certs().ca.display(),
        tokens.address
    );
    (Sidecar::start(&config).await, tokens)
}

/// Sends all `requests` at once to the proxy, on one session of Node's client.
async fn session(sidecar: &Sidecar, connect: Option<&str>, requests: Vec<Value>) -> Vec<Value> {
    let options = json!({ "origin": format!("http://{}", sidecar.proxy()), "connect": connect, "requests": requests });
    match run_script(node(), "clients/h2.mjs", &[&options.to_string()], &[]).await {
        Value::Array(responses) => responses,
        other => panic!("{other}"),
    }
}

fn body(response: &Value) -> Value {
    serde_json::from_str(response["body"].as_str().expect("a body")).unwrap_or_else(|_| panic!("{response}"))
}

#[tokio::test]
async fn requests_are_forwarded_between_http_versions_in_both_directions() {
    let server = Http2Server::start(json!({})).await;
    let (sidecar, _tokens) = start(&server, "").await;
    let response =
        raw::get_through(sidecar.proxy(), "https://api.test/echo?a=1", "TE: trailers\r\nConnection: TE\r\n").await;
    let sent = response.json();
    assert_eq!((response.status, &sent["headers"]["authorization"]), (200, &json!("Bearer t-0")), "{sent}");
    assert_eq!((&sent["headers"][":path"], &sent["headers"][":authority"]), (&json!("/echo?a=1"), &json!("api.test")));
    assert_eq!((&sent["headers"]["te"], &sent["headers"]["host"]), (&json!("trailers"), &Value::Null), "{sent}");
    assert!(sent["headers"].get("connection").is_none(), "{sent}");
    assert!(sent["headers"]["via"].as_str().is_some_and(|via| via.starts_with("1.1 keybearer")), "{sent}");
    assert!(response.header("via").is_some_and(|via| via.starts_with("2.0 keybearer")), "{:?}", response.headers);

    let upload = "POST https://api.test/echo HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding: chunked\r\nConnection: \
                  close\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    assert_eq!(raw::send(sidecar.proxy(), upload.as_bytes()).await.json()["body_bytes"], 5);

    let cookies = json!({ "path": "/crm/echo", "headers": { "cookie": ["a=1", "b=2"] } });
    let large = json!({ "path": "/crm/echo", "method": "POST", "body_bytes": 3_000_000 });
    let trailers = json!({ "path": "/crm/trailers", "headers": { "te": "trailers" } });
    let responses = session(&sidecar, None, vec![cookies, large, trailers]).await;
    let sent = body(&responses[0]);
    assert_eq!(sent["headers"]["authorization"], "Bearer t-0", "{sent}");
    assert_eq!(sent["headers"]["cookie"], "a=1; b=2", "{sent}");
    assert_eq!(body(&responses[1])["body_bytes"], 3_000_000);
    assert_eq!(responses[2]["trailers"]["x-sum"], "42", "{}", responses[2]);
    assert!(responses[0]["headers"]["via"].as_str().is_some_and(|via| via.starts_with("2.0 keybearer")));
    assert!(sent["headers"]["via"].as_str().is_some_and(|via| via.starts_with("2.0 keybearer")), "{sent}");

    // With an HTTP/1.1 upstream.
    let plain = Scripted::upstream().await;
    let config = format!(
        "connections:\n- {{name: crm, client_id: a, client_secret: b, token_url: \"http://{}/token\", routes: [{{mount: /crm, \
         upstream: \"http://{}\"}}]}}\n",
        _tokens.address, plain.address
    );
    let sidecar = Sidecar::start(&config).await;
    let upload =
        json!({ "path": "/crm/up", "method": "POST", "body_bytes": 300_000, "headers": { "cookie": ["a=1", "b=2"] } });
    let responses = session(&sidecar, None, vec![upload]).await;
    assert_eq!((&responses[0]["status"], &responses[0]["body"]), (&json!(200), &json!("ok")), "{}", responses[0]);
    session(&sidecar, None, vec![json!({ "path": "/crm/empty", "method": "POST" })]).await;
    let received = plain.received();
    assert_eq!(received[1].values("content-length"), ["0"], "{}", received[1].head);
    assert_eq!(received[0].request_line(), "POST /up HTTP/1.1");
    let body_bytes = received[0].body.iter().filter(|byte| **byte == b'u').count();
    assert_eq!((body_bytes, received[0].values("cookie")), (300_000, vec!["a=1; b=2"]));
    assert_eq!(received[0].values("transfer-encoding"), ["chunked"]);
    assert_eq!(received[0].values("authorization").len(), 1);
    assert_eq!(received[0].values("host"), [plain.address.to_string()]);
}

#[tokio::test]
async fn a_malformed_chunked_body_for_an_http2_upstream_is_a_bad_request() {
    let server = Http2Server::start(json!({})).await;
    let (sidecar, _tokens) = start(&server, "").await;
    for body in ["zz\r\nabc\r\n0\r\n\r\n", "3\r\nabc\r\nzz\r\n"] {
        let head = "POST https://api.test/echo HTTP/1.1\r\nHost: api.test\r\nTransfer-Encoding: chunked\r\n\r\n";
        let response = raw::send(sidecar.proxy(), format!("{head}{body}").as_bytes()).await;
        assert_eq!((response.status, response.code()), (400, "bad_request_target"), "{body}: {}", response.text());
    }
    assert_eq!(raw::get_through(sidecar.proxy(), "https://api.test/echo", "").await.status, 200);
}

#[tokio::test]
async fn curl_reaches_a_mount_with_prior_knowledge() {
    let server = Http2Server::start(json!({})).await;
    let (sidecar, _tokens) = start(&server, "").await;
    let mut curl = tokio::process::Command::new("curl");
    let url = format!("http://{}/crm/events", sidecar.proxy());
    curl.args(["--http2-prior-knowledge", "-sS", "--max-time", "20", "-w", "%{http_version}", &url]).env_clear();
    let output = curl.output().await.expect("curl is installed");
    let transcript = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        transcript,
        "data: 0\n\ndata: 1\n\ndata: 2\n\ndata: 3\n\n2",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test]
async fn server_sent_events_are_forwarded_at_once() {
    let server = Http2Server::start(json!({})).await;
    let (sidecar, _tokens) = start(&server, "").await;
    let responses = session(&sidecar, None, vec![json!({ "path": "/crm/events" })]).await;
    let ms: Vec<u64> = serde_json::from_value(responses[0]["ms"].clone()).expect("times");
    assert_eq!(ms.len(), 4, "{}", responses[0]);
    assert!(ms[3] - ms[0] >= 500, "the events arrived together: {ms:?}");
}

/// A cold burst opens only as many connections as MAX_CONCURRENT_STREAMS requires.
#[tokio::test]
async fn requests_share_connections_up_to_the_stream_limit() {
    let server = Http2Server::start(json!({ "max_streams": 5 })).await;
    let (sidecar, _tokens) = start(&server, "workers: 1\n").await;
    let slow = || raw::get_through(sidecar.proxy(), "https://api.test/slow?ms=1500", "");
    let statuses: Vec<u16> = join_all((0..20).map(|_| slow())).await.iter().map(|response| response.status).collect();
    assert_eq!(statuses, [200; 20]);
    let stats = server.stats().await;
    assert_eq!((&stats["sessions"], &stats["most"]), (&json!(4), &json!(5)), "{stats}");
    // Sequential requests reuse a connection.
    for _ in 0..5 {
        assert_eq!(raw::get_through(sidecar.proxy(), "https://api.test/echo", "").await.status, 200);
    }
    assert_eq!(server.stats().await["sessions"], 4);
    sidecar.wait_for_metric("keybearer_upstream_connections{state=\"active\"}", |count| count == 0.0).await;
    sidecar.wait_for_metric("keybearer_upstream_connections{state=\"idle\"}", |count| count == 4.0).await;
}

/// All requests of a dead connection share its replacement.
#[tokio::test]
async fn a_dead_multiplexed_connection_is_replaced_by_one() {
    let server = Http2Server::start(json!({})).await;
    let (sidecar, _tokens) = start(&server, "workers: 1\n").await;
    assert_eq!(raw::get_through(sidecar.proxy(), "https://api.test/echo", "").await.status, 200);
    let cut = || raw::get_through(sidecar.proxy(), "https://api.test/cut?n=40", "");
    let statuses: Vec<u16> = join_all((0..40).map(|_| cut())).await.iter().map(|response| response.status).collect();
    assert_eq!(statuses, [200; 40], "{}", sidecar.log());
    let stats = server.stats().await;
    assert_eq!((&stats["sessions"], &stats["paths"]["/cut"]), (&json!(2), &json!(80)), "{stats}");
}

#[tokio::test]
async fn an_idle_downstream_connection_gets_goaway() {
    const GOAWAY: u8 = 7;
    let server = Http2Server::start(json!({})).await;
    let (sidecar, _tokens) = start(&server, "timeouts: {client_head: 500ms}\n").await;
    let mut conn = raw::Conn::open(sidecar.proxy()).await;
    // The preface, and an empty SETTINGS frame (RFC 9113 §3.4).
    conn.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
    let mut transcript = Vec::new();
    let read = conn.stream.read_to_end(&mut transcript);
    timeout(Duration::from_secs(10), read).await.expect("exits before the timeout").expect("bytes");
    let (mut kinds, mut at) = (Vec::new(), 0);
    while let Some(head) = transcript.get(at..at + 9) {
        kinds.push(head[3]);
        at += 9 + usize::from(head[0]) * 65_536 + usize::from(head[1]) * 256 + usize::from(head[2]);
    }
    assert!(kinds.contains(&GOAWAY), "{kinds:?}");
}

#[tokio::test]
async fn only_unprocessed_requests_are_retried() {
    let server = Http2Server::start(json!({})).await;
    let (sidecar, tokens) = start(&server, "workers: 1\n").await;
    let send = |method: &str, path: &str| {
        let head = "Host: api.test\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello";
        let request = format!("{method} https://api.test/{path} HTTP/1.1\r\n{head}");
        let at = sidecar.proxy();
        async move { raw::send(at, request.as_bytes()).await }
    };
    let post = |path: &str| send("POST", path);
    assert_eq!(post("echo").await.status, 200);
    // RFC 9113 §8.7: REFUSED_STREAM means not processed.
    let response = post("refused").await;
    assert_eq!((response.status, &response.json()["body_bytes"]), (200, &json!(5)), "HP-32");
    assert_eq!(server.stats().await["paths"]["/refused"], 2);
    for (sent, method) in ["POST", "PUT", "DELETE"].into_iter().enumerate() {
        let response = send(method, "reset").await;
        assert_eq!((response.status, response.code()), (502, "upstream_unreachable"), "HP-32 {method}");
        assert_eq!(server.stats().await["paths"]["/reset"], sent + 1, "HP-32 {method}");
    }
    // A graceful GOAWAY fails no request.
    for _ in 0..5 {
        assert_eq!(post("goaway").await.status, 200);
    }
    assert_eq!(server.stats().await["paths"]["/goaway"], 5);
    // A rejected token is handled as over HTTP/1.1.
    let response = post("refuse-token").await;
    assert_eq!((response.status, &response.json()["headers"]["authorization"]), (200, &json!("Bearer t-1")));
    assert_eq!(tokens.count(), 2);
}

#[tokio::test]
async fn connect_opens_a_tunnel_over_http2() {
    let plain = Scripted::upstream().await;
    let tokens = Scripted::tokens(3600).await;
    let config = format!(
        "hosts: {{api.test: \"{}\"}}\nconnections:\n- {{name: crm, client_id: a, client_secret: b, token_url: \"http://{}/token\", \
         routes: [{{host: api.test, upstream_tls: false}}]}}\n",
        plain.address, tokens.address
    );
    let sidecar = Sidecar::start(&config).await;
    // HTTP/2 again inside, as gRPC clients do.
    let responses =
        session(&sidecar, Some("api.test:80"), vec![json!({ "path": "/x" }), json!({ "path": "/y" })]).await;
    assert!(responses.iter().all(|response| response["status"] == 200), "{responses:?}\n{}", sidecar.log());
    assert_eq!(plain.received()[0].values("authorization"), ["Bearer token-1"]);
    let evil = json!({ "path": "/x", "headers": { ":authority": "evil.test" } });
    let responses = session(&sidecar, Some("api.test:80"), vec![evil]).await;
    assert_eq!((&responses[0]["status"], plain.count()), (&json!(421), 2), "CI-03");
}

#[tokio::test]
async fn websocket_is_accepted_over_http2() {
    let server = WebSocketServer::start(json!({ "token": "t-0" })).await;
    let tokens = Scripted::start(|_, before| Reply::token(&format!("t-{before}"), 3600)).await;
    let config = format!(
        "connections:\n- {{name: crm, client_id: a, client_secret: b, token_url: \"http://{}/token\", routes: [{{mount: /chat, \
         upstream: \"http://127.0.0.1:{}\"}}]}}\n",
        tokens.address,
        server.port()
    );
    let sidecar = Sidecar::start(&config).await;
    let observed = probe(&sidecar, "websocket", "/chat/echo").await;
    assert_eq!((&observed["offered"], &observed["status"]), (&json!(1), &json!(200)), "{observed}\n{}", sidecar.log());
    let first: Value = serde_json::from_str(observed["messages"][0].as_str().expect("a message")).expect("JSON");
    assert!(first["headers"].as_array().expect("pairs").contains(&json!(["authorization", "Bearer t-0"])), "{first}");
    assert_eq!((&observed["messages"][1], &observed["code"]), (&json!("café"), &json!(4001)), "{observed}");
}

#[tokio::test]
async fn websocket_is_forwarded_to_an_http2_only_upstream() {
    let server = Http2Server::start(json!({ "websocket": true })).await;
    let (sidecar, _tokens) = start(&server, "").await;
    let mounted = format!("ws://{}/crm/echo?a=1", sidecar.proxy());
    for row in ["the first", "the second, on the same connection"] {
        let observed = run_script(node(), "clients/ws_once.mjs", &[&mounted], &[]).await;
        assert_eq!(
            (&observed["echoed"], &observed["code"]),
            (&json!(true), &json!(4001)),
            "{row}: {observed}\n{}",
            sidecar.log()
        );
        let fields = &observed["first"]["headers"];
        assert_eq!((&fields[":protocol"], &fields[":path"]), (&json!("websocket"), &json!("/echo?a=1")), "{row}");
        assert_eq!(fields["authorization"], "Bearer t-0", "{row}: {fields}");
        assert_eq!(fields["sec-websocket-version"], "13", "{row}: {fields}");
        assert!(fields.get("sec-websocket-key").is_none(), "{row}: {fields}");
    }
    assert_eq!(server.stats().await["sessions"], 1);
    let over_http2 = probe(&sidecar, "websocket", "/crm/echo").await;
    assert_eq!((&over_http2["status"], &over_http2["code"]), (&json!(200), &json!(4001)), "{over_http2}");

    let without = Http2Server::start(json!({})).await;
    let (sidecar, _tokens) = start(&without, "").await;
    let handshake = "GET /crm/echo HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
               Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let refused = raw::send(sidecar.proxy(), handshake.as_bytes()).await;
    assert_eq!((refused.status, &refused.json()["code"]), (502, &json!("upstream_protocol")), "{}", refused.text());
}

/// Runs a probe of `tests/peers/h2_probe.py`, and returns what it observed.
async fn probe(sidecar: &Sidecar, probe: &str, path: &str) -> Value {
    let at = sidecar.proxy();
    let options =
        json!({ "port": at.port(), "authority": at.to_string(), "path": path, "small": "/crm/echo", "probe": probe });
    run_script(python(), "h2_probe.py", &[&options.to_string()], &[]).await
}

/// HP-35.
#[tokio::test]
async fn a_malformed_request_is_never_forwarded() {
    let server = Http2Server::start(json!({})).await;
    let (sidecar, _tokens) = start(&server, "").await;
    for name in [
        "crlf_in_value",
        "crlf_in_path",
        "nul_in_value",
        "bad_method",
        "te",
        "connection_field",
        "transfer_encoding",
        "upper_case",
        "pseudo_twice",
        "pseudo_late",
        "pseudo_unknown",
        "userinfo",
        "two_hosts",
        "no_path",
        "content_length_mismatch",
    ] {
        let observed = probe(&sidecar, name, "/crm/echo").await;
        let refused = observed["status"].as_u64().is_some_and(|status| (400..500).contains(&status));
        let ended =
            observed.get("reset").is_some() || observed.get("goaway").is_some() || observed.get("closed").is_some();
        assert!(refused || ended && observed.get("status").is_none(), "HP-35 {name}: {observed}");
        let paths = server.stats().await["paths"].clone();
        assert_eq!(paths, json!({}), "HP-35 {name} went upstream: {observed}");
    }
}

/// RS-02, RS-03, RS-04: memory stays bounded, and other callers are served.
#[tokio::test]
async fn floods_are_stopped_or_cost_little() {
    let server = Http2Server::start(json!({})).await;
    let (sidecar, _tokens) = start(&server, "").await;
    assert_eq!(session(&sidecar, None, vec![json!({ "path": "/crm/echo" })]).await[0]["status"], 200);
    let before = sidecar.resident_kib();
    const ENHANCE_YOUR_CALM: u64 = 11;
    for (row, name, cut) in [
        ("RS-02", "rapid_reset", true),
        ("RS-02", "made_you_reset", true),
        ("RS-03", "continuation", true),
        ("RS-03", "hpack_bomb", false),
        ("RS-04", "settings_flood", false),
        ("RS-04", "ping_flood", false),
        ("RS-04", "empty_data_flood", false),
    ] {
        let observed = probe(&sidecar, name, "/crm/slow?ms=60000").await;
        let ended = observed["goaway"] == ENHANCE_YOUR_CALM
            || observed.get("closed").is_some()
            || observed.get("cut").is_some();
        assert!(ended || !cut, "{row} {name}: {observed}");
        let response = session(&sidecar, None, vec![json!({ "path": "/crm/echo" })]).await;
        assert_eq!(response[0]["status"], 200, "{row} {name}: {observed}");
    }
    let after = sidecar.resident_kib();
    assert!(after < before + 24 * 1024, "{before} KiB grew to {after} KiB");
}

/// RS-05, RS-06.
#[tokio::test]
async fn streams_and_windows_are_bounded_and_stalled_responses_time_out() {
    let server = Http2Server::start(json!({})).await;
    let (sidecar, _tokens) = start(&server, "timeouts: {idle: 2s}\n").await;
    let observed = probe(&sidecar, "settings", "/crm/echo").await;
    let (streams, window, heads) = (&observed["settings"]["3"], &observed["settings"]["4"], &observed["settings"]["6"]);
    assert_eq!((streams, window, heads), (&json!(100), &json!(65536), &json!(262_144)), "RS-06: {observed}");
    let before = sidecar.resident_kib();
    let observed = probe(&sidecar, "zero_window", "/crm/bytes?n=100000000").await;
    assert_eq!(
        (&observed["resets"], &observed["status"]),
        (&json!(100), &json!(200)),
        "RS-05: {observed}\n{}",
        sidecar.log()
    );
    let after = sidecar.resident_kib();
    assert!(after < before + 40 * 1024, "RS-05: {before} KiB grew to {after} KiB");
    let text = "keybearer_requests_in_flight";
    sidecar.wait_for_metric(text, |count| count == 0.0).await;
}

/// Flow control reaches the upstream: a large response is not buffered.
#[tokio::test]
async fn both_directions_stream_in_constant_memory() {
    const TOTAL: usize = 200 << 20;
    let server = Http2Server::start(json!({})).await;
    let (sidecar, _tokens) = start(&server, "").await;
    let before = sidecar.resident_kib();
    let url = format!("https://api.test/bytes?n={TOTAL}");
    let reading = raw::get_through(sidecar.proxy(), &url, "");
    let upload = json!({ "path": "/crm/echo", "method": "POST", "body_bytes": TOTAL });
    let highest = async {
        let mut highest = 0;
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            highest = highest.max(sidecar.resident_kib());
        }
        highest
    };
    let (response, uploaded, highest) = tokio::join!(reading, session(&sidecar, None, vec![upload]), highest);
    assert_eq!((response.status, response.body.len()), (200, TOTAL));
    assert_eq!(body(&uploaded[0])["body_bytes"], TOTAL);
    assert!(highest < before + 24 * 1024, "{before} KiB grew to {highest} KiB");
}
