//! When to acquire the next token: thresholds, jitter, backoff and retries. Pure.
//!
//! Not here: whether and how to ask once it is time (`acquire::plan`).

use std::time::Duration;

use super::slot::{Interest, SlotState, Verdict};
use crate::clock::Now;
use crate::oauth::Failure;
use crate::telemetry::audit::Cause;

/// Poll interval of a shared store; catches lost change notifications.
pub const STORE_POLL_INTERVAL: Duration = Duration::from_secs(60);
/// First backoff after a failure. Each further failure waits [`BACKOFF_FACTOR`] times as long, up to [`BACKOFF_MAX`], so
/// that one connection asks a failing server at most three times in its first minute and once a minute later.
const BACKOFF_FIRST: Duration = Duration::from_secs(2);
const BACKOFF_FACTOR: u32 = 5;
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// Retry interval after a permanent failure: the server may have been repaired.
const PROBE_INTERVAL: Duration = Duration::from_secs(15 * 60);
/// Longest sleep of a refresher. A changed wall clock or a resumed machine is noticed within it, and by jitter not by all
/// refreshers at once.
const SLEEP_MAX: Duration = Duration::from_secs(30);

/// What the refresher does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Acquire,
    /// Decide again after this long, or on demand.
    Wait(Duration),
    /// No caller uses the token: leave it in the store and free the memory.
    Rest,
}

impl Step {
    /// Decides again within `span` instead of a longer wait.
    pub fn within(self, span: Duration) -> Step {
        match self {
            Step::Wait(longer) => Step::Wait(longer.min(span)),
            step => step,
        }
    }

    /// The same; and memory is not freed.
    pub fn awake_within(self, span: Duration) -> Step {
        match self {
            Step::Rest => Step::Wait(span),
            step => step.within(span),
        }
    }
}

/// What wants the next token.
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
    /// The upstream rejected the current token, or a stored one is kept warm: it waits for a backoff to end.
    Rejection,
    /// A person: it waits for nothing.
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
pub fn next_step(state: &SlotState, now: Now, wanted: Wanted, jitter: f64) -> Step {
    let Wanted { force, interest } = wanted;
    if force == Force::Person {
        return Step::Acquire;
    }
    let forced = force == Force::Rejection;
    let wait = |at: Now| Step::Wait(now.until(at).min(SLEEP_MAX.mul_f64(0.5 + 0.5 * jitter)));
    let due = |at: Now| if now.reached(at) { Step::Acquire } else { wait(at) };
    if interest != Interest::Used && !forced {
        return match (state.verdict(now), state.blocking_trouble(now)) {
            (Verdict::Serve(_), _) if interest == Interest::Released => Step::Rest,
            (Verdict::Serve(token), _) => wait(token.usable_until),
            // The next caller gets this failure at once, without another request to the server.
            (_, Some(trouble)) if trouble.consent().is_none() => wait(trouble.retry_at),
            _ => Step::Rest,
        };
    }
    match (state.blocking_trouble(now), state.verdict(now)) {
        (Some(trouble), _) => due(trouble.retry_at),
        (None, Verdict::Serve(token)) if !forced => due(token.refresh_at),
        // It may expire before the next token may be requested.
        (None, Verdict::Acquire) if !forced => {
            state.token.as_ref().map_or(Step::Acquire, |token| due(token.refresh_at))
        }
        (None, _) => Step::Acquire,
    }
}

/// When to try again after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryPolicy {
    /// Our own attempt failed.
    Backoff(Backoff),
    /// Another replica may have spent the refresh token. It may resolve the doubt, so the store is polled meanwhile.
    /// `failures`: in a row, this one included.
    InDoubtElsewhere { failures: u32 },
    /// After exactly this long.
    After(Duration),
    /// The server put off another replica for this long; replicas do not all return at once.
    PutOff(Duration),
    /// Not before a person acts.
    Never,
}

/// A failed attempt of our own, as far as it decides when to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backoff {
    pub permanent: bool,
    /// In a row, this one included.
    pub failures: u32,
    /// As the server asks.
    pub retry_after: Option<Duration>,
    /// The refresh token may be spent, and servers punish its second use.
    pub in_doubt: bool,
}

impl RetryPolicy {
    /// The next attempt. `usable_until`: the end of the present token's use, if it is usable. `jitter` is from 0 to 1.
    pub fn retry_at(self, now: Now, usable_until: Option<Now>, jitter: f64) -> Now {
        match self {
            RetryPolicy::Backoff(backoff) => backoff.retry_at(now, usable_until, jitter),
            RetryPolicy::InDoubtElsewhere { failures } => {
                let backoff = Backoff { failures, in_doubt: true, ..Backoff::default() };
                now.plus(now.until(backoff.retry_at(now, usable_until, jitter)).min(STORE_POLL_INTERVAL))
            }
            RetryPolicy::After(span) => now.plus(span),
            RetryPolicy::PutOff(span) => {
                let retry_at = now.plus(span.mul_f64(1.0 + 0.1 * jitter));
                usable_until.map_or(retry_at, |end| retry_at.earlier(end))
            }
            RetryPolicy::Never => Now::NEVER,
        }
    }
}

