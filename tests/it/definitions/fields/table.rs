//! A row for each key of a connection, by its path in `keybearer schema`.
//!
//! Not here: what is tried with each key (the other files of this folder).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use crate::rig::peers::Peers;
use crate::rig::sidecar::program;

/// One key of a connection, at any depth.
pub struct Row {
    /// `[]` is an item of a list, `free` a free key of a map.
    pub path: &'static str,
    /// A value over the API; `None` where no literal is possible.
    pub value: Option<Value>,
    /// Another value; of a destination, one at `other.test`.
    pub other: Option<Value>,
    /// The keys that the key needs next to it.
    with: Value,
}

/// Path, value, other value, and the keys next to it, in YAML; an empty value is none.
const ROWS: &[(&str, &str, &str, &str)] = &[
    ("accessible_from", "application", "[]", "{application: billing}"),
    ("accessible_from[]", "local", "named", "{}"),
    ("active", "true", "false", "{}"),
    ("actor_token", "an-actor", "another-actor", EXCHANGE),
    ("actor_token.token", "an-actor", "another-actor", EXCHANGE),
    (
        "actor_token.token_type",
        "jwt",
        "access_token",
        "{grant: token_exchange, subject_token: s, actor_token: {token: a}}",
    ),
    ("allow_cleartext", "true", "false", "{}"),
    ("application", "billing", "shipping", "{}"),
    ("assertion", "c2FtbA", "c2FtbDI", "{grant: saml2_bearer}"),
    ("assertion.algorithm", "RS256", "PS256", JWT),
    ("assertion.audience", "token_url", "http://other.test", JWT),
    ("assertion.claims.free", "x", "y", JWT),
    ("assertion.issuer", "me", "you", JWT),
    ("assertion.key", "PEM", "PEM2", JWT),
    ("assertion.key_id", "one", "two", JWT),
    ("assertion.lifetime", "3m", "5m", JWT),
    ("assertion.subject", "ann", "bob", JWT),
    ("audience", "https://api.test", "https://other.test", "{}"),
    ("authorization_server.proxy", "none", "http://other.test", "{}"),
    ("authorization_server.proxy.password", "a-password", "another", PROXY),
    ("authorization_server.proxy.trust[]", "", "", PROXY),
    ("authorization_server.proxy.url", "http://as.test", "http://other.test", PROXY),
    ("authorization_server.proxy.username", "ann", "bob", PROXY),
    ("authorization_server.timeout", "9s", "5s", "{}"),
    ("authorization_server.trust[]", "", "", "{}"),
    ("authorization_url", "http://as.test/a?prompt=consent&x=1", "http://other.test/a?x=2", "{}"),
    ("authorize_params.free", "offline", "online", "{authorization_url: 'http://as.test/a'}"),
    ("available_scopes.free", "crm.read", "crm.write", "{scopes: [free]}"),
    ("available_scopes.free[]", "crm.read", "crm.write", "{scopes: [free]}"),
    ("basic_encoding", "form", "raw", "{send_credentials: basic}"),
    ("client_assertion.algorithm", "RS256", "PS256", CLIENT_JWT),
    ("client_assertion.audience", "token_url", "http://other.test", CLIENT_JWT),
    ("client_assertion.certificate", "", "", CLIENT_JWT),
    ("client_assertion.key", "PEM", "PEM2", CLIENT_JWT),
    ("client_assertion.key_id", "one", "two", CLIENT_JWT),
    ("client_assertion.thumbprint", "", "x5t", CLIENT_JWT),
    ("client_id", "id-of-ann", "id-of-bob", "{}"),
    ("client_secret", "a-secret", "another-secret", "{}"),
    ("client_secret[]", "a-secret", "another-secret", "{}"),
    ("client_secret_expires_at", "2046-05-01T00:00:00Z", "2047-05-01T00:00:00Z", "{}"),
    ("comments", "costs $${5}", "another", "{}"),
    ("default_token_lifetime", "30m", "20m", "{}"),
    ("device_authorization_url", "http://as.test/device", "http://other.test/device", "{grant: device_code}"),
    ("grant", "client_credentials", "device_code", "{device_authorization_url: 'http://as.test/device'}"),
    ("grant_type", "account_credentials", "another", "{}"),
    ("issuer", "http://as.test", "http://other.test", "{}"),
    ("keep_warm", "24h", "12h", "{}"),
    ("logo_url", "https://as.test/logo.png", "https://other.test/logo.png", "{}"),
    ("mutual_tls", "partner", "", "{}"),
    ("mutual_tls.certificate", "", "", "{mutual_tls: {key: PEM}}"),
    ("mutual_tls.key", "", "PEM", "{}"),
    ("name", "own", "another", "{}"),
    ("password", "a-password", "another-password", "{grant: password, username: ann}"),
    ("pkce.method", "S256", "plain", "{authorization_url: 'http://as.test/a'}"),
    ("pkce.required", "true", "false", "{authorization_url: 'http://as.test/a'}"),
    ("profiles[].audience", "https://api.test", "https://other.test", "{profiles: [{name: p}]}"),
    ("profiles[].authorize_params.free", "x", "y", "{authorization_url: 'http://as.test/a', profiles: [{name: p}]}"),
    (
        "profiles[].grant",
        "client_credentials",
        "device_code",
        "{device_authorization_url: 'http://as.test/device', profiles: [{name: p}]}",
    ),
    ("profiles[].name", "p", "q", "{}"),
    ("profiles[].resource", "https://api.test", "https://other.test", "{profiles: [{name: p}]}"),
    ("profiles[].scopes", "a b", "c", "{profiles: [{name: p}]}"),
    ("profiles[].scopes[]", "a", "b", "{profiles: [{name: p}]}"),
    ("profiles[].token_params.free", "x", "y", "{profiles: [{name: p}]}"),
    (
        "redirect_url",
        "https://as.test/callback",
        "https://other.test/callback",
        "{authorization_url: 'http://as.test/a'}",
    ),
    ("refresh_ahead", "2m", "1m", "{}"),
    ("refresh_token_lifespan", "100d", "50d", "{}"),
    ("requested_token_type", "access_token", "jwt", EXCHANGE),
    ("resource", "https://api.test", "https://other.test", "{}"),
    ("revocation_url", "http://as.test/revoke", "http://other.test/revoke", "{}"),
    ("routes[].existing", "keep", "refuse", "{}"),
    ("routes[].host", "api.test:*", "other.test", "{}"),
    ("routes[].inject", "none", "", "{}"),
    ("routes[].inject.connection", "", "second", "{}"),
    ("routes[].inject.header", "X-Token", "X-Other", "{}"),
    ("routes[].inject.query", "access_token", "token", "{}"),
    ("routes[].inject.scheme", "Token", "", "{}"),
    ("routes[].inject[].connection", "second", "file", "{routes: [{inject: [{header: X-Other}]}]}"),
    ("routes[].inject[].header", "X-Token", "X-Other", "{}"),
    ("routes[].inject[].query", "access_token", "token", "{}"),
    ("routes[].inject[].scheme", "Token", "Other", "{}"),
    ("routes[].intercept", "false", "true", "{}"),
    ("routes[].methods[]", "GET", "POST", "{}"),
    ("routes[].mount", "/crm", "/other", MOUNT),
    ("routes[].only_when_named", "true", "false", "{}"),
    ("routes[].path", "/v1", "/v2", "{}"),
    ("routes[].profile", "p", "default", "{profiles: [{name: p, scopes: a}]}"),
    ("routes[].set_headers.free", "x", "y", "{}"),
    ("routes[].strip", "known", "", "{}"),
    ("routes[].strip[]", "X-Api-Key", "X-Other", "{}"),
    ("routes[].upstream", "http://api.test/v1", "http://other.test/v1", MOUNT),
    ("routes[].upstream_tls", "false", "true", "{}"),
    ("routes[].upstream_tls.mutual_tls", "true", "false", "{mutual_tls: partner}"),
    ("routes[].upstream_tls.server_name", "api.test", "other.test", "{}"),
    ("routes[].upstream_tls.trust[]", "", "", "{}"),
    ("routes[].without_token", "forward", "fail", "{}"),
    ("scopes", "a b", "c", "{}"),
    ("scopes[]", "a", "b", "{}"),
    ("script.file", "", "", "{}"),
    ("script.source", "'fn token_request(request, ctx) { request }'", THROW, "{}"),
    ("send_credentials", "basic", "client_secret_jwt", "{}"),
    ("subject_token", "a-subject", "another-subject", "{grant: token_exchange}"),
    ("subject_token.from", "caller", "", "{grant: token_exchange}"),
    ("subject_token_type", "jwt", "saml2", EXCHANGE),
    ("token_params.free", "x", "y", "{}"),
    (
        "token_rejected[].contains",
        "invalid_token",
        "expired",
        "{token_rejected: [{status: 401, header: WWW-Authenticate}]}",
    ),
    ("token_rejected[].equals", "INVALID", "EXPIRED", "{token_rejected: [{status: 401, pointer: /code}]}"),
    ("token_rejected[].header", "WWW-Authenticate", "X-Other", "{token_rejected: [{status: 401, contains: x}]}"),
    ("token_rejected[].pointer", "/code", "/error", "{token_rejected: [{status: 401, equals: x}]}"),
    ("token_rejected[].status", "401", "419", "{}"),
    ("token_request.encoding", "json", "query", "{}"),
    ("token_request.headers.free", "x", "y", "{}"),
    ("token_response.access_token", "/access_token", "/scope", "{}"),
    ("token_response.encoding", "json", "form", "{}"),
    ("token_response.error", "/code", "/why", "{}"),
    ("token_response.error_description", "/text", "/access_token", "{}"),
    ("token_response.expires_at", "/expires_at", "/end", "{}"),
    ("token_response.expires_in", "/expires_in", "/life", "{}"),
    ("token_response.expires_in_unit", "s", "m", "{}"),
    ("token_response.failure.equals", "'false'", "'true'", "{token_response: {failure: {pointer: /ok}}}"),
    ("token_response.failure.pointer", "/ok", "/good", "{token_response: {failure: {equals: false}}}"),
    ("token_response.refresh_refused[].description_contains", "refresh", "token", "{}"),
    ("token_response.refresh_refused[].error", "unauthorized_client", "other", "{}"),
    ("token_response.refresh_refused[].status", "403", "404", "{}"),
    ("token_response.refresh_token", "/refresh_token", "/other", "{}"),
    ("token_response.refresh_token_expires_in", "/life", "/end", "{}"),
    ("token_response.scope", "/scope", "/scopes", "{}"),
    ("token_response.token_type", "/token_type", "any", "{}"),
    ("token_url", "http://as.test/token", "http://other.test/token", "{}"),
    ("tokens", "shared", "per_subject", "{}"),
    ("usable_margin", "6s", "4s", "{}"),
    ("username", "ann", "bob", "{grant: password, password: a-password}"),
    (
        "variables.free",
        "x",
        "y",
        "{script: {source: 'fn token_request(request, ctx) { request.form.v = ctx.variables.free; request }'}}",
    ),
];

