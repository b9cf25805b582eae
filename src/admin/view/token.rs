//! JSON of tokens in the API.

use schemars::JsonSchema;
use serde::Serialize;

use super::time::Time;
use crate::clock::Now;
use crate::model::connection::Connection;
use crate::model::token::TokenKey;
use crate::store::{Refresh, StoreError, StoredToken};
use crate::token::slot::{
    Consent, InjectedToken, RevocationOutcome, Revoked, SlotState, TokenSlot, needs_consent_again,
};

/// `idle`: stored, and not in memory.
pub const TOKEN_STATES: [&str; 7] = ["starting", "fresh", "due", "expired", "reauthorize", "misconfigured", "idle"];

/// The state of a token.
#[derive(Serialize, JsonSchema)]
pub struct Token {
    pub profile: String,
    /// Null: all callers share the token.
    pub subject: Option<String>,
    #[schemars(extend("enum" = TOKEN_STATES))]
    pub state: &'static str,
    /// The granted scopes; null: there is no token, or the server did not name them.
    pub scopes: Option<Vec<String>>,
    pub obtained_at: Option<Time>,
    pub expires_at: Option<Time>,
    /// When it is refreshed ahead.
    pub refresh_at: Option<Time>,
    pub refresh_token_expires_at: Option<Time>,
    pub last_attempt: Option<LastAttempt>,
}

/// The last attempt to get a token.
#[derive(Serialize, JsonSchema)]
pub struct LastAttempt {
    pub at: Time,
    #[schemars(extend("enum" = ["ok", "refused", "unavailable", "invalid_answer", "script"]))]
    pub outcome: &'static str,
    /// The server's error code, or our name for the failure.
    pub error: Option<String>,
    pub description: Option<String>,
    /// The next attempt; null: a person is needed, or the next request causes it.
    pub next_at: Option<Time>,
}

/// The outcome of a revocation.
#[derive(Serialize, JsonSchema)]
pub struct RevokedToken {
    /// The token is no longer used, whatever the server responded; false if it could not be forgotten.
    forgotten: bool,
    refresh_token: Revocation,
    access_token: Revocation,
}

/// The outcome for all tokens of a connection.
#[derive(Serialize, JsonSchema)]
pub struct RevokedTokens {
    /// Number of tokens that were revoked and forgotten.
    pub revoked: usize,
    /// Number of tokens that were only forgotten.
    pub not_revoked: usize,
    /// Number of tokens whose revocation failed, or that could not be forgotten.
    pub failed: usize,
    /// Some of them, the failed ones first.
    pub tokens: Vec<RevokedTokenOfKey>,
    /// True if no token is left.
    pub complete: bool,
}

/// The outcome of the revocation of one of several tokens.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "RevokedTokenOfConnection")]
pub struct RevokedTokenOfKey {
    profile: String,
    /// Null: all callers shared the token.
    subject: Option<String>,
    #[serde(flatten)]
    outcome: RevokedToken,
}

impl RevokedTokenOfKey {
    pub fn new(key: &TokenKey, is_forgotten: bool, outcome: &Revoked) -> RevokedTokenOfKey {
        RevokedTokenOfKey {
            profile: key.profile.to_string(),
            subject: key.subject_str().map(str::to_owned),
            outcome: RevokedToken { forgotten: is_forgotten, ..revoked(outcome) },
        }
    }
}

/// The outcome of the revocation of one token at the server.
#[derive(Serialize, JsonSchema)]
pub struct Revocation {
    /// `none`: there was no such token.
    #[schemars(extend("enum" = ["none", "revoked", "not_revoked", "failed"]))]
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

pub fn token(slot: &TokenSlot, now: Now) -> Token {
    let state = slot.state();
    let token = state.token.as_ref();
    Token {
        profile: slot.key.profile.to_string(),
        subject: slot.key.subject.as_ref().map(|subject| subject.to_string()),
        state: state.name(now),
        scopes: token.map(|token| token.granted.scopes.clone()),
        obtained_at: token.map(|token| Time(token.granted.obtained.wall)),
        expires_at: token.map(|token| expiry(token)),
        refresh_at: token.map(|token| Time(token.refresh_at.wall)),
        refresh_token_expires_at: token.and_then(|token| token.granted.refresh_token_ends).map(Time),
        last_attempt: last_attempt(&state),
    }
}

/// The end of a token.
pub fn expiry(token: &InjectedToken) -> Time {
    Time(token.expires.wall)
}

/// A token of this `connection` that is in the store and not in memory.
pub fn stored(connection: &Connection, key: &TokenKey, record: &Result<StoredToken, StoreError>) -> Token {
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
    Token {
        profile: key.profile.to_string(),
        subject: key.subject.as_ref().map(|subject| subject.to_string()),
        state: if token.is_some() { state } else { "misconfigured" },
        scopes: token.and_then(|token| token.scopes.clone()),
        obtained_at: token.map(|token| Time(token.obtained.wall)),
        expires_at: token.map(|token| Time(token.obtained.plus(token.lifetime).wall)),
        refresh_at: None,
        refresh_token_expires_at: ends.map(Time),
        last_attempt: token.map(|token| LastAttempt {
            at: Time(token.obtained.wall),
            outcome: if refused.is_some() { "refused" } else { "ok" },
            error: refused.map(str::to_owned),
            description: outdated.then(|| needs_consent_again(key)),
            next_at: None,
        }),
    }
}

pub fn last_attempt(state: &SlotState) -> Option<LastAttempt> {
    if let Some(failure) = &state.last_failure {
        return Some(LastAttempt {
            at: Time(failure.at.wall),
            outcome: failure.outcome.as_str(),
            error: Some(failure.error.clone()),
            description: failure.description.clone(),
            next_at: failure.consent().is_none().then_some(Time(failure.retry_at.wall)),
        });
    }
    let token = state.token.as_ref()?;
    Some(LastAttempt {
        at: Time(token.granted.obtained.wall),
        outcome: "ok",
        error: None,
        description: None,
        next_at: Some(Time(token.refresh_at.wall)),
    })
}

/// The outcome of a revocation.
pub fn revoked(revoked: &Revoked) -> RevokedToken {
    RevokedToken {
        forgotten: true,
        refresh_token: revocation(&revoked.refresh_token),
        access_token: revocation(&revoked.access_token),
    }
}

fn revocation(outcome: &RevocationOutcome) -> Revocation {
    let with_reason = |outcome, reason: String| Revocation { outcome, reason: Some(reason) };
    match outcome {
        RevocationOutcome::None => Revocation { outcome: "none", reason: None },
        RevocationOutcome::Revoked => Revocation { outcome: "revoked", reason: None },
        RevocationOutcome::NoEndpoint => with_reason("not_revoked", "the server has no revocation endpoint".to_owned()),
        RevocationOutcome::Shared(other) => {
            let TokenKey { connection, profile, .. } = other;
            let other = match profile.as_str() {
                "default" => format!("connection {connection}"),
                profile => format!("profile {connection}/{profile}"),
            };
            with_reason("not_revoked", format!("the {other} uses the same grant at the server"))
        }
        RevocationOutcome::NotRequested => with_reason("not_revoked", "only forgotten, as requested".to_owned()),
        RevocationOutcome::Failed(why) => with_reason("failed", why.clone()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::model::connection::Grant;
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
            assert_eq!(stored(&definition, &definition.token_key(None), &Ok(record)).state, state);
        }
    }
}
