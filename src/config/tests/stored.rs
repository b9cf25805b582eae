//! Definitions that were made over the API: literals only, never a problem of the files, and no address of their own.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::files::Folder;
use super::*;
use crate::model::Name;
use crate::model::connection::{DefinedIn, Revision};
use crate::model::secret::Secret;

pub(super) const MAIN: &str = "secrets: {crm: {file: s, hosts: [as.test]}}\n\
                    mutual_tls_profiles: {partner: {certificate: cert.pem, key: {file: rsa.key}}}\n\
                    connections:\n- {name: file, client_id: id, token_url: \"https://as.test/t\", routes: [{host: file.test}]}\n";

pub(super) fn files(main: &str) -> Folder {
    Folder::new(&[
        ("main.yaml", main),
        ("s", "secret"),
        ("rsa.key", include_str!("../../jwt/tests/rsa-pkcs8.pem")),
        ("cert.pem", include_str!("../../jwt/tests/rsa-certificate.pem")),
    ])
}

pub(super) fn stored(name: &str, keys: Value) -> StoredDefinition {
    let mut text = json!({ "name": name, "client_id": "id", "token_url": "https://as.test/t" });
    text.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    in_store(name, text.to_string())
}

fn in_store(name: &str, text: String) -> StoredDefinition {
    let (name, revision) = (Name::parse(name).unwrap(), Revision::from_bytes([7; 16]));
    StoredDefinition { name, revision, text: Ok(Secret::new(text)) }
}

/// Loads one stored definition besides the files; the problems with which it is set aside.
fn problems(keys: Value) -> Vec<Problem> {
    let mut loaded = files(MAIN).with_stored(&[stored("own", keys)]);
    assert_eq!(loaded.model.connections[0].name.as_str(), "file");
    assert_eq!(loaded.model.connections.len(), 2 - loaded.set_aside.len());
    loaded.set_aside.pop().map(|aside| aside.problems).unwrap_or_default()
}

#[track_caller]
fn refused(keys: Value, expected: &str) {
    let problems = problems(keys.clone());
    let shown: Vec<_> = problems.iter().map(Problem::to_string).collect();
    assert!(shown.iter().any(|problem| problem.contains(expected)), "{keys}\n{shown:#?}");
}

