//! The OpenAPI description: valid, complete, and true of every response that schemathesis provokes, with each role.
//!
//! Not here: which role may use which operation (`access`, `roles`).

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::{MANAGER, OPERATOR, VIEWER, call, wait_until};
use crate::rig::peers;
use crate::rig::raw::Conn;
use crate::rig::scripted::{Received, Reply, Scripted};
use crate::rig::sidecar::Sidecar;

/// Runs of schemathesis with fewer cases than this have examined nothing.
const CASES_MIN: usize = 500;

/// Connections whose definitions and tokens differ in kind; `SERVER` is replaced by a server that responds [`respond`].
const CONNECTIONS: &str = r#"
- name: crm
  client_id: the-client
  client_secret: [the-secret, {file: secret}]
  scopes: [Read, Write]
  available_scopes: {Read: a, Write: b}
  token_url: "http://SERVER/token?key=x"
  revocation_url: http://SERVER/revoke
  token_params: {hint: x, region: "${env:PATH}"}
  token_request: {encoding: json, headers: {X-Key: x}}
  token_response: {access_token: /access_token}
  script: {source: "fn token_request(request, ctx) { request }"}
  variables: {tenant: acme}
  refresh_token_lifespan: 100d
  refresh_ahead: 5m
  audience: ~
  comments: |
    two
    lines
  accessible_from: [billing]
  token_rejected: [{status: 401}, {status: 403, header: X-Expired, contains: "true"}]
  profiles: [{name: read, scopes: Read, audience: x}]
  routes:
  - {host: api.test, path: /v1, methods: [GET, POST], upstream_tls: false, set_headers: {X-Fixed: x}, strip: known}
  - {host: "*.api.test:8443", profile: read, inject: {query: token}}
- {name: "off", active: false, client_id: a, issuer: "https://as.test", send_credentials: none}
- name: desk
  client_id: b
  application: billing
  authorization_url: "http://SERVER/authorize?prompt=consent"
  authorize_params: {access_type: offline}
  pkce: {required: true, method: S256}
  token_url: http://SERVER/token
  allow_cleartext: true
  routes: [{mount: /desk, upstream: "http://SERVER"}]
- name: many
  client_id: c
  tokens: per_subject
  token_url: http://SERVER/token
  routes: [{mount: /many, upstream: "http://SERVER"}]
- name: tv
  grant: device_code
  client_id: d
  tokens: per_subject
  device_authorization_url: http://SERVER/device
  token_url: http://SERVER/token
"#;

fn respond(request: &Received, before: usize) -> Reply {
    let line = request.request_line();
    if line.contains(" /device ") {
        return Reply::json(
            200,
            &json!({"device_code": "d", "user_code": "AB-CD", "verification_uri": "https://as.test/device",
                "expires_in": 600, "interval": 5}),
        );
    }
    if String::from_utf8_lossy(&request.body).contains("device_code") {
        return Reply::json(400, &json!({"error": "authorization_pending"}));
    }
    if !line.starts_with("POST ") {
        return Reply::ok();
    }
    Reply::json(
        200,
        &json!({"access_token": format!("t{before}"), "token_type": "Bearer", "expires_in": 3600,
            "refresh_token": format!("r{before}"), "scope": "a b"}),
    )
}

/// Connections that are made over the API: `own0` and so on, and as many that are removed, `doomed0` and so on;
/// schemathesis.toml names them.
const OWN: usize = 6;

fn own(index: usize) -> Value {
    named(&format!("own{index}"))
}

fn named(name: &str) -> Value {
    json!({"name": name, "client_id": "a", "client_secret": "b", "token_url": "https://as.test/token",
        "grant": "authorization_code", "authorization_url": "https://as.test/authorize",
        "routes": [{"host": format!("{name}.test")}]})
}

struct Api {
    sidecar: Sidecar,
    document: Value,
    _server: Scripted,
}

