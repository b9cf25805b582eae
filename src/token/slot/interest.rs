//! Who wants a slot's next token: a caller that waits, callers that have used it lately, or none.
//!
//! Holds: everybody's token is always wanted. A subject's attempt may be given up before its request has left; a slot that
//! ends while another caller arrives is looked up again by that caller.

use std::sync::atomic::{AtomicU8, Ordering};

use tokio::sync::Notify;

use super::{TokenSlot, Verdict};
use crate::clock::{Clock, Now};

/// How much a slot's next token is wanted before a caller waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Interest {
    /// It is everybody's, or a caller has asked for it since the last attempt.
    Used,
    #[default]
    Idle,
    /// The token is kept warm in the store alone: it need not stay in memory.
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

    /// After an attempt: it counts anew who asks.
    pub fn settle(&self) {
        self.0.store(Interest::Idle as u8, Ordering::SeqCst);
    }

    fn release(&self) {
        let (idle, released) = (Interest::Idle as u8, Interest::Released as u8);
        // It fails where a caller has used it meanwhile.
        let _ = self.0.compare_exchange(idle, released, Ordering::SeqCst, Ordering::SeqCst);
    }

    fn get(&self) -> Interest {
        let value = self.0.load(Ordering::Relaxed);
        let is = |interest: &Interest| *interest as u8 == value;
        [Interest::Used, Interest::Released].into_iter().find(is).unwrap_or_default()
    }
}

/// Reports that a caller has stopped waiting. It is declared before the caller's receiver, and so dropped after it.
pub(super) struct Leaves<'a>(pub &'a Notify);

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl TokenSlot {
    /// For the refresher: how much the next token is wanted before a caller waits for it.
    pub(in crate::token) fn interest(&self) -> Interest {
        if self.key.subject.is_none() { Interest::Used } else { self.interest.get() }
    }

    /// Gives memory back as soon as the token is in the store, unless a caller uses it.
    pub(in crate::token) fn release(&self) {
        self.interest.release();
        self.demand.notify_one();
    }

    /// For the refresher: does any caller wait for a token?
    pub(in crate::token) fn is_awaited(&self, now: Now) -> bool {
        self.changed.receiver_count() > 0 && matches!(self.state.load().verdict(now), Verdict::Acquire)
    }

    /// For the refresher, while its request has not left: returns once all who waited for a subject's token have gone.
    pub(in crate::token) async fn given_up(&self, clock: &Clock) {
        loop {
            self.left.notified().await;
            let wanted_by_all = self.key.subject.is_none();
            let usable = matches!(self.state.load().verdict(clock.now()), Verdict::Serve(_)) && !self.is_closed();
            if wanted_by_all || usable || self.changed.receiver_count() > 0 {
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
