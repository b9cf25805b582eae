//! WebSocket through the proxy: the token on the handshake, then a relay in both directions.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::rig::config::{Config, Connection, local};
use crate::rig::interception::{interception, interception_ca};
use crate::rig::peers::{WebSocketServer, node, python, run_script};
use crate::rig::raw::Conn;
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::Sidecar;

const TIMEOUT: Duration = Duration::from_secs(20);
/// The upgrade fields that a browser sends (RFC 6455 §1.3).
const UPGRADE: &str = "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: \
                   dGhlIHNhbXBsZSBub25jZQ==\r\n";
const ACCEPTED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: \
                      s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// A connection with tokens `t-0`, `t-1`, …; its host is `ws.test`, its mount `/chat`.
async fn start(upstream: u16, top: &str) -> (Sidecar, Scripted) {
    let tokens = Scripted::start(|_, before| Reply::token(&format!("t-{before}"), 3600)).await;
    let mount = format!("mount: /chat, upstream: \"http://127.0.0.1:{upstream}\"");
    let crm = Connection::at("crm", &tokens).plain("ws.test").route(mount);
    (Sidecar::start(Config::new().host("ws.test", local(upstream)).top(top).connection(crm)).await, tokens)
}

#[tokio::test]
async fn websocket_libraries_work_through_a_tunnel_and_through_a_mount() {
    // The upstream rejects the first token on the handshake, and it is replaced.
    let server = WebSocketServer::start(json!({ "token": "t-1" })).await;
    let (sidecar, tokens) = start(server.port(), "").await;
    let proxy = sidecar.proxy_url();
    let mounted = format!("ws://{}/chat/echo?a=1", sidecar.proxy());
    let reports = [
        (
            "websockets through the proxy",
            run_script(python(), "clients/websockets_once.py", &["ws://ws.test/echo?a=1"], &[("http_proxy", &proxy)])
                .await,
        ),
        ("ws at the mount", run_script(node(), "clients/ws_once.mjs", &[&mounted], &[]).await),
    ];
    for (row, report) in reports {
        assert_eq!(
            (&report["echoed"], &report["code"]),
            (&json!(true), &json!(4001)),
            "{row}: {report}\n{}",
            sidecar.log()
        );
        assert_eq!(report["first"]["path"], "/echo?a=1", "{row}");
        let headers: Vec<(String, String)> = serde_json::from_value(report["first"]["headers"].clone()).expect("pairs");
        let values = |name: &str| -> Vec<&str> {
            headers.iter().filter(|(own, _)| own == name).map(|(_, value)| value.as_str()).collect()
        };
        assert_eq!(values("authorization"), ["Bearer t-1"], "{row}");
        assert_eq!(values("upgrade"), ["websocket"], "{row}");
        assert!(values("via").concat().contains("keybearer"), "{row}: {headers:?}");
        assert!(values("proxy-authorization").is_empty(), "{row}");
    }
    assert_eq!(tokens.count(), 2, "one replacement serves both");
    let counted = "keybearer_requests_total{connection=\"crm\",profile=\"default\",caller=\"\",origin=\"upstream\",status_class=\"1xx\"}";
    sidecar.wait_for_metric(counted, |count| count == 2.0).await;
}

#[tokio::test]
async fn a_websocket_works_inside_intercepted_tls() {
    let server = WebSocketServer::secure(json!({ "token": "token-1" })).await;
    let tokens = Scripted::tokens(3600).await;
    let crm = Connection::at("crm", &tokens).route("host: api.test");
    let config = Config::new().trust_peers().top(interception()).host("api.test", local(server.port())).connection(crm);
    let sidecar = Sidecar::start(config).await;
    let (proxy, ca) = (sidecar.proxy_url(), interception_ca().0.display().to_string());
    let environment = [("https_proxy", proxy.as_str()), ("SSL_CERT_FILE", ca.as_str())];
    let report = run_script(python(), "clients/websockets_once.py", &["wss://api.test/echo"], &environment).await;
    assert_eq!((&report["echoed"], &report["code"]), (&json!(true), &json!(4001)), "{report}\n{}", sidecar.log());
    assert!(report["first"].to_string().contains("Bearer token-1"), "{report}");
}

