//! Every deadline of `timeouts` at small values: who is late hears so or is dropped, and the others notice nothing.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::rig::config::{Config, Connection};
use crate::rig::raw::{self, Conn};
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::Sidecar;
use crate::rig::stage::{GET, Stage, patient, s};

/// Did it take at least `least` (less the grain of timers), and not several times as long?
#[track_caller]
fn took(started: Instant, least: Duration) {
    let took = started.elapsed();
    assert!(took + Duration::from_millis(20) >= least, "after {took:?}, not {least:?}");
    assert!(took < least + Duration::from_secs(5), "after {took:?}, not {least:?}");
}

#[tokio::test]
async fn a_head_that_does_not_end_is_408_and_silence_is_closed_silently() {
    let stage = Stage::start("timeouts: {client_head: 500ms}\n").await;
    let started = Instant::now();
    let mut conn = Conn::open(stage.sidecar.proxy()).await;
    conn.write(b"GET http://good.test/ HTTP/1.1\r\nHost: ").await;
    let answer = conn.read_response().await;
    took(started, s(0.5));
    assert_eq!((answer.status, answer.code()), (408, "request_timeout"));
    assert_eq!(answer.json()["action"], "fix_request");
    assert!(conn.is_closed().await);

    let started = Instant::now();
    let mut conn = Conn::open(stage.sidecar.proxy()).await;
    let answer = conn.read_response().await;
    took(started, s(0.5));
    assert_eq!(answer.status, 0, "an empty connection gets no answer");

    // RS-01: a byte now and then does not help, and others are served meanwhile.
    let started = Instant::now();
    let mut slow = Conn::open(stage.sidecar.proxy()).await;
    for _ in 0..20 {
        slow.write(b"G").await;
        tokio::time::sleep(s(0.05)).await;
        assert_eq!(raw::get_through(stage.sidecar.proxy(), "http://good.test/", "").await.status, 200);
    }
    assert_eq!(slow.read_response().await.status, 408);
    took(started, s(0.5));
}

#[tokio::test]
async fn a_token_that_does_not_come_is_503_after_the_wait() {
    let tokens = Scripted::start(|_, _| Reply::Silence).await;
    let upstream = Scripted::upstream().await;
    let config = Config::new().top("readiness: {wait_for_tokens: 0s}\ntimeouts: {token_wait: 700ms}\n");
    let crm = Connection::at("crm", &tokens).plain("api.test");
    let sidecar = Sidecar::start(config.host("api.test", upstream.address).connection(crm)).await;
    let started = Instant::now();
    let answer = raw::get_through(sidecar.proxy(), "http://api.test/", "").await;
    took(started, s(0.7));
    assert_eq!((answer.status, answer.code(), upstream.count()), (503, "token_unavailable", 0));
    assert!(answer.header("retry-after").is_some());
    assert_eq!((&answer.json()["connection"], &answer.json()["action"]), (&"crm".into(), &"retry_later".into()));
}

#[tokio::test]
async fn an_upstream_that_does_not_finish_its_handshake_is_502() {
    let (stage, listener) = Stage::with_raw_good("timeouts: {connect: 600ms}\n").await;
    let accepted = async { listener.accept().await.expect("a connection") };
    let started = Instant::now();
    let asked = raw::get_through(stage.sidecar.proxy(), "http://secure.test/", "");
    let (_held, answer) = tokio::join!(accepted, asked);
    took(started, s(0.6));
    assert_eq!((answer.status, answer.code()), (502, "upstream_unreachable"));
    assert_eq!(answer.header("proxy-status"), Some("keybearer; error=connection_timeout"));
}

#[tokio::test]
async fn an_upstream_that_does_not_answer_is_504() {
    let stage = patient("timeouts: {response_head: 600ms}\n").await;
    for request in [
        "GET http://good.test/silent HTTP/1.1\r\nHost: x\r\n\r\n",
        "POST http://good.test/silent HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi",
    ] {
        let started = Instant::now();
        let answer = raw::send(stage.sidecar.proxy(), request.as_bytes()).await;
        took(started, s(0.6));
        assert_eq!((answer.status, answer.code()), (504, "upstream_timeout"), "{request}");
    }
    assert_eq!(stage.good.count(), 2, "each was sent once");
}

