//! DNS cache, and the bounded queue of lookups behind it.
//!
//! `getaddrinfo` resolves, so that `/etc/hosts`, search domains and the system's address order apply. It reports no
//! TTL: an answer is fresh for [`FRESH`], then served stale for up to [`STALE`] while a new lookup runs (RFC 8767). A
//! failure is cached for [`FAILURE_TTL`], and a name is looked up again once connecting to its addresses has failed.
//!
//! Invariants: one lookup per name runs at a time. It occupies a thread until `getaddrinfo` returns, even if its
//! waiters are gone; [`LOOKUPS_MAX`] bounds the threads of each [`Class`] and [`ZONES`] those of a zone, so that an
//! unresponsive name server delays only names of its own zone. Each bound is shared fairly: callers are served
//! round-robin, and a caller that looks up names in many unresponsive zones leaves threads to the others. A queued
//! lookup is dropped with its last waiter. A zone is approximated by the last labels of a name. The public suffix list
//! is not worth its weight: names below one public suffix have 16 threads, names of one owner below it 8.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use lru::LruCache;
use tokio::sync::watch;
use tokio::time::Instant;

use super::ADDRESSES_MAX;
use crate::gate::{Bounds, Full, Gate, Permit, Sharing, Turn};
use crate::sync::lock;
use crate::tasks::Tasks;

/// TTL of a fresh answer, served without another lookup; shorter than the TTLs of cloud services.
const FRESH: Duration = Duration::from_secs(10);
/// TTL of a stale answer, served while a new lookup runs or fails.
const STALE: Duration = Duration::from_secs(600);
/// Negative TTL: a failed lookup is not repeated earlier.
const FAILURE_TTL: Duration = Duration::from_secs(1);
/// Cached names; the least recently used is evicted.
const NAMES_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("more than none");
/// Concurrent lookups of each class.
const LOOKUPS_MAX: usize = 32;
/// Concurrent lookups of names with the same last labels, per class: (labels, lookups). Two labels may be a public
/// suffix with many owners (`co.uk`), three have one owner (`slow.co.uk`).
const ZONES: [(usize, usize); 2] = [(3, 8), (2, 16)];
/// Maximum length of each queue, for a thread or for a zone; beyond it, the caller with the most loses its last lookup.
const LOOKUPS_QUEUED_MAX: usize = NAMES_MAX.get();

type Resolve = dyn Fn(Arc<str>) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>> + Send + Sync;

/// Lookups in progress by zone.
type Zones = HashMap<Zone, Arc<Gate>>;

/// A zone of one class: number of labels, and the labels.
type Zone = (Class, usize, Arc<str>);

/// Source of a name. Each class has its own threads, so that names chosen by callers do not delay configured ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// The configuration contains the name.
    Configured,
    /// The name comes from a request.
    Requested,
}

/// The DNS cache; clones share it.
#[derive(Clone)]
pub struct Names(Arc<Inner>);

struct Inner {
    cache: Mutex<LruCache<Arc<str>, Entry>>,
    configured: Arc<Gate>,
    requested: Arc<Gate>,
    zones: Mutex<Zones>,
    lookup: Box<Resolve>,
    tasks: Tasks,
}

/// Cache entry of one name.
#[derive(Default)]
struct Entry {
    /// The last answer, and when it arrived.
    answer: Option<(Vec<IpAddr>, Instant)>,
    /// Why the last lookup failed, if it did.
    failure: Option<(String, Instant)>,
    /// A search in progress; dropping it wakes its waiters.
    search: Option<Search>,
}

/// The search for the addresses of one name: each caller that waits for them has a lookup in the queue, in its own
/// turn, until one of these starts.
struct Search {
    waiters: watch::Sender<()>,
    /// Dropped once a lookup starts, which cancels the others.
    queued: Option<Queued>,
}

struct Queued {
    started: watch::Sender<()>,
    turns: Vec<Turn>,
}

enum CacheResult {
    Addresses(Vec<IpAddr>),
    Failure(String),
    /// Resolves when the search in progress ends.
    Wait(watch::Receiver<()>),
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Names")
    }
}

