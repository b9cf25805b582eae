//! Every limit at a small value: what exceeds it gets an error response, and other callers are unaffected.

mod deadlines;
mod disconnects;
mod descriptors;
mod shares;

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::rig::frames;
use crate::rig::raw::{self, Conn};
use crate::rig::stage::{GET, Stage, exchange, s, stage_with_silent_path, wait_until};

#[tokio::test]
async fn a_connection_over_the_limit_gets_503() {
    let stage = stage_with_silent_path("limits: {downstream_connections: 2}\ntimeouts: {response_head: 40s}\n").await;
    let mut held = Vec::new();
    // Busy, because idle connections would be evicted.
    for count in 1..=2 {
        let mut conn = Conn::open(stage.sidecar.proxy()).await;
        conn.write(b"GET http://good.test/silent HTTP/1.1\r\nHost: x\r\n\r\n").await;
        held.push(conn);
        wait_until("a held request", || stage.good.count() == count).await;
    }
    for row in ["sends nothing", "sends a request", "sends a lot of data"] {
        let mut conn = Conn::open(stage.sidecar.proxy()).await;
        match row {
            "sends a request" => conn.write(GET).await,
            "sends a lot of data" => conn.write(&[GET, &vec![b'x'; 100_000]].concat()).await,
            _ => {}
        }
        let response = conn.read_response().await;
        assert_eq!((response.status, response.code()), (503, "overloaded"), "{row}");
        assert_eq!(response.header("retry-after"), Some("1"), "{row}");
    }
    let last = held.pop().expect("two");
    last.stream.set_zero_linger().expect("an open socket");
    drop(last);
    let free = async { while raw::send(stage.sidecar.proxy(), GET).await.status != 200 {} };
    tokio::time::timeout(s(5.0), free).await.expect("the permit is free again");
}

/// Once the log queue (8192 lines) and the pipe are full, lines are dropped and counted.
#[tokio::test]
async fn an_unread_stderr_blocks_no_request() {
    const CONNECTIONS: usize = 8;
    let stage = Stage::start("log: {requests: all}\n").await;
    let dropped = "keybearer_log_lines_dropped_total";
    assert_eq!(stage.sidecar.metric(dropped).await, 0.0);
    stage.sidecar.read_log(false);
    let send_many = async || {
        let mut conn = Conn::open(stage.sidecar.proxy()).await;
        for _ in 0..10_000 / CONNECTIONS {
            conn.write(GET).await;
            assert_eq!(conn.read_response().await.status, 200);
        }
    };
    futures_util::future::join_all((0..CONNECTIONS).map(|_| send_many())).await;
    stage.sidecar.wait_for_metric(dropped, |count| count > 0.0).await;
    stage.sidecar.read_log(true);
    // Logging recovers: the line of a new request arrives.
    let last = async {
        while !stage.sidecar.log().contains("/the-last-one") {
            raw::get_through(stage.sidecar.proxy(), "http://good.test/the-last-one", "").await;
        }
    };
    tokio::time::timeout(s(15.0), last).await.expect("lines are written again");
}

#[tokio::test]
async fn a_saturated_upstream_delays_no_other() {
    let stage =
        stage_with_silent_path("limits: {per_upstream: 2, queued_per_upstream: 1}\ntimeouts: {response_head: 20s}\n")
            .await;
    let silent = b"GET http://good.test/silent HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut held = Vec::new();
    for count in 1..=2 {
        let mut conn = Conn::open(stage.sidecar.proxy()).await;
        conn.write(silent).await;
        held.push(conn);
        wait_until("a held request", || stage.good.count() == count).await;
    }
    let mut queued = Conn::open(stage.sidecar.proxy()).await;
    queued.write(GET).await;
    stage.sidecar.wait_for_metric("keybearer_requests_in_flight", |value| value == 3.0).await;
    let response = raw::send(stage.sidecar.proxy(), GET).await;
    assert_eq!((response.status, response.code()), (503, "overloaded"));
    assert!(response.header("retry-after").is_some());
    assert_eq!(raw::get_through(stage.sidecar.proxy(), "http://evil.test/", "").await.status, 200, "RS-11");
    assert_eq!(stage.good.count(), 2, "the queued request is not sent");
}