/// Accepts the upstream's end of a handshake. Returns it and the request head.
async fn accept(listener: &TcpListener) -> (TcpStream, String) {
    let (mut stream, _) = timeout(TIMEOUT, listener.accept()).await.expect("no timeout").expect("a connection");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(timeout(TIMEOUT, stream.read_u8()).await.expect("no timeout").expect("a head"));
    }
    (stream, String::from_utf8(head).expect("ASCII"))
}

fn get(lines: &str) -> String {
    format!("GET http://ws.test/ HTTP/1.1\r\nHost: ws.test\r\n{lines}\r\n")
}

#[tokio::test]
async fn a_101_is_forwarded_only_for_an_accepted_websocket() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let (sidecar, _tokens) = start(listener.local_addr().expect("a bound listener").port(), "").await;
    for (row, lines, response, status, is_forwarded) in [
        ("a refusal is forwarded", UPGRADE, "HTTP/1.1 426 Upgrade Required\r\nContent-Length: 2\r\n\r\nno", 426, true),
        (
            "a different protocol than requested",
            UPGRADE,
            "HTTP/1.1 101 x\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
            502,
            true,
        ),
        (
            "a response to another key",
            UPGRADE,
            "HTTP/1.1 101 x\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: \
             AAAALMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
            502,
            true,
        ),
        ("no upgrade was requested", "", ACCEPTED, 502, false),
        (
            "HP-19",
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
            ACCEPTED,
            502,
            false,
        ),
        (
            "two protocols",
            "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\nSec-WebSocket-Key: x\r\n",
            ACCEPTED,
            502,
            false,
        ),
    ] {
        let mut conn = Conn::open(sidecar.proxy()).await;
        conn.write(get(lines).as_bytes()).await;
        let (mut upstream, head) = accept(&listener).await;
        assert_eq!(head.to_ascii_lowercase().contains("\r\nupgrade: websocket\r\n"), is_forwarded, "{row}: {head}");
        assert!(!head.to_ascii_lowercase().contains("h2c"), "{row}: {head}");
        upstream.write_all(response.as_bytes()).await.expect("a response");
        assert_eq!(conn.read_response().await.status, status, "{row}");
    }
}

/// Over HTTP/2 any 2xx opens a WebSocket (RFC 8441 §5); over HTTP/1.1 only 101 does.
#[tokio::test]
async fn a_2xx_instead_of_101_is_502_over_http2() {
    let upstream = Scripted::start(|request, _| {
        let status = request.request_line().split("/to/").nth(1).and_then(|rest| rest.get(..3)).unwrap_or("500");
        let length = if status == "204" { "" } else { "Content-Length: 2\r\n" };
        let body = if status == "204" { "" } else { "no" };
        Reply::Bytes(format!("HTTP/1.1 {status} X\r\n{length}\r\n{body}").into_bytes())
    })
    .await;
    let (sidecar, _tokens) = start(upstream.address.port(), "").await;
    for (status, expected) in [("200", 502), ("204", 502), ("299", 502), ("302", 302), ("426", 426), ("500", 500)] {
        let path = format!("/chat/to/{status}");
        let authority = sidecar.proxy().to_string();
        let options =
            json!({ "port": sidecar.proxy().port(), "authority": authority, "path": path, "probe": "websocket" });
        let report = run_script(python(), "h2_probe.py", &[&options.to_string()], &[]).await;
        assert_eq!(report["status"], expected, "{status}: {report}\n{}", sidecar.log());
        let mut conn = Conn::open(sidecar.proxy()).await;
        conn.write(format!("GET {path} HTTP/1.1\r\nHost: kb\r\n{UPGRADE}\r\n").as_bytes()).await;
        assert_eq!(conn.read_response().await.status.to_string(), status, "over HTTP/1.1 it is forwarded");
    }
    sidecar.wait_for_log("instead of 101").await;
}

