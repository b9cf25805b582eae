//! `keybearer schema` before a real validator: it takes every configuration that `check` takes, and refuses broken ones.

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
async fn the_schema_takes_every_configuration_under_config() {
    let texts: Vec<_> = yaml_files(&root().join("config")).iter().map(|file| (name(file), read(file))).collect();
    assert!(texts.len() >= 5, "{texts:?}");
    let documents = texts.iter().map(|(name, text)| document(text).unwrap_or_else(|| panic!("{name} is not YAML")));
    let judged = judge(documents.collect()).await;
    for ((name, _), complaints) in texts.iter().zip(judged["documents"].as_array().expect("a list")) {
        assert_eq!(*complaints, json!([]), "{name}");
    }
}

#[tokio::test]
async fn the_schema_refuses_what_it_can_see_of_a_broken_configuration() {
    let parsed = |(name, text): (String, String)| Some((document(&text)?, text.contains("\n# schema: good\n"), name));
    let broken: Vec<_> = files().into_iter().filter_map(parsed).collect();
    assert!(broken.len() >= 8, "only {} files of the corpus are YAML", broken.len());
    let judged = judge(broken.iter().map(|(document, ..)| document.clone()).collect()).await;
    for ((_, good, name), complaints) in broken.iter().zip(judged["documents"].as_array().expect("a list")) {
        assert_eq!(*complaints == json!([]), *good, "{name}: {complaints}");
    }
}

#[tokio::test]
async fn the_schema_holds_its_own_defaults_and_examples() {
    assert_eq!(judge(Vec::new()).await["values"], json!([]));
}

/// What the schema says of the documents, and of its own values.
async fn judge(documents: Vec<Value>) -> Value {
    let output = program().arg("schema").output().await.expect("it runs");
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
    let schema: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    let mut command = Command::new(peers::python());
    command.arg(peers::peers_path("schema.py")).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().expect("it starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    let question = json!({ "schema": schema, "documents": documents }).to_string();
    stdin.write_all(question.as_bytes()).await.expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().await.expect("it ends");
    assert!(output.status.success(), "schema.py failed; run tests/peers/install.sh");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// The JSON that an editor makes of the text; `None` for what is not YAML.
fn document(text: &str) -> Option<Value> {
    serde_yaml::from_str(text).ok()
}

fn name(file: &Path) -> String {
    file.display().to_string()
}

fn read(file: &Path) -> String {
    std::fs::read_to_string(file).expect("a readable file")
}
