//! Why a slot has no new token: the refresher's last failure, and the error that a waiting request gets.

use std::time::Duration;

use crate::clock::Now;
use crate::model::token::{TokenKey, default_profile};
use crate::oauth::Outcome;

/// Explains [`Consent::Changed`].
pub const NEEDS_CONSENT_AGAIN: &str =
    "needs consent again: its scopes, client, server or hosts have changed since it was connected";

/// The refresher's last failure, until an attempt succeeds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastFailure {
    pub at: Now,
    pub kind: FailureKind,
    /// As in `keybearer_token_requests_total`.
    pub outcome: Outcome,
    /// The server's `error`, sanitized, or one of our own error codes.
    pub error: String,
    pub description: Option<String>,
    /// No attempt before this time.
    pub retry_at: Now,
    /// Consecutive failures.
    pub failures: u32,
}

/// Kinds of failures, by what may resolve them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The store is unreachable or was until recently. Resolved when it is reachable again.
    Store,
    /// Resolved by a later attempt.
    Retryable,
    /// Retryable: the server sent a 400 without a body. A second consecutive one counts as a refusal.
    Empty400,
    /// Resolved by a change at the server or in the configuration.
    Refused,
    /// Resolved by a change of the connection's script.
    Script,
    /// Resolved by a person's consent.
    Consent(Consent),
}

impl FailureKind {
    /// True if a retry is useless until the cause is fixed.
    pub fn is_permanent(self) -> bool {
        match self {
            FailureKind::Store | FailureKind::Retryable | FailureKind::Empty400 => false,
            FailureKind::Refused | FailureKind::Script | FailureKind::Consent(_) => true,
        }
    }
}

/// What a person has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consent {
    /// Connect the account: there is no token.
    First,
    /// Connect again: the stored token was granted under another definition of the connection and is never sent again.
    Changed,
    /// Connect again: the server has refused the refresh token.
    Again,
}

impl Consent {
    /// The error code in API and problem responses.
    pub fn code(self) -> &'static str {
        match self {
            Consent::First | Consent::Changed => "consent_required",
            Consent::Again => "refresh_token_expired",
        }
    }
}

/// Explains why the token of `key` needs consent again, with the command to run.
pub fn needs_consent_again(key: &TokenKey) -> String {
    let TokenKey { connection, profile, subject } = key;
    let mut command = format!("keybearer connect {connection}");
    if *profile != default_profile() {
        command.push_str(&format!(" --profile {profile}"));
    }
    if let Some(subject) = subject {
        command.push_str(&format!(" --subject {subject}"));
    }
    format!("{NEEDS_CONSENT_AGAIN}; run `{command}`")
}

/// Why a request got no token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoToken {
    /// The authorization server or the store failed; `retry_after` until the next attempt.
    Unavailable { error: String, description: Option<String>, retry_after: Duration },
    /// The authorization server refused (RFC 6749 §5.2).
    Refused { error: String, description: Option<String> },
    /// The connection's script failed.
    Script { message: String },
    /// A person has to consent.
    Person { consent: Consent, error: String },
    /// The request's deadline has passed.
    WaitTimeout,
    /// The slot was closed while the request waited, because the configuration changed.
    Forgotten,
}

impl LastFailure {
    /// What a person has to do, if only a person can resolve the failure.
    pub fn consent(&self) -> Option<Consent> {
        match self.kind {
            FailureKind::Consent(consent) => Some(consent),
            _ => None,
        }
    }

    /// The error that a waiting request gets.
    pub fn no_token(&self, now: Now) -> NoToken {
        let (error, description) = (self.error.clone(), self.description.clone());
        match self.kind {
            FailureKind::Consent(consent) => NoToken::Person { consent, error },
            FailureKind::Script => NoToken::Script { message: description.unwrap_or_default() },
            FailureKind::Refused => NoToken::Refused { error, description },
            FailureKind::Store | FailureKind::Retryable | FailureKind::Empty400 => {
                NoToken::Unavailable { error, description, retry_after: now.until(self.retry_at) }
            }
        }
    }
}