impl Api {
    async fn start() -> Api {
        let server = Scripted::start(respond).await;
        let users = [("v", "viewer", VIEWER), ("o", "operator", OPERATOR), ("m", "manager", MANAGER)];
        let users = users.map(|(name, role, token)| format!("{{name: {name}, role: {role}, token: {token}}}"));
        let config = format!(
            "admin: {{users: [{}]}}\nhosts: {{api.test: \"SERVER\"}}\n\
             callers: [{{name: billing, secret: billing-secret, application: billing}}]\nconnections:{CONNECTIONS}",
            users.join(", ")
        );
        let config = config.replace("SERVER", &server.address.to_string());
        let sidecar = Sidecar::start_with(config, &[("secret", "another-secret")]).await;
        let document = call(sidecar.admin(), "get", "/api/v1/openapi.json", VIEWER, None).await.json();
        let both = |index| [own(index), named(&format!("doomed{index}"))];
        let own = json!({ "connections": (0..OWN).flat_map(both).collect::<Vec<_>>() });
        let made = call(sidecar.admin(), "post", "/api/v1/connections:apply", MANAGER, Some(&own)).await;
        assert_eq!(made.status, 200, "{}", made.text());
        Api { sidecar, document, _server: server }
    }

    /// The response to a manager, for the validator; `query` is not part of the documented path.
    async fn get(&self, path: &str, (real, query): (&str, &str)) -> Value {
        let response = call(self.sidecar.admin(), "get", &format!("/api/v1{real}{query}"), MANAGER, None).await;
        assert_eq!(response.status, 200, "{real}{query}: {}", response.text());
        let body = if query.contains("yaml") { response.text().into() } else { response.json() };
        json!({"method": "get", "path": format!("/api/v1{path}"), "status": 200, "body": body,
            "media_type": response.header("content-type").expect("a media type")})
    }

    /// Responses with connections of each kind, in each representation.
    async fn connections(&self) -> Vec<Value> {
        let mut responses = Vec::new();
        for query in ["?limit=200", "?format=yaml"] {
            responses.push(self.get("/connections", ("/connections", query)).await);
        }
        for name in ["crm", "off", "desk", "many", "tv", "own0", "own1", "own2"] {
            for (suffix, query) in [("", ""), ("", "?resolved=true"), ("", "?format=yaml"), ("/tokens", "")] {
                // A definition that is set aside has no tokens.
                if (name, suffix) != ("own2", "/tokens") {
                    let real = format!("/connections/{name}{suffix}");
                    responses.push(self.get(&format!("/connections/{{name}}{suffix}"), (&real, query)).await);
                }
            }
        }
        responses
    }

    /// Lets files collide with stored definitions: with the name of `own1`, and with the route of `own2`.
    async fn collide(&self) {
        let path = self.sidecar.dir.path().join("keybearer.yaml");
        let mut config = std::fs::read_to_string(&path).expect("the configuration");
        for definition in [
            own(1),
            json!({"name": "taker", "client_id": "a", "client_secret": "b",
            "token_url": "https://as.test/token", "routes": [{"host": "own2.test"}]}),
        ] {
            config += &format!("- {definition}\n");
        }
        std::fs::write(&path, config).expect("the configuration");
        let reloaded = call(self.sidecar.admin(), "post", "/api/v1/reload", MANAGER, None).await;
        assert_eq!(reloaded.status, 200, "{}", reloaded.text());
    }

    /// Each operation, with its path and method.
    fn operations(&self) -> Vec<(String, String, &Value)> {
        let paths = self.document["paths"].as_object().expect("paths").iter();
        let operations = paths.flat_map(|(path, methods)| {
            let methods = methods.as_object().expect("methods").iter();
            methods.map(|(method, operation)| (path.clone(), method.clone(), operation))
        });
        operations.collect()
    }
}

