//! The logos in memory, by URL.
//!
//! Invariants: one load per URL runs at a time, in a task of its own, so that a request that ends cancels nothing; a logo
//! is loaded once, unless it was evicted or dropped, and a failure is retried after [`FAILURE_TTL`]; number, bytes,
//! concurrent loads and their queue are bounded.
//! Not here: loading (`fetch`, `decode`).

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use lru::LruCache;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout};
use url::Url;

use crate::model::Model;
use crate::sync::lock;
use crate::tasks::Tasks;

/// Maximum number of logos and failures in memory; the least recently used is evicted.
const LOGOS_MAX: NonZeroUsize = NonZeroUsize::new(1024).expect("more than none");
/// Maximum of their bytes; the least recently used are evicted.
const LOGO_BYTES_MAX: usize = 16 * 1024 * 1024;
/// A failed load is not repeated earlier.
const FAILURE_TTL: Duration = Duration::from_secs(300);
/// Loads that run at once.
const LOADS_MAX: usize = 4;
/// Loads that run or wait.
const LOADS_QUEUED_MAX: usize = 64;
/// How long a request waits for a load: its timeout, and some time in the queue.
const WAIT_MAX: Duration = Duration::from_secs(15);

/// A logo as PNG, or why there is none.
pub type Logo = Result<Bytes, Arc<str>>;

/// Too many loads are queued, or this one takes longer than [`WAIT_MAX`].
#[derive(Debug, PartialEq, Eq)]
pub struct Overloaded;

/// The logos; one for the process.
pub struct Logos {
    entries: Mutex<LruCache<Url, Entry>>,
    loads: Semaphore,
    queue: Arc<Semaphore>,
    /// One image at a time is decoded, which bounds the memory.
    pub decoder: Semaphore,
}

/// `None` until the load has ended. A closed channel without a value: the load ended without an outcome.
type Entry = watch::Receiver<Option<Loaded>>;

struct Loaded {
    logo: Logo,
    at: Instant,
}

impl Loaded {
    fn is_current(&self) -> bool {
        self.logo.is_ok() || self.at.elapsed() < FAILURE_TTL
    }

    fn bytes(&self) -> usize {
        self.logo.as_ref().map_or_else(|reason| reason.len(), Bytes::len)
    }
}

impl Default for Logos {
    fn default() -> Logos {
        Logos {
            entries: Mutex::new(LruCache::new(LOGOS_MAX)),
            loads: Semaphore::new(LOADS_MAX),
            queue: Arc::new(Semaphore::new(LOADS_QUEUED_MAX)),
            decoder: Semaphore::new(1),
        }
    }
}

impl Logos {
    /// The logo at `url`: the one in memory, or the outcome of `load`.
    pub async fn get<L>(self: &Arc<Logos>, tasks: &Tasks, url: &Url, load: L) -> Result<Logo, Overloaded>
    where
        L: Future<Output = Logo> + Send + 'static,
    {
        let mut entry = self.entry(tasks, url, load)?;
        match timeout(WAIT_MAX, entry.wait_for(Option::is_some)).await {
            Ok(Ok(loaded)) => loaded.as_ref().map(|loaded| loaded.logo.clone()).ok_or(Overloaded),
            Ok(Err(_)) | Err(_) => Err(Overloaded),
        }
    }

    /// Drops the logos that no connection names.
    pub fn retain(&self, model: &Model) {
        let named: HashSet<&Url> = model.connections.iter().filter_map(|own| own.logo_url.as_ref()).collect();
        let mut entries = lock(&self.entries);
        let unnamed: Vec<Url> =
            entries.iter().map(|(url, _)| url).filter(|url| !named.contains(url)).cloned().collect();
        for url in unnamed {
            entries.pop(&url);
        }
    }

    /// The entry of `url`, whose load has ended or runs.
    fn entry<L>(self: &Arc<Logos>, tasks: &Tasks, url: &Url, load: L) -> Result<Entry, Overloaded>
    where
        L: Future<Output = Logo> + Send + 'static,
    {
        let mut entries = lock(&self.entries);
        if let Some(entry) = entries.get(url) {
            // Read first: a load that ends after this has stored its outcome.
            let is_loading = entry.has_changed().is_ok();
            if entry.borrow().as_ref().map_or(is_loading, Loaded::is_current) {
                return Ok(entry.clone());
            }
        }
        let queued = self.queue.clone().try_acquire_owned().map_err(|_| Overloaded)?;
        let (sender, entry) = watch::channel(None);
        entries.put(url.clone(), entry.clone());
        drop(entries);
        let logos = self.clone();
        tasks.spawn("logo", async move {
            let _queued = queued;
            let _load = logos.loads.acquire().await;
            let logo = load.await;
            sender.send_replace(Some(Loaded { logo, at: Instant::now() }));
            logos.evict();
        });
        Ok(entry)
    }

