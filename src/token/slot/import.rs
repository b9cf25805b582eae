//! Import of a credential that a person supplies: a refresh token, an authorization code, or a token already issued.
//!
//! Invariant: an imported credential replaces the slot's token only after the authorization server has accepted it.

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
    /// Tokens from a token request that was sent at `requested_at`.
    Tokens {
        set: TokenSet,
        requested_at: Now,
    },
}

/// Command to prove a credential at the authorization server and keep the resulting token.
#[derive(Debug)]
pub struct Import {
    pub credential: Credential,
    pub by: Person,
    pub reply: oneshot::Sender<Result<(), NoToken>>,
}

/// Why a credential was not kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotImported {
    /// Another command is pending.
    Busy,
    /// The credential yielded no access token; the slot is unchanged.
    NotProven(NoToken),
}

impl TokenSlot {
    /// Returns once `credential` has yielded an access token and the token is kept.
    pub async fn import(&self, credential: Credential, by: Person, deadline: Instant) -> Result<(), NotImported> {
        let (reply, outcome) = oneshot::channel();
        self.submit(Import { credential, by, reply }).map_err(|why| match why {
            NotSubmitted::Busy => NotImported::Busy,
            NotSubmitted::Closed => NotImported::NotProven(NoToken::Forgotten),
        })?;
        self.usage.record_use();
        match tokio::time::timeout_at(deadline, outcome).await {
            Ok(Ok(outcome)) => outcome.map_err(NotImported::NotProven),
            Ok(Err(_)) => Err(NotImported::NotProven(NoToken::Forgotten)),
            Err(_) => Err(NotImported::NotProven(NoToken::WaitTimeout)),
        }
    }
}