/// Runs a program of the Python peers with this input; returns its output.
async fn run(mut command: Command, input: &str) -> (bool, String) {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().expect("Python starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(input.as_bytes()).await.expect("write succeeds");
    drop(stdin);
    let output = child.wait_with_output().await.expect("output can be read");
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    (output.status.success(), text.concat())
}

#[tokio::test]
async fn every_operation_is_described_in_full() {
    let api = Api::start().await;
    let mut ids = BTreeSet::new();
    let tags: Vec<_> = api.document["tags"].as_array().expect("tags").iter().map(|tag| &tag["name"]).collect();
    for (path, method, operation) in api.operations() {
        let id = operation["operationId"].as_str().unwrap_or_else(|| panic!("{method} {path} has no operationId"));
        assert!(ids.insert(id), "{id} names two operations");
        assert!(operation["summary"].is_string() && tags.contains(&&operation["tags"][0]), "{id}: {operation}");
        assert_eq!(operation["security"] == json!([]), id == "signIn", "{id}");
        let body = &operation["requestBody"];
        assert!(!matches!(method.as_str(), "put" | "post") || !schemas(body).is_empty(), "{id}: {body}");
        for (status, response) in operation["responses"].as_object().expect("responses") {
            let kinds: &[&str] = match (status.as_str(), id) {
                ("204", _) => &[],
                ("200", "streamEvents") => &["text/event-stream"],
                ("200", "getLogo") => &["image/png"],
                ("200", "listConnections" | "getConnection") => &["application/json", "application/yaml"],
                (success, _) if success.starts_with('2') => &["application/json"],
                _ => &["application/problem+json"],
            };
            let content = response["content"].as_object();
            let found: BTreeSet<_> =
                content.into_iter().flat_map(|content| content.keys().map(String::as_str)).collect();
            assert!(found.into_iter().eq(kinds.iter().copied()), "{id} {status}");
            let schemas = content.into_iter().flat_map(|content| content.values());
            schemas.for_each(|media| assert!(media["schema"].is_object(), "{id} {status} has no schema"));
        }
    }
    // Generators of clients derive class names from these.
    let schemas = api.document["components"]["schemas"].as_object().expect("schemas");
    let names: BTreeSet<_> = schemas.keys().map(|name| name.replace('_', "").to_lowercase()).collect();
    assert_eq!(names.len(), schemas.len(), "{:?}", schemas.keys());
}

/// The media types of a body that have a schema.
fn schemas(body: &Value) -> Vec<&str> {
    let content = body["content"].as_object().into_iter().flatten();
    content.filter(|(_, described)| described["schema"].is_object()).map(|(kind, _)| kind.as_str()).collect()
}

#[tokio::test]
async fn the_description_is_valid_and_fits_every_connection() {
    let api = Api::start().await;
    let mut responses = Vec::new();
    for (path, query) in [("/activity", "?event=refresh"), ("/session", "")] {
        responses.push(api.get(path, (path, query)).await);
    }
    api.collide().await;
    responses.extend(api.connections().await);
    let states: Vec<_> = responses.iter().map(|response| &response["body"]["state"]).collect();
    assert!(states.contains(&&json!("misconfigured")), "{states:?}");
    assert!(responses.iter().any(|response| response["body"]["set_aside"].is_object()), "no shadowed definition");
    let mut command = Command::new(peers::python());
    command.arg(peers::peers_path("openapi.py"));
    let input = json!({ "document": api.document, "responses": responses }).to_string();
    let (_, errors) = run(command, &input).await;
    assert_eq!(errors, "[]");
}

#[tokio::test]
async fn the_stream_of_events_has_the_documented_media_type() {
    let api = Api::start().await;
    let documented = schemas(&api.document["paths"]["/api/v1/events"]["get"]["responses"]["200"]);
    let admin = api.sidecar.admin();
    let mut events = Conn::open(admin).await;
    let head = format!("GET /api/v1/events HTTP/1.1\r\nHost: {admin}\r\nAuthorization: Bearer {VIEWER}\r\n\r\n");
    events.write(head.as_bytes()).await;
    let head = wait_until(&mut events, "\r\n\r\n").await;
    assert!(
        head.starts_with("HTTP/1.1 200") && head.contains(&format!("content-type: {}\r\n", documented[0])),
        "{head}"
    );
}

/// The description for schemathesis, without what makes all of its changes fail in the same way: it sends both
/// conditions at once, tags that no revision has, and names of connections that do not exist or are a file's. Each
/// kind of body that holds a definition doubles its cases.
fn prepared(document: &Value) -> Value {
    let mut document = document.clone();
    document["components"]["schemas"]["connection"]["properties"]["name"]["examples"] = json!(["own0"]);
    let apply = &mut document["paths"]["/api/v1/connections:apply"]["post"]["requestBody"]["content"];
    apply["application/json"]["example"] = json!({ "connections": [own(0)] });
    let connection = &mut document["paths"]["/api/v1/connections/{name}"];
    for (method, example) in [("put", "own0"), ("patch", "own0"), ("delete", "doomed0")] {
        let parameters = connection[method]["parameters"].as_array_mut().expect("parameters");
        parameters.retain(|parameter| parameter["name"] != "If-None-Match");
        for parameter in parameters {
            match parameter["name"].as_str() {
                Some("name") => parameter["example"] = example.into(),
                Some("If-Match") => parameter["schema"] = json!({ "enum": ["*"] }),
                _ => {}
            }
        }
    }
    let bodies = connection["put"]["requestBody"]["content"].as_object_mut().expect("media types");
    bodies.remove("application/json");
    document
}

/// Examines the operations of the selected tags with this token. Returns each with the statuses of its responses.
async fn schemathesis(api: &Api, token: Option<&str>, tags: &[&str]) -> BTreeMap<String, BTreeSet<u64>> {
    let admin = api.sidecar.admin();
    let begun = call(admin, "post", "/api/v1/connections/desk/authorize", OPERATOR, Some(&json!({}))).await;
    let file = |name: &str| api.sidecar.dir.path().join(name);
    let (document, settings) = (file("openapi.json"), file("schemathesis.toml"));
    std::fs::write(&document, prepared(&api.document).to_string()).expect("a file");
    let text = std::fs::read_to_string(peers::peers_path("schemathesis.toml")).expect("a readable file");
    let names = |prefix: &str| json!((0..OWN).map(|index| format!("{prefix}{index}")).collect::<Vec<_>>()).to_string();
    let text = text.replace("AUTHORIZATION", begun.json()["id"].as_str().expect("an ID"));
    let text = text.replace("[OWN]", &names("own")).replace("[DOOMED]", &names("doomed"));
    std::fs::write(&settings, text).expect("a file");
    std::fs::copy(peers::peers_path("statuses.py"), file("statuses.py")).expect("a file");
    let mut command = Command::new(peers::python());
    command.current_dir(&api.sidecar.dir).env("SCHEMATHESIS_HOOKS", "statuses");
    command.args(["-m", "schemathesis.cli", "--config-file"]).arg(&settings).arg("run").arg(&document);
    command.args(["--url", &format!("http://{admin}")]).args(tags);
    if let Some(token) = token {
        command.args(["--header", &format!("Authorization: Bearer {token}")]);
    }
    let (passed, output) = run(command, "").await;
    assert!(passed, "{output}");
    let (mut statuses, mut cases) = (BTreeMap::<_, BTreeSet<_>>::new(), 0);
    for line in std::fs::read_to_string(file("statuses")).expect("the statuses").lines() {
        let (label, status) = line.split_once('\t').expect("an operation and a status");
        statuses.entry(label.to_owned()).or_default().insert(status.parse().expect("a status"));
        cases += 1;
    }
    assert!(cases > CASES_MIN, "{cases} cases: {output}");
    statuses
}

/// Operations that change definitions take longest.
const CHANGES: &[&str] = &["--include-tag", "definitions"];
const OTHERS: &[&str] = &["--exclude-tag", "definitions"];

/// Runs schemathesis, and checks that every operation that the role may use has succeeded at least once.
async fn examine(token: Option<&str>, roles: &[&str], tags: &[&str]) {
    let api = Api::start().await;
    let statuses = schemathesis(&api, token, tags).await;
    for (path, method, operation) in api.operations() {
        let id = operation["operationId"].as_str().expect("an ID");
        // No generated token is a user's; the stream of events has no end; no connection has a logo.
        let excluded = if operation["tags"][0] == "definitions" { OTHERS } else { CHANGES };
        if tags == excluded || ["signIn", "streamEvents", "getLogo"].contains(&id) {
            continue;
        }
        let found = &statuses[&format!("{} {path}", method.to_uppercase())];
        let permitted = roles.contains(&operation["x-role"].as_str().expect("a role"));
        let succeeded = found.iter().any(|status| (200..300).contains(status));
        assert_eq!(succeeded, permitted, "{id}: {found:?}");
        assert!(permitted || found.iter().any(|status| [401, 403].contains(status)), "{id}: {found:?}");
    }
}

#[tokio::test]
async fn schemathesis_finds_nothing_as_a_manager() {
    examine(Some(MANAGER), &["viewer", "operator", "manager"], OTHERS).await;
}

#[tokio::test]
async fn schemathesis_finds_nothing_in_the_changes_of_a_manager() {
    examine(Some(MANAGER), &["viewer", "operator", "manager"], CHANGES).await;
}

#[tokio::test]
async fn schemathesis_finds_nothing_as_an_operator() {
    examine(Some(OPERATOR), &["viewer", "operator"], &[]).await;
}

#[tokio::test]
async fn schemathesis_finds_nothing_as_a_viewer() {
    examine(Some(VIEWER), &["viewer"], &[]).await;
}

#[tokio::test]
async fn schemathesis_finds_nothing_without_a_credential() {
    examine(None, &[], &[]).await;
}
