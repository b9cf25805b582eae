//! `keybearer schema` with a real validator: it accepts every valid configuration, and rejects invalid ones.

use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::examples::yaml_files;
use super::problems::files;
use crate::rig::peers;
use crate::rig::sidecar::{program, root};

#[tokio::test]
async fn the_schema_accepts_every_configuration_under_config() {
    let texts: Vec<_> = yaml_files(&root().join("config")).iter().map(|file| (name(file), read(file))).collect();
    assert!(texts.len() >= 5, "{texts:?}");
    let documents = texts.iter().map(|(name, text)| document(text).unwrap_or_else(|| panic!("{name} is not YAML")));
    let report = validate(documents.collect()).await;
    for ((name, _), errors) in texts.iter().zip(report["documents"].as_array().expect("a list")) {
        assert_eq!(*errors, json!([]), "{name}");
    }
}

#[tokio::test]
async fn the_schema_rejects_every_invalid_configuration_that_it_can_detect() {
    let parsed = |(name, text): (String, String)| Some((document(&text)?, text.contains("\n# schema: good\n"), name));
    let broken: Vec<_> = files().into_iter().filter_map(parsed).collect();
    assert!(broken.len() >= 8, "only {} files of the corpus are YAML", broken.len());
    let report = validate(broken.iter().map(|(document, ..)| document.clone()).collect()).await;
    for ((_, good, name), errors) in broken.iter().zip(report["documents"].as_array().expect("a list")) {
        assert_eq!(*errors == json!([]), *good, "{name}: {errors}");
    }
}

#[tokio::test]
async fn the_defaults_and_examples_of_the_schema_are_valid() {
    assert_eq!(validate(Vec::new()).await["values"], json!([]));
}

/// Validates the documents, and the schema's own defaults and examples.
async fn validate(documents: Vec<Value>) -> Value {
    let output = program().arg("schema").output().await.expect("the command starts");
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
    let schema: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    let mut command = Command::new(peers::python());
    command.arg(peers::peers_path("schema.py")).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().expect("the validator starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    let input = json!({ "schema": schema, "documents": documents }).to_string();
    stdin.write_all(input.as_bytes()).await.expect("write succeeds");
    drop(stdin);
    let output = child.wait_with_output().await.expect("output can be read");
    assert!(output.status.success(), "schema.py failed; run tests/peers/install.sh");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// The text as JSON, as an editor sees it; `None` if it is not YAML.
fn document(text: &str) -> Option<Value> {
    serde_yaml::from_str(text).ok()
}

fn name(file: &Path) -> String {
    file.display().to_string()
}

fn read(file: &Path) -> String {
    std::fs::read_to_string(file).expect("a readable file")
}