impl Names {
    /// Over the system's resolver.
    pub fn system(tasks: &Tasks) -> Names {
        Names::with_resolver(tasks, |name| {
            Box::pin(async move {
                let found = tokio::net::lookup_host((&*name, 0)).await?;
                Ok(found.map(|address| address.ip()).collect())
            })
        })
    }

    /// Over `lookup`.
    pub(super) fn with_resolver<F>(tasks: &Tasks, lookup: F) -> Names
    where
        F: Fn(Arc<str>) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>> + Send + Sync + 'static,
    {
        Names(Arc::new(Inner {
            cache: Mutex::new(LruCache::new(NAMES_MAX)),
            configured: Arc::default(),
            requested: Arc::default(),
            zones: Mutex::default(),
            lookup: Box::new(lookup),
            tasks: tasks.clone(),
        }))
    }

    /// At least one address, and at most [`ADDRESSES_MAX`]. Sets no deadline itself.
    pub async fn addresses(&self, name: &str, class: Class, turn: &Turn) -> io::Result<Vec<IpAddr>> {
        loop {
            let mut search = match self.find(name, class, turn) {
                CacheResult::Addresses(addresses) => return Ok(addresses),
                CacheResult::Failure(why) => return Err(io::Error::other(why)),
                CacheResult::Wait(search) => search,
            };
            // Nothing is ever sent: the search ends by dropping the sender.
            let _ = search.changed().await;
        }
    }

    /// Drops the answer for a name whose addresses could not be connected to, so that the next request waits for a new
    /// lookup.
    pub fn forget(&self, name: &str) {
        if let Some(entry) = self.cache().get_mut(name) {
            (entry.answer, entry.failure) = (None, None);
        }
    }

    fn find(&self, name: &str, class: Class, turn: &Turn) -> CacheResult {
        let now = Instant::now();
        let mut cache = self.cache();
        if !cache.contains(name) {
            cache.put(name.into(), Entry::default());
        }
        let Some(entry) = cache.get_mut(name) else { return CacheResult::Failure("the cache is full".to_owned()) };
        let answer = entry.answer.as_ref().filter(|(_, at)| now < *at + STALE);
        let failure = entry.failure.as_ref().filter(|(_, at)| now < *at + FAILURE_TTL);
        match (answer, failure) {
            (Some((addresses, at)), _) if now < *at + FRESH => CacheResult::Addresses(addresses.clone()),
            (Some((addresses, _)), failure) => {
                let found = CacheResult::Addresses(addresses.clone());
                if failure.is_none() {
                    self.join(name, class, turn, entry, true);
                }
                found
            }
            (None, Some((why, _))) => CacheResult::Failure(why.clone()),
            (None, None) => CacheResult::Wait(self.join(name, class, turn, entry, false)),
        }
    }

    /// Subscribes to the search; queues a lookup, unless this turn has one queued, or one is running. Unless it is for
    /// the `background`, a queued lookup is cancelled with its last waiter.
    fn join(&self, name: &str, class: Class, turn: &Turn, entry: &mut Entry, background: bool) -> watch::Receiver<()> {
        let search = entry.search.get_or_insert_with(|| Search {
            waiters: watch::Sender::default(),
            queued: Some(Queued { started: watch::Sender::default(), turns: Vec::new() }),
        });
        let receiver = search.waiters.subscribe();
        if let Some(queued) = search.queued.as_mut().filter(|queued| !queued.turns.contains(turn)) {
            queued.turns.push(turn.clone());
            let lookup = Lookup {
                names: self.clone(),
                name: name.into(),
                class,
                turn: turn.clone(),
                waiters: search.waiters.clone(),
                runs: false,
            };
            self.0.tasks.spawn("lookup", lookup.run(queued.started.subscribe(), background));
        }
        receiver
    }

    fn cache(&self) -> MutexGuard<'_, LruCache<Arc<str>, Entry>> {
        lock(&self.0.cache)
    }

    fn zones(&self) -> MutexGuard<'_, Zones> {
        lock(&self.0.zones)
    }
}

