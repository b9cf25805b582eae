//! What replicas tell each other of a server that gives no token, so that one of them asks it again and not each.
//!
//! Holds: a verdict that lasts is believed only where the present definition was in force when it fell, since a start or a
//! changed definition may be what heals it; what may lie at one replica's network alone is not told.

use std::time::Duration;

use super::super::schedule;
use super::{Acquirer, Definition};
use crate::oauth::{Failure, Reason};
use crate::store::{Lease, PutOff};
use crate::telemetry::audit::Cause;

/// What another replica was told, if that holds for us.
pub fn holds(definition: &Definition, lease: &dyn Lease, cause: &Cause) -> Option<PutOff> {
    let is_old = |put_off: &PutOff| put_off.age > definition.since.elapsed();
    let asks_anew = |put_off: &PutOff| put_off.permanent && (is_old(put_off) || cause.person().is_some());
    lease.put_off().filter(|put_off| !asks_anew(put_off)).cloned()
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
        let failures = self.slot.state().trouble.as_ref().map_or(0, |trouble| trouble.failures).saturating_add(1);
        let permanent = failure.is_permanent();
        let wait = schedule::pause(permanent, failures, retry_after, fastrand::f64());
        let put_off = PutOff { wait, age: Duration::ZERO, permanent, failures, error };
        if let Err(error) = lease.put_off_others(&put_off).await {
            tracing::debug!(key = %self.slot.key, %error, "other replicas find out by themselves");
        }
    }
}
