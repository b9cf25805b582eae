//! Every timeout at a small value: a late peer gets an error response or is disconnected, and others are unaffected.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::rig::config::{Config, Connection};
use crate::rig::raw::{self, Conn};
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::Sidecar;
use crate::rig::stage::{GET, Stage, s, stage_with_silent_path};

/// Asserts that at least `least` has passed (less the timer granularity), and not several times as long.
#[track_caller]
fn assert_took(started: Instant, least: Duration) {
    let took = started.elapsed();
    assert!(took + Duration::from_millis(20) >= least, "after {took:?}, not {least:?}");
    assert!(took < least + Duration::from_secs(5), "after {took:?}, not {least:?}");
}

#[tokio::test]
async fn an_unfinished_head_is_408_and_a_silent_connection_is_closed() {
    let stage = Stage::start("timeouts: {client_head: 500ms}\n").await;
    let started = Instant::now();
    let mut conn = Conn::open(stage.sidecar.proxy()).await;
    conn.write(b"GET http://good.test/ HTTP/1.1\r\nHost: ").await;
    let response = conn.read_response().await;
    assert_took(started, s(0.5));
    assert_eq!((response.status, response.code()), (408, "request_timeout"));
    assert_eq!(response.json()["action"], "fix_request");
    assert!(conn.is_closed().await);

    let started = Instant::now();
    let mut conn = Conn::open(stage.sidecar.proxy()).await;
    let response = conn.read_response().await;
    assert_took(started, s(0.5));
    assert_eq!(response.status, 0, "a silent connection gets no response");

    // RS-01: trickled bytes do not extend the deadline, and other callers are served.
    let started = Instant::now();
    let mut slow = Conn::open(stage.sidecar.proxy()).await;
    for _ in 0..20 {
        slow.write(b"G").await;
        tokio::time::sleep(s(0.05)).await;
        assert_eq!(raw::get_through(stage.sidecar.proxy(), "http://good.test/", "").await.status, 200);
    }
    assert_eq!(slow.read_response().await.status, 408);
    assert_took(started, s(0.5));
}

#[tokio::test]
async fn a_missing_token_is_503_after_token_wait() {
    let tokens = Scripted::start(|_, _| Reply::Silence).await;
    let upstream = Scripted::upstream().await;
    let config = Config::new().top("readiness: {wait_for_tokens: 0s}\ntimeouts: {token_wait: 700ms}\n");
    let crm = Connection::at("crm", &tokens).plain("api.test");
    let sidecar = Sidecar::start(config.host("api.test", upstream.address).connection(crm)).await;
    let started = Instant::now();
    let response = raw::get_through(sidecar.proxy(), "http://api.test/", "").await;
    assert_took(started, s(0.7));
    assert_eq!((response.status, response.code(), upstream.count()), (503, "token_unavailable", 0));
    assert!(response.header("retry-after").is_some());
    assert_eq!((&response.json()["connection"], &response.json()["action"]), (&"crm".into(), &"retry_later".into()));
}

#[tokio::test]
async fn an_upstream_that_does_not_finish_its_handshake_is_502() {
    let (stage, listener) = Stage::with_raw_good("timeouts: {connect: 600ms}\n").await;
    let accepted = async { listener.accept().await.expect("a connection") };
    let started = Instant::now();
    let request = raw::get_through(stage.sidecar.proxy(), "http://secure.test/", "");
    let (_held, response) = tokio::join!(accepted, request);
    assert_took(started, s(0.6));
    assert_eq!((response.status, response.code()), (502, "upstream_unreachable"));
    assert_eq!(response.header("proxy-status"), Some("keybearer; error=connection_timeout"));
}

#[tokio::test]
async fn an_upstream_that_does_not_respond_is_504() {
    let stage = stage_with_silent_path("timeouts: {response_head: 600ms}\n").await;
    for request in [
        "GET http://good.test/silent HTTP/1.1\r\nHost: x\r\n\r\n",
        "POST http://good.test/silent HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi",
    ] {
        let started = Instant::now();
        let response = raw::send(stage.sidecar.proxy(), request.as_bytes()).await;
        assert_took(started, s(0.6));
        assert_eq!((response.status, response.code()), (504, "upstream_timeout"), "{request}");
    }
    assert_eq!(stage.good.count(), 2, "each was sent once");
}

