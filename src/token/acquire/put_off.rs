//! What replicas tell each other of a server that gives no token, so that one of them asks it again and not each.
//!
//! Holds: a permanent verdict is believed only where the present definition was in force when it fell, since a start or a
//! changed definition may be what heals it; none outlasts the present token, or holds up a person; what may lie at one
//! replica's network alone is not told.

use std::time::Duration;

use super::super::schedule::Failed;
use super::super::slot::RejectionPause;
use super::{Acquirer, Definition};
use crate::oauth::{Failure, Reason};
use crate::store::{Lease, PutOff};
use crate::telemetry::audit::Cause;

/// In place of a server's word: the upstream rejects the tokens that it gives.
const REJECTED: &str = "token_rejected";
/// A shorter note would be of no use, and Redis keeps none for no time at all.
const WAIT_MIN: Duration = Duration::from_millis(100);

/// What another replica was told, if that holds for us.
pub fn holds(definition: &Definition, lease: &dyn Lease, cause: &Cause) -> Option<PutOff> {
    let is_old = |put_off: &PutOff| put_off.age > definition.since.elapsed();
    let asks_anew = |put_off: &PutOff| cause.person().is_some() || put_off.permanent && is_old(put_off);
    lease.put_off().filter(|put_off| put_off.error != REJECTED && !asks_anew(put_off)).cloned()
}

/// Has another replica forced a refresh, too, because the upstream rejects what it gets?
pub fn rejected_lately(lease: &dyn Lease, cause: &Cause) -> Option<RejectionPause> {
    let told = lease.put_off().filter(|put_off| *cause == Cause::Rejected && put_off.error == REJECTED)?;
    Some(RejectionPause { rejections: told.failures, wait: told.wait })
}

impl Acquirer {
    /// Tells the others of a failure that they would meet too.
    pub(super) async fn put_off_others(&self, failure: &Failure, lease: &dyn Lease) {
        let (error, retry_after) = match failure {
            Failure::Permanent(refusal) => (refusal.error.clone(), None),
            Failure::Script { .. } => return,
            Failure::Retryable { reason: Reason::Unreachable | Reason::Tls | Reason::NotSent, .. } => return,
            Failure::Retryable { reason: Reason::ConnectionLost, .. } => return,
            Failure::Retryable { reason, retry_after, .. } => (reason.to_string(), *retry_after),
        };
        let (state, now) = (self.slot.state(), self.clock.now());
        let failures = state.trouble.as_ref().map_or(0, |trouble| trouble.failures).saturating_add(1);
        let permanent = failure.is_permanent();
        // Others have the same token, so they try again at its end, too.
        let usable = state.token.as_ref().filter(|token| token.is_usable(now));
        let failed = Failed { permanent, failures, retry_after, in_doubt: false };
        let retry_at = failed.retry_at(now, usable.map(|token| token.usable_until), fastrand::f64());
        let wait = now.until(retry_at).max(WAIT_MIN);
        self.note(PutOff { wait, age: Duration::ZERO, permanent, failures, error }, lease).await;
    }

    /// Tells the others that a rejection has forced a refresh, so that they do not each force their own.
    pub(super) async fn note_rejection(&self, lease: &dyn Lease) {
        let RejectionPause { rejections: failures, wait } = self.slot.rejection_pause();
        let error = REJECTED.to_owned();
        self.note(PutOff { wait, age: Duration::ZERO, permanent: false, failures, error }, lease).await;
    }

    async fn note(&self, put_off: PutOff, lease: &dyn Lease) {
        if let Err(error) = lease.put_off_others(&put_off).await {
            tracing::debug!(key = %self.slot.key, %error, "other replicas find out by themselves");
        }
    }
}
