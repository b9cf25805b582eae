//! The README and docs match the program: every example configuration loads and its script works, every command exists, every
//! error has its section.
//!
//! Not here: links, anchors and the width of lines (`docs`).

mod round_trip;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::rig::raw::{self, RawResponse};
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::{Sidecar, program, root};

/// The only commands in README and docs that build something.
const COMMANDS: [&str; 2] = ["cargo run --release -- demo", "tests/run"];

#[tokio::test]
async fn every_configuration_under_config_loads_without_a_problem() {
    // In a copy, since a header may contain commands that create files.
    let dir = copy_folder(&root().join("config"));
    let files = yaml_files(dir.path());
    assert!(files.len() >= 5, "{files:?}");
    for file in files {
        let text = std::fs::read_to_string(&file).expect("a readable file");
        run_header_commands(&text, file.parent().expect("a folder"));
        let report = check(&file, &header_variables(&text)).await;
        let none = Value::Array(vec![]);
        assert_eq!((&report["problems"], &report["warnings"]), (&none, &none), "{}", file.display());
    }
}

/// The result of one request through the proxy with an example configuration.
struct Exchange {
    response: RawResponse,
    upstream: Scripted,
    token_endpoint: Scripted,
}

/// Runs an example with its script and a token endpoint that responds `token_response`, and sends a request to `path`.
async fn send_request(
    example: &str,
    script: &str,
    (host, path): (&str, &str),
    token_response: &'static str,
) -> Exchange {
    let folder = root().join("config/examples");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).expect("a readable file");
    let upstream = Scripted::upstream().await;
    let token_endpoint = Scripted::start(move |_, _| Reply::text(200, "text/plain", token_response)).await;
    let mut text = read(example);
    for (name, value) in header_variables(&text) {
        text = text.replace(&format!("{{env: {name}}}"), &value);
    }
    let text = text.replace("listeners: {proxy: 127.0.0.1:8080, admin: 127.0.0.1:8081}\n", "");
    let text =
        text.replace(&format!("token_url: https://{host}"), &format!("token_url: http://{}", token_endpoint.address));
    let text = text.replace(&format!("- host: {host}"), &format!("- upstream_tls: false\n        host: {host}"));
    let text = format!("hosts: {{{host}: \"{}\"}}\n{text}", upstream.address);
    let sidecar = Sidecar::start_with(&text, &[(script, &read(script))]).await;
    let response = raw::get_through(sidecar.proxy(), &format!("http://{host}{path}"), "").await;
    Exchange { response, upstream, token_endpoint }
}

#[tokio::test]
async fn the_signing_script_does_not_send_the_secret() {
    let token_response = r#"{"access_token": "t", "token_type": "Bearer", "expires_in": 600}"#;
    let target = ("payments.example.com", "/v2/balance");
    let exchange = send_request("script-signed-request.yaml", "signed-request.rhai", target, token_response).await;
    assert_eq!(
        (exchange.response.status, exchange.upstream.received()[0].values("authorization")),
        (200, vec!["Bearer t"])
    );
    let request = exchange.token_endpoint.received().remove(0);
    let form = String::from_utf8(request.body.clone()).expect("a form");
    assert!(form.contains("merchant=acme") && !form.contains("secret"), "{form}");
    let time = request.values("x-timestamp")[0].to_owned();
    let line =
        format!("printf %s {time}.shop-4711.acme | openssl dgst -sha256 -hmac the-client-secret -r | cut -d' ' -f1");
    let openssl = std::process::Command::new("sh").args(["-c", &line]).output().expect("openssl");
    let expected = format!("v1={}", String::from_utf8_lossy(&openssl.stdout).trim());
    assert_eq!(request.values("x-signature"), [expected]);
}

#[tokio::test]
async fn the_xml_script_extracts_the_token_or_names_the_missing_element() {
    let send = async |token_response| {
        let target = ("archive.example.com", "/api/x");
        send_request("script-xml-response.yaml", "xml-response.rhai", target, token_response).await
    };
    let good = send("<?xml version=\"1.0\"?><session><token>abc</token><minutes>30</minutes></session>").await;
    assert_eq!((good.response.status, good.upstream.received()[0].values("x-session")), (200, vec!["abc"]));
    let bad = send("<session><minutes>30</minutes></session>").await;
    assert_eq!((bad.response.status, bad.response.code()), (424, "script_failed"));
    assert!(bad.response.text().contains("the response has no <token>"), "{}", bad.response.text());
}

