//! Listeners of every kind in one instance, and callers identified by their connection.

use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::process::Command;

use crate::rig::peers::{Peers, node, run_script};
use crate::rig::scripted::Scripted;
use crate::rig::sidecar::Sidecar;

/// Four listeners, one caller per kind of identification, and the mount `/crm`.
async fn start() -> (Sidecar, Scripted, Scripted) {
    let (tokens, upstream) = (Scripted::tokens(3600).await, Scripted::upstream().await);
    let certs = Peers::certs();
    let (certificate, key) = certs.leaf("server");
    let (certificate, key) = (read(&certificate), read(&key));
    let config = format!(
        "listeners:\n  proxy:\n  - 127.0.0.1:0\n  - {{name: jobs, address: \"unix:jobs.sock\", mode: \"0660\"}}\n  - {{name: fleet, \
         address: \"127.0.0.1:0\", tls: {{certificate: tls.pem, key: {{file: tls.key}}}}}}\n  - {{name: mutual, address: \"127.0.0.1:0\", \
         tls: {{certificate: tls.pem, key: {{file: tls.key}}, client_ca: {ca}}}}}\n  admin: 127.0.0.1:0\ncallers:\n- {{name: near, \
         listener: proxy, cidr: [127.0.0.0/8]}}\n- {{name: job, listener: [jobs], unix_user: [\"{user}\", 4294967]}}\n- {{name: \
         fleet, listener: fleet}}\n- {{name: certified, certificate: {{san: [other.test, mtls-client.test]}}}}\nconnections:\n- {{name: crm, \
         client_id: a, client_secret: b, token_url: \"http://{}/token\", routes: [{{mount: /crm, upstream: \"http://{}\"}}]}}\n",
        tokens.address,
        upstream.address,
        ca = certs.ca.display(),
        user = user(),
    );
    let files = [("tls.pem", certificate.as_str()), ("tls.key", key.as_str())];
    (Sidecar::start_with(&config, &files).await, tokens, upstream)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).expect("a file")
}

/// The user that runs the tests, and therefore the callers.
fn user() -> String {
    let output = std::process::Command::new("id").arg("-un").output().expect("id is installed");
    String::from_utf8(output.stdout).expect("a name").trim().to_owned()
}

/// Runs curl. Returns its exit code, and the status and HTTP version of the response.
async fn curl(arguments: &[&str]) -> (i32, String) {
    let mut curl = Command::new("curl");
    curl.args(["-sS", "-o", "/dev/null", "-w", "%{http_code} %{http_version}", "--max-time", "20"]).args(arguments);
    let output = curl.env_clear().stdin(Stdio::null()).output().await.expect("curl is installed");
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[tokio::test]
async fn each_listener_serves_and_each_caller_is_identified_by_its_connection() {
    let (sidecar, _tokens, upstream) = start().await;
    let certs = Peers::certs();
    let (ca, socket) = (certs.ca.to_string_lossy(), sidecar.dir.path().join("jobs.sock"));
    let (known, known_key) = certs.leaf("mtls-ca-issued");
    let (unknown, unknown_key) = certs.leaf("mtls-self-signed");
    let (known, known_key) = (known.to_string_lossy(), known_key.to_string_lossy());
    let (unknown, unknown_key) = (unknown.to_string_lossy(), unknown_key.to_string_lossy());
    let socket = socket.to_string_lossy();
    let at = |listener: &str| sidecar.address(listener).port();
    let plain = format!("http://127.0.0.1:{}/crm/x", at("proxy"));
    let fleet = format!("https://localhost:{}/crm/x", at("fleet"));
    let mutual = format!("https://localhost:{}/crm/x", at("mutual"));
    for (row, caller, expected, arguments) in [
        ("a plain address", "near", "200 1.1", vec![plain.as_str()]),
        ("a Unix socket", "job", "200 1.1", vec!["--unix-socket", &socket, "http://kb/crm/x"]),
        (
            "HTTP/2 on a Unix socket",
            "job",
            "200 2",
            vec!["--http2-prior-knowledge", "--unix-socket", &socket, "http://kb/crm/x"],
        ),
        ("TLS", "fleet", "200 2", vec!["--cacert", &ca, &fleet]),
        ("TLS, HTTP/1.1", "fleet", "200 1.1", vec!["--http1.1", "--cacert", &ca, &fleet]),
        ("a certificate", "certified", "200 2", vec!["--cacert", &ca, "--cert", &known, "--key", &known_key, &mutual]),
    ] {
        let counted = format!(
            "keybearer_requests_total{{connection=\"crm\",profile=\"default\",caller=\"{caller}\",origin=\"upstream\",status_class=\"2xx\"}}"
        );
        let before = sidecar.metric(&counted).await;
        assert_eq!(curl(&arguments).await, (0, expected.to_owned()), "{row}: {}", sidecar.log());
        sidecar.wait_for_metric(&counted, |count| count == before + 1.0).await;
    }
    let served = upstream.count();
    for (row, arguments) in [
        ("no certificate", vec!["--cacert", &ca, mutual.as_str()]),
        ("a certificate of an unknown CA", vec!["--cacert", &ca, "--cert", &unknown, "--key", &unknown_key, &mutual]),
        ("no TLS", vec![mutual.strip_prefix("https").map(|rest| format!("http{rest}")).as_deref().unwrap_or_default()]),
    ] {
        let (code, output) = curl(&arguments).await;
        assert!(code != 0 && !output.starts_with('2'), "{row}: {output}");
    }
    assert_eq!(upstream.count(), served);
    sidecar.wait_for_log("downstream TLS handshake failed").await;
    // The TLS listener also serves as a forward proxy.
    let (port, url) = (format!("https://localhost:{}", at("fleet")), "http://10.9.8.7/");
    let (code, output) = curl(&["--proxy-cacert", &ca, "-x", &port, url]).await;
    assert_eq!((code, output.as_str()), (0, "403 1.1"), "a private address that no route names");
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&*socket).expect("a socket").permissions()) & 0o777;
    assert_eq!(mode, 0o660);
}

