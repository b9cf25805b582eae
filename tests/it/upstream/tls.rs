//! TLS with upstreams: accepted server certificates, and how failures are reported.

use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};

use crate::rig::config::{Config, Connection, local};
use crate::rig::front::{Front, SelfSigned};
use crate::rig::raw::{self, RawResponse};
use crate::rig::redis::Redis;
use crate::rig::scripted::Scripted;
use crate::rig::sidecar::Sidecar;

/// A configuration with a route for each of `hosts` (name, port); `tls` is its `upstream_tls`.
fn config(top: &str, hosts: &[(&str, u16)], tls: &str, token_url: &str, server: &str) -> String {
    let addresses: String = hosts.iter().map(|(name, port)| format!("{name}: \"127.0.0.1:{port}\", ")).collect();
    let routes: String = hosts.iter().map(|(name, _)| format!("{{host: {name}, upstream_tls: {tls}}}, ")).collect();
    format!(
        "hosts: {{{addresses}}}\n{top}connections:\n- {{name: crm, client_id: a, client_secret: b, token_url: \"{token_url}\", {server}\
         routes: [{routes}]}}\n"
    )
}

async fn get(sidecar: &Sidecar, url: &str) -> RawResponse {
    raw::get_through(sidecar.proxy(), url, "").await
}

#[tokio::test]
async fn a_server_certificate_listed_in_trust_is_accepted_at_every_trust_setting() {
    let own = SelfSigned::for_names("DNS:own.test,DNS:idp.test,DNS:localhost,IP:127.0.0.1");
    let other = SelfSigned::for_names("DNS:own.test");
    let files = [("own.pem", own.certificate.as_str()), ("other.pem", other.certificate.as_str())];
    let (upstream, tokens, redis) = (Scripted::upstream().await, Scripted::tokens(3600).await, Redis::start().await);
    let redis_address = ([127, 0, 0, 1], redis.port).into();
    let (front, idp, store) = (
        Front::start(&own, upstream.address).await,
        Front::start(&own, tokens.address).await,
        Front::start(&own, redis_address).await,
    );
    let port = front.address.port();
    let plain = format!("http://{}/token", tokens.address);
    let hosts = [("own.test", port), ("idp.test", port), ("else.test", port)];
    let seal = "9s2jPzSD6uDE36cAaOmHNbb0+yKBPIe8gcGcf6FkXf0=";
    let redis = format!(
        "store: {{redis: {{url: \"rediss://127.0.0.1:{}\", trust: [own.pem]}}, seal_key: \"{seal}\"}}\n",
        store.address.port()
    );
    for (row, top, tls, token_url, server) in [
        ("upstream_tls.trust", "", "{trust: [own.pem]}", plain.clone(), ""),
        ("trust", "trust: [own.pem]\n", "true", plain.clone(), ""),
        (
            "authorization_server.trust",
            "trust: [own.pem]\n",
            "true",
            format!("https://127.0.0.1:{}/token", idp.address.port()),
            "authorization_server: {trust: [own.pem]}, ",
        ),
        ("store.redis.trust", redis.as_str(), "{trust: [own.pem]}", plain.clone(), ""),
    ] {
        let sidecar = Sidecar::start_with(&config(top, &hosts, tls, &token_url, server), &files).await;
        let response = get(&sidecar, "https://own.test/").await;
        assert_eq!(
            (response.status, response.text().as_str()),
            (200, "ok"),
            "{row}: {}\n{}",
            response.text(),
            sidecar.log()
        );
        let authorization = upstream.received().last().expect("a request").values("authorization").join(" ");
        assert!(authorization.starts_with("Bearer token-"), "{row}: {authorization}");
        let response = get(&sidecar, "https://else.test/").await;
        assert_eq!(
            (response.status, response.code()),
            (502, "upstream_tls"),
            "{row}: a name that the certificate lacks"
        );
        assert_eq!(response.header("proxy-status"), Some("keybearer; error=tls_certificate_error"), "{row}");
    }
    // The same for an egress proxy, which receives cleartext requests inside its own TLS.
    let proxy = Front::start(&own, upstream.address).await;
    let top = format!(
        "egress: {{proxy: {{url: \"https://localhost:{}\", trust: [own.pem]}}, no_proxy: [127.0.0.1]}}\n",
        proxy.address.port()
    );
    let routes = format!(
        "{top}connections:\n- {{name: crm, client_id: a, client_secret: b, token_url: \"{plain}\", routes: [{{host: far.test, \
                          upstream_tls: false}}]}}\n"
    );
    let sidecar = Sidecar::start_with(&routes, &files).await;
    let response = get(&sidecar, "http://far.test/").await;
    assert_eq!(response.status, 200, "egress.proxy: {}\n{}", response.text(), sidecar.log());
    // A trusted certificate with the same name and another key does not count.
    let sidecar = Sidecar::start_with(&config("", &hosts, "{trust: [other.pem]}", &plain, ""), &files).await;
    assert_eq!(get(&sidecar, "https://own.test/").await.code(), "upstream_tls");
}

