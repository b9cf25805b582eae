//! What GET shows of a definition, sent back in any form, changes nothing.

use serde_json::{Value, json};

use super::table::{Row, get, leaves, rows, set};
use super::{Fields, base};
use crate::definitions::JSON;
use crate::rig::command::output_text;
use crate::rig::manager::{MANAGER, call_as};
use crate::rig::raw::RawResponse;
use crate::rig::sidecar::program;

impl Fields {
    async fn send(&self, method: &str, etag: &str, content_type: &str, body: &str) -> RawResponse {
        let lines = format!("If-Match: {etag}\r\nContent-Type: {content_type}\r\n");
        call_as(MANAGER, self.sidecar.admin(), (method, "/connections/own"), &lines, body).await
    }
}

/// What differs after one definition was shown and sent back.
async fn round_trip(stage: &Fields, row: &Row, value: &Value, is_secret: bool) -> Vec<String> {
    let mut definition = base();
    row.set(&mut definition, value.clone());
    let made = stage.replace(&definition).await;
    if made.status != 200 {
        return vec![format!("{}: {}", row.path, made.text())];
    }
    let mut faults = Vec::new();
    let shown = stage.get().await;
    let expected = if is_secret { json!({ "set": true }) } else { value.clone() };
    if *get(&shown, row.path) != expected {
        faults.push(format!("{} is shown as {}", row.path, get(&shown, row.path)));
    }
    let etag = made.header("etag").expect("an ETag");
    let yaml = stage.call("GET", "/connections/own?format=yaml", &Value::Null).await.text();
    for (method, content_type, body) in [
        ("PUT", "application/json", shown.to_string()),
        ("PATCH", "application/merge-patch+json", "{}".to_owned()),
        ("PATCH", "application/merge-patch+json", shown.to_string()),
        ("PUT", "application/yaml", yaml),
    ] {
        let same = stage.send(method, etag, content_type, &body).await;
        if (same.status, same.header("etag")) != (200, Some(etag)) {
            faults.push(format!("{}: {method} {content_type}: {} {}\n{body}", row.path, same.status, same.text()));
        }
    }
    let top = row.path.split(['.', '[']).next().expect("a key");
    let resolved = stage.call("GET", "/connections/own?resolved=true", &Value::Null).await.json();
    if resolved[top] != json!({ "value": shown[top], "source": "api" }) {
        faults.push(format!("{} is resolved as {}", row.path, resolved[top]));
    }
    faults
}

#[tokio::test]
async fn every_key_survives_a_round_trip() {
    let stage = Fields::start("", &[]).await;
    let second = json!({ "name": "second", "client_id": "id", "token_url": "https://as.test/t", "active": false });
    let lines = format!("{JSON}If-None-Match: *\r\n");
    let admin = stage.sidecar.admin();
    let made = call_as(MANAGER, admin, ("PUT", "/connections/second"), &lines, &second.to_string()).await;
    assert_eq!(made.status, 201, "{}", made.text());
    let first = stage.create(&base()).await;
    assert_eq!(first.status, 201, "{}", first.text());
    let (leaves, rows) = (leaves().await, rows());
    let (mut tried, mut faults, mut all) = (0, Vec::new(), vec![second]);
    for row in &rows {
        let leaf = &leaves[row.path];
        // A URL at the own definition's host has no secret in its query.
        let is_secret = leaf.may_be_secret && !leaf.is_url;
        let Some(value) = &row.value else { continue };
        faults.extend(round_trip(&stage, row, value, is_secret).await);
        tried += 1;
        let mut definition = base();
        definition["routes"][0]["host"] = format!("r{tried}.test").into();
        definition["active"] = false.into();
        row.set(&mut definition, value.clone());
        definition["name"] = format!("r{tried}").into();
        if row.path == "routes[].upstream" {
            definition["routes"][0]["mount"] = format!("/r{tried}").into();
        }
        all.push(definition);
        if leaf.is_url && leaf.may_be_secret {
            let url = format!("{}?key=secret", value.as_str().expect("a URL"));
            faults.extend(round_trip(&stage, row, &url.into(), true).await);
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(tried > rows.len() - 15, "{tried}");

    // An export of them all, applied again by the program.
    stage.remove().await;
    let applied = stage.call("POST", "/connections:apply", &json!({ "connections": all })).await;
    assert_eq!(applied.status, 200, "{}", applied.text());
    let exported = stage.call("GET", "/connections?format=yaml", &Value::Null).await.text();
    let file = stage.sidecar.dir.path().join("exported.yaml");
    std::fs::write(&file, exported).expect("a file");
    let mut command = program();
    command.args(["apply", "--prune", "-f"]).arg(&file);
    command.env("KEYBEARER_ADMIN_URL", format!("http://{admin}")).env("KEYBEARER_ADMIN_TOKEN", MANAGER);
    let output = command.output().await.expect("the command starts");
    let expected = format!("0 created, 0 changed, {} unchanged, 0 removed", tried + 1);
    assert!(output_text(&output).contains(&expected), "{}", output_text(&output));
}

#[tokio::test]
async fn resolved_values_have_their_sources() {
    let stage = Fields::start("", &[]).await;
    let mut definition = base();
    set(&mut definition, "scopes", "a".into());
    assert_eq!(stage.create(&definition).await.status, 201);
    let resolved = stage.call("GET", "/connections/own?resolved=true", &Value::Null).await.json();
    assert_eq!(resolved["scopes"], json!({ "value": "a", "source": "api" }));
    assert_eq!(resolved["client_secret"], json!({ "value": {"set": true}, "source": "api" }));
    assert_eq!(resolved["usable_margin"], json!({ "value": "5s", "source": "default" }));
    let of_file = stage.call("GET", "/connections/file?resolved=true", &Value::Null).await.json();
    let source = of_file["client_id"]["source"].as_str().expect("a source");
    let (file, line) = source.rsplit_once(':').expect("FILE:LINE");
    assert!(file.ends_with("keybearer.yaml") && line.parse::<usize>().is_ok(), "{source}");
}
