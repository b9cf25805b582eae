//! What the documentation shows is true: every example configuration loads, every command that the README names exists.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::rig::peers::Peers;
use crate::rig::sidecar::{program, root};

/// The commands that the README starts with and that build something.
const COMMANDS: [&str; 2] = ["cargo run --release -- demo", "tests/run"];

#[tokio::test]
async fn every_configuration_under_config_loads_without_a_problem() {
    // A copy, with the files that the examples want beside them.
    let copy = tempfile::tempdir().expect("a temporary directory");
    let copied = std::process::Command::new("cp").arg("-r").arg(root().join("config")).arg(copy.path()).status();
    assert!(copied.expect("cp runs").success());
    let examples = copy.path().join("config/examples");
    let (certificate, key) = Peers::certs().leaf("client-rsa");
    for (from, name) in [(certificate, "client.pem"), (key, "client.key")] {
        std::fs::copy(from, examples.join(name)).expect("a file");
        std::fs::set_permissions(examples.join(name), Permissions::from_mode(0o600)).expect("a mode");
    }
    std::fs::write(examples.join("service-account-token"), "a.b.c").expect("a file");
    std::fs::set_permissions(examples.join("service-account-token"), Permissions::from_mode(0o600)).expect("a mode");
    let files = yaml_files(&copy.path().join("config"));
    assert!(files.len() >= 10, "{files:?}");
    for file in files {
        let text = std::fs::read_to_string(&file).expect("a readable file");
        let report = check(&file, &exported(&text)).await;
        let none = Value::Array(vec![]);
        assert_eq!((&report["problems"], &report["warnings"]), (&none, &none), "{}", file.display());
    }
}

#[tokio::test]
async fn every_configuration_in_the_readme_loads_without_a_problem() {
    let blocks = blocks(&readme(), "yaml");
    assert!(blocks.len() >= 3, "only {} blocks", blocks.len());
    for block in blocks {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("keybearer.yaml");
        std::fs::write(&file, whole(&block)).expect("a file");
        let variables: Vec<_> = named_variables(&block).into_iter().map(|name| (name, "x".to_owned())).collect();
        let report = check(&file, &variables).await;
        assert_eq!(report["problems"], Value::Array(vec![]), "in:\n{}", whole(&block));
    }
}

#[test]
fn the_readme_names_two_commands_and_they_exist() {
    let lines = blocks(&readme(), "sh").join("\n");
    let building: Vec<_> =
        lines.lines().filter(|line| ["cargo ", "tests/", "./"].iter().any(|start| line.starts_with(start))).collect();
    assert_eq!(building, COMMANDS);
    let mode = std::fs::metadata(root().join(COMMANDS[1])).expect("tests/run").permissions().mode();
    assert_eq!(mode & 0o111, 0o111, "tests/run is not executable");
}

#[tokio::test]
async fn every_keybearer_command_of_the_readme_exists() {
    let lines = blocks(&readme(), "sh").join("\n");
    let named = lines
        .lines()
        .filter_map(|line| line.strip_prefix("keybearer ").or(line.strip_prefix("cargo run --release -- ")));
    let commands: Vec<_> = named.filter_map(|rest| rest.split_whitespace().next()).collect();
    assert!(["demo", "check", "run"].iter().all(|command| commands.contains(command)), "{commands:?}");
    for command in commands {
        let output = program().args([command, "--help"]).output().await.expect("it runs");
        assert!(output.status.success(), "keybearer {command} does not exist");
    }
}

#[test]
fn the_readme_tells_what_to_do_about_each_error() {
    let source = std::fs::read_to_string(root().join("src/proxy/error.rs")).expect("the rows of the errors");
    let readme = readme();
    let mut rows = 0;
    for row in source.split("Row(\"").skip(1) {
        let (code, rest) = row.split_once("\", ").expect("a code");
        let status: String = rest.chars().take_while(char::is_ascii_digit).collect();
        let told = |line: &&str| line.starts_with('|') && line.contains(&format!("`{code}`")) && line.contains(&status);
        assert!(readme.lines().any(|line| told(&line)), "{code} {status} is not in the README's table");
        rows += 1;
    }
    assert!(rows > 15, "only {rows} rows");
}

/// A list of connections or of routes becomes a whole configuration; anything else is one already.
fn whole(block: &str) -> String {
    let indented = |by: &str| block.lines().map(|line| format!("{by}{line}\n")).collect::<String>();
    let first = block.lines().find(|line| !line.starts_with('#')).unwrap_or_default();
    match first {
        item if item.starts_with("- name:") => format!("connections:\n{}", indented("")),
        item if item.starts_with("- ") => format!(
            "connections:\n- name: readme\n  client_id: x\n  client_secret: \"${{env:X}}\"\n  \
             token_url: https://login.example.com/token\n  routes:\n{}",
            indented("  ")
        ),
        _ => block.to_owned(),
    }
}

/// `{env: NAME}` and `${env:NAME}`, wherever they stand; `X` is what `whole` needs.
fn named_variables(block: &str) -> Vec<String> {
    let name = |rest: &str| rest.trim_start().chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
    block.split("{env:").skip(1).map(name).chain(["X".to_owned()]).collect()
}

/// The variables that a file asks for in its header: `# export NAME=value …`.
fn exported(text: &str) -> Vec<(String, String)> {
    let exports = text.lines().filter_map(|line| line.strip_prefix("# export "));
    let pairs = exports.flat_map(str::split_whitespace).filter_map(|word| word.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

async fn check(file: &Path, variables: &[(String, String)]) -> Value {
    let pairs = variables.iter().map(|(name, value)| (name, value));
    let output = program().args(["check", "--json", "--config"]).arg(file).envs(pairs).output().await.expect("it runs");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn readme() -> String {
    std::fs::read_to_string(root().join("README.md")).expect("README.md")
}

/// The text of every fenced block of a language.
fn blocks(text: &str, language: &str) -> Vec<String> {
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
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(yaml_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            found.push(path);
        }
    }
    found.sort();
    found
}
