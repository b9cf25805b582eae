//! Preflight: `check --online` and `POST connections/{name}/preflight` against real authorization servers, and against
//! servers with one fault each.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;
use tokio::time::timeout;

use crate::rig::config::{Config, Connection};
use crate::rig::manager::{MANAGER, call};
use crate::rig::peers::{AuthorizationServer, CLIENT_ID, CLIENT_SECRET, Peers};
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::{Sidecar, program};

const TIMEOUT: Duration = Duration::from_secs(40);
/// A password grant whose token requests a script and `token_request` change.
const PASSWORD_KEYS: &str = "grant: password, username: ann, password: the-password-of-ann, \
     token_request: {headers: {x-fixed: here}}, \
     script: {source: 'fn token_request(r, ctx) { r.headers[\"x-own\"] = \"yes\"; r }'}";

/// What `check --online --json` reports: exit code, connections by name, and everything printed.
struct Report {
    code: Option<i32>,
    connections: Value,
    printed: String,
}

/// Runs `check --online --json` of these connections.
async fn check(top: &str, connections: &[String]) -> Report {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("keybearer.yaml");
    let mut config = top.to_owned() + "connections:\n";
    for connection in connections {
        writeln!(config, "- {{{connection}}}").expect("text");
    }
    std::fs::write(&file, config).expect("a file");
    let run = async |json: &[&str]| {
        let mut command = program();
        command.args(["check", "--online"]).args(json).arg("--config").arg(&file);
        timeout(TIMEOUT, command.output()).await.expect("it ends in time").expect("it runs")
    };
    let output = run(&["--json"]).await;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{printed}"));
    let mut by_name = json!({});
    for own in report["connections"].as_array().unwrap_or_else(|| panic!("{printed}")) {
        by_name[own["name"].as_str().expect("a name")] = own["checks"].clone();
    }
    Report { code: output.status.code(), connections: by_name, printed }
}

impl Report {
    /// The outcome and the text of the first check of this name.
    fn of(&self, connection: &str, check: &str) -> (String, String) {
        let checks = self.connections[connection].as_array().unwrap_or_else(|| panic!("{}", self.printed));
        let found =
            checks.iter().find(|own| own["name"] == check).unwrap_or_else(|| panic!("{check}: {}", self.printed));
        let text = |name: &str| found[name].as_str().unwrap_or_default().to_owned();
        (text("outcome"), format!("{}; {}", text("detail"), text("remedy")))
    }

    #[track_caller]
    fn expect(&self, connection: &str, check: &str, outcome: &str, part: &str) {
        let (got, text) = self.of(connection, check);
        assert!(got == outcome && text.contains(part), "{connection} {check}: {got}, {text}\n{}", self.printed);
    }
}

/// `trust` in the configuration's top level.
fn trust() -> String {
    format!("trust: [\"{}\"]\n", Peers::certs().ca.display())
}

/// The connections at a real server: `right` and `wrong`, `person`, `stranger` and `device`.
fn real(server: &AuthorizationServer, scopes: &str) -> Vec<String> {
    let issuer = format!("issuer: \"{}\"", server.issuer());
    let secret = "p-web-secret-0123456789abcdef0123456789abcdef";
    vec![
        format!("name: right, {issuer}, client_id: {CLIENT_ID}, client_secret: {CLIENT_SECRET}, scopes: \"{scopes}\""),
        format!("name: wrong, {issuer}, client_id: {CLIENT_ID}, client_secret: an-entirely-wrong-secret"),
        format!("name: person, {issuer}, grant: authorization_code, client_id: p-web, client_secret: {secret}"),
        format!("name: stranger, {issuer}, grant: authorization_code, client_id: p-web, client_secret: not-{secret}"),
        format!("name: device, {issuer}, grant: device_code, client_id: p-device, send_credentials: none"),
        format!("name: refused, {issuer}, client_id: p-public, send_credentials: none, grant: client_credentials"),
    ]
}

