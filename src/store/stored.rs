//! The record of one token, as every store keeps it.
//!
//! Not here: its bytes (`record`), the seal (`seal`).

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Now;
use crate::model::connection::{Connection, Identity, OriginSet};
use crate::model::time::WallTime;
use crate::model::token::{AccessToken, RefreshToken};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredToken {
    /// The definition it was granted for; it is not used under another identity.
    pub identity: Identity,
    /// Where it may be sent.
    pub origins: Arc<OriginSet>,
    pub access_token: AccessToken,
    /// When the token request left.
    pub obtained: Now,
    pub lifetime: Duration,
    /// Scopes as granted; `None`: as requested.
    pub scopes: Option<Vec<String>>,
    pub refresh: Refresh,
    pub refresh_life: RefreshLife,
    /// Set by the save; later saves have higher versions. In a token that is not saved yet: the version of the record,
    /// or of the removal, that it is to replace; 0: neither.
    pub version: u64,
}

impl StoredToken {
    /// Was it granted for this definition of the connection?
    pub fn is_of(&self, connection: &Connection) -> bool {
        self.identity == connection.identity() && self.origins.covers(&connection.origins())
    }

    /// Has a refresh left its refresh token unchanged? Then the server does not rotate it.
    pub fn outlasts_refreshes(&self) -> bool {
        self.refresh_life.since.is_some_and(|since| since < self.obtained.wall)
    }

    /// Is it an access token alone that has expired on both clocks? A refresh token ends with the server's refusal,
    /// whatever lifetime was stated for it.
    pub fn has_ended(&self, now: Now) -> bool {
        let end = self.obtained.plus(self.lifetime);
        self.refresh == Refresh::None && now.boot >= end.boot && now.wall >= end.wall
    }
}

/// The expected lifetime of a refresh token: a forecast, never a reason to drop it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RefreshLife {
    /// When the request that brought it left; `None`: unknown. A token response that repeats the token leaves it as it
    /// is.
    pub since: Option<WallTime>,
    /// As the token response stated it.
    pub stated: Option<Duration>,
}

/// How the next token is obtained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refresh {
    /// The server gave no refresh token.
    None,
    Token(RefreshToken),
    /// The server refused the refresh token with this error code; it is never sent again.
    Refused {
        error: String,
    },
}
