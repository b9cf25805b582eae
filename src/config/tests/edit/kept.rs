//! A kept secret is sent to the same servers in the same way, or has to be entered again.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::*;

/// Keys that may change while a client secret is kept.
const HARMLESS: [&str; 20] = [
    "name",
    "comments",
    "application",
    "logo_url",
    "active",
    "accessible_from",
    "client_secret_expires_at",
    "refresh_token_lifespan",
    "default_token_lifetime",
    "refresh_ahead",
    "usable_margin",
    "keep_warm",
    "token_rejected",
    "scopes",
    "available_scopes",
    "audience",
    "resource",
    "client_secret",
    "password",
    "routes",
];

/// Keys that may hold a secret, of which a new value may be entered.
const REPLACEABLE: [&str; 3] = ["assertion", "subject_token", "actor_token"];

/// A value that differs from `value` in every text.
fn changed(value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(changed).collect(),
        Value::Object(members) => members.iter().map(|(key, value)| (key.clone(), changed(value))).collect(),
        Value::String(text) => format!("{text}2").into(),
        other => other.clone(),
    }
}

#[test]
fn a_secret_is_not_kept_when_any_key_changes_that_may_redirect_it() {
    let root = schema();
    let properties = root["$defs"]["connection"]["properties"].as_object().unwrap();
    let mut redirecting = BTreeSet::new();
    for (key, schema) in properties.iter().filter(|(key, _)| !["name", "client_secret"].contains(&key.as_str())) {
        let mut forms = samples(schema, &root, "");
        forms.push("one".into());
        for form in forms {
            let mut before = present(json!({ "client_secret": "hunter2" }));
            let mut without = before.clone();
            without.as_object_mut().unwrap().remove(key);
            before[key] = form.clone();
            let after = changed(&form);
            for (before, change) in
                [(&before, json!({ key: after })), (&before, json!({ key: null })), (&without, json!({ key: form }))]
            {
                let edited = sent_back(before, change.clone());
                let is_new_secret =
                    REPLACEABLE.contains(&key.as_str()) && before[key].is_string() && change[key].is_string();
                if HARMLESS.contains(&key.as_str()) || is_new_secret {
                    assert_eq!(stored(edited)["client_secret"], "hunter2", "{key}");
                } else {
                    let needed = needed(edited);
                    assert!(needed[0].starts_with(&format!("client_secret: `{key}")), "{change}: {needed:?}");
                    redirecting.insert(key.as_str());
                }
            }
        }
    }
    assert_eq!(redirecting.len() + HARMLESS.len(), properties.len());
}

/// Merges `change` into what GET shows of a definition with `keys`; the secrets that are needed.
#[track_caller]
fn check(keys: Value, change: Value, expected: &[&str]) {
    let edited = sent_back(&present(keys), change.clone());
    let found = if edited.is_ok() { Vec::new() } else { needed(edited) };
    assert_eq!(found, expected, "{change}");
}

