//! Pooled upstream connections: which requests share one, and what happens to a request on one that has died.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::next_head;
use crate::rig::config::{Config, Connection};
use crate::rig::front::{Front, SelfSigned};
use crate::rig::raw::{self, Conn};
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::Sidecar;
use crate::rig::stage::{GET, Stage, Transcript, wait_until};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A restarted upstream has closed all of its connections, so after a dead one the proxy tries no other idle one.
#[tokio::test]
async fn a_request_survives_the_close_of_all_idle_connections() {
    let (stage, listener) = Stage::with_raw_good("workers: 1\n").await;
    let get = async || raw::send(stage.sidecar.proxy(), GET).await;
    let upstream = async {
        let (mut first, _) = listener.accept().await.expect("a connection");
        let (mut second, _) = listener.accept().await.expect("another one, while the first is busy");
        for stream in [&mut first, &mut second] {
            assert!(next_head(stream).await.is_some());
        }
        for stream in [&mut first, &mut second] {
            stream.write_all(OK).await.expect("write succeeds");
        }
        [first, second]
    };
    let (kept, first, second) = tokio::join!(upstream, get(), get());
    assert_eq!((first.status, second.status), (200, 200));
    stage.sidecar.wait_for_metric("keybearer_upstream_connections{state=\"idle\"}", |idle| idle == 2.0).await;

    let dies = async |mut stream: TcpStream| {
        let _ = next_head(&mut stream).await.is_some();
    };
    let respond = async move {
        let (mut new, _) = listener.accept().await.expect("a new connection");
        assert!(next_head(&mut new).await.is_some());
        new.write_all(OK).await.expect("write succeeds");
        new
    };
    let [first, second] = kept;
    let upstream = tokio::spawn(async move { tokio::join!(dies(first), dies(second), respond) });
    let response = get().await;
    assert_eq!((response.status, response.text().as_str()), (200, "ok"), "{}", stage.sidecar.log());
    upstream.abort();
}

/// The server name is part of the pool key: a server may select the tenant by SNI.
#[tokio::test]
async fn routes_with_different_server_names_share_no_connection() {
    let own = SelfSigned::for_names("DNS:api.test,DNS:one.test,DNS:two.test");
    let (upstream, tokens) = (Scripted::upstream().await, Scripted::tokens(3600).await);
    let front = Front::start(&own, upstream.address).await;
    let route = |path: &str, name: &str| format!("host: api.test, path: {path}, upstream_tls: {{{name}}}");
    let crm = Connection::at("crm", &tokens)
        .route(route("/one", "server_name: one.test"))
        .route(route("/two", "server_name: two.test"))
        .route(route("/own", ""));
    let config = Config::new().top("workers: 1\ntrust: [own.pem]\n").host("api.test", front.address).connection(crm);
    let sidecar = Sidecar::start_with(config, &[("own.pem", &own.certificate)]).await;
    let mut conn = Conn::open(sidecar.proxy()).await;
    for path in ["/one", "/two", "/own", "/one", "/two", "/own"] {
        conn.write(format!("GET https://api.test{path} HTTP/1.1\r\nHost: api.test\r\n\r\n").as_bytes()).await;
        let response = conn.read_response().await;
        assert_eq!(response.status, 200, "{path}: {}\n{}", response.text(), sidecar.log());
    }
    let from: Vec<u16> = upstream.received().iter().map(|request| request.from).collect();
    assert_eq!(from[..3], from[3..], "a connection is reused by the route that opened it");
    assert!(from[0] != from[1] && from[1] != from[2] && from[0] != from[2], "{from:?}");
}

/// When the upstream closes a reused connection, a GET is retried exactly once, and a POST not at all.
#[tokio::test]
async fn on_a_dead_reused_connection_a_get_is_retried_once_and_a_post_never() {
    for (method, expected) in [("GET", 2), ("POST", 1)] {
        let stage = Stage::with_reply("workers: 1\n", |request, _| match request.request_line() {
            line if line.contains("/first") || line.contains("/after") => Reply::ok(),
            _ => Reply::Close,
        })
        .await;
        let mut conn = Conn::open(stage.sidecar.proxy()).await;
        for _ in 0..2 {
            conn.write(b"GET http://good.test/first HTTP/1.1\r\nHost: x\r\n\r\n").await;
            assert_eq!(conn.read_response().await.status, 200);
        }
        let received = stage.good.received();
        assert_eq!(received[0].from, received[1].from, "the connection is reused");
        let body = if method == "POST" { "Content-Length: 2\r\n\r\nhi" } else { "\r\n" };
        conn.write(format!("{method} http://good.test/dies HTTP/1.1\r\nHost: x\r\n{body}").as_bytes()).await;
        let response = conn.read_response().await;
        let copies: Vec<u16> =
            stage.good.received().iter().filter(|r| r.request_line().contains("/dies")).map(|r| r.from).collect();
        // This upstream closes on every attempt, so even the GET ends in 502, after exactly one retry.
        assert_eq!((response.status, response.code()), (502, "upstream_unreachable"), "HP-32 {method}");
        assert_eq!(copies.len(), expected, "HP-32 {method}");
        assert!(copies.windows(2).all(|pair| pair[0] != pair[1]), "HP-32 {method}: the retry uses a new connection");
        stage.assert_invariants(method, &Transcript(response.body)).await;
    }
}

