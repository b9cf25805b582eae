//! Which messages have content, and where it ends: HEAD, GET with a body, HTTP/1.0 callers.

use std::time::Duration;

use http::{Method, Request};
use rustls::pki_types::ServerName;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use crate::rig::frames::{self, FrameServer, NO_ERROR, STATUS_200};
use crate::rig::http2::Http2;
use crate::rig::interception::{interception, interception_ca};
use crate::rig::peers::Peers;
use crate::rig::raw::{self, Conn};
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::Sidecar;
use crate::rig::stage::Stage;
use crate::rig::tunnel_client;

const TIMEOUT: Duration = Duration::from_secs(20);
/// `hello`, chunked.
const CHUNKS: &str = "5\r\nhello\r\n0\r\n\r\n";
const CHUNKED: &str = "Transfer-Encoding: chunked\r\n\r\n";

/// RFC 9110 §9.3.2.
#[tokio::test]
async fn a_problem_in_response_to_head_has_no_content() {
    let top = format!("callers: [{{name: billing, secret: s3cret}}]\n{}", interception());
    let stage = Stage::start(&top).await;
    let here = stage.sidecar.proxy();
    let (forward, mount) = ("proxy-authorization", "keybearer-authorization");
    let rows = [
        (here.to_string(), "/no", mount, "no_mount"),
        ("scoped.test".to_owned(), "/v2", forward, "no_route"),
        ("scoped.test".to_owned(), "/v1/../x", forward, "bad_request_target"),
        ("127.0.0.2".to_owned(), "/", forward, "egress_denied"),
        ("good.test".to_owned(), "/", "x-none", "caller_unknown"),
    ];
    let mut http2 = Http2::open(&stage.sidecar).await;
    for (authority, path, field, code) in &rows {
        let request = |method| {
            let head = Request::builder().method(method).uri(format!("http://{authority}{path}"));
            head.header(*field, "Bearer s3cret").body(()).expect("a request")
        };
        let (head, get) = (http2.send(request(Method::HEAD)).await, http2.send(request(Method::GET)).await);
        assert_eq!((head.code(), head.reset, head.body.len()), (*code, None, 0), "{head:?}");
        assert_eq!(head.status, get.status, "{code}");
        assert_eq!(head.headers["content-length"], get.body.len().to_string(), "{code}");
        let lines = format!("Host: {authority}\r\n{field}: Bearer s3cret\r\nConnection: close\r\n\r\n");
        let target = if *code == "no_mount" { (*path).to_owned() } else { format!("http://{authority}{path}") };
        let transcript = stage.exchange(format!("HEAD {target} HTTP/1.1\r\n{lines}")).await;
        assert_eq!((transcript.code().as_str(), transcript.body().as_str()), (*code, ""), "{}", transcript.text());
        assert_ne!(transcript.header("content-length").as_deref(), Some("0"), "{}", transcript.text());
    }
    let mut conn = Conn::open(here).await;
    conn.write(b"CONNECT secure.test:443 HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Bearer s3cret\r\n\r\n").await;
    assert!(tunnel_client::read_connect_head(&mut conn).await.contains(" 200 "));
    let connector = tunnel_client::connector(&interception_ca().0, &[b"h2"]);
    let name = ServerName::try_from("secure.test").expect("a name");
    let stream = connector.connect(name, conn.stream).await.expect("a handshake");
    let request = Request::head("https://else.test/").body(()).expect("a request");
    let read = Http2::on(stream).await.send(request).await;
    assert_eq!((read.code(), read.reset, read.body.len()), ("authority_mismatch", None, 0), "{read:?}");
}

#[tokio::test]
async fn content_of_unknown_length_is_forwarded_for_every_method() {
    let stage = Stage::start("").await;
    let here = stage.sidecar.proxy();
    let mut http2 = Http2::open(&stage.sidecar).await;
    for method in ["GET", "HEAD", "DELETE", "OPTIONS", "POST"] {
        for target in ["http://good.test/x", "http://good.test:81/x", "/api/x"] {
            let check = |row: &str| {
                let request = stage.good.received().pop().expect("a request");
                assert!(request.head.starts_with(method), "{row}: {}", request.head);
                let framing = (request.values("transfer-encoding"), request.values("content-length"));
                assert_eq!(framing, (vec!["chunked"], vec![]), "{method} {target} {row}: {}", request.head);
                assert_eq!(String::from_utf8_lossy(&request.body), CHUNKS, "{method} {target} {row}");
            };
            let head = format!("{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{CHUNKED}");
            let transcript = stage.exchange(head + CHUNKS).await;
            assert_eq!(transcript.status(), 200, "{method} {target}: {}", transcript.text());
            check("chunked");
            let method = Method::from_bytes(method.as_bytes()).expect("a method");
            let uri = if target.starts_with('/') { format!("http://{here}{target}") } else { target.to_owned() };
            let request = Request::builder().method(method).uri(uri).body(()).expect("a request");
            let read = http2.send_with(request, Some(b"hello")).await;
            assert_eq!((read.status, read.reset), (200, None), "{target}: {read:?}");
            check("HTTP/2");
        }
    }
    // An END_STREAM without data is no content.
    for body in [None, Some(&b""[..])] {
        let request = Request::get("http://good.test/x").body(()).expect("a request");
        assert_eq!(http2.send_with(request, body).await.status, 200);
        let request = stage.good.received().pop().expect("a request");
        let framing = (request.values("transfer-encoding"), request.values("content-length"));
        assert_eq!(framing, (vec![], vec![]), "{body:?}: {}", request.head);
    }
}

