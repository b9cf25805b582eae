//! CONNECT: plain HTTP inside is served for the tunnel's authority alone. Not here: what is relayed (`relay`).

use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::rig::raw::Conn;
use crate::stage::{Said, Stage, TOKEN};

/// A tunnel to `authority`, open.
pub async fn open(stage: &Stage, authority: &str, lines: &str) -> Conn {
    let mut conn = Conn::open(stage.sidecar.proxy()).await;
    conn.write(format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{lines}\r\n").as_bytes()).await;
    assert!(opened(&mut conn).await.starts_with("HTTP/1.1 200"), "{authority}");
    conn
}

/// The head of the answer to CONNECT: nothing follows it.
pub async fn opened(conn: &mut Conn) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let read =
            tokio::time::timeout(Duration::from_secs(10), conn.stream.read_u8()).await.expect("an answer in time");
        let Ok(byte) = read else { break };
        head.push(byte);
    }
    String::from_utf8_lossy(&head).into_owned()
}

fn get(target: &str, host: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n")
}

#[tokio::test]
async fn plain_http_inside_is_served_with_the_token() {
    let stage = Stage::start("").await;
    let mut conn = open(&stage, "good.test:80", "").await;
    for (row, target, host) in [
        ("origin form", "/1", "good.test"),
        ("port written out", "/2", "good.test:80"),
        ("capitals", "/3", "GOOD.test"),
        ("absolute form", "http://good.test/4", "good.test"),
        ("absolute form with port", "http://good.test:80/5", "good.test"),
    ] {
        conn.write(get(target, host).as_bytes()).await;
        let answer = conn.answer().await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "ok"), "{row}");
        let received = stage.good.received();
        let last = received.last().expect("a request");
        assert_eq!(last.values("authorization"), [format!("Bearer {TOKEN}")], "{row}");
        assert_eq!(last.values("host"), ["good.test"], "{row}");
    }
    assert_eq!(stage.good.count(), 5);
    let mut conn = open(&stage, "evil.test:80", "").await;
    conn.write(get("/", "evil.test").as_bytes()).await;
    assert_eq!(conn.answer().await.status, 200, "an unmatched host");
    stage.holds("tunnels", &Said(Vec::new())).await;
}

#[tokio::test]
async fn the_head_of_connect_may_come_in_any_way() {
    let stage = Stage::start("").await;
    let mut conn = Conn::open(stage.sidecar.proxy()).await;
    conn.write(b"CONNECT good.test:80 HTTP/1.0\r\n\r\n").await;
    let head = opened(&mut conn).await;
    assert!(head.starts_with("HTTP/1.0 200") || head.starts_with("HTTP/1.1 200"), "HTTP/1.0: {head}");
    conn.write(get("/", "good.test").as_bytes()).await;
    assert_eq!(conn.answer().await.status, 200, "HTTP/1.0");

    let mut conn = Conn::open(stage.sidecar.proxy()).await;
    conn.write(
        format!("CONNECT good.test:80 HTTP/1.1\r\nHost: good.test:80\r\n\r\n{}", get("/together", "good.test"))
            .as_bytes(),
    )
    .await;
    assert!(opened(&mut conn).await.contains(" 200"), "together");
    assert_eq!(conn.answer().await.status, 200, "bytes sent together with the head");
    assert!(stage.good.received().iter().any(|request| request.request_line().contains("/together")));
}

#[tokio::test]
async fn another_authority_inside_is_421_each_time() {
    let stage = Stage::start("").await;
    let mut conn = open(&stage, "good.test:80", "").await;
    for (row, target, host) in [
        ("CI-03 Host", "/", "evil.test"),
        ("CI-03 Host again", "/", "evil.test"),
        ("CI-03 port", "/", "good.test:81"),
        ("CI-04 absolute form", "http://evil.test/", "good.test"),
        ("CI-04 other scheme", "https://good.test/", "good.test"),
        ("CI-04 other port", "http://good.test:81/", "good.test"),
    ] {
        conn.write(get(target, host).as_bytes()).await;
        let answer = conn.answer().await;
        assert_eq!((answer.status, answer.code()), (421, "authority_mismatch"), "{row}");
    }
    conn.write(get("/", "good.test").as_bytes()).await;
    assert_eq!(conn.answer().await.status, 200, "the tunnel stays usable");
    let mut conn = open(&stage, "evil.test:80", "").await;
    conn.write(get("/", "good.test").as_bytes()).await;
    assert_eq!(conn.answer().await.status, 421, "TC-03: a tunnel to evil with good's Host");
    assert_eq!((stage.good.count(), stage.evil.count()), (1, 0));
    for bytes in ["GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nHost: good.test\r\nHost: good.test\r\n\r\n"] {
        let mut conn = open(&stage, "good.test:80", "").await;
        conn.write(bytes.as_bytes()).await;
        assert_eq!(conn.answer().await.status, 400, "{bytes}");
    }
    stage.holds("CI-03", &Said(Vec::new())).await;
}

