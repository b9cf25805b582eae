//! JSON of connections and tokens in the API.
//!
//! Invariant: no token and no secret is shown; a value that may hold one (a parameter, a query) is shown by name only.

use serde_json::{Value, json};
use url::Url;

use crate::clock::Now;
use crate::model::connection::*;
use crate::model::time::rfc3339;
use crate::model::token::TokenKey;
use crate::snapshot::BoundConnection;
use crate::store::{Refresh, StoreError, StoredToken};
use crate::token::slot::{Consent, RevocationOutcome, Revoked, SlotState, TokenSlot, needs_consent_again};

pub fn connection(bound: &BoundConnection, now: Now) -> Value {
    let connection = &bound.connection;
    let shared: Vec<_> = bound.definitions.iter().filter_map(|own| own.slots.as_ref()?.shared()).collect();
    let states = shared.iter().map(|slot| slot.state());
    // The worst one; the first of several.
    let state = states.rev().max_by_key(|state| severity(state.name(now)));
    let word = match &state {
        _ if !connection.active => "inactive",
        Some(state) => state.name(now),
        // A connection with a token for each subject has no state of its own.
        None => "idle",
    };
    let current = state.as_ref().and_then(|state| state.token.as_ref());
    let secret = !connection.client_auth.secrets().is_empty();
    let set = |set: bool| set.then(|| json!({ "set": true }));
    let username = connection.grant.username();
    let endpoints = &connection.endpoints;
    let tokens = match connection.tokens {
        Tokens::Shared => "shared",
        Tokens::PerSubject => "per_subject",
    };
    let by_browser = connection.grant.consent_flow() == Some(ConsentFlow::AuthorizationCode);
    let pkce = by_browser.then(|| connection.authorization.pkce.as_str());
    let available = connection.available_scopes.iter().map(|(name, scopes)| (name.clone(), json!(scopes.join(" "))));
    json!({
        "name": connection.name.as_str(),
        "active": connection.active,
        "state": word,
        "expires_at": current.map(|token| rfc3339(token.expires.wall)),
        "last_attempt": state.as_ref().map(|state| last_attempt(state)),
        "comments": connection.comments,
        "logo_url": connection.logo_url,
        "application": connection.application,
        "client_secret_expires_at": connection.client_secret_expires_at.map(rfc3339),
        "grant": connection.grant.as_str(),
        "grant_type": connection.grant_type,
        "username": username,
        "password": set(username.is_some()),
        "client_id": connection.client_id,
        "client_secret": set(secret),
        "send_credentials": connection.client_auth.as_str(),
        "mutual_tls": set(connection.mutual_tls.is_some()),
        "token_url": endpoints.token.as_ref().map(without_credentials),
        "revocation_url": endpoints.revocation.as_ref().map(without_credentials),
        "authorization_url": endpoints.authorization.as_ref().map(without_credentials),
        "device_authorization_url": endpoints.device_authorization.as_ref().map(without_credentials),
        "redirect_url": connection.authorization.redirect_url,
        "pkce": pkce,
        "authorize_params": set_names(&connection.authorization.params),
        "issuer": endpoints.issuer,
        "scopes": connection.scopes,
        "available_scopes": available.collect::<serde_json::Map<_, _>>(),
        "audience": connection.audience,
        "resource": connection.resource,
        "token_params": set_names(&connection.token_params),
        "profiles": connection.profiles.iter().map(|own| profile(own)).collect::<Vec<_>>(),
        "script": set(connection.script.is_some()),
        "tokens": tokens,
        "shared_tokens": shared.iter().map(|slot| token(slot, now)).collect::<Vec<_>>(),
        "accessible_from": connection.accessible_from.as_ref().map(|names| names.iter().map(|n| n.as_str()).collect::<Vec<_>>()),
        "routes": connection.routes.iter().map(route).collect::<Vec<_>>(),
    })
}

/// The names of parameters; their values may be secrets.
fn set_names(params: &[(String, String)]) -> Value {
    params.iter().map(|(name, _)| (name.clone(), json!({ "set": true }))).collect()
}

/// Orders states from best to worst.
fn severity(state: &str) -> Option<usize> {
    ["fresh", "due", "starting", "expired", "reauthorize", "misconfigured"].iter().position(|one| *one == state)
}

fn profile(own: &Connection) -> Value {
    json!({
        "name": own.profile.as_str(),
        "grant": own.grant.as_str(),
        "scopes": own.scopes,
        "audience": own.audience,
        "resource": own.resource,
        "authorize_params": set_names(&own.authorization.params),
        "token_params": set_names(&own.token_params),
    })
}

/// A URL without the parts that may hold a credential.
fn without_credentials(url: &Url) -> String {
    let mut url = url.clone();
    // Both fail only for a URL that cannot have them.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    url.into()
}

