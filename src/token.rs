//! Tokens in memory: one slot and one refresher for each key.
//!
//! A token's life: `ensure` → publish the stored one if it is usable → else take the lease, read again, send the refresh
//! token or the connection's own grant → save → publish, waiters wake → sleep until it is due or on demand → repeat. A
//! retryable failure keeps the token and backs off; a permanent one blocks until the next probe, or until a person acts.
//! Where to read on: `slot` (what a request sees), `refresher` (the loop), `schedule` (when), `acquire` (how).

mod acquire;
mod definition;
mod former;
mod gate;
pub mod moments;
mod refresher;
pub mod schedule;
pub mod slot;
mod source;
mod subjects;
mod warm;

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::model::connection::{Connection, Identity, OriginSet, Tokens};
use crate::model::secret::Secret;
use crate::model::token::{Subject, TokenKey};
use crate::store::{News, NoStore, Store, TokenStore};
use crate::sync::lock;
use crate::tasks::Tasks;
use crate::telemetry::audit::{Audit, Cause, Person};
use crate::telemetry::events::Events;
use crate::telemetry::metrics::Metrics;
use acquire::Acquirer;
use definition::Definition;
use former::FormerDefinitions;
use gate::Gate;
use refresher::Refresher;
use slot::{NEEDS_CONSENT_AGAIN, TokenSlot};
pub use source::{Revocation, RevocationFuture, TokenFuture, TokenSource};
use subjects::InMemory;
pub use subjects::SubjectSlots;

/// Subjects whose token is in memory; the tokens of all others are in the store.
const SUBJECTS_IN_MEMORY_MAX: NonZeroUsize = NonZeroUsize::new(16_384).expect("not zero");
/// Concurrent polls of the store. After an outage every slot polls; more would only queue for its responses.
const POLLS_AT_ONCE_MAX: usize = 64;
/// Permits for attempts under way: more than there are slots.
const UNDER_WAY_MAX: u32 = 1 << 20;

/// All slots by key.
pub struct TokenCache {
    /// By the key of the shared token, also where each subject has one.
    entries: Mutex<HashMap<TokenKey, Entry>>,
    /// Slots of replaced definitions; requests that began before may still wait at them.
    replaced: Mutex<Vec<Slots>>,
    /// By the authorization server's origin.
    gates: Mutex<HashMap<String, Arc<Gate>>>,
    former: FormerDefinitions,
    subjects: InMemory,
    services: Services,
}

/// What all refreshers share.
#[derive(Clone)]
struct Services {
    store: Arc<dyn Store>,
    /// Other replicas use the store.
    shared: bool,
    clock: Clock,
    tasks: Tasks,
    /// Runs the refreshers, whichever runtime asks for a token.
    runtime: Handle,
    metrics: Metrics,
    events: Events,
    /// A permit for each attempt under way.
    under_way: Arc<Semaphore>,
    /// A permit for each poll of a shared store.
    polls: Arc<Semaphore>,
    audit: Audit,
}

struct Entry {
    slots: Slots,
    tokens: Tokens,
    identity: Identity,
    origins: OriginSet,
    definition: Arc<ArcSwap<Definition>>,
}

/// The slots of one connection, or of one of its profiles.
#[derive(Debug, Clone)]
pub enum Slots {
    Shared(Arc<TokenSlot>),
    PerSubject(Arc<SubjectSlots>),
    /// One for each caller's own token, which is exchanged (RFC 8693).
    PerCallerToken(Arc<SubjectSlots>),
}

impl Slots {
    /// The slot of the shared token.
    pub fn shared(&self) -> Option<&Arc<TokenSlot>> {
        match self {
            Slots::Shared(slot) => Some(slot),
            Slots::PerSubject(_) | Slots::PerCallerToken(_) => None,
        }
    }

    /// The slot of `subject`'s token; `None` if a subject is needed and not given, or each caller's token has its own.
    pub fn slot(&self, subject: Option<&Subject>) -> Option<Arc<TokenSlot>> {
        match self {
            Slots::Shared(slot) => Some(slot.clone()),
            Slots::PerSubject(slots) => subject.map(|subject| slots.slot(subject)),
            Slots::PerCallerToken(_) => None,
        }
    }

