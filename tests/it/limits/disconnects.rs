//! Callers that disconnect, and callers that wait for a permit.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use crate::rig::raw::{self, Conn};
use crate::rig::scripted::Reply;
use crate::rig::stage::{GET, Stage, TOKEN, s, wait_until};
use crate::rig::wire::Wire;

const ONE_PERMIT: &str = "limits: {per_upstream: 1}\ntimeouts: {connect: 20s, response_head: 60s}\n";

/// A stage whose *good* never responds to `/silent`, and stalls within its response to `/stream`.
async fn stage(top: &str) -> Stage {
    Stage::with_reply(top, |request, _| match request.request_line() {
        line if line.contains("/silent") => Reply::Silence,
        line if line.contains("/stream") => Reply::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc".to_vec()),
        line if line.contains("/late") => Reply::ok().delayed(s(5.0)),
        _ => Reply::ok(),
    })
    .await
}

/// Closes a connection with a reset, like a process that is killed with unread bytes.
fn reset(stream: TcpStream) {
    stream.set_zero_linger().expect("an open socket");
    drop(stream);
}

/// Asserts that the permit of an abandoned request is free: the next request is served within `within`.
async fn assert_permit_is_free(row: &str, stage: &Stage, within: Duration) {
    let started = Instant::now();
    let response = raw::send(stage.sidecar.proxy(), GET).await;
    assert_eq!(response.status, 200, "{row}: {}", response.text());
    assert!(started.elapsed() < within, "{row}: after {:?}", started.elapsed());
}

#[tokio::test]
async fn a_disconnected_caller_releases_its_permit_while_the_upstream_is_silent() {
    let stage = stage(ONE_PERMIT).await;
    for (row, resets, within) in [
        ("GET /silent HTTP/1.1", true, s(1.0)),
        ("GET /silent HTTP/1.1", false, s(1.0)),
        ("GET /silent HTTP/1.0", true, s(1.0)),
        ("GET /silent HTTP/1.0", false, s(5.0)),
        ("GET /stream HTTP/1.1", true, s(1.0)),
        ("GET /stream HTTP/1.1", false, s(5.0)),
    ] {
        let before = stage.good.count();
        let mut conn = Conn::open(stage.sidecar.proxy()).await;
        let request = row.replace(" /", " http://good.test/");
        conn.write(format!("{request}\r\nHost: x\r\n\r\n").as_bytes()).await;
        wait_until("the request is in flight", || stage.good.count() > before).await;
        if row.contains("/stream") {
            conn.stream.read_u8().await.expect("the response has begun");
        }
        match resets {
            true => reset(conn.stream),
            false => drop(conn),
        }
        assert_permit_is_free(&format!("{row}, reset: {resets}"), &stage, within).await;
    }
    // The requests are counted even though they got no response.
    let served = stage.sidecar.metric(
        "keybearer_requests_total{connection=\"good\",profile=\"default\",caller=\"\",origin=\"proxy\",status_class=\"4xx\"}",
    );
    assert_eq!(served.await, 4.0);
}

