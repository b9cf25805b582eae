//! Callers that go away, and callers that wait for their turn.

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
use crate::rig::stage::{GET, Stage, TOKEN, s, until};
use crate::rig::wire::Wire;

const ONE_PLACE: &str = "limits: {per_upstream: 1}\ntimeouts: {connect: 20s, response_head: 60s}\n";

/// A stage whose *good* says nothing to `/silent`, and falls silent within its answer to `/stream`.
async fn stage(top: &str) -> Stage {
    Stage::answering(top, |request, _| match request.request_line() {
        line if line.contains("/silent") => Reply::Silence,
        line if line.contains("/stream") => Reply::Bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc".to_vec()),
        line if line.contains("/late") => Reply::ok().late(s(5.0)),
        _ => Reply::ok(),
    })
    .await
}

/// Ends a connection by a reset, as a program does that is killed with bytes unread.
fn reset(stream: TcpStream) {
    stream.set_zero_linger().expect("an open socket");
    drop(stream);
}

/// The place of a request that is gone is free: the next one is served within `within`.
async fn place_is_free(row: &str, stage: &Stage, within: Duration) {
    let started = Instant::now();
    let answer = raw::send(stage.sidecar.proxy(), GET).await;
    assert_eq!(answer.status, 200, "{row}: {}", answer.text());
    assert!(started.elapsed() < within, "{row}: after {:?}", started.elapsed());
}

#[tokio::test]
async fn a_caller_that_goes_away_frees_its_place_though_the_upstream_is_silent() {
    let stage = stage(ONE_PLACE).await;
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
        until("the request is under way", || stage.good.count() > before).await;
        if row.contains("/stream") {
            conn.stream.read_u8().await.expect("the answer has begun");
        }
        match resets {
            true => reset(conn.stream),
            false => drop(conn),
        }
        place_is_free(&format!("{row}, reset: {resets}"), &stage, within).await;
    }
    // Its request is on record, though it got no answer.
    let served = stage.sidecar.metric(
        "keybearer_requests_total{connection=\"good\",profile=\"default\",caller=\"\",origin=\"proxy\",status_class=\"4xx\"}",
    );
    assert_eq!(served.await, 4.0);
}

/// Bytes that a caller has sent and the proxy has not read yet hide the end behind them.
#[tokio::test]
async fn bytes_that_wait_do_not_hide_that_a_caller_is_gone() {
    let (stage, listener) = Stage::with_raw_good(ONE_PLACE).await;
    for (row, body) in [
        ("an upload that the upstream does not take", vec![b'x'; 8_000_000]),
        ("a request behind it", [b"ab".as_slice(), &[GET, GET].concat()].concat()),
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
        // Until nothing moves any more.
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
        second.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await.expect("it reads");
        assert_eq!(next.await.expect("an answer").status, 200, "{row}");
        drop(upstream);
    }
}

/// The FIN of a caller is behind unread data; the caller's place matters only while others wait.
#[tokio::test]
async fn a_caller_that_closes_within_a_stalled_upload_frees_its_place_for_others() {
    let (stage, listener) =
        Stage::with_raw_good("limits: {per_upstream: 1}\ntimeouts: {connect: 20s, idle: 60s}\n").await;
    let mut conn = TcpStream::connect(stage.sidecar.proxy()).await.expect("a connection");
    conn.write_all(b"POST http://good.test/ HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n")
        .await
        .expect("it reads");
    let block = vec![b'x'; 64 * 1024];
    // Until nothing moves any more.
    while timeout(s(1.0), conn.write_all(&block)).await.is_ok() {}
    let (upstream, _) = listener.accept().await.expect("a connection");
    drop(conn);
    let proxy = stage.sidecar.proxy();
    let next = tokio::spawn(async move { raw::send(proxy, GET).await });
    let (mut second, _) = timeout(s(10.0), listener.accept()).await.expect("the place is free").expect("a connection");
    second.read_u8().await.expect("the next request");
    second.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await.expect("it reads");
    assert_eq!(next.await.expect("an answer").status, 200);
    drop(upstream);
}