/// Requests through the Unix socket, and through the mutual TLS listener with the certificate `name`.
async fn request_both(sidecar: &Sidecar, name: &str) -> [(i32, String); 2] {
    let certs = Peers::certs();
    let (certificate, key) = certs.leaf(name);
    let (ca, certificate, key) = (certs.ca.to_string_lossy(), certificate.to_string_lossy(), key.to_string_lossy());
    let socket = sidecar.dir.path().join("jobs.sock");
    let mutual = format!("https://localhost:{}/crm/x", sidecar.address("mutual").port());
    [
        curl(&["--http1.1", "--unix-socket", &socket.to_string_lossy(), "http://kb/crm/x"]).await,
        curl(&["--http1.1", "--cacert", &ca, "--cert", &certificate, "--key", &key, &mutual]).await,
    ]
}

/// A Unix socket for `user`, and a mutual TLS listener for certificates with the name `san`.
async fn start_strict(upstream: &Scripted, tokens: &Scripted, user: &str, san: &str) -> Sidecar {
    let certs = Peers::certs();
    let (certificate, key) = certs.leaf("server");
    let config = format!(
        "listeners:\n  proxy:\n  - {{name: jobs, address: \"unix:jobs.sock\"}}\n  - {{name: mutual, address: \"127.0.0.1:0\", tls: \
         {{certificate: \"{}\", key: {{file: \"{}\"}}, client_ca: client-ca.pem}}}}\n  admin: 127.0.0.1:0\ncallers:\n- {{name: job, listener: \
         jobs, unix_user: \"{user}\"}}\n- {{name: certified, certificate: {{san: {san}}}}}\nconnections:\n- {{name: crm, client_id: a, \
         client_secret: b, token_url: \"http://{}/token\", routes: [{{mount: /crm, upstream: \"http://{}\"}}]}}\n",
        certificate.display(),
        key.display(),
        tokens.address,
        upstream.address,
    );
    Sidecar::start_with(&config, &[("client-ca.pem", read(&certs.ca).as_str())]).await
}

#[tokio::test]
async fn another_user_and_another_certificate_name_are_unknown_callers() {
    let (tokens, upstream) = (Scripted::tokens(3600).await, Scripted::upstream().await);
    let unknown = (0, "401 1.1".to_owned());
    let sidecar = start_strict(&upstream, &tokens, "4294967", "other.test").await;
    assert_eq!(request_both(&sidecar, "mtls-ca-issued").await, [unknown.clone(), unknown], "{}", sidecar.log());
    assert_eq!(upstream.count(), 0);
    let known = (0, "200 1.1".to_owned());
    let sidecar = start_strict(&upstream, &tokens, &user(), "mtls-client.test").await;
    assert_eq!(request_both(&sidecar, "mtls-ca-issued").await, [known.clone(), known], "{}", sidecar.log());
}