/// Bytes that the proxy has not read hide a FIN behind them, but not a reset.
#[tokio::test]
async fn unread_bytes_do_not_hide_a_disconnect() {
    let (stage, listener) = Stage::with_raw_good(ONE_PERMIT).await;
    for (row, body) in [
        ("an upload that the upstream does not read", vec![b'x'; 8_000_000]),
        ("a pipelined request", [b"ab".as_slice(), &[GET, GET].concat()].concat()),
    ] {
        let length = if body.len() > 1000 { body.len() } else { 2 };
        let head = format!("POST http://good.test/ HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
        let conn = TcpStream::connect(stage.sidecar.proxy()).await.expect("a connection");
        let (mut read, mut write) = conn.into_split();
        let upload = tokio::spawn(async move {
            let _ = write.write_all(&[head.as_bytes(), &body].concat()).await;
            std::future::pending::<()>().await;
        });
        let (upstream, _) = listener.accept().await.expect("a connection");
        upstream.readable().await.expect("a request");
        // Wait until the upload stalls.
        assert!(timeout(s(0.5), read.read_u8()).await.is_err());
        upload.abort();
        let _ = upload.await;
        read.as_ref().set_zero_linger().expect("an open socket");
        drop(read);
        let proxy = stage.sidecar.proxy();
        let next = tokio::spawn(async move { raw::send(proxy, GET).await });
        let (mut second, _) =
            timeout(s(1.0), listener.accept()).await.unwrap_or_else(|_| panic!("{row}")).expect("one");
        second.read_u8().await.expect("the next request");
        second
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .await
            .expect("write succeeds");
        assert_eq!(next.await.expect("a response").status, 200, "{row}");
        drop(upstream);
    }
}

/// Unread data hides the caller's FIN, so the proxy checks for it only while other requests wait for a permit.
#[tokio::test]
async fn closing_during_a_stalled_upload_releases_the_permit() {
    let (stage, listener) =
        Stage::with_raw_good("limits: {per_upstream: 1}\ntimeouts: {connect: 20s, idle: 60s}\n").await;
    let mut conn = TcpStream::connect(stage.sidecar.proxy()).await.expect("a connection");
    conn.write_all(b"POST http://good.test/ HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n")
        .await
        .expect("write succeeds");
    let block = vec![b'x'; 64 * 1024];
    // Wait until the upload stalls.
    while timeout(s(1.0), conn.write_all(&block)).await.is_ok() {}
    let (upstream, _) = listener.accept().await.expect("a connection");
    drop(conn);
    let proxy = stage.sidecar.proxy();
    let next = tokio::spawn(async move { raw::send(proxy, GET).await });
    let (mut second, _) = timeout(s(10.0), listener.accept()).await.expect("the permit is free").expect("a connection");
    second.read_u8().await.expect("the next request");
    second
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        .await
        .expect("write succeeds");
    assert_eq!(next.await.expect("a response").status, 200);
    drop(upstream);
}

#[tokio::test]
async fn a_caller_that_disconnects_while_queued_releases_its_queue_slot() {
    let stage = stage("limits: {per_upstream: 1, queued_per_upstream: 1}\ntimeouts: {connect: 20s}\n").await;
    let mut first = Conn::open(stage.sidecar.proxy()).await;
    first.write(b"GET http://good.test/late HTTP/1.1\r\nHost: x\r\n\r\n").await;
    wait_until("the request is in flight", || stage.good.count() == 1).await;
    for resets in [true, false] {
        let mut gone = Conn::open(stage.sidecar.proxy()).await;
        gone.write(b"POST http://good.test/ HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello").await;
        stage.sidecar.wait_for_metric("keybearer_requests_in_flight", |value| value == 2.0).await;
        assert_eq!(raw::send(stage.sidecar.proxy(), GET).await.code(), "overloaded", "the queue is full");
        match resets {
            true => reset(gone.stream),
            false => drop(gone),
        }
        stage.sidecar.wait_for_metric("keybearer_requests_in_flight", |value| value == 1.0).await;
    }
    assert_eq!(raw::send(stage.sidecar.proxy(), GET).await.status, 200);
    assert_eq!(first.read_response().await.status, 200);
    assert_eq!(stage.good.count(), 2, "abandoned requests were never sent");
}

/// Like `nc -N`.
#[tokio::test]
async fn a_caller_that_half_closes_gets_its_response() {
    let stage = stage("").await;
    for (row, expected) in [
        ("GET http://good.test/ HTTP/1.1", vec![200]),
        ("GET http://good.test/ HTTP/1.0", vec![200]),
        ("GET http://good.test/late HTTP/1.1", vec![100, 200]),
    ] {
        let transcript = stage.exchange(format!("{row}\r\nHost: x\r\n\r\n")).await;
        let mut statuses = transcript.statuses();
        statuses.dedup();
        assert_eq!(statuses, expected, "{row}: {}", transcript.text());
        assert!(transcript.text().ends_with("ok"), "{row}: {}", transcript.text());
    }
    // A response that begins at once, and pauses.
    let (stage, listener) = Stage::with_raw_good("").await;
    let upstream = async {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        stream.read_u8().await.expect("a request");
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc").await.expect("write succeeds");
        tokio::time::sleep(s(1.0)).await;
        stream.write_all(b"def").await.expect("write succeeds");
    };
    let (_, transcript) = tokio::join!(upstream, stage.exchange(GET));
    assert_eq!((transcript.statuses(), transcript.body().as_str()), (vec![200], "abcdef"), "{}", transcript.text());
}

#[tokio::test]
async fn a_disconnected_caller_on_a_unix_socket_releases_its_permit() {
    let stage = stage(&format!(
        "listeners: {{proxy: [\"127.0.0.1:0\", {{name: jobs, address: \"unix:jobs.sock\"}}], admin: \"127.0.0.1:0\"}}\n{ONE_PERMIT}"
    ))
    .await;
    let mut conn = UnixStream::connect(stage.sidecar.dir.path().join("jobs.sock")).await.expect("a connection");
    conn.write_all(b"GET http://good.test/silent HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("write succeeds");
    wait_until("the request is in flight", || stage.good.count() == 1).await;
    drop(conn);
    assert_permit_is_free("unix", &stage, s(1.0)).await;
}

#[tokio::test]
async fn a_reset_stream_and_a_lost_connection_release_their_permits() {
    let stage = stage(ONE_PERMIT).await;
    for row in ["the stream", "the connection"] {
        let before = stage.good.count();
        let wire = Wire::to(stage.sidecar.proxy().port()).await;
        let stream = TcpStream::connect(("127.0.0.1", wire.port)).await.expect("a connection");
        let (mut sender, driver) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("HTTP/2");
        tokio::spawn(driver);
        let request = Request::get(format!("http://{}/api/silent", stage.sidecar.proxy()));
        let request_task = tokio::spawn(async move {
            let _ = sender.send_request(request.body(Empty::<Bytes>::new()).expect("a request")).await;
            sender
        });
        wait_until("the request is in flight", || stage.good.count() > before).await;
        match row {
            "the stream" => request_task.abort(),
            _ => wire.cut(),
        }
        assert_permit_is_free(row, &stage, s(1.0)).await;
    }
}

/// HTTP/1.1 in a tunnel inside HTTP/2 has no socket of its own.
#[tokio::test]
async fn a_reset_tunnel_inside_http2_releases_its_permits() {
    let stage = stage(ONE_PERMIT).await;
    let stream = TcpStream::connect(stage.sidecar.proxy()).await.expect("a connection");
    let (mut sender, driver) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("HTTP/2");
    let driver = tokio::spawn(driver);
    let connect = Request::connect("good.test:80").body(Empty::<Bytes>::new()).expect("a request");
    let tunnel = hyper::upgrade::on(sender.send_request(connect).await.expect("a response")).await.expect("a tunnel");
    let mut conn = Conn::on(TokioIo::new(tunnel));
    conn.write(b"GET /silent HTTP/1.1\r\nHost: good.test\r\n\r\n").await;
    wait_until("the request is in flight", || stage.good.count() == 1).await;
    drop(conn);
    assert_permit_is_free("the tunnel", &stage, s(1.0)).await;
    driver.abort();
}

/// *good* as a server that sends one response per permit of `responses`. `paths` are in order of arrival.
struct GatedServer {
    paths: Arc<Mutex<Vec<String>>>,
    responses: Arc<Semaphore>,
    task: JoinHandle<()>,
}

impl GatedServer {
    fn start(listener: TcpListener) -> GatedServer {
        let (paths, responses) = (Arc::<Mutex<Vec<String>>>::default(), Arc::new(Semaphore::new(0)));
        let (log, permits) = (paths.clone(), responses.clone());
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let (log, permits) = (log.clone(), permits.clone());
                connections.spawn(async move {
                    let mut read = vec![0; 4096];
                    while let Ok(count @ 1..) = stream.read(&mut read).await {
                        let head = String::from_utf8_lossy(&read[..count]).into_owned();
                        assert!(head.contains(TOKEN), "{head}");
                        log.lock().unwrap().push(head.split(' ').nth(1).unwrap_or_default().to_owned());
                        permits.acquire().await.expect("open").forget();
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
                    }
                });
            }
        });
        GatedServer { paths, responses, task }
    }

    fn count(&self) -> usize {
        self.paths.lock().unwrap().len()
    }
}

