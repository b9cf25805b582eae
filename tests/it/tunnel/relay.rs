//! Relayed tunnels: bytes are copied unchanged, to permitted destinations only.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

use crate::rig::config::{Config, Connection, local};
use crate::rig::interception::interception;
use crate::rig::peers::{AuthorizationServer, ClientKind, Peers, run_client_with};
use crate::rig::raw::Conn;
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::Sidecar;
use crate::rig::tunnel_client::read_connect_head;

const TIMEOUT: Duration = Duration::from_secs(10);
/// The start of a TLS ClientHello, as far as the proxy reads it.
const HELLO: &[u8] = b"\x16\x03\x01\x00\x05hello";

/// A raw TCP server. It is `named.test:9443`, which has a route, and `free.test`, which has none.
struct Stage {
    sidecar: Sidecar,
    server: TcpListener,
    _tokens: Scripted,
}

impl Stage {
    async fn start(top: &str) -> Stage {
        let server = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let tokens = Scripted::start(|_, _| Reply::token("kb-secret", 3600)).await;
        let at = server.local_addr().expect("a bound listener");
        let crm = Connection::at("crm", &tokens).route("host: \"named.test:9443\"");
        let config = Config::new().hosts(["named.test", "free.test"], at).top(top).connection(crm);
        Stage { sidecar: Sidecar::start(config).await, server, _tokens: tokens }
    }

    /// Opens a tunnel to `authority`. Returns both ends.
    async fn tunnel(&self, authority: &str) -> (TcpStream, TcpStream) {
        let mut conn = Conn::open(self.sidecar.proxy()).await;
        let connect = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
        let (_, accepted) = tokio::join!(conn.write(connect.as_bytes()), timeout(TIMEOUT, self.server.accept()));
        assert!(read_connect_head(&mut conn).await.starts_with("HTTP/1.1 200"), "{authority}");
        (conn.stream, accepted.expect("no timeout").expect("a connection").0)
    }
}

/// Reads to the end of the stream, which must not be a reset.
async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    timeout(TIMEOUT, stream.read_to_end(&mut bytes))
        .await
        .expect("closes before the timeout")
        .expect("an end, not a reset");
    bytes
}

