//! Errors of an attempt: why there is no new token, when to retry, and what the slot reports.

use std::time::Duration;

use crate::clock::Now;
use crate::model::token::TokenKey;
use crate::oauth::{Failure, Outcome, Reason};
use crate::store::{PutOff, StoreError};
use crate::token::schedule::{Backoff, RetryPolicy};
use crate::token::slot::{Consent, FailureKind, LastFailure, RejectionBackoff, needs_consent_again};

const STORE_UNAVAILABLE: &str = "store_unavailable";
const RECOVERING: &str = "the store was unreachable until recently; other replicas may hold newer tokens";
const SEEN_ELSEWHERE: &str = "another replica got this response from the authorization server";
const IN_DOUBT: &str =
    "another replica may have spent the refresh token; not sending it while the current token is usable";

/// Why there is no new token.
#[derive(Debug, PartialEq, Eq)]
pub enum AcquireError {
    Server {
        failure: Failure,
        /// A refresh token was sent and may be spent.
        in_doubt: bool,
    },
    Store(StoreError),
    /// The store was unreachable until recently; the refresh token is not sent for this time.
    Recovering(Duration),
    /// During the wait for the lease a command arrived, the store changed, or the last waiting caller left.
    Interrupted,
    /// Another replica published a notice: the server refused its request or made it back off.
    Deferred(PutOff),
    /// A rejection just forced another replica to refresh.
    RejectedElsewhere(RejectionBackoff),
    /// Another replica may have spent the refresh token; it is not sent while the current token is usable.
    InDoubt,
    ConsentNeeded {
        consent: Consent,
        error: String,
    },
    /// The stored token was granted under another definition, and the current one needs a person's consent.
    Outdated(TokenKey),
}

impl From<StoreError> for AcquireError {
    fn from(error: StoreError) -> AcquireError {
        AcquireError::Store(error)
    }
}

impl AcquireError {
    /// Consecutive failures, including this one; `before`: those of this replica before it.
    pub fn failures(&self, before: u32) -> u32 {
        match self {
            AcquireError::Deferred(put_off) => put_off.failures,
            _ => before.saturating_add(1),
        }
    }

    /// True if the refresh token may be spent, by this or another replica.
    pub fn is_in_doubt(&self) -> bool {
        matches!(self, AcquireError::Server { in_doubt: true, .. } | AcquireError::InDoubt)
    }

    /// `failures`: consecutive failures, including this one.
    pub fn retry_policy(&self, failures: u32) -> RetryPolicy {
        match self {
            AcquireError::Server { failure, in_doubt } => {
                RetryPolicy::Backoff(Backoff { in_doubt: *in_doubt, ..Backoff::after(failure, failures) })
            }
            AcquireError::Recovering(span) => RetryPolicy::After(*span),
            AcquireError::InDoubt => RetryPolicy::InDoubtElsewhere { failures },
            AcquireError::Deferred(put_off) => RetryPolicy::Deferred(put_off.wait),
            AcquireError::ConsentNeeded { .. } | AcquireError::Outdated(_) => RetryPolicy::Never,
            AcquireError::Store(_) | AcquireError::Interrupted | AcquireError::RejectedElsewhere(_) => {
                RetryPolicy::Backoff(Backoff { failures, ..Backoff::default() })
            }
        }
    }

    /// What the slot reports until `retry_at`.
    pub fn into_last_failure(self, at: Now, retry_at: Now, failures: u32) -> LastFailure {
        let kind = self.kind();
        let outcome = match &self {
            AcquireError::Server { failure, .. } => failure.outcome(),
            _ if kind.is_permanent() => Outcome::Refused,
            _ => Outcome::Unavailable,
        };
        let (error, description) = self.into_texts();
        LastFailure { at, kind, outcome, error, description, retry_at, failures }
    }

    fn kind(&self) -> FailureKind {
        match self {
            AcquireError::Server { failure: Failure::Permanent(_), .. } => FailureKind::Refused,
            AcquireError::Server { failure: Failure::Script { .. }, .. } => FailureKind::Script,
            AcquireError::Server { failure: Failure::Retryable { reason: Reason::Empty400, .. }, .. } => {
                FailureKind::Empty400
            }
            AcquireError::Server { failure: Failure::Retryable { .. }, .. } => FailureKind::Retryable,
            AcquireError::Store(_) | AcquireError::Recovering(_) => FailureKind::Store,
            AcquireError::Deferred(put_off) if put_off.permanent => FailureKind::Refused,
            AcquireError::Deferred(put_off) if put_off.error == Reason::Empty400.to_string() => FailureKind::Empty400,
            AcquireError::Deferred(_) | AcquireError::InDoubt => FailureKind::Retryable,
            AcquireError::Interrupted | AcquireError::RejectedElsewhere(_) => FailureKind::Retryable,
            AcquireError::ConsentNeeded { consent, .. } => FailureKind::Consent(*consent),
            AcquireError::Outdated(_) => FailureKind::Consent(Consent::Changed),
        }
    }

    /// The error code, and a description for people.
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
            AcquireError::Deferred(put_off) => (put_off.error, Some(SEEN_ELSEWHERE.to_owned())),
            AcquireError::Interrupted => ("interrupted".to_owned(), None),
            AcquireError::RejectedElsewhere(_) => ("token_rejected".to_owned(), None),
            AcquireError::InDoubt => ("refresh_in_doubt".to_owned(), Some(IN_DOUBT.to_owned())),
            AcquireError::ConsentNeeded { error, .. } => (error, None),
            AcquireError::Outdated(key) => (Consent::Changed.code().to_owned(), Some(needs_consent_again(&key))),
        }
    }
}
