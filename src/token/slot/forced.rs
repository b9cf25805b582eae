//! Forced refreshes: an upstream has rejected the token, or a person requests a new one before it is due.
//!
//! Invariants: one forced refresh serves all requesters. A rejection forces no refresh during a backoff, nor within the
//! rejection backoff after the last one, which doubles while the upstream keeps rejecting fresh tokens. A person waits
//! for neither.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use super::{InjectedToken, SlotState, TokenSlot};
use crate::clock::{Clock, Now};
use crate::model::time::BootTime;
use crate::sync::lock;
use crate::telemetry::audit::Cause;

/// Minimum interval between two forced refreshes of one slot.
pub(super) const FORCED_REFRESH_INTERVAL_MIN: Duration = Duration::from_secs(10);
/// Maximum interval, while the upstream rejects every token.
const FORCED_REFRESH_INTERVAL_MAX: Duration = Duration::from_secs(600);

/// Backoff between refreshes forced by rejections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::token) struct RejectionBackoff {
    /// Forced refreshes since the upstream last accepted a token.
    pub rejections: u32,
    /// Time until the next refresh may be forced.
    pub wait: Duration,
}

#[derive(Debug, Default)]
pub(super) struct Forced {
    /// Generation of the token to replace; `None`: there was no token.
    generation: Option<u64>,
    /// Cause of a refresh that the refresher has not finished.
    pending: Option<Cause>,
    /// When the last refresh was forced.
    granted_at: Option<BootTime>,
    /// A rejection forces no refresh before this time.
    not_before: BootTime,
    rejections: u32,
}

impl Forced {
    /// Records that the attempt has ended.
    pub(super) fn end(&mut self) {
        self.pending = None;
    }

    pub(super) fn is_growing(&self) -> bool {
        self.rejections > 0
    }

    /// Joins the pending refresh or forces one; false while the rejection backoff lasts.
    fn reject(&mut self, generation: u64, boot: BootTime) -> bool {
        if self.pending.is_some() && self.generation == Some(generation) {
            return true;
        }
        if boot < self.not_before {
            return false;
        }
        self.grant(Some(generation), boot, Cause::Rejected);
        self.rejections = self.rejections.saturating_add(1);
        self.not_before = boot + self.backoff();
        true
    }

    fn grant(&mut self, generation: Option<u64>, boot: BootTime, cause: Cause) {
        (self.generation, self.pending, self.granted_at) = (generation, Some(cause), Some(boot));
        self.not_before = self.not_before.max(boot + FORCED_REFRESH_INTERVAL_MIN);
    }

    fn backoff(&self) -> Duration {
        let doublings = self.rejections.saturating_sub(1);
        FORCED_REFRESH_INTERVAL_MIN.saturating_mul(2u32.saturating_pow(doublings)).min(FORCED_REFRESH_INTERVAL_MAX)
    }
}

impl TokenSlot {
    /// Handles the upstream's rejection of the token of `generation`: returns the token to replay with, if there is one
    /// by `deadline`.
    ///
    /// If a newer token is current, returns it at once; else one forced refresh serves all callers that sent the
    /// rejected one.
    pub async fn reject(&self, generation: u64, clock: &Clock, deadline: Instant) -> Option<Arc<InjectedToken>> {
        let mut changed = self.changed.subscribe();
        let before = self.state.load_full();
        let newer = |state: &SlotState| state.token.clone().filter(|token| token.generation != generation);
        if let Some(token) = newer(&before) {
            return Some(token).filter(|token| token.is_usable(clock.now()));
        }
        let now = clock.now();
        if before.blocking_failure(now).is_some() || !self.force().reject(generation, now.boot) {
            return None;
        }
        if let Some(token) = &before.token {
            token.is_on_trial.store(true, Ordering::Relaxed);
        }
        self.demand.notify_one();
        loop {
            tokio::time::timeout_at(deadline, changed.changed()).await.ok()?.ok()?;
            if self.is_closed() {
                return None;
            }
            let state = self.state.load_full();
            if let Some(token) = newer(&state) {
                return Some(token).filter(|token| token.is_usable(clock.now()));
            }
            if state.attempts > before.attempts {
                return None;
            }
        }
    }

    /// Resets the rejection backoff after the upstream accepted `token`, which was on trial.
    pub fn accept(&self, token: &InjectedToken) {
        token.is_on_trial.store(false, Ordering::Relaxed);
        let is_current = self.state.load().token.as_ref().is_some_and(|current| current.generation == token.generation);
        if is_current {
            let mut forced = self.force();
            forced.rejections = 0;
            let usual = forced.granted_at.map_or(BootTime::default(), |at| at + FORCED_REFRESH_INTERVAL_MIN);
            forced.not_before = forced.not_before.min(usual);
        }
    }

    /// Forces a refresh because of `cause`, or joins the pending one. `Err`: the time until a refresh may be forced
    /// again.
    pub(super) fn force_refresh(&self, state: &SlotState, now: Now, cause: Cause) -> Result<(), Duration> {
        let generation = state.token.as_ref().map(|token| token.generation);
        let mut forced = self.force();
        let joins = forced.pending.is_some() && forced.generation == generation;
        if joins && cause.person().is_none() {
            return Ok(());
        }
        let next = forced.granted_at.map_or(BootTime::default(), |at| at + FORCED_REFRESH_INTERVAL_MIN);
        if !joins && state.blocking_failure(now).is_none() && state.token.is_some() && now.boot < next {
            return Err(next.since(now.boot));
        }
        forced.grant(generation, now.boot, cause);
        Ok(())
    }

    /// Forces a refresh for a person, ignoring backoffs and refusals.
    pub(in crate::token) fn retry_now(&self, now: Now, cause: Cause) {
        let state = self.state.load_full();
        let generation = state.token.as_ref().map(|token| token.generation);
        self.force().grant(generation, now.boot, cause);
        self.demand.notify_one();
    }

    /// For the refresher: the cause of a pending forced refresh of the current token.
    pub(in crate::token) fn forced(&self, state: &SlotState) -> Option<Cause> {
        let forced = self.force();
        let generation = state.token.as_ref().map(|token| token.generation);
        forced.pending.clone().filter(|_| forced.generation == generation)
    }

    /// For the refresher: true if a person requested a refresh during an attempt that had another `cause`.
    pub(in crate::token) fn is_person_waiting(&self, state: &SlotState, cause: &Cause) -> bool {
        self.forced(state).is_some_and(|forced| forced.person().is_some() && forced != *cause)
    }

    /// For the refresher: the rejection backoff to publish to other replicas.
    pub(in crate::token) fn rejection_backoff(&self) -> RejectionBackoff {
        let forced = self.force();
        RejectionBackoff { rejections: forced.rejections, wait: forced.backoff() }
    }

    /// For the refresher: adopts the rejection backoff of another replica, which was just forced to refresh.
    pub(in crate::token) fn back_off_rejections(&self, elsewhere: RejectionBackoff, now: Now) {
        let mut forced = self.force();
        (forced.pending, forced.granted_at) = (None, None);
        forced.rejections = forced.rejections.max(elsewhere.rejections);
        forced.not_before = now.boot + elsewhere.wait;
    }

    pub(super) fn force(&self) -> MutexGuard<'_, Forced> {
        lock(&self.forced)
    }
}

impl InjectedToken {
    /// True if the upstream rejected the previous token and has accepted none since.
    pub fn is_on_trial(&self) -> bool {
        self.is_on_trial.load(Ordering::Relaxed)
    }
}
