//! Failure notices to other replicas, so that one replica retries a failing authorization server, not all of them.
//!
//! Invariants: a replica ignores a notice of a permanent failure that is older than its definition, because a restart
//! or a changed definition may have fixed the cause. No notice outlasts the current token or delays a person. A failure
//! that may be local to one replica's network is not published.

use std::time::Duration;

use super::{AcquireError, Acquired, Acquirer, Attempt};
use crate::oauth::{Failure, Reason};
use crate::store::{AnnouncedBackoff, Lease};
use crate::telemetry::audit::Cause;
use crate::token::schedule::{Backoff, RetryPolicy};
use crate::token::slot::RejectionBackoff;

/// Used instead of the server's error code: the upstream rejects the tokens that the server issues.
const REJECTED: &str = "token_rejected";
/// Minimum lifetime of a notice; Redis accepts no shorter expiry.
const WAIT_MIN: Duration = Duration::from_millis(100);

/// The notice of another replica, if it applies to this attempt.
pub fn applicable(
    put_off: Option<&AnnouncedBackoff>,
    definition_age: Duration,
    cause: &Cause,
) -> Option<AnnouncedBackoff> {
    let put_off = put_off.filter(|put_off| put_off.error != REJECTED && cause.person().is_none())?;
    let is_older = put_off.age > definition_age;
    (!put_off.permanent || !is_older).then(|| put_off.clone())
}

/// The rejection backoff of another replica, if a rejection also forced this attempt.
pub fn rejected_elsewhere(put_off: Option<&AnnouncedBackoff>, cause: &Cause) -> Option<RejectionBackoff> {
    let put_off = put_off.filter(|put_off| *cause == Cause::Rejected && put_off.error == REJECTED)?;
    Some(RejectionBackoff { rejections: put_off.failures, wait: put_off.wait })
}

impl Acquirer {
    /// Publishes an outcome that other replicas would also get.
    pub(super) async fn publish_notice(
        &self,
        outcome: &Result<Acquired, AcquireError>,
        attempt: Attempt<'_>,
        lease: &dyn Lease,
    ) {
        let put_off = match outcome {
            Err(AcquireError::Server { failure, .. }) => self.failure_notice(failure),
            Ok(Acquired::Issued(_)) if *attempt.cause == Cause::Rejected => Some(self.rejection_notice()),
            _ => None,
        };
        if let Some(put_off) = put_off
            && let Err(error) = lease.announce_backoff(&put_off).await
        {
            tracing::debug!(key = %self.slot.key, %error, "notice not published; other replicas send their own requests");
        }
    }

    fn failure_notice(&self, failure: &Failure) -> Option<AnnouncedBackoff> {
        let error = match failure {
            Failure::Permanent(refusal) => refusal.error.clone(),
            Failure::Script { .. } => return None,
            Failure::Retryable { reason: Reason::Unreachable | Reason::Tls | Reason::NotSent, .. } => return None,
            Failure::Retryable { reason: Reason::ConnectionLost, .. } => return None,
            Failure::Retryable { reason, .. } => reason.to_string(),
        };
        let (state, now) = (self.slot.state(), self.clock.now());
        let failures = state.failures().saturating_add(1);
        // Other replicas have the same token, so they also retry when it becomes unusable.
        let usable = state.token.as_ref().filter(|token| token.is_usable(now));
        let policy = RetryPolicy::Backoff(Backoff::after(failure, failures));
        let retry_at = policy.retry_at(now, usable.map(|token| token.usable_until), fastrand::f64());
        let (wait, permanent) = (now.until(retry_at).max(WAIT_MIN), failure.is_permanent());
        Some(AnnouncedBackoff { wait, age: Duration::ZERO, permanent, failures, error })
    }

    fn rejection_notice(&self) -> AnnouncedBackoff {
        let RejectionBackoff { rejections: failures, wait } = self.slot.rejection_backoff();
        AnnouncedBackoff { wait, age: Duration::ZERO, permanent: false, failures, error: REJECTED.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::audit::Person;

    const AGE: Duration = Duration::from_secs(10);

    fn put_off(error: &str, permanent: bool) -> AnnouncedBackoff {
        AnnouncedBackoff { wait: AGE, age: AGE, permanent, failures: 3, error: error.to_owned() }
    }

    #[test]
    fn a_notice_applies_unless_a_person_acts_or_the_definition_is_newer() {
        #[track_caller]
        fn check(put_off: &AnnouncedBackoff, definition_age: Duration, cause: &Cause, applies: bool) {
            assert_eq!(applicable(Some(put_off), definition_age, cause).is_some(), applies);
        }
        let (retryable, permanent) = (put_off("http_503", false), put_off("invalid_client", true));
        let person = Cause::Person(Person { user: None, from: None });
        check(&retryable, AGE / 2, &Cause::Due, true);
        check(&retryable, AGE / 2, &person, false);
        check(&permanent, AGE * 2, &Cause::Due, true);
        check(&permanent, AGE / 2, &Cause::Due, false);
        check(&permanent, AGE * 2, &person, false);
        check(&put_off(REJECTED, false), AGE * 2, &Cause::Due, false);
        assert_eq!(applicable(None, AGE, &Cause::Due), None);
    }

    #[test]
    fn a_rejection_elsewhere_applies_to_an_attempt_that_a_rejection_forced() {
        let backoff = RejectionBackoff { rejections: 3, wait: AGE };
        assert_eq!(rejected_elsewhere(Some(&put_off(REJECTED, false)), &Cause::Rejected), Some(backoff));
        assert_eq!(rejected_elsewhere(Some(&put_off(REJECTED, false)), &Cause::Due), None);
        assert_eq!(rejected_elsewhere(Some(&put_off("http_503", false)), &Cause::Rejected), None);
    }
}
