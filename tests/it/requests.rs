//! Requests as raw bytes: the upstream receives one well-formed message or nothing.
//!
//! Rows are named after the table of hostile peers (HP).

mod content;
mod framing;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::rig::raw::{self, Conn};
use crate::rig::scripted::Reply;
use crate::rig::stage::{Stage, TOKEN, Transcript};

/// Asserts that the message is refused with a 4xx or 5xx and reaches no upstream.
async fn assert_refused(stage: &Stage, row: &str, bytes: impl AsRef<[u8]>) {
    let before = (stage.good.count(), stage.evil.count());
    let transcript = stage.exchange(&bytes).await;
    assert!([400, 405, 408, 414, 431, 501, 505].contains(&transcript.status()), "{row}: {}", transcript.text());
    assert_eq!(transcript.statuses().len(), 1, "{row}: {}", transcript.text());
    assert_eq!((stage.good.count(), stage.evil.count()), before, "{row}: {:?}", stage.good.received().last());
    stage.assert_invariants(row, &transcript).await;
}

const SMUGGLED: &str = "GET http://evil.test/smuggled HTTP/1.1\r\nHost: evil.test\r\n\r\n";

/// Asserts that the upstream receives clean framing and no request smuggled in or after the message, whether or not the
/// proxy refuses the message.
async fn assert_harmless(stage: &Stage, row: &str, bytes: impl AsRef<[u8]>) {
    let before = stage.good.count();
    let transcript = stage.exchange(&bytes).await;
    assert!(transcript.statuses().len() <= 1, "{row}: {}", transcript.text());
    assert_eq!(stage.evil.count(), 0, "{row}: {:?}", stage.evil.received());
    for request in &stage.good.received()[before..] {
        let (length, coding) = (request.values("content-length"), request.values("transfer-encoding"));
        assert!(length.len() + coding.len() <= 1, "{row}: {}", request.head);
        assert!(coding.iter().all(|value| *value == "chunked"), "{row}: {}", request.head);
        assert!(
            request.head.bytes().all(|b| b == b'\r' || b == b'\n' || b == b'\t' || (0x20..0x7f).contains(&b)),
            "{row}"
        );
        let bare = request.head.replace("\r\n", "");
        assert!(!bare.contains(['\r', '\n']), "{row}: {}", request.head);
    }
    stage.assert_invariants(row, &transcript).await;
}

fn post(lines: &str, body: &str) -> String {
    format!("POST http://good.test/x HTTP/1.1\r\nHost: good.test\r\n{lines}\r\n{body}")
}

