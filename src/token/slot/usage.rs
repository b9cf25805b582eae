//! Usage of a slot, which decides whether its token is refreshed ahead, left to expire, or evicted.
//!
//! Invariants: a shared token is always in use. An attempt for a subject may be abandoned until its request is sent. A
//! caller that arrives while a slot ends looks the slot up again.

use std::sync::atomic::{AtomicU8, Ordering};

use tokio::sync::Notify;

use super::{Decision, TokenSlot};
use crate::clock::{Clock, Now};

/// Usage of a slot while no caller waits for its next token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Usage {
    /// The token is shared, or a caller has used it since the last attempt.
    InUse,
    #[default]
    Idle,
    /// The token is kept warm in the store and may be evicted from memory.
    Released,
}

/// A slot's [`Usage`], stored as its discriminant.
#[derive(Debug)]
pub(super) struct UsageCell(AtomicU8);

impl UsageCell {
    pub fn in_use() -> UsageCell {
        UsageCell(AtomicU8::new(Usage::InUse as u8))
    }

    pub fn is_in_use(&self) -> bool {
        self.get() == Usage::InUse
    }

    pub fn record_use(&self) {
        self.0.store(Usage::InUse as u8, Ordering::SeqCst);
    }

    /// Resets the usage after an attempt; only later use counts.
    pub fn settle(&self) {
        self.0.store(Usage::Idle as u8, Ordering::SeqCst);
    }

    fn release(&self) {
        let (idle, released) = (Usage::Idle as u8, Usage::Released as u8);
        // The exchange fails if a caller has used the token in the meantime.
        let _ = self.0.compare_exchange(idle, released, Ordering::SeqCst, Ordering::SeqCst);
    }

    fn get(&self) -> Usage {
        let value = self.0.load(Ordering::Relaxed);
        let is = |usage: &Usage| *usage as u8 == value;
        [Usage::InUse, Usage::Released].into_iter().find(is).unwrap_or_default()
    }
}

/// Notifies on drop that a caller stopped waiting. Declared before the caller's receiver, so that it is dropped after
/// it.
pub(super) struct WaitEnd<'a>(pub &'a Notify);

impl Drop for WaitEnd<'_> {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl TokenSlot {
    /// For the refresher: the usage of this slot.
    pub(in crate::token) fn usage(&self) -> Usage {
        if self.key.subject.is_none() { Usage::InUse } else { self.usage.get() }
    }

    /// Allows eviction of the slot once its token is stored, unless a caller uses it.
    pub(in crate::token) fn release(&self) {
        self.usage.release();
        self.demand.notify_one();
    }

    /// For the refresher: true if a caller waits for a new token.
    pub(in crate::token) fn is_awaited(&self, now: Now) -> bool {
        self.changed.receiver_count() > 0 && matches!(self.state.load().decide(now), Decision::Acquire)
    }

    /// For the refresher, before it sends a request: returns once no caller waits for a subject's token any more.
    pub(in crate::token) async fn abandoned(&self, clock: &Clock) {
        loop {
            self.waiter_left.notified().await;
            let is_shared = self.key.subject.is_none();
            let usable = matches!(self.state.load().decide(clock.now()), Decision::Serve(_)) && !self.is_closed();
            if is_shared || usable || self.changed.receiver_count() > 0 {
                continue;
            }
            self.usage.settle();
            if self.changed.receiver_count() == 0 {
                return;
            }
            self.usage.record_use();
        }
    }
}