const EXCHANGE: &str = "{grant: token_exchange, subject_token: a-subject}";
const JWT: &str = "{grant: jwt_bearer, assertion: {key: PEM}}";
const CLIENT_JWT: &str = "{send_credentials: private_key_jwt, client_secret: null, client_assertion: {key: PEM}}";
const PROXY: &str = "{authorization_server: {proxy: {url: 'http://as.test', username: ann, password: a-password}}}";
const MOUNT: &str = "{routes: [{host: null, mount: /crm, upstream: 'http://api.test', upstream_tls: false}]}";
const THROW: &str = "'fn token_request(request, ctx) { throw request.form.client_secret }'";

/// The rows, in the order of their paths.
pub fn rows() -> Vec<Row> {
    let key = std::fs::read_to_string(Peers::certs().leaf("client-rsa").1).expect("a key");
    let read = |text: &str| {
        let mut value = serde_yaml::from_str(text).expect("YAML");
        fill(&mut value, &key);
        value
    };
    let row = |(path, value, other, with): &(&'static str, &str, &str, &str)| Row {
        path,
        value: Some(read(value)).filter(|value| !value.is_null()),
        other: Some(read(other)).filter(|value| !value.is_null()),
        with: read(with),
    };
    ROWS.iter().map(row).collect()
}