#[tokio::test]
async fn a_caller_that_leaves_the_queue_frees_its_place_there() {
    let stage = stage("limits: {per_upstream: 1, queued_per_upstream: 1}\ntimeouts: {connect: 20s}\n").await;
    let mut holder = Conn::open(stage.sidecar.proxy()).await;
    holder.write(b"GET http://good.test/late HTTP/1.1\r\nHost: x\r\n\r\n").await;
    until("the request is under way", || stage.good.count() == 1).await;
    for resets in [true, false] {
        let mut gone = Conn::open(stage.sidecar.proxy()).await;
        gone.write(b"POST http://good.test/ HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello").await;
        stage.sidecar.until_metric("keybearer_requests_in_flight", |value| value == 2.0).await;
        assert_eq!(raw::send(stage.sidecar.proxy(), GET).await.code(), "overloaded", "the queue is full");
        match resets {
            true => reset(gone.stream),
            false => drop(gone),
        }
        stage.sidecar.until_metric("keybearer_requests_in_flight", |value| value == 1.0).await;
    }
    assert_eq!(raw::send(stage.sidecar.proxy(), GET).await.status, 200);
    assert_eq!(holder.read_response().await.status, 200);
    assert_eq!(stage.good.count(), 2, "what was given up was never sent");
}

/// As `nc -N` does.
#[tokio::test]
async fn a_caller_that_only_ends_what_it_sends_gets_its_answer() {
    let stage = stage("").await;
    for (row, expected) in [
        ("GET http://good.test/ HTTP/1.1", vec![200]),
        ("GET http://good.test/ HTTP/1.0", vec![200]),
        ("GET http://good.test/late HTTP/1.1", vec![100, 200]),
    ] {
        let said = stage.exchange(format!("{row}\r\nHost: x\r\n\r\n")).await;
        let mut statuses = said.statuses();
        statuses.dedup();
        assert_eq!(statuses, expected, "{row}: {}", said.text());
        assert!(said.text().ends_with("ok"), "{row}: {}", said.text());
    }
    // The last answer begins at once, and pauses.
    let (stage, listener) = Stage::with_raw_good("").await;
    let upstream = async {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        stream.read_u8().await.expect("a request");
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc").await.expect("it reads");
        tokio::time::sleep(s(1.0)).await;
        stream.write_all(b"def").await.expect("it reads");
    };
    let (_, said) = tokio::join!(upstream, stage.exchange(GET));
    assert_eq!((said.statuses(), said.body().as_str()), (vec![200], "abcdef"), "{}", said.text());
}

