//! Which messages have content, and where it ends: HEAD.

use http::{Method, Request};
use rustls::pki_types::ServerName;

use crate::intercept::{interception, interception_ca};
use crate::rig::http2::Http2;
use crate::rig::inside;
use crate::rig::raw::Conn;
use crate::stage::Stage;

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
        let said = stage.say(format!("HEAD {target} HTTP/1.1\r\n{lines}")).await;
        assert_eq!((said.code().as_str(), said.body().as_str()), (*code, ""), "{}", said.text());
        assert_ne!(said.header("content-length").as_deref(), Some("0"), "{}", said.text());
    }
    let mut conn = Conn::open(here).await;
    conn.write(b"CONNECT secure.test:443 HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Bearer s3cret\r\n\r\n").await;
    assert!(crate::tunnel::opened(&mut conn).await.contains(" 200 "));
    let connector = inside::connector(&interception_ca().0, &[b"h2"]);
    let name = ServerName::try_from("secure.test").expect("a name");
    let stream = connector.connect(name, conn.stream).await.expect("a handshake");
    let request = Request::head("https://else.test/").body(()).expect("a request");
    let read = Http2::over(stream).await.send(request).await;
    assert_eq!((read.code(), read.reset, read.body.len()), ("authority_mismatch", None, 0), "{read:?}");
}
