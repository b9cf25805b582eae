//! No key takes anything from this machine: no file, no variable, no stored secret, no command, no socket.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::table::{leaves, rows};
use super::{Fields, base, leak, problem_paths};
use crate::definitions::code;

const CANARY: &str = "canary-0123456789-content";

/// Values that refer to the canary in each way that a configuration knows, or might.
struct References {
    /// `${…}` in a text; refused wherever a text is.
    filled: Vec<Value>,
    /// Sources of secrets.
    sources: Vec<Value>,
    paths: Vec<Value>,
    /// What no key takes.
    others: Vec<Value>,
}

fn references(file: &str) -> References {
    let unix = format!("unix://{file}");
    References {
        filled: vec!["${env:CANARY}".into(), format!("x-${{file:{file}}}").into()],
        sources: vec![json!({ "file": file }), json!({ "env": "CANARY" }), json!({ "store": "canary" })],
        paths: vec![file.into(), format!("file://{file}").into(), unix.as_str().into()],
        others: vec![json!({ "command": ["cat", file] }), json!({ "spiffe": unix, "audience": "a" })],
    }
}

#[tokio::test]
async fn no_key_takes_a_reference_and_nothing_is_read() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("canary");
    std::fs::write(&file, CANARY).expect("a file");
    let stage = Fields::start("", &[("CANARY", CANARY.to_owned())]).await;
    let stored = stage.call("PUT", "/secrets/canary", &json!({ "value": CANARY })).await;
    assert!([200, 201, 204].contains(&stored.status), "{}", stored.text());
    let (leaves, References { filled, sources, paths, others }) =
        (leaves().await, references(file.to_str().expect("UTF-8")));
    let (mut refused, mut accepted, mut faults) = (0, BTreeSet::new(), Vec::new());
    for row in rows() {
        let leaf = &leaves[row.path];
        for value in filled.iter().chain(&sources).chain(&paths).chain(&others) {
            let mut definition = base();
            row.set(&mut definition, value.clone());
            let response = stage.create(&definition).await;
            let what = format!("{}: {value}: {} {}", row.path, response.status, response.text());
            let is_reference = filled.contains(value)
                || leaf.may_be_published && sources.contains(value)
                || leaf.is_path && paths.contains(value);
            let (mut shown, named) = (response.text(), problem_paths(&response));
            let is_expected = match response.status {
                201 => {
                    shown += &stage.exercise().await;
                    stage.remove().await;
                    accepted.insert((row.path, value.is_object()));
                    !is_reference
                }
                422 => {
                    refused += 1;
                    let is_named = named.iter().any(|path| concerns(path, row.path));
                    let is_refusal =
                        code(&response) == "reference_not_allowed" || named.iter().any(|path| path == row.path);
                    is_named && (!is_reference || is_refusal)
                }
                _ => false,
            };
            if !is_expected || shown.contains(CANARY) {
                faults.push(what);
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(refused > leaves.len() * 6, "{refused}");
    // A claim may be any JSON.
    let maps: Vec<_> = accepted.iter().filter(|(_, is_map)| *is_map).map(|(path, _)| *path).collect();
    assert_eq!(maps, ["assertion.claims.free"]);
    for server in [&stage.server, &stage.upstream, &stage.other] {
        assert_eq!(leak(&server.received(), CANARY), None);
    }
    assert!(!stage.sidecar.log().contains(CANARY), "{}", stage.sidecar.log());
}

/// True if a problem at `path` is one of the key `of`: at the key, at what it is a part of, or at what it needs.
fn concerns(path: &str, of: &str) -> bool {
    let is_below = |path: &str, above: &str| path.strip_prefix(above).is_some_and(|rest| rest.starts_with(['.', '[']));
    path == of || is_below(path, of) || is_below(of, path) || (path, of) == ("mutual_tls.certificate", "mutual_tls.key")
}