#[tokio::test]
async fn a_queued_request_without_a_permit_in_time_gets_503() {
    let top = "limits: {per_upstream: 1, queued_per_upstream: 8}\ntimeouts: {connect: 1s, response_head: 30s}\n";
    let stage = stage_with_silent_path(top).await;
    let mut held = Conn::open(stage.sidecar.proxy()).await;
    held.write(b"GET http://good.test/silent HTTP/1.1\r\nHost: x\r\n\r\n").await;
    wait_until("a held request", || stage.good.count() == 1).await;
    let started = Instant::now();
    let responses = futures_util::future::join_all((0..3).map(|_| raw::send(stage.sidecar.proxy(), GET))).await;
    for response in responses {
        assert_eq!((response.status, response.code()), (503, "overloaded"), "{}", response.text());
        assert!(response.header("retry-after").is_some());
    }
    assert!(started.elapsed() >= s(1.0), "they were not queued: {:?}", started.elapsed());
    assert_eq!(stage.good.count(), 1, "none of them was sent");
    stage.sidecar.wait_for_metric("keybearer_requests_in_flight", |value| value == 1.0).await;
    // Their queue slots are free again, and so is the upstream once the first request has ended.
    drop(held);
    stage.sidecar.wait_for_metric("keybearer_requests_in_flight", |value| value == 0.0).await;
    assert_eq!(raw::send(stage.sidecar.proxy(), GET).await.status, 200);
}

#[tokio::test]
async fn the_queue_drains_as_permits_are_released() {
    let (stage, listener) =
        Stage::with_raw_good("limits: {per_upstream: 1, queued_per_upstream: 8}\ntimeouts: {connect: 10s}\n").await;
    let upstream = async {
        let mut held = Vec::new();
        for _ in 0..4 {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            assert!(tokio::time::timeout(s(0.1), listener.accept()).await.is_err(), "one at a time");
            stream.read_u8().await.expect("a request");
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
                .await
                .expect("write succeeds");
            held.push(stream);
        }
    };
    let send = || raw::send(stage.sidecar.proxy(), GET);
    let (_, a, b, c, d) = tokio::join!(upstream, send(), send(), send(), send());
    assert_eq!([a.status, b.status, c.status, d.status], [200; 4]);
}

#[tokio::test]
async fn unfinished_heads_share_a_memory_budget() {
    let stage = Stage::start("limits: {head: 256KiB}\n").await;
    let field = format!("X: {}\r\n", "a".repeat(4000));
    let unfinished = format!("GET http://good.test/ HTTP/1.1\r\nHost: x\r\n{}", field.repeat(60));
    let before = stage.sidecar.resident_kib();
    let mut held = Vec::new();
    for _ in 0..600 {
        let mut conn = Conn::open(stage.sidecar.proxy()).await;
        conn.write(unfinished.as_bytes()).await;
        held.push(conn);
    }
    let overloaded = "keybearer_errors_total{connection=\"\",code=\"overloaded\"}";
    stage.sidecar.wait_for_metric(overloaded, |count| count >= 300.0).await;
    assert_eq!(held.last_mut().expect("a connection").read_response().await.code(), "overloaded");
    let grown_mib = stage.sidecar.resident_kib().saturating_sub(before) / 1024;
    assert!(grown_mib < 110, "600 unfinished heads of 240 KB take {grown_mib} MiB");
    assert_eq!(
        raw::send(stage.sidecar.proxy(), GET).await.status,
        200,
        "a complete head does not count towards the budget"
    );
}

