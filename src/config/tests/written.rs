//! Definitions as written: what is masked, what is kept, and that nothing is lost.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::*;

/// The definition of the only connection of `text`.
fn written(text: &str) -> Value {
    let mut sink = Sink::default();
    let source = Source::parse(text, Path::new("a.yaml"), &mut sink).unwrap();
    let node = source.root().unwrap();
    serde_json::from_str(&Shapes::new(&schema(), "connection").definition(&node).0).unwrap()
}

#[track_caller]
fn check(text: &str, expected: Value) {
    assert_eq!(written(text), expected, "{text}");
}

#[test]
fn literal_secrets_are_masked_and_references_kept() {
    let set = json!({ "set": true });
    check("client_secret: hunter2", json!({ "client_secret": set }));
    check(
        "client_secret: [12, {file: new}, {use: crm}]",
        json!({ "client_secret": [set, {"file": "new"}, {"use": "crm"}] }),
    );
    check("password: \"${env:A}${file:b}\"", json!({ "password": "${env:A}${file:b}" }));
    for half in ["Bearer ${env:A}", "${env:A}x", "$${env:A}", "${env:A", "x"] {
        check(&format!("token_params: {{a: \"{half}\", b: }}"), json!({ "token_params": {"a": set, "b": null} }));
    }
    check("subject_token: hunter2", json!({ "subject_token": set }));
    check("subject_token: {from: caller}", json!({ "subject_token": {"from": "caller"} }));
    check(
        "assertion: {key: PEM, claims: {a: [1, \"1\", x]}}",
        json!({ "assertion": {"key": set, "claims": {"a": [1, "1", "x"]}} }),
    );
    check(
        "authorization_server: {proxy: {url: \"http://p:1\", username: u, password: p}}",
        json!({ "authorization_server": {"proxy": {"url": "http://p:1", "username": "u", "password": set}} }),
    );
    // A key of no shape cannot be valid; its value stays hidden all the same.
    check("nonsense: {a: b, c: [d]}", json!({ "nonsense": {"a": set, "c": [set]} }));
}

#[test]
fn the_query_of_a_url_is_shown_where_browsers_see_it_and_masked_elsewhere() {
    let set = json!({ "set": true });
    check("authorization_url: \"https://a.test/?p=x\"", json!({ "authorization_url": "https://a.test/?p=x" }));
    check("token_url: \"https://a.test/?key=x\"", json!({ "token_url": set }));
    check("token_url: \"https://a.test/?x\"", json!({ "token_url": set }));
    check("token_url: \"https://a.test/?a=&b=${env:B}\"", json!({ "token_url": "https://a.test/?a=&b=${env:B}" }));
    check("revocation_url: \"https://a.test/\"", json!({ "revocation_url": "https://a.test/" }));
}

#[test]
fn scalars_have_the_type_that_their_reader_understands() {
    check("active: true", json!({ "active": true }));
    check("active: \"false\"", json!({ "active": false }));
    check("active: \"${env:A}\"", json!({ "active": "${env:A}" }));
    check("name: 7", json!({ "name": "7" }));
    check("comments: true", json!({ "comments": "true" }));
    check("audience: ~", json!({ "audience": null }));
    check("refresh_token_lifespan: 100d", json!({ "refresh_token_lifespan": "100d" }));
    check(
        "token_rejected: [{status: \"0401\"}, {status: 403}]",
        json!({ "token_rejected": [{"status": "0401"}, {"status": 403}] }),
    );
    check("routes: [{upstream_tls: false}]", json!({ "routes": [{"upstream_tls": false}] }));
    check(
        "scopes: &a [x, y]\navailable_scopes: {A: *a}",
        json!({ "scopes": ["x", "y"], "available_scopes": {"A": ["x", "y"]} }),
    );
}

/// The definition of each example, read again, is the same definition.
#[test]
fn no_key_of_an_example_is_lost_and_the_json_means_the_same() {
    let mut count = 0;
    for folder in ["config", "config/examples"] {
        for file in included_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).unwrap() {
            let document: serde_yaml::Value = serde_yaml::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
            for connection in document["connections"].as_sequence().unwrap() {
                let shown = written(&serde_yaml::to_string(connection).unwrap());
                let original = serde_json::to_value(connection).unwrap();
                assert_eq!(paths(&shown), paths(&original), "{}", file.display());
                let again = shown.to_string().replace(r#"{"set":true}"#, "x");
                assert_eq!(written(&again), shown, "{}", file.display());
                count += 1;
            }
        }
    }
    assert!(count >= 20, "{count}");
}