/// `device`: the outcome for a bogus device code.
async fn tells_a_wrong_secret_from_a_working_client(server: AuthorizationServer, device: &str) {
    let report = check(&trust(), &real(&server, "api.read")).await;
    assert_eq!(report.code, Some(2), "{}", report.printed);
    for name in ["right", "person", "device"] {
        report.expect(name, "dns", "ok", "127.0.0.1");
        report.expect(name, "connect", "ok", "valid certificate");
        report.expect(name, "metadata", "ok", &server.token_url());
    }
    let (clock, text) = report.of("right", "clock");
    assert!(clock == "ok" || text.contains("no `Date`"), "{text}");
    report.expect("right", "client", "ok", "issued a token");
    report.expect("person", "client", "ok", "accepts the client, and refuses a bogus code");
    report.expect("device", "client", device, "refuses a bogus device code");
    for name in ["wrong", "stranger"] {
        report.expect(name, "client", "failed", "does not accept the client: invalid_client");
        report.expect(name, "client", "failed", "`client_id`");
    }
    report.expect("refused", "client", "failed", "the grant client_credentials: ");
    for secret in [CLIENT_SECRET, "an-entirely-wrong-secret", "p-web-secret", "keybearer-preflight"] {
        assert!(!report.printed.contains(secret), "{secret} is printed: {}", report.printed);
    }

    let only_right = check(&trust(), &real(&server, "api.read")[..1]).await;
    assert_eq!(only_right.code, Some(0), "{}", only_right.printed);
}

#[tokio::test]
async fn oidc_provider_tells_a_wrong_secret_from_a_working_client() {
    let server = AuthorizationServer::op(json!({})).await;
    let odd = [real(&server, "api.read,unheard.of")[0].clone()];
    let report = check(&trust(), &odd).await;
    report.expect("right", "scopes", "warning", "does not announce unheard.of");
    report.expect("right", "grant", "ok", "client_credentials");
    report.expect("right", "authentication_method", "ok", "`client_secret_post`");
    tells_a_wrong_secret_from_a_working_client(server, "ok").await;
}

#[tokio::test]
async fn authlib_tells_a_wrong_secret_from_a_working_client() {
    // Authlib reports an unknown device code as invalid_request.
    tells_a_wrong_secret_from_a_working_client(AuthorizationServer::al(json!({})).await, "warning").await;
}

#[tokio::test]
async fn a_wrong_certificate_is_named_by_what_is_wrong_with_it() {
    for (leaf, part) in
        [("wrong", "it covers other.test;"), ("expired", "the certificate expired at 20"), ("unknown", "not trusted")]
    {
        let server = AuthorizationServer::op(json!({ "leaf": leaf })).await;
        let own = format!(
            "name: crm, token_url: \"{}\", client_id: {CLIENT_ID}, client_secret: {CLIENT_SECRET}",
            server.token_url()
        );
        let report = check(&trust(), &[own]).await;
        assert_eq!(report.code, Some(2), "{leaf}: {}", report.printed);
        let (outcome, text) = report.of("crm", "connect");
        assert!(outcome == "failed" && text.contains(part), "{leaf}: {text}");
        if leaf == "unknown" {
            assert!(text.contains("CN=") && text.contains("`authorization_server.trust`"), "{text}");
        }
        report.expect("crm", "client", "skipped", "not reached");
        assert_eq!(server.token_requests(CLIENT_ID).await, 0, "{leaf}: the secret was sent");
    }
}

