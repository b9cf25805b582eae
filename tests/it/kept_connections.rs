//! Upstream connections that are kept for the next request: which requests share one, and what becomes of a request on
//! one that has died meanwhile.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::rig::front::{Front, SelfSigned};
use crate::rig::raw::{self, Conn};
use crate::rig::scripted::Scripted;
use crate::rig::sidecar::Sidecar;
use crate::stage::{GET, Stage};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Reads a request without a body; false: the connection ends before.
async fn is_asked(stream: &mut TcpStream) -> bool {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return false };
        head.push(byte);
    }
    true
}

/// An upstream that restarts has closed all of them, so after a dead one no other idle one is tried.
#[tokio::test]
async fn a_request_survives_the_end_of_all_idle_connections() {
    let (stage, listener) = Stage::with_raw_good("workers: 1\n").await;
    let ask = async || raw::send(stage.sidecar.proxy(), GET).await;
    let upstream = async {
        let (mut first, _) = listener.accept().await.expect("a connection");
        let (mut second, _) = listener.accept().await.expect("another one, while the first is busy");
        for stream in [&mut first, &mut second] {
            assert!(is_asked(stream).await);
        }
        for stream in [&mut first, &mut second] {
            stream.write_all(OK).await.expect("it reads");
        }
        [first, second]
    };
    let (kept, first, second) = tokio::join!(upstream, ask(), ask());
    assert_eq!((first.status, second.status), (200, 200));
    stage.sidecar.until_metric("keybearer_upstream_connections{state=\"idle\"}", |idle| idle == 2.0).await;

    let dies = async |mut stream: TcpStream| {
        let _ = is_asked(&mut stream).await;
    };
    let answers = async move {
        let (mut new, _) = listener.accept().await.expect("a new connection");
        assert!(is_asked(&mut new).await);
        new.write_all(OK).await.expect("it reads");
        new
    };
    let [first, second] = kept;
    let upstream = tokio::spawn(async move { tokio::join!(dies(first), dies(second), answers) });
    let answer = ask().await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok"), "{}", stage.sidecar.log());
    upstream.abort();
}

/// The name in TLS is a part of what a connection is: a server may serve each name from another tenant.
#[tokio::test]
async fn routes_that_differ_in_server_name_alone_share_no_connection() {
    let own = SelfSigned::for_names("DNS:api.test,DNS:one.test,DNS:two.test");
    let (upstream, tokens) = (Scripted::upstream().await, Scripted::tokens(3600).await);
    let front = Front::start(&own, upstream.address).await;
    let route = |path: &str, name: &str| format!("{{host: api.test, path: {path}, upstream_tls: {{{name}}}}}");
    let config = format!(
        "workers: 1\nhosts: {{api.test: \"{}\"}}\ntrust: [own.pem]\nconnections:\n- {{name: crm, client_id: a, client_secret: b, \
         token_url: \"http://{}/token\", routes: [{}, {}, {}]}}\n",
        front.address,
        tokens.address,
        route("/one", "server_name: one.test"),
        route("/two", "server_name: two.test"),
        route("/own", ""),
    );
    let sidecar = Sidecar::start_with(&config, &[("own.pem", &own.certificate)]).await;
    let mut conn = Conn::open(sidecar.proxy()).await;
    for path in ["/one", "/two", "/own", "/one", "/two", "/own"] {
        conn.write(format!("GET https://api.test{path} HTTP/1.1\r\nHost: api.test\r\n\r\n").as_bytes()).await;
        let answer = conn.answer().await;
        assert_eq!(answer.status, 200, "{path}: {}\n{}", answer.text(), sidecar.log());
    }
    let from: Vec<u16> = upstream.received().iter().map(|request| request.from).collect();
    assert_eq!(from[..3], from[3..], "a connection is used again by the route that opened it");
    assert!(from[0] != from[1] && from[1] != from[2] && from[0] != from[2], "{from:?}");
}
