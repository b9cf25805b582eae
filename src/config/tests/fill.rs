//! Definitions in files, filled for the API: literals at every key, and where a problem of the instance is.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::files::Folder;
use super::stored::{at, paths};
use super::*;
use crate::model::Name;
use crate::model::connection::Revision;
use crate::model::secret::Secret;

/// A secret that looks like a reference.
const SECRET: &str = "hun${env:PATH}ter$${2";
const SCRIPT: &str = "fn token_request(request, ctx) { request.form.note = `${1 + 1}`; request }";

/// `crm.yaml` with `text`, and the files that it may refer to.
fn folder(text: &str) -> Folder {
    Folder::new(&[
        ("crm.yaml", text),
        ("s", &format!("{SECRET}\n")),
        ("number", "419\n"),
        ("true", "true"),
        ("token.rhai", SCRIPT),
        ("cert.pem", include_str!("../../jwt/tests/rsa-certificate.pem")),
        ("rsa.key", include_str!("../../jwt/tests/rsa-pkcs8.pem")),
    ])
}

fn read(folder: &Folder) -> Result<FilledDefinitions, Problems> {
    FilledDefinitions::read(&folder.path("crm.yaml"))
}

fn parse(filled: &FilledDefinitions) -> Value {
    serde_json::from_str::<Value>(&filled.json).unwrap()["connections"].take()
}

/// A definition with `keys` is sent as `expected`.
#[track_caller]
fn check_filled(keys: &str, expected: Value) {
    let folder = folder(&format!("name: crm\n{keys}\n"));
    let filled = read(&folder).unwrap_or_else(|problems| panic!("{problems}"));
    let mut sent = parse(&filled);
    let sent = sent[0].as_object_mut().unwrap();
    assert_eq!(sent.remove("name"), Some("crm".into()));
    assert_eq!(Value::from(sent.clone()), expected, "{keys}");
}

/// Each problem must start with `LINE:COLUMN: PATH: MESSAGE`.
#[track_caller]
fn check_refused(text: &str, expected: &[&str]) {
    let folder = folder(text);
    let Err(problems) = read(&folder) else { panic!("accepted: {text}") };
    compare(&problems, &format!("{}:", folder.path("crm.yaml").display()), expected);
}

#[test]
#[expect(clippy::disallowed_methods, reason = "compares with what the configuration reads")]
fn references_are_filled_where_the_command_runs() {
    let path = std::env::var("PATH").unwrap();
    check_filled("client_secret: {env: PATH}", json!({ "client_secret": path }));
    check_filled("client_id: \"id-${env:PATH}\"", json!({ "client_id": format!("id-{path}") }));
    check_filled("token_url: \"https://a.test/${file:number}\"", json!({ "token_url": "https://a.test/419" }));
    check_filled("active: \"${file:true}\"", json!({ "active": true }));
    check_filled("token_rejected: [{status: \"${file:number}\"}]", json!({ "token_rejected": [{"status": 419}] }));
    // Of claims, only what is written plain has a type.
    check_filled(
        "assertion: {claims: {a: \"${file:number}\", b: 419}}",
        json!({ "assertion": {"claims": {"a": "419", "b": 419}} }),
    );
    check_filled(
        "mutual_tls: partner\nscopes: [a, b]\nkeep_warm: \nrefresh_ahead: 5m",
        json!({ "mutual_tls": "partner", "scopes": ["a", "b"], "keep_warm": null, "refresh_ahead": "5m" }),
    );
}

#[test]
fn what_the_api_understands_stays_as_written() {
    for kept in [json!({"use": "crm"}), json!({"set": true}), json!("text"), json!("costs $${5}")] {
        check_filled(&format!("client_secret: [{kept}]"), json!({ "client_secret": [kept] }));
        check_filled(&format!("token_params: {{a: {kept}}}"), json!({ "token_params": {"a": kept} }));
    }
    check_filled("token_url: {set: true}", json!({ "token_url": {"set": true} }));
    // The instance reports them.
    check_filled("nonsense: {file: s, a: \"${env:PATH}\"}", json!({ "nonsense": {"file": "s", "a": "${env:PATH}"} }));
    check_filled("variables: {file: s}", json!({ "variables": {"file": "s"} }));
    check_filled("client_assertion: {file: s}", json!({ "client_assertion": {"file": "s"} }));
}