#[test]
fn a_stored_definition_is_read_as_a_file_is() {
    let definition =
        stored("own", json!({ "client_secret": "hunter2", "scopes": ["a"], "routes": [{"host": "api.test"}] }));
    let loaded = files(MAIN).with_stored(&[definition]);
    assert!(loaded.set_aside.is_empty() && loaded.warnings.is_empty(), "{:?} {:?}", loaded.set_aside, loaded.warnings);
    let [file, made] = &loaded.model.connections[..] else { panic!("two connections") };
    assert!(matches!(file.written.defined_in, DefinedIn::File(_)));
    assert_eq!((made.name.as_str(), &made.written.defined_in), ("own", &DefinedIn::Api(Revision::from_bytes([7; 16]))));
    assert_eq!(made.client_auth.secrets()[0].expose(), "hunter2");
    assert!(made.written.json.contains(r#""client_secret":{"set":true}"#) && !made.written.json.contains("hunter2"));
    let other = files(MAIN).with_stored(&[stored("own", json!({}))]);
    assert_ne!(other.fingerprint, loaded.fingerprint);
    let published = stored("own", json!({ "client_secret": {"use": "crm"}, "mutual_tls": "partner" }));
    let loaded = files(MAIN).with_stored(&[published]);
    assert_eq!(loaded.model.connections[1].client_auth.secrets()[0].expose(), "secret");
    assert!(loaded.model.connections[1].mutual_tls.is_some());
}

#[test]
fn a_stored_definition_that_is_invalid_or_collides_with_a_file_is_set_aside() {
    refused(json!({ "nonsense": 1 }), "nonsense: unknown key `nonsense`");
    refused(json!({ "name": "other" }), "name: is `other`, but the definition is stored as `own`");
    refused(
        json!({ "routes": [{"host": "file.test"}] }),
        "routes[0]: matches the same requests as connections[0].routes[0]",
    );
    refused(json!({ "client_secret": {"use": "gone"} }), "no published secret is named `gone`");
    refused(json!({ "client_secret": {"use": "crm"}, "token_url": "https://evil.test/t" }), "`crm` to evil.test");
    refused(json!({ "grant": "device_code" }), "device_authorization_url");
    refused(
        json!({ "active": Value::Null, "grant": "authorization_code", "routes": [{"host": "x.test", "intercept": true}] }),
        "there is no `interception`",
    );
    for text in ["", "null", "[", "- a"] {
        let definition = in_store("own", text.to_owned());
        let loaded = files(MAIN).with_stored(&[definition]);
        assert_eq!((loaded.set_aside.len(), loaded.model.connections.len()), (1, 1), "{text}");
    }
    let loaded = files(MAIN).with_stored(&[stored("file", json!({}))]);
    let problem = &loaded.set_aside[0].problems[0];
    assert!(problem.message.starts_with("another connection is named `file`"), "{problem}");
}

#[test]
fn one_that_is_set_aside_displaces_no_other() {
    let route = json!({ "routes": [{"host": "file.test"}, {"host": "api.test"}] });
    let second = stored("b", json!({ "routes": [{"host": "api.test"}] }));
    let third = stored("c", json!({ "routes": [{"host": "api.test"}] }));
    let loaded = files(MAIN).with_stored(&[stored("a", route), second, third]);
    let aside: Vec<_> = loaded.set_aside.iter().map(|aside| aside.name.as_str()).collect();
    let names: Vec<_> = loaded.model.connections.iter().map(|connection| connection.name.as_str()).collect();
    assert_eq!((aside, names), (vec!["a", "c"], vec!["file", "b"]));
}

#[test]
fn a_stored_definition_injects_tokens_of_stored_definitions_alone() {
    let inject = |host: &str, other: &str| json!({ "routes": [{"host": host, "inject": [{}, {"header": "X", "connection": other}]}] });
    let definitions = [
        stored("a", inject("a.test", "b")),
        stored("b", json!({})),
        stored("thief", inject("thief.test", "file")),
        stored("x", inject("x.test", "y")),
        stored("y", inject("y.test", "z")),
        stored("z", json!({ "token_url": "ftp://as.test" })),
    ];
    let loaded = files(MAIN).with_stored(&definitions);
    let aside: BTreeSet<_> = loaded.set_aside.iter().map(|aside| aside.name.as_str()).collect();
    assert_eq!(aside, ["thief", "x", "y", "z"].into());
    let model = &loaded.model;
    assert!(model.connections[0].extra_origins.is_empty(), "the file's token goes where the file sends it");
    assert_eq!(
        model.connections.iter().find(|connection| connection.name.as_str() == "b").unwrap().extra_origins.len(),
        1
    );
}

/// A definition with a reference at `path`, such as `routes[].upstream_tls.trust[]`.
pub(super) fn at(path: &str, value: Value) -> Value {
    path.rsplit('.').fold(value, |value, segment| match segment.strip_suffix("[]") {
        Some(key) => json!({ key: [value] }),
        None => json!({ segment: value }),
    })
}

/// The path of each key of a connection whose schema is `found`; `free` is the key of a map with free keys.
pub(super) fn paths(
    schema: &Value,
    root: &Value,
    path: &str,
    found: &impl Fn(&Value) -> bool,
    all: &mut BTreeSet<String>,
) {
    if found(schema) {
        all.insert(path.to_owned());
        return;
    }
    if let Some(name) = schema["$ref"].as_str().map(|target| target.trim_start_matches("#/$defs/")) {
        paths(&root["$defs"][name], root, path, found, all);
    }
    for form in schema["anyOf"].as_array().into_iter().flatten() {
        paths(form, root, path, found, all);
    }
    let join = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    for (key, value) in schema["properties"].as_object().into_iter().flatten() {
        paths(value, root, &join(key), found, all);
    }
    if schema["additionalProperties"].is_object() {
        paths(&schema["additionalProperties"], root, &join("free"), found, all);
    }
    if schema["items"].is_object() {
        paths(&schema["items"], root, &format!("{path}[]"), found, all);
    }
}

/// The keys that a secret or a path below needs to be read, by its path.
fn companions(path: &str) -> Value {
    match path {
        "password" => json!({ "grant": "password", "username": "u" }),
        "assertion" => json!({ "grant": "saml2_bearer" }),
        "assertion.key" => json!({ "grant": "jwt_bearer" }),
        "subject_token" => json!({ "grant": "token_exchange" }),
        "actor_token" | "actor_token.token" => {
            json!({ "grant": "token_exchange", "subject_token": {"from": "caller"} })
        }
        _ if path.starts_with("client_assertion") => json!({ "send_credentials": "private_key_jwt" }),
        _ => json!({}),
    }
}

/// Merges maps; of other values, the second wins.
pub(super) fn merge(one: &mut Value, other: Value) {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            other.into_iter().for_each(|(key, value)| merge(one.entry(key).or_insert(Value::Null), value));
        }
        (one, other) => *one = other,
    }
}

