//! Refreshes before a token is due: an upstream has rejected it, or a person asks for another.
//!
//! Invariants: one forced refresh serves all who ask for it. A rejection forces none during a backoff, nor within a pause
//! after the last one, which doubles while the upstream keeps rejecting fresh tokens. A person waits for neither.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use super::{InjectedToken, SlotState, TokenSlot};
use crate::clock::{Clock, Now};
use crate::model::time::BootTime;
use crate::sync::lock;
use crate::telemetry::audit::Cause;

/// Shortest time between two forced refreshes of one slot.
pub(super) const FORCED_PAUSE_MIN: Duration = Duration::from_secs(10);
/// Longest, while the upstream rejects every token.
const FORCED_PAUSE_MAX: Duration = Duration::from_secs(600);

/// Pause between refreshes that rejections force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::token) struct RejectionPause {
    /// Forced refreshes since the upstream last accepted a token.
    pub rejections: u32,
    /// Until the next one may be forced.
    pub wait: Duration,
}

#[derive(Debug, Default)]
pub(super) struct Forced {
    /// Of the token to replace; `None`: there was none.
    generation: Option<u64>,
    /// Not yet done by the refresher.
    pending: Option<Cause>,
    /// When the last one was granted.
    granted_at: Option<BootTime>,
    /// No rejection forces one earlier.
    not_before: BootTime,
    rejections: u32,
}

impl Forced {
    /// The attempt has ended.
    pub(super) fn end(&mut self) {
        self.pending = None;
    }

    pub(super) fn is_growing(&self) -> bool {
        self.rejections > 0
    }

    /// Joins the pending refresh, or starts one; false if it is too early for that.
    fn reject(&mut self, generation: u64, boot: BootTime) -> bool {
        if self.pending.is_some() && self.generation == Some(generation) {
            return true;
        }
        if boot < self.not_before {
            return false;
        }
        self.grant(Some(generation), boot, Cause::Rejected);
        self.rejections = self.rejections.saturating_add(1);
        self.not_before = boot + self.pause();
        true
    }

    fn grant(&mut self, generation: Option<u64>, boot: BootTime, cause: Cause) {
        (self.generation, self.pending, self.granted_at) = (generation, Some(cause), Some(boot));
        self.not_before = self.not_before.max(boot + FORCED_PAUSE_MIN);
    }

    fn pause(&self) -> Duration {
        let doublings = self.rejections.saturating_sub(1);
        FORCED_PAUSE_MIN.saturating_mul(2u32.saturating_pow(doublings)).min(FORCED_PAUSE_MAX)
    }
}

impl TokenSlot {
    /// The upstream rejected the token of `generation`: returns the one to send instead, if there is one by `deadline`.
    ///
    /// A token that is no longer current is replaced at once; else one forced refresh serves all who sent it.
    pub async fn reject(&self, generation: u64, clock: &Clock, deadline: Instant) -> Option<Arc<InjectedToken>> {
        let mut changed = self.changed.subscribe();
        let before = self.state.load_full();
        let newer = |state: &SlotState| state.token.clone().filter(|token| token.generation != generation);
        if let Some(token) = newer(&before) {
            return Some(token).filter(|token| token.is_usable(clock.now()));
        }
        let now = clock.now();
        if before.blocking_trouble(now).is_some() || !self.force().reject(generation, now.boot) {
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

    /// The upstream accepted `token`, which was on trial: the next rejection waits for the shortest pause again.
    pub fn accept(&self, token: &InjectedToken) {
        token.is_on_trial.store(false, Ordering::Relaxed);
        let is_current = self.state.load().token.as_ref().is_some_and(|own| own.generation == token.generation);
        if is_current {
            let mut forced = self.force();
            forced.rejections = 0;
            let usual = forced.granted_at.map_or(BootTime::default(), |at| at + FORCED_PAUSE_MIN);
            forced.not_before = forced.not_before.min(usual);
        }
    }

    /// Forces a refresh because of `cause`, or joins the pending one. `Err`: the time until one may be forced again.
    pub(super) fn force_refresh(&self, state: &SlotState, now: Now, cause: Cause) -> Result<(), Duration> {
        let generation = state.token.as_ref().map(|token| token.generation);
        let mut forced = self.force();
        let joins = forced.pending.is_some() && forced.generation == generation;
        if joins && cause.person().is_none() {
            return Ok(());
        }
        let next = forced.granted_at.map_or(BootTime::default(), |at| at + FORCED_PAUSE_MIN);
        if !joins && state.blocking_trouble(now).is_none() && state.token.is_some() && now.boot < next {
            return Err(next.since(now.boot));
        }
        forced.grant(generation, now.boot, cause);
        Ok(())
    }

    /// Forces a refresh for a person, whatever the last failure.
    pub(in crate::token) fn retry_now(&self, now: Now, cause: Cause) {
        let state = self.state.load_full();
        let generation = state.token.as_ref().map(|token| token.generation);
        self.force().grant(generation, now.boot, cause);
        self.demand.notify_one();
    }

    /// For the refresher: what forces a refresh of the present token, if anything does.
    pub(in crate::token) fn forced(&self, state: &SlotState) -> Option<Cause> {
        let forced = self.force();
        let generation = state.token.as_ref().map(|token| token.generation);
        forced.pending.clone().filter(|_| forced.generation == generation)
    }

    /// For the refresher: true if a person has asked for another token during an attempt because of `cause`.
    pub(in crate::token) fn is_person_waiting(&self, state: &SlotState, cause: &Cause) -> bool {
        self.forced(state).is_some_and(|forced| forced.person().is_some() && forced != *cause)
    }

    /// For the refresher: the pause for other replicas.
    pub(in crate::token) fn rejection_pause(&self) -> RejectionPause {
        let forced = self.force();
        RejectionPause { rejections: forced.rejections, wait: forced.pause() }
    }

    /// For the refresher: a rejection forced another replica to refresh a moment ago, so none was made here.
    pub(in crate::token) fn pause_rejections(&self, elsewhere: RejectionPause, now: Now) {
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
    /// True if the upstream rejected the token before this one and has accepted none since.
    pub fn is_on_trial(&self) -> bool {
        self.is_on_trial.load(Ordering::Relaxed)
    }
}