/// A token endpoint whose `Date` differs from ours by `seconds`.
async fn with_clock(seconds: i64) -> Scripted {
    Scripted::start(move |request, _| {
        let date = (OffsetDateTime::now_utc() + time::Duration::seconds(seconds)).format(&Rfc2822).expect("a date");
        let date = date.replace("+0000", "GMT");
        let body = if request.head.starts_with("HEAD") { "" } else { r#"{"access_token":"t","token_type":"Bearer"}"# };
        let head = format!("HTTP/1.1 200 OK\r\nDate: {date}\r\nContent-Type: application/json\r\n");
        Reply::Bytes(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes())
    })
    .await
}

#[tokio::test]
async fn a_server_with_one_fault_is_reported_with_that_fault() {
    let (late, slow) = (with_clock(3600).await, with_clock(-90).await);
    let accepting = with_clock(0).await;
    let silent = Scripted::start(|_, _| Reply::Silence).await;
    let page = Scripted::start(|_, _| Reply::text(200, "text/html", "<p>Welcome")).await;
    let at = |name: &str, server: &Scripted, more: &str| {
        format!("name: {name}, token_url: \"http://{}/token\", client_id: a, client_secret: b{more}", server.address)
    };
    let code = ", grant: authorization_code, authorization_url: \"http://127.0.0.1:1/a\"";
    let start = Instant::now();
    let report = check(
        "",
        &[
            at("late", &late, ""),
            at("slow", &slow, ""),
            at("code", &accepting, code),
            at("password", &accepting, &format!(", {PASSWORD_KEYS}")),
            at("silent", &silent, ""),
            at("page", &page, ""),
            "name: metadata, token_url: \"https://metadata.test/token\", client_id: a, client_secret: b".to_owned(),
            "name: closed, token_url: \"http://127.0.0.1:1/token\", client_id: a, client_secret: b".to_owned(),
            "name: off, active: false, token_url: \"http://127.0.0.1:1/token\", client_id: a".to_owned(),
        ],
    )
    .await;
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    assert_eq!(report.code, Some(2));
    report.expect("late", "clock", "failed", "s ahead of this machine's");
    report.expect("slow", "clock", "warning", "s behind this machine's");
    report.expect("late", "client", "ok", "issued a token");
    report.expect("code", "client", "failed", "accepts a bogus code");
    report.expect("password", "client", "failed", "accepts a bogus refresh token");
    report.expect("silent", "connect", "failed", "within 5 s");
    report.expect("silent", "client", "skipped", "");
    report.expect("page", "client", "failed", "not_json");
    report.expect("closed", "connect", "failed", "unreachable");
    report.expect("metadata", "dns", "failed", "metadata.test");
    report.expect("off", "connection", "skipped", "active: false");
    let sent = accepting.received();
    let sent: String =
        sent.iter().map(|seen| format!("{}\n{}\n", seen.head, String::from_utf8_lossy(&seen.body))).collect();
    assert!(sent.contains("x-own: yes") && sent.contains("x-fixed: here"), "{sent}");
    assert!(sent.contains("code_verifier=") && sent.contains("client_secret=b"), "{sent}");
    assert!(!sent.contains("the-password-of-ann") && !report.printed.contains("the-password-of-ann"), "{sent}");
}

#[tokio::test]
async fn an_address_that_the_policy_denies_is_never_dialled() {
    let report = check(
        "hosts: {link.test: 169.254.169.254}\n",
        &["name: link, token_url: \"https://link.test/token\", client_id: a, client_secret: b".to_owned()],
    )
    .await;
    report.expect("link", "dns", "failed", "link-local");
    report.expect("link", "client", "skipped", "");
    assert!(report.code == Some(2) && !report.printed.contains("\"connect\""), "{}", report.printed);
}

#[tokio::test]
async fn the_api_runs_a_preflight_of_a_connection_in_force() {
    let server = Scripted::start(|request, _| match request.head.starts_with("HEAD") {
        true => Reply::text(204, "text/plain", ""),
        false if request.head.contains("/token") && !request.body.is_empty() => {
            Reply::json(400, &json!({"error": "invalid_grant"}))
        }
        false => Reply::ok(),
    })
    .await;
    let config = format!(
        "admin: {{users: [{{name: ops, role: manager, token: {MANAGER}}}]}}\nconnections:\n\
         - {{name: crm, token_url: \"http://{0}/token\", authorization_url: \"http://{0}/a\", client_id: a, client_secret: b}}\n\
         - {{name: off, active: false, token_url: \"http://{0}/token\", client_id: a}}\n",
        server.address
    );
    let sidecar = Sidecar::start(config).await;
    let preflight = async |name: &str, body: Value| {
        call(sidecar.admin(), "POST", &format!("/connections/{name}/preflight"), &body).await
    };
    let response = preflight("crm", json!({})).await;
    let checks = response.json()["checks"].clone();
    assert_eq!(response.status, 200, "{}", response.text());
    let shown: Vec<_> =
        checks.as_array().expect("checks").iter().map(|own| format!("{} {}", own["name"], own["outcome"])).collect();
    let expected = ["dns ok", "connect ok", "clock skipped", "metadata skipped", "client ok"];
    assert_eq!(shown.join(", ").replace('"', ""), expected.join(", "));
    let members: Vec<_> = checks[0].as_object().expect("a check").keys().map(String::as_str).collect();
    assert_eq!(members, ["detail", "name", "outcome", "remedy"]);
    let form = String::from_utf8(server.received().pop().expect("a request").body).expect("text");
    let callback = format!("redirect_uri=http%3A%2F%2Flocalhost%3A{}%2Foauth%2Fcallback", sidecar.admin().port());
    assert!(form.contains("code=keybearer-preflight-") && form.contains(&callback), "{form}");
    for (name, body, status, code) in [
        ("crm", json!({"other": 1}), 400, "bad_request"),
        ("off", json!({}), 409, "connection_inactive"),
        ("absent", json!({}), 404, "connection_unknown"),
    ] {
        let response = preflight(name, body).await;
        assert_eq!((response.status, response.json()["code"].as_str()), (status, Some(code)), "{name}");
    }
    sidecar.wait_for_log("preflight requested").await;
}

/// Runs a preflight of an unsaved definition; the response, and the outcome and text of each check by name.
async fn preflight_of(sidecar: &Sidecar, definition: &Value) -> (u16, Value) {
    let path = format!("/connections/{}/preflight", definition["name"].as_str().expect("a name"));
    let response = call(sidecar.admin(), "POST", &path, &json!({ "definition": definition })).await;
    (response.status, response.json())
}

#[track_caller]
fn assert_check(body: &Value, name: &str, outcome: &str, part: &str) {
    let found = body["checks"].as_array().and_then(|checks| checks.iter().find(|check| check["name"] == name));
    let found = found.unwrap_or_else(|| panic!("no check {name}: {body}"));
    assert!(found["outcome"] == outcome && found.to_string().contains(part), "{name} {outcome} {part}: {body}");
}

#[tokio::test]
async fn a_definition_that_is_not_saved_is_checked_and_leaves_nothing_behind() {
    let server = AuthorizationServer::op(json!({})).await;
    let sidecar =
        Sidecar::start(Config::new().manager().trust_peers().top("egress: {allow_private: [127.0.0.0/8]}\n")).await;
    let definition = |secret: &str, active: bool| {
        json!({
            "name": "new", "issuer": server.issuer(), "client_id": CLIENT_ID, "client_secret": secret,
            "scopes": "api.read", "active": active,
        })
    };
    let wrong = "an-entirely-wrong-secret";
    for (secret, active, outcome, part) in [
        (CLIENT_SECRET, true, "ok", "issued a token"),
        (CLIENT_SECRET, false, "ok", "issued a token"),
        (wrong, true, "failed", "does not accept the client: invalid_client"),
    ] {
        let (status, body) = preflight_of(&sidecar, &definition(secret, active)).await;
        assert_eq!(status, 200, "{body}");
        assert_check(&body, "dns", "ok", "127.0.0.1");
        assert_check(&body, "metadata", "ok", &server.token_url());
        assert_check(&body, "client", outcome, part);
        assert!(!body.to_string().contains(secret), "{body}");
    }
    sidecar.wait_for_log("preflight requested").await;
    assert!(!sidecar.log().contains(CLIENT_SECRET) && !sidecar.log().contains(wrong), "{}", sidecar.log());
    let get = call(sidecar.admin(), "GET", "/connections/new", &json!({})).await;
    assert_eq!(get.status, 404, "{}", get.text());
}

#[tokio::test]
async fn a_definition_that_is_not_saved_opens_no_address_that_the_operator_did_not_open() {
    let server = Scripted::start(|_, _| Reply::token("t", 60)).await;
    let config = Config::new().manager().host("opened.test", server.address);
    let sidecar = Sidecar::start(config).await;
    let port = server.address.port();
    for (url, part) in [
        (format!("http://127.0.0.1:{port}/token"), "private"),
        (format!("http://localhost:{port}/token"), "private"),
        (format!("http://[::ffff:127.0.0.1]:{port}/token"), "private"),
        ("https://169.254.169.254/token".to_owned(), "link-local"),
    ] {
        let definition = json!({ "name": "new", "client_id": "a", "client_secret": "b", "token_url": url });
        let (status, body) = preflight_of(&sidecar, &definition).await;
        assert_eq!(status, 200, "{url}: {body}");
        assert_check(&body, "dns", "failed", part);
        assert_check(&body, "client", "skipped", "not reached");
        let proxied = json!({
            "name": "new", "client_id": "a", "client_secret": "b", "token_url": "https://as.test/token",
            "authorization_server": {"proxy": url.replace("https:", "http:").trim_end_matches("/token")},
        });
        let (status, body) = preflight_of(&sidecar, &proxied).await;
        assert!(status == 200 && body.to_string().contains("failed"), "{url}: {body}");
    }
    assert_eq!(server.received().len(), 0);
    let url = format!("http://opened.test:{port}/token");
    let definition =
        json!({ "name": "new", "client_id": "a", "client_secret": "b", "token_url": url, "allow_cleartext": true });
    let (_, body) = preflight_of(&sidecar, &definition).await;
    assert_check(&body, "client", "ok", "issued a token");
}

#[tokio::test]
async fn a_definition_that_is_not_saved_is_refused_with_the_sentences_of_check() {
    let server = Scripted::start(|_, _| Reply::token("t", 60)).await;
    let connection = Connection::at("crm", &server).plain("api.test");
    let sidecar = Sidecar::start(Config::new().manager().connection(connection)).await;
    let define = |keys: Value| {
        let mut definition =
            json!({ "name": "new", "client_id": "a", "client_secret": "b", "token_url": "https://as.test/t" });
        definition.as_object_mut().expect("a map").extend(keys.as_object().expect("a map").clone());
        definition
    };
    for (keys, path, part) in [
        (json!({"nonsense": 1}), "nonsense", "unknown key"),
        (json!({"client_secret": {"file": "/etc/passwd"}}), "client_secret.file", ""),
        (json!({"token_url": "${env:HOME}"}), "token_url", ""),
        (json!({"client_secret": {"use": "gone"}}), "client_secret.use", "no published secret is named `gone`"),
        (json!({"routes": [{"host": "api.test"}]}), "routes[0]", "matches the same requests as connections[0]"),
        (json!({"name": "crm"}), "name", "another connection is named `crm`"),
    ] {
        let (status, body) = preflight_of(&sidecar, &define(keys.clone())).await;
        let problem = &body["problems"][0];
        assert_eq!((status, &problem["path"]), (422, &path.into()), "{keys}: {body}");
        assert!(problem["message"].as_str().is_some_and(|message| message.contains(part)), "{keys}: {body}");
        let is_reference = part.is_empty();
        assert_eq!(body["code"], if is_reference { "reference_not_allowed" } else { "definition_refused" }, "{body}");
    }
    let (_, body) = preflight_of(&sidecar, &define(json!({"nonsense": 1}))).await;
    let file =
        "connections:\n- {name: new, client_id: a, client_secret: b, token_url: \"https://as.test/t\", nonsense: 1}\n";
    let path = sidecar.dir.path().join("same.yaml");
    std::fs::write(&path, file).expect("a file");
    let output = program().args(["check", "--json", "--config"]).arg(&path).output().await.expect("it runs");
    let checked: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    for member in ["message", "hint"] {
        assert_eq!(body["problems"][0][member], checked["problems"][0][member], "{checked}");
    }
    let calls = [
        ("new", define(json!({"client_secret": {"set": true}})), 422, "secret_needed"),
        ("other", define(json!({})), 422, "definition_refused"),
        ("No-Name", define(json!({})), 400, "bad_request"),
        ("new", json!([]), 400, "bad_request"),
    ];
    for (name, definition, status, code) in calls {
        let path = format!("/connections/{name}/preflight");
        let response = call(sidecar.admin(), "POST", &path, &json!({ "definition": definition })).await;
        assert_eq!((response.status, response.json()["code"].as_str()), (status, Some(code)), "{}", response.text());
    }
    let large = define(json!({"comments": "x".repeat(257 * 1024)}));
    let (status, body) = preflight_of(&sidecar, &large).await;
    assert_eq!((status, &body["code"]), (413, &"body_too_large".into()), "{body}");
    std::fs::write(sidecar.dir.path().join("keybearer.yaml"), "nonsense: 1\n").expect("a file");
    let (status, body) = preflight_of(&sidecar, &define(json!({}))).await;
    assert_eq!((status, &body["code"]), (409, &"configuration_refused".into()), "{body}");
    assert_eq!(server.received().iter().filter(|seen| seen.head.starts_with("HEAD")).count(), 0, "no preflight ran");
}

#[tokio::test]
async fn the_table_shows_each_check_and_its_remedy() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("keybearer.yaml");
    let config =
        "connections:\n- {name: crm, token_url: \"http://127.0.0.1:1/token\", client_id: a, client_secret: b}\n";
    std::fs::write(&file, config).expect("a file");
    let output = program().args(["check", "--online", "--config"]).arg(&file).output().await.expect("it runs");
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(2), "{shown}");
    let lines: Vec<_> = shown.lines().collect();
    assert!(lines[0].ends_with("OK, 1 connection") && lines[1].starts_with("CONNECTION  CHECK"), "{shown}");
    assert!(lines.iter().any(|line| line.contains("connect") && line.contains("failed")), "{shown}");
    assert!(
        lines.iter().any(|line| line.trim_start().starts_with("to fix it: check the host and the port")),
        "{shown}"
    );
}