#[track_caller]
fn check_reference(path: &str, value: Value) {
    let mut keys = companions(path);
    let siblings = match path {
        "authorization_server.proxy.password" => {
            json!({ "authorization_server": {"proxy": {"url": "http://p.test:1", "username": "u"}} })
        }
        "authorization_server.proxy.trust[]" => {
            json!({ "authorization_server": {"proxy": {"url": "https://p.test:1"}} })
        }
        "client_assertion.certificate" => {
            json!({ "client_assertion": {"key": include_str!("../../jwt/tests/rsa-pkcs8.pem")} })
        }
        _ => json!({}),
    };
    merge(&mut keys, siblings);
    merge(&mut keys, at(path, value.clone()));
    let problems = problems(keys.clone());
    let is_refusal = |problem: &Problem| problem.code == Some("reference_not_allowed");
    let shown: Vec<_> = problems.iter().map(Problem::to_string).collect();
    assert!(problems.iter().any(is_refusal), "{path}: {value}\n{keys}\n{shown:#?}");
    assert!(!shown.iter().any(|text| text.contains("hunter2")), "{shown:#?}");
}

/// `{use: NAME}` alone is allowed; every other form of a secret that is not written out is refused, at every key.
#[test]
fn no_secret_of_a_stored_definition_is_a_reference() {
    let root = schema();
    let mut all = BTreeSet::new();
    paths(&root["$defs"]["connection"], &root, "", &|schema| schema["$ref"] == "#/$defs/secret", &mut all);
    assert!(all.len() >= 10, "{all:?}");
    for path in &all {
        for reference in [
            json!({"file": "s"}),
            json!({"env": "PATH"}),
            json!({"store": "crm/secret"}),
            "${env:PATH}".into(),
            "${file:s}".into(),
        ] {
            check_reference(path, reference);
        }
    }
}

/// Every key that takes the path of a file refuses one, whatever it names.
#[test]
fn no_key_of_a_stored_definition_takes_a_path() {
    let root = schema();
    let mut all = BTreeSet::new();
    paths(&root["$defs"]["connection"], &root, "", &|schema| schema["x-path"] == true, &mut all);
    let expected: BTreeSet<_> = [
        "authorization_server.proxy.trust[]",
        "authorization_server.trust[]",
        "client_assertion.certificate",
        "mutual_tls.certificate",
        "routes[].upstream_tls.trust[]",
        "script.file",
    ]
    .map(str::to_owned)
    .into();
    let secrets = |path: &String| path.ends_with(".file") && path != "script.file" || path == "file";
    assert_eq!(all.iter().filter(|path| !secrets(path)).cloned().collect::<BTreeSet<_>>(), expected);
    for path in &expected {
        for file in ["s", "/etc/passwd", "gone"] {
            check_reference(path, file.into());
        }
    }
}

/// A reference in any text is refused, also as a part of it; nothing of its value is shown.
#[test]
#[allow(clippy::disallowed_methods, reason = "the value that no problem may show")]
fn no_text_of_a_stored_definition_is_filled_in() {
    let path = std::env::var_os("PATH").unwrap().into_string().unwrap();
    for key in [
        "client_id",
        "token_url",
        "revocation_url",
        "authorization_url",
        "issuer",
        "audience",
        "resource",
        "scopes",
        "comments",
        "logo_url",
        "application",
        "grant",
        "grant_type",
        "send_credentials",
        "tokens",
        "active",
        "refresh_ahead",
        "keep_warm",
        "refresh_token_lifespan",
        "redirect_url",
        "allow_cleartext",
        "accessible_from[]",
        "token_params.x",
        "authorize_params.x",
        "available_scopes.x",
        "routes[].host",
        "routes[].path",
        "routes[].set_headers.X",
        "token_request.headers.X",
        "token_request.encoding",
        "token_response.access_token",
        "token_rejected[].status",
        "profiles[].name",
        "profiles[].scopes",
        "profiles[].token_params.x",
        "authorization_server.proxy",
        "authorization_server.timeout",
        "pkce.method",
        "mutual_tls",
        "script.source",
        "client_secret_expires_at",
    ] {
        for reference in ["${env:PATH}", "x-${file:s}", "${nonsense}"] {
            let problems = problems(at(key, reference.into()));
            let is_refusal = |problem: &Problem| problem.code == Some("reference_not_allowed");
            assert!(problems.iter().any(is_refusal), "{key}: {problems:?}");
            assert!(problems.iter().all(|problem| !problem.to_string().contains(&path)), "{key}");
        }
    }
    assert_eq!(problems(json!({ "comments": "costs $${5}" })).len(), 0);
}

#[test]
fn a_script_of_a_stored_definition_sees_no_published_secret() {
    let script = json!({"source": "fn token_request(request, ctx) { throw request.form.client_secret }"});
    refused(
        json!({ "client_secret": {"use": "crm"}, "script": script }),
        "script: a script could reveal the published secret",
    );
    assert_eq!(problems(json!({ "client_secret": "own", "script": script })).len(), 0);
}
