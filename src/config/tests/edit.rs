//! Bodies of the API: what GET shows changes nothing, and problems are at their position in the body.

mod kept;

use serde_json::{Map, Value, json};

use super::written::samples;
use super::*;
use crate::model::Name;

fn crm() -> Name {
    Name::parse("crm").unwrap()
}

/// The present text, with `keys` besides the keys of a connection.
fn present(keys: Value) -> Value {
    let mut definition = json!({ "name": "crm", "client_id": "id", "token_url": "https://as.test/t" });
    definition.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    definition
}

/// The definition as GET shows it, with the members that it adds.
fn shown(text: &str) -> Value {
    let source = Source::parse(text, Path::new("a.yaml"), &mut Sink::default()).unwrap();
    let json = Shapes::new(&schema(), "connection").definition(&source.root().unwrap()).0;
    let mut shown: Value = serde_json::from_str(&json).unwrap();
    let added = json!({
        "state": "fresh", "expires_at": null, "last_attempt": {"at": "x"}, "shared_tokens": [], "effective": {"a": 1},
        "source": "api", "problems": [], "etag": "\"1\"", "set_aside": false, "logo": null,
    });
    shown.as_object_mut().unwrap().extend(added.as_object().unwrap().clone());
    shown
}

/// Merges `keys` into what GET shows, and sends it back.
fn sent_back(present: &Value, keys: Value) -> Result<Edited, Vec<Problem>> {
    let mut body = shown(&present.to_string());
    body.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    Editor::new().replace(&crm(), &body.to_string(), Some(&present.to_string()))
}

#[track_caller]
fn stored(edited: Result<Edited, Vec<Problem>>) -> Value {
    let edited = edited.unwrap_or_else(|problems| panic!("{problems:?}"));
    serde_json::from_str(edited.text.expose()).unwrap()
}

/// Each secret that is needed, as `PATH: what changed`.
#[track_caller]
fn needed(edited: Result<Edited, Vec<Problem>>) -> Vec<String> {
    let problems = edited.expect_err("the secrets were kept");
    let one = |problem: &Problem| {
        assert_eq!(problem.code, Some("secret_needed"), "{problem}");
        assert!(!problem.hint.is_empty() && !problem.to_string().contains("hunter2"), "{problem}");
        let changed = problem.message.strip_prefix("the secret cannot be kept: ");
        let changed = changed.and_then(|rest| rest.strip_suffix(" changed, so it might be sent elsewhere"));
        format!("{}: {}", problem.path, changed.unwrap_or(&problem.message))
    };
    problems.iter().map(one).collect()
}

#[track_caller]
fn check_round_trip(text: &str) {
    let edited = Editor::new().replace(&crm(), &shown(text).to_string(), Some(text));
    let edited = edited.unwrap_or_else(|problems| panic!("{problems:?}\n{text}"));
    assert!(edited.is_unchanged && edited.fields.is_empty(), "{edited:?}\n{text}");
    assert_eq!(edited.text.expose(), text);
    assert!(!format!("{edited:?}").contains("canary"));
}

/// Every form of every key, as a present text.
fn all_keys() -> Vec<Value> {
    let root = schema();
    let name = |mut sample: Value| {
        sample["name"] = "crm".into();
        sample
    };
    samples(&root["$defs"]["connection"], &root, "").into_iter().map(name).collect()
}

#[test]
fn what_get_shows_of_any_definition_changes_nothing_when_it_is_sent_back() {
    let definitions = all_keys();
    assert!(definitions.len() >= 3);
    definitions.iter().for_each(|definition| check_round_trip(&definition.to_string()));
    let mut count = 0;
    for folder in ["config", "config/examples"] {
        for file in included_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).unwrap() {
            let document: serde_yaml::Value = serde_yaml::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
            for connection in document["connections"].as_sequence().unwrap() {
                let mut definition = serde_json::to_value(connection).unwrap();
                definition["name"] = "crm".into();
                check_round_trip(&definition.to_string());
                // As it is in the file, and as the first definition of its name.
                let yaml = serde_yaml::to_string(&definition).unwrap();
                let created = Editor::new().replace(&crm(), &yaml, None).unwrap();
                assert!(!created.is_unchanged && created.fields.contains(&"name".to_owned()));
                check_round_trip(created.text.expose());
                count += 1;
            }
        }
    }
    assert!(count >= 20, "{count}");
    check_round_trip(
        &present(json!({ "audience": null, "scopes": [], "assertion": {"claims": {"set": true}} })).to_string(),
    );
    check_round_trip(
        &present(json!({ "variables": {"set": "true"}, "token_params": {"set": "x", "é": null} })).to_string(),
    );
    // A key that is unknown, as in a definition that is set aside.
    check_round_trip(&present(json!({ "nonsense": {"a": "hunter2", "b": [7]} })).to_string());
}

