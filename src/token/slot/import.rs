//! A person brings a credential from outside: a refresh token, an authorization code, or a token already issued.
//!
//! Invariant: what is imported replaces the slot's token only after the authorization server has accepted it.

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::inbox::NotSubmitted;
use super::{NoToken, TokenSlot};
use crate::clock::Now;
use crate::model::token::{RefreshToken, TokenSet};
use crate::oauth::ConsentGrant;
use crate::telemetry::audit::Person;

#[derive(Debug)]
pub enum Credential {
    RefreshToken(RefreshToken),
    /// To be exchanged for a token.
    Consented(ConsentGrant),
    /// Issued to a request that was sent at `requested_at`.
    Tokens {
        set: TokenSet,
        requested_at: Now,
    },
}

/// Command to prove a credential and keep its token.
#[derive(Debug)]
pub struct Import {
    pub credential: Credential,
    pub by: Person,
    pub reply: oneshot::Sender<Result<(), NoToken>>,
}

/// Why a credential was not kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotImported {
    /// Another command waits.
    Busy,
    /// It gave no access token; nothing has changed.
    NotProven(NoToken),
}

impl TokenSlot {
    /// Returns once `credential` has given an access token and it is kept, or why not.
    pub async fn import(&self, credential: Credential, by: Person, deadline: Instant) -> Result<(), NotImported> {
        let (reply, outcome) = oneshot::channel();
        self.submit(Import { credential, by, reply }).map_err(|why| match why {
            NotSubmitted::Busy => NotImported::Busy,
            NotSubmitted::Closed => NotImported::NotProven(NoToken::Forgotten),
        })?;
        self.interest.note_use();
        match tokio::time::timeout_at(deadline, outcome).await {
            Ok(Ok(outcome)) => outcome.map_err(NotImported::NotProven),
            Ok(Err(_)) => Err(NotImported::NotProven(NoToken::Forgotten)),
            Err(_) => Err(NotImported::NotProven(NoToken::WaitTimeout)),
        }
    }
}