#[tokio::test]
async fn certificate_names_match_by_type() {
    let upstream = Scripted::upstream().await;
    let tokens = Scripted::tokens(3600).await;
    for (names, url, accepted) in [
        ("IP:127.0.0.1", "https://127.0.0.1", true),
        ("DNS:127.0.0.1", "https://127.0.0.1", false),
        ("URI:https\\://127.0.0.1", "https://127.0.0.1", false),
        ("DNS:own.test", "https://own.test", true),
        ("IP:127.0.0.1,URI:https\\://own.test,email:a@own.test", "https://own.test", false),
    ] {
        let own = SelfSigned::for_names(names);
        let front = Front::start(&own, upstream.address).await;
        let port = front.address.port();
        let crm = Connection::at("crm", &tokens)
            .route(format_args!("host: \"own.test:{port}\""))
            .route(format_args!("host: \"127.0.0.1:{port}\", upstream_tls: true"));
        let config = Config::new().top("trust: [own.pem]\n").host("own.test", local(port)).connection(crm);
        let sidecar = Sidecar::start_with(config, &[("own.pem", &own.certificate)]).await;
        let response = get(&sidecar, &format!("{url}:{port}/")).await;
        let status = response.header("proxy-status").unwrap_or_default().to_owned();
        match accepted {
            true => assert_eq!(response.status, 200, "{names} {url}: {}", response.text()),
            false => assert_eq!(status, "keybearer; error=tls_certificate_error", "{names} {url}: {}", response.text()),
        }
    }
}

/// `openssl s_server -www`, which responds with a page about the connection.
struct OpenSsl {
    _child: Child,
    port: u16,
}

impl OpenSsl {
    async fn start(own: &SelfSigned, dir: &std::path::Path, arguments: &[&str]) -> OpenSsl {
        let (certificate, key) = (dir.join("server.pem"), dir.join("server.key"));
        std::fs::write(&certificate, &own.certificate).expect("a file");
        std::fs::write(&key, &own.key).expect("a file");
        let mut server = Command::new("openssl");
        server.args(["s_server", "-accept", "127.0.0.1:0", "-www", "-cert"]).arg(&certificate).arg("-key").arg(&key);
        server.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = server.spawn().expect("openssl is installed");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let mut port = None;
        while let Ok(Some(line)) = lines.next_line().await {
            port = line.strip_prefix("ACCEPT ").and_then(|at| at.rsplit(':').next()?.parse().ok());
            if port.is_some() {
                break;
            }
        }
        // Drain its output.
        tokio::spawn(async move {
            let mut rest = Vec::new();
            let _ = lines.into_inner().read_to_end(&mut rest).await;
        });
        OpenSsl { _child: child, port: port.expect("a port") }
    }
}