#[tokio::test]
async fn the_script_for_failures_in_success_responses_distinguishes_retryable_from_permanent() {
    let send = async |token_response| {
        let target = ("chat.example.com", "/api/x");
        send_request("script-failure-in-success.yaml", "failure-in-success.rhai", target, token_response).await
    };
    let good = send(r#"{"ok": true, "authed_user": {"access_token": "x", "token_type": "user", "expires_in": 43200}}"#);
    let good = good.await;
    assert_eq!((good.response.status, good.upstream.received()[0].values("authorization")), (200, vec!["Bearer x"]));
    let later = send(r#"{"ok": false, "error": "ratelimited"}"#).await.response;
    assert_eq!((later.status, later.code()), (503, "token_unavailable"), "{}", later.text());
    let refused = send(r#"{"ok": false, "error": "invalid_client_id"}"#).await.response;
    assert_eq!((refused.status, refused.code()), (424, "token_refused"), "{}", refused.text());
    assert!(refused.text().contains("invalid_client_id"), "{}", refused.text());
}

#[tokio::test]
async fn every_configuration_in_readme_and_docs_loads_without_a_problem() {
    let shown = pages().into_iter().flat_map(|(page, text)| {
        code_blocks(&text, "yaml").into_iter().map(move |block| (page.clone(), block)).collect::<Vec<_>>()
    });
    let shown: Vec<_> = shown.collect();
    assert!(shown.len() >= 10, "only {} blocks", shown.len());
    for (page, block) in shown {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("keybearer.yaml");
        std::fs::write(&file, complete_configuration(&block)).expect("a file");
        run_header_commands(&block, dir.path());
        let variables: Vec<_> = named_variables(&block).into_iter().map(|name| (name, "x".to_owned())).collect();
        let report = check(&file, &variables).await;
        assert_eq!(report["problems"], Value::Array(vec![]), "{page}, in:\n{}", complete_configuration(&block));
    }
}

#[test]
fn the_docs_list_every_example() {
    let text = page("docs/configuration.md");
    for entry in std::fs::read_dir(root().join("config/examples")).expect("a folder") {
        let name = entry.expect("a readable directory entry").file_name().into_string().expect("UTF-8");
        let row = |line: &str| line.starts_with('|') && line.contains(&format!("[{name}]"));
        assert!(text.lines().any(row), "{name} is in no table of docs/configuration.md");
    }
}

#[test]
fn readme_and_docs_show_exactly_two_build_commands_and_both_exist() {
    let lines = shell_lines();
    let building: Vec<_> =
        lines.iter().filter(|line| ["cargo ", "tests/", "./"].iter().any(|start| line.starts_with(start))).collect();
    assert_eq!(building, COMMANDS.iter().collect::<Vec<_>>());
    let mode = std::fs::metadata(root().join(COMMANDS[1])).expect("tests/run").permissions().mode();
    assert_eq!(mode & 0o111, 0o111, "tests/run is not executable");
}

#[tokio::test]
async fn every_keybearer_command_in_readme_and_docs_exists() {
    let lines = shell_lines();
    let shown = lines
        .iter()
        .filter_map(|line| line.strip_prefix("keybearer ").or(line.strip_prefix("cargo run --release -- ")));
    let texts = pages();
    let named = texts.iter().flat_map(|(_, text)| text.split("`keybearer ").skip(1));
    let word = |rest: &str| rest.chars().take_while(char::is_ascii_lowercase).collect::<String>();
    let commands: BTreeSet<_> = shown.chain(named).map(word).collect();
    assert!(["demo", "check", "run"].iter().all(|command| commands.contains(*command)), "{commands:?}");
    for command in commands {
        let output = program().args([&command, "--help"]).output().await.expect("the command starts");
        assert!(output.status.success(), "keybearer {command} does not exist");
    }
}

#[test]
fn the_docs_have_a_row_and_a_section_for_each_error() {
    let source = std::fs::read_to_string(root().join("src/proxy/error.rs")).expect("a readable file");
    let page = page("docs/errors.md");
    let mut rows = 0;
    for row in source.split("Row(\"").skip(1) {
        let (code, rest) = row.split_once("\", ").expect("a code");
        let status: String = rest.chars().take_while(char::is_ascii_digit).collect();
        let in_table =
            |line: &str| line.starts_with('|') && line.contains(&format!("`{code}`")) && line.contains(&status);
        assert!(page.lines().any(in_table), "{code} {status} is in no table of docs/errors.md");
        assert!(page.lines().any(|line| line == format!("### `{code}`")), "{code} has no section in docs/errors.md");
        rows += 1;
    }
    assert!(rows > 15, "only {rows} rows");
}

/// Wraps a list of connections or routes in a whole configuration; returns anything else unchanged.
fn complete_configuration(block: &str) -> String {
    let indented = |by: &str| block.lines().map(|line| format!("{by}{line}\n")).collect::<String>();
    let first = block.lines().find(|line| !line.starts_with('#')).unwrap_or_default();
    match first {
        item if item.starts_with("- name:") => format!("connections:\n{}", indented("")),
        item if item.starts_with("- ") => format!(
            "connections:\n- name: shown\n  client_id: x\n  client_secret: \"${{env:X}}\"\n  \
             token_url: https://login.example.com/token\n  routes:\n{}",
            indented("  ")
        ),
        _ => block.to_owned(),
    }
}

/// The names in `{env: NAME}` and `${env:NAME}`, and `X`, which `complete_configuration` uses.
fn named_variables(block: &str) -> Vec<String> {
    let name = |rest: &str| rest.trim_start().chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
    block.split("{env:").skip(1).map(name).chain(["X".to_owned()]).collect()
}

/// The variables in the header of a file: `# export NAME=value …`.
fn header_variables(text: &str) -> Vec<(String, String)> {
    let exports = text.lines().filter_map(|line| line.strip_prefix("# export "));
    let pairs = exports.flat_map(str::split_whitespace).filter_map(|word| word.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Runs the commands in the header of a file, which create the files that it needs: `# $ command`.
fn run_header_commands(text: &str, folder: &Path) {
    // The program under test is in PATH, as for a reader who follows the header.
    let own = Path::new(env!("CARGO_BIN_EXE_keybearer")).parent().expect("a folder").to_owned();
    let usual = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(own).chain(std::env::split_paths(&usual))).expect("a PATH");
    for command in text.lines().filter_map(|line| line.strip_prefix("# $ ")) {
        let mut shell = std::process::Command::new("sh");
        let output = shell.args(["-c", command]).current_dir(folder).env("PATH", &path).output();
        let output = output.expect("a shell");
        assert!(output.status.success(), "{command}\n{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Copies `from` recursively.
fn copy_folder(from: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let output = std::process::Command::new("cp").arg("-R").arg(from.join(".")).arg(dir.path()).output();
    assert!(output.expect("cp").status.success());
    dir
}

async fn check(file: &Path, variables: &[(String, String)]) -> Value {
    let pairs = variables.iter().map(|(name, value)| (name, value));
    let output = program()
        .args(["check", "--json", "--config"])
        .arg(file)
        .envs(pairs)
        .output()
        .await
        .expect("the command starts");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn page(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).expect(name)
}

/// README and every page of `docs/`, by name.
fn pages() -> Vec<(String, String)> {
    let entries = std::fs::read_dir(root().join("docs")).expect("docs/");
    let names =
        entries.map(|entry| entry.expect("a readable directory entry").file_name().into_string().expect("UTF-8"));
    let mut names: Vec<_> = names.filter(|name| name.ends_with(".md")).map(|name| format!("docs/{name}")).collect();
    names.sort();
    names.insert(0, "README.md".to_owned());
    names.into_iter().map(|name| (name.clone(), page(&name))).collect()
}

/// The lines of every shell block in README and docs.
fn shell_lines() -> Vec<String> {
    let blocks = pages().into_iter().flat_map(|(_, text)| code_blocks(&text, "sh"));
    blocks.flat_map(|block| block.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// The text of each fenced code block in `language`.
fn code_blocks(text: &str, language: &str) -> Vec<String> {
    let open = format!("```{language}");
    let mut found = Vec::new();
    let mut lines = text.lines();
    while lines.by_ref().any(|line| line == open) {
        found.push(lines.by_ref().take_while(|line| *line != "```").map(|line| format!("{line}\n")).collect());
    }
    found
}

pub fn yaml_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("a readable directory entry").path();
        if path.is_dir() {
            found.extend(yaml_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            found.push(path);
        }
    }
    found.sort();
    found
}
