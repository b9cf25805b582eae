//! `apply` and `export`: what an instance is sent, and how its responses are shown. A scripted server poses as the
//! instance.

mod instance;

use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::rig::command::output_text;
use crate::rig::manager::MANAGER;
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::program;

const TIMEOUT: Duration = Duration::from_secs(40);
const SECRET: &str = "canary-secret-in-a-file";

async fn run(instance: &Scripted, arguments: &[&str]) -> (i32, String, String) {
    output(instance.address, arguments).await
}

/// Runs a command against the instance at `admin`; its exit code, stdout and stderr.
async fn output(admin: SocketAddr, arguments: &[&str]) -> (i32, String, String) {
    let mut command = program();
    command.args(arguments).env("KEYBEARER_ADMIN_URL", format!("http://{admin}"));
    command.env("KEYBEARER_ADMIN_TOKEN", MANAGER).env("CRM_ID", "id-from-the-environment");
    let output = timeout(TIMEOUT, command.output()).await.expect("exits before the timeout").expect("starts");
    assert!(!output_text(&output).contains(SECRET) && !output_text(&output).contains(MANAGER), "{output:?}");
    let Output { status, stdout, stderr } = output;
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (status.code().expect("an exit code"), text(stdout), text(stderr))
}

/// A directory with files, by their relative paths.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    for (name, text) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(&path, text).expect("a file");
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("its own file");
    }
    dir
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Two files of definitions and the secret that they refer to.
fn definitions() -> (TempDir, PathBuf) {
    let dir = folder(&[
        (
            "all/crm.yaml",
            "connections:\n- name: crm\n  client_id: \"${env:CRM_ID}\"\n  client_secret: {file: ../secret}\n  \
             token_url: https://as.test/t\n  routes:\n  - host: api.test\n",
        ),
        ("all/maps.yaml", "{\"name\": \"maps\", \"client_id\": \"a\", \"client_secret\": {\"set\": true}}"),
        ("secret", SECRET),
    ]);
    let all = dir.path().join("all");
    (dir, all)
}

#[tokio::test]
async fn apply_sends_every_definition_with_its_references_filled() {
    let response = json!({"created": ["maps"], "changed": ["crm"], "unchanged": [], "removed": ["old"]});
    let instance = Scripted::start(move |_, _| Reply::json(200, &response)).await;
    let (_dir, all) = definitions();
    let (code, stdout, stderr) = run(&instance, &["apply", "-f", text(&all)]).await;
    let expected = "crm: changed\nmaps: created\nold: removed\n1 created, 1 changed, 0 unchanged, 1 removed\n";
    assert_eq!((code, stdout.as_str()), (0, expected), "{stderr}");
    let (code, stdout, _) = run(&instance, &["apply", "--file", text(&all), "--dry-run", "--prune"]).await;
    assert_eq!(code, 0);
    assert!(stdout.starts_with("crm: would be changed\n") && stdout.ends_with("; dry run, nothing was changed\n"));
    let received = instance.received();
    assert_eq!(received[0].request_line(), "POST /api/v1/connections:apply HTTP/1.1");
    assert_eq!(received[1].request_line(), "POST /api/v1/connections:apply?dry_run=true&prune=true HTTP/1.1");
    assert_eq!(received[0].values("authorization"), [format!("Bearer {MANAGER}")]);
    assert_eq!(received[0].values("content-type"), ["application/json"]);
    let expected = json!({"connections": [
        {"name": "crm", "client_id": "id-from-the-environment", "client_secret": SECRET,
         "token_url": "https://as.test/t", "routes": [{"host": "api.test"}]},
        {"name": "maps", "client_id": "a", "client_secret": {"set": true}}
    ]});
    assert_eq!(serde_json::from_slice::<Value>(&received[0].body).expect("JSON"), expected);
    let (code, stdout, _) = run(&instance, &["apply", "-f", text(&all), "--json"]).await;
    assert_eq!((code, serde_json::from_str::<Value>(&stdout).expect("JSON")["removed"][0].as_str()), (0, Some("old")));
}