#[test]
fn a_secret_is_not_kept_when_a_setting_next_to_it_changes() {
    let set = json!({ "set": true });
    let key = json!({ "client_assertion": {"key": "hunter2", "algorithm": "RS256"} });
    check(key.clone(), json!({ "client_assertion": {"key": set, "algorithm": "RS256"}, "scopes": "a" }), &[]);
    check(
        key.clone(),
        json!({ "client_assertion": {"key": set, "algorithm": "PS256"} }),
        &["client_assertion.key: `client_assertion.algorithm`"],
    );
    check(
        json!({ "assertion": {"key": "hunter2", "subject": "a"} }),
        json!({ "assertion": {"key": set, "subject": "b", "claims": {"admin": true}} }),
        &["assertion.key: `assertion.claims`"],
    );
    check(
        json!({ "authorization_server": {"proxy": {"url": "http://p.test:1", "username": "u", "password": "hunter2"}} }),
        json!({ "authorization_server": {"proxy": {"url": "http://q.test:1", "username": "u", "password": set}} }),
        &["authorization_server.proxy.password: `authorization_server.proxy.url`"],
    );
    for map in ["variables", "token_params"] {
        let present = json!({ map: {"a": "hunter2", "b": "hunter2"} });
        check(present.clone(), json!({ map: {"a": set, "b": set} }), &[]);
        check(present.clone(), json!({ map: {"a": set, "b": "x"} }), &[&format!("{map}.a: `{map}.b`")]);
        check(present.clone(), json!({ map: {"a": set} }), &[&format!("{map}.a: `{map}.b`")]);
        check(present.clone(), json!({ map: {"c": set} }), &[&format!("{map}.c: no secret is kept here")]);
    }
    check(
        json!({ "token_request": {"headers": {"X": "hunter2"}} }),
        json!({ "token_request": {"headers": {"X": set}, "encoding": "query"} }),
        &["token_request.headers.X: `token_request.encoding`"],
    );
    check(
        json!({ "actor_token": {"token": "hunter2"} }),
        json!({ "actor_token": {"token": set, "token_type": "jwt"} }),
        &["actor_token.token: `actor_token.token_type`"],
    );
    check(
        json!({ "mutual_tls": {"certificate": "c.pem", "key": "hunter2"}, "routes": [{"host": "a.test"}] }),
        json!({ "routes": [{"host": "evil.test", "upstream_tls": {"mutual_tls": true}}] }),
        &["mutual_tls.key: `routes[0].host`"],
    );
    check(
        json!({ "revocation_url": "https://as.test/r?key=hunter2" }),
        json!({ "revocation_url": set, "issuer": "https://b.test" }),
        &["revocation_url: `issuer`"],
    );
}

#[test]
fn a_header_of_a_route_stays_with_its_route() {
    let set = json!({ "set": true });
    let route = |host: &str, value: &Value| json!({ "host": host, "set_headers": {"X": value} });
    let keys = json!({ "routes": [route("a.test", &"hunter2".into()), route("b.test", &"hunter2".into())] });
    let routes = |routes: &[Value]| json!({ "routes": routes });
    let (a, b) = (route("a.test", &set), route("b.test", &set));
    check(keys.clone(), routes(&[a.clone(), b.clone(), json!({ "host": "c.test" })]), &[]);
    check(keys.clone(), routes(&[a.clone(), route("c.test", &"new".into())]), &[]);
    check(keys.clone(), routes(std::slice::from_ref(&a)), &[]);
    let swapped = ["routes[0].set_headers.X: `routes[0].host`", "routes[1].set_headers.X: `routes[1].host`"];
    check(keys.clone(), routes(&[b.clone(), a.clone()]), &swapped);
    check(keys.clone(), routes(std::slice::from_ref(&b)), &swapped[..1]);
    check(keys.clone(), routes(&[route("evil.test", &set), b.clone()]), &["routes[0].set_headers.X: `routes[0].host`"]);
    for (key, value) in [("path", "/echo"), ("upstream_tls", "false"), ("inject", "none")] {
        let mut changed = a.clone();
        changed[key] = value.into();
        check(keys.clone(), routes(&[changed, b.clone()]), &[&format!("routes[0].set_headers.X: `routes[0].{key}`")]);
    }
    check(keys.clone(), routes(&[a.clone(), b.clone(), b]), &["routes[2].set_headers.X: no secret is kept here"]);
    let both = ["routes[0].set_headers.X: `allow_cleartext`", "routes[1].set_headers.X: `allow_cleartext`"];
    check(keys.clone(), json!({ "allow_cleartext": true }), &both);
    // Headers of routes are not sent to the authorization server.
    check(
        keys,
        json!({ "token_url": "https://b.test/t", "client_id": "b", "profiles": [{"name": "p", "grant": "password"}] }),
        &[],
    );
}