#[tokio::test]
async fn ambiguous_framing_smuggles_no_second_request() {
    let stage = Stage::start("").await;
    let chunk = format!("0\r\n\r\n{SMUGGLED}");
    for (row, lines) in [
        ("HP-01 CL, TE", "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n"),
        ("HP-01 TE, CL", "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n"),
        ("HP-07 TE in 1.0", "Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n"),
    ] {
        let mut bytes = post(lines, &chunk);
        if row.contains("HP-07") {
            bytes = bytes.replacen("HTTP/1.1", "HTTP/1.0", 1);
        }
        assert_harmless(&stage, row, bytes).await;
    }
    for (row, lines) in [
        ("HP-02 different lines", "Content-Length: 4\r\nContent-Length: 5\r\n"),
        ("HP-02 different values", "Content-Length: 4, 5\r\n"),
        ("HP-02 sign", "Content-Length: +4\r\n"),
        ("HP-02 hex", "Content-Length: 0x4\r\n"),
        ("HP-02 empty", "Content-Length: \r\n"),
        ("HP-02 negative", "Content-Length: -1\r\n"),
        ("HP-02 huge", "Content-Length: 99999999999999999999999\r\n"),
        ("HP-05 unknown", "Transfer-Encoding: gzip\r\n"),
        ("HP-05 chunked not last", "Transfer-Encoding: chunked, gzip\r\n"),
        ("HP-05 parameter", "Transfer-Encoding: chunked;a=b\r\n"),
        ("HP-05 quoted", "Transfer-Encoding: \"chunked\"\r\n"),
        ("HP-05 VT", "Transfer-Encoding: \x0bchunked\r\n"),
        ("HP-05 identity", "Transfer-Encoding: identity\r\n"),
        ("HP-05 twice", "Transfer-Encoding: chunked, chunked\r\n"),
        ("HP-05 empty item", "Transfer-Encoding: ,chunked\r\n"),
        ("HP-06 two fields", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
        ("HP-06 space before the colon", "Transfer-Encoding : chunked\r\n"),
        ("HP-06 folded", "Transfer-Encoding:\r\n chunked\r\n"),
        ("HP-06 after a bare CR", "X: a\rTransfer-Encoding: chunked\r\n"),
    ] {
        assert_refused(&stage, row, post(lines, &chunk)).await;
    }
    for (row, lines) in [
        ("HP-03 equal lines", "Content-Length: 4\r\nContent-Length: 4\r\nConnection: close\r\n"),
        ("HP-03 equal values", "Content-Length: 4, 4\r\nConnection: close\r\n"),
    ] {
        assert_harmless(&stage, row, post(lines, &format!("abcd{SMUGGLED}"))).await;
    }
}

/// IIS and Azure respond 411 to a POST without Content-Length (RFC 9110 §8.6).
#[tokio::test]
async fn an_empty_body_has_content_length_0_where_the_method_expects_a_body() {
    let stage = Stage::start("").await;
    for (method, lines, expected) in [
        ("POST", "Content-Length: 0\r\n", vec!["0"]),
        ("POST", "", vec!["0"]),
        ("PUT", "Content-Length: 0\r\n", vec!["0"]),
        ("PATCH", "Content-Length: 0\r\n", vec!["0"]),
        ("GET", "", vec![]),
        ("DELETE", "", vec![]),
    ] {
        let head = format!("{method} http://good.test/ HTTP/1.1\r\nHost: x\r\n{lines}Connection: close\r\n\r\n");
        let transcript = stage.exchange(head).await;
        assert_eq!(transcript.status(), 200, "{method} {lines:?}: {}", transcript.text());
        let received = stage.good.received().pop().expect("a request");
        assert_eq!(received.values("content-length"), expected, "{method} {lines:?}: {}", received.head);
        assert!(received.values("transfer-encoding").is_empty(), "{method} {lines:?}: {}", received.head);
    }
}

#[tokio::test]
async fn malformed_http_reaches_no_upstream() {
    let stage = Stage::start("").await;
    let head = |line: &str| format!("{line}\r\nHost: good.test\r\nConnection: close\r\n\r\n");
    let field = |field: &str| {
        format!("GET http://good.test/ HTTP/1.1\r\nHost: good.test\r\n{field}\r\nConnection: close\r\n\r\n")
    };
    for (row, bytes) in [
        ("HP-11 obs-fold", field("X: a\r\n b")),
        ("HP-11 leading space", "GET http://good.test/ HTTP/1.1\r\n X: y\r\nHost: good.test\r\n\r\n".to_owned()),
        ("HP-11 bare CR", field("X: a\rb")),
        ("HP-11 NUL", field("X: a\0b")),
        ("HP-11 space in the name", field("X Y: a")),
        ("HP-11 no colon", field("XY")),
        ("HP-11 empty name", field(": a")),
        ("HP-11 not a token", field("X(Y): a")),
        ("HP-13 no version", head("GET http://good.test/")),
        ("HP-13 0.9", "GET http://good.test/\r\n".to_owned()),
        ("HP-13 2.0", head("GET http://good.test/ HTTP/2.0")),
        ("HP-13 1.10", head("GET http://good.test/ HTTP/1.10")),
        ("HP-13 lower case", head("GET http://good.test/ http/1.1")),
        ("HP-13 extra word", head("GET http://good.test/ x HTTP/1.1")),
        ("HP-13 tab", head("GET\thttp://good.test/\tHTTP/1.1")),
        ("HP-13 bad method", head("G(T http://good.test/ HTTP/1.1")),
        ("HP-13 NUL", head("GET http://good.test/\0 HTTP/1.1")),
        ("HP-13 CR", head("GET http://good.test/\r HTTP/1.1")),
        ("HP-14 UTF-8", head("GET http://good.test/p\u{e4}th HTTP/1.1")),
        ("HP-14 DEL", head("GET http://good.test/\x7f HTTP/1.1")),
        ("HP-34 ftp", head("GET ftp://good.test/ HTTP/1.1")),
        ("HP-34 gopher", head("GET gopher://good.test/ HTTP/1.1")),
        ("HP-34 wss", head("GET wss://good.test/ HTTP/1.1")),
        ("HP-23 asterisk", head("OPTIONS * HTTP/1.1")),
        ("HP-23 authority form", head("GET good.test:80 HTTP/1.1")),
        ("HP-25 a header of 200 KiB", field(&format!("X: {}", "a".repeat(200 * 1024)))),
        ("HP-25 5000 headers", field(&"X: y\r\n".repeat(5000))),
        ("HP-25 a target of 128 KiB", head(&format!("GET http://good.test/{} HTTP/1.1", "a".repeat(128 * 1024)))),
    ] {
        assert_refused(&stage, row, bytes).await;
    }
    for (row, bytes) in [
        ("HP-12 bare LF", "GET http://good.test/ HTTP/1.1\nHost: good.test\nConnection: close\n\n".to_owned()),
        ("HP-12 leading CRLF", format!("\r\n{}", head("GET http://good.test/ HTTP/1.1"))),
        ("HP-14 fragment", head("GET http://good.test/x#frag HTTP/1.1")),
        (
            "HP-09 chunk extensions",
            post(
                "Transfer-Encoding: chunked\r\nConnection: close\r\n",
                &format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(1 << 20)),
            ),
        ),
    ] {
        assert_harmless(&stage, row, bytes).await;
    }
    assert!(!stage.good.received().iter().any(|request| request.head.contains("frag")), "HP-14");
}

