//! Refreshes that do not wait until the token is due: an upstream has rejected it, or a person asks for another.
//!
//! Holds: one forced refresh serves everybody who asks for it. A rejection never forces one through a back-off, nor within
//! a pause after the last one, which doubles while the upstream keeps rejecting fresh tokens. A person is held up by no
//! verdict.

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

/// How often rejections may force a refresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::token) struct RejectionPause {
    /// Forced refreshes since the upstream last accepted a token.
    pub rejections: u32,
    /// Until the next one.
    pub wait: Duration,
}

#[derive(Debug, Default)]
pub(super) struct Forced {
    /// Of the token that is to be replaced; `None`: there was none.
    generation: Option<u64>,
    /// What the refresher has yet to do.
    pending: Option<Cause>,
    /// When the last one was granted.
    granted_at: Option<BootTime>,
    /// No rejection forces one before.
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

    /// Joins the forced refresh that is pending, or starts one if its time has come.
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
    /// The upstream rejected the token of `generation`: the one to send instead, if there is one by `deadline`.
    ///
    /// A token that is no longer the current one is replaced at once. Else one forced refresh serves everybody who saw
    /// this token.
    pub async fn reject(&self, generation: u64, clock: &Clock, deadline: Instant) -> Option<Arc<InjectedToken>> {
        let mut changed = self.changed.subscribe();
        let before = self.state.load_full();
        let newer = |state: &SlotState| state.token.clone().filter(|token| token.generation != generation);
        if let Some(token) = newer(&before) {
            return Some(token).filter(|token| token.is_usable(clock.now()));
        }
        let now = clock.now();
        if before.standing_trouble(now).is_some() || !self.force().reject(generation, now.boot) {
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

    /// The upstream accepted `token`, which was on trial: the next rejection need not wait longer than usual.
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

    /// Someone asks for another token because of `cause`. `Err`: how long until a refresh may be forced again.
    pub(super) fn ask_for_refresh(&self, state: &SlotState, now: Now, cause: Cause) -> Result<(), Duration> {
        let generation = state.token.as_ref().map(|token| token.generation);
        let mut forced = self.force();
        let joins = forced.pending.is_some() && forced.generation == generation;
        if joins && cause.person().is_none() {
            return Ok(());
        }
        let next = forced.granted_at.map_or(BootTime::default(), |at| at + FORCED_PAUSE_MIN);
        if !joins && state.standing_trouble(now).is_none() && state.token.is_some() && now.boot < next {
            return Err(next.since(now.boot));
        }
        forced.grant(generation, now.boot, cause);
        Ok(())
    }

    /// A person wants the server to be asked although it has said no, or is left alone for a while.
    pub(in crate::token) fn ask_again(&self, now: Now, cause: Cause) {
        let state = self.state.load_full();
        let generation = state.token.as_ref().map(|token| token.generation);
        self.force().grant(generation, now.boot, cause);
        self.demand.notify_one();
    }

    /// For the refresher: what forces a refresh of what is in the slot, if anything does.
    pub(in crate::token) fn forced(&self, state: &SlotState) -> Option<Cause> {
        let forced = self.force();
        let generation = state.token.as_ref().map(|token| token.generation);
        forced.pending.clone().filter(|_| forced.generation == generation)
    }

    /// For the refresher: has a person asked for another token during an attempt that `cause` has made?
    pub(in crate::token) fn is_person_waiting(&self, state: &SlotState, cause: &Cause) -> bool {
        self.forced(state).is_some_and(|forced| forced.person().is_some() && forced != *cause)
    }

    /// For the refresher: how long other replicas, too, are to wait with what a rejection forces.
    pub(in crate::token) fn rejection_pause(&self) -> RejectionPause {
        let forced = self.force();
        RejectionPause { rejections: forced.rejections, wait: forced.pause() }
    }

    /// For the refresher: another replica has forced a refresh a moment ago, so none was made here.
    pub(in crate::token) fn hold_rejections(&self, told: RejectionPause, now: Now) {
        let mut forced = self.force();
        (forced.pending, forced.granted_at) = (None, None);
        forced.rejections = forced.rejections.max(told.rejections);
        forced.not_before = now.boot + told.wait;
    }

    pub(super) fn force(&self) -> MutexGuard<'_, Forced> {
        lock(&self.forced)
    }
}

impl InjectedToken {
    /// The upstream rejected the token before it, and has accepted none since.
    pub fn is_on_trial(&self) -> bool {
        self.is_on_trial.load(Ordering::Relaxed)
    }
}
