//! CONNECT: cleartext HTTP inside is served for the tunnel's authority alone. Not here: relayed tunnels (`relay`).

mod intercept;
mod relay;
mod websocket;

use std::process::Stdio;

use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use crate::rig::config::{Config, Connection, local};
use crate::rig::interception::{interception, interception_ca};
use crate::rig::peers::{Http2Server, node, peers_path, run_script};
use crate::rig::raw::Conn;
use crate::rig::scripted::Scripted;
use crate::rig::sidecar::Sidecar;
use crate::rig::stage::{Stage, TOKEN, Transcript};
use crate::rig::tunnel_client::read_connect_head;

fn get(target: &str, host: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n")
}

#[tokio::test]
async fn cleartext_http_inside_is_served_with_the_token() {
    let stage = Stage::start("").await;
    let mut conn = stage.open_tunnel("good.test:80", "").await;
    for (row, target, host) in [
        ("origin form", "/1", "good.test"),
        ("explicit port", "/2", "good.test:80"),
        ("capitals", "/3", "GOOD.test"),
        ("absolute form", "http://good.test/4", "good.test"),
        ("absolute form with port", "http://good.test:80/5", "good.test"),
    ] {
        conn.write(get(target, host).as_bytes()).await;
        let response = conn.read_response().await;
        assert_eq!((response.status, response.text().as_str()), (200, "ok"), "{row}");
        let received = stage.good.received();
        let last = received.last().expect("a request");
        assert_eq!(last.values("authorization"), [format!("Bearer {TOKEN}")], "{row}");
        assert_eq!(last.values("host"), ["good.test"], "{row}");
    }
    assert_eq!(stage.good.count(), 5);
    let mut conn = stage.open_tunnel("evil.test:80", "").await;
    conn.write(get("/", "evil.test").as_bytes()).await;
    assert_eq!(conn.read_response().await.status, 200, "an unmatched host");
    stage.assert_invariants("tunnels", &Transcript(Vec::new())).await;
}

#[tokio::test]
async fn connect_works_over_http_1_0_and_with_early_data() {
    let stage = Stage::start("").await;
    let mut conn = Conn::open(stage.sidecar.proxy()).await;
    conn.write(b"CONNECT good.test:80 HTTP/1.0\r\n\r\n").await;
    let head = read_connect_head(&mut conn).await;
    assert!(head.starts_with("HTTP/1.0 200") || head.starts_with("HTTP/1.1 200"), "HTTP/1.0: {head}");
    conn.write(get("/", "good.test").as_bytes()).await;
    assert_eq!(conn.read_response().await.status, 200, "HTTP/1.0");

    let mut conn = Conn::open(stage.sidecar.proxy()).await;
    conn.write(
        format!("CONNECT good.test:80 HTTP/1.1\r\nHost: good.test:80\r\n\r\n{}", get("/together", "good.test"))
            .as_bytes(),
    )
    .await;
    assert!(read_connect_head(&mut conn).await.contains(" 200"), "together");
    assert_eq!(conn.read_response().await.status, 200, "bytes sent together with the head");
    assert!(stage.good.received().iter().any(|request| request.request_line().contains("/together")));
}

#[tokio::test]
async fn another_authority_inside_is_421_each_time() {
    let stage = Stage::start("").await;
    let mut conn = stage.open_tunnel("good.test:80", "").await;
    for (row, target, host) in [
        ("CI-03 Host", "/", "evil.test"),
        ("CI-03 Host again", "/", "evil.test"),
        ("CI-03 port", "/", "good.test:81"),
        ("CI-04 absolute form", "http://evil.test/", "good.test"),
        ("CI-04 other scheme", "https://good.test/", "good.test"),
        ("CI-04 other port", "http://good.test:81/", "good.test"),
    ] {
        conn.write(get(target, host).as_bytes()).await;
        let response = conn.read_response().await;
        assert_eq!((response.status, response.code()), (421, "authority_mismatch"), "{row}");
    }
    conn.write(get("/", "good.test").as_bytes()).await;
    assert_eq!(conn.read_response().await.status, 200, "the tunnel remains usable");
    let mut conn = stage.open_tunnel("evil.test:80", "").await;
    conn.write(get("/", "good.test").as_bytes()).await;
    assert_eq!(conn.read_response().await.status, 421, "TC-03: a tunnel to evil with good's Host");
    assert_eq!((stage.good.count(), stage.evil.count()), (1, 0));
    for bytes in ["GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nHost: good.test\r\nHost: good.test\r\n\r\n"] {
        let mut conn = stage.open_tunnel("good.test:80", "").await;
        conn.write(bytes.as_bytes()).await;
        assert_eq!(conn.read_response().await.status, 400, "{bytes}");
    }
    stage.assert_invariants("CI-03", &Transcript(Vec::new())).await;
}