/// HTTP/2 callers that are silent, leave a head unfinished, or are refused: the budget bounds the memory that their bytes take.
#[tokio::test]
async fn unauthenticated_http2_connections_share_the_memory_budget() {
    const CONNECTIONS: usize = 3000;
    /// `x: y`, added to the HPACK dynamic table (RFC 7541 §6.2.1).
    const INDEXED: &[u8] = b"\x40\x01x\x01y";
    let preface = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
    // One byte per reference to that field; the last frame of the block is never sent.
    let references = frames::head(1, frames::END_STREAM, &[INDEXED, &[0xbe; 20_000]].concat());
    let unfinished = &references[..9 + 16_384];
    // Requests without credentials; each leaves one field in the table, and 8 KiB in the buffer that the entry keeps alive.
    let begin = [&[0x82, 0x86, 0x84], frames::field(":authority", "good.test").as_slice(), INDEXED].concat();
    let block = [begin, frames::field("z", &"z".repeat(8000))].concat();
    let refused: Vec<u8> = (0..30).flat_map(|n| frames::head(2 * n + 1, frames::END_STREAM, &block)).collect();
    let callers = "callers: [{name: known, secret: a-secret-of-these-tests}]\n";
    for (row, bytes) in [("silent", &[][..]), ("references", unfinished), ("refused", &refused)] {
        let stage = Stage::start(callers).await;
        let before = stage.sidecar.resident_kib();
        let mut held = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut stream = TcpStream::connect(stage.sidecar.proxy()).await.expect("a connection");
            // The proxy may have closed it.
            let _ = stream.write_all(&[&preface[..], bytes].concat()).await;
            held.push(stream);
        }
        stage.sidecar.wait_until_idle().await;
        let grown_mib = stage.sidecar.resident_kib().saturating_sub(before) / 1024;
        assert!(grown_mib < 150, "{row}: {CONNECTIONS} connections take {grown_mib} MiB");
    }
}

/// Serves endless downloads over HTTP/1.1, or over HTTP/2 with prior knowledge, and counts the bytes sent.
async fn serve_endlessly(listener: TcpListener, http2: bool, sent_bytes: Arc<AtomicUsize>) {
    const PART: &[u8] = &[b'x'; 16 * 1024];
    while let Ok((mut stream, _)) = listener.accept().await {
        let sent_bytes = sent_bytes.clone();
        tokio::spawn(async move {
            if !http2 {
                let mut head = [0; 4096];
                assert!(stream.read(&mut head).await? > 0, "a request");
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n").await?;
                loop {
                    sent_bytes.fetch_add(stream.write(PART).await?, Ordering::Relaxed);
                }
            }
            let mut conn = h2::server::handshake(stream).await.map_err(std::io::Error::other)?;
            while let Some(Ok((_, mut respond))) = conn.accept().await {
                let mut body = respond.send_response(http::Response::new(()), false).map_err(std::io::Error::other)?;
                let sent_bytes = sent_bytes.clone();
                tokio::spawn(async move {
                    body.reserve_capacity(PART.len());
                    while let Some(Ok(room)) = poll_fn(|cx| body.poll_capacity(cx)).await {
                        let part = Bytes::from_static(&PART[..room.min(PART.len())]);
                        sent_bytes.fetch_add(part.len(), Ordering::Relaxed);
                        if body.send_data(part, false).is_err() {
                            return;
                        }
                        body.reserve_capacity(PART.len());
                    }
                });
            }
            std::io::Result::Ok(())
        });
    }
}

/// Starts a download over HTTP/2 of which the caller never reads a byte.
async fn stall_over_http2(client: &h2::client::SendRequest<Bytes>, authority: SocketAddr) -> h2::RecvStream {
    let request = http::Request::get(format!("http://{authority}/api/endless")).body(()).expect("a request");
    let mut client = client.clone().ready().await.expect("room for a stream");
    let (response, _) = client.send_request(request, true).expect("write succeeds");
    response.await.expect("a response").into_body()
}

