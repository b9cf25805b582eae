//! How many requests may be in flight to one origin, over all workers, without a lock between them.
//!
//! Holds: entering and leaving is one atomic operation while there is room; only who must wait touches the wait list.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use super::Key;

/// The gates of all origins; the lock is taken when a worker meets an origin for the first time.
#[derive(Debug, Default)]
pub struct Gates(Mutex<HashMap<Key, Arc<Gate>>>);

impl Gates {
    pub fn get(&self, key: &Key) -> Arc<Gate> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(key.clone()).or_default().clone()
    }

    /// Forgets the gates that nobody holds.
    pub fn sweep(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, gate| Arc::strong_count(gate) > 1);
    }
}

#[derive(Debug, Default)]
pub struct Gate {
    inside: AtomicUsize,
    waiting: AtomicUsize,
    free: Notify,
}

/// Both the places and the queue are full.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

/// A place inside; given back on drop.
#[derive(Debug)]
pub struct Permit(Arc<Gate>);

impl Gate {
    pub async fn enter(self: &Arc<Gate>, places: usize, queue: usize) -> Result<Permit, Full> {
        if let Some(permit) = self.try_enter(places) {
            return Ok(permit);
        }
        let _waiting = Waiting::join(self, queue).ok_or(Full)?;
        loop {
            let free = self.free.notified();
            if let Some(permit) = self.try_enter(places) {
                return Ok(permit);
            }
            free.await;
        }
    }

    pub fn try_enter(self: &Arc<Gate>, places: usize) -> Option<Permit> {
        let more = |inside: usize| (inside < places).then_some(inside + 1);
        let entered = self.inside.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more);
        entered.ok().map(|_| Permit(self.clone()))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::SeqCst);
        if self.0.waiting.load(Ordering::SeqCst) > 0 {
            self.0.free.notify_one();
        }
    }
}

/// A place in the queue; given back on drop, together with a wake-up that came too late.
struct Waiting<'a>(&'a Gate);

impl<'a> Waiting<'a> {
    fn join(gate: &'a Gate, queue: usize) -> Option<Waiting<'a>> {
        let more = |waiting: usize| (waiting < queue).then_some(waiting + 1);
        gate.waiting.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).ok().map(|_| Waiting(gate))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn places_and_queue_are_bounded_and_a_free_place_wakes_the_next() {
        let gate = Arc::new(Gate::default());
        let first = gate.enter(1, 1).await.unwrap();
        let second = gate.enter(1, 1);
        tokio::pin!(second);
        assert!(futures_util::poll!(second.as_mut()).is_pending());
        assert_eq!(gate.enter(1, 1).await.err(), Some(Full));
        drop(first);
        let second = second.await.unwrap();
        assert_eq!(gate.enter(1, 0).await.err(), Some(Full));
        drop(second);
        assert!(gate.enter(1, 0).await.is_ok());
    }

    #[tokio::test]
    async fn a_waiter_that_goes_away_leaves_its_place_to_the_next() {
        let gate = Arc::new(Gate::default());
        let first = gate.enter(1, 2).await.unwrap();
        {
            let gone = gate.enter(1, 2);
            tokio::pin!(gone);
            assert!(futures_util::poll!(gone.as_mut()).is_pending());
        }
        let next = gate.enter(1, 1);
        tokio::pin!(next);
        assert!(futures_util::poll!(next.as_mut()).is_pending());
        drop(first);
        next.await.unwrap();
    }
}
