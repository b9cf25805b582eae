//! The token cache: one slot and one refresher task per token key.
//!
//! Lifecycle of a token: `ensure` → publish the stored token if usable → else take the lease, read again, send the
//! refresh token or the connection's own grant → save → publish, waiters wake → sleep until due or on demand → repeat.
//! A retryable failure keeps the token and backs off; a permanent one blocks until the next probe, or until a person
//! acts. Start with `slot` (what a request sees), `refresher` (the loop), `schedule` (when), `acquire` (how).

mod acquire;
pub mod deadlines;
mod definition;
mod keep_warm;
mod refresher;
mod request_limiter;
pub mod schedule;
pub mod slot;
mod source;
mod stored;
mod subjects;
mod superseded;

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::model::connection::{Connection, Identity, OriginSet, Tokens};
use crate::model::secret::Secret;
use crate::model::token::{Subject, TokenKey};
use crate::store::{NoStore, Store, TokenStore};
use crate::sync::lock;
use crate::tasks::Tasks;
use crate::telemetry::audit::{Audit, Cause, Person};
use crate::telemetry::events::Events;
use crate::telemetry::metrics::Metrics;
use acquire::Acquirer;
use definition::Definition;
use refresher::Refresher;
use request_limiter::RequestLimiter;
use slot::{NEEDS_CONSENT_AGAIN, TokenSlot};
pub use source::{Revocation, RevocationFuture, TokenFuture, TokenSource};
use subjects::SubjectCache;
pub use subjects::SubjectSlots;
use superseded::SupersededDefinitions;

/// Capacity of the subjects' LRU cache; the tokens of all other subjects are in the store only.
const SUBJECT_SLOTS_MAX: NonZeroUsize = NonZeroUsize::new(16_384).expect("not zero");
/// Concurrent polls of the store. After an outage every slot polls; more polls would only queue in the store.
const CONCURRENT_POLLS_MAX: usize = 64;
/// Permits for attempts in flight; exceeds any number of slots.
const IN_FLIGHT_MAX: u32 = 1 << 20;

/// All slots by key.
pub struct TokenCache {
    /// By the key of the shared token, even if each subject has its own token.
    entries: Mutex<HashMap<TokenKey, Entry>>,
    /// Slots of superseded definitions; requests that began before the change may still wait on them.
    replaced_slots: Mutex<Vec<Slots>>,
    /// By the authorization server's origin.
    limiters: Mutex<HashMap<String, Arc<RequestLimiter>>>,
    superseded: SupersededDefinitions,
    subjects: SubjectCache,
    services: Services,
}

/// Dependencies shared by all refreshers.
#[derive(Clone)]
struct Services {
    store: Arc<dyn Store>,
    clock: Clock,
    tasks: Tasks,
    /// Runs the refreshers, regardless of which runtime requests a token.
    runtime: Handle,
    metrics: Metrics,
    events: Events,
    /// A permit per attempt in flight.
    in_flight: Arc<Semaphore>,
    /// A permit per poll of a shared store.
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
    /// One slot per caller token, which is exchanged (RFC 8693).
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

    /// The slot of `subject`'s token; `None` without a required subject, or if slots are keyed by caller token.
    pub fn slot(&self, subject: Option<&Subject>) -> Option<Arc<TokenSlot>> {
        match self {
            Slots::Shared(slot) => Some(slot.clone()),
            Slots::PerSubject(slots) => subject.map(|subject| slots.slot(subject)),
            Slots::PerCallerToken(_) => None,
        }
    }

    fn clear_failure(&self) {
        match self {
            Slots::Shared(slot) => slot.clear_failure(),
            Slots::PerSubject(slots) | Slots::PerCallerToken(slots) => slots.clear_failure(),
        }
    }

    fn close(&self) {
        match self {
            Slots::Shared(slot) => slot.close(),
            Slots::PerSubject(slots) | Slots::PerCallerToken(slots) => slots.close(),
        }
    }
}

/// Creates the slots of one definition, and spawns a refresher for each.
struct SlotFactory {
    definition: Arc<ArcSwap<Definition>>,
    superseded: SupersededDefinitions,
    limiter: Arc<RequestLimiter>,
    subject_cache: SubjectCache,
    services: Services,
}

impl SlotFactory {
    fn key(&self, subject: Option<Subject>) -> TokenKey {
        self.definition.load().connection.token_key(subject)
    }

    fn create(&self, key: TokenKey, caller_token: Option<Secret>) -> Arc<TokenSlot> {
        let services = &self.services;
        // A token obtained in exchange for a caller's token is useless after this process ends, so it is not stored.
        let store: Arc<dyn TokenStore> = match caller_token {
            Some(_) => Arc::new(NoStore),
            None => services.store.clone(),
        };
        let slot = Arc::new(TokenSlot::new(key, caller_token));
        let refresher = Refresher {
            slot: slot.clone(),
            acquirer: self.acquirer(slot.clone(), store),
            events: services.events.clone(),
            in_flight: services.in_flight.clone(),
            phases: services.tasks.watch(),
            subject_cache: self.subject_cache.clone(),
        };
        services.tasks.spawn_on(&services.runtime, "refresher", refresher.run());
        slot
    }

    fn acquirer(&self, slot: Arc<TokenSlot>, store: Arc<dyn TokenStore>) -> Acquirer {
        let services = &self.services;
        Acquirer {
            slot,
            definition: self.definition.clone(),
            superseded: self.superseded.clone(),
            shared: store.shared().is_some(),
            store,
            limiter: self.limiter.clone(),
            polls: services.polls.clone(),
            clock: services.clock.clone(),
            metrics: services.metrics.clone(),
            audit: services.audit.clone(),
            record_cache: Mutex::default(),
        }
    }
}

