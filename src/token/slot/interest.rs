//! How much a slot's next token is wanted: by a waiting caller, by recent use, or not at all.
//!
//! Invariants: a shared token is always wanted. An attempt for a subject may be abandoned before its request has left. A
//! caller that arrives while a slot ends looks it up again.

use std::sync::atomic::{AtomicU8, Ordering};

use tokio::sync::Notify;

use super::{TokenSlot, Verdict};
use crate::clock::{Clock, Now};

/// How much the next token is wanted while no caller waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Interest {
    /// It is shared, or a caller has asked for it since the last attempt.
    Used,
    #[default]
    Idle,
    /// The token is kept warm in the store: it need not stay in memory.
    Released,
}

/// The [`Interest`] in one slot, as its discriminant.
#[derive(Debug)]
pub(super) struct InterestCell(AtomicU8);

impl InterestCell {
    pub fn used() -> InterestCell {
        InterestCell(AtomicU8::new(Interest::Used as u8))
    }

    pub fn is_used(&self) -> bool {
        self.get() == Interest::Used
    }

    pub fn note_use(&self) {
        self.0.store(Interest::Used as u8, Ordering::SeqCst);
    }

    /// After an attempt: only later use counts.
    pub fn settle(&self) {
        self.0.store(Interest::Idle as u8, Ordering::SeqCst);
    }

    fn release(&self) {
        let (idle, released) = (Interest::Idle as u8, Interest::Released as u8);
        // It fails if a caller has used the token meanwhile.
        let _ = self.0.compare_exchange(idle, released, Ordering::SeqCst, Ordering::SeqCst);
    }

    fn get(&self) -> Interest {
        let value = self.0.load(Ordering::Relaxed);
        let is = |interest: &Interest| *interest as u8 == value;
        [Interest::Used, Interest::Released].into_iter().find(is).unwrap_or_default()
    }
}

/// Reports that a caller no longer waits. Declared before the caller's receiver, so that it is dropped after it.
pub(super) struct WaitEnd<'a>(pub &'a Notify);

impl Drop for WaitEnd<'_> {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl TokenSlot {
    /// For the refresher: how much the next token is wanted while no caller waits for it.
    pub(in crate::token) fn interest(&self) -> Interest {
        if self.key.subject.is_none() { Interest::Used } else { self.interest.get() }
    }

    /// Lets the slot leave memory once its token is in the store, unless a caller uses it.
    pub(in crate::token) fn release(&self) {
        self.interest.release();
        self.demand.notify_one();
    }

    /// For the refresher: true if a caller waits for a token.
    pub(in crate::token) fn is_awaited(&self, now: Now) -> bool {
        self.changed.receiver_count() > 0 && matches!(self.state.load().verdict(now), Verdict::Acquire)
    }

    /// For the refresher, before its request leaves: returns once no caller waits for a subject's token any more.
    pub(in crate::token) async fn abandoned(&self, clock: &Clock) {
        loop {
            self.left.notified().await;
            let is_shared = self.key.subject.is_none();
            let usable = matches!(self.state.load().verdict(clock.now()), Verdict::Serve(_)) && !self.is_closed();
            if is_shared || usable || self.changed.receiver_count() > 0 {
                continue;
            }
            self.interest.settle();
            if self.changed.receiver_count() == 0 {
                return;
            }
            self.interest.note_use();
        }
    }
}
