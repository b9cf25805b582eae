//! When to acquire the next token: thresholds, jitter, backoff and retries. Pure.
//!
//! Not here: whether and how to send a token request once it is due (`acquire::plan`).

use std::time::Duration;

use super::slot::{Decision, SlotState, Usage};
use crate::clock::Now;
use crate::oauth::Failure;
use crate::telemetry::audit::Cause;

/// Poll interval of a shared store; catches lost change notifications.
pub const STORE_POLL_INTERVAL: Duration = Duration::from_secs(60);
/// First backoff after a failure. Each further failure multiplies it by [`BACKOFF_FACTOR`], up to [`BACKOFF_MAX`], so
/// that one connection sends a failing server at most three requests in the first minute and one a minute later.
const BACKOFF_FIRST: Duration = Duration::from_secs(2);
const BACKOFF_FACTOR: u32 = 5;
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// Retry interval after a permanent failure, in case the server was fixed.
const PROBE_INTERVAL: Duration = Duration::from_secs(15 * 60);
/// Maximum sleep of a refresher, which bounds how late it notices a wall clock jump or a resume from suspend. Jitter
/// spreads the refreshers.
const SLEEP_MAX: Duration = Duration::from_secs(30);

/// What the refresher does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Acquire,
    /// Decide again after this time, or on demand.
    Wait(Duration),
    /// No caller uses the token: evict the slot from memory; the store keeps the token.
    Evict,
}

impl Step {
    /// Shortens a wait to at most `span`.
    pub fn within(self, span: Duration) -> Step {
        match self {
            Step::Wait(longer) => Step::Wait(longer.min(span)),
            step => step,
        }
    }

    /// Shortens a wait to at most `span`, and waits instead of evicting.
    pub fn awake_within(self, span: Duration) -> Step {
        match self {
            Step::Evict => Step::Wait(span),
            step => step.within(span),
        }
    }
}

/// Demand for the next token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Demand {
    pub force: Force,
    pub usage: Usage,
}

/// What forces a refresh before the token is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Force {
    #[default]
    None,
    /// The upstream rejected the current token, or a stored token is kept warm. Waits for a backoff to end.
    Rejection,
    /// A person. Ignores backoffs.
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

/// Decides the refresher's next step. `jitter` is from 0 to 1.
pub fn next_step(state: &SlotState, now: Now, demand: Demand, jitter: f64) -> Step {
    let Demand { force, usage } = demand;
    if force == Force::Person {
        return Step::Acquire;
    }
    let forced = force == Force::Rejection;
    let wait = |at: Now| Step::Wait(now.until(at).min(SLEEP_MAX.mul_f64(0.5 + 0.5 * jitter)));
    let due = |at: Now| if now.reached(at) { Step::Acquire } else { wait(at) };
    if usage != Usage::InUse && !forced {
        return match (state.decide(now), state.blocking_failure(now)) {
            (Decision::Serve(_), _) if usage == Usage::Released => Step::Evict,
            (Decision::Serve(token), _) => wait(token.usable_until),
            // Until then the next caller gets this failure at once, without another token request.
            (_, Some(failure)) if failure.consent().is_none() => wait(failure.retry_at),
            _ => Step::Evict,
        };
    }
    match (state.blocking_failure(now), state.decide(now)) {
        (Some(failure), _) => due(failure.retry_at),
        (None, Decision::Serve(token)) if !forced => due(token.refresh_at),
        // A very short-lived token may expire before the minimum refresh interval is over.
        (None, Decision::Acquire) if !forced => {
            state.token.as_ref().map_or(Step::Acquire, |token| due(token.refresh_at))
        }
        (None, _) => Step::Acquire,
    }
}

