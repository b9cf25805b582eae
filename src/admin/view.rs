//! JSON of connections and tokens in the API.
//!
//! Invariant: no token and no secret is shown; the definition is masked when it is read (`config::reading::written`).

use std::sync::Arc;

use serde_json::{Map, Value, json};
use url::Url;

use super::problem::listed;
use crate::clock::Now;
use crate::config::{SetAside, connection_defaults};
use crate::model::connection::*;
use crate::model::time::rfc3339;
use crate::model::token::TokenKey;
use crate::snapshot::BoundConnection;
use crate::store::{Refresh, StoreError, StoredToken};
use crate::token::slot::{
    Consent, InjectedToken, RevocationOutcome, Revoked, SlotState, TokenSlot, needs_consent_again,
};

/// States of a connection: `inactive`, else the worst of its shared tokens; `idle` without any.
pub const CONNECTION_STATES: [&str; 8] =
    ["inactive", "starting", "fresh", "due", "expired", "reauthorize", "misconfigured", "idle"];

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

/// The end of a token.
pub fn expiry(token: &InjectedToken) -> String {
    rfc3339(token.expires.wall)
}

/// The definition as written, with the state of the connection.
pub fn connection(bound: &BoundConnection, now: Now) -> Value {
    let mut members = keys(&bound.connection.written);
    members.extend(state(bound, now));
    members.into()
}

/// The definition as a YAML document of its own, the name first.
pub fn yaml(written: &WrittenDefinition) -> Option<serde_yaml::Value> {
    let mut keys: serde_yaml::Mapping = serde_yaml::from_str(&written.json).ok()?;
    let name = keys.shift_remove("name").map(|name| ("name".into(), name));
    Some(serde_yaml::Mapping::from_iter(name.into_iter().chain(keys)).into())
}

/// A stored definition that is not in force, with the reasons.
pub fn set_aside(aside: &SetAside) -> Value {
    let mut members = aside.written.as_ref().map(keys).unwrap_or_default();
    members.insert("name".to_owned(), aside.name.as_str().into());
    members.insert("state".to_owned(), "misconfigured".into());
    members.insert("source".to_owned(), "api".into());
    members.insert("problems".to_owned(), problems(aside));
    members.into()
}

/// A stored definition whose name a file has taken: its ETag, and the reasons.
pub fn shadowed(aside: &SetAside) -> Value {
    json!({ "etag": format!("\"{}\"", aside.revision), "problems": problems(aside) })
}

/// Why a stored definition is not in force.
fn problems(aside: &SetAside) -> Value {
    let named: Vec<_> = aside.problems.iter().map(|problem| (aside.name.clone(), problem.clone())).collect();
    listed(&named)
}

