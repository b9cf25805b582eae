//! A person wants a token to be of no use any more.
//!
//! Holds: what is kept here is forgotten even where the server fails to revoke it, and the answer says so.

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::import::Errand;
use super::{NoToken, TokenSlot};
use crate::model::connection::Identity;
use crate::model::token::TokenKey;
use crate::sync::lock;

/// Other connections and profiles that use the same grant at the server, by the identity under which it was granted: the
/// keys of their tokens.
pub type Sharers = Vec<(Identity, TokenKey)>;

/// A wish that waits for the refresher, and who waits for the outcome.
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

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Fate {
    /// There was none.
    #[default]
    None,
    Revoked,
    /// The server has no endpoint for it.
    NoEndpoint,
    /// Left alone for this one's sake.
    Shared(TokenKey),
    Failed(String),
}

/// Why nothing was forgotten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotRevoked {
    /// Another errand is under way.
    Busy,
    /// The store could not be used.
    Store(String),
    NoToken(NoToken),
}

impl TokenSlot {
    /// Returns once the tokens are forgotten here, with what the server said. It is done although the caller goes away.
    pub async fn revoke(&self, sharers: Sharers, deadline: Instant) -> Result<Revoked, NotRevoked> {
        let (reply, outcome) = oneshot::channel();
        {
            let mut desk = lock(&self.desk);
            if desk.is_some() {
                return Err(NotRevoked::Busy);
            }
            if self.is_closed() {
                return Err(NotRevoked::NoToken(NoToken::Forgotten));
            }
            *desk = Some(Errand::Revoke(Revoke { sharers, reply }));
        }
        self.demand.notify_one();
        match tokio::time::timeout_at(deadline, outcome).await {
            Ok(Ok(outcome)) => outcome.map_err(NotRevoked::Store),
            Ok(Err(_)) => Err(NotRevoked::NoToken(NoToken::Forgotten)),
            Err(_) => Err(NotRevoked::NoToken(NoToken::WaitTimeout)),
        }
    }
}