#[tokio::test]
async fn a_broken_request_body_gets_400() {
    let stage = Stage::start("").await;
    let chunked = "Transfer-Encoding: chunked\r\n";
    for (row, bytes) in [
        ("HP-08 bad size", post(chunked, "zz\r\nabc\r\n0\r\n\r\n")),
        ("HP-08 bad size later", post(chunked, "3\r\nabc\r\nzz\r\nabc\r\n0\r\n\r\n")),
        ("HP-08 no CRLF after the chunk", post(chunked, "3\r\nabcd0\r\n\r\n")),
        ("HP-09 chunk extensions", post(chunked, &format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(1 << 20)))),
        ("cut within a chunk", post(chunked, "a\r\nabc")),
        ("cut between chunks", post(chunked, "3\r\nabc\r\n")),
        ("cut within a length", post("Content-Length: 10\r\n", "abc")),
    ] {
        let transcript = stage.exchange(bytes).await;
        assert_eq!(
            (transcript.statuses(), transcript.code().as_str()),
            (vec![400], "bad_request_target"),
            "{row}: {}",
            transcript.text()
        );
        assert!(transcript.body().contains("the request body"), "{row}: {}", transcript.text());
        assert_eq!(stage.good.count(), 0, "{row}: the body never arrives as complete");
    }
    stage.assert_invariants("HP-09", &Transcript(Vec::new())).await;
    for code in ["upstream_protocol", "upstream_unreachable"] {
        let series = format!("keybearer_errors_total{{connection=\"good\",code=\"{code}\"}}");
        assert_eq!(stage.sidecar.metric(&series).await, 0.0, "{code}");
    }
}

#[tokio::test]
async fn hop_by_hop_fields_are_not_forwarded() {
    let stage = Stage::start("").await;
    let lines = "Connection: close, X-Gone\r\nX-Gone: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nTE: trailers\r\n\
                 Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nKeybearer-Subject: alice\r\nKeybearer-Anything: 1\r\n\
                 X-Kept: 1\r\nVia: 1.0 fred\r\nCookie: a=b\r\nConnection: X_Also\r\nX-Also: 1\r\nX_Gone: 1\r\nKeybearer_Subject: alice\r\n\
                 KEYBEARER_Authorization: Bearer x\r\nTransfer_Encoding: chunked\r\nContent_Length: 9\r\nProxy_Authorization: \
                 Basic eDp5\r\nKeep_Alive: 1\r\nX_Kept: 1\r\n";
    let response = raw::get_through(stage.sidecar.proxy(), "http://good.test/x?q=1", lines).await;
    assert_eq!(response.status, 200, "HP-17");
    assert!(response.header("via").is_some_and(|via| via.contains("keybearer")), "HP-21");
    let received = stage.good.received();
    let request = &received[0];
    assert_eq!(request.request_line(), "GET /x?q=1 HTTP/1.1");
    for name in [
        "x-gone",
        "keep-alive",
        "proxy-connection",
        "te",
        "upgrade",
        "http2-settings",
        "keybearer-subject",
        "keybearer-anything",
        "proxy-authorization",
        "x-also",
        "x_gone",
        "keybearer_subject",
        "keybearer_authorization",
        "transfer_encoding",
        "content_length",
        "proxy_authorization",
        "keep_alive",
    ] {
        assert!(request.values(name).is_empty(), "HP-17 HP-19 {name}: {}", request.head);
    }
    assert_eq!(request.values("x_kept"), ["1"], "HP-17");
    assert_eq!((request.values("x-kept"), request.values("cookie")), (vec!["1"], vec!["a=b"]), "HP-17");
    let via = request.values("via");
    assert_eq!((via.len(), via[0]), (2, "1.0 fred"), "HP-21");
    assert!(via[1].starts_with("1.1 keybearer"), "HP-21: {via:?}");
}