#[tokio::test]
async fn problems_of_the_instance_are_shown_at_their_positions_in_the_files() {
    let problems = json!([
        {"connection": "maps", "path": "token_url", "line": 1, "column": 9, "message": "`token_url` is missing", "hint": "w"},
        {"connection": "crm", "path": "routes[0].host", "line": 1, "column": 9, "message": "is odd\u{1b}", "hint": "write it"},
        {"connection": "crm", "path": "client_secret", "message": "is needed", "hint": "x", "code": "secret_needed"},
        {"connection": "other", "path": "name", "message": "is in use", "hint": "y"}
    ]);
    let refusal = json!({"code": "definition_refused", "status": 422, "detail": "4 problems", "problems": problems});
    let instance = Scripted::start(move |_, _| Reply::json(422, &refusal)).await;
    let (_dir, all) = definitions();
    let (crm, maps) = (all.join("crm.yaml"), all.join("maps.yaml"));
    let (code, stdout, stderr) = run(&instance, &["apply", "-f", text(&all)]).await;
    let (all, crm, maps) = (text(&all), text(&crm), text(&maps));
    let expected = format!(
        "{all}:1:1: other.name: is in use; y\n{crm}:4:18: connections[0].client_secret: is needed; x\n\
         {crm}:7:11: connections[0].routes[0].host: is odd\\u{{1b}}; write it\n\
         {maps}:1:1: token_url: `token_url` is missing; w\n"
    );
    assert_eq!((code, stdout, stderr), (2, expected, format!("{all}: 4 problems\n")));
    let (code, stdout, _) = run(&instance, &["apply", "-f", all, "--json"]).await;
    let report: Value = serde_json::from_str(&stdout).expect("JSON");
    let expected = json!({"file": crm, "line": 4, "column": 18, "path": "connections[0].client_secret",
        "message": "is needed", "hint": "x", "connection": "crm", "code": "secret_needed"});
    assert_eq!((code, &report["problems"][1]), (2, &expected), "{report}");
}

