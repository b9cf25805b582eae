//! TTLs of records in Redis.

use std::time::Duration;

use crate::clock::Now;
use crate::store::{Refresh, StoredToken};

/// A record outlives its last token by this much, to tolerate clock skew.
pub const EXPIRY_SLACK: Duration = Duration::from_secs(600);
/// Minimum TTL of a record with a refresh token, whatever lifetime the server stated. Each refresh restarts it.
pub const REFRESH_TOKEN_TTL_MIN: Duration = Duration::from_secs(400 * 24 * 3600);
/// TTL of the tombstone of a removed record, and of a record with a refused refresh token.
pub const TOMBSTONE_TTL: Duration = Duration::from_secs(30 * 24 * 3600);

/// TTL of a token's record.
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