#[tokio::test]
async fn an_alert_is_reported_by_name_and_not_as_a_certificate_error() {
    let own = SelfSigned::for_names("DNS:own.test");
    let tokens = Scripted::tokens(3600).await;
    let dir = tempfile::tempdir().expect("a directory");
    let pair = dir.path().join("server.pem").display().to_string();
    let key = dir.path().join("server.key").display().to_string();
    let client = ["-Verify", "1", "-verify_return_error"];
    let named = ["-servername", "other.test", "-servername_fatal", "-cert2", &pair, "-key2", &key];
    for (row, arguments, alert, id, remedy) in [
        (
            "TLS 1.3 without a client certificate",
            [&client[..], &["-tls1_3"]].concat(),
            "certificate_required",
            116,
            "mutual_tls",
        ),
        (
            "TLS 1.2 without a client certificate",
            [&client[..], &["-tls1_2"]].concat(),
            "handshake_failure",
            40,
            "mutual_tls",
        ),
        ("another name", named.to_vec(), "unrecognized_name", 112, "server_name"),
        (
            "ciphers that are too weak",
            vec!["-tls1_2", "-cipher", "AES128-SHA:@SECLEVEL=0"],
            "handshake_failure",
            40,
            "mutual_tls",
        ),
    ] {
        let server = OpenSsl::start(&own, dir.path(), &arguments).await;
        let plain = format!("http://{}/token", tokens.address);
        let text = config("trust: [own.pem]\n", &[("own.test", server.port)], "true", &plain, "");
        let sidecar = Sidecar::start_with(&text, &[("own.pem", &own.certificate)]).await;
        let response = get(&sidecar, "https://own.test/").await;
        assert_eq!((response.status, response.code()), (502, "upstream_tls"), "{row}: {}", response.text());
        let expected = format!("keybearer; error=tls_alert_received; alert-id={id}; alert-message=\"{alert}\"");
        assert_eq!(response.header("proxy-status"), Some(expected.as_str()), "{row}");
        let detail = response.json()["detail"].as_str().expect("a detail").to_owned();
        assert!(detail.contains(alert) && detail.contains(remedy), "{row}: {detail}");
        assert_eq!(response.json()["action"], "fix_configuration", "{row}");
        let line = sidecar.wait_for_log("upstream_tls").await;
        let event: Value = serde_json::from_str(&line).expect("JSON");
        assert!(event["cause"].as_str().is_some_and(|cause| cause.contains(alert)), "{row}: {line}");
    }
    // A server that does not speak TLS sends no alert.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("a bound listener").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"220 mail.test ESMTP ready\r\n").await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    });
    let plain = format!("http://{}/token", tokens.address);
    let sidecar = Sidecar::start(&config("", &[("own.test", port)], "true", &plain, "")).await;
    let response = get(&sidecar, "https://own.test/").await;
    assert_eq!((response.status, response.code()), (502, "upstream_tls"), "{}", response.text());
    assert_eq!(response.header("proxy-status"), Some("keybearer; error=tls_protocol_error"));
}

/// A request that was not sent was not processed, and the detail must not claim that it may have been.
#[tokio::test]
async fn an_upstream_that_closes_before_the_request_is_sent_is_reported_as_such() {
    let tokens = Scripted::tokens(3600).await;
    let plain = format!("http://{}/token", tokens.address);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("a bound listener").port();
    let sidecar = Sidecar::start(&config("", &[("own.test", port)], "true", &plain, "")).await;
    let mut details = Vec::new();
    for row in ["FIN", "RST"] {
        let upstream = async {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            stream.read_u8().await.expect("a ClientHello");
            if row == "FIN" {
                // Closing with bytes unread would reset the connection.
                stream.shutdown().await.expect("shutdown succeeds");
                let _ = stream.read_to_end(&mut Vec::new()).await;
            }
        };
        let (response, ()) = tokio::join!(get(&sidecar, "https://own.test/"), upstream);
        assert_eq!((response.status, response.code()), (502, "upstream_unreachable"), "{row}: {}", response.text());
        assert_eq!(response.header("proxy-status"), Some("keybearer; error=connection_terminated"), "{row}");
        details.push(response.json()["detail"].as_str().expect("a detail").to_owned());
    }
    for detail in &details {
        assert!(detail.contains("closed the connection during the TLS handshake"), "{detail}");
        assert!(!detail.contains("may have been processed"), "{detail}");
    }
    // The same before the HTTP/2 SETTINGS frame, which precedes any request.
    let own = SelfSigned::for_names("DNS:own.test");
    let front = Front::start_http2(&own, listener.local_addr().expect("a bound listener")).await;
    let text = config("trust: [own.pem]\n", &[("own.test", front.address.port())], "true", &plain, "");
    let sidecar = Sidecar::start_with(&text, &[("own.pem", &own.certificate)]).await;
    let upstream = async {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        stream.read_exact(&mut [0; 24]).await.expect("a preface");
        stream.shutdown().await.expect("shutdown succeeds");
    };
    let (response, ()) = tokio::join!(get(&sidecar, "https://own.test/"), upstream);
    assert_eq!((response.status, response.code()), (502, "upstream_unreachable"), "{}", response.text());
    assert!(response.text().contains("before the request was sent"), "{}", response.text());
}