impl Drop for GatedServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Sends `GET path` from a local address.
async fn send_from(source: &str, proxy: SocketAddr, path: &str, lines: &str) -> Conn {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket
        .bind(format!("{source}:0").parse().expect("a socket address"))
        .expect("a loopback address that can be bound");
    let mut conn = Conn::on(socket.connect(proxy).await.expect("a connection"));
    conn.write(format!("GET http://good.test{path} HTTP/1.1\r\nHost: x\r\n{lines}\r\n").as_bytes()).await;
    conn
}

/// Basic credentials of `name`, whose secret is `s-NAME`.
fn credential(name: &str) -> String {
    use base64::prelude::{BASE64_STANDARD, Engine};
    format!("Proxy-Authorization: Basic {}\r\n", BASE64_STANDARD.encode(format!("{name}:s-{name}")))
}

#[tokio::test]
async fn callers_are_served_round_robin_at_an_upstream() {
    let callers = "callers: [{name: a, secret: s-a}, {name: b, secret: s-b}]\n";
    for (row, top) in [("by caller", callers), ("by address", "")] {
        let limits = "limits: {per_upstream: 1, queued_per_upstream: 4}\ntimeouts: {connect: 20s}\n";
        let (stage, listener) = Stage::with_raw_good(&format!("{top}{limits}")).await;
        let server = GatedServer::start(listener);
        let proxy = stage.sidecar.proxy();
        let send = async |caller: &str, path: &str| match row {
            "by caller" => send_from("127.0.0.1", proxy, path, &credential(caller)).await,
            _ => send_from(if caller == "a" { "127.0.0.1" } else { "127.0.0.2" }, proxy, path, "").await,
        };
        let mut conns = vec![send("a", "/a0").await];
        wait_until("the first is in flight", || server.count() == 1).await;
        for (number, (caller, path)) in [("a", "/a1"), ("a", "/a2"), ("a", "/a3"), ("a", "/a4")].into_iter().enumerate()
        {
            conns.push(send(caller, path).await);
            let in_flight = number as f64 + 2.0;
            stage.sidecar.wait_for_metric("keybearer_requests_in_flight", |value| value == in_flight).await;
        }
        let refused = send("a", "/a5").await.read_response().await;
        assert_eq!(refused.code(), "overloaded", "{row}: the queue is full");
        conns.push(send("b", "/b1").await);
        let displaced = conns[4].read_response().await;
        assert_eq!(displaced.code(), "overloaded", "{row}: the latest request of the caller that fills the queue");
        conns.push(send("b", "/b2").await);
        let displaced = conns[3].read_response().await;
        assert_eq!(displaced.code(), "overloaded", "{row}: half of the queue each");
        server.responses.add_permits(8);
        for at in [0, 1, 2, 5, 6] {
            assert_eq!(conns[at].read_response().await.status, 200, "{row}: {at}");
        }
        assert_eq!(*server.paths.lock().unwrap(), ["/a0", "/a1", "/b1", "/a2", "/b2"], "{row}");
    }
}
