//! The moments of a token's life: when to refresh it, until when it is injected, when it expires. Pure.

use std::time::Duration;

use crate::clock::Now;
use crate::model::connection::Lifetimes;

/// Shortest time from one token to the request for the next, however short its lifetime.
const REFRESH_GAP_MIN: Duration = Duration::from_millis(500);

/// The three moments of a token's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moments {
    pub usable_until: Now,
    pub expires: Now,
    pub refresh_at: Now,
}

/// `jitter` is from 0 to 1.
pub fn of(obtained: Now, lifetime: Duration, lifetimes: &Lifetimes, jitter: f64) -> Moments {
    let margin = usable_margin(lifetime, lifetimes);
    let ahead = lifetimes.refresh_ahead.min(lifetime / 2).mul_f64(1.0 - 0.1 * jitter).max(margin);
    Moments {
        usable_until: usable_until(obtained, lifetime, lifetimes),
        expires: obtained.plus(lifetime),
        refresh_at: obtained.plus((lifetime - ahead).max(REFRESH_GAP_MIN)),
    }
}

/// A token is not injected from here on.
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
        let moments = of(START, Duration::from_secs(lifetime), &Lifetimes::default(), 0.0);
        assert_eq!(moments.usable_until, START.plus(Duration::from_millis(usable_ms)), "usable");
        assert_eq!(moments.refresh_at, START.plus(Duration::from_millis(refresh_ms)), "refresh");
        assert_eq!(moments.expires, START.plus(Duration::from_secs(lifetime)), "expires");
    }

    #[test]
    fn thresholds_shrink_with_short_lives() {
        check(3600, 3_595_000, 3_300_000);
        check(60, 55_000, 30_000);
        check(3, 2_250, 1_500);
        check(1, 750, 500);
    }

    #[test]
    fn jitter_never_asks_earlier_than_half_of_the_life_nor_after_usability() {
        let refresh = |jitter| of(START, Duration::from_secs(2), &Lifetimes::default(), jitter);
        assert!(refresh(0.0).refresh_at.boot < refresh(1.0).refresh_at.boot);
        let tight = Lifetimes { refresh_ahead: Duration::from_secs(1), ..Lifetimes::default() };
        let moments = of(START, Duration::from_secs(3600), &tight, 1.0);
        assert!(moments.refresh_at.boot <= moments.usable_until.boot);
    }
}