#[tokio::test]
async fn what_cannot_be_sent_is_a_problem_and_nothing_is_sent() {
    let instance = Scripted::start(|_, _| Reply::json(200, &json!({}))).await;
    let dir = folder(&[
        (
            "all/crm.yaml",
            "connections:\n- name: crm\n  client_secret: {store: crm}\n  script: {file: gone.rhai}\n  \
             authorization_server: {trust: [ca.pem]}\n",
        ),
        ("all/main.yaml", "listeners: {proxy: \"127.0.0.1:1\"}\nconnections: []\n"),
        ("none/readme.txt", ""),
        ("empty.yaml", ""),
        ("null.yaml", "connections:\n"),
        ("nothing.yaml", "connections: []\n"),
    ]);
    let path = |name: &str| text(&dir.path().join(name)).to_owned();
    let (code, stdout, stderr) = run(&instance, &["apply", "-f", &path("all")]).await;
    let lines: Vec<&str> = stdout.lines().collect();
    let expected = [
        "crm.yaml:3:26: connections[0].client_secret.store: a secret in the sealed store cannot be sent",
        "crm.yaml:4:18: connections[0].script.file: ",
        "crm.yaml:5:34: connections[0].authorization_server.trust[0]: a file cannot be sent to an instance",
        "main.yaml:1:1: listeners: `listeners` is not part of a definition; move it to the instance's own",
    ];
    assert_eq!((code, lines.len()), (2, expected.len()), "{stdout}{stderr}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.starts_with(&format!("{}/{expected}", path("all"))), "{line}\n  is not {expected}");
    }
    let (_, stdout, _) = run(&instance, &["apply", "-f", &path("all"), "--json"]).await;
    let report: Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!(report["problems"].as_array().map(Vec::len), Some(4), "{report}");
    // Nothing is removed by accident.
    for name in ["none", "empty.yaml", "null.yaml", "gone.yaml"] {
        let (code, stdout, _) = run(&instance, &["apply", "-f", &path(name), "--prune"]).await;
        assert_eq!((code, stdout.lines().count()), (2, 1), "{stdout}");
    }
    assert_eq!(instance.count(), 0);
    let (code, _, stderr) = run(&instance, &["apply", "-f", &path("nothing.yaml"), "--prune"]).await;
    assert_eq!((code, instance.received()[0].body.as_slice()), (0, &br#"{"connections":[]}"#[..]), "{stderr}");
}

#[tokio::test]
async fn a_refusal_of_the_whole_is_one_sentence_and_fails() {
    let refusals = [
        json!({"code": "read_only", "detail": "`crm` is defined in a file", "path": "/etc/keybearer/keybearer.yaml"}),
        json!({"code": "role_too_low", "detail": "a manager may do this"}),
        json!({"code": "in_use", "status": 409, "detail": "other connections would no longer be valid",
            "problems": [{"connection": "web", "path": "routes[0].inject", "message": "no connection is named `crm`"}]}),
    ];
    let instance = Scripted::start(move |_, before| Reply::json(409, &refusals[before])).await;
    let (_dir, all) = definitions();
    for expected in [
        "read_only: `crm` is defined in a file (/etc/keybearer/keybearer.yaml); nothing was changed\n",
        "role_too_low: a manager may do this; nothing was changed\n",
        "in_use: other connections would no longer be valid; web routes[0].inject: no connection is named `crm`; \
         nothing was changed\n",
    ] {
        let (code, stdout, stderr) = run(&instance, &["apply", "-f", text(&all)]).await;
        assert_eq!((code, stdout.as_str(), stderr.as_str()), (1, "", expected));
    }
}

#[tokio::test]
async fn an_export_is_printed_as_it_is_and_can_be_applied() {
    const YAML: &str = "connections:\n- name: crm\n  client_id: a\n  client_secret:\n    set: true\n";
    let instance = Scripted::start(|request, _| match request.request_line().split(' ').nth(1) {
        Some("/api/v1/connections?format=yaml") => Reply::text(200, "application/yaml", YAML),
        Some("/api/v1/connections/crm?format=yaml") => Reply::text(200, "application/yaml", "name: crm\n"),
        Some("/api/v1/connections/json?format=yaml") => Reply::json(200, &json!({"name": "json"})),
        Some("/api/v1/connections/esc?format=yaml") => Reply::text(200, "application/yaml", "name: \u{1b}[2J\n"),
        Some("/api/v1/connections:apply") => Reply::json(200, &json!({"unchanged": ["crm"]})),
        _ => Reply::json(404, &json!({"code": "connection_unknown", "detail": "no connection has this name"})),
    })
    .await;
    let (code, all, stderr) = run(&instance, &["export"]).await;
    assert_eq!((code, all.as_str()), (0, YAML), "{stderr}");
    assert_eq!(run(&instance, &["export", "crm"]).await, (0, "name: crm\n".to_owned(), String::new()));
    let (code, json, _) = run(&instance, &["export", "--json"]).await;
    let expected = json!([{"name": "crm", "client_id": "a", "client_secret": {"set": true}}]);
    assert_eq!((code, serde_json::from_str::<Value>(&json).expect("JSON")), (0, json!({"connections": expected})));
    let gone = "connection_unknown: no connection has this name\n".to_owned();
    assert_eq!(run(&instance, &["export", "gone"]).await, (1, String::new(), gone));
    for (name, expected) in [("json", "does not export YAML"), ("esc", "is not YAML")] {
        let (code, stdout, stderr) = run(&instance, &["export", name]).await;
        assert!(code == 1 && stdout.is_empty() && stderr.contains(expected), "{stdout}{stderr}");
    }
    let dir = folder(&[("all.yaml", &all), ("all.json", &json)]);
    for name in ["all.yaml", "all.json"] {
        let (code, _, stderr) = run(&instance, &["apply", "-f", text(&dir.path().join(name))]).await;
        let sent = instance.received().pop().expect("a request").body;
        let sent: Value = serde_json::from_slice(&sent).expect("JSON");
        assert_eq!((code, sent), (0, json!({"connections": expected})), "{name}: {stderr}");
    }
}

/// Larger than a file of the configuration may be, and than any other response.
#[tokio::test]
async fn a_large_export_is_printed_completely_and_can_be_applied() {
    const BYTES: usize = 20 * 1024 * 1024;
    let note = "x".repeat(200 * 1024);
    let one = |index: usize| format!("- {{name: c{index}, client_id: a, comments: {note}}}\n");
    let yaml = "connections:\n".to_owned() + &(0..BYTES / note.len()).map(one).collect::<String>();
    let (size, response) = (yaml.len(), yaml.clone());
    let instance = Scripted::start(move |request, _| match request.request_line().starts_with("GET") {
        true => Reply::text(200, "application/yaml", &response),
        false => Reply::json(200, &json!({"created": []})),
    })
    .await;
    let (code, exported, stderr) = run(&instance, &["export"]).await;
    assert_eq!((code, exported.len(), exported == yaml), (0, size, true), "{stderr}");
    let dir = folder(&[("all.yaml", &exported)]);
    let (code, stdout, stderr) = run(&instance, &["apply", "-f", text(&dir.path().join("all.yaml"))]).await;
    assert_eq!(code, 0, "{stdout}{stderr}");
    assert!(instance.received()[1].body.len() > BYTES - note.len());
}
