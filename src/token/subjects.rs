//! Slots of subjects: an LRU cache in memory; the tokens of all other subjects are in the store only.
//!
//! Invariants: the cache is bounded and evicts the least recently used slot. A lookup takes one short lock, never
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

/// LRU cache of subjects' slots, shared by all connections.
#[derive(Debug, Clone)]
pub(super) struct SubjectCache(Arc<Mutex<LruCache<TokenKey, Arc<TokenSlot>>>>);

impl SubjectCache {
    pub fn new(slots_max: NonZeroUsize) -> SubjectCache {
        SubjectCache(Arc::new(Mutex::new(LruCache::new(slots_max))))
    }

    pub fn list(&self) -> Vec<Arc<TokenSlot>> {
        lock(&self.0).iter().map(|(_, slot)| slot.clone()).collect()
    }

    pub fn get(&self, key: &TokenKey) -> Option<Arc<TokenSlot>> {
        lock(&self.0).peek(key).filter(|slot| !slot.is_closed()).cloned()
    }

    /// Removes a slot that has ended, unless a newer slot has replaced it.
    pub fn remove(&self, slot: &Arc<TokenSlot>) {
        let mut slots = lock(&self.0);
        if slots.peek(&slot.key).is_some_and(|current| Arc::ptr_eq(current, slot)) {
            slots.pop(&slot.key);
        }
    }
}

/// The slots of one definition with a token per subject.
pub struct SubjectSlots {
    pub(super) factory: SlotFactory,
    closed: AtomicBool,
    /// Notified when the definition changes or the slots are closed.
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

    fn subject_cache(&self) -> &SubjectCache {
        &self.factory.subject_cache
    }

    /// True if the slot of `subject` is in memory.
    pub(super) fn has(&self, subject: &Subject) -> bool {
        self.subject_cache().get(&self.factory.key(Some(subject.clone()))).is_some()
    }

    /// The slot of one subject; if it is not in memory, it is created and filled from the store.
    pub fn slot(&self, subject: &Subject) -> Arc<TokenSlot> {
        self.slot_of(subject, None)
    }

    /// The slot of the token that a caller's token is exchanged for, keyed by a digest of the caller's token.
    pub fn slot_of_token(&self, token: &Secret) -> Arc<TokenSlot> {
        self.slot_of(&Subject::of_token(token), Some(token))
    }

    fn slot_of(&self, subject: &Subject, token: Option<&Secret>) -> Arc<TokenSlot> {
        let key = self.factory.key(Some(subject.clone()));
        let mut slots = lock(&self.subject_cache().0);
        if let Some(slot) = slots.get(&key).filter(|slot| !slot.is_closed()) {
            return slot.clone();
        }
        if self.is_closed() {
            // The connection was redefined after this request began.
            let slot = TokenSlot::new(key, None);
            slot.end();
            return Arc::new(slot);
        }
        let slot = self.factory.create(key.clone(), token.cloned());
        let evicted = slots.push(key, slot.clone());
        drop(slots);
        if let Some((_, old)) = evicted {
            old.close();
        }
        slot
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// True if `token` was granted under the current definition.
    pub(super) fn is_of_current_definition(&self, token: &StoredToken) -> bool {
        token.matches(&self.factory.definition.load().connection)
    }

    /// Called when the definition changes but its identity does not.
    pub(super) fn clear_failure(&self) {
        self.slots_in_memory().iter().for_each(|slot| slot.clear_failure());
        self.changed.notify_one();
    }

    /// Closes all slots of this definition; none of its tokens is used again.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.changed.notify_one();
        for slot in self.slots_in_memory() {
            // `remove` spares a slot that the new definition may have created under the same key.
            self.subject_cache().remove(&slot);
            slot.close();
        }
    }

    fn slots_in_memory(&self) -> Vec<Arc<TokenSlot>> {
        let definition_key = self.factory.key(None);
        let is_own =
            |key: &TokenKey| key.connection == definition_key.connection && key.profile == definition_key.profile;
        let slots = lock(&self.subject_cache().0);
        slots.iter().filter(|(key, _)| is_own(key)).map(|(_, slot)| slot.clone()).collect()
    }
}