#[tokio::test]
async fn a_stalled_response_is_cut_off() {
    for framing in ["Content-Length: 10", "Transfer-Encoding: chunked"] {
        let stage = Stage::with_reply("timeouts: {idle: 600ms, response_head: 9s}\n", move |_, _| {
            Reply::Bytes(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n3\r\nabc\r\n").into_bytes())
        })
        .await;
        let started = Instant::now();
        let response = raw::send(stage.sidecar.proxy(), GET).await;
        assert_took(started, s(0.6));
        assert!(response.status == 200 && !response.complete, "{framing}: {response:?}");
    }
}

#[tokio::test]
async fn a_stalled_request_body_gets_408() {
    let stage = Stage::start("timeouts: {idle: 600ms, response_head: 9s}\n").await;
    for framing in ["Content-Length: 10\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"] {
        let started = Instant::now();
        let request = format!("POST http://good.test/ HTTP/1.1\r\nHost: x\r\n{framing}");
        let response = raw::send(stage.sidecar.proxy(), request.as_bytes()).await;
        assert_took(started, s(0.6));
        assert_eq!((response.status, response.code()), (408, "request_timeout"), "{framing}");
    }
}

/// Like gRPC client streaming, where the server responds at the end.
#[tokio::test]
async fn a_stalled_response_is_not_cut_off_while_the_request_is_being_sent() {
    let (stage, listener) = Stage::with_raw_good("timeouts: {idle: 1s}\n").await;
    let upstream = async {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        stream.read_u8().await.expect("a request");
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel").await.expect("write succeeds");
        let mut text = String::new();
        while !text.ends_with("0\r\n\r\n") {
            let mut bytes = [0; 4096];
            let count = stream.read(&mut bytes).await.expect("bytes");
            assert!(count > 0, "cut after {text}");
            text.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
        // From here on, only the response makes progress.
        tokio::time::sleep(s(0.7)).await;
        stream.write_all(b"lo").await.expect("write succeeds");
        stream
    };
    let caller = async {
        let mut conn = Conn::open(stage.sidecar.proxy()).await;
        conn.write(b"POST http://good.test/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        for _ in 0..8 {
            conn.write(b"1\r\nx\r\n").await;
            tokio::time::sleep(s(0.4)).await;
        }
        conn.write(b"0\r\n\r\n").await;
        conn.read_response().await
    };
    let (_held, response) = tokio::join!(upstream, caller);
    assert_eq!((response.status, response.text().as_str(), response.complete), (200, "hello", true));
}

#[tokio::test]
async fn a_stalled_response_is_cut_off_once_its_request_stalls_too() {
    let (stage, listener) = Stage::with_raw_good("timeouts: {idle: 600ms}\n").await;
    let mut conn = Conn::open(stage.sidecar.proxy()).await;
    conn.write(b"POST http://good.test/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n").await;
    let (mut stream, _) = listener.accept().await.expect("a connection");
    stream.read_u8().await.expect("a request");
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel").await.expect("write succeeds");
    let started = Instant::now();
    let response = conn.read_response().await;
    assert_took(started, s(0.5));
    assert!(response.status == 200 && !response.complete, "{response:?}");
}

/// RS-08, RS-10: an upstream that never reads blocks the upload; the proxy does not buffer it.
#[tokio::test]
async fn an_upstream_that_stops_reading_is_504() {
    /// Room for the kernel's buffers on both connections, and little more.
    const TAKEN_MAX: usize = 16 << 20;
    let (stage, listener) = Stage::with_raw_good("timeouts: {idle: 800ms, response_head: 9s}\n").await;
    let accepted = async { listener.accept().await.expect("a connection") };
    let caller = async {
        let mut stream = TcpStream::connect(stage.sidecar.proxy()).await.expect("a connection");
        stream
            .write_all(b"POST http://good.test/ HTTP/1.1\r\nHost: x\r\nContent-Length: 104857600\r\n\r\n")
            .await
            .expect("write succeeds");
        let (mut reader, mut writer) = stream.split();
        let write = async {
            let block = vec![b'x'; 64 << 10];
            let mut written = 0;
            while writer.write_all(&block).await.is_ok() && written < TAKEN_MAX {
                written += block.len();
            }
            written
        };
        let read = async {
            let mut status = vec![0; 12];
            reader.read_exact(&mut status).await.map(|_| String::from_utf8_lossy(&status).into_owned())
        };
        tokio::select! {
            status = read => status.expect("a response"),
            written = write => panic!("{written} bytes were accepted"),
        }
    };
    let (_held, status) = tokio::join!(accepted, caller);
    assert_eq!(status, "HTTP/1.1 504");
}

#[tokio::test]
async fn a_caller_that_stops_reading_is_disconnected() {
    let (stage, listener) = Stage::with_raw_good("timeouts: {idle: 700ms}\n").await;
    let upstream = async {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        stream.read_u8().await.expect("a request");
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n").await.expect("write succeeds");
        let block = vec![b'x'; 1 << 20];
        let mut written = 0;
        while stream.write_all(&block).await.is_ok() {
            written += 1;
        }
        written
    };
    let mut caller = Conn::open(stage.sidecar.proxy()).await;
    caller.write(GET).await;
    let started = Instant::now();
    let written: usize = tokio::time::timeout(s(15.0), upstream).await.expect("the upstream connection is closed");
    assert_took(started, s(0.7));
    assert!(written < 200, "{written} MiB left the upstream");
    stage.sidecar.wait_for_metric("keybearer_requests_in_flight", |value| value == 0.0).await;
}

/// Sending the last bytes of a response may take longer than the keep-alive timeout.
#[tokio::test]
async fn a_slow_reader_gets_the_whole_response_despite_a_short_keep_alive() {
    const TOTAL: usize = 12 << 20;
    let (stage, listener) = Stage::with_raw_good("timeouts: {keep_alive: 200ms, idle: 10s}\n").await;
    let upstream = async {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        stream.read_u8().await.expect("a request");
        stream
            .write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {TOTAL}\r\n\r\n").as_bytes())
            .await
            .expect("write succeeds");
        stream.write_all(&vec![b'x'; TOTAL]).await.expect("write succeeds");
        stream
    };
    let caller = async {
        let mut conn = Conn::open(stage.sidecar.proxy()).await;
        conn.write(GET).await;
        let (mut total, mut block) = (0, vec![0; 1 << 20]);
        while total < TOTAL {
            let count = conn.stream.read(&mut block).await.expect("bytes");
            assert!(count > 0, "cut after {total} bytes");
            total += count;
            // Slow towards the end, where the proxy has read everything and waits only for the caller.
            if total > TOTAL - (7 << 20) {
                tokio::time::sleep(s(0.06)).await;
            }
        }
    };
    tokio::join!(upstream, caller);
}

#[tokio::test]
async fn idle_connections_close_on_both_sides() {
    let (stage, listener) = Stage::with_raw_good("timeouts: {keep_alive: 500ms}\nworkers: 1\n").await;
    let upstream = async {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut request = vec![0; 4096];
        assert!(stream.read(&mut request).await.expect("a request") > 0);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.expect("write succeeds");
        let started = Instant::now();
        assert_eq!(stream.read(&mut request).await.expect("read succeeds"), 0);
        assert_took(started, s(0.5));
    };
    let caller = async {
        let mut conn = Conn::open(stage.sidecar.proxy()).await;
        conn.write(GET).await;
        assert_eq!(conn.read_response().await.status, 200);
        let started = Instant::now();
        assert!(conn.is_closed().await);
        assert_took(started, s(0.5));
    };
    tokio::join!(upstream, caller);
}