/// Replaces `PEM` by the key, and `PEM2` by the same key in another text.
fn fill(value: &mut Value, key: &str) {
    match value {
        Value::String(text) if text == "PEM" => *text = key.to_owned(),
        Value::String(text) if text == "PEM2" => *text = format!("{key}\n"),
        Value::Array(items) => items.iter_mut().for_each(|item| fill(item, key)),
        Value::Object(members) => members.values_mut().for_each(|member| fill(member, key)),
        _ => {}
    }
}

impl Row {
    /// Sets the key and those next to it.
    pub fn set(&self, definition: &mut Value, value: Value) {
        merge(definition, self.with.clone());
        set(definition, self.path, value);
    }
}

/// Sets the value at a path; lists have one item.
pub fn set(at: &mut Value, path: &str, value: Value) {
    let at = path.split('.').fold(at, |at, segment| {
        let (key, is_list) = segment.strip_suffix("[]").map_or((segment, false), |key| (key, true));
        if !at.is_object() {
            *at = json!({});
        }
        let at = &mut at[key];
        if is_list && !at.is_array() {
            *at = json!([null]);
        }
        if is_list { &mut at[0] } else { at }
    });
    *at = value;
}

/// The value at a path.
pub fn get<'v>(at: &'v Value, path: &str) -> &'v Value {
    path.split('.').fold(at, |at, segment| match segment.strip_suffix("[]") {
        Some(key) => &at[key][0],
        None => &at[segment],
    })
}