#[test]
fn profiles_may_change_only_in_what_they_request() {
    let set = json!({ "set": true });
    let keys = json!({ "client_secret": "hunter2", "profiles": [{"name": "a", "scopes": "x"}, {"name": "b", "grant": "password"}] });
    let profiles = |profiles: Value| json!({ "profiles": profiles });
    check(keys.clone(), profiles(json!([{"name": "b", "grant": "password"}, {"name": "c", "audience": "y"}])), &[]);
    let grant = profiles(json!([{"name": "a", "grant": "client_credentials"}, {"name": "b", "grant": "password"}]));
    check(keys.clone(), grant, &["client_secret: `profiles`"]);
    let other = profiles(json!([{"name": "a"}, {"name": "b", "grant": "device_code"}]));
    check(keys, other, &["client_secret: `profiles[1].grant`"]);
    let keys = json!({ "profiles": [{"name": "a", "scopes": "x", "token_params": {"p": "hunter2"}}] });
    check(keys.clone(), profiles(json!([{"name": "a", "scopes": "y", "token_params": {"p": set}}])), &[]);
    let renamed = profiles(json!([{"name": "b", "scopes": "x", "token_params": {"p": set}}]));
    check(keys.clone(), renamed, &["profiles[0].token_params.p: `profiles[0].name`"]);
    let more = profiles(json!([{"name": "a", "scopes": "x", "token_params": {"p": set, "q": "r"}}]));
    check(keys, more, &["profiles[0].token_params.p: `profiles[0].token_params.q`"]);
}

#[test]
fn a_new_value_of_one_secret_keeps_the_others() {
    let keys = json!({ "client_secret": "hunter2", "password": "hunter2", "assertion": "hunter2", "subject_token": "hunter2" });
    for key in ["client_secret", "password", "assertion", "subject_token"] {
        check(keys.clone(), json!({ key: "new" }), &[]);
    }
    let used = ["assertion", "client_secret", "password"].map(|key| format!("{key}: `subject_token`"));
    check(keys, json!({ "subject_token": {"from": "caller"} }), &used.each_ref().map(String::as_str));
}

#[test]
fn a_second_client_secret_is_added_at_the_end() {
    let set = json!({ "set": true });
    let list = |secrets: Value| json!({ "client_secret": secrets });
    for before in [json!("hunter2"), json!(["hunter2"])] {
        let edited = sent_back(&present(list(before.clone())), list(json!([set, "new"])));
        assert_eq!(stored(edited)["client_secret"], json!(["hunter2", "new"]));
        check(list(before), list(json!(["new", set])), &["client_secret[1]: no secret is kept here"]);
    }
    let two = list(json!(["hunter2", "hunter2"]));
    check(two.clone(), list(json!([set, set, "new"])), &[]);
    check(two.clone(), list(json!([set])), &["client_secret[0]: `client_secret`"]);
    check(two.clone(), list(json!([set, "new"])), &["client_secret[0]: `client_secret[1]`"]);
    check(two, list(set), &["client_secret: no secret is kept here"]);
}

#[test]
fn defaults_count_as_if_they_were_written() {
    let keys = json!({ "client_secret": "hunter2" });
    let defaults = connection_defaults().into_iter().filter(|(key, _)| key != "grant");
    check(keys.clone(), Value::Object(defaults.collect()), &[]);
    check(keys.clone(), json!({ "grant": "client_credentials" }), &[]);
    let browser = json!({ "client_secret": "hunter2", "authorization_url": "https://as.test/a" });
    check(browser.clone(), json!({ "grant": "authorization_code" }), &[]);
    check(browser, json!({ "grant": "client_credentials" }), &["client_secret: `grant`"]);
    let open = json!({ "password": "hunter2" });
    check(open.clone(), json!({ "send_credentials": "none" }), &[]);
    check(open, json!({ "client_secret": "new" }), &["password: `send_credentials`"]);
}

#[test]
fn thousands_of_secrets_take_little_work() {
    let variables: Map<String, Value> = (0..8000).map(|index| (format!("v{index}"), "hunter2".into())).collect();
    let before = present(json!({ "variables": variables, "client_secret": vec!["hunter2"; 8000] }));
    let start = cpu_time();
    let problems = sent_back(&before, json!({ "token_url": "https://b.test/t" })).unwrap_err();
    assert!(cpu_time() - start < Duration::from_secs(5));
    assert_eq!((problems.len(), problems[0].path.as_str()), (500, "client_secret[0]"));
}