#[tokio::test]
async fn max_forwards_is_decremented_and_stops_at_zero() {
    let stage = Stage::start("").await;
    let options =
        |left: &str| format!("OPTIONS http://good.test/ HTTP/1.1\r\nHost: good.test\r\nMax-Forwards: {left}\r\n\r\n");
    let transcript = stage.exchange(options("0")).await;
    assert_eq!((transcript.status(), stage.good.count()), (200, 0), "HP-21 0: {}", transcript.text());
    assert_eq!(stage.exchange(options("5")).await.status(), 200, "HP-21 5");
    assert_eq!(stage.good.received()[0].values("max-forwards"), ["4"], "HP-21 5");
    let trace = "TRACE http://evil.test/ HTTP/1.1\r\nHost: evil.test\r\nMax-Forwards: 0\r\n\r\n";
    let transcript = stage.exchange(trace).await;
    assert_eq!((transcript.status(), stage.evil.count()), (200, 0), "HP-21 TRACE: {}", transcript.text());
    assert_eq!(stage.exchange(trace.replace("Forwards: 0", "Forwards: 5")).await.status(), 200, "HP-21 TRACE 5");
    let received = stage.evil.received();
    assert_eq!(received[0].request_line(), "TRACE / HTTP/1.1", "HP-21 TRACE 5");
    assert_eq!(received[0].values("max-forwards"), ["4"], "HP-21 TRACE 5");
}

#[tokio::test]
async fn pipelined_slow_and_http_1_0_requests_are_served_in_order() {
    let stage = Stage::with_reply("", |request, _| match request.request_line().split(' ').nth(1) {
        Some("/afterwards") => Reply::ok(),
        Some(path) => Reply::text(200, "text/plain", &format!("response to {path}")),
        None => Reply::Close,
    })
    .await;
    let get =
        |path: &str, lines: &str| format!("GET http://good.test{path} HTTP/1.1\r\nHost: good.test\r\n{lines}\r\n");
    let transcript = stage
        .exchange([get("/1", ""), get("/2", ""), get("/3", "Connection: close\r\n"), get("/4", "")].concat())
        .await;
    let order: Vec<usize> =
        ["to /1", "to /2", "to /3"].iter().map(|text| transcript.text().find(text).expect(text)).collect();
    assert!(order.is_sorted() && transcript.statuses() == [200, 200, 200], "HP-23 pipelining: {}", transcript.text());
    stage.assert_invariants("HP-23 pipelining", &transcript).await;

    let mut conn = Conn::open(stage.sidecar.proxy()).await;
    conn.stream.set_nodelay(true).expect("the socket option is set");
    for byte in get("/slow", "").as_bytes() {
        conn.write(&[*byte]).await;
    }
    assert_eq!(conn.read_response().await.text(), "response to /slow", "HP-23 byte by byte");

    let transcript = stage.exchange("GET http://good.test/old HTTP/1.0\r\n\r\n").await;
    assert_eq!(
        (transcript.status(), transcript.body().as_str()),
        (200, "response to /old"),
        "HP-23 1.0: {}",
        transcript.text()
    );
    let transcript = stage
        .exchange(
            "GET http://good.test/a HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET http://good.test/b HTTP/1.0\r\n\r\n",
        )
        .await;
    assert_eq!(transcript.statuses(), [200], "HP-23 1.0 keep-alive: {}", transcript.text());
    let transcript =
        stage.exchange("GET http://good.test/a HTTP/1.0\r\n\r\nGET http://good.test/b HTTP/1.0\r\n\r\n").await;
    assert_eq!(transcript.statuses(), [200], "HP-23 1.0 closes: {}", transcript.text());
}

