//! Slots of subjects: those in use are in memory, the tokens of all others only in the store.
//!
//! Invariants: their number is bounded, and the least recently used leaves first. A lookup takes one short lock, never
//! across an await.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use lru::LruCache;
use tokio::sync::Notify;

use super::SlotFactory;
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
    pub(super) factory: SlotFactory,
    closed: AtomicBool,
    /// The definition has changed, or the slots are closed.
    pub(super) changed: Arc<Notify>,
}

impl fmt::Debug for SubjectSlots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SubjectSlots({})", self.factory.key(None))
    }
}

impl SubjectSlots {
    pub(super) fn new(factory: SlotFactory) -> SubjectSlots {
        SubjectSlots { factory, closed: AtomicBool::new(false), changed: Arc::default() }
    }

    fn in_memory(&self) -> &InMemory {
        &self.factory.in_memory
    }

    /// True if the slot of `subject` is in memory.
    pub(super) fn has(&self, subject: &Subject) -> bool {
        self.in_memory().get(&self.factory.key(Some(subject.clone()))).is_some()
    }

    /// The slot of one subject; created, and filled from the store, if it is not in memory.
    pub fn slot(&self, subject: &Subject) -> Arc<TokenSlot> {
        self.slot_of(subject, None)
    }

    /// The slot of the token that one caller's own token is exchanged for, named by a digest of the latter.
    pub fn slot_of_token(&self, token: &Secret) -> Arc<TokenSlot> {
        self.slot_of(&Subject::of_token(token), Some(token))
    }

    fn slot_of(&self, subject: &Subject, token: Option<&Secret>) -> Arc<TokenSlot> {
        let key = self.factory.key(Some(subject.clone()));
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
        let slot = self.factory.create(key.clone(), token.cloned());
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

    /// True if `token` was granted for the present definition.
    pub(super) fn is_of_this_definition(&self, token: &StoredToken) -> bool {
        token.matches(&self.factory.definition.load().connection)
    }

    /// The definition has changed, its identity has not.
    pub(super) fn clear_trouble(&self) {
        self.own().iter().for_each(|slot| slot.clear_trouble());
        self.changed.notify_one();
    }

    /// No token of this definition is used again.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.changed.notify_one();
        for slot in self.own() {
            // The definition that replaced this one may have put a slot of its own there.
            self.in_memory().remove(&slot);
            slot.close();
        }
    }

    fn own(&self) -> Vec<Arc<TokenSlot>> {
        let own = self.factory.key(None);
        let is_own = |key: &TokenKey| key.connection == own.connection && key.profile == own.profile;
        let slots = lock(&self.in_memory().0);
        slots.iter().filter(|(key, _)| is_own(key)).map(|(_, slot)| slot.clone()).collect()
    }
}
