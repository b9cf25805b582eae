//! Deadlines of a token: when to refresh it, when to stop injecting it, when it expires. Pure.

use std::time::Duration;

use crate::clock::Now;
use crate::model::connection::Lifetimes;

/// Minimum interval between two token requests, however short the token's lifetime.
const REFRESH_GAP_MIN: Duration = Duration::from_millis(500);

/// Deadlines of one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    pub usable_until: Now,
    pub expires: Now,
    pub refresh_at: Now,
}

/// Computes all three deadlines. `jitter` is from 0 to 1.
pub fn of(obtained: Now, lifetime: Duration, lifetimes: &Lifetimes, jitter: f64) -> Deadlines {
    let margin = usable_margin(lifetime, lifetimes);
    let ahead = lifetimes.refresh_ahead.min(lifetime / 2).mul_f64(1.0 - 0.1 * jitter).max(margin);
    Deadlines {
        usable_until: usable_until(obtained, lifetime, lifetimes),
        expires: obtained.plus(lifetime),
        refresh_at: obtained.plus((lifetime - ahead).max(REFRESH_GAP_MIN)),
    }
}

/// The token is never injected from this time on.
pub fn usable_until(obtained: Now, lifetime: Duration, lifetimes: &Lifetimes) -> Now {
    obtained.plus(lifetime - usable_margin(lifetime, lifetimes))
}

fn usable_margin(lifetime: Duration, lifetimes: &Lifetimes) -> Duration {
    lifetimes.usable_margin.min(lifetime / 4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::time::{BootTime, WallTime};

    const START: Now = Now { boot: BootTime::new(Duration::from_secs(100)), wall: WallTime::from_secs(1_000_000) };

    #[track_caller]
    fn check(lifetime: u64, usable_ms: u64, refresh_ms: u64) {
        let deadlines = of(START, Duration::from_secs(lifetime), &Lifetimes::default(), 0.0);
        assert_eq!(deadlines.usable_until, START.plus(Duration::from_millis(usable_ms)), "usable");
        assert_eq!(deadlines.refresh_at, START.plus(Duration::from_millis(refresh_ms)), "refresh");
        assert_eq!(deadlines.expires, START.plus(Duration::from_secs(lifetime)), "expires");
    }

    #[test]
    fn margins_shrink_with_short_lifetimes() {
        check(3600, 3_595_000, 3_300_000);
        check(60, 55_000, 30_000);
        check(3, 2_250, 1_500);
        check(1, 750, 500);
    }

    #[test]
    fn jitter_keeps_the_refresh_after_half_the_lifetime_and_while_the_token_is_usable() {
        let refresh = |jitter| of(START, Duration::from_secs(2), &Lifetimes::default(), jitter);
        assert!(refresh(0.0).refresh_at.boot < refresh(1.0).refresh_at.boot);
        let tight = Lifetimes { refresh_ahead: Duration::from_secs(1), ..Lifetimes::default() };
        let deadlines = of(START, Duration::from_secs(3600), &tight, 1.0);
        assert!(deadlines.refresh_at.boot <= deadlines.usable_until.boot);
    }
}