#[tokio::test]
async fn a_changed_client_ca_applies_without_a_restart() {
    const APPLIED: &str = "keybearer_config_reloads_total{outcome=\"applied\"}";
    let (tokens, upstream) = (Scripted::tokens(3600).await, Scripted::upstream().await);
    let certs = Peers::certs();
    let sidecar = start_strict(&upstream, &tokens, &user(), "mtls-client.test").await;
    for (file, served) in [("ca.pem", true), ("unknown-ca.pem", false), ("ca.pem", true)] {
        let text = read(&certs.dir.join(file));
        if text != read(&sidecar.dir.path().join("client-ca.pem")) {
            let before = sidecar.metric(APPLIED).await;
            std::fs::write(sidecar.dir.path().join("next"), text).expect("a file");
            std::fs::rename(sidecar.dir.path().join("next"), sidecar.dir.path().join("client-ca.pem")).expect("a file");
            sidecar.wait_for_metric(APPLIED, |applied| applied > before).await;
        }
        let [_, (code, output)] = request_both(&sidecar, "mtls-ca-issued").await;
        assert_eq!(code == 0 && output == "200 1.1", served, "{file}: {code} {output}\n{}", sidecar.log());
    }
}

#[tokio::test]
async fn concurrent_requests_share_one_http2_connection_over_tls() {
    let (sidecar, _tokens, upstream) = start().await;
    let options = json!({
        "origin": format!("https://localhost:{}", sidecar.address("fleet").port()),
        "ca": Peers::certs().ca,
        "requests": vec![json!({ "path": "/crm/x" }); 50],
    });
    let responses = run_script(node(), "clients/h2.mjs", &[&options.to_string()], &[]).await;
    let ok = responses.as_array().expect("responses").iter().filter(|response| response["status"] == 200).count();
    assert_eq!((ok, upstream.count()), (50, 50));
}

#[tokio::test]
async fn a_replaced_certificate_is_served_without_a_restart_and_a_mismatched_one_is_not() {
    let (mut sidecar, _tokens, _upstream) = start().await;
    let served_subject = |sidecar: &Sidecar| {
        let address = sidecar.address("fleet");
        async move {
            let mut client = Command::new("openssl");
            client
                .args(["s_client", "-connect", &address.to_string(), "-servername", "localhost"])
                .stdin(Stdio::null());
            let output = client.output().await.expect("openssl is installed");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            text.lines().find_map(|line| line.trim().strip_prefix("0 s:").map(str::to_owned)).expect("a certificate")
        }
    };
    assert!(!served_subject(&sidecar).await.contains("other.test"));
    let (certificate, key) = Peers::certs().leaf("wrong");
    // Tools write the two files one after the other: in between they do not match, and the old pair stays in use.
    std::fs::write(sidecar.dir.path().join("tls.pem"), read(&certificate)).expect("a file");
    sidecar.wait_for_log("configuration refused").await;
    assert!(!served_subject(&sidecar).await.contains("other.test"));
    std::fs::write(sidecar.dir.path().join("tls.key"), read(&key)).expect("a file");
    sidecar.wait_for_log("configuration reloaded").await;
    assert!(served_subject(&sidecar).await.contains("other.test"), "{}", sidecar.log());
    let expiry = "keybearer_certificate_expiry_timestamp_seconds{name=\"fleet\",use=\"listener\"}";
    assert!(sidecar.metric(expiry).await > 1.0e9);
    let socket = sidecar.dir.path().join("jobs.sock");
    assert!(socket.exists());
    sidecar.signal("TERM");
    assert!(sidecar.exit().await.success());
    assert!(!socket.exists(), "the socket is unlinked at exit");
}

#[tokio::test]
async fn a_caller_on_a_unix_socket_is_logged_by_its_user() {
    let (sidecar, _tokens, _upstream) = start().await;
    let socket = sidecar.dir.path().join("jobs.sock");
    let (_, output) = curl(&["--unix-socket", &socket.to_string_lossy(), "http://kb/nowhere"]).await;
    assert_eq!(output, "404 1.1");
    let line = sidecar.wait_for_log("no_mount").await;
    let event: Value = serde_json::from_str(&line).expect("JSON");
    assert!(event["from"].as_str().is_some_and(|from| from.starts_with("unix:")), "{line}");
}