#[tokio::test]
async fn through_an_egress_proxy_a_websocket_always_uses_connect() {
    let proxy = Scripted::start(|request, _| match request.request_line() {
        line if line.starts_with("CONNECT") => Reply::Bytes(b"HTTP/1.1 200 OK\r\n\r\n".to_vec()),
        _ if !request.values("upgrade").is_empty() => Reply::Bytes(ACCEPTED.as_bytes().to_vec()),
        _ => Reply::ok(),
    })
    .await;
    let tokens = Scripted::tokens(3600).await;
    let crm = Connection::at("crm", &tokens).keys("authorization_server: {proxy: none}").plain("ws.test");
    let top = format!("workers: 1\negress: {{proxy: \"http://{}\"}}\n", proxy.address);
    let sidecar = Sidecar::start(Config::new().top(top).connection(crm)).await;
    let mut expected: Vec<&str> = Vec::new();
    for (lines, status) in [(UPGRADE, 101), ("", 200), ("", 200), (UPGRADE, 101), ("", 200)] {
        let mut conn = Conn::open(sidecar.proxy()).await;
        conn.write(get(lines).as_bytes()).await;
        assert_eq!(conn.read_response().await.status, status, "{}", sidecar.log());
        expected.extend(match status {
            101 => ["CONNECT ws.test:80 HTTP/1.1", "GET / HTTP/1.1"].as_slice(),
            _ => &["GET http://ws.test/ HTTP/1.1"],
        });
    }
    let received = proxy.received();
    let lines: Vec<_> = received.iter().map(|request| request.request_line()).collect();
    assert_eq!(lines, expected);
    let in_clear: Vec<_> = received.iter().filter(|request| request.head.contains("http://")).map(|r| r.from).collect();
    assert!(
        in_clear.iter().all(|from| *from == in_clear[0]),
        "the connection to the egress proxy is reused: {in_clear:?}"
    );
}

#[tokio::test]
async fn an_open_websocket_does_not_delay_shutdown() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let (mut sidecar, _tokens) = start(listener.local_addr().expect("a bound listener").port(), "").await;
    let mut caller = Conn::open(sidecar.proxy()).await;
    caller.write(get(UPGRADE).as_bytes()).await;
    let (mut upstream, _) = accept(&listener).await;
    upstream.write_all(ACCEPTED.as_bytes()).await.expect("a response");
    crate::rig::tunnel_client::read_connect_head(&mut caller).await;
    sidecar.signal("TERM");
    let end = timeout(Duration::from_secs(10), sidecar.exit()).await.expect("long before timeouts.drain");
    assert!(end.success() && caller.is_closed().await);
}

#[tokio::test]
async fn a_websocket_counts_as_a_tunnel_and_has_an_idle_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("a bound listener").port();
    let (sidecar, _tokens) = start(port, "limits: {tunnels: 1}\ntimeouts: {idle: 1s}\n").await;
    let mut first = Conn::open(sidecar.proxy()).await;
    // The first message is sent together with the head, before the upgrade is accepted.
    first.write([get(UPGRADE).as_bytes(), b"early"].concat().as_slice()).await;
    let (mut upstream, _) = accept(&listener).await;
    upstream.write_all([ACCEPTED.as_bytes(), b"hello"].concat().as_slice()).await.expect("a response");
    let mut head = crate::rig::tunnel_client::read_connect_head(&mut first).await;
    head.make_ascii_lowercase();
    assert!(
        head.starts_with("http/1.1 101") && head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="),
        "{head}"
    );
    let mut five = [0; 5];
    timeout(TIMEOUT, first.stream.read_exact(&mut five)).await.expect("no timeout").expect("bytes");
    assert_eq!(&five, b"hello");
    timeout(TIMEOUT, upstream.read_exact(&mut five)).await.expect("no timeout").expect("bytes");
    assert_eq!(&five, b"early");
    let mut second = Conn::open(sidecar.proxy()).await;
    second.write(get(UPGRADE).as_bytes()).await;
    let response = second.read_response().await;
    assert_eq!((response.status, response.code()), (503, "overloaded"));
    assert!(first.is_closed().await, "after a second of silence");
    // The second connection reaches its own idle timeout at about this time.
    let mut third = Conn::open(sidecar.proxy()).await;
    third.write(get(UPGRADE).as_bytes()).await;
    let (mut upstream, _) = accept(&listener).await;
    upstream.write_all(ACCEPTED.as_bytes()).await.expect("a response");
    assert_eq!(third.read_response().await.status, 101, "its permit is free again");
}
