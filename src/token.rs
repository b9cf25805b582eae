//! Tokens in memory: one slot and one refresher for each key.
//!
//! The life of a token: `ensure` → stored and fresh? publish → else lease, read again, refresh token or the connection's
//! own grant → save → publish, waiters wake → sleep until it is due, or somebody asks → again. A retryable failure keeps
//! the token and backs off; a permanent one blocks until the next probe, or until a person acts.

mod acquire;
mod former;
mod gate;
mod refresher;
pub mod schedule;
pub mod slot;
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
use crate::store::{News, Store, Unkept};
use crate::sync::lock;
use crate::tasks::Tasks;
use crate::telemetry::audit::{Audit, Cause, Person};
use crate::telemetry::events::Events;
use crate::telemetry::metrics::Metrics;
use acquire::{Acquirer, Definition};
pub use acquire::{Answer, Ending, TokenSource};
use former::Former;
use gate::Gate;
use refresher::Refresher;
use slot::{NEEDS_CONSENT_AGAIN, TokenSlot};
use subjects::InMemory;
pub use subjects::SubjectSlots;

/// Subjects whose token is in memory at once; the others are in the store.
const SUBJECTS_IN_MEMORY_MAX: NonZeroUsize = NonZeroUsize::new(16_384).expect("not zero");
/// After a break every slot looks what it has missed; more at once would only wait for each other's answers.
const LOOKS_AT_ONCE: usize = 64;
/// More attempts than there are slots.
const UNDER_WAY_MAX: u32 = 1 << 20;

/// All slots by key.
pub struct TokenCache {
    /// Each by the key of what would be its shared token.
    entries: Mutex<HashMap<TokenKey, Entry>>,
    /// Slots whose connection has another identity now; requests that began before may still wait at them.
    replaced: Mutex<Vec<Slots>>,
    /// By authorization server.
    gates: Mutex<HashMap<String, Arc<Gate>>>,
    former: Former,
    subjects: InMemory,
    tools: Tools,
}

/// What every refresher works with.
#[derive(Clone)]
struct Tools {
    store: Arc<dyn Store>,
    /// Other processes use the store too.
    shared: bool,
    clock: Clock,
    tasks: Tasks,
    /// Where refreshers run, whoever asks for them.
    runtime: Handle,
    metrics: Metrics,
    events: Events,
    /// A permit for each attempt under way.
    under_way: Arc<Semaphore>,
    /// And for each look into a store that others use too.
    looks: Arc<Semaphore>,
    audit: Audit,
}

struct Entry {
    slots: Slots,
    tokens: Tokens,
    identity: Identity,
    origins: OriginSet,
    definition: Arc<ArcSwap<Definition>>,
}

/// Where the tokens of one connection, or of one of its profiles, are.
#[derive(Debug, Clone)]
pub enum Slots {
    Shared(Arc<TokenSlot>),
    PerSubject(Arc<SubjectSlots>),
    /// One for each caller's own token, which is exchanged.
    PerCallerToken(Arc<SubjectSlots>),
}

impl Slots {
    /// The slot of everybody's token.
    pub fn shared(&self) -> Option<&Arc<TokenSlot>> {
        match self {
            Slots::Shared(slot) => Some(slot),
            Slots::PerSubject(_) | Slots::PerCallerToken(_) => None,
        }
    }

    /// The slot of this subject's token; `None`: there is one for each subject, and none is named, or for each caller.
    pub fn slot(&self, subject: Option<&Subject>) -> Option<Arc<TokenSlot>> {
        match self {
            Slots::Shared(slot) => Some(slot.clone()),
            Slots::PerSubject(slots) => subject.map(|subject| slots.slot(subject)),
            Slots::PerCallerToken(_) => None,
        }
    }

    fn reconsider(&self) {
        match self {
            Slots::Shared(slot) => slot.reconsider(),
            Slots::PerSubject(slots) | Slots::PerCallerToken(slots) => slots.reconsider(),
        }
    }

    fn close(&self) {
        match self {
            Slots::Shared(slot) => slot.close(),
            Slots::PerSubject(slots) | Slots::PerCallerToken(slots) => slots.close(),
        }
    }
}

/// Makes the slots of one definition, each with its refresher.
struct Maker {
    definition: Arc<ArcSwap<Definition>>,
    former: Former,
    gate: Arc<Gate>,
    in_memory: InMemory,
    tools: Tools,
}

impl Maker {
    fn key(&self, subject: Option<Subject>) -> TokenKey {
        self.definition.load().connection.token_key(subject)
    }

