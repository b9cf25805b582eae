//! Why there is no next token, and what a slot remembers of it.

use std::time::Duration;

use crate::clock::Now;
use crate::model::token::TokenKey;
use crate::oauth::Failure;
use crate::store::{PutOff, StoreError};
use crate::token::slot::{Consent, RejectionPause, Trouble, needs_consent_again};

pub const STORE_UNAVAILABLE: &str = "store_unavailable";
const RECOVERING: &str = "it was in trouble a moment ago, and other replicas may have kept newer tokens";
const TOLD: &str = "the server has said so to another replica";
const IN_DOUBT: &str = "another process may have spent the refresh token; it is not sent while the present token lasts";

/// Why there is no next token.
#[derive(Debug)]
pub enum AcquireError {
    Server {
        failure: Failure,
        /// A refresh token was sent, and whether it is spent is not known.
        in_doubt: bool,
    },
    Store(StoreError),
    /// The store was in trouble a moment ago: the refresh token is not sent for so long.
    Recovering(Duration),
    /// Before the right to ask has come there is something to look at, or all who waited have gone.
    Interrupted,
    /// The server has told another replica that it gives none.
    PutOff(PutOff),
    /// A rejection has forced a refresh at another replica a moment ago.
    RejectedLately(RejectionPause),
    /// Another holder may have spent the refresh token: it is not sent while the present token lasts.
    InDoubt,
    Person {
        consent: Consent,
        error: String,
    },
    /// The token of this key was granted for another definition, and a person is needed for the next one.
    Outdated(TokenKey),
}

impl From<StoreError> for AcquireError {
    fn from(error: StoreError) -> AcquireError {
        AcquireError::Store(error)
    }
}

impl AcquireError {
    /// What is remembered, of the first failure in a row.
    pub fn trouble(self, now: Now, retry_at: Now) -> Trouble {
        let outcome = match &self {
            AcquireError::Server { failure, .. } => failure.outcome().as_str(),
            AcquireError::Store(_) | AcquireError::Recovering(_) => "unavailable",
            AcquireError::InDoubt | AcquireError::Interrupted | AcquireError::RejectedLately(_) => "unavailable",
            AcquireError::PutOff(told) if !told.permanent => "unavailable",
            AcquireError::PutOff(_) | AcquireError::Person { .. } | AcquireError::Outdated(_) => "refused",
        };
        let (permanent, consent, error, description) = match self {
            AcquireError::Server { failure: Failure::Retryable { reason, detail, .. }, .. } => {
                (false, None, reason.to_string(), detail)
            }
            AcquireError::Server { failure: Failure::Permanent(refusal), .. } => {
                (true, None, refusal.error, refusal.description)
            }
            AcquireError::Server { failure: Failure::Script { message, .. }, .. } => {
                (true, None, "script_failed".to_owned(), Some(message))
            }
            AcquireError::Store(error) => (false, None, STORE_UNAVAILABLE.to_owned(), Some(error.to_string())),
            AcquireError::Recovering(_) => (false, None, STORE_UNAVAILABLE.to_owned(), Some(RECOVERING.to_owned())),
            AcquireError::PutOff(told) => (told.permanent, None, told.error, Some(TOLD.to_owned())),
            AcquireError::Interrupted => (false, None, "interrupted".to_owned(), None),
            AcquireError::RejectedLately(_) => (false, None, "token_rejected".to_owned(), None),
            AcquireError::InDoubt => (false, None, "refresh_in_doubt".to_owned(), Some(IN_DOUBT.to_owned())),
            AcquireError::Person { consent, error } => (true, Some(consent), error, None),
            AcquireError::Outdated(key) => {
                let consent = Consent::Changed;
                (true, Some(consent), consent.code().to_owned(), Some(needs_consent_again(&key)))
            }
        };
        let retry_at = if consent.is_some() { Now::NEVER } else { retry_at };
        Trouble { at: now, permanent, consent, outcome, error, description, retry_at, failures: 1 }
    }
}
