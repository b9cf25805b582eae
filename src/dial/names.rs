//! Resolved names, cached for a moment.
//!
//! `getaddrinfo` resolves, so that `/etc/hosts`, search domains and the machine's own order hold. It reports no TTL: an
//! answer is fresh for [`FRESH`], then served stale for up to [`STALE`] while a new lookup runs (RFC 8767). A failure is
//! cached for [`FAILURE_TTL`], and a name is looked up again once its addresses turn out to be dead.
//!
//! Invariants: one lookup of a name runs at a time. It occupies a thread until `getaddrinfo` returns, even if its waiters
//! have left; [`LOOKUPS_MAX`] bounds the threads of each [`Class`], [`ZONES`] those of a zone, so that a silent name server
//! delays only names of its own zone. Each bound is shared fairly: callers take turns, and one that asks for names in many
//! silent zones leaves threads to the others. A lookup that still waits for its turn is dropped with its last waiter.
//! A zone is here what the last labels of a name say; the list of public suffixes is not worth its weight, and not needed:
//! names of one public suffix have 16 threads, those of one owner below it 8.

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

/// An answer this young is served without another lookup; shorter than the TTLs of cloud services.
const FRESH: Duration = Duration::from_secs(10);
/// The oldest answer that is served while a new lookup runs or fails.
const STALE: Duration = Duration::from_secs(600);
/// How long a failed lookup is not repeated.
const FAILURE_TTL: Duration = Duration::from_secs(1);
/// Cached names; the least recently used is evicted.
const NAMES_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("more than none");
/// Concurrent lookups of each class.
const LOOKUPS_MAX: usize = 32;
/// Concurrent lookups of the names with the same last labels, in one class: how many labels, how many lookups. The owner of
/// `co.uk` has many customers, that of `slow.co.uk` is one of them.
const ZONES: [(usize, usize); 2] = [(3, 8), (2, 16)];
/// Lookups that may wait for a thread or for their zone; beyond them the caller with the most loses its last one.
const LOOKUPS_QUEUED_MAX: usize = NAMES_MAX.get();

type Resolve = dyn Fn(Arc<str>) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>> + Send + Sync;

/// Lookups in progress by zone.
type Zones = HashMap<Zone, Arc<Gate>>;

/// A zone of one class: how many labels, and the labels.
type Zone = (Class, usize, Arc<str>);

/// Whose name it is. Each class has threads of its own, so that names chosen by callers delay no connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// The configuration contains the name.
    Configured,
    /// A request brought it.
    Requested,
}

/// The cache and its lookups; cloned freely.
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

/// What is known of one name.
#[derive(Default)]
struct Entry {
    /// The last success.
    answer: Option<(Vec<IpAddr>, Instant)>,
    /// Why the last lookup failed, if it did.
    failure: Option<(String, Instant)>,
    /// A search in progress; its end drops the sender.
    search: Option<Search>,
}

/// The search for the addresses of one name: each caller that wants them has a lookup in the queue, in its own turn, until
/// one of these runs.
struct Search {
    waiters: watch::Sender<()>,
    /// Dropped once a lookup runs, which ends the others.
    queued: Option<Queued>,
}

struct Queued {
    started: watch::Sender<()>,
    turns: Vec<Turn>,
}

enum Found {
    Addresses(Vec<IpAddr>),
    Failure(String),
    /// Ends with the search in progress.
    Wait(watch::Receiver<()>),
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Names")
    }
}

impl Names {
    /// Over the system's resolver.
    pub fn of_system(tasks: &Tasks) -> Names {
        Names::over(tasks, |name| {
            Box::pin(async move {
                let found = tokio::net::lookup_host((&*name, 0)).await?;
                Ok(found.map(|address| address.ip()).collect())
            })
        })
    }

    /// Over `lookup`.
    pub(super) fn over<F>(tasks: &Tasks, lookup: F) -> Names
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