/// One lookup, from the queue to its result. Dropping the last lookup of a search ends the search and wakes its
/// waiters.
struct Lookup {
    names: Names,
    name: Arc<str>,
    class: Class,
    turn: Turn,
    waiters: watch::Sender<()>,
    /// This is the lookup that the search has started.
    runs: bool,
}

impl Lookup {
    async fn run(mut self, mut started: watch::Receiver<()>, background: bool) {
        let permits = tokio::select! {
            permits = self.permits() => permits,
            _ = started.changed() => return,
            () = self.waiters.closed(), if !background => return,
        };
        let permits = match permits {
            Ok(permits) => permits,
            Err(Full) => return self.fail_unless_others_wait(),
        };
        if !self.start() {
            return;
        }
        let found = (self.names.0.lookup)(self.name.clone()).await.and_then(|mut found| {
            // In the resolver's order, without duplicates.
            let mut seen = HashSet::new();
            found.retain(|address| seen.insert(*address));
            found.truncate(ADDRESSES_MAX);
            if found.is_empty() { Err(io::Error::other("the name has no address")) } else { Ok(found) }
        });
        drop(permits);
        let now = Instant::now();
        if let Some(entry) = self.names.cache().peek_mut(&self.name) {
            match found {
                Ok(addresses) => (entry.answer, entry.failure) = (Some((addresses, now)), None),
                Err(error) => entry.failure = Some((error.to_string(), now)),
            }
        }
    }

    /// Cancels the other lookups of the search. Returns false if one of them runs, or the name has been evicted.
    fn start(&mut self) -> bool {
        let queued = self.names.cache().peek_mut(&self.name).and_then(|entry| self.search(entry)?.queued.take());
        self.runs = queued.is_some();
        self.runs
    }

    fn fail_unless_others_wait(&self) {
        if let Some(entry) = self.names.cache().peek_mut(&self.name)
            && self
                .search(entry)
                .is_some_and(|search| search.queued.as_ref().is_some_and(|queued| queued.turns.len() == 1))
        {
            entry.failure = Some(("too many lookups are queued".to_owned(), Instant::now()));
        }
    }

    /// Waits for the permits of the zones, then of a thread: a lookup that waits for its zone must not block a thread.
    async fn permits(&self) -> Result<Vec<Permit>, Full> {
        let mut permits = Vec::with_capacity(ZONES.len() + 1);
        for (labels, lookups_max) in ZONES {
            let gate = self.names.zones().entry(self.zone(labels)).or_default().clone();
            permits.push(gate.enter(fair_bounds(lookups_max), &self.turn).await?);
        }
        let threads = match self.class {
            Class::Configured => &self.names.0.configured,
            Class::Requested => &self.names.0.requested,
        };
        permits.push(threads.enter(fair_bounds(LOOKUPS_MAX), &self.turn).await?);
        Ok(permits)
    }

    /// The last labels of the name.
    fn zone(&self, labels: usize) -> Zone {
        let from = self.name.rmatch_indices('.').nth(labels - 1).map_or(0, |(at, _)| at + 1);
        (self.class, labels, self.name[from..].into())
    }

    /// The search that this lookup belongs to, unless a new one has begun.
    fn search<'e>(&self, entry: &'e mut Entry) -> Option<&'e mut Search> {
        entry.search.as_mut().filter(|search| search.waiters.same_channel(&self.waiters))
    }
}

fn fair_bounds(permits: usize) -> Bounds {
    Bounds { permits, queued: LOOKUPS_QUEUED_MAX, sharing: Sharing::Fair }
}

impl Drop for Lookup {
    fn drop(&mut self) {
        if let Some(entry) = self.names.cache().peek_mut(&self.name)
            && let Some(search) = self.search(entry)
        {
            let is_last = match &mut search.queued {
                Some(queued) => {
                    queued.turns.retain(|turn| *turn != self.turn);
                    queued.turns.is_empty()
                }
                None => self.runs,
            };
            if is_last {
                entry.search = None;
            }
        }
        let mut zones = self.names.zones();
        for (labels, _) in ZONES {
            let zone = self.zone(labels);
            if zones.get(&zone).is_some_and(|gate| Arc::strong_count(gate) == 1) {
                zones.remove(&zone);
            }
        }
    }
}