#[tokio::test]
async fn what_is_not_http_closes_the_tunnel() {
    let stage = Stage::start("").await;
    let mut conn = open(&stage, "good.test:80", "").await;
    conn.write(b"\x16\x03\x01\x00\x05hello").await;
    assert!(conn.is_closed().await, "TLS");
    stage.sidecar.logged("of this host and port is for http").await;
    let mut conn = open(&stage, "good.test:80", "").await;
    conn.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n").await;
    let mut rest = Vec::new();
    let _ = conn.stream.read_to_end(&mut rest).await;
    assert!(!String::from_utf8_lossy(&rest).contains(TOKEN), "CI-12");
    assert_eq!(stage.good.count(), 0, "CI-12");
    let mut conn = open(&stage, "good.test:80", "").await;
    conn.stream.shutdown().await.expect("a half-close");
    assert!(conn.is_closed().await, "nothing inside");
    stage.holds("CI-12", &Said(rest)).await;
}

#[tokio::test]
async fn connect_takes_host_and_port_alone() {
    let stage = Stage::start("").await;
    for target in [
        "good.test",
        "good.test:0",
        "good.test:65536",
        "good.test:http",
        "good.test:",
        "u@good.test:80",
        "u:p@good.test:80",
        "good.test:80/x",
        "http://good.test:80",
        "http://good.test:80/",
        "/x",
        "*",
        ":80",
        "good.test,evil.test:80",
        "2130706433:80",
        "0x7f000001:80",
    ] {
        let said =
            stage.say(format!("CONNECT {target} HTTP/1.1\r\nHost: good.test\r\n\r\n{}", get("/", "good.test"))).await;
        assert_eq!(said.status(), 400, "CI-08 {target}: {}", said.text());
        assert_eq!(
            stage.good.received().iter().filter(|r| r.request_line() == "GET / HTTP/1.1").count(),
            0,
            "CI-08 {target}"
        );
        stage.holds(target, &said).await;
    }
    let mut conn = open(&stage, "good.test:80", "").await;
    conn.write(b"CONNECT good.test:80 HTTP/1.1\r\nHost: good.test:80\r\n\r\n").await;
    assert_eq!(conn.answer().await.status, 400, "a tunnel inside a tunnel");
}

#[tokio::test]
async fn addresses_are_checked_for_a_tunnel_too() {
    let stage = Stage::start("").await;
    for host in [
        "127.0.0.1",
        "localhost",
        "169.254.169.254",
        "[::ffff:169.254.169.254]",
        "[fd00:ec2::254]",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",
    ] {
        let authority = format!("{host}:443");
        let said = stage
            .say(format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n{}", get("/", &authority)))
            .await;
        assert_eq!(said.statuses().first(), Some(&403), "CI-06 {host}: {}", said.text());
        assert!(said.text().contains("address"), "CI-06 {host}: {}", said.text());
    }
}

#[tokio::test]
async fn connect_with_a_body_is_no_desync() {
    let stage = Stage::start("").await;
    for lines in ["Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n"] {
        let bytes = format!(
            "CONNECT good.test:80 HTTP/1.1\r\nHost: good.test:80\r\n{lines}\r\n0\r\n\r\n{}",
            get("http://evil.test/", "evil.test")
        );
        let said = stage.say(bytes).await;
        assert_eq!(stage.evil.count(), 0, "CI-10 {lines}: {}", said.text());
        stage.holds("CI-10", &said).await;
    }
}

#[tokio::test]
async fn a_callers_credential_holds_for_its_tunnel() {
    let stage = Stage::start("callers: [{name: billing, secret: s3cret}, {name: home, cidr: [10.0.0.0/8]}]\n").await;
    let mut conn = Conn::open(stage.sidecar.proxy()).await;
    let connect = "CONNECT good.test:80 HTTP/1.1\r\nHost: good.test:80\r\n";
    conn.write(format!("{connect}\r\n").as_bytes()).await;
    let answer = conn.answer().await;
    assert_eq!((answer.status, answer.code()), (407, "caller_unknown"));
    assert!(answer.header("proxy-authenticate").is_some());
    let credential = BASE64_STANDARD.encode("billing:s3cret");
    conn.write(format!("{connect}Proxy-Authorization: Basic {credential}\r\n\r\n").as_bytes()).await;
    assert!(opened(&mut conn).await.starts_with("HTTP/1.1 200"), "the connection stays usable after 407");
    for path in ["/1", "/2"] {
        conn.write(get(path, "good.test").as_bytes()).await;
        assert_eq!(conn.answer().await.status, 200, "{path}");
    }
    let received = stage.good.received();
    assert!(received.len() == 2 && received.iter().all(|request| request.values("proxy-authorization").is_empty()));
}
