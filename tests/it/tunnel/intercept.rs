//! TLS interception: requests inside get the token, both TLS connections are verified, and nothing else is intercepted.
//!
//! Not here: creating and exporting the CA (`authority`), relayed tunnels (`relay`).

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use http::Version;
use http_body_util::BodyExt;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::rig::config::{Config, Connection, local};
use crate::rig::interception::{interception, interception_ca, make_ca};
use crate::rig::peers::{AuthorizationServer, ClientKind, Http2Server, Peers, Upstream, run_client_with};
use crate::rig::raw::Conn;
use crate::rig::scripted::Scripted;
use crate::rig::sidecar::{Sidecar, duration_factor};
use crate::rig::stage::exchange;
use crate::rig::tunnel_client::{TunnelClient, read_connect_head};

const TIMEOUT: Duration = Duration::from_secs(20);
const GET: &[u8] = b"GET /x HTTP/1.1\r\nHost: api.test\r\n\r\n";
/// Routes whose hosts are names in the rig's certificate `server`.
const ROUTES: &str = "{host: api.test}, {host: \"*.api.test\"}, {host: pinned.api.test, intercept: false}";

struct Stage {
    server: AuthorizationServer,
    upstream: Upstream,
    sidecar: Sidecar,
}

impl Stage {
    async fn start(routes: &str) -> Stage {
        Stage::with(AuthorizationServer::al(json!({"lifetime": 300})).await, json!({}), &interception(), routes).await
    }

    async fn with(server: AuthorizationServer, options: Value, top: &str, routes: &str) -> Stage {
        let upstream = Upstream::start_with(&server, options).await;
        let port = upstream.https_port();
        let hosts =
            ["api", "a.api", "pinned.api", "other"].map(|name| format!("{name}.test: \"127.0.0.1:{port}\"")).join(", ");
        let config = format!(
            "trust: [\"{}\"]\nhosts: {{{hosts}}}\n{top}connections:\n- {{name: crm, client_id: machine, client_secret: \
             machine-secret, token_url: \"{}\", routes: [{routes}]}}\n",
            Peers::certs().ca.display(),
            server.token_url()
        );
        Stage { sidecar: Sidecar::start(&config).await, server, upstream }
    }

    /// Opens TLS inside a tunnel to `authority`, with SNI `name`, trusting `ca`.
    async fn tls(&self, authority: &str, name: &str, ca: &PathBuf) -> std::io::Result<Conn<TlsStream<TcpStream>>> {
        let mut conn = Conn::open(self.sidecar.proxy()).await;
        conn.write(format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n").as_bytes()).await;
        let head = read_connect_head(&mut conn).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{authority}: {head}");
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(CertificateDer::pem_file_iter(ca).expect("PEM").map(Result::unwrap));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("TLS");
        let connector = TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth()));
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        timeout(TIMEOUT, connector.connect(name, conn.stream)).await.expect("a handshake in time").map(Conn::on)
    }

    /// Opens TLS to `name`, port 443, trusting the interception CA.
    async fn open(&self, name: &str) -> Conn<TlsStream<TcpStream>> {
        self.tls(&format!("{name}:443"), name, &interception_ca().0).await.expect("a handshake")
    }

    /// Sends `request` with `openssl s_client` through a tunnel to api.test. Returns whether it succeeded, and its output.
    async fn s_client(&self, arguments: &[&str], request: &[u8]) -> (bool, String) {
        let proxy = self.sidecar.proxy().to_string();
        let mut command = Command::new("openssl");
        command.args(["s_client", "-proxy", &proxy, "-connect", "api.test:443", "-CAfile"]).arg(&interception_ca().0);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().expect("openssl starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        let _ = tokio::io::AsyncWriteExt::write_all(&mut stdin, request).await;
        let output = async move {
            // Closing stdin earlier would end the connection before the response.
            let output = child.wait_with_output().await.expect("output can be read");
            drop(stdin);
            output
        };
        let output = timeout(TIMEOUT, output).await.expect("exits before the timeout");
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }
}

