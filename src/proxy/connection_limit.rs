//! Limits downstream connections, tracks them by peer address, and evicts an idle one when the limit is reached.
//!
//! Invariants: a connection holds a permit from accept to close, including the tunnel it may become; one address cannot
//! hold all permits (`gate`); at the limit, the address with the most connections loses the one that has been idle
//! longest. Requests never take the lock; only connection open and close do. Not here: refusing a connection that gets
//! no permit (`accept`).

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::io::Watch;
use crate::gate::{Bounds, Entered, Full, Gate, Permit, Turn, Waiting};
use crate::sync::lock;

/// Interval between searches for an idle connection to evict, while connections wait and none was idle.
const EVICTION_SEARCH_INTERVAL: Duration = Duration::from_millis(50);

/// `limits.downstream_connections`, enforced for all listeners together.
#[derive(Default)]
pub struct ConnectionLimiter {
    gate: Arc<Gate>,
    tracked: Mutex<TrackedConnections>,
}

#[derive(Default)]
struct TrackedConnections {
    /// By address; oldest connection first.
    by_turn: HashMap<Turn, BTreeMap<u64, Arc<TrackedConnection>>>,
    next_id: u64,
    search_after: Option<Instant>,
}

/// A connection, as the accept thread sees it.
#[derive(Default)]
struct TrackedConnection {
    watch: Mutex<Weak<Watch>>,
    /// Chosen for eviction; not confirmed by the connection's worker.
    evicting: AtomicBool,
    eviction: Notify,
}

/// The right of one connection to be open; released on drop.
pub struct ConnectionPermit {
    limiter: Arc<ConnectionLimiter>,
    turn: Turn,
    id: u64,
    connection: Arc<TrackedConnection>,
    _permit: Permit,
}

/// The outcome of [`ConnectionLimiter::admit`].
pub enum Admission {
    Admitted(ConnectionPermit),
    /// At the limit; waits for another connection to close or be evicted.
    Queued(Waiting),
}

impl ConnectionLimiter {
    /// Admits a connection from this address, or queues it and starts an eviction.
    pub fn admit(self: &Arc<ConnectionLimiter>, bounds: Bounds, turn: &Turn) -> Result<Admission, Full> {
        if let Some(permit) = self.gate.try_enter(bounds) {
            return Ok(Admission::Admitted(self.track(permit, turn)));
        }
        match self.gate.enter_or_queue(bounds, turn)? {
            Entered::Inside(permit) => Ok(Admission::Admitted(self.track(permit, turn))),
            Entered::Queued(waiting) => {
                self.lock().evict_idle(turn, Instant::now());
                Ok(Admission::Queued(waiting))
            }
        }
    }

    /// Waits for a permit, and evicts connections that become idle in the meantime.
    pub async fn wait(&self, mut waiting: Waiting, turn: &Turn) -> Result<Permit, Full> {
        loop {
            if let Ok(permit) = timeout(EVICTION_SEARCH_INTERVAL, &mut waiting).await {
                return permit;
            }
            self.lock().evict_idle(turn, Instant::now());
        }
    }

    /// Tracks a connection whose permit the queue granted.
    pub fn track(self: &Arc<ConnectionLimiter>, permit: Permit, turn: &Turn) -> ConnectionPermit {
        let (connection, mut tracked) = (Arc::<TrackedConnection>::default(), self.lock());
        let id = tracked.next_id;
        tracked.next_id += 1;
        tracked.by_turn.entry(turn.clone()).or_default().insert(id, connection.clone());
        drop(tracked);
        ConnectionPermit { limiter: self.clone(), turn: turn.clone(), id, connection, _permit: permit }
    }

    fn lock(&self) -> MutexGuard<'_, TrackedConnections> {
        lock(&self.tracked)
    }
}

