//! Every example as a definition over the API, or in its file: what GET shows, sent back, changes nothing.

use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::{Value, json};

use super::{copy_folder, header_variables, run_header_commands, yaml_files};
use crate::rig::command::output_text;
use crate::rig::manager::{MANAGER, call, call_as};
use crate::rig::raw::RawResponse;
use crate::rig::sidecar::{Sidecar, program, root};

/// What the definitions of the examples refer to.
const INSTANCE: &str = "\
secrets: {crm: {file: secret, hosts: [login.example.com]}}
mutual_tls_profiles: {partner: {certificate: partner.pem, key: {file: partner.key}}}
callers:
- {name: nightly, secret: a}
- {name: billing, secret: b}
- {name: audit, secret: c}
- {name: portal, secret: d}
";

/// Those that need a certificate of this machine, which a definition over the API must not name.
const WITH_FILES: [&str; 2] = ["entra-certificate.yaml", "servicenow-mutual-tls.yaml"];

/// The top-level keys of an example, and its connections, inactive, so that they send no request.
fn parts(text: &str) -> (String, String) {
    let (top, connections) = text.split_once("\nconnections:\n").expect("connections");
    let mut inactive = "connections:\n".to_owned();
    for line in connections.lines() {
        let active = if line.starts_with("  - name: ") { "    active: false\n" } else { "" };
        inactive += &format!("{line}\n{active}");
    }
    (format!("{top}\n"), inactive)
}

/// The connections as written.
fn written(text: &str) -> Vec<Value> {
    let document: Value = serde_yaml::from_str(text).expect("YAML");
    document["connections"].as_array().expect("a list").clone()
}

async fn run(sidecar: &Sidecar, arguments: &[&str], file: &Path, variables: &[(String, String)]) -> Output {
    let mut command = program();
    command.args(arguments).arg(file).envs(variables.iter().cloned()).current_dir(file.parent().expect("a folder"));
    command.env("KEYBEARER_ADMIN_URL", format!("http://{}", sidecar.admin())).env("KEYBEARER_ADMIN_TOKEN", MANAGER);
    command.output().await.expect("the command starts")
}

async fn get(sidecar: &Sidecar, path: &str) -> RawResponse {
    call(sidecar.admin(), "GET", path, &Value::Null).await
}

async fn check_in_store(sidecar: &Sidecar, name: &str) {
    let shown = get(sidecar, &format!("/connections/{name}")).await;
    let etag = shown.header("etag").expect("an ETag").to_owned();
    let lines = format!("Content-Type: application/json\r\nIf-Match: {etag}\r\n");
    for (method, body) in [("PUT", shown.text()), ("PATCH", "{}".to_owned())] {
        let path = format!("/connections/{name}");
        let same = call_as(MANAGER, sidecar.admin(), (method, &path), &lines, &body).await;
        assert_eq!((same.status, same.header("etag")), (200, Some(etag.as_str())), "{name}: {method} {}", same.text());
    }
}

fn file_name(file: &Path) -> &str {
    file.file_name().and_then(|name| name.to_str()).expect("UTF-8")
}

#[tokio::test]
async fn every_example_survives_a_round_trip() {
    let dir = copy_folder(&root().join("config"));
    let all: Vec<PathBuf> = yaml_files(dir.path());
    let partner = all.iter().find(|file| file_name(file) == "published.yaml").expect("an example");
    run_header_commands(&std::fs::read_to_string(partner).expect("a file"), partner.parent().expect("a folder"));
    let read = |name: &str| std::fs::read_to_string(partner.with_file_name(name)).expect("a file");
    let config =
        format!("admin: {{users: [{{name: ops, role: manager, token: {MANAGER}}}]}}\n{INSTANCE}connections: []\n");
    let files = [("secret", "x"), ("partner.pem", &read("partner.pem")), ("partner.key", &read("partner.key"))];
    let sidecar = Sidecar::start_with(&config, &files).await;
    let mut with_files = Vec::new();
    for file in &all {
        let text = std::fs::read_to_string(file).expect("a file");
        run_header_commands(&text, file.parent().expect("a folder"));
        let ((top, connections), variables) = (parts(&text), header_variables(&text));
        std::fs::write(file, &connections).expect("a file");
        let applied = run(&sidecar, &["apply", "--prune", "-f"], file, &variables).await;
        if !applied.status.success() {
            assert!(
                output_text(&applied).contains("a file cannot be sent to an instance"),
                "{}",
                output_text(&applied)
            );
            std::fs::write(file, top + &connections).expect("a file");
            with_files.push(file.clone());
            continue;
        }
        let connections = written(&connections);
        for connection in &connections {
            let name = connection["name"].as_str().expect("a name");
            check_in_store(&sidecar, name).await;
            let resolved = get(&sidecar, &format!("/connections/{name}?resolved=true")).await.json();
            for key in connection.as_object().expect("a map").keys() {
                assert_eq!(resolved[key]["source"], "api", "{name}: {key}: {resolved}");
            }
        }
        let exported = file.with_extension("exported");
        std::fs::write(&exported, get(&sidecar, "/connections?format=yaml").await.text()).expect("a file");
        let same = run(&sidecar, &["apply", "--prune", "-f"], &exported, &[]).await;
        let expected = format!("0 created, 0 changed, {} unchanged, 0 removed", connections.len());
        assert!(output_text(&same).contains(&expected), "{}: {}", file.display(), output_text(&same));
    }
    assert_eq!(with_files.iter().map(|file| file_name(file)).collect::<Vec<_>>(), WITH_FILES);
    for file in with_files {
        check_in_file(&file).await;
    }
}

/// In a file, a definition is shown as it is written, and read-only.
async fn check_in_file(file: &Path) {
    let dir = copy_folder(file.parent().expect("a folder"));
    let text = std::fs::read_to_string(file).expect("a file");
    let ports = "listeners: {proxy: \"127.0.0.1:0\", admin: \"127.0.0.1:0\"}";
    let with_user = format!("{ports}\nadmin: {{users: [{{name: ops, role: manager, token: {MANAGER}}}]}}");
    let config = text.replace("listeners: {proxy: 127.0.0.1:8080, admin: 127.0.0.1:8081}", &with_user);
    std::fs::write(dir.path().join("keybearer.yaml"), &config).expect("a file");
    let variables = header_variables(&text);
    let variables: Vec<_> = variables.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    let sidecar = Sidecar::start_over(dir, 2, &variables).await;
    for connection in written(&config) {
        let path = format!("/connections/{}", connection["name"].as_str().expect("a name"));
        let (shown, resolved) =
            (get(&sidecar, &path).await.json(), get(&sidecar, &format!("{path}?resolved=true")).await);
        for (key, value) in connection.as_object().expect("a map") {
            assert_eq!((&shown[key], &resolved.json()[key]["value"]), (value, value), "{key}");
            let source = resolved.json()[key]["source"].as_str().expect("a source").to_owned();
            let line: usize = source.rsplit(':').next().and_then(|line| line.parse().ok()).expect("a line");
            assert!(
                config.lines().nth(line - 1).is_some_and(|line| line.contains(&format!("{key}:"))),
                "{key}: {source}"
            );
        }
        let lines = "Content-Type: application/json\r\nIf-Match: *\r\n";
        let put = call_as(MANAGER, sidecar.admin(), ("PUT", &path), lines, &shown.to_string()).await;
        assert_eq!((put.status, &put.json()["code"]), (409, &json!("read_only")));
    }
}