/// When to try again after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryPolicy {
    /// This replica's attempt failed.
    Backoff(Backoff),
    /// Another replica may have spent the refresh token. The store is polled, because that replica may resolve the
    /// doubt. `failures`: consecutive failures, including this one.
    InDoubtElsewhere { failures: u32 },
    /// After exactly this time.
    After(Duration),
    /// The server made another replica back off for this time; jitter spreads the replicas.
    Deferred(Duration),
    /// Not until a person acts.
    Never,
}

/// A failed attempt of this replica: the facts that determine its retry time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backoff {
    pub permanent: bool,
    /// Consecutive failures, including this one.
    pub failures: u32,
    /// The server's `Retry-After`.
    pub retry_after: Option<Duration>,
    /// The refresh token may be spent, and servers punish its second use.
    pub in_doubt: bool,
}

impl RetryPolicy {
    /// When to make the next attempt. `usable_until`: of the current token, if it is usable. `jitter` is from 0 to 1.
    pub fn retry_at(self, now: Now, usable_until: Option<Now>, jitter: f64) -> Now {
        match self {
            RetryPolicy::Backoff(backoff) => backoff.retry_at(now, usable_until, jitter),
            RetryPolicy::InDoubtElsewhere { failures } => {
                let backoff = Backoff { failures, in_doubt: true, ..Backoff::default() };
                now.plus(now.until(backoff.retry_at(now, usable_until, jitter)).min(STORE_POLL_INTERVAL))
            }
            RetryPolicy::After(span) => now.plus(span),
            RetryPolicy::Deferred(span) => {
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

    /// Backs off, but retries at the latest when the current token becomes unusable; a refresh token in doubt is
    /// retried exactly then. Only the server's `Retry-After` extends the backoff further.
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
    fn backoff_grows_with_each_failure_up_to_a_maximum() {
        let delay = |failed: Backoff, jitter| START.until(failed.retry_at(START, None, jitter));
        let failed = |failures| Backoff { failures, ..Backoff::default() };
        let seconds = |failures| delay(failed(failures), 0.0).as_secs();
        assert_eq!([1, 2, 3, 4, 40].map(seconds), [2, 10, 50, 60, 60]);
        let first_minute = (1..).scan(0, |at, n| {
            let retried_at = *at;
            *at += seconds(n);
            Some(retried_at)
        });
        assert_eq!(first_minute.take_while(|at| *at < 60).count(), 3);
        let retry_after = Some(Duration::from_secs(120));
        assert_eq!(delay(Backoff { retry_after, ..failed(1) }, 0.0).as_secs(), 120);
        assert_eq!(delay(Backoff { permanent: true, ..failed(1) }, 0.0).as_secs(), 900);
        assert!(delay(failed(1), 1.0) > delay(failed(1), 0.0));
    }

    #[test]
    fn no_backoff_outlasts_the_current_token() {
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
        let with_retry_after = Backoff { retry_after: Some(Duration::from_secs(120)), ..retryable };
        check(with_retry_after, 300, 120);
        check(with_retry_after, 20, 120);
    }

    #[test]
    fn each_policy_sets_its_retry_time() {
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
        check(RetryPolicy::Deferred(ten), None, 0.0, Some(10_000));
        check(RetryPolicy::Deferred(ten), None, 1.0, Some(11_000));
        check(RetryPolicy::Deferred(ten), Some(5), 1.0, Some(5_000));
        check(RetryPolicy::Never, Some(300), 0.0, None);
    }

    #[test]
    fn a_wait_can_be_shortened_and_an_eviction_turned_into_a_wait() {
        let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
        assert_eq!(Step::Wait(minute).within(second), Step::Wait(second));
        assert_eq!(Step::Wait(second).within(minute), Step::Wait(second));
        assert_eq!(Step::Evict.within(second), Step::Evict);
        assert_eq!(Step::Evict.awake_within(second), Step::Wait(second));
        assert_eq!(Step::Wait(minute).awake_within(second), Step::Wait(second));
        assert_eq!(Step::Acquire.awake_within(second), Step::Acquire);
    }
}
