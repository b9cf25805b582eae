//! The slots of subjects: those in use are in memory, all others are in the store alone.
//!
//! Holds: there is a bound on them, and who was not used for longest leaves first; a lookup takes one lock for a moment,
//! never across an await.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use lru::LruCache;
use tokio::sync::Notify;

use super::Maker;
use super::slot::TokenSlot;
use crate::model::secret::Secret;
use crate::model::token::{Subject, TokenKey};
use crate::store::StoredToken;
use crate::sync::lock;

/// Slots of subjects in memory, over all connections.
#[derive(Debug, Clone)]
pub(super) struct InMemory(Arc<Mutex<LruCache<TokenKey, Arc<TokenSlot>>>>);

impl InMemory {
    pub fn new(slots_max: NonZeroUsize) -> InMemory {
        InMemory(Arc::new(Mutex::new(LruCache::new(slots_max))))
    }

    pub fn list(&self) -> Vec<Arc<TokenSlot>> {
        lock(&self.0).iter().map(|(_, slot)| slot.clone()).collect()
    }

    pub fn get(&self, key: &TokenKey) -> Option<Arc<TokenSlot>> {
        lock(&self.0).peek(key).filter(|slot| !slot.is_closed()).cloned()
    }

    /// Forgets a slot that has ended, unless another has taken its place.
    pub fn remove(&self, slot: &Arc<TokenSlot>) {
        let mut slots = lock(&self.0);
        if slots.peek(&slot.key).is_some_and(|present| Arc::ptr_eq(present, slot)) {
            slots.pop(&slot.key);
        }
    }
}

/// The slots of one definition with a token for each subject.
pub struct SubjectSlots {
    pub(super) maker: Maker,
    closed: AtomicBool,
    /// The definition has changed, or the slots are closed.
    pub(super) changed: Arc<Notify>,
}

impl fmt::Debug for SubjectSlots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SubjectSlots({})", self.maker.key(None))
    }
}

impl SubjectSlots {
    pub(super) fn new(maker: Maker) -> SubjectSlots {
        SubjectSlots { maker, closed: AtomicBool::new(false), changed: Arc::default() }
    }

    fn in_memory(&self) -> &InMemory {
        &self.maker.in_memory
    }

    /// Is the slot of one subject in memory?
    pub(super) fn has(&self, subject: &Subject) -> bool {
        self.in_memory().get(&self.maker.key(Some(subject.clone()))).is_some()
    }

    /// The slot of one subject, made and filled from the store if it is not in memory.
    pub fn slot(&self, subject: &Subject) -> Arc<TokenSlot> {
        self.slot_of(subject, None)
    }

    /// The slot of what one caller's own token is exchanged for; it is named by a digest of that token.
    pub fn slot_of_token(&self, token: &Secret) -> Arc<TokenSlot> {
        self.slot_of(&Subject::of_token(token), Some(token))
    }

    fn slot_of(&self, subject: &Subject, token: Option<&Secret>) -> Arc<TokenSlot> {
        let key = self.maker.key(Some(subject.clone()));
        let mut slots = lock(&self.in_memory().0);
        if let Some(slot) = slots.get(&key).filter(|slot| !slot.is_closed()) {
            return slot.clone();
        }
        if self.is_closed() {
            // The connection has changed since this request began.
            let slot = TokenSlot::new(key, None);
            slot.end();
            return Arc::new(slot);
        }
        let slot = self.maker.make(key.clone(), token.cloned());
        let pushed_out = slots.push(key, slot.clone());
        drop(slots);
        if let Some((_, old)) = pushed_out {
            old.close();
        }
        slot
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Was this token granted for the connection as it is now?
    pub(super) fn is_of_this_definition(&self, token: &StoredToken) -> bool {
        token.is_of(&self.maker.definition.load().connection)
    }

    /// The definition has changed, the identity has not.
    pub(super) fn reconsider(&self) {
        self.own().iter().for_each(|slot| slot.reconsider());
        self.changed.notify_one();
    }

    /// No token of this definition is used again.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.changed.notify_one();
        for slot in self.own() {
            // What took the place of this definition may have put its own there.
            self.in_memory().remove(&slot);
            slot.close();
        }
    }

    fn own(&self) -> Vec<Arc<TokenSlot>> {
        let own = self.maker.key(None);
        let is_own = |key: &TokenKey| key.connection == own.connection && key.profile == own.profile;
        let slots = lock(&self.in_memory().0);
        slots.iter().filter(|(key, _)| is_own(key)).map(|(_, slot)| slot.clone()).collect()
    }
}
