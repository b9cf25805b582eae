//! Resolved names, cached for a moment.
//!
//! `getaddrinfo` resolves, so that `/etc/hosts`, search domains and the machine's own order hold. It reports no TTL: an
//! answer is fresh for [`FRESH`], then served stale for up to [`STALE`] while a new lookup runs (RFC 8767). A failure is
//! cached for [`FAILURE_TTL`], and a name is looked up again once its addresses turn out to be dead.
//!
//! Invariants: one lookup of a name at a time. A lookup occupies a thread until `getaddrinfo` returns, even if its waiters
//! have left; [`LOOKUPS_MAX`] bounds the threads of each [`Class`]. A silent name server delays only names of its own zone,
//! which may occupy [`ZONE_LOOKUPS_MAX`] threads; a lookup that still waits for its turn is dropped with its last waiter.

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
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, watch};
use tokio::time::Instant;

use super::ADDRESSES_MAX;
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
/// Concurrent lookups of one zone in one class.
const ZONE_LOOKUPS_MAX: usize = 8;

type Lookup = dyn Fn(Arc<str>) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>> + Send + Sync;

/// A zone of one class, and the threads that it may occupy.
type Zones = HashMap<(Class, Arc<str>), Arc<Semaphore>>;

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
pub struct Names(Arc<Shared>);

struct Shared {
    cache: Mutex<LruCache<Arc<str>, Entry>>,
    configured: Semaphore,
    requested: Semaphore,
    zones: Mutex<Zones>,
    lookup: Box<Lookup>,
    tasks: Tasks,
}

/// What is known of one name.
#[derive(Default)]
struct Entry {
    /// The last success.
    answer: Option<(Vec<IpAddr>, Instant)>,
    /// Why the last lookup failed, if it did.
    failure: Option<(String, Instant)>,
    /// A lookup in progress; its end drops the sender.
    lookup: Option<watch::Sender<()>>,
}

enum Found {
    Addresses(Vec<IpAddr>),
    Failure(String),
    /// Ends with the lookup in progress.
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
        Names(Arc::new(Shared {
            cache: Mutex::new(LruCache::new(NAMES_MAX)),
            configured: Semaphore::new(LOOKUPS_MAX),
            requested: Semaphore::new(LOOKUPS_MAX),
            zones: Mutex::default(),
            lookup: Box::new(lookup),
            tasks: tasks.clone(),
        }))
    }

    /// At least one address, and at most [`ADDRESSES_MAX`]. The caller sets the deadline.
    pub async fn addresses(&self, name: &str, class: Class) -> io::Result<Vec<IpAddr>> {
        loop {
            let mut lookup = match self.find(name, class) {
                Found::Addresses(addresses) => return Ok(addresses),
                Found::Failure(why) => return Err(io::Error::other(why)),
                Found::Wait(lookup) => lookup,
            };
            // Nothing is ever sent: the end of the lookup ends the wait.
            let _ = lookup.changed().await;
        }
    }

    /// Drops the answer for a name whose addresses refuse connections, so that the next request waits for a new one.
    pub fn forget(&self, name: &str) {
        if let Some(entry) = self.cache().get_mut(name) {
            (entry.answer, entry.failure) = (None, None);
        }
    }

    fn find(&self, name: &str, class: Class) -> Found {
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
                if failure.is_none() && entry.lookup.is_none() {
                    self.begin(name, class, entry, true);
                }
                found
            }
            (None, Some((why, _))) => Found::Failure(why.clone()),
            (None, None) => Found::Wait(match &entry.lookup {
                Some(lookup) => lookup.subscribe(),
                None => self.begin(name, class, entry, false),
            }),
        }
    }

    /// Starts a lookup. Unless it runs in the `background`, it ends with its last waiter if its turn has not come by then.
    fn begin(&self, name: &str, class: Class, entry: &mut Entry, background: bool) -> watch::Receiver<()> {
        let (sender, receiver) = watch::channel(());
        entry.lookup = Some(sender.clone());
        let turn = Turn { names: self.clone(), name: name.into(), class, sender };
        self.0.tasks.spawn("lookup", turn.take(background));
        receiver
    }

    fn cache(&self) -> MutexGuard<'_, LruCache<Arc<str>, Entry>> {
        lock(&self.0.cache)
    }

    fn zones(&self) -> MutexGuard<'_, Zones> {
        lock(&self.0.zones)
    }
}

/// One lookup, from the queue to its result. Dropping it ends the wait of all who wait for it.
struct Turn {
    names: Names,
    name: Arc<str>,
    class: Class,
    sender: watch::Sender<()>,
}

impl Turn {
    async fn take(self, background: bool) {
        let permits = tokio::select! {
            permits = self.permits() => permits,
            () = self.sender.closed(), if !background => return,
        };
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

    /// First the zone's: a zone that waits for its own threads waits for none of the others'.
    async fn permits(&self) -> Option<(OwnedSemaphorePermit, SemaphorePermit<'_>)> {
        let zone =
            self.names.zones().entry(self.zone()).or_insert_with(|| Arc::new(Semaphore::new(ZONE_LOOKUPS_MAX))).clone();
        let threads = match self.class {
            Class::Configured => &self.names.0.configured,
            Class::Requested => &self.names.0.requested,
        };
        // Neither is ever closed.
        Some((zone.acquire_owned().await.ok()?, threads.acquire().await.ok()?))
    }

    /// The last two labels: a name server usually serves one zone of its kind.
    fn zone(&self) -> (Class, Arc<str>) {
        let from = self.name.rmatch_indices('.').nth(1).map_or(0, |(at, _)| at + 1);
        (self.class, self.name[from..].into())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(entry) = self.names.cache().peek_mut(&self.name)
            && entry.lookup.as_ref().is_some_and(|lookup| lookup.same_channel(&self.sender))
        {
            entry.lookup = None;
        }
        let (zone, mut zones) = (self.zone(), self.names.zones());
        if zones.get(&zone).is_some_and(|semaphore| Arc::strong_count(semaphore) == 1) {
            zones.remove(&zone);
        }
    }
}