/// The path of each key; those of a mask are left out.
fn paths(value: &Value) -> BTreeSet<String> {
    let below = |prefix: &str, value: &Value| {
        paths(value).into_iter().map(|path| format!("{prefix}.{path}")).collect::<Vec<_>>()
    };
    match value {
        Value::Object(members) if *value != json!({ "set": true }) => {
            members.iter().flat_map(|(key, value)| below(key, value).into_iter().chain([key.clone()])).collect()
        }
        Value::Array(items) => {
            items.iter().enumerate().flat_map(|(index, item)| below(&index.to_string(), item)).collect()
        }
        _ => BTreeSet::new(),
    }
}

/// Keys whose values, and those of the maps below them, are secrets.
const SECRETS: [&str; 9] =
    ["client_secret", "password", "key", "token", "variables", "token_params", "set_headers", "headers", "actor_token"];

/// A value for each form that a schema permits, with the path of each text as its text.
pub(super) fn samples(schema: &Value, root: &Value, path: &str) -> Vec<Value> {
    if let Some(target) = schema["$ref"].as_str() {
        return samples(&root["$defs"][target.trim_start_matches("#/$defs/")], root, path);
    }
    let mut all = Vec::new();
    for form in schema["anyOf"].as_array().into_iter().flatten() {
        all.extend(samples(form, root, path));
    }
    if let Some(properties) = schema["properties"].as_object() {
        // The first map has the first form of each key, the second the second, and so on.
        let forms: Vec<_> =
            properties.iter().map(|(key, value)| (key, samples(value, root, &format!("{path}.{key}")))).collect();
        let most = forms.iter().map(|(_, forms)| forms.len()).max().unwrap_or(0);
        for index in 0..most {
            let members = forms.iter().filter(|(_, forms)| !forms.is_empty());
            let member = |(key, forms): &(&String, Vec<Value>)| ((*key).clone(), forms[index % forms.len()].clone());
            all.push(members.map(member).collect::<Map<_, _>>().into());
        }
    }
    if schema["additionalProperties"].is_object() || schema["additionalProperties"] == true {
        all.extend(
            samples(&schema["additionalProperties"], root, &format!("{path}.free"))
                .into_iter()
                .map(|one| json!({ "free": one })),
        );
    }
    if schema["items"].is_object() {
        all.push(samples(&schema["items"], root, &format!("{path}[]")).into());
    }
    let kind = if schema["type"].is_array() { &schema["type"][0] } else { &schema["type"] };
    if *schema == Value::Bool(true) || kind == "string" {
        all.push(format!("canary{path}").into());
    }
    all
}

/// Every text of a value with its path.
fn texts(value: &Value, path: &str, all: &mut Vec<(String, String)>) {
    match value {
        Value::String(text) => all.push((path.to_owned(), text.clone())),
        Value::Array(items) => items.iter().for_each(|item| texts(item, &format!("{path}[]"), all)),
        Value::Object(members) => {
            members.iter().for_each(|(key, value)| texts(value, &format!("{path}.{key}"), all));
        }
        _ => {}
    }
}

#[test]
fn every_key_of_the_schema_is_shown_and_no_literal_secret_is() {
    let root = schema();
    let connections = samples(&root["$defs"]["connection"], &root, "");
    assert!(connections.len() >= 3);
    let (mut shown_count, mut masked_count) = (0, 0);
    for connection in connections {
        let shown = written(&connection.to_string());
        assert_eq!(paths(&shown), paths(&connection));
        let mut all = Vec::new();
        texts(&connection, "", &mut all);
        for (path, text) in all {
            let segments: Vec<_> = path.split(['.', '[', ']']).filter(|segment| !segment.is_empty()).collect();
            let last = segments.last().unwrap();
            let parent = segments.iter().rev().nth(1).copied().unwrap_or_default();
            let is_bare_token = segments.len() == 1 && ["assertion", "subject_token"].contains(last);
            let is_secret = is_bare_token || SECRETS.contains(last) || (*last == "free" && SECRETS.contains(&parent));
            let is_shown = shown.to_string().contains(&Value::from(text.as_str()).to_string());
            assert_eq!(is_shown, !is_secret, "{path}");
            *(if is_secret { &mut masked_count } else { &mut shown_count }) += 1;
        }
    }
    assert!(shown_count > 150 && masked_count > 15, "{shown_count} {masked_count}");
}

#[test]
fn a_definition_knows_its_file_and_the_line_of_each_key() {
    use crate::model::connection::DefinedIn;
    let text = "connections:\n- name: crm\n  client_id: id\n  token_url: https://as.test/t\n  profiles: [{name: p}]\n";
    let model = accept(text).model;
    let written = &model.connections[0].written;
    assert_eq!(written.defined_in, DefinedIn::File(Path::new("a.yaml").into()));
    let lines: Vec<_> = written.lines.iter().map(|(key, line)| (key.as_str(), *line)).collect();
    assert_eq!(lines, [("name", 2), ("client_id", 3), ("token_url", 4), ("profiles", 5)]);
    let moved = accept(&format!("# a comment\n{text}")).model;
    assert!(model.connections[0] == moved.connections[0], "a definition that moves within its file has not changed");
}