    /// At least one address, and at most [`ADDRESSES_MAX`]. The caller sets the deadline.
    pub async fn addresses(&self, name: &str, class: Class, turn: &Turn) -> io::Result<Vec<IpAddr>> {
        loop {
            let mut search = match self.find(name, class, turn) {
                Found::Addresses(addresses) => return Ok(addresses),
                Found::Failure(why) => return Err(io::Error::other(why)),
                Found::Wait(search) => search,
            };
            // Nothing is ever sent: the end of the search ends the wait.
            let _ = search.changed().await;
        }
    }

    /// Drops the answer for a name whose addresses refuse connections, so that the next request waits for a new one.
    pub fn forget(&self, name: &str) {
        if let Some(entry) = self.cache().get_mut(name) {
            (entry.answer, entry.failure) = (None, None);
        }
    }

    fn find(&self, name: &str, class: Class, turn: &Turn) -> Found {
        let now = Instant::now();
        let mut cache = self.cache();
        if !cache.contains(name) {
            cache.put(name.into(), Entry::default());
        }
        let Some(entry) = cache.get_mut(name) else { return Found::Failure("the cache is full".to_owned()) };
        let answer = entry.answer.as_ref().filter(|(_, at)| now < *at + STALE);
        let failure = entry.failure.as_ref().filter(|(_, at)| now < *at + FAILURE_TTL);
        match (answer, failure) {
            (Some((addresses, at)), _) if now < *at + FRESH => Found::Addresses(addresses.clone()),
            (Some((addresses, _)), failure) => {
                let found = Found::Addresses(addresses.clone());
                if failure.is_none() {
                    self.join(name, class, turn, entry, true);
                }
                found
            }
            (None, Some((why, _))) => Found::Failure(why.clone()),
            (None, None) => Found::Wait(self.join(name, class, turn, entry, false)),
        }
    }

    /// Waits for the addresses; queues a lookup, unless one of this turn is in the queue or any runs. One that is not for the
    /// `background` ends with the last waiter if its turn has not come by then.
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

/// One lookup, from the queue to its result. Dropping the last one of a search ends the wait of all who wait for it.
struct Lookup {
    names: Names,
    name: Arc<str>,
    class: Class,
    turn: Turn,
    waiters: watch::Sender<()>,
    /// It is the one of its search that was started.
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
            // In the resolver's order; it may repeat itself.
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

    /// Ends the other lookups of the search. False: one of them runs, or the name has been evicted meanwhile.
    fn start(&mut self) -> bool {
        let queued = self.names.cache().peek_mut(&self.name).and_then(|entry| self.search(entry)?.queued.take());
        self.runs = queued.is_some();
        self.runs
    }

    fn fail_unless_others_wait(&self) {
        if let Some(entry) = self.names.cache().peek_mut(&self.name)
            && self.search(entry).is_some_and(|search| search.queued.as_ref().is_some_and(|own| own.turns.len() == 1))
        {
            entry.failure = Some(("too many lookups wait for a name server".to_owned(), Instant::now()));
        }
    }

    /// The zones', then a thread's: a lookup that waits for its zone keeps none from the others.
    async fn permits(&self) -> Result<Vec<Permit>, Full> {
        let mut permits = Vec::with_capacity(ZONES.len() + 1);
        for (labels, lookups_max) in ZONES {
            let gate = self.names.zones().entry(self.zone(labels)).or_default().clone();
            permits.push(gate.enter(shared_fairly(lookups_max), &self.turn).await?);
        }
        let threads = match self.class {
            Class::Configured => &self.names.0.configured,
            Class::Requested => &self.names.0.requested,
        };
        permits.push(threads.enter(shared_fairly(LOOKUPS_MAX), &self.turn).await?);
        Ok(permits)
    }

    /// The last labels of the name.
    fn zone(&self, labels: usize) -> Zone {
        let from = self.name.rmatch_indices('.').nth(labels - 1).map_or(0, |(at, _)| at + 1);
        (self.class, labels, self.name[from..].into())
    }

    /// The search that this is a part of, unless another one has begun.
    fn search<'e>(&self, entry: &'e mut Entry) -> Option<&'e mut Search> {
        entry.search.as_mut().filter(|search| search.waiters.same_channel(&self.waiters))
    }
}

fn shared_fairly(places: usize) -> Bounds {
    Bounds { places, queued: LOOKUPS_QUEUED_MAX, sharing: Sharing::Fair }
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