fn route(route: &Route) -> Value {
    let (host, mount, upstream) = match &route.matches {
        RouteMatch::Host { pattern, port } => (Some(host(pattern, *port)), None, None),
        RouteMatch::Mount { prefix, upstream, base } => {
            (None, Some(slashed(prefix)), Some(format!("{upstream}{}", base.as_str())))
        }
    };
    let mut inject = injection_point(&route.inject);
    if !route.others.is_empty() {
        let own = (route.inject != Inject::Nothing).then_some(inject);
        let others = route.others.iter().map(|other| {
            let mut point = injection_point(&other.inject);
            point["connection"] = other.connection.as_str().into();
            point
        });
        inject = own.into_iter().chain(others).collect();
    }
    let set_headers = route.set_headers.iter().map(|(name, _)| (name.to_string(), json!({ "set": true })));
    let existing = match route.existing {
        Existing::Overwrite => "overwrite",
        Existing::Keep => "keep",
        Existing::Refuse => "refuse",
    };
    let without_token = match route.without_token {
        WithoutToken::Fail => "fail",
        WithoutToken::Forward => "forward",
    };
    json!({
        "host": host,
        "mount": mount,
        "upstream": upstream,
        "path": slashed(&route.path),
        "methods": route.methods.as_ref().map(|methods| methods.iter().map(|m| m.as_str()).collect::<Vec<_>>()),
        "upstream_tls": route.tls.upgrade,
        "inject": inject,
        "set_headers": set_headers.collect::<serde_json::Map<_, _>>(),
        "existing": existing,
        "strip": strip(&route.strip),
        "without_token": without_token,
        "profile": route.profile.as_ref().map(|profile| profile.as_str()),
        "only_when_named": route.only_when_named,
    })
}

/// In the syntax of the configuration.
fn strip(strip: &Strip) -> Value {
    let name = |name: &StripName| match name {
        StripName::HeaderOrParameter(_, name) => name.clone(),
        StripName::Parameter(name) => format!("?{name}"),
    };
    match (strip.known, strip.names.as_slice()) {
        (false, []) => Value::Null,
        (true, []) => KNOWN.into(),
        (known, names) => known.then(|| KNOWN.to_owned()).into_iter().chain(names.iter().map(name)).collect(),
    }
}

/// In the syntax of the configuration.
fn injection_point(inject: &Inject) -> Value {
    match inject {
        Inject::Header { header, scheme } => json!({ "header": header.as_str(), "scheme": scheme }),
        Inject::Query { name } => json!({ "query": name }),
        Inject::Nothing => "none".into(),
    }
}

fn slashed(path: &PathPrefix) -> &str {
    if path.is_root() { "/" } else { path.as_str() }
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

/// A token of the definition `own` that is in the store and not in memory.
pub fn stored(own: &Connection, key: &TokenKey, record: &Result<StoredToken, StoreError>) -> Value {
    let (token, lifespan) = (record.as_ref().ok(), own.lifetimes.refresh_token);
    let outdated = token.is_some_and(|token| own.grant.needs_person() && !token.matches(own));
    let ends = token.filter(|token| matches!(token.refresh, Refresh::Token(_))).and_then(|token| {
        let life = token.refresh_life;
        Some(life.since? + life.stated.or(lifespan)?)
    });
    let refused = token.and_then(|token| match &token.refresh {
        _ if outdated => Some(Consent::Changed.code()),
        Refresh::Refused { error } if own.grant.needs_person() => Some(error.as_str()),
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

/// The outcome of a revocation.
pub fn revoked(revoked: &Revoked) -> Value {
    let outcome = |outcome: &RevocationOutcome| match outcome {
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
        RevocationOutcome::Failed(why) => json!({ "outcome": "failed", "reason": why }),
    };
    json!({
        "forgotten": true,
        "refresh_token": outcome(&revoked.refresh_token),
        "access_token": outcome(&revoked.access_token),
    })
}

fn last_attempt(state: &SlotState) -> Value {
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
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::model::time::{BootTime, WallTime};
    use crate::model::token::AccessToken;
    use crate::store::RefreshLife;

    #[test]
    fn a_refused_refresh_token_requires_a_person_only_if_the_grant_does() {
        for (grant, state) in [(Grant::ClientCredentials, "idle"), (Grant::AuthorizationCode, "reauthorize")] {
            let own = Connection { grant, ..Connection::sample("crm") };
            let record = StoredToken {
                identity: own.identity(),
                origins: Arc::new(own.origins()),
                access_token: AccessToken::parse("t").unwrap(),
                obtained: Now { boot: BootTime::default(), wall: WallTime::default() },
                lifetime: Duration::from_secs(60),
                scopes: None,
                refresh: Refresh::Refused { error: "invalid_grant".to_owned() },
                refresh_life: RefreshLife::default(),
                version: 1,
            };
            assert_eq!(stored(&own, &own.token_key(None), &Ok(record))["state"], state);
        }
    }
}
