//! Why a slot has no next token, as the refresher knows it and as a request is told.

use std::time::Duration;

use crate::clock::Now;
use crate::model::token::{TokenKey, default_profile};

/// The outcome of a token request that the connection's script gave up.
const SCRIPT: &str = "script";

/// Why [`Consent::Changed`] is wanted, of a connection.
pub const NEEDS_CONSENT_AGAIN: &str =
    "needs consent again: its scopes, client, server or hosts have changed since it was connected";

/// The refresher's last failure, for as long as it is not made good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    pub at: Now,
    pub permanent: bool,
    /// Only a person can end it.
    pub consent: Option<Consent>,
    /// As in the metrics of token requests.
    pub outcome: &'static str,
    /// The server's `error`, or our word for what went wrong; clean.
    pub error: String,
    pub description: Option<String>,
    /// Nobody asks before.
    pub retry_at: Now,
    /// Failures in a row.
    pub failures: u32,
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

/// Why the token of `key` needs consent again, and the command that gets it.
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
    /// The authorization server could not be used lately; `retry_after` until the next try.
    Unavailable { error: String, description: Option<String>, retry_after: Duration },
    /// The authorization server's verdict.
    Refused { error: String, description: Option<String> },
    /// The connection's own script.
    Script { message: String },
    /// A person has to act.
    Person { consent: Consent, error: String },
    /// The request's own patience ended.
    WaitTimeout,
    /// The slot was forgotten while the request waited: the configuration has changed.
    Forgotten,
}

impl Trouble {
    /// What a request is told of it.
    pub fn no_token(&self, now: Now) -> NoToken {
        if let Some(consent) = self.consent {
            return NoToken::Person { consent, error: self.error.clone() };
        }
        let (error, description) = (self.error.clone(), self.description.clone());
        match self.permanent {
            true if self.outcome == SCRIPT => NoToken::Script { message: description.unwrap_or_default() },
            true => NoToken::Refused { error, description },
            false => NoToken::Unavailable { error, description, retry_after: now.until(self.retry_at) },
        }
    }
}
