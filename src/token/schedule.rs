//! When to ask for the next token: thresholds, jitter, back-off. Pure.

use std::time::Duration;

use super::slot::{Interest, SlotState, Verdict};
use crate::clock::Now;
use crate::model::connection::Lifetimes;
use crate::telemetry::audit::Cause;

/// The first retry after a failure; each further failure waits five times as long, up to [`BACKOFF_MAX`], so that one
/// connection asks a failing server at most three times in its first minute and once a minute later.
const BACKOFF_FIRST: Duration = Duration::from_secs(2);
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// A permanent failure is tried again this often: the server's side may have been mended.
const PROBE_EVERY: Duration = Duration::from_secs(15 * 60);
/// A pause between two looks at the clocks: a wall clock that was set, or a machine that slept, is noticed within it,
/// and not by all refreshers at once.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// However short a life the server grants, the next token is not asked for sooner after this one.
const REFRESH_GAP_MIN: Duration = Duration::from_millis(500);

/// The three moments of a token's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moments {
    pub usable_until: Now,
    pub expires: Now,
    pub refresh_at: Now,
}

/// `jitter` is from 0 to 1.
pub fn moments(obtained: Now, lifetime: Duration, lifetimes: &Lifetimes, jitter: f64) -> Moments {
    let margin = lifetimes.usable_margin.min(lifetime / 4);
    let ahead = lifetimes.refresh_ahead.min(lifetime / 2).mul_f64(1.0 - 0.1 * jitter).max(margin);
    Moments {
        usable_until: obtained.plus(lifetime - margin),
        expires: obtained.plus(lifetime),
        refresh_at: obtained.plus((lifetime - ahead).max(REFRESH_GAP_MIN)),
    }
}

/// What the refresher does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Acquire,
    /// Look again after this long, or when somebody asks.
    Wait(Duration),
    /// Nobody uses it: what is stored stays there, and memory is given back.
    Rest,
}

/// Who wants the next token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wanted {
    pub force: Force,
    pub interest: Interest,
}

/// What asks for the next token before it is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Force {
    #[default]
    None,
    /// The upstream rejected the current one, or a stored one is kept warm: a back-off is waited for.
    Rejection,
    /// A person, who waits for nothing.
    Person,
}

impl Force {
    pub fn by(cause: Option<&Cause>) -> Force {
        match cause {
            None => Force::None,
            Some(Cause::Person(_)) => Force::Person,
            Some(_) => Force::Rejection,
        }
    }
}

/// `jitter` is from 0 to 1.
pub fn next(state: &SlotState, now: Now, wanted: Wanted, jitter: f64) -> Step {
    let Wanted { force, interest } = wanted;
    if force == Force::Person {
        return Step::Acquire;
    }
    let forced = force == Force::Rejection;
    let wait = |at: Now| Step::Wait(now.until(at).min(LOOK_AGAIN.mul_f64(0.5 + 0.5 * jitter)));
    let due = |at: Now| if now.reached(at) { Step::Acquire } else { wait(at) };
    if interest != Interest::Used && !forced {
        return match (state.verdict(now), state.standing_trouble(now)) {
            (Verdict::Serve(_), _) if interest == Interest::Released => Step::Rest,
            (Verdict::Serve(token), _) => wait(token.usable_until),
            // Whoever asks next is told at once, without another request to the server.
            (_, Some(trouble)) if trouble.consent.is_none() => wait(trouble.retry_at),
            _ => Step::Rest,
        };
    }
    match (state.standing_trouble(now), state.verdict(now)) {
        (Some(trouble), _) => due(trouble.retry_at),
        (None, Verdict::Serve(token)) if !forced => due(token.refresh_at),
        // Over already, perhaps before the next one may be asked for.
        (None, Verdict::Acquire) if !forced => {
            state.token.as_ref().map_or(Step::Acquire, |token| due(token.refresh_at))
        }
        (None, _) => Step::Acquire,
    }
}

