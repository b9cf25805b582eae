//! TLS on the admin, telemetry and public listeners: https URLs, cookies, certificates that change, and the commands.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::json;
use tokio::process::Command;

use crate::rig::manager::MANAGER;
use crate::rig::peers::Peers;
use crate::rig::sidecar::{Sidecar, program};

/// TLS with the files `tls.pem` and `tls.key` of the configuration's directory.
const TLS: &str = "tls: {certificate: tls.pem, key: {file: tls.key}}";

/// Runs `text` with the certificate `leaf`, and one connection that a person connects.
async fn start(listeners: &str, leaf: &str) -> Sidecar {
    let (certificate, key) = Peers::certs().leaf(leaf);
    let read = |path: PathBuf| std::fs::read_to_string(path).expect("a file");
    let (certificate, key) = (read(certificate), read(key));
    let text = format!(
        "listeners: {{proxy: \"127.0.0.1:0\", {listeners}}}\ntrust: [\"{}\"]\n\
         admin: {{users: [{{name: ops, role: manager, token: {MANAGER}}}]}}\nconnections:\n\
         - {{name: crm, client_id: a, authorization_url: \"https://as.test/a\", token_url: \"https://as.test/t\"}}\n",
        Peers::certs().ca.display()
    );
    Sidecar::spawn(&text, &[("tls.pem", certificate.as_str()), ("tls.key", key.as_str())]).await
}

fn listener(name: &str, port: u16, tls: &str) -> String {
    format!("{name}: {{address: \"127.0.0.1:{port}\", {tls}}}")
}

/// Runs curl, which trusts the peers' CA; returns its exit code and everything it received, head included.
async fn curl(arguments: &[&str]) -> (i32, String) {
    let mut curl = Command::new("curl");
    curl.args(["-sSi", "--max-time", "20", "--cacert"]).arg(&Peers::certs().ca).args(arguments);
    let output = curl.env_clear().stdin(Stdio::null()).output().await.expect("curl runs");
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The first line of a response to a GET, with the header lines `lines`.
async fn status(url: &str, lines: &[&str]) -> String {
    let headers: Vec<&str> = lines.iter().flat_map(|line| ["-H", *line]).collect();
    let (_, seen) = curl(&[&headers[..], &[url]].concat()).await;
    seen.lines().next().unwrap_or_default().trim().to_owned()
}

#[tokio::test]
async fn admin_telemetry_and_public_listeners_speak_https() {
    let listeners = ["admin", "telemetry", "public"].map(|name| listener(name, 0, TLS)).join(", ");
    let sidecar = start(&listeners, "server").await;
    let at = |name: &str, path: &str| format!("https://localhost:{}{path}", sidecar.address(name).port());
    assert_eq!(status(&at("telemetry", "/livez"), &[]).await, "HTTP/1.1 200 OK", "{}", sidecar.log());
    // A link is https, and leads to the public listener.
    let bearer = format!("Authorization: Bearer {MANAGER}");
    let json = "Content-Type: application/json";
    let url = at("admin", "/api/v1/connections/crm/authorize");
    let (_, begun) = curl(&["-X", "POST", "-H", &bearer, "-H", json, "-d", "{}", &url]).await;
    let link = begun.split("\"authorization_url\":\"").nth(1).and_then(|rest| rest.split('"').next());
    let link = link.unwrap_or_else(|| panic!("no link: {begun}"));
    assert!(link.starts_with(&at("public", "/connect/crm")), "{link}");
    let (_, page) = curl(&[link]).await;
    assert!(page.starts_with("HTTP/1.1 200") && page.contains("set-cookie: __Host-keybearer_browser="), "{page}");
    // Without TLS there is no response.
    let (code, seen) = curl(&[&at("admin", "/api/v1/connections").replacen("https", "http", 1)]).await;
    assert!(code != 0 && seen.is_empty(), "{code} {seen}");
    sidecar.wait_for_log("downstream TLS handshake failed").await;
}

#[tokio::test]
async fn a_session_over_https_has_a_secure_cookie_bound_to_the_host() {
    let sidecar = start(&listener("admin", 0, TLS), "server").await;
    // Not the host of the default `public_url`, which is https as well.
    let api = format!("https://{}/api/v1", sidecar.admin());
    let body = json!({ "token": MANAGER }).to_string();
    let (_, signed) = curl(&["-H", "Content-Type: application/json", "-d", &body, &format!("{api}/session")]).await;
    let set = signed.lines().find_map(|line| line.strip_prefix("set-cookie: ")).expect("a cookie");
    assert!(set.starts_with("__Host-keybearer_session="), "{set}");
    for part in ["; Secure", "; HttpOnly", "; SameSite=Lax", "; Path=/"] {
        assert!(set.contains(part), "{set}");
    }
    let pair = set.split(';').next().unwrap_or_default();
    let with = async |cookie: &str| status(&format!("{api}/connections"), &[&format!("Cookie: {cookie}")]).await;
    assert_eq!(with(pair).await, "HTTP/1.1 200 OK");
    let plain = pair.trim_start_matches("__Host-");
    assert_eq!(
        with(plain).await,
        "HTTP/1.1 401 Unauthorized",
        "a cookie without the prefix may come from another host"
    );
}

#[tokio::test]
async fn an_admin_listener_may_require_client_certificates() {
    let certs = Peers::certs();
    let tls = format!("tls: {{certificate: tls.pem, key: {{file: tls.key}}, client_ca: \"{}\"}}", certs.ca.display());
    let sidecar = start(&listener("admin", 0, &tls), "server").await;
    let url = format!("https://localhost:{}/livez", sidecar.admin().port());
    let (known, key) = certs.leaf("mtls-ca-issued");
    let arguments = ["--cert", &known.to_string_lossy(), "--key", &key.to_string_lossy(), &url];
    let (code, seen) = curl(&arguments).await;
    assert_eq!((code, seen.starts_with("HTTP/1.1 200")), (0, true), "{seen}");
    let (code, seen) = curl(&[&url]).await;
    assert!(code != 0 && seen.is_empty(), "{code} {seen}");
}

fn unused_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port()
}