    fn make(&self, key: TokenKey, caller_token: Option<Secret>) -> Arc<TokenSlot> {
        let tools = &self.tools;
        // What a caller's own token is exchanged for is of no use to anybody later.
        let (store, shared) = match caller_token {
            Some(_) => (Arc::new(Unkept) as Arc<dyn Store>, false),
            None => (tools.store.clone(), tools.shared),
        };
        let slot = Arc::new(TokenSlot::new(key, caller_token));
        let acquirer = Acquirer {
            slot: slot.clone(),
            definition: self.definition.clone(),
            former: self.former.clone(),
            store,
            gate: self.gate.clone(),
            looks: tools.looks.clone(),
            clock: tools.clock.clone(),
            metrics: tools.metrics.clone(),
            audit: tools.audit.clone(),
            shared,
            kept: Mutex::default(),
        };
        let refresher = Refresher {
            slot: slot.clone(),
            acquirer,
            events: tools.events.clone(),
            under_way: tools.under_way.clone(),
            phases: tools.tasks.watch(),
            in_memory: self.in_memory.clone(),
        };
        tools.tasks.spawn_on(&tools.runtime, "refresher", refresher.run());
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
            former: Former::default(),
            subjects: InMemory::new(SUBJECTS_IN_MEMORY_MAX),
            tools: Tools {
                shared: store.news().is_some(),
                store,
                clock,
                tasks,
                runtime: Handle::current(),
                metrics,
                events,
                under_way,
                looks: Arc::new(Semaphore::new(LOOKS_AT_ONCE)),
                audit,
            },
        }
    }

    /// The slots of a connection, or of one of its profiles, as it is now defined. One with its token is kept for as long as the token may be: same
    /// identity, and no origin that it was not granted for.
    pub fn ensure(&self, connection: &Arc<Connection>, source: Box<dyn TokenSource>) -> Slots {
        let (key, identity, origins) = (connection.token_key(None), connection.identity(), connection.origins());
        let definition = Arc::new(Definition { connection: connection.clone(), source, since: Instant::now() });
        let mut entries = lock(&self.entries);
        let same = |entry: &&Entry| {
            entry.tokens == connection.tokens && entry.identity == identity && entry.origins.covers(&origins)
        };
        if let Some(entry) = entries.get(&key).filter(same) {
            entry.definition.store(definition);
            entry.slots.reconsider();
            return entry.slots.clone();
        }
        let definition = Arc::new(ArcSwap::new(definition));
        let maker = Maker {
            definition: definition.clone(),
            former: self.former.clone(),
            gate: self.gate(connection),
            in_memory: self.subjects.clone(),
            tools: self.tools.clone(),
        };
        let slots = match connection.tokens {
            _ if connection.grant.takes_callers_token() => Slots::PerCallerToken(Arc::new(SubjectSlots::new(maker))),
            Tokens::Shared => Slots::Shared(maker.make(key.clone(), None)),
            Tokens::PerSubject => {
                let slots = Arc::new(SubjectSlots::new(maker));
                self.tools.tasks.spawn_on(&self.tools.runtime, "warm", warm::keep(Arc::downgrade(&slots)));
                Slots::PerSubject(slots)
            }
        };
        let entry = Entry { slots: slots.clone(), tokens: connection.tokens, identity, origins, definition };
        if let Some(old) = entries.insert(key, entry) {
            if let (Slots::PerSubject(_), Slots::PerSubject(_)) = (&old.slots, &slots)
                && connection.grant.needs_person()
            {
                // A shared token's refresher finds that out by itself; nobody may ask for a subject's for long.
                tracing::warn!(connection = %connection.name, profile = %connection.profile, "each subject {NEEDS_CONSENT_AGAIN}");
            }
            self.former.keep(old.definition.load_full());
            lock(&self.replaced).push(old.slots);
        }
        slots
    }

    /// Ends the slots of definitions that are not among `kept`, once no new request can reach them.
    pub fn retain(&self, kept: &HashSet<TokenKey>) {
        lock(&self.replaced).drain(..).for_each(|slots| slots.close());
        lock(&self.entries).retain(|key, entry| {
            let keep = kept.contains(key);
            if !keep {
                self.former.keep(entry.definition.load_full());
                entry.slots.close();
                let labels = [key.connection.as_str(), key.profile.as_str()];
                // It may never have had a token.
                let _ = self.tools.metrics.token_expiry.remove_label_values(&labels);
                let _ = self.tools.metrics.refresh_token_expiry.remove_label_values(&labels);
            }
            keep
        });
    }

    /// Lets what is under way finish and be saved, until `wait` is over; from here on nothing new begins.
    pub async fn rest(&self, wait: Duration) {
        let all = self.tools.under_way.acquire_many(UNDER_WAY_MAX);
        match tokio::time::timeout(wait, all).await {
            Ok(Ok(permits)) => permits.forget(),
            _ => tracing::warn!("a token request is still under way; what it brings may be lost"),
        }
    }

    /// The slot of this key, if it is in memory.
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

    /// Slots in memory that got no token at the last attempt, and wait to try again.
    pub fn troubled(&self) -> Vec<Arc<TokenSlot>> {
        let now = self.tools.clock.now();
        self.list().into_iter().filter(|slot| slot.state().standing_trouble(now).is_some()).collect()
    }

    /// A person wants the servers of these slots to be asked, whatever they said last.
    pub fn ask_again(&self, slots: &[Arc<TokenSlot>], by: &Person) {
        let now = self.tools.clock.now();
        slots.iter().for_each(|slot| slot.ask_again(now, Cause::Person(by.clone())));
    }

    /// Lets slots look at what other processes change in the store, for as long as it tells.
    pub async fn follow_news(self: Arc<Self>) {
        let Some(mut news) = self.tools.store.news() else { return };
        loop {
            match news.recv().await {
                Ok(News::Changed(key)) => self.get(&key).iter().for_each(|slot| slot.look()),
                Ok(News::Missed) | Err(RecvError::Lagged(_)) => self.list().iter().for_each(|slot| slot.look()),
                Err(RecvError::Closed) => return,
            }
        }
    }

    pub fn store(&self) -> &Arc<dyn Store> {
        &self.tools.store
    }

    /// Earlier definitions of this token, as far as they are known.
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