impl TrackedConnections {
    /// Evicts the longest idle connection of the address with the most connections; ties go to `turn` itself.
    fn evict_idle(&mut self, turn: &Turn, now: Instant) {
        if self.search_after.is_some_and(|after| now < after) {
            return;
        }
        let most = self.by_turn.iter().max_by_key(|(address, connections)| (connections.len(), *address == turn));
        let candidates = most.into_iter().flat_map(|(_, connections)| connections.values());
        let longest_idle = candidates
            .filter_map(|connection| Some((connection.idle_since()?, connection)))
            .min_by_key(|(since, _)| *since);
        match longest_idle {
            Some((_, connection)) => connection.evict(),
            None => self.search_after = Some(now + EVICTION_SEARCH_INTERVAL),
        }
    }
}

impl TrackedConnection {
    /// `None`: busy, or already being evicted.
    fn idle_since(&self) -> Option<Instant> {
        if self.evicting.load(Ordering::SeqCst) {
            return None;
        }
        lock(&self.watch).upgrade()?.idle_since()
    }

    fn evict(&self) {
        self.evicting.store(true, Ordering::SeqCst);
        self.eviction.notify_one();
    }
}

impl ConnectionPermit {
    /// From here on, `watch` reports whether the connection is idle.
    pub fn set_watch(&self, watch: &Arc<Watch>) {
        *lock(&self.connection.watch) = Arc::downgrade(watch);
    }

    /// Returns once the connection is evicted; it is idle then.
    pub async fn evicted(&self) {
        loop {
            self.connection.eviction.notified().await;
            self.connection.evicting.store(false, Ordering::SeqCst);
            if self.connection.idle_since().is_some() {
                return;
            }
        }
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut tracked = self.limiter.lock();
        if let Some(connections) = tracked.by_turn.get_mut(&self.turn) {
            connections.remove(&self.id);
            if connections.is_empty() {
                tracked.by_turn.remove(&self.turn);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::gate::Sharing;
    use crate::model::Name;

    fn of(name: &str) -> Turn {
        Turn::Caller(Name::parse(name).unwrap())
    }

    const BOUNDS: Bounds = Bounds { permits: 4, queued: 4, sharing: Sharing::Fair };

    #[track_caller]
    fn admitted(limiter: &Arc<ConnectionLimiter>, name: &str) -> (ConnectionPermit, Arc<Watch>) {
        let Ok(Admission::Admitted(permit)) = limiter.admit(BOUNDS, &of(name)) else { panic!("not admitted") };
        let watch = Arc::new(Watch::new(None));
        permit.set_watch(&watch);
        (permit, watch)
    }

    fn is_evicted(permit: &ConnectionPermit) -> bool {
        permit.evicted().now_or_never().is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_idle_connection_of_the_address_with_the_most_is_evicted() {
        let limiter = Arc::<ConnectionLimiter>::default();
        let busy = admitted(&limiter, "a");
        let serving = crate::proxy::io::Activity::new(busy.1.clone()).begin();
        let other = admitted(&limiter, "b");
        tokio::time::advance(Duration::from_millis(10)).await;
        let (first, second) = (admitted(&limiter, "a"), admitted(&limiter, "a"));
        let Ok(Admission::Queued(waiting)) = limiter.admit(BOUNDS, &of("b")) else { panic!("the limit is reached") };
        assert!(!is_evicted(&busy.0) && !is_evicted(&other.0) && !is_evicted(&second.0));
        assert!(is_evicted(&first.0));
        drop(first);
        let permit = waiting.now_or_never().expect("a permit is free").unwrap();
        let third = limiter.track(permit, &of("b"));
        let watch = Arc::new(Watch::new(None));
        third.set_watch(&watch);
        // Both addresses have two connections, so `b` loses one of its own.
        let Ok(Admission::Queued(_waiting)) = limiter.admit(BOUNDS, &of("b")) else { panic!("the limit is reached") };
        assert!(is_evicted(&other.0) && !is_evicted(&second.0));
        drop((serving, busy, other, second, third));
        assert!(limiter.lock().by_turn.is_empty());
    }
}