#[test]
fn a_secret_is_kept_replaced_or_removed() {
    let present = present(json!({ "client_secret": "hunter2", "comments": "old" }));
    let edited = sent_back(&present, json!({ "comments": "new", "active": false })).unwrap();
    assert_eq!((edited.fields, edited.is_unchanged), (vec!["active".to_owned(), "comments".to_owned()], false));
    let text: Value = serde_json::from_str(edited.text.expose()).unwrap();
    assert_eq!(
        (&text["client_secret"], &text["comments"], &text["state"]),
        (&json!("hunter2"), &json!("new"), &Value::Null)
    );
    assert_eq!(edited.text.expose(), text.to_string(), "compact JSON");
    let made = stored(sent_back(&present, json!({ "client_secret": "new", "token_url": "https://b.test/t" })));
    assert_eq!((&made["client_secret"], &made["token_url"]), (&json!("new"), &json!("https://b.test/t")));
    assert_eq!(stored(sent_back(&present, json!({ "client_secret": null }))).get("client_secret"), None);
    assert_eq!(
        stored(sent_back(&present, json!({ "client_secret": {"use": "crm"} })))["client_secret"],
        json!({"use": "crm"})
    );
    let mask = json!({ "set": true });
    assert_eq!(needed(sent_back(&present, json!({ "password": mask }))), ["password: no secret is kept here"]);
    let first =
        json!({ "client_id": "id", "client_secret": mask, "routes": [{"host": "a.test", "set_headers": {"X": mask}}] });
    let expected = ["client_secret: no secret is kept here", "routes[0].set_headers.X: no secret is kept here"];
    assert_eq!(needed(Editor::new().replace(&crm(), &first.to_string(), None)), expected);
    assert_eq!(needed(Editor::new().replace(&crm(), &first.to_string(), Some("[")))[0], expected[0], "unreadable");
    // Where no secret can be, it is an ordinary map.
    let maps = json!({ "client_id": mask, "assertion": {"claims": mask} });
    let made = stored(Editor::new().replace(&crm(), &maps.to_string(), None));
    assert_eq!((&made["client_id"], &made["assertion"]["claims"]), (&mask, &mask));
    let published = self::present(json!({ "client_secret": {"use": "crm"} }));
    assert!(
        sent_back(&published, json!({ "token_url": "https://b.test/t" })).is_ok(),
        "the validator checks its hosts"
    );
}

