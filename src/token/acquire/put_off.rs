//! What replicas tell each other of a server that gives no token, so that one of them asks it again and not each.
//!
//! Holds: a verdict that lasts is believed only by who has had an answer under the present definition, since a start or a
//! changed definition may be what heals it; what may lie at one replica's network alone is not told.

use std::sync::{Arc, PoisonError};

use super::super::schedule;
use super::{Acquirer, Definition};
use crate::oauth::{Failure, Reason};
use crate::store::{Lease, PutOff};
use crate::telemetry::audit::Cause;

impl Acquirer {
    /// Notes that a token is asked for under this definition; false: for the first time.
    pub(super) fn has_tried(&self, definition: &Arc<Definition>) -> bool {
        let mut tried = self.tried.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *tried, Arc::downgrade(definition)).as_ptr() == Arc::as_ptr(definition)
    }

    /// What another replica was told, if that holds for us.
    pub(super) fn put_off(&self, lease: &dyn Lease, cause: &Cause, tried: bool) -> Option<PutOff> {
        let asks_anew = !tried || cause.person().is_some();
        lease.put_off().filter(|put_off| !(put_off.permanent && asks_anew)).cloned()
    }

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
        if let Err(error) = lease.put_off_others(&PutOff { wait, permanent, failures, error }).await {
            tracing::debug!(key = %self.slot.key, %error, "other replicas find out by themselves");
        }
    }
}