#[tokio::test]
async fn bytes_that_are_not_http_close_the_tunnel() {
    let stage = Stage::start("").await;
    let mut conn = stage.open_tunnel("good.test:80", "").await;
    conn.write(b"\x16\x03\x01\x00\x05hello").await;
    assert!(conn.is_closed().await, "TLS");
    stage.sidecar.wait_for_log("only http routes of this host and port").await;
    let mut conn = stage.open_tunnel("good.test:80", "").await;
    conn.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n").await;
    let mut rest = Vec::new();
    let _ = conn.stream.read_to_end(&mut rest).await;
    assert!(!String::from_utf8_lossy(&rest).contains(TOKEN), "CI-12");
    assert_eq!(stage.good.count(), 0, "CI-12");
    let mut conn = stage.open_tunnel("good.test:80", "").await;
    conn.stream.shutdown().await.expect("a half-close");
    assert!(conn.is_closed().await, "an empty tunnel");
    stage.assert_invariants("CI-12", &Transcript(rest)).await;
}

#[tokio::test]
async fn connect_accepts_only_host_and_port() {
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
        let transcript = stage
            .exchange(format!("CONNECT {target} HTTP/1.1\r\nHost: good.test\r\n\r\n{}", get("/", "good.test")))
            .await;
        assert_eq!(transcript.status(), 400, "CI-08 {target}: {}", transcript.text());
        assert_eq!(
            stage.good.received().iter().filter(|r| r.request_line() == "GET / HTTP/1.1").count(),
            0,
            "CI-08 {target}"
        );
        stage.assert_invariants(target, &transcript).await;
    }
    let mut conn = stage.open_tunnel("good.test:80", "").await;
    conn.write(b"CONNECT good.test:80 HTTP/1.1\r\nHost: good.test:80\r\n\r\n").await;
    assert_eq!(conn.read_response().await.status, 400, "a tunnel inside a tunnel");
}

#[tokio::test]
async fn a_tunnel_to_a_private_address_is_refused() {
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
        let transcript = stage
            .exchange(format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n{}", get("/", &authority)))
            .await;
        assert_eq!(transcript.statuses().first(), Some(&403), "CI-06 {host}: {}", transcript.text());
        assert!(transcript.text().contains("address"), "CI-06 {host}: {}", transcript.text());
    }
}