#[tokio::test]
async fn commands_and_healthchecks_use_https_with_the_names_and_roots_of_the_configuration() {
    // The certificate names other.test alone, so the commands verify that name at the listener's address.
    for (leaf, shown) in [("server", "https://127.0.0.1:"), ("wrong", "https://other.test:")] {
        let sidecar = start(&listener("admin", unused_port(), TLS), leaf).await;
        let file = sidecar.dir.path().join("keybearer.yaml");
        let ready = run(&["healthcheck"], &file).await;
        assert!(ready.0 && ready.1.contains(shown), "{leaf}: {ready:?}");
        let listed = run(&["connections"], &file).await;
        assert!(listed.0 && listed.1.contains("crm"), "{leaf}: {listed:?}");
        let given = format!("https://localhost:{}", sidecar.admin().port());
        let (success, output) = run(&["connections", "--admin", &given], &file).await;
        assert_eq!(success, leaf == "server", "{output}");
        assert!(success || output.contains("was not accepted"), "{output}");
        let (success, output) = run(&["connections", "--admin", &given], Path::new("/nowhere/keybearer.yaml")).await;
        assert!(!success && output.contains("add the CA of its certificate to `trust`"), "{output}");
    }
}

/// Runs a command with this configuration; returns whether it succeeded, and its output.
async fn run(arguments: &[&str], file: &Path) -> (bool, String) {
    let mut command = program();
    command.args(arguments).arg("--config").arg(file).env("KEYBEARER_ADMIN_TOKEN", MANAGER);
    let output = command.output().await.expect("it runs");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[tokio::test]
async fn a_replaced_certificate_of_the_admin_listener_is_served_without_a_restart() {
    let sidecar = start(&listener("admin", 0, TLS), "server").await;
    let port = sidecar.admin().port();
    let verifies = async |name: &str| {
        let address = format!("{name}:{port}:127.0.0.1");
        curl(&["--resolve", &address, &format!("https://{name}:{port}/livez")]).await.0 == 0
    };
    assert!(verifies("localhost").await && !verifies("other.test").await, "{}", sidecar.log());
    let (certificate, key) = Peers::certs().leaf("wrong");
    std::fs::copy(certificate, sidecar.dir.path().join("tls.pem")).expect("a file");
    std::fs::copy(key, sidecar.dir.path().join("tls.key")).expect("a file");
    sidecar.wait_for_log("configuration reloaded").await;
    assert!(verifies("other.test").await && !verifies("localhost").await, "{}", sidecar.log());
}