/// As [`connection`], with each key of the definition as `{value, source}`, and the defaults of absent keys.
pub fn resolved(bound: &BoundConnection, now: Now) -> Value {
    let connection = &bound.connection;
    let mut members = connection_defaults();
    // These depend on other keys.
    members.insert("grant".to_owned(), connection.grant.as_str().into());
    members.insert("send_credentials".to_owned(), connection.client_auth.as_str().into());
    if !matches!(connection.client_auth, ClientAuth::Basic(..)) {
        members.remove("basic_encoding");
    }
    members.values_mut().for_each(|value| *value = json!({ "value": value.take(), "source": "default" }));
    for (key, value) in keys(&connection.written) {
        let source = source(&connection.written, &key);
        members.insert(key, json!({ "value": value, "source": source }));
    }
    members.extend(state(bound, now));
    members.into()
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

/// The members that are not keys of the definition: the connection's state, and the values that its keys lead to.
fn state(bound: &BoundConnection, now: Now) -> Map<String, Value> {
    let connection = &bound.connection;
    let shared: Vec<_> = bound.definitions.iter().filter_map(|own| own.slots.as_ref()?.shared()).collect();
    let (word, state) = connection_state(bound, now);
    let current = state.as_ref().and_then(|state| state.token.as_ref());
    let members = [
        ("state", word.into()),
        ("expires_at", current.map(|token| expiry(token)).into()),
        ("last_attempt", state.as_ref().map(|state| last_attempt(state)).into()),
        ("shared_tokens", shared.iter().map(|slot| token(slot, now)).collect()),
        ("effective", effective(connection)),
        ("source", source(&connection.written, "name").into()),
    ];
    members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// What the definition means where its keys leave it to a default, a list of names or the connection of a profile.
fn effective(connection: &Connection) -> Value {
    let callers = connection.accessible_from.as_ref();
    json!({
        "active": connection.active,
        "grant": connection.grant.as_str(),
        "send_credentials": connection.client_auth.as_str(),
        "token_url": connection.endpoints.token.as_ref().map(without_query),
        "scopes": connection.scopes,
        "accessible_from": callers.map(|names| names.iter().map(|name| name.as_str()).collect::<Vec<_>>()),
        "profiles": connection.profiles.iter().map(|own| profile(own)).collect::<Vec<_>>(),
    })
}

/// Orders states from best to worst.
fn severity(state: &str) -> Option<usize> {
    ["fresh", "due", "starting", "expired", "reauthorize", "misconfigured"].iter().position(|one| *one == state)
}

/// The URL of an endpoint without its query, which may hold a secret.
fn without_query(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.into()
}

fn profile(connection: &Connection) -> Value {
    json!({
        "name": connection.profile.as_str(),
        "grant": connection.grant.as_str(),
        "scopes": connection.scopes,
        "audience": connection.audience,
        "resource": connection.resource,
    })
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

pub fn token(slot: &TokenSlot, now: Now) -> Value {
    let state = slot.state();
    let token = state.token.as_ref();
    json!({
        "profile": slot.key.profile.as_str(),
        "subject": slot.key.subject.as_ref().map(|subject| subject.as_str()),
        "state": state.name(now),
        "scopes": token.map(|token| &token.granted.scopes),
        "obtained_at": token.map(|token| rfc3339(token.granted.obtained.wall)),
        "expires_at": token.map(|token| rfc3339(token.expires.wall)),
        "refresh_at": token.map(|token| rfc3339(token.refresh_at.wall)),
        "refresh_token_expires_at": token.and_then(|token| token.granted.refresh_token_ends).map(rfc3339),
        "last_attempt": last_attempt(&state),
    })
}

/// A token of this `connection` that is in the store and not in memory.
pub fn stored(connection: &Connection, key: &TokenKey, record: &Result<StoredToken, StoreError>) -> Value {
    let (token, lifespan) = (record.as_ref().ok(), connection.lifetimes.refresh_token);
    let outdated = token.is_some_and(|token| connection.grant.needs_person() && !token.matches(connection));
    let ends = token.filter(|token| matches!(token.refresh, Refresh::Token(_))).and_then(|token| {
        let life = token.refresh_life;
        Some(life.since? + life.stated.or(lifespan)?)
    });
    let refused = token.and_then(|token| match &token.refresh {
        _ if outdated => Some(Consent::Changed.code()),
        Refresh::Refused { error } if connection.grant.needs_person() => Some(error.as_str()),
        // The connection's own grant gets the next token.
        Refresh::Refused { .. } => None,
        Refresh::None | Refresh::Token(_) => None,
    });
    let state = if refused.is_some() { "reauthorize" } else { "idle" };
    let last = token.map(|token| {
        json!({
            "at": rfc3339(token.obtained.wall),
            "outcome": if refused.is_some() { "refused" } else { "ok" },
            "error": refused,
            "description": outdated.then(|| needs_consent_again(key)),
            "next_at": null,
        })
    });
    json!({
        "profile": key.profile.as_str(),
        "subject": key.subject.as_ref().map(|subject| subject.as_str()),
        "state": if token.is_some() { state } else { "misconfigured" },
        "scopes": token.and_then(|token| token.scopes.as_ref()),
        "obtained_at": token.map(|token| rfc3339(token.obtained.wall)),
        "expires_at": token.map(|token| rfc3339(token.obtained.plus(token.lifetime).wall)),
        "refresh_at": null,
        "refresh_token_expires_at": ends.map(rfc3339),
        "last_attempt": last,
    })
}

/// The outcome of a revocation after which the tokens are forgotten.
pub fn revoked(revoked: &Revoked) -> Value {
    json!({
        "forgotten": true,
        "refresh_token": revocation(&revoked.refresh_token),
        "access_token": revocation(&revoked.access_token),
    })
}

/// The outcome of the revocation of one token at the server.
fn revocation(outcome: &RevocationOutcome) -> Value {
    match outcome {
        RevocationOutcome::None => json!({ "outcome": "none" }),
        RevocationOutcome::Revoked => json!({ "outcome": "revoked" }),
        RevocationOutcome::NoEndpoint => {
            json!({ "outcome": "not_revoked", "reason": "the server has no revocation endpoint" })
        }
        RevocationOutcome::Shared(other) => {
            let TokenKey { connection, profile, .. } = other;
            let other = match profile.as_str() {
                "default" => format!("connection {connection}"),
                profile => format!("profile {connection}/{profile}"),
            };
            let reason = format!("the {other} uses the same grant at the server");
            json!({ "outcome": "not_revoked", "reason": reason })
        }
        RevocationOutcome::NotRequested => {
            json!({ "outcome": "not_revoked", "reason": "only forgotten, as requested" })
        }
        RevocationOutcome::Failed(why) => json!({ "outcome": "failed", "reason": why }),
    }
}

pub fn last_attempt(state: &SlotState) -> Value {
    if let Some(failure) = &state.last_failure {
        return json!({
            "at": rfc3339(failure.at.wall),
            "outcome": failure.outcome.as_str(),
            "error": failure.error,
            "description": failure.description,
            "next_at": failure.consent().is_none().then(|| rfc3339(failure.retry_at.wall)),
        });
    }
    let Some(token) = &state.token else { return Value::Null };
    json!({
        "at": rfc3339(token.granted.obtained.wall),
        "outcome": "ok",
        "error": null,
        "description": null,
        "next_at": rfc3339(token.refresh_at.wall),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::time::{BootTime, WallTime};
    use crate::model::token::AccessToken;
    use crate::store::RefreshLife;

    #[test]
    fn a_refused_refresh_token_requires_a_person_only_if_the_grant_does() {
        for (grant, state) in [(Grant::ClientCredentials, "idle"), (Grant::AuthorizationCode, "reauthorize")] {
            let definition = Connection { grant, ..Connection::sample("crm") };
            let record = StoredToken {
                identity: definition.identity(),
                origins: Arc::new(definition.origins()),
                access_token: AccessToken::parse("t").unwrap(),
                obtained: Now { boot: BootTime::default(), wall: WallTime::default() },
                lifetime: Duration::from_secs(60),
                scopes: None,
                refresh: Refresh::Refused { error: "invalid_grant".to_owned() },
                refresh_life: RefreshLife::default(),
                version: 1,
            };
            assert_eq!(stored(&definition, &definition.token_key(None), &Ok(record))["state"], state);
        }
    }
}
