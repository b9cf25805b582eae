//! A person revokes a slot's tokens (RFC 7009).
//!
//! Invariant: the tokens are forgotten here even if the server fails to revoke them, and the outcome reports that.

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::inbox::NotSubmitted;
use super::{NoToken, TokenSlot};
use crate::model::connection::Identity;
use crate::model::token::TokenKey;

/// Keys of other tokens from the same grant at the server, each with the identity that it was granted under.
pub type Sharers = Vec<(Identity, TokenKey)>;

/// Command to revoke and forget the tokens.
#[derive(Debug)]
pub struct Revoke {
    pub sharers: Sharers,
    pub reply: oneshot::Sender<Result<Revoked, String>>,
}

/// What became of the tokens at the server; here they are forgotten.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Revoked {
    pub refresh_token: Fate,
    pub access_token: Fate,
}

/// What became of one token at the server.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Fate {
    /// There was no such token.
    #[default]
    None,
    Revoked,
    /// The server has no revocation endpoint.
    NoEndpoint,
    /// Not revoked: this token is of the same grant.
    Shared(TokenKey),
    Failed(String),
}

/// Why nothing was forgotten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotRevoked {
    /// Another command waits.
    Busy,
    /// The store failed.
    Store(String),
    NoToken(NoToken),
}

impl TokenSlot {
    /// Returns once the tokens are forgotten, with the server's response.
    pub async fn revoke(&self, sharers: Sharers, deadline: Instant) -> Result<Revoked, NotRevoked> {
        let (reply, outcome) = oneshot::channel();
        self.submit(Revoke { sharers, reply }).map_err(|why| match why {
            NotSubmitted::Busy => NotRevoked::Busy,
            NotSubmitted::Closed => NotRevoked::NoToken(NoToken::Forgotten),
        })?;
        match tokio::time::timeout_at(deadline, outcome).await {
            Ok(Ok(outcome)) => outcome.map_err(NotRevoked::Store),
            Ok(Err(_)) => Err(NotRevoked::NoToken(NoToken::Forgotten)),
            Err(_) => Err(NotRevoked::NoToken(NoToken::WaitTimeout)),
        }
    }
}
