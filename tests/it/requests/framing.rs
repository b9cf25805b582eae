//! Message framing and head sizes: raw bytes and HTTP/2 frames on both sides of the proxy.

use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::{Method, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::rig::frames::{self, CANCEL, END_STREAM, FrameServer, NO_ERROR, STATUS_200};
use crate::rig::http2::Http2;
use crate::rig::peers::Peers;
use crate::rig::raw::{self, Conn, RawResponse};
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::Sidecar;
use crate::rig::stage::Stage;

const TIMEOUT: Duration = Duration::from_secs(20);

fn request(sidecar: &Sidecar, method: Method, path: &str) -> http::request::Builder {
    Request::builder().method(method).uri(format!("http://{}{path}", sidecar.proxy()))
}

/// A sidecar that reaches `server` as `https://api.test` and through the mount `/crm`.
async fn start_before(server: &FrameServer, top: &str) -> (Sidecar, Scripted) {
    let tokens = Scripted::tokens(3600).await;
    let config = format!(
        "hosts: {{api.test: \"{}\"}}\ntrust: [{}]\n{top}connections:\n- {{name: crm, client_id: a, client_secret: b, \
         token_url: \"http://{}/token\", routes: [{{host: api.test}}, {{mount: /crm, upstream: \"https://api.test\"}}]}}\n",
        server.address,
        Peers::certs().ca.display(),
        tokens.address
    );
    (Sidecar::start(&config).await, tokens)
}

/// RFC 9110 §8.6: servers respond 411 to a POST without Content-Length.
#[tokio::test]
async fn a_method_that_expects_content_is_sent_with_content_length_0() {
    let stage = Stage::start("").await;
    let mut http2 = Http2::open(&stage.sidecar).await;
    for (method, expected) in [
        ("POST", vec!["0"]),
        ("PUT", vec!["0"]),
        ("PATCH", vec!["0"]),
        ("GET", vec![]),
        ("DELETE", vec![]),
        ("OPTIONS", vec![]),
    ] {
        let check = |row: &str| {
            let request = stage.good.received().pop().expect("a request");
            assert!(request.head.starts_with(method), "{row}: {}", request.head);
            let framing = (request.values("content-length"), request.values("transfer-encoding"));
            assert_eq!(framing, (expected.clone(), vec![]), "{method} {row}: {}", request.head);
        };
        for (row, lines) in [("a length of 0", "Content-Length: 0\r\n"), ("no length", "")] {
            let head = format!("{method} http://good.test/x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{lines}\r\n");
            assert_eq!(stage.exchange(head).await.status(), 200, "{method} {row}");
            check(row);
        }
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let read = http2.send(request(&stage.sidecar, method, "/api/x").body(()).expect("a request")).await;
        assert_eq!(read.status, 200, "{read:?}");
        check("END_STREAM on the head");
    }
    let chunked = "POST http://good.test/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\n\r\n";
    assert_eq!(stage.exchange(chunked).await.status(), 200);
    let last = stage.good.received().pop().expect("a request");
    assert_eq!((last.values("content-length").len(), last.values("transfer-encoding")), (0, vec!["chunked"]));
}

#[tokio::test]
async fn a_replayed_request_without_content_has_content_length_0_again() {
    for (framing, first) in
        [("Content-Length: 0\r\n\r\n", "content-length: 0"), ("Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "chunked")]
    {
        let server = Scripted::start(|_, before| match before {
            0 => Reply::text(401, "text/plain", "no"),
            _ => Reply::ok(),
        })
        .await;
        let tokens = Scripted::tokens(3600).await;
        let sidecar = Sidecar::start(&format!(
            "hosts: {{api.test: \"{}\"}}\nconnections:\n- {{name: crm, client_id: a, client_secret: b, token_url: \
             \"http://{}/token\", routes: [{{host: api.test, upstream_tls: false}}]}}\n",
            server.address, tokens.address
        ))
        .await;
        let head = format!("POST http://api.test/ HTTP/1.1\r\nHost: api.test\r\n{framing}");
        assert_eq!(raw::send(sidecar.proxy(), head.as_bytes()).await.status, 200, "{framing}");
        let received = server.received();
        assert!(received[0].head.contains(first), "{framing}: {}", received[0].head);
        assert_eq!((received.len(), received[1].values("content-length")), (2, vec!["0"]), "{framing}");
        assert!(received[1].values("transfer-encoding").is_empty(), "{framing}: {}", received[1].head);
    }
}

/// RFC 9113 §8.1: only END_STREAM ends a response; a reset with NO_ERROR or a clean close does not.
#[tokio::test]
async fn a_truncated_http2_response_is_never_forwarded_as_complete() {
    for (row, code) in [("no error", Some(NO_ERROR)), ("an error", Some(CANCEL)), ("the connection ends", None)] {
        let server = FrameServer::start(move |at, before| {
            let length = if before % 2 == 0 { Vec::new() } else { frames::field("content-length", "10") };
            let flow = [frames::head(at, 0, &[STATUS_200, &length].concat()), frames::data(at, 0, b"abc")].concat();
            match code {
                Some(code) => Reply::Bytes([flow, frames::reset(at, code)].concat()),
                None => Reply::BytesThenClose([flow, frames::goaway(at, NO_ERROR)].concat()),
            }
        })
        .await;
        let (sidecar, _tokens) = start_before(&server, "").await;
        for framing in ["no length", "a length"] {
            let response = raw::get_through(sidecar.proxy(), "https://api.test/", "").await;
            assert!(response.status == 200 && !response.complete, "{row}, {framing}: {response:?}");
            assert_eq!(response.text(), "abc", "{row}, {framing}");
        }
        let line: serde_json::Value =
            serde_json::from_str(&sidecar.wait_for_log("\"response incomplete\"").await).expect("JSON");
        assert_eq!((&line["status"], &line["complete"]), (&200.into(), &false.into()), "{row}: {line}");
        let mut http2 = Http2::open(&sidecar).await;
        for framing in ["no length", "a length"] {
            let read = http2.send(request(&sidecar, Method::GET, "/crm/").body(()).expect("a request")).await;
            let reason = read.reset.unwrap_or_else(|| panic!("{row}, {framing}: forwarded as complete: {read:?}"));
            assert_ne!(reason, Reason::NO_ERROR, "{row}, {framing}");
            assert_eq!((read.status, read.body.as_slice()), (200, &b"abc"[..]), "{row}, {framing}");
        }
    }
}

/// Nothing was forwarded yet, so the caller gets an error response.
#[tokio::test]
async fn a_reset_that_comes_with_the_response_head_is_502() {
    for code in [NO_ERROR, CANCEL] {
        let server = FrameServer::start(move |at, _| {
            Reply::Bytes([frames::head(at, 0, STATUS_200), frames::reset(at, code)].concat())
        })
        .await;
        let (sidecar, _tokens) = start_before(&server, "log: {requests: all}\n").await;
        let response = raw::get_through(sidecar.proxy(), "https://api.test/", "").await;
        assert_eq!((response.status, response.code()), (502, "upstream_unreachable"), "{code}: {response:?}");
        let line: serde_json::Value =
            serde_json::from_str(&sidecar.wait_for_log("\"upstream_unreachable\"").await).expect("JSON");
        assert_eq!(line["status"], 502, "{code}: {line}");
        assert_eq!(server.count(), 1, "{code}: it may have been processed");
    }
}

/// RFC 9113 §8.1: after its complete response, a server may abort the rest of the request in this way.
#[tokio::test]
async fn a_reset_without_error_after_a_complete_response_is_ignored() {
    let server = FrameServer::start(|at, before| {
        let end = match before {
            0 => frames::data(at, END_STREAM, b"abc"),
            _ => [frames::data(at, 0, b"abc"), frames::head(at, END_STREAM, &frames::field("x-sum", "7"))].concat(),
        };
        Reply::Bytes([frames::head(at, 0, STATUS_200), end, frames::reset(at, NO_ERROR)].concat())
    })
    .await;
    let (sidecar, _tokens) = start_before(&server, "").await;
    for row in ["END_STREAM on data", "END_STREAM on trailers"] {
        let mut conn = Conn::open(sidecar.proxy()).await;
        // The rest of the upload is never sent.
        conn.write(b"POST https://api.test/ HTTP/1.1\r\nHost: api.test\r\nContent-Length: 10\r\n\r\nabc").await;
        let response = conn.read_response().await;
        let received = (response.status, response.text(), response.complete);
        assert_eq!(received, (200, "abc".to_owned(), true), "{row}: {response:?}\n{}", sidecar.log());
    }
}

/// The other direction: a caller resets its upload with NO_ERROR.
#[tokio::test]
async fn a_truncated_http2_request_never_arrives_as_complete() {
    let (stage, listener) = Stage::with_raw_good("").await;
    for row in ["before the response", "during the response"] {
        let mut http2 = Http2::open(&stage.sidecar).await;
        let head = request(&stage.sidecar, Method::POST, "/api/x").body(()).expect("a request");
        let (response, mut upload) = http2.0.send_request(head, false).expect("sent");
        upload.send_data(Bytes::from_static(b"abc"), false).expect("sent");
        let (mut upstream, _) = timeout(TIMEOUT, listener.accept()).await.expect("no timeout").expect("a connection");
        let mut arrived = Vec::new();
        while !arrived.ends_with(b"abc\r\n") {
            arrived.push(timeout(TIMEOUT, upstream.read_u8()).await.expect("no timeout").expect("the upload"));
        }
        if row == "during the response" {
            let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n";
            upstream.write_all(head).await.expect("write succeeds");
            let response = timeout(TIMEOUT, response).await.expect("no timeout").expect("a response");
            assert_eq!(response.status(), 200, "{row}");
        }
        upload.send_reset(Reason::NO_ERROR);
        let _ = timeout(TIMEOUT, upstream.read_to_end(&mut arrived)).await.expect("closes before the timeout");
        assert!(!arrived.ends_with(b"0\r\n\r\n"), "{row}: {}", String::from_utf8_lossy(&arrived));
    }
}

/// `chunked` is the only transfer coding that hyper decodes.
#[tokio::test]
async fn an_unsupported_transfer_coding_is_502() {
    let rows = [
        ("gzip, chunked", 502),
        ("chunked, chunked", 502),
        ("gzip\r\nTransfer-Encoding: chunked", 502),
        ("gzip", 502),
        ("identity", 502),
        ("chunked", 200),
        ("Chunked", 200),
    ];
    let stage = Stage::with_reply("", move |request, _| {
        let number = request.request_line().split("/row/").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
        let Some((coding, _)) = number.map(|number: usize| rows[number]) else { return Reply::ok() };
        let body = if request.head.starts_with("HEAD") { "" } else { "3\r\nabc\r\n0\r\n\r\n" };
        Reply::BytesThenClose(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: {coding}\r\n\r\n{body}").into_bytes())
    })
    .await;
    for (number, (coding, status)) in rows.iter().enumerate() {
        let response = raw::get_through(stage.sidecar.proxy(), &format!("http://good.test/row/{number}"), "").await;
        let code = if *status == 200 { "" } else { "upstream_protocol" };
        assert_eq!((response.status, response.code()), (*status, code), "{coding}: {response:?}");
        if *status == 200 {
            assert_eq!((response.text().as_str(), response.complete), ("abc", true), "{coding}");
        }
        // A response to HEAD has no body to decode.
        let transcript = stage
            .exchange(format!("HEAD http://good.test/row/{number} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
        let transcript = transcript.await;
        assert_eq!(
            (transcript.status(), transcript.header("transfer-encoding")),
            (200, None),
            "{coding}: {}",
            transcript.text()
        );
    }
}

#[tokio::test]
async fn equal_lengths_are_merged() {
    let stage = Stage::with_reply("", |request, _| {
        let body = if request.head.starts_with("HEAD") { "" } else { "ok" };
        let lines = if request.head.contains("/lines") { "2\r\nContent-Length: 2, 2" } else { "2, 2" };
        Reply::BytesThenClose(format!("HTTP/1.1 200 OK\r\nContent-Length: {lines}\r\n\r\n{body}").into_bytes())
    })
    .await;
    for path in ["list", "lines"] {
        for (method, body) in [("GET", "ok"), ("HEAD", "")] {
            let head = format!("{method} http://good.test/{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            let transcript = stage.exchange(head).await;
            let lengths = transcript.text().to_lowercase().matches("content-length: ").count();
            assert_eq!(
                (transcript.status(), lengths, transcript.body().as_str()),
                (200, 1, body),
                "{method}: {}",
                transcript.text()
            );
            assert_eq!(transcript.header("content-length").as_deref(), Some("2"), "{method}: {}", transcript.text());
        }
    }
}

/// RFC 9112 §3.2.4, RFC 9113 §8.3.1.
#[tokio::test]
async fn options_without_a_path_addresses_the_server() {
    let stage = Stage::start("").await;
    for (target, expected) in [
        ("http://good.test", "OPTIONS * HTTP/1.1"),
        ("http://good.test/", "OPTIONS / HTTP/1.1"),
        ("http://good.test?a=b", "OPTIONS /?a=b HTTP/1.1"),
        ("/api", "OPTIONS /base HTTP/1.1"),
    ] {
        let head = format!("OPTIONS {target} HTTP/1.1\r\nHost: good.test\r\nConnection: close\r\n\r\n");
        assert_eq!(stage.exchange(head).await.status(), 200, "{target}");
        let received = stage.good.received();
        let request = received.last().expect("a request");
        assert_eq!(request.request_line(), expected, "{target}");
        assert_eq!(request.values("host"), ["good.test"], "{target}");
    }
    let get = stage.exchange("GET http://good.test HTTP/1.1\r\nHost: good.test\r\nConnection: close\r\n\r\n").await;
    assert_eq!((get.status(), stage.good.received()[4].request_line()), (200, "GET / HTTP/1.1"));
    let get = stage.exchange("GET http://good.test?a=b HTTP/1.1\r\nHost: good.test\r\nConnection: close\r\n\r\n").await;
    assert_eq!((get.status(), stage.good.received()[5].request_line()), (200, "GET /?a=b HTTP/1.1"));
}

/// `count` fields, in addition to Host and Connection.
fn fields(count: usize) -> String {
    (0..count).map(|number| format!("X-{number}: {number}\r\n")).collect()
}

#[track_caller]
fn is_refused(response: &RawResponse, status: u16, code: &str, row: &str) {
    assert_eq!((response.status, response.code()), (status, code), "{row}: {response:?}");
    assert_eq!(response.header("content-type"), Some("application/problem+json"), "{row}");
    assert_eq!(response.json()["code"], code, "{row}");
}

#[tokio::test]
async fn a_request_head_is_limited_in_bytes_and_fields() {
    let stage = Stage::start("").await;
    let get = |lines: &str| format!("GET http://good.test/ HTTP/1.1\r\nHost: x\r\n{lines}\r\n");
    let large = |bytes: usize| format!("X: {}\r\n", "a".repeat(bytes));
    for (row, lines) in [("256 fields", fields(256)), ("60 KB", large(60_000)), ("both", fields(255) + &large(60_000))]
    {
        let response = raw::send(stage.sidecar.proxy(), get(&lines).as_bytes()).await;
        assert_eq!((response.status, response.text().as_str()), (200, "ok"), "{row}: {response:?}");
        let received = stage.good.received().pop().expect("a request");
        let passed = received.head.split("\r\n").filter(|line| line.to_lowercase().starts_with("x")).count();
        assert_eq!(passed, lines.lines().count(), "{row}");
    }
    let before = stage.good.count();
    for (row, lines) in [("1000 fields", fields(1000)), ("70 KB", large(70_000)), ("200 KB", large(200_000))] {
        let response = raw::send(stage.sidecar.proxy(), get(&lines).as_bytes()).await;
        is_refused(&response, 431, "head_too_large", row);
    }
    assert_eq!(stage.good.count(), before, "nothing reaches the upstream");
    // Pipelined after another request.
    let mut conn = Conn::open(stage.sidecar.proxy()).await;
    conn.write((get("") + &get(&fields(1000))).as_bytes()).await;
    assert_eq!(conn.read_response().await.text(), "ok");
    is_refused(&conn.read_response().await, 431, "head_too_large", "pipelined");
    assert!(conn.is_closed().await);

    let mut http2 = Http2::open(&stage.sidecar).await;
    let many = |count: usize| {
        let add = |builder: http::request::Builder, number| builder.header(format!("x-{number}"), number);
        (0..count).fold(request(&stage.sidecar, Method::GET, "/api/x"), add)
    };
    let long = |bytes: usize| request(&stage.sidecar, Method::GET, "/api/x").header("x", "a".repeat(bytes));
    for (row, head, status) in [
        ("256 fields", many(256), 200),
        ("60 KB", long(60_000), 200),
        ("1000 fields", many(1000), 431),
        ("70 KB", long(70_000), 431),
        ("200 KB", long(200_000), 431),
        ("the connection remains usable", many(1), 200),
    ] {
        let read = http2.send(head.body(()).expect("a request")).await;
        let code = if status == 200 { "" } else { "head_too_large" };
        assert_eq!((read.status, read.code()), (status, code), "HTTP/2, {row}: {read:?}");
        if status == 431 {
            let problem: serde_json::Value = serde_json::from_slice(&read.body).expect("JSON");
            assert_eq!((&problem["code"], read.reset), (&code.into(), None), "HTTP/2, {row}");
        }
    }

    let stage = Stage::start("limits: {head: 8KiB}\n").await;
    let target = request(&stage.sidecar, Method::GET, &format!("/api/{}", "a".repeat(9_000)));
    let read = Http2::open(&stage.sidecar).await.send(target.body(()).expect("a request")).await;
    assert_eq!((read.status, read.code()), (414, "target_too_long"), "HTTP/2: {read:?}");
}

#[tokio::test]
async fn bytes_that_are_not_http_get_a_problem_document() {
    let stage = Stage::start("").await;
    for (row, bytes) in [
        ("not HTTP", "HELO there\r\n\r\n".to_owned()),
        ("a bad field", "GET http://good.test/ HTTP/1.1\r\nHost: x\r\nX Y: z\r\n\r\n".to_owned()),
        ("two lengths", "POST http://good.test/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1, 2\r\n\r\n".to_owned()),
    ] {
        let response = raw::send(stage.sidecar.proxy(), bytes.as_bytes()).await;
        is_refused(&response, 400, "bad_request_target", row);
    }
    assert_eq!(stage.good.count(), 0);
    let series = "keybearer_errors_total{connection=\"\",code=\"bad_request_target\"}";
    assert_eq!(stage.sidecar.metric(series).await, 3.0);
    // The response to an earlier request is not lost.
    let mut conn = Conn::open(stage.sidecar.proxy()).await;
    conn.write(b"GET http://good.test/ HTTP/1.1\r\nHost: x\r\n\r\nHELO there\r\n\r\n").await;
    assert_eq!(conn.read_response().await.text(), "ok");
    is_refused(&conn.read_response().await, 400, "bad_request_target", "pipelined");
}

#[tokio::test]
async fn a_response_head_is_limited_in_bytes_and_fields() {
    let large = |bytes: usize| format!("X: {}\r\n", "a".repeat(bytes));
    let rows = [
        ("256 fields", fields(256), 200),
        ("60 KB", large(60_000), 200),
        ("both", fields(255) + &large(60_000), 200),
        ("1000 fields", fields(1000), 502),
        ("70 KB", large(70_000), 502),
        ("120 KB", large(120_000), 502),
        ("400 KB", large(400_000), 502),
    ];
    let lines: Vec<String> = rows.iter().map(|(_, lines, _)| lines.clone()).collect();
    let stage = Stage::with_reply("", move |_, before| {
        Reply::BytesThenClose(format!("HTTP/1.1 200 OK\r\n{}Content-Length: 2\r\n\r\nok", lines[before]).into_bytes())
    })
    .await;
    let check = |version: &str, row: &str, response: &RawResponse, lines: &str, status: u16| {
        if status != 200 {
            return is_refused(response, status, "upstream_protocol", &format!("{version}, {row}"));
        }
        assert_eq!((response.status, response.text().as_str()), (200, "ok"), "{version}, {row}: {response:?}");
        let passed = response.headers.iter().filter(|(name, _)| name.starts_with('x')).count();
        assert_eq!(passed, lines.lines().count(), "{version}, {row}");
    };
    for (row, lines, status) in &rows {
        let response = raw::get_through(stage.sidecar.proxy(), "http://good.test/", "").await;
        check("HTTP/1.1", row, &response, lines, *status);
    }
    let blocks: Vec<Vec<u8>> = rows
        .iter()
        .map(|(_, lines, _)| {
            let fields = lines.lines().filter_map(|line| line.split_once(": "));
            let coded = fields.flat_map(|(name, value)| frames::field(&name.to_lowercase(), value));
            STATUS_200.iter().copied().chain(coded).collect()
        })
        .collect();
    let server = FrameServer::start(move |at, before| {
        Reply::Bytes([frames::head(at, 0, &blocks[before]), frames::data(at, END_STREAM, b"ok")].concat())
    })
    .await;
    let (sidecar, _tokens) = start_before(&server, "").await;
    for (row, lines, status) in &rows {
        let response = raw::get_through(sidecar.proxy(), "https://api.test/", "").await;
        check("HTTP/2", row, &response, lines, *status);
    }
}

/// RFC 9112 §9.3: a proxy must not keep an HTTP/1.0 connection alive, whatever the caller requests.
#[tokio::test]
async fn http_1_0_callers_get_no_keep_alive() {
    let stage = Stage::with_reply("", |request, _| match request.request_line().contains("/chunked") {
        true => Reply::Bytes(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n".to_vec()),
        false => Reply::ok(),
    })
    .await;
    for lines in ["", "Connection: keep-alive\r\n", "Proxy-Connection: keep-alive\r\n"] {
        for (target, status) in
            [("http://good.test/", 200), ("http://good.test/chunked", 200), ("/api/x", 200), ("/no", 404)]
        {
            let mut conn = Conn::open(stage.sidecar.proxy()).await;
            conn.write(format!("GET {target} HTTP/1.0\r\nHost: x\r\n{lines}\r\n").as_bytes()).await;
            let mut read = Vec::new();
            timeout(TIMEOUT, conn.stream.read_to_end(&mut read))
                .await
                .expect("closes before the timeout")
                .expect("bytes");
            let transcript = crate::rig::stage::Transcript(read);
            assert!(
                transcript.text().starts_with(&format!("HTTP/1.0 {status} ")),
                "{target} {lines}: {}",
                transcript.text()
            );
            let promise = transcript.header("connection").filter(|value| !value.eq_ignore_ascii_case("close"));
            assert_eq!(
                (promise, transcript.header("keep-alive")),
                (None, None),
                "{target} {lines}: {}",
                transcript.text()
            );
            assert_eq!(transcript.header("transfer-encoding"), None, "{target} {lines}: {}", transcript.text());
            assert!(status != 200 || transcript.body() == "ok", "{target} {lines}: {}", transcript.text());
        }
    }
    // A CONNECT over HTTP/1.0 still gets its tunnel.
    let mut conn = Conn::open(stage.sidecar.proxy()).await;
    conn.write(b"CONNECT good.test:80 HTTP/1.0\r\n\r\n").await;
    assert!(crate::rig::tunnel_client::read_connect_head(&mut conn).await.contains(" 200 "));
    conn.stream.write_all(b"GET / HTTP/1.1\r\nHost: good.test\r\n\r\n").await.expect("write succeeds");
    assert_eq!(conn.read_response().await.text(), "ok");
}
