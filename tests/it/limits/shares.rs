//! Fair sharing: a caller that takes all it can and releases nothing leaves capacity to others.
//!
//! Not here: queue order (`disconnects`), the file descriptor budget (`descriptors`).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, StatusCode};
use http_body_util::Empty;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use super::descriptors::{DOWNSTREAM_MAX, Everywhere, ONE_CALLER_MAX, OPEN_FILES, UPSTREAM_MAX};
use crate::rig::raw::{Conn, RawResponse};
use crate::rig::scripted::Scripted;
use crate::rig::sidecar::Sidecar;
use crate::rig::stage::{GET, s, stage_with_silent_path, wait_until};

/// Callers are distinguished by their addresses.
const GREEDY: &str = "127.0.0.1";
const OTHER: &str = "127.0.0.2";

/// Connects to the proxy from one of these addresses.
async fn open(caller: &str, proxy: SocketAddr) -> Conn {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket
        .bind(format!("{caller}:0").parse().expect("a socket address"))
        .expect("a loopback address that can be bound");
    Conn::on(socket.connect(proxy).await.expect("a connection"))
}

/// Sends a request from `caller` on a new connection.
async fn get(caller: &str, proxy: SocketAddr, url: &str) -> RawResponse {
    let mut conn = open(caller, proxy).await;
    conn.write(format!("GET {url} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await;
    conn.read_response().await
}

#[tokio::test]
async fn one_caller_cannot_exhaust_an_upstream() {
    const PER_UPSTREAM: usize = 32;
    let stage = stage_with_silent_path(&format!(
        "limits: {{per_upstream: {PER_UPSTREAM}}}\ntimeouts: {{response_head: 40s}}\n"
    ))
    .await;
    let proxy = stage.sidecar.proxy();
    let mut held = Vec::new();
    for _ in 0..2 * PER_UPSTREAM {
        let mut conn = open(GREEDY, proxy).await;
        conn.write(b"GET http://good.test/silent HTTP/1.1\r\nHost: x\r\n\r\n").await;
        held.push(conn);
    }
    wait_until("its share is used up", || stage.good.count() == PER_UPSTREAM - 2).await;
    for _ in 0..5 {
        let response = get(OTHER, proxy, "http://good.test/").await;
        assert_eq!(response.status, 200, "{}", response.text());
    }
    assert_eq!(stage.good.received().iter().filter(|r| r.request_line().contains("/silent")).count(), PER_UPSTREAM - 2);
}

#[tokio::test]
async fn one_caller_cannot_exhaust_the_tunnels() {
    let silent = Everywhere::silent().await;
    let egress = format!("egress: {{allow_private: [127.0.0.0/8], connect_ports: [{}]}}\n", silent.port);
    let sidecar = Sidecar::start_with_open_files(&egress, OPEN_FILES).await;
    let connect = async |caller: &str, number: usize| {
        let mut conn = open(caller, sidecar.proxy()).await;
        let authority = silent.origin(number);
        conn.write(format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n").as_bytes()).await;
        let mut status = [0; 12];
        conn.stream.read_exact(&mut status).await.expect("a response");
        (status == *b"HTTP/1.1 200").then_some(conn)
    };
    let mut held = Vec::new();
    while let Some(conn) = connect(GREEDY, held.len()).await {
        held.push(conn);
    }
    assert!((UPSTREAM_MAX / 2 - 10..UPSTREAM_MAX / 2).contains(&held.len()), "{} tunnels", held.len());
    let mut others = Vec::new();
    for number in 0..4 {
        others.push(connect(OTHER, number).await.unwrap_or_else(|| panic!("tunnel {number} of another caller")));
    }
    assert!(connect(GREEDY, 0).await.is_none());
}

/// HTTP/2, so that few connections of a caller have many requests in flight.
#[tokio::test(flavor = "multi_thread")]
async fn a_caller_of_many_silent_origins_cannot_exhaust_the_connections() {
    const REQUESTS: usize = 300;
    let (silent, other) = (Everywhere::silent().await, Scripted::upstream().await);
    let config = format!(
        "hosts: {{other.test: \"{}\"}}\negress: {{allow_private: [127.0.0.0/8], connect_ports: [80, {}]}}\n\
         timeouts: {{connect: 2s, response_head: 40s}}\n",
        other.address, silent.port
    );
    let sidecar = Sidecar::start_with_open_files(&config, OPEN_FILES).await;
    // Leaves a pooled connection, which every caller may use.
    assert_eq!(get(OTHER, sidecar.proxy(), "http://other.test/").await.status, 200);
    let mut greedy = JoinSet::new();
    let refused = Arc::<AtomicUsize>::default();
    for part in 0..REQUESTS / 100 {
        let stream = open(GREEDY, sidecar.proxy()).await.stream;
        let (sender, driver) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("HTTP/2");
        greedy.spawn(async move {
            let _ = driver.await;
        });
        for number in 0..100 {
            let (mut sender, refused) = (sender.clone(), refused.clone());
            let request = Request::get(format!("http://{}/", silent.origin(100 * part + number)));
            let request = request.body(Empty::<Bytes>::new()).expect("a request");
            greedy.spawn(async move {
                let response = sender.send_request(request).await.expect("a response");
                assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
                refused.fetch_add(1, Ordering::SeqCst);
            });
        }
    }
    wait_until("its share is used up", || silent.accepted() >= UPSTREAM_MAX / 2).await;
    let others = async {
        let mut count = 0;
        while refused.load(Ordering::SeqCst) < REQUESTS - ONE_CALLER_MAX {
            let response = get(OTHER, sidecar.proxy(), "http://other.test/").await;
            assert_eq!(response.status, 200, "request {count}: {}", response.text());
            count += 1;
        }
        count
    };
    let count = tokio::time::timeout(s(20.0), others).await.expect("requests beyond its share are refused");
    assert!(count > 5, "only {count} requests of another caller in the meantime");
    assert_eq!(silent.accepted(), ONE_CALLER_MAX);
    for _ in 0..5 {
        assert_eq!(get(OTHER, sidecar.proxy(), "http://other.test/").await.status, 200);
    }
}

#[tokio::test]
async fn one_address_cannot_exhaust_the_connections() {
    let upstream = Scripted::upstream().await;
    let config = format!("hosts: {{good.test: \"{}\"}}\ntimeouts: {{client_head: 40s}}\n", upstream.address);
    for row in ["sends nothing", "is kept alive", "sends part of a head"] {
        let sidecar = Sidecar::start_with_open_files(&config, OPEN_FILES).await;
        let mut held = Vec::new();
        for number in 0..DOWNSTREAM_MAX + 50 {
            let mut conn = open(GREEDY, sidecar.proxy()).await;
            match row {
                "is kept alive" => {
                    conn.write(GET).await;
                    assert_eq!(conn.read_response().await.status, 200, "{row}: {number}");
                }
                "sends part of a head" => conn.write(b"GET http").await,
                _ => {}
            }
            held.push(conn);
        }
        for number in 0..5 {
            let response = get(OTHER, sidecar.proxy(), "http://good.test/").await;
            assert_eq!(response.status, 200, "{row}: another address, {number}: {}", response.text());
        }
        // An idle connection is evicted for a new one of its own address; the most recent ones are kept.
        if row != "sends part of a head" {
            assert_eq!(get(GREEDY, sidecar.proxy(), "http://good.test/").await.status, 200, "{row}");
        }
        if row == "is kept alive" {
            let youngest = held.last_mut().expect("many");
            youngest.write(GET).await;
            assert_eq!(youngest.read_response().await.status, 200, "{row}");
        }
    }
}

/// A request whose pooled connection is dead keeps its permit for the retry; such requests may hold all permits.
#[tokio::test(flavor = "multi_thread")]
async fn requests_on_dead_connections_do_not_wait_for_each_other() {
    const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let config = format!("hosts: {{other.test: \"{}\"}}\n", listener.local_addr().expect("a bound listener"));
    let upstream = tokio::spawn(async move {
        let together = Arc::new(Barrier::new(ONE_CALLER_MAX));
        let mut conns = JoinSet::new();
        for number in 0.. {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let together = together.clone();
            conns.spawn(async move {
                let mut head = vec![0; 4096];
                let dies = number < ONE_CALLER_MAX;
                while stream.read(&mut head).await? > 0 {
                    if dies {
                        together.wait().await;
                    }
                    stream.write_all(OK).await?;
                    if dies {
                        // Closes on the second request, once all connections are in use.
                        let _ = stream.read(&mut head).await?;
                        together.wait().await;
                        break;
                    }
                }
                std::io::Result::Ok(())
            });
        }
    });
    let sidecar = Sidecar::start_with_open_files(&config, OPEN_FILES).await;
    let send = async |conn: &mut Conn| {
        conn.write(b"GET http://other.test/ HTTP/1.1\r\nHost: x\r\n\r\n").await;
        conn.read_response().await.status
    };
    let mut callers = Vec::new();
    for _ in 0..ONE_CALLER_MAX {
        callers.push(open(GREEDY, sidecar.proxy()).await);
    }
    for round in ["new connections", "dead connections"] {
        let statuses = join_all(callers.iter_mut().map(send)).await;
        assert_eq!(statuses, [200; ONE_CALLER_MAX], "{round}");
    }
    upstream.abort();
}
