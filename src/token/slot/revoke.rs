//! Revocation of a slot's tokens by a person (RFC 7009).
//!
//! Invariant: the tokens are forgotten even if the server fails to revoke them; the outcome reports the failure.

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::inbox::NotSubmitted;
use super::{NoToken, TokenSlot};
use crate::model::connection::Identity;
use crate::model::token::TokenKey;
use crate::store::{Refresh, StoredToken};

/// Keys of other tokens from the same grant at the server, each with the identity that the token was granted under.
pub type Sharers = Vec<(Identity, TokenKey)>;

/// What happens at the authorization server before the tokens are forgotten.
#[derive(Debug)]
pub enum AtServer {
    /// Revokes the tokens, unless their grant is that of a sharer. A request without a response by `until` has failed.
    Revoke { sharers: Sharers, until: Instant },
    /// Sends nothing.
    Nothing,
}

/// Command to revoke and forget the tokens.
#[derive(Debug)]
pub struct Revoke {
    pub at_server: AtServer,
    pub reply: oneshot::Sender<Result<Revoked, String>>,
}

/// Outcome of the revocation at the server. The slot has forgotten both tokens, whatever the outcome.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Revoked {
    pub refresh_token: RevocationOutcome,
    pub access_token: RevocationOutcome,
}

/// Outcome of the revocation of one token at the server.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum RevocationOutcome {
    /// There was no token to revoke.
    #[default]
    None,
    Revoked,
    /// The server has no revocation endpoint.
    NoEndpoint,
    /// Not revoked, because the token of this key is from the same grant.
    Shared(TokenKey),
    /// Not revoked, because only forgetting was requested.
    NotRequested,
    Failed(String),
}

impl Revoked {
    /// The same outcome for every token of a record.
    pub fn all(record: &StoredToken, outcome: &RevocationOutcome) -> Revoked {
        let has_refresh_token = matches!(record.refresh, Refresh::Token(_));
        let refresh_token = if has_refresh_token { outcome.clone() } else { RevocationOutcome::None };
        Revoked { refresh_token, access_token: outcome.clone() }
    }
}

/// Why the tokens were not forgotten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotRevoked {
    /// Another command is pending.
    Busy,
    /// The store failed.
    Store(String),
    NoToken(NoToken),
}

impl TokenSlot {
    /// Returns the server's outcome once the tokens are forgotten, or fails at `deadline`.
    pub async fn revoke(&self, at_server: AtServer, deadline: Instant) -> Result<Revoked, NotRevoked> {
        let (reply, outcome) = oneshot::channel();
        self.submit(Revoke { at_server, reply }).map_err(|why| match why {
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
