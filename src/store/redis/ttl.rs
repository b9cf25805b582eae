//! How long Redis keeps what is written to it.

use std::time::Duration;

use crate::clock::Now;
use crate::store::{Refresh, StoredToken};

/// A record outlives its last token by this much, for clock skew.
pub const EXPIRY_SLACK: Duration = Duration::from_secs(600);
/// Minimum TTL of a record with a refresh token, whatever lifetime the server stated. Each refresh restarts it.
pub const REFRESH_TOKEN_TTL_MIN: Duration = Duration::from_secs(400 * 24 * 3600);
/// How long it is remembered that a record was removed, or its refresh token refused.
pub const TOMBSTONE_TTL: Duration = Duration::from_secs(30 * 24 * 3600);

/// How long the record of a token is useful.
pub fn of(token: &StoredToken, now: Now) -> Duration {
    let access = now.until(token.obtained.plus(token.lifetime));
    let refresh = match &token.refresh {
        Refresh::None => Duration::ZERO,
        Refresh::Refused { .. } => TOMBSTONE_TTL,
        Refresh::Token(_) => {
            let stated = token.refresh_life.stated.unwrap_or_default();
            (token.refresh_life.since.unwrap_or_default() + stated).since(now.wall).max(REFRESH_TOKEN_TTL_MIN)
        }
    };
    access.max(refresh) + EXPIRY_SLACK
}

pub fn ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