/// A failure to get the next token, as far as it decides when to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Failed {
    pub permanent: bool,
    /// In a row, this one included.
    pub failures: u32,
    /// As the server asks.
    pub retry_after: Option<Duration>,
    /// The refresh token may be spent, and servers punish its second use.
    pub in_doubt: bool,
}

impl Failed {
    /// The next attempt: after a pause, but not after the end of the present token, so that no verdict outlasts it; one in
    /// doubt exactly then. Only a pause that the server asks for may go further. `jitter` is from 0 to 1.
    pub fn retry_at(self, now: Now, usable_until: Option<Now>, jitter: f64) -> Now {
        let base = match self.permanent {
            true => PROBE_EVERY,
            false => {
                BACKOFF_FIRST.saturating_mul(5u32.saturating_pow(self.failures.saturating_sub(1))).min(BACKOFF_MAX)
            }
        };
        let jittered = |span: Duration| now.plus(span + span.mul_f64(0.2 * jitter));
        let retry_at = match usable_until {
            Some(end) if self.in_doubt => end,
            Some(end) => jittered(base).earlier(end),
            None => jittered(base),
        };
        retry_at.later(self.retry_after.map_or(now, jittered))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::time::{BootTime, WallTime};

    const START: Now = Now { boot: BootTime::new(Duration::from_secs(100)), wall: WallTime::from_secs(1_000_000) };

    #[track_caller]
    fn check(lifetime: u64, usable_ms: u64, refresh_ms: u64) {
        let moments = moments(START, Duration::from_secs(lifetime), &Lifetimes::default(), 0.0);
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
        let refresh = |jitter| moments(START, Duration::from_secs(2), &Lifetimes::default(), jitter);
        assert!(refresh(0.0).refresh_at.boot < refresh(1.0).refresh_at.boot);
        let tight = Lifetimes { refresh_ahead: Duration::from_secs(1), ..Lifetimes::default() };
        let moments = moments(START, Duration::from_secs(3600), &tight, 1.0);
        assert!(moments.refresh_at.boot <= moments.usable_until.boot);
    }

    #[test]
    fn backing_off_spares_the_server() {
        let pause = |failed: Failed, jitter| START.until(failed.retry_at(START, None, jitter));
        let failed = |failures| Failed { failures, ..Failed::default() };
        let seconds = |failures| pause(failed(failures), 0.0).as_secs();
        assert_eq!([1, 2, 3, 4, 40].map(seconds), [2, 10, 50, 60, 60]);
        let first_minute = (1..).scan(0, |at, n| {
            let asked = *at;
            *at += seconds(n);
            Some(asked)
        });
        assert_eq!(first_minute.take_while(|at| *at < 60).count(), 3);
        let retry_after = Some(Duration::from_secs(120));
        assert_eq!(pause(Failed { retry_after, ..failed(1) }, 0.0).as_secs(), 120);
        assert_eq!(pause(Failed { permanent: true, ..failed(1) }, 0.0).as_secs(), 900);
        assert!(pause(failed(1), 1.0) > pause(failed(1), 0.0));
    }

    #[test]
    fn no_verdict_outlasts_the_present_token() {
        let check = |failed: Failed, left: u64, expected: u64| {
            let end = START.plus(Duration::from_secs(left));
            assert_eq!(START.until(failed.retry_at(START, Some(end), 0.0)).as_secs(), expected, "{failed:?} {left}");
        };
        let retryable = Failed { failures: 4, ..Failed::default() };
        check(retryable, 300, 60);
        check(retryable, 20, 20);
        check(Failed { permanent: true, ..retryable }, 3000, 900);
        check(Failed { permanent: true, ..retryable }, 300, 300);
        check(Failed { in_doubt: true, ..retryable }, 300, 300);
        check(Failed { in_doubt: true, ..retryable }, 20, 20);
        let asked = Failed { retry_after: Some(Duration::from_secs(120)), ..retryable };
        check(asked, 300, 120);
        check(asked, 20, 120);
    }
}