impl Backoff {
    pub fn after(failure: &Failure, failures: u32) -> Backoff {
        let retry_after = match failure {
            Failure::Retryable { retry_after, .. } => *retry_after,
            Failure::Permanent(_) | Failure::Script { .. } => None,
        };
        Backoff { permanent: failure.is_permanent(), failures, retry_after, in_doubt: false }
    }

    /// After a pause, but not after the end of the present token, so that no failure outlasts it; a refresh token in doubt
    /// exactly then. Only a pause that the server asks for goes further.
    fn retry_at(self, now: Now, usable_until: Option<Now>, jitter: f64) -> Now {
        let steps = self.failures.saturating_sub(1);
        let base = match self.permanent {
            true => PROBE_INTERVAL,
            false => BACKOFF_FIRST.saturating_mul(BACKOFF_FACTOR.saturating_pow(steps)).min(BACKOFF_MAX),
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

    #[test]
    fn a_backoff_spares_the_server() {
        let pause = |failed: Backoff, jitter| START.until(failed.retry_at(START, None, jitter));
        let failed = |failures| Backoff { failures, ..Backoff::default() };
        let seconds = |failures| pause(failed(failures), 0.0).as_secs();
        assert_eq!([1, 2, 3, 4, 40].map(seconds), [2, 10, 50, 60, 60]);
        let first_minute = (1..).scan(0, |at, n| {
            let asked = *at;
            *at += seconds(n);
            Some(asked)
        });
        assert_eq!(first_minute.take_while(|at| *at < 60).count(), 3);
        let retry_after = Some(Duration::from_secs(120));
        assert_eq!(pause(Backoff { retry_after, ..failed(1) }, 0.0).as_secs(), 120);
        assert_eq!(pause(Backoff { permanent: true, ..failed(1) }, 0.0).as_secs(), 900);
        assert!(pause(failed(1), 1.0) > pause(failed(1), 0.0));
    }

    #[test]
    fn no_failure_outlasts_the_present_token() {
        let check = |failed: Backoff, left: u64, expected: u64| {
            let end = START.plus(Duration::from_secs(left));
            assert_eq!(START.until(failed.retry_at(START, Some(end), 0.0)).as_secs(), expected, "{failed:?} {left}");
        };
        let retryable = Backoff { failures: 4, ..Backoff::default() };
        check(retryable, 300, 60);
        check(retryable, 20, 20);
        check(Backoff { permanent: true, ..retryable }, 3000, 900);
        check(Backoff { permanent: true, ..retryable }, 300, 300);
        check(Backoff { in_doubt: true, ..retryable }, 300, 300);
        check(Backoff { in_doubt: true, ..retryable }, 20, 20);
        let asked = Backoff { retry_after: Some(Duration::from_secs(120)), ..retryable };
        check(asked, 300, 120);
        check(asked, 20, 120);
    }

    #[test]
    fn each_policy_has_its_moment() {
        #[track_caller]
        fn check(policy: RetryPolicy, left: Option<u64>, jitter: f64, expected_ms: Option<u64>) {
            let end = left.map(|left| START.plus(Duration::from_secs(left)));
            let retry_at = policy.retry_at(START, end, jitter);
            let expected = expected_ms.map_or(Now::NEVER, |ms| START.plus(Duration::from_millis(ms)));
            assert_eq!(retry_at, expected, "{policy:?} {left:?} {jitter}");
        }
        let (second, ten) = (Duration::from_secs(1), Duration::from_secs(10));
        check(RetryPolicy::Backoff(Backoff { failures: 2, ..Backoff::default() }), None, 0.0, Some(10_000));
        check(RetryPolicy::InDoubtElsewhere { failures: 1 }, Some(300), 0.0, Some(60_000));
        check(RetryPolicy::InDoubtElsewhere { failures: 1 }, Some(20), 0.0, Some(20_000));
        check(RetryPolicy::InDoubtElsewhere { failures: 1 }, None, 0.0, Some(2_000));
        check(RetryPolicy::After(second), Some(300), 1.0, Some(1_000));
        check(RetryPolicy::PutOff(ten), None, 0.0, Some(10_000));
        check(RetryPolicy::PutOff(ten), None, 1.0, Some(11_000));
        check(RetryPolicy::PutOff(ten), Some(5), 1.0, Some(5_000));
        check(RetryPolicy::Never, Some(300), 0.0, None);
    }

    #[test]
    fn a_step_is_brought_forward_and_a_rest_only_where_memory_is_needed() {
        let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
        assert_eq!(Step::Wait(minute).within(second), Step::Wait(second));
        assert_eq!(Step::Wait(second).within(minute), Step::Wait(second));
        assert_eq!(Step::Rest.within(second), Step::Rest);
        assert_eq!(Step::Rest.awake_within(second), Step::Wait(second));
        assert_eq!(Step::Wait(minute).awake_within(second), Step::Wait(second));
        assert_eq!(Step::Acquire.awake_within(second), Step::Acquire);
    }
}
