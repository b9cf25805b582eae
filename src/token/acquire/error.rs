//! Why there is no next token: when to try again, and what the slot reports of it.

use std::time::Duration;

use crate::clock::Now;
use crate::model::token::TokenKey;
use crate::oauth::{Failure, Outcome, Reason};
use crate::store::{AnnouncedBackoff, StoreError};
use crate::token::schedule::{Backoff, RetryPolicy};
use crate::token::slot::{Consent, RejectionPause, Trouble, TroubleKind, needs_consent_again};

const STORE_UNAVAILABLE: &str = "store_unavailable";
const RECOVERING: &str = "it was unreachable a moment ago, and other replicas may have stored newer tokens";
const SEEN_ELSEWHERE: &str = "another replica got this response from the authorization server";
const IN_DOUBT: &str = "another process may have spent the refresh token; it is not sent while the present token lasts";

/// Why there is no next token.
#[derive(Debug, PartialEq, Eq)]
pub enum AcquireError {
    Server {
        failure: Failure,
        /// A refresh token was sent and may be spent.
        in_doubt: bool,
    },
    Store(StoreError),
    /// The store was unreachable a moment ago: the refresh token is not sent for this long.
    Recovering(Duration),
    /// While waiting for the lease: a command has arrived, the store has changed, or all waiting callers have gone.
    Interrupted,
    /// The server refused another replica, or asked it to wait.
    PutOff(AnnouncedBackoff),
    /// A rejection forced another replica to refresh a moment ago.
    RejectedElsewhere(RejectionPause),
    /// Another replica may have spent the refresh token: it is not sent while the present token lasts.
    InDoubt,
    ConsentNeeded {
        consent: Consent,
        error: String,
    },
    /// The stored token was granted for another definition, and only a person can get one for the present one.
    Outdated(TokenKey),
}

impl From<StoreError> for AcquireError {
    fn from(error: StoreError) -> AcquireError {
        AcquireError::Store(error)
    }
}

impl AcquireError {
    /// Failures in a row, this one included; `before` it at this replica.
    pub fn failures(&self, before: u32) -> u32 {
        match self {
            AcquireError::PutOff(put_off) => put_off.failures,
            _ => before.saturating_add(1),
        }
    }

    /// The refresh token may be spent, by us or by another replica.
    pub fn is_in_doubt(&self) -> bool {
        matches!(self, AcquireError::Server { in_doubt: true, .. } | AcquireError::InDoubt)
    }

    /// `failures`: in a row, this one included.
    pub fn retry_policy(&self, failures: u32) -> RetryPolicy {
        match self {
            AcquireError::Server { failure, in_doubt } => {
                RetryPolicy::Backoff(Backoff { in_doubt: *in_doubt, ..Backoff::after(failure, failures) })
            }
            AcquireError::Recovering(span) => RetryPolicy::After(*span),
            AcquireError::InDoubt => RetryPolicy::InDoubtElsewhere { failures },
            AcquireError::PutOff(put_off) => RetryPolicy::PutOff(put_off.wait),
            AcquireError::ConsentNeeded { .. } | AcquireError::Outdated(_) => RetryPolicy::Never,
            AcquireError::Store(_) | AcquireError::Interrupted | AcquireError::RejectedElsewhere(_) => {
                RetryPolicy::Backoff(Backoff { failures, ..Backoff::default() })
            }
        }
    }

    /// What the slot reports until `retry_at`.
    pub fn into_trouble(self, at: Now, retry_at: Now, failures: u32) -> Trouble {
        let kind = self.kind();
        let outcome = match &self {
            AcquireError::Server { failure, .. } => failure.outcome(),
            _ if kind.is_permanent() => Outcome::Refused,
            _ => Outcome::Unavailable,
        };
        let (error, description) = self.into_texts();
        Trouble { at, kind, outcome, error, description, retry_at, failures }
    }

    fn kind(&self) -> TroubleKind {
        match self {
            AcquireError::Server { failure: Failure::Permanent(_), .. } => TroubleKind::Refused,
            AcquireError::Server { failure: Failure::Script { .. }, .. } => TroubleKind::Script,
            AcquireError::Server { failure: Failure::Retryable { reason: Reason::Empty400, .. }, .. } => {
                TroubleKind::Empty400
            }
            AcquireError::Server { failure: Failure::Retryable { .. }, .. } => TroubleKind::Retryable,
            AcquireError::Store(_) | AcquireError::Recovering(_) => TroubleKind::Store,
            AcquireError::PutOff(put_off) if put_off.permanent => TroubleKind::Refused,
            AcquireError::PutOff(put_off) if put_off.error == Reason::Empty400.to_string() => TroubleKind::Empty400,
            AcquireError::PutOff(_) | AcquireError::InDoubt => TroubleKind::Retryable,
            AcquireError::Interrupted | AcquireError::RejectedElsewhere(_) => TroubleKind::Retryable,
            AcquireError::ConsentNeeded { consent, .. } => TroubleKind::Consent(*consent),
            AcquireError::Outdated(_) => TroubleKind::Consent(Consent::Changed),
        }
    }

    /// The contract's error code, and a description for people.
    fn into_texts(self) -> (String, Option<String>) {
        match self {
            AcquireError::Server { failure: Failure::Retryable { reason, detail, .. }, .. } => {
                (reason.to_string(), detail)
            }
            AcquireError::Server { failure: Failure::Permanent(refusal), .. } => (refusal.error, refusal.description),
            AcquireError::Server { failure: Failure::Script { message, .. }, .. } => {
                ("script_failed".to_owned(), Some(message))
            }
            AcquireError::Store(error) => (STORE_UNAVAILABLE.to_owned(), Some(error.to_string())),
            AcquireError::Recovering(_) => (STORE_UNAVAILABLE.to_owned(), Some(RECOVERING.to_owned())),
            AcquireError::PutOff(put_off) => (put_off.error, Some(SEEN_ELSEWHERE.to_owned())),
            AcquireError::Interrupted => ("interrupted".to_owned(), None),
            AcquireError::RejectedElsewhere(_) => ("token_rejected".to_owned(), None),
            AcquireError::InDoubt => ("refresh_in_doubt".to_owned(), Some(IN_DOUBT.to_owned())),
            AcquireError::ConsentNeeded { error, .. } => (error, None),
            AcquireError::Outdated(key) => (Consent::Changed.code().to_owned(), Some(needs_consent_again(&key))),
        }
    }
}