#[tokio::test]
async fn a_stalled_download_takes_little_memory() {
    const DOWNLOADS: usize = 100;
    for (row, http2_caller, http2_upstream) in
        [("HTTP/1.1", false, false), ("HTTP/2 upstream", false, true), ("HTTP/2 caller", true, false)]
    {
        let (stage, listener) = Stage::with_raw_good("").await;
        let sent_bytes = Arc::<AtomicUsize>::default();
        let upstream = tokio::spawn(serve_endlessly(listener, http2_upstream, sent_bytes.clone()));
        let before = stage.sidecar.resident_kib();
        let (mut conns, mut bodies) = (Vec::new(), Vec::new());
        if http2_caller {
            let stream = TcpStream::connect(stage.sidecar.proxy()).await.expect("a connection");
            let (client, conn) = h2::client::handshake(stream).await.expect("HTTP/2");
            tokio::spawn(conn);
            for _ in 0..DOWNLOADS {
                bodies.push(stall_over_http2(&client, stage.sidecar.proxy()).await);
            }
        }
        for _ in bodies.len()..DOWNLOADS {
            let mut conn = Conn::open(stage.sidecar.proxy()).await;
            let kind = if http2_upstream { "application/grpc" } else { "text/plain" };
            conn.write(format!("GET http://good.test/ HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n\r\n").as_bytes())
                .await;
            conns.push(conn);
        }
        stage.sidecar.wait_for_metric("keybearer_requests_in_flight", |count| count == DOWNLOADS as f64).await;
        let stalled = async {
            let mut last = 0;
            while sent_bytes.load(Ordering::Relaxed) != last || last == 0 {
                last = sent_bytes.load(Ordering::Relaxed);
                tokio::time::sleep(s(0.5)).await;
            }
        };
        tokio::time::timeout(s(20.0), stalled).await.expect("the downloads stall");
        let each_kib = stage.sidecar.resident_kib().saturating_sub(before) / DOWNLOADS as u64;
        // In addition to the body, the connection itself: its task and its read buffer.
        assert!(each_kib <= 128 + 16, "{row}: {each_kib} KiB");
        upstream.abort();
    }
}