#[tokio::test]
async fn silence_within_an_answer_cuts_it() {
    for framing in ["Content-Length: 10", "Transfer-Encoding: chunked"] {
        let stage = Stage::answering("timeouts: {idle: 600ms, response_head: 9s}\n", move |_, _| {
            Reply::Bytes(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n3\r\nabc\r\n").into_bytes())
        })
        .await;
        let started = Instant::now();
        let answer = raw::send(stage.sidecar.proxy(), GET).await;
        took(started, s(0.6));
        assert!(answer.status == 200 && !answer.complete, "{framing}: {answer:?}");
    }
}

#[tokio::test]
async fn silence_within_a_request_body_is_408() {
    let stage = Stage::start("timeouts: {idle: 600ms, response_head: 9s}\n").await;
    for framing in ["Content-Length: 10\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"] {
        let started = Instant::now();
        let request = format!("POST http://good.test/ HTTP/1.1\r\nHost: x\r\n{framing}");
        let answer = raw::send(stage.sidecar.proxy(), request.as_bytes()).await;
        took(started, s(0.6));
        assert_eq!((answer.status, answer.code()), (408, "request_timeout"), "{framing}");
    }
}

/// As a gRPC client does that streams to a server which answers at the end.
#[tokio::test]
async fn a_quiet_answer_is_not_cut_while_the_request_still_arrives() {
    let (stage, listener) = Stage::with_raw_good("timeouts: {idle: 1s}\n").await;
    let upstream = async {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        stream.read_u8().await.expect("a request");
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel").await.expect("it reads");
        let mut text = String::new();
        while !text.ends_with("0\r\n\r\n") {
            let mut bytes = [0; 4096];
            let count = stream.read(&mut bytes).await.expect("bytes");
            assert!(count > 0, "cut after {text}");
            text.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
        // Nothing moves from here on but this.
        tokio::time::sleep(s(0.7)).await;
        stream.write_all(b"lo").await.expect("it reads");
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
    let (_held, answer) = tokio::join!(upstream, caller);
    assert_eq!((answer.status, answer.text().as_str(), answer.complete), (200, "hello", true));
}

#[tokio::test]
async fn an_answer_is_cut_when_its_request_moves_no_more_either() {
    let (stage, listener) = Stage::with_raw_good("timeouts: {idle: 600ms}\n").await;
    let mut conn = Conn::open(stage.sidecar.proxy()).await;
    conn.write(b"POST http://good.test/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n").await;
    let (mut stream, _) = listener.accept().await.expect("a connection");
    stream.read_u8().await.expect("a request");
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel").await.expect("it reads");
    let started = Instant::now();
    let answer = conn.read_response().await;
    took(started, s(0.5));
    assert!(answer.status == 200 && !answer.complete, "{answer:?}");
}

/// RS-08, RS-10: an upstream that never reads blocks the upload; it is not gathered up here.
#[tokio::test]
async fn an_upstream_that_stops_reading_is_504() {
    /// What the kernel holds on both connections, and little beyond it.
    const TAKEN_MAX: usize = 16 << 20;
    let (stage, listener) = Stage::with_raw_good("timeouts: {idle: 800ms, response_head: 9s}\n").await;
    let accepted = async { listener.accept().await.expect("a connection") };
    let caller = async {
        let mut stream = TcpStream::connect(stage.sidecar.proxy()).await.expect("a connection");
        stream
            .write_all(b"POST http://good.test/ HTTP/1.1\r\nHost: x\r\nContent-Length: 104857600\r\n\r\n")
            .await
            .expect("it reads");
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
            let mut said = vec![0; 12];
            reader.read_exact(&mut said).await.map(|_| String::from_utf8_lossy(&said).into_owned())
        };
        tokio::select! { said = read => said.expect("an answer"), written = write => panic!("{written} bytes were taken") }
    };
    let (_held, said) = tokio::join!(accepted, caller);
    assert_eq!(said, "HTTP/1.1 504");
}

#[tokio::test]
async fn a_caller_that_stops_reading_is_dropped() {
    let (stage, listener) = Stage::with_raw_good("timeouts: {idle: 700ms}\n").await;
    let upstream = async {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        stream.read_u8().await.expect("a request");
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n").await.expect("it reads");
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
    let written: usize = tokio::time::timeout(s(15.0), upstream).await.expect("the upstream is let go");
    took(started, s(0.7));
    assert!(written < 200, "{written} MiB left the upstream");
    stage.sidecar.until_metric("keybearer_requests_in_flight", |value| value == 0.0).await;
}

/// The last bytes of an answer may take longer than an idle connection may last.
#[tokio::test]
async fn a_slow_reader_gets_the_whole_answer_although_keep_alive_is_short() {
    const TOTAL: usize = 12 << 20;
    let (stage, listener) = Stage::with_raw_good("timeouts: {keep_alive: 200ms, idle: 10s}\n").await;
    let upstream = async {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        stream.read_u8().await.expect("a request");
        stream
            .write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {TOTAL}\r\n\r\n").as_bytes())
            .await
            .expect("it reads");
        stream.write_all(&vec![b'x'; TOTAL]).await.expect("it reads");
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
            // Slow towards the end, where the proxy has read everything and waits for the caller alone.
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
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.expect("it reads");
        let started = Instant::now();
        assert_eq!(stream.read(&mut request).await.expect("an end"), 0);
        took(started, s(0.5));
    };
    let caller = async {
        let mut conn = Conn::open(stage.sidecar.proxy()).await;
        conn.write(GET).await;
        assert_eq!(conn.read_response().await.status, 200);
        let started = Instant::now();
        assert!(conn.is_closed().await);
        took(started, s(0.5));
    };
    tokio::join!(upstream, caller);
}