/// The upstream closes a reused connection without processing the request: the retry succeeds.
#[tokio::test]
async fn a_request_survives_the_close_of_a_reused_connection() {
    for (method, body) in [("GET", "\r\n"), ("PUT", "Content-Length: 2\r\n\r\nhi")] {
        let gone = AtomicBool::new(false);
        let stage = Stage::with_reply("workers: 1\n", move |request, _| {
            let closes = request.request_line().contains("/once") && !gone.swap(true, Ordering::SeqCst);
            if closes { Reply::Close } else { Reply::ok() }
        })
        .await;
        let mut conn = Conn::open(stage.sidecar.proxy()).await;
        conn.write(b"GET http://good.test/first HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert_eq!(conn.read_response().await.status, 200);
        conn.write(format!("{method} http://good.test/once HTTP/1.1\r\nHost: x\r\n{body}").as_bytes()).await;
        assert_eq!(conn.read_response().await.status, 200, "HP-32 {method}");
        let received = stage.good.received();
        let from: Vec<u16> = received.iter().map(|request| request.from).collect();
        assert!(from.len() == 3 && from[0] == from[1] && from[1] != from[2], "HP-32 {method}: {from:?}");
        assert_eq!(received[1].body, received[2].body, "HP-32 {method}");
    }
    // The upstream closes while no request is in flight.
    let (stage, listener) = Stage::with_raw_good("workers: 1\n").await;
    let mut conn = Conn::open(stage.sidecar.proxy()).await;
    for _ in 0..5 {
        let upstream = async {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            next_head(&mut stream).await.expect("a request");
            stream.write_all(OK).await.expect("write succeeds");
        };
        let caller = async {
            conn.write(b"GET http://good.test/ HTTP/1.1\r\nHost: x\r\n\r\n").await;
            conn.read_response().await
        };
        let ((), response) = tokio::join!(upstream, caller);
        assert_eq!((response.status, response.text().as_str()), (200, "ok"), "HP-32 idle");
    }
}

/// An upstream that has started to respond may have processed the request, so it is not retried.
#[tokio::test]
async fn a_request_with_a_partial_response_is_not_retried() {
    for method in ["GET", "DELETE"] {
        let stage = Stage::with_reply("workers: 1\n", |request, _| match request.request_line().contains("/part") {
            true => Reply::BytesThenClose(b"HTTP/1.1 200 OK\r\nX-A: b".to_vec()),
            false => Reply::ok(),
        })
        .await;
        let mut conn = Conn::open(stage.sidecar.proxy()).await;
        conn.write(b"GET http://good.test/first HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert_eq!(conn.read_response().await.status, 200);
        conn.write(format!("{method} http://good.test/part HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await;
        let response = conn.read_response().await;
        assert_eq!((response.status, response.code()), (502, "upstream_unreachable"), "HP-32 {method}");
        let received = stage.good.received();
        assert_eq!((received.len(), received[0].from), (2, received[1].from), "HP-32 {method}");
    }
}

/// TL-19: an upstream that rejects the token before it has read the body gets the whole body again, or none.
#[tokio::test]
async fn a_replay_sends_the_whole_body_or_none() {
    const TOTAL: usize = 1 << 20;
    let tokens = Scripted::tokens(3600).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("a bound listener");
    let crm = Connection::at("crm", &tokens).plain("api.test");
    let sidecar = Sidecar::start(Config::new().host("api.test", address).connection(crm)).await;
    let upstream = async {
        let (mut first, _) = listener.accept().await.expect("a connection");
        assert!(next_head(&mut first).await.expect("a request").contains("token-1"));
        first.write_all(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n").await.expect("write succeeds");
        let drain = async { drop(tokio::io::copy(&mut first, &mut tokio::io::sink()).await) };
        let second = async {
            let (mut second, _) = listener.accept().await.expect("a second connection");
            assert!(next_head(&mut second).await.expect("a request").contains("token-2"));
            let mut body = vec![0; TOTAL];
            match second.read_exact(&mut body).await {
                Ok(_) => {
                    assert!(
                        body.iter().enumerate().all(|(at, byte)| *byte == (at / 1000) as u8),
                        "TL-19: another body"
                    );
                    second.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.expect("write succeeds");
                }
                Err(_) => drop(second),
            }
        };
        tokio::join!(drain, second)
    };
    let caller = async {
        let mut conn = Conn::open(sidecar.proxy()).await;
        let body: Vec<u8> = (0..TOTAL).map(|at| (at / 1000) as u8).collect();
        conn.write(format!("PUT http://api.test/ HTTP/1.1\r\nHost: x\r\nContent-Length: {TOTAL}\r\n\r\n").as_bytes())
            .await;
        conn.write(&body[..1000]).await;
        wait_until("a second token", || tokens.count() == 2).await;
        conn.write(&body[1000..]).await;
        conn.read_response().await
    };
    tokio::pin!(caller);
    // Without a replay, the upstream waits in vain.
    let response = tokio::select! { response = &mut caller => response, _ = upstream => caller.await };
    assert!([200, 401].contains(&response.status), "TL-19: {response:?}");
}