/// Merges maps, and lists item by item; null removes a key.
fn merge(one: &mut Value, other: Value) {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            for (key, value) in other {
                match value {
                    Value::Null => drop(one.remove(&key)),
                    value => merge(one.entry(key).or_insert(Value::Null), value),
                }
            }
        }
        (Value::Array(one), Value::Array(other)) => {
            one.iter_mut().zip(other).for_each(|(one, other)| merge(one, other));
        }
        (one @ Value::Null, Value::Object(other)) => {
            *one = json!({});
            merge(one, Value::Object(other));
        }
        (one, other) => *one = other,
    }
}

/// What the schema states about a key that holds one value.
#[derive(Debug, Default)]
pub struct Leaf {
    /// It may be `{use: NAME}`.
    pub may_be_published: bool,
    /// Its value may be a secret, which is shown as `{set: true}`.
    pub may_be_secret: bool,
    pub is_path: bool,
    pub is_url: bool,
}

/// The keys of a connection that hold one value, by their paths in the schema.
pub async fn leaves() -> BTreeMap<String, Leaf> {
    let output = program().arg("schema").output().await.expect("the command starts");
    let schema: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let mut found = BTreeMap::new();
    collect(&schema["$defs"]["connection"], &schema, "", &mut found);
    found
}

fn collect(schema: &Value, root: &Value, path: &str, found: &mut BTreeMap<String, Leaf>) {
    let mut alternatives = Vec::new();
    flatten(schema, root, &mut alternatives);
    let is_secret = alternatives.iter().any(|one| one["$ref"] == "#/$defs/secret");
    if alternatives.iter().any(|one| holds_one_value(one)) {
        let leaf = Leaf {
            may_be_published: is_secret,
            may_be_secret: alternatives.iter().any(|one| one["writeOnly"] == true || one["x-secret"] == "query"),
            is_path: alternatives.iter().any(|one| one["x-path"] == true),
            is_url: alternatives
                .iter()
                .any(|one| one["pattern"].as_str().is_some_and(|text| text.contains("[Hh][Tt]"))),
        };
        found.insert(path.to_owned(), leaf);
    }
    let of_secret = root["$defs"]["secret"]["anyOf"][1]["properties"].as_object();
    let is_reference = |key: &str| is_secret && of_secret.is_some_and(|keys| keys.contains_key(key));
    let join = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    let none = Map::new();
    for one in alternatives {
        let keys = one["properties"].as_object().unwrap_or(&none);
        for (key, value) in keys.iter().filter(|(key, _)| !is_reference(key)) {
            collect(value, root, &join(key), found);
        }
        if one["additionalProperties"].is_object() || one["additionalProperties"] == true {
            collect(&one["additionalProperties"], root, &join("free"), found);
        }
        if one["items"].is_object() {
            collect(&one["items"], root, &format!("{path}[]"), found);
        }
    }
}

fn flatten<'s>(schema: &'s Value, root: &'s Value, alternatives: &mut Vec<&'s Value>) {
    alternatives.push(schema);
    if let Some(name) = schema["$ref"].as_str() {
        flatten(&root["$defs"][name.trim_start_matches("#/$defs/")], root, alternatives);
    }
    for one in schema["anyOf"].as_array().into_iter().flatten() {
        flatten(one, root, alternatives);
    }
}

fn holds_one_value(schema: &Value) -> bool {
    let types = &schema["type"];
    let holds = |name: &Value| ["string", "number", "integer", "boolean"].iter().any(|one| name == one);
    schema == &Value::Bool(true)
        || schema["enum"].is_array()
        || holds(types)
        || types.as_array().is_some_and(|types| types.iter().any(holds))
}

#[tokio::test]
async fn every_key_of_a_connection_has_a_row() {
    let rows: BTreeSet<_> = rows().iter().map(|row| row.path.to_owned()).collect();
    let keys: BTreeSet<_> = leaves().await.into_keys().collect();
    assert_eq!(rows, keys, "write a row for each key");
}