#[tokio::test]
async fn a_get_body_and_expect_100_continue_are_handled() {
    let stage = Stage::start("").await;
    let transcript = stage
        .exchange("GET http://good.test/body HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody")
        .await;
    assert_eq!(transcript.status(), 200, "HP-24 GET with a body");
    assert_eq!(
        (stage.good.received()[0].body.as_slice(), stage.good.received()[0].values("content-length")),
        (&b"body"[..], vec!["4"])
    );

    for expectation in ["100-continue", "x-unknown"] {
        let mut conn = Conn::open(stage.sidecar.proxy()).await;
        let head = format!(
            "PUT http://good.test/{expectation} HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: {expectation}\r\n\r\n"
        );
        conn.write(head.as_bytes()).await;
        if expectation == "100-continue" {
            let mut interim = [0; 25];
            conn.stream.read_exact(&mut interim).await.expect("an interim response");
            assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        conn.write(b"abc").await;
        let response = conn.read_response().await;
        assert!(response.status == 200 || response.status == 417, "HP-24 {expectation}: {}", response.status);
        let received = stage.good.received();
        assert!(received.iter().all(|request| request.values("expect").is_empty()), "HP-24 {expectation}");
    }
}

#[tokio::test]
async fn trailers_are_forwarded_without_head_fields() {
    let (stage, listener) = Stage::with_raw_good("").await;
    let upstream = async {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let (mut all, mut buffer) = (Vec::new(), vec![0; 4096]);
        while !String::from_utf8_lossy(&all).split_once("\r\n0\r\n").is_some_and(|(_, end)| end.ends_with("\r\n")) {
            let count = stream.read(&mut buffer).await.expect("bytes");
            assert!(count > 0, "HP-10: cut: {}", String::from_utf8_lossy(&all));
            all.extend_from_slice(&buffer[..count]);
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.expect("write succeeds");
        String::from_utf8_lossy(&all).into_owned()
    };
    let bytes = "POST http://key.test/ HTTP/1.1\r\nHost: key.test\r\nTransfer-Encoding: chunked\r\nTrailer: Authorization, Host, \
                 Content-Length, X-Api-Key, Keybearer-Subject, X-Sum\r\nConnection: close\r\n\r\n3\r\nabc\r\n0\r\nAuthorization: Bearer \
                 mine\r\nHost: evil.test\r\nContent-Length: 9\r\nX-Api-Key: mine\r\nKeybearer-Subject: alice\r\nX-Sum: 1\r\n\r\n";
    let (arrived, transcript) = tokio::join!(upstream, stage.exchange(bytes));
    assert_eq!(transcript.status(), 200, "HP-10: {}", transcript.text());
    let (head, body) = arrived.split_once("\r\n\r\n").expect("a head");
    assert!(head.contains(&format!("x-api-key: {TOKEN}")), "HP-10: {head}");
    assert_eq!(body.to_ascii_lowercase(), "3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n", "HP-10");
}

#[tokio::test]
async fn ten_mebibytes_of_chunks_arrive_intact() {
    let (stage, listener) = Stage::with_raw_good("").await;
    let upstream = async {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let (mut all, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
        while !all.ends_with(b"0\r\n\r\n") {
            let count = stream.read(&mut buffer).await.expect("bytes");
            assert!(count > 0, "HP-24: the upload was cut at {}", all.len());
            all.extend_from_slice(&buffer[..count]);
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.expect("write succeeds");
        unchunk(&all)
    };
    let caller = async {
        let mut conn = Conn::open(stage.sidecar.proxy()).await;
        conn.write(b"POST http://good.test/ HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        let mut sent = Vec::new();
        for number in 0..160_u32 {
            let chunk: Vec<u8> = (0..65_536_u32).map(|at| (at.wrapping_mul(31) ^ number) as u8).collect();
            conn.write(b"10000\r\n").await;
            conn.write(&chunk).await;
            conn.write(b"\r\n").await;
            sent.extend(chunk);
        }
        conn.write(b"0\r\n\r\n").await;
        (conn.read_response().await, sent)
    };
    let (arrived, (response, sent)) = tokio::join!(upstream, caller);
    assert_eq!((response.status, arrived.len()), (200, 10 << 20), "HP-24");
    assert!(arrived == sent, "HP-24: the body was changed");
}

fn unchunk(message: &[u8]) -> Vec<u8> {
    let start = message.windows(4).position(|w| w == b"\r\n\r\n").expect("a head") + 4;
    let (mut rest, mut body) = (&message[start..], Vec::new());
    loop {
        let end = rest.windows(2).position(|w| w == b"\r\n").expect("a size");
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).expect("ASCII"), 16).expect("hex");
        if size == 0 {
            return body;
        }
        body.extend_from_slice(&rest[end + 2..end + 2 + size]);
        rest = &rest[end + 4 + size..];
    }
}