#[tokio::test]
async fn heads_and_targets_over_the_limit_get_431_and_414() {
    let stage = Stage::start("limits: {head: 8KiB}\n").await;
    let field = |bytes: usize| {
        format!("GET http://good.test/ HTTP/1.1\r\nHost: x\r\nX: {}\r\nConnection: close\r\n\r\n", "a".repeat(bytes))
    };
    let target = |bytes: usize| {
        format!("GET http://good.test/{} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "a".repeat(bytes))
    };
    for (row, bytes, status, code) in [
        ("a head within the limit", field(7_000), 200, ""),
        ("a head above the limit", field(9_000), 431, "head_too_large"),
        ("a head far above the limit", field(200_000), 431, "head_too_large"),
        ("a target within the limit", target(7_000), 200, ""),
        ("a target above the limit", target(9_000), 414, "target_too_long"),
        ("a target far above the limit", target(200_000), 414, "target_too_long"),
    ] {
        let before = stage.good.count();
        let transcript = stage.exchange(&bytes).await;
        assert_eq!((transcript.status(), transcript.code().as_str()), (status, code), "{row}: {}", transcript.text());
        if status != 200 {
            assert_eq!(transcript.header("content-type").as_deref(), Some("application/problem+json"), "{row}");
            assert_eq!(stage.good.count(), before, "{row}");
        }
        stage.assert_invariants(row, &transcript).await;
    }
    // The limit applies to heads alone: a body after a small head may have any size.
    let body = "b".repeat(100_000);
    let transcript = stage
        .exchange(format!(
            "POST http://good.test/ HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        ))
        .await;
    assert_eq!(transcript.status(), 200, "{}", transcript.text());
}

#[tokio::test]
async fn tunnels_are_limited() {
    let stage = Stage::start("limits: {tunnels: 1}\n").await;
    let connect = b"CONNECT good.test:80 HTTP/1.1\r\nHost: good.test:80\r\n\r\n";
    let mut first = TcpStream::connect(stage.sidecar.proxy()).await.expect("a connection");
    first.write_all(connect).await.expect("write succeeds");
    let mut status = [0; 12];
    first.read_exact(&mut status).await.expect("a response");
    assert_eq!(&status, b"HTTP/1.1 200");
    let response = raw::send(stage.sidecar.proxy(), connect).await;
    assert_eq!((response.status, response.code()), (503, "overloaded"));
    drop(first);
    let free = async { while exchange(stage.sidecar.proxy(), connect).await.status() != 200 {} };
    tokio::time::timeout(s(5.0), free).await.expect("the permit is free again");
}

/// A response that the upstream sends before it has read the whole request arrives complete; the rest of the upload is discarded.
#[tokio::test]
async fn an_early_response_is_the_only_one() {
    for framing in ["Content-Length: 3000000", "Transfer-Encoding: chunked"] {
        let (stage, listener) = Stage::with_raw_good("limits: {head: 8KiB}\n").await;
        let upstream = async {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            stream.read_u8().await.expect("a request");
            stream
                .write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n\r\nsorry")
                .await
                .expect("write succeeds");
            let _ = tokio::time::timeout(s(3.0), tokio::io::copy(&mut stream, &mut tokio::io::sink())).await;
        };
        let caller = async {
            let mut stream = TcpStream::connect(stage.sidecar.proxy()).await.expect("a connection");
            stream
                .write_all(format!("POST http://good.test/ HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n").as_bytes())
                .await
                .expect("write succeeds");
            let (mut reader, mut writer) = stream.split();
            let write = async {
                for _ in 0..30 {
                    let block = match framing.contains("chunked") {
                        true => [b"186a0\r\n".as_slice(), &vec![b'x'; 100_000], b"\r\n"].concat(),
                        false => vec![b'x'; 100_000],
                    };
                    if writer.write_all(&block).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(s(0.01)).await;
                }
                let _ = writer.shutdown().await;
            };
            let mut transcript = Vec::new();
            let read = async {
                let _ = tokio::time::timeout(s(10.0), reader.read_to_end(&mut transcript)).await;
            };
            tokio::join!(write, read);
            crate::rig::stage::Transcript(transcript)
        };
        let (_, transcript) = tokio::join!(upstream, caller);
        assert_eq!(
            (transcript.statuses(), transcript.body().as_str()),
            (vec![413], "sorry"),
            "{framing}: {}",
            transcript.text()
        );
    }
}

/// A caller that is refused during its upload receives the response, not a reset.
#[tokio::test]
async fn a_refused_upload_receives_its_response() {
    let stage = Stage::start("").await;
    let body = vec![b'x'; 3_000_000];
    for (row, target, status) in [("no mount", "/nowhere", 404), ("denied", "http://127.0.0.1:1/", 403)] {
        for _ in 0..5 {
            let head = format!("POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
            let transcript = stage.exchange([head.as_bytes(), &body].concat()).await;
            assert_eq!(transcript.statuses(), [status], "{row}");
        }
    }
}

#[tokio::test]
async fn a_port_without_a_listener_is_502() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("a bound listener").port();
    drop(listener);
    let stage = Stage::start(&format!("egress: {{allow_private: true, connect_ports: [{port}]}}\n")).await;
    let response = raw::get_through(stage.sidecar.proxy(), &format!("http://127.0.0.1:{port}/"), "").await;
    assert_eq!((response.status, response.code()), (502, "upstream_unreachable"));
    assert_eq!(response.header("proxy-status"), Some("keybearer; error=connection_refused"));
}