/// CI-10, and RFC 9931 §5: bytes sent into a tunnel before its refusal are discarded.
#[tokio::test]
async fn a_refused_connect_closes_its_connection_and_discards_early_data() {
    let stage = Stage::start("callers: [{name: billing, secret: s3cret}]\nlimits: {head: 8KiB}\n").await;
    let known = format!("Proxy-Authorization: Basic {}\r\n", BASE64_STANDARD.encode("billing:s3cret"));
    let early = format!("GET http://good.test/early HTTP/1.1\r\nHost: good.test\r\n{known}\r\n");
    let long = format!("{known}X-Long: {}\r\n", "x".repeat(9000));
    for (row, authority, lines, status) in [
        ("no credential", "good.test:80", "", 407),
        ("a wrong credential", "good.test:80", "Proxy-Authorization: Bearer x\r\n", 407),
        ("gRPC", "good.test:80", "Content-Type: application/grpc\r\n", 407),
        ("gRPC to a denied address", "127.0.0.1:443", &format!("{known}Content-Type: application/grpc+proto\r\n"), 403),
        ("a body", "good.test:80", &format!("{known}Content-Length: {}\r\n", early.len()), 400),
        ("an empty body", "good.test:80", &format!("{known}Content-Length: 0\r\n"), 400),
        ("a chunked body", "good.test:80", &format!("{known}Transfer-Encoding: chunked\r\n"), 400),
        ("no port", "good.test", &known, 400),
        ("a denied address", "127.0.0.1:443", &known, 403),
        ("a port not in connect_ports", "evil.test:22", &known, 403),
        ("a head that is too large", "good.test:80", &long, 431),
    ] {
        let connect = format!("CONNECT {authority} HTTP/1.1\r\nHost: good.test\r\n{lines}\r\n");
        // Early data with the head, and after the response.
        let mut conn = Conn::open(stage.sidecar.proxy()).await;
        conn.write(format!("{connect}{early}").as_bytes()).await;
        let response = conn.read_response().await;
        assert_eq!(
            (response.status, response.header("connection")),
            (status, Some("close")),
            "{row}: {}",
            response.text()
        );
        assert_eq!(response.json()["code"], response.code(), "{row}: it is a problem document");
        conn.write(early.as_bytes()).await;
        assert!(conn.is_closed().await, "{row}: another response, or an open connection");
        let transcript = stage.exchange(format!("{connect}{early}{early}")).await;
        assert_eq!(transcript.statuses(), [status], "{row}: {}", transcript.text());
        assert_eq!(stage.good.count(), 0, "{row}: early data reached good");
    }
    let many = format!("CONNECT good.test:80 HTTP/1.1\r\nHost: x\r\n\r\n{}", early.repeat(500));
    assert_eq!(stage.exchange(many).await.statuses(), [407], "the response arrives despite much early data");
    let mut conn = stage.open_tunnel("good.test:80", &known).await;
    conn.write(
        format!("CONNECT good.test:80 HTTP/1.1\r\nHost: good.test:80\r\n\r\n{}", get("/early", "good.test")).as_bytes(),
    )
    .await;
    assert_eq!(conn.read_response().await.status, 400, "a tunnel inside a tunnel");
    assert!(conn.is_closed().await && stage.good.count() == 0, "early data in it is discarded");
}

#[tokio::test]
async fn a_refused_connect_over_http2_ends_only_its_stream() {
    let stage = Stage::start("callers: [{name: billing, secret: s3cret}]\n").await;
    let connect = |lines: serde_json::Value| {
        let mut headers = json!({ ":authority": "good.test:80" });
        headers.as_object_mut().expect("a JSON object").extend(lines.as_object().expect("a JSON object").clone());
        let body_bytes = if headers.get("content-length").is_some() { 0 } else { 1000 };
        json!({ "method": "CONNECT", "headers": headers, "body_bytes": body_bytes })
    };
    let known = json!({ "proxy-authorization": "Bearer s3cret" });
    let options = json!({ "origin": stage.sidecar.proxy_url(), "requests": [
        connect(json!({})),
        connect(json!({ "content-type": "application/grpc" })),
        connect(json!({ "proxy-authorization": "Bearer s3cret", "content-length": "0" })),
        { "path": "/x", "headers": { ":authority": "good.test", "proxy-authorization": known["proxy-authorization"] } },
    ] });
    let responses = run_script(node(), "clients/h2.mjs", &[&options.to_string()], &[]).await;
    let statuses: Vec<_> =
        responses.as_array().expect("responses").iter().map(|response| response["status"].clone()).collect();
    assert_eq!(statuses, [407, 407, 400, 200], "{responses}\n{}", stage.sidecar.log());
    assert_eq!(responses[1]["headers"]["content-type"], "application/problem+json", "{responses}");
    assert_eq!(stage.good.count(), 1);
}