impl TokenCache {
    /// Spawns refreshers on the current runtime.
    pub fn new(
        store: Arc<dyn Store>,
        clock: Clock,
        tasks: Tasks,
        metrics: Metrics,
        events: Events,
        audit: Audit,
    ) -> TokenCache {
        let in_flight = Arc::new(Semaphore::new(IN_FLIGHT_MAX as usize));
        TokenCache {
            entries: Mutex::default(),
            replaced_slots: Mutex::default(),
            limiters: Mutex::default(),
            superseded: SupersededDefinitions::default(),
            subjects: SubjectCache::new(SUBJECT_SLOTS_MAX),
            services: Services {
                store,
                clock,
                tasks,
                runtime: Handle::current(),
                metrics,
                events,
                in_flight,
                polls: Arc::new(Semaphore::new(CONCURRENT_POLLS_MAX)),
                audit,
            },
        }
    }

    /// Returns the slots of a connection, or of one of its profiles, under its current definition. Reuses existing
    /// slots if their tokens remain valid: same identity, no added origin.
    pub fn ensure(&self, connection: &Arc<Connection>, source: Box<dyn TokenSource>) -> Slots {
        let (key, identity, origins) = (connection.token_key(None), connection.identity(), connection.origins());
        let definition = Arc::new(Definition { connection: connection.clone(), source, since: Instant::now() });
        let mut entries = lock(&self.entries);
        let same = |entry: &&Entry| {
            entry.tokens == connection.tokens && entry.identity == identity && entry.origins.covers(&origins)
        };
        if let Some(entry) = entries.get(&key).filter(same) {
            entry.definition.store(definition);
            entry.slots.clear_failure();
            return entry.slots.clone();
        }
        let factory = self.factory(definition);
        let definition = factory.definition.clone();
        let slots = match connection.tokens {
            _ if connection.grant.exchanges_caller_token() => {
                Slots::PerCallerToken(Arc::new(SubjectSlots::new(factory)))
            }
            Tokens::Shared => Slots::Shared(factory.create(key.clone(), None)),
            Tokens::PerSubject => {
                let slots = Arc::new(SubjectSlots::new(factory));
                let warm = keep_warm::run(Arc::downgrade(&slots));
                self.services.tasks.spawn_on(&self.services.runtime, "keep_warm", warm);
                Slots::PerSubject(slots)
            }
        };
        let entry = Entry { slots: slots.clone(), tokens: connection.tokens, identity, origins, definition };
        if let Some(old) = entries.insert(key, entry) {
            if let (Slots::PerSubject(_), Slots::PerSubject(_)) = (&old.slots, &slots)
                && connection.grant.needs_person()
            {
                // The refresher of a shared token logs this itself; a subject's refresher may not run for a long time.
                tracing::warn!(connection = %connection.name, profile = %connection.profile, "each subject {NEEDS_CONSENT_AGAIN}");
            }
            self.superseded.keep(old.definition.load_full());
            lock(&self.replaced_slots).push(old.slots);
        }
        slots
    }

    /// Closes all slots except those of `kept`; no new request reaches a closed slot.
    pub fn retain(&self, kept: &HashSet<TokenKey>) {
        lock(&self.replaced_slots).drain(..).for_each(|slots| slots.close());
        for (key, entry) in lock(&self.entries).extract_if(|key, _| !kept.contains(key)) {
            self.superseded.keep(entry.definition.load_full());
            entry.slots.close();
            let labels = [key.connection.as_str(), key.profile.as_str()];
            // A slot that never had a token has no gauge.
            let _ = self.services.metrics.token_expiry.remove_label_values(&labels);
            let _ = self.services.metrics.refresh_token_expiry.remove_label_values(&labels);
        }
    }

    /// Lets attempts in flight finish and save within `timeout`, and starts no new ones.
    pub async fn drain(&self, timeout: Duration) {
        let all = self.services.in_flight.acquire_many(IN_FLIGHT_MAX);
        match tokio::time::timeout(timeout, all).await {
            Ok(Ok(permits)) => permits.forget(),
            _ => tracing::warn!("token request still in flight at shutdown; its token may be lost"),
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

    /// Slots in memory that back off after a failed attempt.
    pub fn failing(&self) -> Vec<Arc<TokenSlot>> {
        let now = self.services.clock.now();
        self.list().into_iter().filter(|slot| slot.state().blocking_failure(now).is_some()).collect()
    }

    /// Forces an attempt of each slot on behalf of a person, ignoring backoffs and refusals.
    pub fn retry_now(&self, slots: &[Arc<TokenSlot>], by: &Person) {
        let now = self.services.clock.now();
        slots.iter().for_each(|slot| slot.retry_now(now, Cause::Person(by.clone())));
    }

    /// The store of the tokens; also holds secrets and notes.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.services.store
    }

    /// Known superseded definitions of this token.
    pub fn superseded_definitions(&self, key: &TokenKey) -> Vec<Arc<Connection>> {
        self.superseded.connections(key)
    }

    fn factory(&self, definition: Arc<Definition>) -> SlotFactory {
        let server = definition.connection.endpoints.server.origin().ascii_serialization();
        SlotFactory {
            definition: Arc::new(ArcSwap::new(definition)),
            superseded: self.superseded.clone(),
            limiter: lock(&self.limiters).entry(server).or_default().clone(),
            subject_cache: self.subjects.clone(),
            services: self.services.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