fn leaf(conn: &Conn<TlsStream<TcpStream>>) -> CertificateDer<'static> {
    conn.stream.get_ref().1.peer_certificates().expect("certificates")[0].clone().into_owned()
}

#[tokio::test]
async fn requests_inside_get_the_token_on_one_keep_alive_connection() {
    let stage = Stage::start(ROUTES).await;
    let mut conn = stage.open("api.test").await;
    for (row, target, host) in [
        ("CI-01", "/x", "api.test"),
        ("explicit port", "/x", "api.test:443"),
        ("capitals", "/x", "API.test"),
        ("absolute form", "https://api.test/x", "api.test"),
        ("absolute form with port", "https://api.test:443/x", "api.test"),
    ] {
        conn.write(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await;
        let response = conn.read_response().await;
        assert_eq!((response.status, &response.json()["active"]), (200, &json!(true)), "{row}: {}", response.text());
    }
    let mut conn = stage.open("a.api.test").await;
    conn.write(b"GET /x HTTP/1.1\r\nHost: a.api.test\r\n\r\n").await;
    assert_eq!(conn.read_response().await.status, 200, "through a wildcard route");
    let records = stage.upstream.records().await;
    assert_eq!(records.len(), 6);
    assert!(records.iter().all(|record| record["scheme"] == "https" && record["verdict"] == "active"), "{records:?}");
    let series = "keybearer_injections_total{connection=\"crm\",profile=\"default\",outcome=\"injected\"}";
    assert_eq!(stage.sidecar.metric(series).await, 6.0);
    let series = "keybearer_certificate_expiry_timestamp_seconds{use=\"interception\",name=\"ca\"}";
    assert!(stage.sidecar.metric(series).await > 1.8e9);
}

#[tokio::test]
async fn another_authority_inside_is_421_each_time() {
    let stage = Stage::start(ROUTES).await;
    let mut conn = stage.open("api.test").await;
    for (row, target, host) in [
        ("CI-03 Host", "/", "other.test"),
        ("CI-03 Host again", "/", "other.test"),
        ("CI-03 another route's host", "/", "a.api.test"),
        ("CI-03 port", "/", "api.test:444"),
        ("CI-03 port of http", "/", "api.test:80"),
        ("CI-04 absolute form", "https://other.test/", "api.test"),
        ("CI-04 other scheme", "http://api.test/", "api.test"),
        ("CI-04 other port", "https://api.test:444/", "api.test"),
    ] {
        conn.write(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await;
        let response = conn.read_response().await;
        assert_eq!((response.status, response.code()), (421, "authority_mismatch"), "{row}");
    }
    conn.write(GET).await;
    assert_eq!(conn.read_response().await.status, 200, "the tunnel remains usable");
    assert_eq!(stage.upstream.records().await.len(), 1);
}

#[tokio::test]
async fn another_sni_gets_the_tunnels_certificate_and_421() {
    let stage = Stage::start(ROUTES).await;
    for name in ["other.test", "a.api.test"] {
        let (_, text) = stage
            .s_client(
                &["-servername", name, "-quiet", "-ign_eof"],
                b"GET /x HTTP/1.1\r\nHost: api.test\r\nConnection: close\r\n\r\n",
            )
            .await;
        assert!(text.contains("HTTP/1.1 421") && text.contains("authority_mismatch"), "CI-02 {name}: {text}");
        let error = stage.tls("api.test:443", name, &interception_ca().0).await.err().expect("no certificate for it");
        assert!(error.to_string().contains("not valid for name"), "CI-02 {name}: {error}");
    }
    let (_, text) = stage
        .s_client(
            &["-noservername", "-quiet", "-ign_eof"],
            b"GET /x HTTP/1.1\r\nHost: api.test\r\nConnection: close\r\n\r\n",
        )
        .await;
    assert!(text.contains("HTTP/1.1 200"), "no SNI: {text}");
    assert_eq!(stage.upstream.records().await.len(), 1);
}

#[tokio::test]
async fn an_upstream_without_a_valid_certificate_receives_no_request() {
    let server = AuthorizationServer::al(json!({"lifetime": 300})).await;
    let stage = Stage::with(server, json!({"leaf": "expired"}), &interception(), ROUTES).await;
    let mut upstreams = vec![(stage.upstream, stage.sidecar, stage.server)];
    for leaf in ["wrong", "unknown", "self-signed"] {
        let server = AuthorizationServer::al(json!({"lifetime": 300})).await;
        let Stage { upstream, sidecar, server } =
            Stage::with(server, json!({"leaf": leaf}), &interception(), ROUTES).await;
        upstreams.push((upstream, sidecar, server));
    }
    for (upstream, sidecar, server) in upstreams {
        let stage = Stage { upstream, sidecar, server };
        let mut conn = stage.open("api.test").await;
        conn.write(GET).await;
        let response = conn.read_response().await;
        assert_eq!((response.status, response.code()), (502, "upstream_tls"), "CI-05 {}", response.text());
        assert_eq!(response.header("proxy-status"), Some("keybearer; error=tls_certificate_error"), "CI-05");
        assert_eq!(stage.upstream.records().await.len(), 0, "CI-05");
    }
}

#[tokio::test]
async fn connect_with_a_body_causes_no_desync() {
    let stage = Stage::start(ROUTES).await;
    for lines in ["Content-Length: 46\r\n", "Transfer-Encoding: chunked\r\n"] {
        let connect = format!("CONNECT api.test:443 HTTP/1.1\r\nHost: api.test:443\r\n{lines}\r\n");
        let smuggled = "GET https://api.test/smuggled HTTP/1.1\r\nHost: api.test\r\n\r\n";
        let transcript = exchange(stage.sidecar.proxy(), format!("{connect}{smuggled}").as_bytes()).await;
        assert!(
            transcript.statuses().iter().skip(1).all(|status| *status >= 400),
            "CI-10 {lines}: {}",
            transcript.text()
        );
        assert_eq!(stage.upstream.records().await.len(), 0, "CI-10 {lines}");
    }
}

#[tokio::test]
async fn a_caller_that_does_not_trust_the_ca_is_logged_once() {
    let stage = Stage::start(ROUTES).await;
    for _ in 0..2 {
        let error = stage.tls("api.test:443", "api.test", &Peers::certs().ca).await.err().expect("no trust");
        assert!(error.to_string().contains("UnknownIssuer"), "CI-13 {error}");
    }
    let line = stage.sidecar.wait_for_log("the caller does not trust the interception CA").await;
    assert!(line.contains("api.test") && line.contains("keybearer ca export"), "CI-13 {line}");
    // A caller that disconnects during the handshake.
    let mut conn = Conn::open(stage.sidecar.proxy()).await;
    conn.write(b"CONNECT api.test:443 HTTP/1.1\r\nHost: api.test:443\r\n\r\n").await;
    read_connect_head(&mut conn).await;
    conn.write(b"\x16\x03\x01\x02\x00\x01").await;
    drop(conn);
    stage.sidecar.wait_for_log("the caller closed the connection during the handshake").await;
    let lines = stage.sidecar.log().matches("tunnel closed: TLS handshake failed").count();
    assert_eq!(lines, 3, "CI-13 {}", stage.sidecar.log());
    let mut conn = stage.open("api.test").await;
    conn.write(GET).await;
    assert_eq!(conn.read_response().await.status, 200, "CI-13 other callers are served");
    assert_eq!(stage.upstream.records().await.len(), 1, "CI-13");
}

#[tokio::test]
async fn a_handshake_has_a_deadline() {
    let server = AuthorizationServer::al(json!({"lifetime": 300})).await;
    let top = format!("{}timeouts: {{client_head: 1s}}\n", interception());
    let stage = Stage::with(server, json!({}), &top, ROUTES).await;
    let mut conn = Conn::open(stage.sidecar.proxy()).await;
    conn.write(b"CONNECT api.test:443 HTTP/1.1\r\nHost: api.test:443\r\n\r\n").await;
    read_connect_head(&mut conn).await;
    conn.write(b"\x16\x03\x01\x02\x00\x01").await;
    assert!(conn.is_closed().await);
    stage.sidecar.wait_for_log("timeouts.client_head exceeded").await;
}

#[tokio::test]
async fn certificates_for_many_names_take_bounded_memory() {
    let stage = Stage::start(ROUTES).await;
    let names = 300 * duration_factor();
    stage.open("n0.api.test").await;
    let before = stage.sidecar.resident_kib();
    for first in (0..names).step_by(10) {
        let conns = join_all((first..first + 10).map(|number| {
            let stage = &stage;
            async move { stage.open(&format!("n{number}.api.test")).await }
        }))
        .await;
        let serials: std::collections::HashSet<_> = conns.iter().map(|conn| leaf(conn).to_vec()).collect();
        assert_eq!(serials.len(), 10, "CI-14");
    }
    let grown = stage.sidecar.resident_kib().saturating_sub(before);
    assert!(grown < 32 * 1024, "CI-14 {grown} KiB for {names} names");
}

#[tokio::test]
async fn openssl_accepts_the_certificate_and_old_versions_are_refused() {
    let stage = Stage::start(ROUTES).await;
    let strict = ["-servername", "api.test", "-verify_return_error", "-verify_hostname", "api.test", "-x509_strict"];
    for version in ["-tls1_2", "-tls1_3"] {
        let (good, text) = stage.s_client(&[&strict[..], &[version]].concat(), b"Q\n").await;
        assert!(good && text.contains("Verification: OK"), "CI-16 {version}: {text}");
        assert!(text.contains("Compression: NONE"), "CI-16 {version}: {text}");
        assert!(text.contains("GCM") || text.contains("CHACHA20"), "CI-16 {version}: {text}");
        assert!(text.contains("No ALPN negotiated"), "{text}");
    }
    for version in ["-tls1", "-tls1_1"] {
        let (good, text) = stage.s_client(&[version, "-cipher", "DEFAULT@SECLEVEL=0"], b"Q\n").await;
        assert!(!good && text.contains(" alert ") && text.contains("Cipher is (NONE)"), "CI-16 {version}: {text}");
    }
    let (good, text) = stage
        .s_client(&["-tls1_2", "-cipher", "AES128-SHA:ECDHE-ECDSA-AES128-SHA:ECDHE-ECDSA-AES128-SHA256"], b"Q\n")
        .await;
    assert!(!good && text.contains("handshake failure"), "CI-16 no AEAD: {text}");
}

#[tokio::test]
async fn a_caller_without_permission_gets_403_inside() {
    let callers = "callers: [{name: guest, cidr: [127.0.0.0/8]}, {name: billing, secret: of-billing-0123456789}]\n";
    let top = interception() + callers;
    let server = AuthorizationServer::al(json!({"lifetime": 300})).await;
    let stage = Stage::with(server, json!({}), &top, "{host: api.test}], accessible_from: [billing").await;
    let mut conn = stage.open("api.test").await;
    conn.write(GET).await;
    let response = conn.read_response().await;
    assert_eq!((response.status, response.code()), (403, "caller_not_allowed"), "{}", stage.sidecar.log());
    assert_eq!(stage.upstream.records().await.len(), 0);
}

#[tokio::test]
async fn a_host_without_interception_is_relayed() {
    let stage = Stage::start(ROUTES).await;
    for (row, authority, name) in
        [("CI-18", "pinned.api.test:443", "pinned.api.test"), ("no route", "other.test:443", "api.test")]
    {
        let mut conn = stage.tls(authority, name, &Peers::certs().ca).await.expect("the upstream's own certificate");
        conn.write(format!("GET /x HTTP/1.1\r\nHost: {name}\r\n\r\n").as_bytes()).await;
        assert_eq!(conn.read_response().await.status, 401, "{row}: no token");
    }
    let records = stage.upstream.records().await;
    assert!(records.len() == 2 && records.iter().all(|record| record["verdict"] == "missing_token"), "{records:?}");
    let without = Stage::with(AuthorizationServer::al(json!({})).await, json!({}), "", "{host: api.test}").await;
    let mut conn = without.tls("api.test:443", "api.test", &Peers::certs().ca).await.expect("its own certificate");
    conn.write(GET).await;
    assert_eq!(conn.read_response().await.status, 401, "without a CA");
}

/// CI-12
#[tokio::test]
async fn bytes_that_are_neither_tls_nor_http_close_an_intercepted_tunnel() {
    let stage = Stage::start(ROUTES).await;
    for bytes in [&b"SSH-2.0-OpenSSH_9.6\r\n\r\n"[..], b"\0\xff\xfe\r\n\r\n", b"* OK IMAP4 ready\r\n\r\n"] {
        let mut conn = Conn::open(stage.sidecar.proxy()).await;
        conn.write(b"CONNECT api.test:443 HTTP/1.1\r\nHost: api.test:443\r\n\r\n").await;
        assert!(read_connect_head(&mut conn).await.starts_with("HTTP/1.1 200"));
        conn.write(bytes).await;
        let mut rest = Vec::new();
        let end = tokio::io::AsyncReadExt::read_to_end(&mut conn.stream, &mut rest);
        let _ = timeout(TIMEOUT, end).await.expect("closes before the timeout");
        let rest = String::from_utf8_lossy(&rest);
        assert!(rest.is_empty() || rest.starts_with("HTTP/1.1 400"), "{rest}");
    }
    assert_eq!(stage.upstream.records().await.len(), 0);
}

#[tokio::test]
async fn server_sent_events_stream_through_interception() {
    let (server, tokens) = (Http2Server::start(json!({})).await, Scripted::tokens(300).await);
    let crm = Connection::at("crm", &tokens).route("host: api.test");
    let config = Config::new().trust_peers().top(interception()).host("api.test", local(server.port())).connection(crm);
    let sidecar = Sidecar::start(config).await;
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let mut inside = TunnelClient::open(sidecar.proxy(), "", true, version).await;
        let mut events = inside.get(true, "/events").await.into_body();
        let (mut text, mut times) = (String::new(), Vec::new());
        while let Some(frame) = timeout(TIMEOUT, events.frame()).await.expect("no timeout") {
            let data = frame.expect("no failure").into_data().unwrap_or_default();
            text.push_str(&String::from_utf8_lossy(&data));
            times.push(Instant::now());
        }
        assert_eq!(text, "data: 0\n\ndata: 1\n\ndata: 2\n\ndata: 3\n\n", "{version:?}");
        let spread = times[times.len() - 1] - times[0];
        assert!(
            times.len() >= 4 && spread >= Duration::from_millis(400),
            "{version:?}: they arrived within {spread:?}"
        );
    }
}

#[tokio::test]
async fn a_rejected_token_is_replaced_inside() {
    let stage = Stage::start(ROUTES).await;
    let mut conn = stage.open("api.test").await;
    conn.write(GET).await;
    assert_eq!(conn.read_response().await.status, 200);
    stage.server.control(json!({"revoke_all": true})).await;
    conn.write(b"POST /x HTTP/1.1\r\nHost: api.test\r\nContent-Length: 5\r\n\r\nhello").await;
    let response = conn.read_response().await;
    assert_eq!((response.status, &response.json()["body_bytes"]), (200, &json!(5)), "{}", response.text());
    let verdicts: Vec<_> = stage.upstream.records().await.iter().map(|record| record["verdict"].clone()).collect();
    assert_eq!(verdicts, ["active", "inactive", "active"]);
}

#[tokio::test]
async fn issued_certificates_survive_a_reload_unless_the_ca_changes() {
    let (certificate, key) = make_ca("reloaded");
    let (other, other_key) = make_ca("reloaded-next");
    let top = format!(
        "interception: {{ca_certificate: \"{}\", ca_key: {{file: \"{}\"}}}}\n",
        certificate.display(),
        key.display()
    );
    let server = AuthorizationServer::al(json!({"lifetime": 300})).await;
    let stage = Stage::with(server, json!({}), &top, ROUTES).await;
    let connect = async |ca: &PathBuf| stage.tls("api.test:443", "api.test", ca).await;
    let first = leaf(&connect(&certificate).await.expect("a handshake"));
    let path = stage.sidecar.dir.path().join("keybearer.yaml");
    let text = std::fs::read_to_string(&path).expect("a file");
    std::fs::write(&path, text + "workers: 2\nlog: {level: debug}\n").expect("a file");
    let applied = "keybearer_config_reloads_total{outcome=\"applied\"}";
    stage.sidecar.wait_for_metric(applied, |count| count == 1.0).await;
    assert!(leaf(&connect(&certificate).await.expect("a handshake")) == first, "the leaf is kept");
    std::fs::copy(&other_key, &key).expect("a copy");
    std::fs::copy(&other, &certificate).expect("a copy");
    stage.sidecar.wait_for_metric(applied, |count| count == 2.0).await;
    assert!(leaf(&connect(&other).await.expect("the new CA's leaf")) != first);
}

#[tokio::test]
async fn every_client_is_served_over_https_with_its_ca_variable() {
    let server = AuthorizationServer::op(json!({"lifetime": 3})).await;
    let stage = Stage::with(server, json!({}), &interception(), ROUTES).await;
    let (proxy, ca) = (stage.sidecar.proxy_url(), interception_ca().0.to_str().expect("UTF-8"));
    let clients = ClientKind::ALL.map(|kind| {
        let (url, proxy) = (format!("https://api.test/{kind:?}"), &proxy);
        async move {
            (kind, run_client_with(kind, &url, proxy, 4 * duration_factor(), 100, &[(kind.ca_variable(), ca)]).await)
        }
    });
    let mut accepted = 0;
    for (kind, report) in join_all(clients).await {
        assert_eq!((report.failed, &report.first_error), (0, &None), "{kind:?}: {report:?}\n{}", stage.sidecar.log());
        assert!(report.ok >= 8, "{kind:?}: {report:?}");
        accepted += report.ok;
    }
    let summary = stage.upstream.summary().await;
    assert_eq!((&summary["active"], &summary["total"]), (&json!(accepted), &json!(accepted)), "{summary}");
}

#[tokio::test]
async fn large_bodies_stream_both_ways_in_constant_memory() {
    let mib = if duration_factor() > 1 { 1024 } else { 64 };
    let stage = Stage::start(ROUTES).await;
    let dir = stage.sidecar.dir.path();
    let line = format!(
        "head -c {mib}M /dev/urandom | tee up | sha256sum >up.sum; curl -q -sS --fail -x {} --cacert '{}' -T up https://api.test/echo \
         | sha256sum >down.sum; cmp up.sum down.sum",
        stage.sidecar.proxy_url(),
        interception_ca().0.display()
    );
    stage.open("api.test").await;
    let before = stage.sidecar.resident_kib();
    let mut shell = Command::new("bash");
    let mut child = shell.args(["-c", &line]).current_dir(dir).kill_on_drop(true).spawn().expect("bash");
    let mut highest = before;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status.expect("a status"),
            () = tokio::time::sleep(Duration::from_millis(20)) => highest = highest.max(stage.sidecar.resident_kib()),
        }
    };
    assert!(status.success(), "{mib} MiB came back changed\n{}", stage.sidecar.log());
    let grown = highest - before;
    assert!(grown < 24 * 1024, "{grown} KiB for {mib} MiB");
}

#[tokio::test]
async fn http2_inside_is_served_with_the_same_checks() {
    let stage = Stage::start(ROUTES).await;
    let mut command = Command::new("curl");
    command.args(["-q", "-sS", "--http2", "--max-time", "20", "-x", &stage.sidecar.proxy_url(), "--cacert"]);
    command.arg(&interception_ca().0).args(["-w", "%{http_version} %{http_code}\n", "-o", "/dev/null"]);
    command.args(["https://api.test/x", "--next", "-sS", "--http2", "-x", &stage.sidecar.proxy_url(), "--cacert"]);
    command.arg(&interception_ca().0).args(["-w", "%{http_version} %{http_code}\n", "-o", "/dev/null"]);
    command.args(["-H", "Host: other.test", "https://api.test/x"]);
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.expect("curl is installed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(text, "2 200\n2 421\n", "CI-17, CI-03 {}", String::from_utf8_lossy(&output.stderr));
    let records = stage.upstream.records().await;
    assert!(records.len() == 1 && records[0]["verdict"] == "active", "{records:?}");
}