#[tokio::test]
async fn bytes_arrive_unchanged_and_each_direction_closes_independently() {
    let stage = Stage::start("").await;
    let noise: Vec<u8> = (0..1_000_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    for (row, authority, first) in [
        ("CI-11 TLS to a host that no route names", "free.test:443", HELLO),
        ("CI-11 other bytes there", "free.test:443", b"\0\xffwhatever"),
        ("TLS to a host with a route", "named.test:9443", HELLO),
    ] {
        let (mut caller, mut server) = stage.tunnel(authority).await;
        let up = async {
            caller.write_all(first).await.expect("write succeeds");
            caller.write_all(&noise).await.expect("write succeeds");
            caller.shutdown().await.expect("a half-close");
        };
        let (_, arrived) = tokio::join!(up, rest(&mut server));
        assert!(arrived == [first, &noise].concat(), "{row}: {} bytes", arrived.len());
        let down = async {
            server.write_all(&noise).await.expect("writable after the other half has closed");
            server.shutdown().await.expect("shutdown succeeds");
        };
        let (_, arrived) = tokio::join!(down, rest(&mut caller));
        assert!(arrived == noise, "{row}: {} bytes", arrived.len());
    }
}

#[tokio::test]
async fn a_reset_is_propagated_as_a_reset() {
    let stage = Stage::start("").await;
    for row in ["by the server", "by the server, after bytes", "by the caller"] {
        let (mut caller, mut server) = stage.tunnel("free.test:443").await;
        caller.write_all(HELLO).await.expect("write succeeds");
        server.read_exact(&mut [0; HELLO.len()]).await.expect("the bytes arrive");
        if row.ends_with("bytes") {
            server.write_all(b"part").await.expect("write succeeds");
            caller.read_exact(&mut [0; 4]).await.expect("the bytes arrive");
        }
        let (from, mut to) = if row.starts_with("by the caller") { (caller, server) } else { (server, caller) };
        from.set_zero_linger().expect("a reset");
        drop(from);
        let end = timeout(TIMEOUT, to.read_to_end(&mut Vec::new())).await.expect("closes before the timeout");
        assert_eq!(end.map_err(|error| error.kind()), Err(std::io::ErrorKind::ConnectionReset), "{row}");
    }
}

#[tokio::test]
async fn a_server_may_speak_first_where_no_route_matches() {
    let stage = Stage::start("").await;
    let (mut caller, mut server) = stage.tunnel("free.test:80").await;
    server.write_all(b"220 mail.test ESMTP\r\n").await.expect("write succeeds");
    let mut greeting = [0; 21];
    timeout(TIMEOUT, caller.read_exact(&mut greeting)).await.expect("no timeout").expect("a greeting");
    assert_eq!(&greeting, b"220 mail.test ESMTP\r\n");
    caller.write_all(b"GET me\r\n").await.expect("write succeeds");
    caller.shutdown().await.expect("a half-close");
    assert_eq!(rest(&mut server).await, b"GET me\r\n", "bytes are no longer inspected");
}

#[tokio::test]
async fn a_refused_tunnel_is_explained_and_dials_nothing() {
    let check = async |stage: &Stage, authority: &str, status: u16, code: &str, expected: &str| {
        let mut conn = Conn::open(stage.sidecar.proxy()).await;
        conn.write(format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n").as_bytes()).await;
        let response = conn.read_response().await;
        assert_eq!((response.status, response.code()), (status, code), "{authority}");
        assert!(response.text().contains(expected), "{authority}: {}", response.text());
        assert!(timeout(Duration::ZERO, stage.server.accept()).await.is_err(), "{authority} was dialed");
    };
    let stage = Stage::start("egress: {connect_ports: [8443]}\n").await;
    check(&stage, "free.test:443", 403, "egress_denied", "connect_ports").await;
    check(&stage, "named.test:443", 403, "egress_denied", "connect_ports").await;
    check(&stage, "127.0.0.2:8443", 403, "egress_denied", "private").await;
    check(&stage, "nowhere.invalid:8443", 502, "upstream_unreachable", "resolved").await;
    stage.tunnel("free.test:8443").await;
    stage.tunnel("named.test:9443").await;
    let stage = Stage::start("egress: {unmatched: deny}\n").await;
    check(&stage, "free.test:443", 403, "egress_denied", "egress.unmatched").await;
    stage.tunnel("named.test:9443").await;
}

#[tokio::test]
async fn the_dialed_connection_is_closed_when_http_inside_is_served() {
    let stage = Stage::start("").await;
    let (mut caller, mut dialed) = stage.tunnel("free.test:80").await;
    caller.write_all(b"GET / HTTP/1.1\r\nHost: free.test\r\n\r\n").await.expect("write succeeds");
    let (mut used, _) = timeout(TIMEOUT, stage.server.accept()).await.expect("no timeout").expect("a connection");
    assert!(rest(&mut dialed).await.is_empty());
    used.read_u8().await.expect("the request");
    used.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.expect("write succeeds");
    caller.read_u8().await.expect("the tunnel is still open");
}

#[tokio::test]
async fn a_wrong_credential_opens_no_tunnel() {
    let stage = Stage::start("callers: [{name: alice, secret: of-alice}, {name: near, cidr: [127.0.0.0/8]}]\n").await;
    for authority in ["free.test:443", "named.test:9443"] {
        for credential in
            ["Bearer wrong", "Basic YWxpY2U6d3Jvbmc=", "Basic bmVhcjpvZi1hbGljZQ==", "Digest of-alice", ""]
        {
            let mut conn = Conn::open(stage.sidecar.proxy()).await;
            let lines = format!("Host: {authority}\r\nProxy-Authorization: {credential}\r\n");
            conn.write(format!("CONNECT {authority} HTTP/1.1\r\n{lines}\r\n").as_bytes()).await;
            let response = conn.read_response().await;
            assert_eq!((response.status, response.code()), (407, "caller_unknown"), "{authority} {credential}");
        }
    }
    assert!(timeout(Duration::ZERO, stage.server.accept()).await.is_err(), "a connection was dialed");
}

/// Like a request in absolute form: the proxy cannot see inside a relay to refuse the requests there.
#[tokio::test]
async fn a_relay_is_refused_to_callers_without_a_route() {
    let server = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let tokens = Scripted::start(|_, _| Reply::token("kb-secret", 3600)).await;
    let at = server.local_addr().expect("a bound listener");
    let connection = |name: &str, more: &str, routes: &str| {
        format!(
            "- {{name: {name}, client_id: a, client_secret: b, token_url: \"http://{}/token\", {more}, routes: [{routes}]}}\n",
            tokens.address
        )
    };
    let names =
        ["mine", "theirs", "unassigned", "off", "half", "pinned", "plain"].map(|name| format!("{name}.test: \"{at}\""));
    let config = format!(
        "hosts: {{{}}}\negress: {{unmatched: deny}}\n{}callers: [{{name: alice, secret: a}}, {{name: bob, secret: b}}]\n\
         connections:\n{}{}{}{}{}{}",
        names.join(", "),
        interception(),
        connection(
            "mine",
            "accessible_from: [alice]",
            "{host: mine.test, intercept: false}, {host: half.test, path: /v1, intercept: false}, {host: pinned.test}"
        ),
        connection(
            "theirs",
            "accessible_from: [bob]",
            "{host: theirs.test, intercept: false}, {host: \"plain.test:50051\", upstream_tls: false, intercept: false}"
        ),
        connection("unassigned", "accessible_from: []", "{host: unassigned.test, intercept: false}"),
        connection("off", "active: false", "{host: off.test, intercept: false}"),
        connection("half-off", "active: false", "{host: half.test, intercept: false}"),
        connection("also-theirs", "accessible_from: [bob]", "{host: off.test, path: /x, intercept: false}"),
    );
    let sidecar = Sidecar::start(&config).await;
    let send = async |target: &str, line: &str, caller: &str| {
        let mut conn = Conn::open(sidecar.proxy()).await;
        let request = format!("{line} HTTP/1.1\r\nHost: {target}\r\nProxy-Authorization: Bearer {caller}\r\n\r\n");
        conn.write(request.as_bytes()).await;
        conn
    };
    for (name, caller, code) in [
        ("theirs", "a", "caller_not_allowed"),
        ("mine", "b", "caller_not_allowed"),
        ("unassigned", "a", "caller_not_allowed"),
        ("off", "a", "connection_inactive"),
        ("half", "b", "connection_inactive"),
    ] {
        let (host, authority) = (format!("{name}.test"), format!("{name}.test:443"));
        let tunnel = send(&authority, &format!("CONNECT {authority}"), caller).await.read_response().await;
        let request = send(&host, &format!("GET https://{host}/"), caller).await.read_response().await;
        assert_eq!((tunnel.status, tunnel.code()), (403, code), "{name} {caller}");
        assert_eq!((request.status, request.code()), (403, code), "{name} {caller}: in absolute form");
        assert_eq!(tunnel.json()["connection"], request.json()["connection"], "{name} {caller}");
    }
    // Where cleartext HTTP is possible (gRPC), the requests inside are refused instead of the tunnel.
    let inside = async |bytes: &[u8]| {
        let mut tunnel = send("plain.test:50051", "CONNECT plain.test:50051", "a").await;
        assert!(read_connect_head(&mut tunnel).await.starts_with("HTTP/1.1 200"));
        tunnel.write(bytes).await;
        tunnel.read_response().await
    };
    let response = inside(b"GET / HTTP/1.1\r\nHost: plain.test:50051\r\n\r\n").await;
    assert_eq!((response.status, response.code()), (403, "caller_not_allowed"));
    assert_eq!(inside(HELLO).await.status, 0, "TLS is closed");
    assert!(timeout(Duration::ZERO, server.accept()).await.is_err(), "a connection was dialed");
    for (name, caller) in [("mine", "a"), ("theirs", "b"), ("half", "a"), ("off", "b")] {
        let authority = format!("{name}.test:443");
        let opening =
            async { read_connect_head(&mut send(&authority, &format!("CONNECT {authority}"), caller).await).await };
        assert!(timeout(TIMEOUT, opening).await.expect("no timeout").starts_with("HTTP/1.1 200"), "{name} {caller}");
    }
    let mut intercepted = send("pinned.test:443", "CONNECT pinned.test:443", "b").await;
    assert!(
        read_connect_head(&mut intercepted).await.starts_with("HTTP/1.1 200"),
        "an intercepted request is refused inside"
    );
}

#[tokio::test]
async fn an_idle_tunnel_is_closed_on_both_sides() {
    let stage = Stage::start("timeouts: {idle: 500ms, client_head: 200ms}\n").await;
    let (mut caller, mut server) = stage.tunnel("free.test:443").await;
    let started = Instant::now();
    caller.write_all(HELLO).await.expect("write succeeds");
    let mut hello = [0; HELLO.len()];
    server.read_exact(&mut hello).await.expect("the bytes arrive");
    assert!(rest(&mut server).await.is_empty() && rest(&mut caller).await.is_empty());
    assert!(started.elapsed() >= Duration::from_millis(500), "{:?}", started.elapsed());
}

#[tokio::test]
async fn open_tunnels_are_bounded_and_their_permits_are_released() {
    let stage = Stage::start("limits: {tunnels: 1}\n").await;
    let (caller, mut server) = stage.tunnel("free.test:443").await;
    let mut second = Conn::open(stage.sidecar.proxy()).await;
    second.write(b"CONNECT free.test:443 HTTP/1.1\r\nHost: free.test:443\r\n\r\n").await;
    let response = second.read_response().await;
    assert_eq!((response.status, response.code()), (503, "overloaded"));
    drop(caller);
    rest(&mut server).await;
    drop(server);
    let opened_again = async {
        loop {
            second.write(b"CONNECT free.test:443 HTTP/1.1\r\nHost: free.test:443\r\n\r\n").await;
            if read_connect_head(&mut second).await.starts_with("HTTP/1.1 200") {
                break;
            }
            second = Conn::open(stage.sidecar.proxy()).await;
        }
    };
    timeout(TIMEOUT, opened_again).await.expect("the permit is released");
}

#[tokio::test]
async fn every_client_negotiates_tls_with_the_server_itself() {
    let server = AuthorizationServer::op(json!({})).await;
    let ca = Peers::certs().ca.display().to_string();
    let config = Config::new().host("op.test", local(server.port())).trust_peers();
    let machine =
        Connection::new("crm", "https://op.test/token").client("client_id: machine, client_secret: machine-secret");
    let named = Sidecar::start(config.clone().connection(machine.clone().route("host: op.test"))).await;
    let free = Sidecar::start(config.connection(machine.route("host: other.test"))).await;
    for (row, sidecar) in [("a route names the host", &named), ("no route names it", &free)] {
        let clients = ClientKind::ALL.map(|kind| {
            let (proxy, environment) = (sidecar.proxy_url(), [(kind.ca_variable(), ca.as_str())]);
            async move {
                let url = "https://op.test/.well-known/openid-configuration";
                (kind, run_client_with(kind, url, &proxy, 1, 100, &environment).await)
            }
        });
        for (kind, report) in join_all(clients).await {
            assert_eq!(
                (report.failed, &report.first_error),
                (0, &None),
                "{row}, {kind:?}: {report:?}\n{}",
                sidecar.log()
            );
            assert!(report.ok > 0, "{row}, {kind:?}: {report:?}");
        }
    }
}