#[tokio::test]
async fn a_caller_on_a_unix_socket_that_goes_away_frees_its_place() {
    let stage = stage(&format!(
        "listeners: {{proxy: [\"127.0.0.1:0\", {{name: jobs, address: \"unix:jobs.sock\"}}], admin: \"127.0.0.1:0\"}}\n{ONE_PLACE}"
    ))
    .await;
    let mut conn = UnixStream::connect(stage.sidecar.dir.path().join("jobs.sock")).await.expect("a connection");
    conn.write_all(b"GET http://good.test/silent HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("it reads");
    until("the request is under way", || stage.good.count() == 1).await;
    drop(conn);
    place_is_free("unix", &stage, s(1.0)).await;
}

#[tokio::test]
async fn a_stream_that_is_reset_and_a_connection_that_is_lost_free_their_places() {
    let stage = stage(ONE_PLACE).await;
    for row in ["the stream", "the connection"] {
        let before = stage.good.count();
        let wire = Wire::to(stage.sidecar.proxy().port()).await;
        let stream = TcpStream::connect(("127.0.0.1", wire.port)).await.expect("a connection");
        let (mut sender, driver) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("HTTP/2");
        tokio::spawn(driver);
        let request = Request::get(format!("http://{}/api/silent", stage.sidecar.proxy()));
        let asking = tokio::spawn(async move {
            let _ = sender.send_request(request.body(Empty::<Bytes>::new()).expect("a request")).await;
            sender
        });
        until("the request is under way", || stage.good.count() > before).await;
        match row {
            "the stream" => asking.abort(),
            _ => wire.cut(),
        }
        place_is_free(row, &stage, s(1.0)).await;
    }
}

/// HTTP/1.1 in a tunnel in HTTP/2 has no socket of its own.
#[tokio::test]
async fn a_tunnel_inside_http2_that_is_reset_frees_its_places() {
    let stage = stage(ONE_PLACE).await;
    let stream = TcpStream::connect(stage.sidecar.proxy()).await.expect("a connection");
    let (mut sender, driver) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("HTTP/2");
    let driver = tokio::spawn(driver);
    let connect = Request::connect("good.test:80").body(Empty::<Bytes>::new()).expect("a request");
    let tunnel = hyper::upgrade::on(sender.send_request(connect).await.expect("an answer")).await.expect("a tunnel");
    let mut conn = Conn::over(TokioIo::new(tunnel));
    conn.write(b"GET /silent HTTP/1.1\r\nHost: good.test\r\n\r\n").await;
    until("the request is under way", || stage.good.count() == 1).await;
    drop(conn);
    place_is_free("the tunnel", &stage, s(1.0)).await;
    driver.abort();
}

/// *good* as a server that answers when it is told to; the paths in the order in which they came.
struct Held {
    asked: Arc<Mutex<Vec<String>>>,
    answers: Arc<Semaphore>,
    task: JoinHandle<()>,
}

impl Held {
    fn over(listener: TcpListener) -> Held {
        let (asked, answers) = (Arc::<Mutex<Vec<String>>>::default(), Arc::new(Semaphore::new(0)));
        let (log, may) = (asked.clone(), answers.clone());
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let (log, may) = (log.clone(), may.clone());
                connections.spawn(async move {
                    let mut read = vec![0; 4096];
                    while let Ok(count @ 1..) = stream.read(&mut read).await {
                        let head = String::from_utf8_lossy(&read[..count]).into_owned();
                        assert!(head.contains(TOKEN), "{head}");
                        log.lock().unwrap().push(head.split(' ').nth(1).unwrap_or_default().to_owned());
                        may.acquire().await.expect("open").forget();
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
                    }
                });
            }
        });
        Held { asked, answers, task }
    }

    fn count(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// `GET path` from an address of this machine, on its way.
async fn ask_from(source: &str, proxy: SocketAddr, path: &str, lines: &str) -> Conn {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(format!("{source}:0").parse().expect("an address")).expect("it is ours");
    let mut conn = Conn::over(socket.connect(proxy).await.expect("a connection"));
    conn.write(format!("GET http://good.test{path} HTTP/1.1\r\nHost: x\r\n{lines}\r\n").as_bytes()).await;
    conn
}

/// `name` and its secret `s`, in base64.
fn credential(name: &str) -> String {
    use base64::prelude::{BASE64_STANDARD, Engine};
    format!("Proxy-Authorization: Basic {}\r\n", BASE64_STANDARD.encode(format!("{name}:s-{name}")))
}

#[tokio::test]
async fn callers_take_turns_at_an_upstream() {
    let callers = "callers: [{name: a, secret: s-a}, {name: b, secret: s-b}]\n";
    for (row, top) in [("by caller", callers), ("by address", "")] {
        let limits = "limits: {per_upstream: 1, queued_per_upstream: 4}\ntimeouts: {connect: 20s}\n";
        let (stage, listener) = Stage::with_raw_good(&format!("{top}{limits}")).await;
        let held = Held::over(listener);
        let proxy = stage.sidecar.proxy();
        let ask = async |who: &str, path: &str| match row {
            "by caller" => ask_from("127.0.0.1", proxy, path, &credential(who)).await,
            _ => ask_from(if who == "a" { "127.0.0.1" } else { "127.0.0.2" }, proxy, path, "").await,
        };
        let mut conns = vec![ask("a", "/a0").await];
        until("the first is under way", || held.count() == 1).await;
        for (number, (who, path)) in [("a", "/a1"), ("a", "/a2"), ("a", "/a3"), ("a", "/a4")].into_iter().enumerate() {
            conns.push(ask(who, path).await);
            let in_flight = number as f64 + 2.0;
            stage.sidecar.until_metric("keybearer_requests_in_flight", |value| value == in_flight).await;
        }
        let refused = ask("a", "/a5").await.read_response().await;
        assert_eq!(refused.code(), "overloaded", "{row}: the queue is full");
        conns.push(ask("b", "/b1").await);
        let pushed_out = conns[4].read_response().await;
        assert_eq!(pushed_out.code(), "overloaded", "{row}: the last of the caller that fills the queue");
        conns.push(ask("b", "/b2").await);
        let pushed_out = conns[3].read_response().await;
        assert_eq!(pushed_out.code(), "overloaded", "{row}: half of the queue each");
        held.answers.add_permits(8);
        for at in [0, 1, 2, 5, 6] {
            assert_eq!(conns[at].read_response().await.status, 200, "{row}: {at}");
        }
        assert_eq!(*held.asked.lock().unwrap(), ["/a0", "/a1", "/b1", "/a2", "/b2"], "{row}");
    }
}