    fn clear_trouble(&self) {
        match self {
            Slots::Shared(slot) => slot.clear_trouble(),
            Slots::PerSubject(slots) | Slots::PerCallerToken(slots) => slots.clear_trouble(),
        }
    }

    fn close(&self) {
        match self {
            Slots::Shared(slot) => slot.close(),
            Slots::PerSubject(slots) | Slots::PerCallerToken(slots) => slots.close(),
        }
    }
}

/// Creates the slots of one definition, each with its refresher.
struct SlotFactory {
    definition: Arc<ArcSwap<Definition>>,
    former: FormerDefinitions,
    gate: Arc<Gate>,
    in_memory: InMemory,
    services: Services,
}

impl SlotFactory {
    fn key(&self, subject: Option<Subject>) -> TokenKey {
        self.definition.load().connection.token_key(subject)
    }

    fn create(&self, key: TokenKey, caller_token: Option<Secret>) -> Arc<TokenSlot> {
        let services = &self.services;
        // The token that a caller's own token is exchanged for is of no use after this process.
        let (store, shared) = match caller_token {
            Some(_) => (Arc::new(NoStore) as Arc<dyn TokenStore>, false),
            None => (services.store.clone() as Arc<dyn TokenStore>, services.shared),
        };
        let slot = Arc::new(TokenSlot::new(key, caller_token));
        let acquirer = Acquirer {
            slot: slot.clone(),
            definition: self.definition.clone(),
            former: self.former.clone(),
            store,
            gate: self.gate.clone(),
            polls: services.polls.clone(),
            clock: services.clock.clone(),
            metrics: services.metrics.clone(),
            audit: services.audit.clone(),
            shared,
            held: Mutex::default(),
        };
        let refresher = Refresher {
            slot: slot.clone(),
            acquirer,
            events: services.events.clone(),
            under_way: services.under_way.clone(),
            phases: services.tasks.watch(),
            in_memory: self.in_memory.clone(),
        };
        services.tasks.spawn_on(&services.runtime, "refresher", refresher.run());
        slot
    }
}

impl TokenCache {
    /// Refreshers run on the current runtime.
    pub fn new(
        store: Arc<dyn Store>,
        clock: Clock,
        tasks: Tasks,
        metrics: Metrics,
        events: Events,
        audit: Audit,
    ) -> TokenCache {
        let under_way = Arc::new(Semaphore::new(UNDER_WAY_MAX as usize));
        TokenCache {
            entries: Mutex::default(),
            replaced: Mutex::default(),
            gates: Mutex::default(),
            former: FormerDefinitions::default(),
            subjects: InMemory::new(SUBJECTS_IN_MEMORY_MAX),
            services: Services {
                shared: store.shared().is_some(),
                store,
                clock,
                tasks,
                runtime: Handle::current(),
                metrics,
                events,
                under_way,
                polls: Arc::new(Semaphore::new(POLLS_AT_ONCE_MAX)),
                audit,
            },
        }
    }

    /// The slots of a connection, or of one of its profiles, as now defined. Existing slots stay while their tokens may be
    /// used: the identity is the same, and no origin was added.
    pub fn ensure(&self, connection: &Arc<Connection>, source: Box<dyn TokenSource>) -> Slots {
        let (key, identity, origins) = (connection.token_key(None), connection.identity(), connection.origins());
        let definition = Arc::new(Definition { connection: connection.clone(), source, since: Instant::now() });
        let mut entries = lock(&self.entries);
        let same = |entry: &&Entry| {
            entry.tokens == connection.tokens && entry.identity == identity && entry.origins.covers(&origins)
        };
        if let Some(entry) = entries.get(&key).filter(same) {
            entry.definition.store(definition);
            entry.slots.clear_trouble();
            return entry.slots.clone();
        }
        let definition = Arc::new(ArcSwap::new(definition));
        let factory = SlotFactory {
            definition: definition.clone(),
            former: self.former.clone(),
            gate: self.gate(connection),
            in_memory: self.subjects.clone(),
            services: self.services.clone(),
        };
        let slots = match connection.tokens {
            _ if connection.grant.exchanges_caller_token() => {
                Slots::PerCallerToken(Arc::new(SubjectSlots::new(factory)))
            }
            Tokens::Shared => Slots::Shared(factory.create(key.clone(), None)),
            Tokens::PerSubject => {
                let slots = Arc::new(SubjectSlots::new(factory));
                self.services.tasks.spawn_on(&self.services.runtime, "warm", warm::keep(Arc::downgrade(&slots)));
                Slots::PerSubject(slots)
            }
        };
        let entry = Entry { slots: slots.clone(), tokens: connection.tokens, identity, origins, definition };
        if let Some(old) = entries.insert(key, entry) {
            if let (Slots::PerSubject(_), Slots::PerSubject(_)) = (&old.slots, &slots)
                && connection.grant.needs_person()
            {
                // The refresher of a shared token reports that by itself; one of a subject's may not run for long.
                tracing::warn!(connection = %connection.name, profile = %connection.profile, "each subject {NEEDS_CONSENT_AGAIN}");
            }
            self.former.keep(old.definition.load_full());
            lock(&self.replaced).push(old.slots);
        }
        slots
    }

