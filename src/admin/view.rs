//! JSON of connections and tokens (`token`) in the API.
//!
//! Invariant: no token and no secret is shown; the definition is masked when it is read (`config::reading::written`).

mod set_aside;
mod time;
mod token;

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::clock::Now;
use crate::config::{SetAside, connection_defaults};
use crate::model::connection::*;
use crate::snapshot::BoundConnection;
use crate::token::slot::SlotState;
pub use set_aside::{DefinitionProblem, SetAsideState, problems_of_definitions};
use set_aside::{Shadowed, shadowed};
pub use time::Time;
pub use token::{
    LastAttempt, RevokedToken, RevokedTokenOfKey, RevokedTokens, TOKEN_STATES, Token, expiry, last_attempt, revoked,
    stored, token,
};

/// States of a connection: `inactive`, else the worst of its shared tokens; `idle` without any.
pub const CONNECTION_STATES: [&str; 8] =
    ["inactive", "starting", "fresh", "due", "expired", "reauthorize", "misconfigured", "idle"];

/// The names of all grants.
pub fn grants() -> Vec<&'static str> {
    GrantKind::ALL.iter().map(|kind| kind.as_str()).collect()
}

/// As [`grants`], and null.
pub fn grants_or_null() -> Vec<Option<&'static str>> {
    grants().into_iter().map(Some).chain([None]).collect()
}

/// A connection as a whole.
#[derive(Serialize)]
pub struct ShownConnection {
    /// The keys of its definition.
    #[serde(flatten)]
    keys: Map<String, Value>,
    #[serde(flatten)]
    state: State,
}

#[derive(Serialize)]
#[serde(untagged)]
enum State {
    InForce(Box<ConnectionState>),
    SetAside(SetAsideState),
}

impl ShownConnection {
    /// Adds the stored definition that this connection of a file shadows, if any.
    pub fn shadowing(mut self, aside: Option<&SetAside>) -> ShownConnection {
        if let State::InForce(state) = &mut self.state {
            state.set_aside = aside.map(shadowed);
        }
        self
    }
}

/// What the API adds to a definition: the connection's state, and the values that its keys lead to.
#[derive(Serialize, JsonSchema)]
pub struct ConnectionState {
    /// `inactive`, or the worst state of its shared tokens; `idle` without any.
    #[schemars(extend("enum" = CONNECTION_STATES))]
    state: &'static str,
    /// When the token with that state expires.
    expires_at: Option<Time>,
    /// The last attempt to get that token.
    last_attempt: Option<LastAttempt>,
    /// The token of each profile that all callers share.
    shared_tokens: Vec<Token>,
    effective: Effective,
    /// Where the connection is defined: `FILE:LINE`, or `api`.
    source: String,
    /// A definition of the same name that was made over the API, and is not in force because a file defines the name.
    #[serde(skip_serializing_if = "Option::is_none")]
    set_aside: Option<Shadowed>,
}

/// What a definition means where its keys leave it to a default, a list of names or the connection of a profile.
#[derive(Serialize, JsonSchema)]
struct Effective {
    active: bool,
    #[schemars(extend("enum" = grants()))]
    grant: &'static str,
    send_credentials: &'static str,
    /// Without its query; null: taken from the issuer's metadata.
    token_url: Option<String>,
    scopes: Vec<String>,
    /// The callers that may use it; null: all.
    accessible_from: Option<Vec<String>>,
    profiles: Vec<EffectiveProfile>,
}

/// A profile, with what it inherits.
#[derive(Serialize, JsonSchema)]
struct EffectiveProfile {
    name: String,
    #[schemars(extend("enum" = grants()))]
    grant: &'static str,
    scopes: Vec<String>,
    audience: Option<String>,
    resource: Option<String>,
}

/// The state of a connection, with that of the token that determines it.
pub fn connection_state(bound: &BoundConnection, now: Now) -> (&'static str, Option<Arc<SlotState>>) {
    let states = bound.definitions.iter().filter_map(|definition| Some(definition.slots.as_ref()?.shared()?.state()));
    // The worst one; the first of several.
    let state = states.rev().max_by_key(|state| severity(state.name(now)));
    let word = match &state {
        _ if !bound.connection.active => "inactive",
        Some(state) => state.name(now),
        // A connection with a token for each subject has no state of its own.
        None => "idle",
    };
    (word, state)
}

/// The definition as written, with the state of the connection.
pub fn connection(bound: &BoundConnection, now: Now) -> ShownConnection {
    in_force(keys(&bound.connection.written), bound, now)
}

/// The definition as a YAML document of its own, the name first.
pub fn yaml(written: &WrittenDefinition) -> Option<serde_yaml::Value> {
    let mut keys: serde_yaml::Mapping = serde_yaml::from_str(&written.json).ok()?;
    let name = keys.shift_remove("name").map(|name| ("name".into(), name));
    Some(serde_yaml::Mapping::from_iter(name.into_iter().chain(keys)).into())
}