/// These libraries send the credential only after 407, on another connection.
#[tokio::test]
async fn callers_that_authenticate_after_407_get_their_tunnel() {
    let tokens = Scripted::tokens(3600).await;
    let upstream = Http2Server::start(json!({})).await;
    let config = Config::new().trust_peers().top(interception()).top("callers: [{name: billing, secret: s3cret}]\n");
    let crm = Connection::at("crm", &tokens).route("host: api.test");
    let sidecar = Sidecar::start(config.host("api.test", local(upstream.port())).connection(crm)).await;
    let (ca, proxy) = (interception_ca().0.display().to_string(), sidecar.proxy());
    let port = proxy.port().to_string();
    let store = sidecar.dir.path().join("trust.p12").display().to_string();
    let mut keytool = Command::new("keytool");
    keytool.args(["-importcert", "-noprompt", "-alias", "ca", "-storetype", "PKCS12", "-storepass", "changeit"]);
    let made = keytool.args(["-file", &ca, "-keystore", &store]).output().await.expect("keytool is installed");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let java = |more: &[&str]| {
        let mut java = Command::new("java");
        for (name, value) in [
            ("https.proxyHost", "127.0.0.1"),
            ("https.proxyPort", port.as_str()),
            ("javax.net.ssl.trustStore", store.as_str()),
            ("javax.net.ssl.trustStorePassword", "changeit"),
            ("jdk.http.auth.tunneling.disabledSchemes", ""),
            ("proxy.user", "billing"),
            ("proxy.password", "s3cret"),
        ] {
            java.arg(format!("-D{name}={value}"));
        }
        java.arg("-Xshare:auto").arg(peers_path("clients/Get.java")).arg("https://api.test/echo").args(more);
        java
    };
    let curl = |more: &[&str]| {
        let mut curl = Command::new("curl");
        curl.args(["-q", "-sS", "--max-time", "20", "-o", "/dev/null", "-w", "%{http_code}", "--cacert", &ca])
            .args(more);
        curl.args(["-x", &format!("http://{proxy}"), "--proxy-user", "billing:s3cret", "https://api.test/echo"]);
        curl
    };
    for (row, mut client) in [
        ("curl --proxy-anyauth", curl(&["--proxy-anyauth"])),
        ("curl --proxy-basic", curl(&["--proxy-basic"])),
        ("Java's HttpClient", java(&[])),
        ("Java's URLConnection", java(&["URLConnection"])),
    ] {
        let output = client.stdin(Stdio::null()).kill_on_drop(true).output().await.expect("the command starts");
        let status = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        assert_eq!(status, "200", "{row}: {}\n{}", String::from_utf8_lossy(&output.stderr), sidecar.log());
    }
}

#[tokio::test]
async fn the_credential_of_connect_applies_to_the_whole_tunnel() {
    let stage = Stage::start("callers: [{name: billing, secret: s3cret}, {name: home, cidr: [10.0.0.0/8]}]\n").await;
    let mut conn = Conn::open(stage.sidecar.proxy()).await;
    let connect = "CONNECT good.test:80 HTTP/1.1\r\nHost: good.test:80\r\n";
    conn.write(format!("{connect}\r\n").as_bytes()).await;
    let response = conn.read_response().await;
    assert_eq!((response.status, response.code()), (407, "caller_unknown"));
    assert!(response.header("proxy-authenticate").is_some());
    assert!(conn.is_closed().await, "after 407");
    let mut conn = Conn::open(stage.sidecar.proxy()).await;
    let credential = BASE64_STANDARD.encode("billing:s3cret");
    conn.write(format!("{connect}Proxy-Authorization: Basic {credential}\r\n\r\n").as_bytes()).await;
    assert!(read_connect_head(&mut conn).await.starts_with("HTTP/1.1 200"), "with a credential");
    for path in ["/1", "/2"] {
        conn.write(get(path, "good.test").as_bytes()).await;
        assert_eq!(conn.read_response().await.status, 200, "{path}");
    }
    let received = stage.good.received();
    assert!(received.len() == 2 && received.iter().all(|request| request.values("proxy-authorization").is_empty()));
}