    /// Closes the slots of all other definitions than `kept`; no new request reaches them.
    pub fn retain(&self, kept: &HashSet<TokenKey>) {
        lock(&self.replaced).drain(..).for_each(|slots| slots.close());
        lock(&self.entries).retain(|key, entry| {
            let keep = kept.contains(key);
            if !keep {
                self.former.keep(entry.definition.load_full());
                entry.slots.close();
                let labels = [key.connection.as_str(), key.profile.as_str()];
                // Without a token there was no gauge.
                let _ = self.services.metrics.token_expiry.remove_label_values(&labels);
                let _ = self.services.metrics.refresh_token_expiry.remove_label_values(&labels);
            }
            keep
        });
    }

    /// Lets attempts under way finish and be saved within `timeout`; no new one begins.
    pub async fn rest(&self, timeout: Duration) {
        let all = self.services.under_way.acquire_many(UNDER_WAY_MAX);
        match tokio::time::timeout(timeout, all).await {
            Ok(Ok(permits)) => permits.forget(),
            _ => tracing::warn!("token request still under way at shutdown; its token may be lost"),
        }
    }

    /// The slot of `key`, if it is in memory.
    pub fn get(&self, key: &TokenKey) -> Option<Arc<TokenSlot>> {
        if key.subject.is_some() {
            return self.subjects.get(key);
        }
        lock(&self.entries).get(key).and_then(|entry| entry.slots.shared().cloned())
    }

    /// Every slot in memory.
    pub fn list(&self) -> Vec<Arc<TokenSlot>> {
        let shared: Vec<_> = lock(&self.entries).values().filter_map(|entry| entry.slots.shared().cloned()).collect();
        shared.into_iter().chain(self.subjects.list()).collect()
    }

    /// Slots in memory whose last attempt failed and that wait for the next.
    pub fn troubled(&self) -> Vec<Arc<TokenSlot>> {
        let now = self.services.clock.now();
        self.list().into_iter().filter(|slot| slot.state().blocking_trouble(now).is_some()).collect()
    }

    /// Forces an attempt of each slot for a person, whatever the last failure.
    pub fn retry_now(&self, slots: &[Arc<TokenSlot>], by: &Person) {
        let now = self.services.clock.now();
        slots.iter().for_each(|slot| slot.retry_now(now, Cause::Person(by.clone())));
    }

    /// Wakes slots whose record another replica has changed, until the store closes its notifications.
    pub async fn follow_news(self: Arc<Self>) {
        let Some(mut news) = self.services.store.shared().map(|shared| shared.news()) else { return };
        loop {
            match news.recv().await {
                Ok(News::Changed(key)) => self.get(&key).iter().for_each(|slot| slot.note_store_change()),
                Ok(News::Missed) | Err(RecvError::Lagged(_)) => {
                    self.list().iter().for_each(|slot| slot.note_store_change())
                }
                Err(RecvError::Closed) => return,
            }
        }
    }

    pub fn store(&self) -> &Arc<dyn Store> {
        &self.services.store
    }

    /// Known earlier definitions of this token.
    pub fn former(&self, key: &TokenKey) -> Vec<Arc<Connection>> {
        self.former.connections(key)
    }

    fn gate(&self, connection: &Connection) -> Arc<Gate> {
        let server = connection.endpoints.server.origin().ascii_serialization();
        lock(&self.gates).entry(server).or_default().clone()
    }
}

#[cfg(test)]
mod tests;