fn in_force(keys: Map<String, Value>, bound: &BoundConnection, now: Now) -> ShownConnection {
    ShownConnection { keys, state: State::InForce(Box::new(state(bound, now))) }
}

/// A stored definition that is not in force, with the reasons.
pub fn set_aside(aside: &SetAside) -> ShownConnection {
    let mut keys = aside.written.as_ref().map(keys).unwrap_or_default();
    // As written, these may be anything.
    SetAsideState::MEMBERS.iter().for_each(|name| drop(keys.remove(*name)));
    ShownConnection { keys, state: State::SetAside(SetAsideState::of(aside)) }
}

/// As [`connection`], with each key of the definition as `{value, source}`, and the defaults of absent keys.
pub fn resolved(bound: &BoundConnection, now: Now) -> ShownConnection {
    let connection = &bound.connection;
    let mut keys = connection_defaults();
    // These depend on other keys.
    keys.insert("grant".to_owned(), connection.grant.as_str().into());
    keys.insert("send_credentials".to_owned(), connection.client_auth.as_str().into());
    if !matches!(connection.client_auth, ClientAuth::Basic(..)) {
        keys.remove("basic_encoding");
    }
    keys.values_mut().for_each(|value| *value = json!({ "value": value.take(), "source": "default" }));
    for (key, value) in self::keys(&connection.written) {
        let source = source(&connection.written, &key);
        keys.insert(key, json!({ "value": value, "source": source }));
    }
    in_force(keys, bound, now)
}

/// The keys of the definition, in JSON.
fn keys(written: &WrittenDefinition) -> Map<String, Value> {
    serde_json::from_str(&written.json).unwrap_or_default()
}

/// Where a key of the definition was written: `FILE:LINE`, or `api`.
fn source(written: &WrittenDefinition, key: &str) -> String {
    match &written.defined_in {
        DefinedIn::Api(_) => "api".to_owned(),
        DefinedIn::File(path) => {
            let line = written.lines.iter().find(|(written, _)| written == key).map_or(1, |(_, line)| *line);
            format!("{}:{line}", path.display())
        }
    }
}

fn state(bound: &BoundConnection, now: Now) -> ConnectionState {
    let connection = &bound.connection;
    let shared = bound.definitions.iter().filter_map(|own| own.slots.as_ref()?.shared());
    let (word, state) = connection_state(bound, now);
    let current = state.as_ref().and_then(|state| state.token.as_ref());
    ConnectionState {
        state: word,
        expires_at: current.map(|token| expiry(token)),
        last_attempt: state.as_ref().and_then(|state| last_attempt(state)),
        shared_tokens: shared.map(|slot| token(slot, now)).collect(),
        effective: effective(connection),
        source: source(&connection.written, "name"),
        set_aside: None,
    }
}

fn effective(connection: &Connection) -> Effective {
    let callers = connection.accessible_from.as_ref();
    Effective {
        active: connection.active,
        grant: connection.grant.as_str(),
        send_credentials: connection.client_auth.as_str(),
        token_url: connection.endpoints.token.as_ref().map(without_query),
        scopes: connection.scopes.clone(),
        accessible_from: callers.map(|names| names.iter().map(|name| name.to_string()).collect()),
        profiles: connection.profiles.iter().map(|own| profile(own)).collect(),
    }
}

/// Orders states from best to worst.
fn severity(state: &str) -> Option<usize> {
    ["fresh", "due", "starting", "expired", "reauthorize", "misconfigured"].iter().position(|one| *one == state)
}

fn profile(connection: &Connection) -> EffectiveProfile {
    EffectiveProfile {
        name: connection.profile.to_string(),
        grant: connection.grant.as_str(),
        scopes: connection.scopes.clone(),
        audience: connection.audience.clone(),
        resource: connection.resource.clone(),
    }
}

/// What a route matches, as one word: the host or the mount, and the path.
pub fn route_match(route: &Route) -> String {
    let base = match &route.matches {
        RouteMatch::Host { pattern, port } => host(pattern, *port),
        RouteMatch::Mount { prefix, .. } => if prefix.is_root() { "/" } else { prefix.as_str() }.to_owned(),
    };
    if route.path.is_root() { base } else { base + route.path.as_str() }
}

/// In the syntax of the configuration.
fn host(pattern: &HostPattern, port: PortRule) -> String {
    let name = match pattern {
        HostPattern::Exact(host) => host.to_string(),
        HostPattern::Subdomains(host) => format!("*.{host}"),
    };
    match port {
        PortRule::Default => name,
        PortRule::Stated(port) => format!("{name}:{port}"),
        PortRule::Any => format!("{name}:*"),
    }
}
