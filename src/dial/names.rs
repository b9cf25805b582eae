//! Names and their addresses, kept for a moment.
//!
//! The system's resolver is asked, so that `/etc/hosts`, search domains and the machine's own order hold; it tells no
//! lifetimes, so an answer is kept for [`KEPT`], a failure for [`FAILURE_KEPT`], and a name is asked for anew once its addresses turn
//! out to be dead. Holds: one lookup of a name at a time, however many wait for it; the memory of names is bounded.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lru::LruCache;
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::Instant;

use super::ADDRESSES_MAX;

/// How long an answer is good: shorter than what clouds give their names.
const KEPT: Duration = Duration::from_secs(10);
/// How long nobody asks again after a failure.
const FAILURE_KEPT: Duration = Duration::from_secs(1);
/// Names that are remembered; the least recently used leave.
const NAMES_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("more than none");
/// Lookups at once; each takes a thread.
const LOOKUPS_MAX: usize = 32;

type Lookup = dyn Fn(Arc<str>) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>> + Send + Sync;

pub struct Names {
    known: Mutex<LruCache<Arc<str>, Arc<OnceCell<Answer>>>>,
    places: Semaphore,
    lookup: Box<Lookup>,
}

struct Answer {
    /// What failed, in words.
    addresses: Result<Vec<IpAddr>, String>,
    until: Instant,
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Names")
    }
}

impl Default for Names {
    /// Over the system's resolver.
    fn default() -> Self {
        Names::over(|name| {
            Box::pin(async move {
                let found = tokio::net::lookup_host((&*name, 0)).await?;
                Ok(found.map(|address| address.ip()).collect())
            })
        })
    }
}

impl Names {
    fn over<F>(lookup: F) -> Names
    where
        F: Fn(Arc<str>) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>> + Send + Sync + 'static,
    {
        let known = Mutex::new(LruCache::new(NAMES_MAX));
        Names { known, places: Semaphore::new(LOOKUPS_MAX), lookup: Box::new(lookup) }
    }

    /// At least one address, and no more than [`ADDRESSES_MAX`].
    pub async fn addresses(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let cell = self.cell(name);
        let answer = cell.get_or_init(|| self.ask(name.into())).await;
        answer.addresses.clone().map_err(io::Error::other)
    }

    /// Nothing answers at the addresses of this name: whoever comes next asks for it anew.
    pub fn forget(&self, name: &str) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).pop(name);
    }

    fn cell(&self, name: &str) -> Arc<OnceCell<Answer>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let good = known.get(name).filter(|cell| cell.get().is_none_or(|answer| now < answer.until));
        if let Some(cell) = good {
            return cell.clone();
        }
        let cell = Arc::<OnceCell<Answer>>::default();
        known.put(name.into(), cell.clone());
        cell
    }

    async fn ask(&self, name: Arc<str>) -> Answer {
        let _place = self.places.acquire().await;
        let addresses = match (self.lookup)(name).await {
            Ok(mut found) => {
                // In the resolver's order; it may repeat itself.
                let mut seen = std::collections::HashSet::new();
                found.retain(|address| seen.insert(*address));
                found.truncate(ADDRESSES_MAX);
                if found.is_empty() { Err("the name has no address".to_owned()) } else { Ok(found) }
            }
            Err(error) => Err(error.to_string()),
        };
        let kept = if addresses.is_ok() { KEPT } else { FAILURE_KEPT };
        Answer { addresses, until: Instant::now() + kept }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;

    use super::*;

    /// Answers after 50 ms with `addresses` addresses, none being a failure; counts.
    fn names(addresses: u8) -> (Arc<Names>, Arc<AtomicUsize>) {
        let asked = Arc::<AtomicUsize>::default();
        let count = asked.clone();
        let names = Names::over(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            Box::pin(async move {
                tokio::time::sleep(Duration::from_millis(50)).await;
                match addresses {
                    0 => Err(io::Error::other("SERVFAIL")),
                    n => Ok((0..n).flat_map(|last| [IpAddr::from([192, 0, 2, last]); 2]).collect()),
                }
            })
        });
        (Arc::new(names), asked)
    }

    #[tokio::test(start_paused = true)]
    async fn many_ask_once_and_again_when_its_time_is_over() {
        let (names, asked) = names(2);
        let answers = join_all((0..500).map(|_| names.addresses("a.test"))).await;
        assert!(answers.iter().all(|answer| answer.as_ref().unwrap().len() == 2));
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        tokio::time::advance(KEPT - Duration::from_millis(1)).await;
        names.addresses("a.test").await.unwrap();
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        tokio::time::advance(Duration::from_millis(1)).await;
        names.addresses("a.test").await.unwrap();
        assert_eq!(asked.load(Ordering::SeqCst), 2);
        names.forget("a.test");
        names.addresses("a.test").await.unwrap();
        assert_eq!(asked.load(Ordering::SeqCst), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_kept_for_a_moment() {
        let (names, asked) = names(0);
        for _ in 0..100 {
            assert_eq!(names.addresses("a.test").await.unwrap_err().to_string(), "SERVFAIL");
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        tokio::time::advance(FAILURE_KEPT).await;
        names.addresses("a.test").await.unwrap_err();
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn who_goes_away_leaves_the_lookup_to_the_next() {
        let (names, asked) = names(1);
        let hurried = tokio::time::timeout(Duration::from_millis(10), names.addresses("a.test"));
        let (gone, answer) = tokio::join!(hurried, names.addresses("a.test"));
        assert!(gone.is_err());
        assert_eq!((answer.unwrap().len(), asked.load(Ordering::SeqCst)), (1, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_and_names_are_bounded() {
        let (names, _) = names(250);
        assert_eq!(names.addresses("a.test").await.unwrap().len(), ADDRESSES_MAX);
        for n in 0..2 * NAMES_MAX.get() {
            names.cell(&format!("{n}.test"));
        }
        assert_eq!(names.known.lock().unwrap().len(), NAMES_MAX.get());
    }
}
