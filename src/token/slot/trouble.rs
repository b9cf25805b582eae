//! Why a slot has no next token: what the refresher knows, and what a waiting request gets of it.

use std::time::Duration;

use crate::clock::Now;
use crate::model::token::{TokenKey, default_profile};
use crate::oauth::Outcome;

/// Why a connection wants [`Consent::Changed`].
pub const NEEDS_CONSENT_AGAIN: &str =
    "needs consent again: its scopes, client, server or hosts have changed since it was connected";

/// The refresher's last failure, until an attempt succeeds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    pub at: Now,
    pub kind: TroubleKind,
    /// As in the metrics of token requests.
    pub outcome: Outcome,
    /// The server's `error`, or a code of the contract; clean.
    pub error: String,
    pub description: Option<String>,
    /// No attempt before.
    pub retry_at: Now,
    /// Failures in a row.
    pub failures: u32,
}

/// What may end a trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TroubleKind {
    /// The store is unreachable or was so a moment ago; reaching it ends this.
    Store,
    /// A later attempt.
    Retryable,
    /// The same. The server sent a 400 without a body; a second one in a row counts as a refusal.
    Empty400,
    /// A change at the server or of the configuration.
    Refused,
    /// A change of the connection's script.
    Script,
    /// A person.
    Consent(Consent),
}

impl TroubleKind {
    /// Asking again is of no use before something has changed.
    pub fn is_permanent(self) -> bool {
        match self {
            TroubleKind::Store | TroubleKind::Retryable | TroubleKind::Empty400 => false,
            TroubleKind::Refused | TroubleKind::Script | TroubleKind::Consent(_) => true,
        }
    }
}

/// What a person has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consent {
    /// Connect: there is no token.
    First,
    /// Connect again: the stored token was granted for another definition of the connection, and is never sent again.
    Changed,
    /// Connect again: the server has refused the refresh token.
    Again,
}

impl Consent {
    /// The contract's code for it.
    pub fn code(self) -> &'static str {
        match self {
            Consent::First | Consent::Changed => "consent_required",
            Consent::Again => "refresh_token_expired",
        }
    }
}

/// Why the token of `key` needs consent again, and the command that asks for it.
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
    /// The connection's own script failed.
    Script { message: String },
    /// A person has to act.
    Person { consent: Consent, error: String },
    /// The request's own deadline has passed.
    WaitTimeout,
    /// The slot was forgotten while the request waited: the configuration has changed.
    Forgotten,
}

impl Trouble {
    /// What a person has to do, if only a person can end it.
    pub fn consent(&self) -> Option<Consent> {
        match self.kind {
            TroubleKind::Consent(consent) => Some(consent),
            _ => None,
        }
    }

    /// What a request gets.
    pub fn no_token(&self, now: Now) -> NoToken {
        let (error, description) = (self.error.clone(), self.description.clone());
        match self.kind {
            TroubleKind::Consent(consent) => NoToken::Person { consent, error },
            TroubleKind::Script => NoToken::Script { message: description.unwrap_or_default() },
            TroubleKind::Refused => NoToken::Refused { error, description },
            TroubleKind::Store | TroubleKind::Retryable | TroubleKind::Empty400 => {
                NoToken::Unavailable { error, description, retry_after: now.until(self.retry_at) }
            }
        }
    }
}
