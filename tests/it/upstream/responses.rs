//! Responses: an upstream's are forwarded unchanged and unbuffered, a broken one never looks complete, and the proxy's
//! own identify their author.
//!
//! Row names refer to the catalogue of hostile peers (HP, RS).

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::next_head;
use crate::rig::raw::{self, Conn};
use crate::rig::scripted::Reply;
use crate::rig::stage::{Stage, Transcript};

const OK: &str = "HTTP/1.1 200 OK\r\n";

/// *good* responds to `/row/N` with the bytes of row N, and closes the connection if the row says so; to others with
/// `ok`.
async fn respond_with(rows: Vec<(Vec<u8>, bool)>) -> Stage {
    Stage::with_reply("timeouts: {response_head: 3s, idle: 3s}\n", move |request, _| {
        let path = request.request_line().split("/row/").nth(1);
        let number = path.and_then(|rest| rest.split(' ').next()?.parse::<usize>().ok());
        match number.map(|number| &rows[number]) {
            Some((bytes, true)) => Reply::BytesThenClose(bytes.clone()),
            Some((bytes, false)) => Reply::Bytes(bytes.clone()),
            None => Reply::ok(),
        }
    })
    .await
}

#[tokio::test]
async fn an_invalid_response_becomes_502() {
    let long = |count: usize| format!("{OK}{}\r\n", format!("X: {}\r\n", "a".repeat(1000)).repeat(count));
    let rows = [
        ("HP-26 two lengths", format!("{OK}Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde")),
        ("HP-26 bad length", format!("{OK}Content-Length: x\r\n\r\nabcde")),
        ("HP-26 negative length", format!("{OK}Content-Length: -1\r\n\r\nabcde")),
        ("HP-26 TE with a space", format!("{OK}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n")),
        ("HP-28 NUL", format!("{OK}X: a\0b\r\nContent-Length: 2\r\n\r\nok")),
        ("HP-28 bare CR", format!("{OK}X: a\rSet-Cookie: b\r\nContent-Length: 2\r\n\r\nok")),
        ("HP-29 banner", "SSH-2.0-OpenSSH_9.6\r\n".to_owned()),
        ("HP-29 0.9", "<html>hello</html>\r\n\r\n".to_owned()),
        ("HP-29 bad status", "HTTP/1.1 2x0 OK\r\n\r\n".to_owned()),
        ("HP-29 status of one digit", "HTTP/1.1 2 OK\r\n\r\n".to_owned()),
        ("HP-29 4 MiB of headers", long(4 * 1024)),
        ("HP-29 unsolicited 101", "HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n".to_owned()),
        ("nothing", String::new()),
    ];
    let stage = respond_with(rows.iter().map(|(_, bytes)| (bytes.clone().into_bytes(), true)).collect()).await;
    for (number, (row, _)) in rows.iter().enumerate() {
        let transcript = stage
            .exchange(format!("GET http://good.test/row/{number} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
            .await;
        let code = transcript.code();
        assert!(
            transcript.status() == 502 && ["upstream_protocol", "upstream_unreachable"].contains(&code.as_str()),
            "{row}: {}",
            transcript.text()
        );
        assert_eq!(transcript.statuses().len(), 1, "{row}: {}", transcript.text());
        stage.assert_invariants(row, &transcript).await;
    }
}

/// Whether the response is complete by its own framing.
fn is_complete(transcript: &Transcript) -> bool {
    let body = transcript.body();
    match transcript.header("content-length").and_then(|length| length.parse::<usize>().ok()) {
        Some(length) => body.len() == length,
        None => transcript.header("transfer-encoding").is_some() && body.ends_with("0\r\n\r\n"),
    }
}

#[tokio::test]
async fn a_broken_body_never_looks_complete() {
    let rows = [
        ("HP-26 bad chunk", format!("{OK}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nxyz\r\n0\r\n\r\n")),
        (
            "HP-26 chunk overflow",
            format!("{OK}Transfer-Encoding: chunked\r\n\r\nffffffffffffffff1\r\nabc\r\n0\r\n\r\n"),
        ),
        ("HP-26 no CRLF after the chunk", format!("{OK}Transfer-Encoding: chunked\r\n\r\n3\r\nabcd0\r\n\r\n")),
        ("HP-27 cut within a length", format!("{OK}Content-Length: 10\r\n\r\nabc")),
        ("HP-27 cut within a chunk", format!("{OK}Transfer-Encoding: chunked\r\n\r\na\r\nabc")),
        ("HP-27 cut between chunks", format!("{OK}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")),
    ];
    let stage = respond_with(rows.iter().map(|(_, bytes)| (bytes.clone().into_bytes(), true)).collect()).await;
    for (number, (row, _)) in rows.iter().enumerate() {
        let transcript = stage.exchange(format!("GET http://good.test/row/{number} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        assert!(transcript.status() == 502 || !is_complete(&transcript), "{row}: {}", transcript.text());
        assert!(transcript.statuses().len() <= 1, "{row}: {}", transcript.text());
        stage.assert_invariants(row, &transcript).await;
    }
}

#[tokio::test]
async fn a_response_is_forwarded_unchanged() {
    let interim = "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n".repeat(5);
    let rows: Vec<(&str, Vec<u8>, u16, &str)> = vec![
        (
            "HP-26 CL and TE",
            format!("{OK}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n").into(),
            200,
            "hello",
        ),
        (
            "HP-26 two equal lengths",
            format!("{OK}Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello").into(),
            200,
            "hello",
        ),
        ("a few interim responses", format!("{interim}{OK}Content-Length: 5\r\n\r\nhello").into(), 200, "hello"),
        ("no reason phrase", "HTTP/1.1 200 \r\nContent-Length: 5\r\n\r\nhello".into(), 200, "hello"),
        ("HTTP/1.0, until close", "HTTP/1.0 200 OK\r\n\r\nhello".into(), 200, "hello"),
        ("until close", format!("{OK}\r\nhello").into(), 200, "hello"),
        ("an unusual status", "HTTP/1.1 599 Odd\r\nContent-Length: 5\r\n\r\nhello".into(), 599, "hello"),
        ("204", "HTTP/1.1 204 No Content\r\n\r\n".into(), 204, ""),
        ("304", "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n".into(), 304, ""),
        ("HP-28 obs-fold", format!("{OK}X: a\r\n b\r\nContent-Length: 5\r\n\r\nhello").into(), 200, "hello"),
        ("HP-31 obs-text", [OK.as_bytes(), b"X: \xe4\xff\r\nContent-Length: 5\r\n\r\nhello"].concat(), 200, "hello"),
    ];
    let stage = respond_with(rows.iter().map(|(_, bytes, ..)| (bytes.clone(), true)).collect()).await;
    for (number, (row, _, status, body)) in rows.iter().enumerate() {
        let mut conn = Conn::open(stage.sidecar.proxy()).await;
        conn.write(format!("GET http://good.test/row/{number} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await;
        let response = conn.read_response().await;
        let refused = *row == "HP-28 obs-fold" && response.status == 502;
        assert!(
            refused || (response.status, response.text().as_str(), response.complete) == (*status, *body, true),
            "{row}: {response:?}"
        );
        let framing = (response.header("content-length").is_some(), response.header("transfer-encoding").is_some());
        assert_ne!(framing, (true, true), "{row}: {response:?}");
        stage.assert_invariants(row, &Transcript(response.body)).await;
    }
    let transcript =
        stage.exchange("GET http://good.test/row/10 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(transcript.0.windows(2).any(|pair| pair == b"\xe4\xff"), "HP-31: non-ASCII bytes in a field are forwarded");
}

#[tokio::test]
async fn hop_by_hop_fields_and_keybearer_fields_are_removed_from_a_response() {
    let text = format!(
        "{OK}Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nKeybearer-Error: no_route\r\nConnection: X-Hop\r\nX-Hop: 1\r\n\
         Keep-Alive: timeout=9\r\nProxy-Authenticate: Basic\r\nContent-Encoding: gzip\r\nProxy-Status: up; error=x\r\nContent-Length: 3\r\n\r\n\x1f\x0b!"
    );
    let stage = respond_with(vec![(text.into_bytes(), false)]).await;
    let response = raw::get_through(stage.sidecar.proxy(), "http://good.test/row/0", "").await;
    let cookies: Vec<&str> =
        response.headers.iter().filter(|(name, _)| name == "set-cookie").map(|(_, value)| value.as_str()).collect();
    assert_eq!(cookies, ["a=1", "b=2"], "HP-31");
    for name in ["keybearer-error", "x-hop", "keep-alive", "proxy-authenticate"] {
        assert_eq!(response.header(name), None, "{name}");
    }
    assert_eq!(
        (response.header("content-encoding"), response.body.as_slice()),
        (Some("gzip"), &b"\x1f\x0b!"[..]),
        "RS-09"
    );
}

#[tokio::test]
async fn a_response_to_head_has_its_fields_and_no_body() {
    let stage = respond_with(vec![
        (format!("{OK}Content-Length: 1234\r\n\r\n").into_bytes(), false),
        (format!("{OK}Transfer-Encoding: chunked\r\n\r\n").into_bytes(), false),
    ])
    .await;
    let head = |row: u8| format!("HEAD http://good.test/row/{row} HTTP/1.1\r\nHost: x\r\n\r\n");
    let then = "GET http://good.test/next HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    for (row, length) in [(0, Some("1234")), (1, None)] {
        let transcript = stage.exchange(head(row) + then).await;
        assert_eq!(transcript.statuses(), [200, 200], "HEAD {row}: {}", transcript.text());
        assert_eq!(transcript.header("content-length").as_deref(), length, "HEAD {row}: {}", transcript.text());
        stage.assert_invariants("HEAD", &transcript).await;
    }
}

#[tokio::test]
async fn the_proxys_own_responses_identify_author_and_action() {
    let stage = Stage::start("").await;
    let (gone, _) = raw_address().await;
    for (row, target, status, code, action, connection) in [
        ("no route", "http://scoped.test/x", 403, "no_route", "fix_configuration", None),
        ("no mount", "/nowhere", 404, "no_mount", "fix_request", None),
        ("denied", "http://127.0.0.1:1/", 403, "egress_denied", "fix_configuration", None),
        ("unresolvable", "http://nowhere.invalid/", 502, "upstream_unreachable", "retry_later", None),
        ("method", "http://good.test/", 405, "method_refused", "fix_request", None),
    ] {
        let method = if row == "method" { "TRACE" } else { "GET" };
        let transcript =
            stage.exchange(format!("{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await;
        assert_eq!(
            (transcript.status(), transcript.code().as_str()),
            (status, code),
            "HP-33 {row}: {}",
            transcript.text()
        );
        assert_eq!(transcript.header("content-type").as_deref(), Some("application/problem+json"), "HP-33 {row}");
        assert!(
            transcript.header("proxy-status").is_some_and(|value| value.starts_with("keybearer; error=")),
            "HP-33 {row}"
        );
        let problem: serde_json::Value = serde_json::from_str(&transcript.body()).expect("JSON");
        assert_eq!(problem["type"], format!("urn:keybearer:error:{code}"), "HP-33 {row}");
        assert_eq!((&problem["code"], &problem["action"]), (&code.into(), &action.into()), "HP-33 {row}");
        assert_eq!(problem["connection"].as_str(), connection, "HP-33 {row}");
        for member in ["code", "connection", "profile", "action", "link", "request_id"] {
            assert!(problem.get(member).is_some(), "HP-33 {row}: {member} is missing: {problem}");
        }
        assert!(!problem["request_id"].as_str().unwrap_or_default().is_empty(), "HP-33 {row}");
        assert!(!transcript.text().contains(&gone), "HP-33 {row}: internals");
        stage.assert_invariants(row, &transcript).await;
    }
}

/// A loopback address, an internal detail that no response may show, and its port.
async fn raw_address() -> (String, u16) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("a bound listener").port();
    (format!("127.0.0.1:{port}"), port)
}

#[tokio::test]
async fn a_response_is_streamed_unbuffered() {
    let (stage, listener) = Stage::with_raw_good("").await;
    // The upstream sends the next part once the caller has read the previous one.
    let (read, mut part_read) = tokio::sync::mpsc::unbounded_channel();
    let upstream = async {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        next_head(&mut stream).await.expect("a request");
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTrailer: X-Sum, Keybearer-Error\r\nTransfer-Encoding: chunked\r\n\r\n").await.expect("write succeeds");
        for part in ["a", "b", "c", "d"] {
            stream.write_all(format!("7\r\ndata: {part}\r\n").as_bytes()).await.expect("write succeeds");
            let received = tokio::time::timeout(Duration::from_secs(10), part_read.recv()).await;
            assert!(received.is_ok(), "HP-31: the caller does not receive {part}");
        }
        stream
            .write_all(b"0\r\nX-Sum: 7\r\nSet-Cookie: x=y\r\nKeybearer-Error: no_route\r\n\r\n")
            .await
            .expect("write succeeds");
        stream
    };
    let caller = async {
        let mut stream = TcpStream::connect(stage.sidecar.proxy()).await.expect("a connection");
        stream
            .write_all(b"GET http://good.test/ HTTP/1.1\r\nHost: x\r\nTE: trailers\r\nConnection: TE, close\r\n\r\n")
            .await
            .expect("write succeeds");
        let (mut text, mut buffer) = (String::new(), vec![0; 4096]);
        let mut parts = 0;
        loop {
            let count = stream.read(&mut buffer).await.expect("bytes");
            if count == 0 {
                return text;
            }
            text.push_str(&String::from_utf8_lossy(&buffer[..count]));
            if text.matches("data: ").count() > parts {
                parts += 1;
                read.send(()).expect("the upstream waits for it");
            }
        }
    };
    let (_, text) = tokio::join!(upstream, caller);
    assert_eq!(text.matches("data: ").count(), 4, "HP-31: {text}");
    assert!(text.to_lowercase().contains("x-sum: 7") && !text.contains("x=y"), "HP-31 trailers: {text}");
    assert!(!text.contains("no_route"), "HP-31 only the proxy sets Keybearer-Error: {text}");
}

/// The caller reads each interim response before the next is sent.
#[tokio::test]
async fn interim_responses_are_forwarded_at_once() {
    let (stage, listener) = Stage::with_raw_good("").await;
    let tunnel = "CONNECT good.test:80 HTTP/1.1\r\nHost: good.test:80\r\n\r\n";
    for (row, before, target) in [("absolute form", "", "http://good.test/"), ("inside a tunnel", tunnel, "/")] {
        let mut caller = TcpStream::connect(stage.sidecar.proxy()).await.expect("a connection");
        if !before.is_empty() {
            caller.write_all(before.as_bytes()).await.expect("write succeeds");
            assert!(next_head(&mut caller).await.expect("a response").starts_with("HTTP/1.1 200"), "{row}");
        }
        let mut upstream = None;
        for _ in 0..2 {
            caller
                .write_all(
                    format!("POST {target} HTTP/1.1\r\nHost: good.test\r\nContent-Length: 2\r\n\r\nhi").as_bytes(),
                )
                .await
                .expect("write succeeds");
            if upstream.is_none() {
                upstream = Some(listener.accept().await.expect("a connection").0);
            }
            let stream = upstream.as_mut().expect("a connection");
            assert!(next_head(stream).await.expect("a request").starts_with("POST"), "{row}");
            stream.read_exact(&mut [0; 2]).await.expect("the body");
            for interim in ["103 Early Hints", "102 Processing", "103 Early Hints"] {
                let fields = "Link: </x>\r\nKeybearer-Error: no_route\r\nConnection: X-Hop\r\nX-Hop: 1\r\n";
                stream
                    .write_all(format!("HTTP/1.1 {interim}\r\n{fields}\r\n").as_bytes())
                    .await
                    .expect("write succeeds");
                let head =
                    timeout(Duration::from_secs(10), next_head(&mut caller)).await.expect("at once").expect("a head");
                assert!(
                    head.starts_with(&format!("HTTP/1.1 {interim}\r\n")) && head.contains("link: </x>\r\n"),
                    "{row}: {head}"
                );
                assert!(!head.contains("keybearer-error") && !head.contains("x-hop"), "{row}: {head}");
            }
            // 100 is forwarded only to a caller that expects it; a 103 sent with the final response precedes it.
            let last = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n";
            stream
                .write_all(format!("{last}{OK}Content-Length: 2\r\n\r\nok").as_bytes())
                .await
                .expect("write succeeds");
            assert!(next_head(&mut caller).await.expect("a head").starts_with("HTTP/1.1 103"), "{row}");
            assert!(next_head(&mut caller).await.expect("a head").starts_with("HTTP/1.1 200"), "{row}");
            let mut body = [0; 2];
            caller.read_exact(&mut body).await.expect("a body");
            assert_eq!(&body, b"ok", "{row}");
        }
    }
}

#[tokio::test]
async fn interim_responses_are_bounded_and_omitted_for_old_callers() {
    let interim = |count: usize, more: &str| {
        format!("HTTP/1.1 103 Early Hints\r\nLink: </x>{more}\r\n\r\n").repeat(count)
            + OK
            + "Content-Length: 2\r\n\r\nok"
    };
    let large = "x".repeat(9000);
    let rows = [(3000, ""), (1, large.as_str()), (3, "")];
    let stage =
        respond_with(rows.iter().map(|(count, more)| (interim(*count, more).into_bytes(), true)).collect()).await;
    for row in [0, 1] {
        let response = raw::get_through(stage.sidecar.proxy(), &format!("http://good.test/row/{row}"), "").await;
        assert_eq!(
            (response.status, response.code()),
            (502, "upstream_protocol"),
            "HP-29, RS-16 {row}: {}",
            response.text()
        );
        stage.assert_invariants("RS-16", &Transcript(response.body)).await;
    }
    let transcript = stage.exchange("GET http://good.test/row/2 HTTP/1.0\r\nHost: x\r\n\r\n").await;
    assert_eq!(
        (transcript.statuses(), transcript.body().as_str()),
        (vec![200], "ok"),
        "HTTP/1.0: {}",
        transcript.text()
    );
    let mut curl = tokio::process::Command::new("curl");
    let url = format!("http://{}/api/row/2", stage.sidecar.proxy());
    let output = curl.args(["-q", "-sS", "--http2-prior-knowledge", "--max-time", "20", &url]).output().await;
    let output = output.expect("curl is installed");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "ok", "HTTP/2: {}", String::from_utf8_lossy(&output.stderr));
}

/// HP-27, with a reset instead of FIN.
#[tokio::test]
async fn a_response_that_is_reset_never_looks_complete() {
    let (stage, listener) = Stage::with_raw_good("").await;
    for (row, body) in [
        ("within a length", "Content-Length: 10\r\n\r\nabc"),
        ("within a chunk", "Transfer-Encoding: chunked\r\n\r\na\r\nabc"),
        ("between chunks", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"),
    ] {
        let upstream = async {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            next_head(&mut stream).await.expect("a request");
            stream.write_all(format!("{OK}{body}").as_bytes()).await.expect("write succeeds");
            stream
        };
        let caller = async {
            let mut caller = TcpStream::connect(stage.sidecar.proxy()).await.expect("a connection");
            caller.write_all(b"GET http://good.test/ HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("write succeeds");
            caller
        };
        let (stream, mut caller) = tokio::join!(upstream, caller);
        let mut transcript = Vec::new();
        while !transcript.windows(3).any(|part| part == b"abc") {
            transcript.push(caller.read_u8().await.expect("the bytes before the reset"));
        }
        stream.set_zero_linger().expect("the socket option is set");
        drop(stream);
        // The caller's connection may be reset, too.
        let _ = timeout(Duration::from_secs(10), caller.read_to_end(&mut transcript))
            .await
            .expect("closes before the timeout");
        assert!(!is_complete(&Transcript(transcript.clone())), "HP-27 {row}: {}", String::from_utf8_lossy(&transcript));
    }
}

/// RS-08: backpressure from a slow reader reaches the upstream.
#[tokio::test]
async fn a_slow_reader_keeps_memory_flat() {
    const TOTAL: usize = 256 << 20;
    let (stage, listener) = Stage::with_raw_good("").await;
    let upstream = async {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        next_head(&mut stream).await.expect("a request");
        stream.write_all(format!("{OK}Content-Length: {TOTAL}\r\n\r\n").as_bytes()).await.expect("write succeeds");
        let block = vec![b'x'; 1 << 20];
        for _ in 0..TOTAL >> 20 {
            stream.write_all(&block).await.expect("write succeeds");
        }
        stream
    };
    let before = stage.sidecar.resident_kib();
    let caller = async {
        let mut stream = TcpStream::connect(stage.sidecar.proxy()).await.expect("a connection");
        stream
            .write_all(b"GET http://good.test/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .await
            .expect("write succeeds");
        let (mut total, mut highest, mut buffer) = (0, 0, vec![0; 1 << 20]);
        // Reads nothing for a second, long enough for the proxy to buffer all 256 MiB.
        tokio::time::sleep(Duration::from_secs(1)).await;
        loop {
            highest = highest.max(stage.sidecar.resident_kib());
            let count = stream.read(&mut buffer).await.expect("bytes");
            total += count;
            if count == 0 {
                return (total, highest);
            }
        }
    };
    let (_, (total, highest)) = tokio::join!(upstream, caller);
    assert!(total > TOTAL, "RS-08: {total} bytes arrived");
    assert!(highest < before + 16 * 1024, "RS-08: {before} KiB grew to {highest} KiB");
}