    /// Evicts the least recently used logos until the rest fits into [`LOGO_BYTES_MAX`].
    fn evict(&self) {
        let mut entries = lock(&self.entries);
        let bytes = |entry: &Entry| entry.borrow().as_ref().map_or(0, Loaded::bytes);
        let mut total: usize = entries.iter().map(|(_, entry)| bytes(entry)).sum();
        while total > LOGO_BYTES_MAX
            && let Some((_, entry)) = entries.pop_lru()
        {
            total -= bytes(&entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn url(number: usize) -> Url {
        format!("https://logos.test/{number}.png").parse().unwrap()
    }

    /// Logos, and the number of loads so far.
    #[derive(Default)]
    struct Stage {
        logos: Arc<Logos>,
        tasks: Tasks,
        loads: Arc<AtomicUsize>,
    }

    impl Stage {
        async fn get(&self, number: usize, logo: Logo) -> Result<Logo, Overloaded> {
            self.get_after(number, Duration::from_secs(1), logo).await
        }

        async fn get_after(&self, number: usize, load_time: Duration, logo: Logo) -> Result<Logo, Overloaded> {
            let loads = self.loads.clone();
            let load = async move {
                loads.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(load_time).await;
                logo
            };
            self.logos.get(&self.tasks, &url(number), load).await
        }

        fn loads(&self) -> usize {
            self.loads.load(Ordering::SeqCst)
        }
    }

    fn png(size: usize) -> Logo {
        Ok(vec![0; size].into())
    }

    fn failure() -> Logo {
        Err("refused".into())
    }

    #[tokio::test(start_paused = true)]
    async fn concurrent_requests_share_one_load() {
        let stage = Stage::default();
        let (one, other) = tokio::join!(stage.get(1, png(3)), stage.get(1, png(4)));
        assert_eq!((one, other, stage.loads()), (Ok(png(3)), Ok(png(3)), 1));
        tokio::time::advance(Duration::from_secs(30 * 24 * 3600)).await;
        assert_eq!((stage.get(1, png(5)).await, stage.loads()), (Ok(png(3)), 1), "a logo is loaded once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_ends_does_not_cancel_the_load() {
        let stage = Stage::default();
        assert!(timeout(Duration::from_millis(1), stage.get(1, png(3))).await.is_err());
        assert_eq!((stage.get(1, png(4)).await, stage.loads()), (Ok(png(3)), 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_repeated_only_after_its_ttl() {
        let stage = Stage::default();
        assert_eq!(stage.get(1, failure()).await, Ok(failure()));
        tokio::time::advance(FAILURE_TTL - Duration::from_secs(1)).await;
        assert_eq!((stage.get(1, png(3)).await, stage.loads()), (Ok(failure()), 1));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!((stage.get(1, png(3)).await, stage.loads()), (Ok(png(3)), 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_load_without_an_outcome_is_repeated() {
        let stage = Stage::default();
        let panics = async { panic!("a bug") };
        assert_eq!(stage.logos.get(&stage.tasks, &url(1), panics).await, Err(Overloaded));
        assert_eq!(stage.get(1, png(3)).await, Ok(png(3)));
    }

    #[tokio::test(start_paused = true)]
    async fn loads_and_their_queue_are_bounded() {
        let stage = Stage::default();
        let all = (0..=LOADS_QUEUED_MAX).map(|number| stage.get_after(number, Duration::from_secs(10), png(3)));
        let outcomes = futures_util::future::join_all(all).await;
        let served = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        // Requests in the first round are served after 10 seconds; those in the second would wait for 20.
        assert_eq!((served, stage.loads()), (LOADS_MAX, 2 * LOADS_MAX));
        assert_eq!(outcomes.last(), Some(&Err(Overloaded)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_least_recently_used_logos_are_evicted_once_the_memory_is_full() {
        let stage = Stage::default();
        let half = LOGO_BYTES_MAX / 2;
        for number in [1, 2, 1, 3] {
            stage.get(number, png(half)).await.unwrap().unwrap();
        }
        assert_eq!(stage.loads(), 3);
        stage.get(1, png(half)).await.unwrap().unwrap();
        assert_eq!(stage.loads(), 3, "used more recently than the second");
        stage.get(2, png(half)).await.unwrap().unwrap();
        assert_eq!(stage.loads(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_logo_is_dropped_once_no_connection_names_it() {
        let stage = Stage::default();
        for number in [1, 2] {
            stage.get(number, png(3)).await.unwrap().unwrap();
        }
        let text = "connections:\n- {name: a, client_id: a, token_url: \"https://as.test/t\", logo_url: \"URL\"}\n";
        let text = text.replace("URL", url(1).as_str());
        let loaded = crate::config::load_text(&text, std::path::Path::new("a.yaml")).unwrap();
        stage.logos.retain(&loaded.model);
        for number in [1, 2] {
            stage.get(number, png(4)).await.unwrap().unwrap();
        }
        assert_eq!(stage.loads(), 3);
    }
}