#[test]
fn the_name_is_that_of_the_url() {
    let editor = Editor::new();
    let text = editor.replace(&crm(), "client_id: id\n", None).unwrap().text;
    assert_eq!(text.expose(), r#"{"client_id":"id","name":"crm"}"#);
    let problems = editor.replace(&crm(), "client_id: id\nname: other\n", None).unwrap_err();
    let expected = "api:crm:2:7: name: is `other`, but the definition is stored as `crm`; use the same name";
    assert_eq!(problems.iter().map(Problem::to_string).collect::<Vec<_>>(), [expected]);
}

#[test]
fn a_body_that_cannot_be_read_is_a_problem_at_its_position() {
    for (body, expected) in [
        ("", "api:crm:1:1: is empty"),
        ("- a", "api:crm:1:1: must be a map"),
        ("hunter2", "api:crm:1:1: must be a map"),
        ("a: 1\nclient_secret: hunter2\na: 2\n", "api:crm:3:1: a: duplicate key (first on line 1)"),
        (
            "{\n\t\"client_secret\": \"hunter2\",\n\t\"routes\": [{\"host\": 1,\t\"host\": 2}]\n}",
            "api:crm:3:25: routes[0].host: duplicate key",
        ),
        ("{\"a\": \"\\ud83d\"}", "api:crm:1:7: a: is not valid JSON"),
        ("{\"a\": 1", "api:crm:"),
        ("name: !secret hunter2", "api:crm:1:15: name: tags"),
    ] {
        let problems = Editor::new().replace(&crm(), body, None).unwrap_err();
        let text = problems[0].to_string();
        assert!(text.starts_with(expected) && !text.contains("hunter2"), "{text}");
    }
    let json = "{\n\t\"client_id\"\t: \"\\ud83d\\ude00 \\\"\",\n\t\"client_secret\": {\"set\": true}}";
    let problems = Editor::new().replace(&crm(), json, None).unwrap_err();
    assert_eq!((problems[0].line, problems[0].column), (3, 19));
    let made = stored(Editor::new().replace(&crm(), &json.replace("{\"set\": true}", "\"x\""), None));
    assert_eq!(made["client_id"], "😀 \"");
}

/// The problems of a new definition, each at its position in the body.
fn located(body: &str) -> Vec<String> {
    let edited = Editor::new().replace(&crm(), body, None).unwrap();
    // JSON is YAML: the stored text is one item of `connections`.
    let mut sink = Sink::default();
    let source = Source::parse(edited.text.expose(), Path::new("a.yaml"), &mut sink).unwrap();
    let shapes = Shapes::new(&schema(), "connection");
    let context = connection::Context { callers: Default::default(), shapes };
    connection::connection(&source.root().unwrap(), &context, &mut sink);
    let problems = sink.finish(Path::new("a.yaml")).unwrap_err().problems;
    problems
        .into_iter()
        .map(|problem| edited.locate(problem))
        .map(|at| format!("{}:{}: {}", at.line, at.column, at.path))
        .collect()
}

#[test]
fn problems_of_the_stored_text_are_at_their_path_in_the_body() {
    let yaml = "name: crm\ntoken_url: ftp://as.test\nroutes:\n  - host: a.test\n    nonsense:\n      - 1\n    methods: [get, GET]\n  - {path: /}\n\"odd key\": 1\n";
    let mut found = located(yaml);
    found.sort_unstable();
    let expected = [
        "1:1: client_id",
        "2:12: token_url",
        "5:5: routes[0].nonsense",
        "7:15: routes[0].methods[0]",
        "8:5: routes[1]",
        "9:1: [\"odd key\"]",
    ];
    assert_eq!(found, expected);
    let json = "{\n\t\"client_id\": \"id\",\n\t\"routes\": [\n\t\t{\"host\": \"a.test\", \"nonsense\": {}}],\n\t\"token_url\":\n\"ftp://as.test\"}";
    let mut found = located(json);
    found.sort_unstable();
    assert_eq!(found, ["4:22: routes[0].nonsense", "6:1: token_url"]);
}

#[test]
fn an_unknown_key_is_left_to_the_validator() {
    let before = present(json!({ "client_secret": "hunter2" }));
    let edited = Editor::new().merge(&crm(), &json!({ "coments": "x" }), &before.to_string()).unwrap();
    assert_eq!(edited.fields, ["coments"]);
    assert!(edited.text.expose().contains("hunter2"));
}

#[test]
fn a_patch_changes_what_it_mentions_and_keeps_the_secrets() {
    let before = present(json!({
        "client_secret": "hunter2", "comments": "old", "scopes": ["a"], "pkce": {"method": "S256"},
        "routes": [{"host": "a.test", "set_headers": {"X": "hunter2"}}],
    }));
    let merge = |patch: Value| Editor::new().merge(&crm(), &patch, &before.to_string());
    let unchanged = merge(json!({})).unwrap();
    assert!(unchanged.is_unchanged && unchanged.text.expose() == before.to_string().as_str());
    assert!(merge(shown(&before.to_string())).unwrap().is_unchanged);
    let edited = merge(json!({ "comments": null, "active": false, "state": "x", "scopes": ["b"] })).unwrap();
    assert_eq!(edited.fields, ["active", "comments", "scopes"]);
    let made = stored(Ok(edited));
    let mut expected = before.as_object().unwrap().clone();
    expected.remove("comments");
    expected.extend(Map::from_iter([("active".to_owned(), false.into()), ("scopes".to_owned(), json!(["b"]))]));
    assert_eq!(made, Value::Object(expected));
    assert_eq!(needed(merge(json!({ "token_url": "https://b.test/t" }))), ["client_secret: `token_url`"]);
    let both = ["client_secret: `allow_cleartext`", "routes[0].set_headers.X: `allow_cleartext`"];
    assert_eq!(needed(merge(json!({ "allow_cleartext": true }))), both);
    assert_eq!(needed(merge(json!({ "pkce": {"method": "plain"} })))[0], "client_secret: `pkce.method`");
    let route = json!([{"host": "a.test", "set_headers": {"X": "new"}}]);
    let made = stored(merge(json!({ "token_url": "https://b.test/t", "client_secret": "new", "routes": route })));
    assert_eq!((&made["client_secret"], &made["routes"]), (&json!("new"), &route));
    assert_eq!(stored(merge(json!({ "client_secret": {"use": "crm"} })))["client_secret"], json!({"use": "crm"}));
    assert_eq!(stored(merge(json!({ "client_secret": null }))).get("client_secret"), None);
    assert_eq!(stored(merge(json!({ "name": null, "audience": {"a": null} })))["name"], "crm");
    let problems = merge(json!({ "name": "other" })).unwrap_err();
    assert_eq!((problems[0].line, problems[0].column, problems[0].path.as_str()), (1, 1, "name"));
    assert!(merge(json!(["a"])).unwrap_err()[0].message.contains("must be a map"));
    let problems = Editor::new().merge(&crm(), &json!({}), "[").unwrap_err();
    assert_eq!(problems[0].message, "the stored definition cannot be read");
}
