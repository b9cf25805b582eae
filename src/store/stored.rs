//! The stored form of one token.
//!
//! Not here: its encoding (`record`), the seal (`seal`).

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Now;
use crate::model::connection::{Connection, Identity, OriginSet};
use crate::model::time::WallTime;
use crate::model::token::{AccessToken, RefreshToken};

/// A token with what decides when, where and for which definition it is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredToken {
    /// Identity of the definition that the token was granted for; the token is never used under another one.
    pub identity: Identity,
    /// Origins that the token may be sent to.
    pub origins: Arc<OriginSet>,
    /// In plain text only in memory; the store seals the record.
    pub access_token: AccessToken,
    /// When the token request was sent.
    pub obtained: Now,
    /// Counted from `obtained`. As stated in the token response, else the connection's default.
    pub lifetime: Duration,
    /// Scopes as granted; `None`: as requested.
    pub scopes: Option<Vec<String>>,
    /// The refresh token, or why there is none.
    pub refresh: Refresh,
    /// Expected lifetime of the refresh token.
    pub refresh_life: RefreshLife,
    /// Set by the save; later saves have higher versions. Before the save: the version of the record, or of the
    /// removal, that this token will replace; 0: neither.
    pub version: u64,
}

impl StoredToken {
    /// True if the token was granted for this definition of the connection.
    pub fn matches(&self, connection: &Connection) -> bool {
        self.identity == connection.identity() && self.origins.covers(&connection.origins())
    }

    /// True if a refresh left the refresh token unchanged: the server does not rotate it.
    pub fn has_reusable_refresh_token(&self) -> bool {
        self.refresh_life.since.is_some_and(|since| since < self.obtained.wall)
    }

    /// True if the access token has expired on both clocks and no refresh token is left. A refresh token is kept until
    /// the server refuses it, whatever lifetime was stated.
    pub fn is_disposable(&self, now: Now) -> bool {
        let end = self.obtained.plus(self.lifetime);
        self.refresh == Refresh::None && now.boot >= end.boot && now.wall >= end.wall
    }
}

/// The expected lifetime of a refresh token: a forecast, never a reason to drop it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RefreshLife {
    /// When the request that returned it was sent; `None`: unknown. A token response that repeats the refresh token
    /// does not change this.
    pub since: Option<WallTime>,
    /// Lifetime stated in the token response.
    pub stated: Option<Duration>,
}

/// How the next token is acquired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refresh {
    /// The server issued no refresh token.
    None,
    /// Sent in the next refresh (RFC 6749 §6).
    Token(RefreshToken),
    /// The server refused the refresh token with this error code; it is never sent again.
    Refused {
        /// RFC 6749 §5.2, such as `invalid_grant`.
        error: String,
    },
}
