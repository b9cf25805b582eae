//! Tokens in memory: one slot and one refresher for each key.
//!
//! The life of a token: `ensure` → stored and fresh? publish → else lease, read again, ask the token endpoint → save →
//! publish, waiters wake → sleep until it is due, or somebody asks → again. A retryable failure keeps the token and backs
//! off; a permanent one blocks until the next probe.

mod acquire;
mod refresher;
pub mod schedule;
pub mod slot;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use tokio::sync::Semaphore;

use crate::clock::Clock;
use crate::model::connection::{Connection, Identity, OriginSet};
use crate::model::token::TokenKey;
use crate::store::Store;
use crate::tasks::Tasks;
use crate::telemetry::audit::Audit;
use crate::telemetry::events::Events;
use crate::telemetry::metrics::Metrics;
pub use acquire::TokenSource;
use acquire::{Acquirer, Definition};
use refresher::Refresher;
use slot::TokenSlot;

/// Token requests under way at once to one authorization server.
const REQUESTS_PER_SERVER: usize = 8;

/// All slots by key.
pub struct TokenCache {
    slots: Mutex<HashMap<TokenKey, Entry>>,
    /// Slots whose connection has another identity now; requests that began before may still wait at them.
    replaced: Mutex<Vec<Arc<TokenSlot>>>,
    gates: Mutex<HashMap<String, Arc<Semaphore>>>,
    store: Arc<dyn Store>,
    clock: Clock,
    tasks: Tasks,
    metrics: Metrics,
    events: Events,
    audit: Audit,
}

struct Entry {
    slot: Arc<TokenSlot>,
    identity: Identity,
    origins: OriginSet,
    definition: Arc<ArcSwap<Definition>>,
}

impl TokenCache {
    pub fn new(
        store: Arc<dyn Store>,
        clock: Clock,
        tasks: Tasks,
        metrics: Metrics,
        events: Events,
        audit: Audit,
    ) -> TokenCache {
        TokenCache {
            slots: Mutex::default(),
            replaced: Mutex::default(),
            gates: Mutex::default(),
            store,
            clock,
            tasks,
            metrics,
            events,
            audit,
        }
    }

    /// The slot of a connection as it is now defined; the refresher of a new one starts on the current runtime. A slot
    /// with its token is kept for as long as the token may be: same identity, and no origin that it was not granted for.
    pub fn ensure(&self, connection: &Arc<Connection>, source: Box<dyn TokenSource>) -> Arc<TokenSlot> {
        let key = TokenKey::of_connection(connection.name.clone());
        let (identity, origins) = (connection.identity(), connection.origins());
        let definition = Arc::new(Definition { connection: connection.clone(), source });
        let mut slots = lock(&self.slots);
        if let Some(entry) = slots.get(&key).filter(|e| e.identity == identity && e.origins.covers(&origins)) {
            entry.definition.store(definition);
            entry.slot.reconsider();
            return entry.slot.clone();
        }
        let slot = Arc::new(TokenSlot::new(key.clone()));
        let definition = Arc::new(ArcSwap::new(definition));
        let acquirer = Acquirer {
            key: key.clone(),
            definition: definition.clone(),
            store: self.store.clone(),
            gate: self.gate(connection),
            clock: self.clock.clone(),
            metrics: self.metrics.clone(),
            audit: self.audit.clone(),
        };
        let refresher = Refresher { slot: slot.clone(), acquirer, events: self.events.clone() };
        self.tasks.spawn("refresher", refresher.run());
        let entry = Entry { slot: slot.clone(), identity, origins, definition };
        let old = slots.insert(key, entry);
        lock(&self.replaced).extend(old.map(|entry| entry.slot));
        slot
    }

    /// Ends the slots that are not among `kept`, once no new request can reach them.
    pub fn retain(&self, kept: &[Arc<TokenSlot>]) {
        let kept: HashSet<*const TokenSlot> = kept.iter().map(Arc::as_ptr).collect();
        lock(&self.replaced).drain(..).for_each(|slot| slot.close());
        lock(&self.slots).retain(|key, entry| {
            let keep = kept.contains(&Arc::as_ptr(&entry.slot));
            if !keep {
                entry.slot.close();
                let labels = [key.connection.as_str(), key.profile.as_str()];
                // It may never have had a token.
                let _ = self.metrics.token_expiry.remove_label_values(&labels);
            }
            keep
        });
    }

    pub fn get(&self, key: &TokenKey) -> Option<Arc<TokenSlot>> {
        lock(&self.slots).get(key).map(|entry| entry.slot.clone())
    }

    pub fn list(&self) -> Vec<Arc<TokenSlot>> {
        lock(&self.slots).values().map(|entry| entry.slot.clone()).collect()
    }

    fn gate(&self, connection: &Connection) -> Arc<Semaphore> {
        let server = connection.token_url.origin().ascii_serialization();
        lock(&self.gates).entry(server).or_insert_with(|| Arc::new(Semaphore::new(REQUESTS_PER_SERVER))).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