/// At every key that takes a secret, the text of a file is sent, and the validator of the API reads that very text.
#[test]
fn every_secret_in_a_file_becomes_text() {
    let (root, mut all) = (schema(), BTreeSet::new());
    paths(&root["$defs"]["connection"], &root, "", &|schema| schema["$ref"] == "#/$defs/secret", &mut all);
    assert!(all.len() >= 10, "{all:?}");
    for path in &all {
        let mut text = json!({ "name": "crm" });
        let keys = at(path, json!({"file": "s"}));
        text.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        let sent = parse(&read(&folder(&text.to_string())).unwrap_or_else(|problems| panic!("{path}: {problems}")));
        let escaped = SECRET.replace("${", "$${");
        assert!(sent.to_string().contains(&Value::from(escaped).to_string()), "{path}: {sent}");
        assert!(!sent.to_string().contains(r#""file""#), "{path}: {sent}");
    }
}

/// No key takes certificates as text; a script has a form of its own.
#[test]
fn every_path_without_a_literal_form_is_a_problem() {
    let (root, mut all) = (schema(), BTreeSet::new());
    paths(&root["$defs"]["connection"], &root, "", &|schema| schema["x-path"] == true, &mut all);
    let secrets = |path: &String| path.ends_with(".file") && path != "script.file" || path == "file";
    all.retain(|path| !secrets(path));
    assert!(all.remove("script.file") && all.len() >= 5, "{all:?}");
    for path in &all {
        let keys = at(path, "cert.pem".into());
        let mut text = json!({ "name": "crm" });
        text.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        let Err(problems) = read(&folder(&text.to_string())) else { panic!("{path} is accepted") };
        let shown = problems.to_string();
        let place = format!("{}: a file cannot be sent to an instance; ", path.replace("[]", "[0]"));
        assert!(shown.contains(&place) && shown.contains("the instance's own file"), "{shown}");
    }
    check_refused(
        "name: crm\nmutual_tls: {certificate: cert.pem, key: {file: rsa.key}}\nclient_secret: {store: crm}\n",
        &[
            "2:27: mutual_tls.certificate: a file cannot be sent to an instance; publish certificate and key under \
             `mutual_tls_profiles`",
            "3:24: client_secret.store: a secret in the sealed store cannot be sent to an instance; publish it under \
             `secrets`",
        ],
    );
    check_refused(
        "name: crm\nclient_secret: [{file: gone}, {file: s, env: PATH}]\nscopes: \"${env:NOT_SET_ANYWHERE}\"\n\
         script: {file: gone}\n",
        &[
            "2:24: client_secret[0].file: ",
            "2:31: client_secret[1]: must have exactly one source",
            "3:9: scopes: environment variable `NOT_SET_ANYWHERE` is not set",
            "4:16: script.file: ",
        ],
    );
}

/// What was filled passes the validator of the API, with the values that a file's connection has.
#[test]
fn a_filled_definition_is_valid_over_the_api_and_means_the_same() {
    let keys = "name: crm\nclient_id: id\ntoken_url: https://as.test/t\nclient_secret: {file: s}\n\
                script: {file: token.rhai}\nvariables: {a: \"${file:s}\"}\ncomments: \"$${x} ${file:number}\"\n";
    let folder = folder(keys);
    let text = Secret::new(parse(&read(&folder).unwrap())[0].to_string());
    let main = Folder::new(&[("main.yaml", "connections: []\n")]);
    let (name, revision) = (Name::parse("crm").unwrap(), Revision::from_bytes([7; 16]));
    let loaded = main.with_stored(&[StoredDefinition { name, revision, text: Ok(text) }]);
    assert!(loaded.set_aside.is_empty(), "{:?}", loaded.set_aside);
    let connection = &loaded.model.connections[0];
    assert_eq!(connection.client_auth.secrets()[0].expose(), SECRET);
    assert_eq!(connection.script.as_ref().unwrap().text, SCRIPT);
    assert_eq!(connection.variables[0].1.expose(), SECRET);
    assert_eq!(connection.comments.as_deref(), Some("${x} 419"));
}

#[test]
fn files_hold_definitions_alone_and_none_only_explicitly() {
    let nothing = folder("connections: []\n");
    assert_eq!(*read(&nothing).unwrap().json, r#"{"connections":[]}"#);
    check_refused("connections:\n", &["1:1: connections: is empty; write `connections: []`"]);
    check_refused("", &["1:1: is empty; write `connections: []`"]);
    check_refused("# none\n", &["1:1: is empty; write `connections: []`"]);
    check_refused("- a\n", &["1:1: must be a map"]);
    check_refused("client_id: a\n", &["1:1: client_id: `client_id` is not part of a definition", "1:1: has neither"]);
    check_refused(
        "connections: [{client_id: a}, b, {name: A}, {name: a}, {name: a}]\nlog: {level: info}\n",
        &[
            "1:15: connections[0]: `name` is missing",
            "1:31: connections[1]: must be a map",
            "1:41: connections[2].name: `A` is not a valid name",
            "1:56: connections[4]: has the name of another definition (",
            "2:1: log: `log` is not part of a definition; move it to the instance's own configuration file",
        ],
    );
    let several = Folder::new(&[
        ("all/b.yaml", "name: b\nclient_secret: {file: ../s}\n"),
        ("all/a.yaml", "{\"connections\": [{\"name\": \"a\"}, {\"name\": \"c\"}]}"),
        ("all/.hidden.yaml", "log: {}"),
        ("all/other.txt", "log: {}"),
        ("empty/other.txt", ""),
        ("s", "secret"),
    ]);
    let sent = parse(&FilledDefinitions::read(&several.path("all")).unwrap());
    assert_eq!(sent, json!([{"name": "a"}, {"name": "c"}, {"name": "b", "client_secret": "secret"}]));
    for (directory, expected) in [("empty", "contains no *.yaml file"), ("gone", "cannot be read (no such file)")] {
        let Err(problems) = FilledDefinitions::read(&several.path(directory)) else { panic!("{directory}") };
        assert!(problems.to_string().contains(expected), "{problems}");
    }
}

#[test]
fn a_problem_of_the_instance_is_at_its_position_in_the_file() {
    let folder = folder(
        "connections:\n- name: crm\n  client_id: a\n  token_url: https://a\n  script: {file: token.rhai}\n  routes:\n  \
         - host: x\n    path: y\n- {name: two, \"odd key\": 1, pkce: }\n",
    );
    let filled = read(&folder).unwrap();
    let check = |name: &str, path: &str, expected: (usize, usize, &str)| {
        let problem = filled.problem(name, path, "is wrong", "write it").unwrap();
        assert_eq!((problem.line, problem.column, problem.path.as_str()), expected);
        assert_eq!((problem.file, problem.message.as_str()), (folder.path("crm.yaml"), "is wrong"));
    };
    check("crm", "token_url", (4, 14, "connections[0].token_url"));
    check("crm", "routes[0].path", (8, 11, "connections[0].routes[0].path"));
    check("crm", "routes[7]", (7, 5, "connections[0].routes[7]"));
    check("crm", "script.source", (5, 11, "connections[0].script.source"));
    check("crm", "token_url_x", (2, 3, "connections[0].token_url_x"));
    check("crm", "", (2, 3, "connections[0]"));
    check("two", "[\"odd key\"]", (9, 26, "connections[1][\"odd key\"]"));
    check("two", "pkce", (9, 29, "connections[1].pkce"));
    assert!(filled.problem("gone", "", "", "").is_none() && filled.problem("", "a", "", "").is_none());
    let single = self::folder("name: crm\ntoken_url: x\n");
    let problem = read(&single).unwrap().problem("crm", "token_url", "", "").unwrap();
    assert_eq!((problem.line, problem.column, problem.path.as_str()), (2, 12, "token_url"));
}
