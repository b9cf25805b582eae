//! Tokens in memory: one slot and one refresher for each key.
//!
//! The life of a token: `ensure` → stored and fresh? publish → else lease, read again, ask the token endpoint → save →
//! publish, waiters wake → sleep until it is due, or somebody asks → again. A retryable failure keeps the token and backs
//! off; a permanent one blocks until the next probe.

mod acquire;
mod refresher;
pub mod schedule;
pub mod slot;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;

use crate::clock::Clock;
use crate::model::connection::Connection;
use crate::model::token::TokenKey;
use crate::store::Store;
use crate::tasks::Tasks;
use crate::telemetry::metrics::Metrics;
use acquire::Acquirer;
pub use acquire::TokenSource;
use refresher::Refresher;
use slot::TokenSlot;

/// Token requests under way at once to one authorization server.
const REQUESTS_PER_SERVER: usize = 8;

/// All slots by key.
pub struct TokenCache {
    slots: Mutex<HashMap<TokenKey, Arc<TokenSlot>>>,
    gates: Mutex<HashMap<String, Arc<Semaphore>>>,
    store: Arc<dyn Store>,
    clock: Clock,
    tasks: Tasks,
    metrics: Metrics,
}

impl TokenCache {
    pub fn new(store: Arc<dyn Store>, clock: Clock, tasks: Tasks, metrics: Metrics) -> TokenCache {
        TokenCache { slots: Mutex::default(), gates: Mutex::default(), store, clock, tasks, metrics }
    }

    /// The slot of a connection; its refresher starts on the current runtime with the first call.
    pub fn ensure(&self, connection: &Arc<Connection>, source: Box<dyn TokenSource>) -> Arc<TokenSlot> {
        let key = TokenKey::of_connection(connection.name.clone());
        let mut slots = lock(&self.slots);
        let slot = slots.entry(key.clone()).or_insert_with(|| {
            let slot = Arc::new(TokenSlot::new(key.clone()));
            let acquirer = Acquirer {
                key,
                connection: connection.clone(),
                source,
                store: self.store.clone(),
                gate: self.gate(connection),
                clock: self.clock.clone(),
                metrics: self.metrics.clone(),
            };
            let origins = Arc::new(connection.origins());
            self.tasks.spawn("refresher", Refresher { slot: slot.clone(), acquirer, origins }.run());
            slot
        });
        slot.clone()
    }

    pub fn list(&self) -> Vec<Arc<TokenSlot>> {
        lock(&self.slots).values().cloned().collect()
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