#[tokio::test]
async fn content_of_a_get_is_replayed_after_a_rejected_token() {
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
    let head = format!("GET http://api.test/ HTTP/1.1\r\nHost: api.test\r\n{CHUNKED}");
    assert_eq!(raw::send(sidecar.proxy(), (head + CHUNKS).as_bytes()).await.status, 200);
    let bodies: Vec<_> =
        server.received().iter().map(|request| String::from_utf8_lossy(&request.body).into_owned()).collect();
    assert_eq!(bodies, [CHUNKS, CHUNKS]);
}

/// Over HTTP/1.0 the close of the connection ends a response (RFC 9112 §8), so a truncated one must end with a reset.
#[tokio::test]
async fn a_truncated_response_over_http_1_0_ends_with_a_reset() {
    let chunked = |more: &str| format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n{more}");
    let whole = chunked("0\r\n\r\n").into_bytes();
    let stage = Stage::with_reply("timeouts: {idle: 1s}\n", move |request, _| match request.request_line() {
        line if line.contains("/whole") => Reply::Bytes(whole.clone()),
        line if line.contains("/silent") => Reply::Bytes(chunked("").into_bytes()),
        _ => Reply::BytesThenClose(chunked("").into_bytes()),
    })
    .await;
    let server = FrameServer::start(|at, _| {
        Reply::Bytes(
            [frames::head(at, 0, STATUS_200), frames::data(at, 0, b"abc"), frames::reset(at, NO_ERROR)].concat(),
        )
    })
    .await;
    let tokens = Scripted::tokens(3600).await;
    let intercepting = Sidecar::start(&format!(
        "hosts: {{api.test: \"{}\"}}\ntrust: [{}]\n{}connections:\n- {{name: crm, client_id: a, client_secret: b, \
         token_url: \"http://{}/token\", routes: [{{host: api.test}}]}}\n",
        server.address,
        Peers::certs().ca.display(),
        interception(),
        tokens.address
    ))
    .await;
    let get = |target: &str| format!("GET {target} HTTP/1.0\r\nHost: api.test\r\n\r\n");
    let mut ends = Vec::new();
    for (sidecar, target) in [
        (&stage.sidecar, "http://good.test/whole"),
        (&stage.sidecar, "/api/cut"),
        (&stage.sidecar, "http://good.test/silent"),
        (&intercepting, "https://api.test/"),
    ] {
        let mut conn = Conn::open(sidecar.proxy()).await;
        conn.write(get(target).as_bytes()).await;
        ends.push((target, end(&mut conn.stream).await));
    }
    // A lingering close would otherwise follow an upload that is not read to its end.
    let mut conn = Conn::open(intercepting.proxy()).await;
    conn.write(b"POST https://api.test/ HTTP/1.0\r\nContent-Length: 10\r\n\r\nabc").await;
    ends.push(("an upload", end(&mut conn.stream).await));
    let mut conn = Conn::open(intercepting.proxy()).await;
    conn.write(b"CONNECT api.test:443 HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(tunnel_client::read_connect_head(&mut conn).await.contains(" 200 "));
    let name = ServerName::try_from("api.test").expect("a name");
    let stream =
        tunnel_client::connector(&interception_ca().0, &[]).connect(name, conn.stream).await.expect("a handshake");
    let mut conn = Conn::on(stream);
    conn.write(get("/").as_bytes()).await;
    // TLS sends no close_notify either way; the connection below it shows the reset.
    let mut below = conn.stream.into_inner().0;
    ends.push(("inside TLS", end(&mut below).await));
    for (target, (read, kind)) in &ends {
        let expected = if target.ends_with("/whole") { None } else { Some(std::io::ErrorKind::ConnectionReset) };
        assert_eq!(*kind, expected, "{target}: {}", String::from_utf8_lossy(read));
    }
    assert!(ends[0].1.0.ends_with(b"\r\n\r\nabc"), "{:?}", ends[0]);
}

/// Reads until the connection ends. Returns the bytes, and the error if it ended with one.
async fn end<T: tokio::io::AsyncRead + Unpin>(stream: &mut T) -> (Vec<u8>, Option<std::io::ErrorKind>) {
    let mut read = Vec::new();
    let end = timeout(TIMEOUT, stream.read_to_end(&mut read)).await.expect("closes before the timeout");
    (read, end.err().map(|error| error.kind()))
}
