//! Concurrency limit for token requests to one authorization server, shared fairly among connections.
//!
//! Free permits go to the waiting connections round-robin; waiters of one connection are served FIFO. No connection can
//! hold all permits, so its hanging requests do not block the others.
//! Bounds: dropping a waiter's future removes it from the queue, so there is at most one waiter per slot in memory and
//! per request that waits on an evicted slot.
//! Not here: when an attempt stops waiting (`acquire`).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::oneshot;

use crate::model::Name;
use crate::sync::lock;

/// Concurrent token requests per authorization server.
const PERMITS_MAX: usize = 8;
const PERMITS_PER_CONNECTION_MAX: usize = PERMITS_MAX - 1;

#[derive(Debug, Default)]
pub struct RequestLimiter {
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    in_use: usize,
    last_ticket: u64,
    connections: HashMap<Name, ConnectionQueue>,
    /// Connections with waiters; the front is served next.
    round_robin: VecDeque<Name>,
}

/// One connection's permits and waiters.
#[derive(Debug, Default)]
struct ConnectionQueue {
    in_use: usize,
    /// By ticket, in arrival order.
    waiting: BTreeMap<u64, oneshot::Sender<()>>,
}

/// A permit, or a queued request for one; dropping it returns the permit or leaves the queue.
#[derive(Debug)]
pub struct RequestPermit {
    limiter: Arc<RequestLimiter>,
    connection: Name,
    ticket: u64,
}

impl RequestLimiter {
    /// Waits for a permit. Dropping the future ends the wait.
    pub async fn acquire(self: &Arc<RequestLimiter>, connection: &Name) -> RequestPermit {
        let (permit, granted) = self.join(connection);
        // The sender stays in the queue until it is used, or until the permit is dropped.
        let _ = granted.await;
        permit
    }

    fn join(self: &Arc<RequestLimiter>, connection: &Name) -> (RequestPermit, oneshot::Receiver<()>) {
        let mut queue = self.queue();
        queue.last_ticket += 1;
        let ticket = queue.last_ticket;
        let (sender, granted) = oneshot::channel();
        let entry = queue.connections.entry(connection.clone()).or_default();
        let is_first = entry.waiting.is_empty();
        entry.waiting.insert(ticket, sender);
        if is_first {
            queue.round_robin.push_back(connection.clone());
        }
        queue.serve();
        (RequestPermit { limiter: self.clone(), connection: connection.clone(), ticket }, granted)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }
}

impl Queue {
    /// Grants free permits to waiters.
    fn serve(&mut self) {
        while self.in_use < PERMITS_MAX {
            let may_acquire = |name: &Name| self.connections.get(name).is_some_and(ConnectionQueue::may_acquire);
            let next = self.round_robin.iter().position(may_acquire).and_then(|at| self.round_robin.remove(at));
            let Some(name) = next else { return };
            let Some(entry) = self.connections.get_mut(&name) else { return };
            let Some((_, granted)) = entry.waiting.pop_first() else { return };
            entry.in_use += 1;
            self.in_use += 1;
            if !entry.waiting.is_empty() {
                self.round_robin.push_back(name);
            }
            // A waiter that is being dropped returns the permit.
            let _ = granted.send(());
        }
    }

    fn leave(&mut self, connection: &Name, ticket: u64) {
        let Some(entry) = self.connections.get_mut(connection) else { return };
        if entry.waiting.remove(&ticket).is_none() {
            entry.in_use -= 1;
            self.in_use -= 1;
        } else if entry.waiting.is_empty() {
            self.round_robin.retain(|name| name != connection);
        }
        if entry.waiting.is_empty() && entry.in_use == 0 {
            self.connections.remove(connection);
        }
        self.serve();
    }
}

impl ConnectionQueue {
    fn may_acquire(&self) -> bool {
        self.in_use < PERMITS_PER_CONNECTION_MAX && !self.waiting.is_empty()
    }
}

impl Drop for RequestPermit {
    fn drop(&mut self) {
        self.limiter.queue().leave(&self.connection, self.ticket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A waiter whose state a test can inspect.
    struct Waiter {
        permit: RequestPermit,
        granted: oneshot::Receiver<()>,
    }

    impl Waiter {
        fn is_served(&mut self) -> bool {
            self.granted.try_recv().is_ok()
        }
    }

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    fn wait(limiter: &Arc<RequestLimiter>, connection: &str) -> Waiter {
        let (permit, granted) = limiter.join(&name(connection));
        Waiter { permit, granted }
    }

    fn many(limiter: &Arc<RequestLimiter>, connection: &str, count: usize) -> VecDeque<Waiter> {
        (0..count).map(|_| wait(limiter, connection)).collect()
    }

    fn served(waiters: &mut VecDeque<Waiter>) -> usize {
        let served = waiters.iter_mut().map_while(|waiter| waiter.is_served().then_some(())).count();
        assert!(waiters.iter_mut().skip(served).all(|waiter| !waiter.is_served()), "first come, first served");
        served
    }

    #[test]
    fn one_connection_cannot_hold_all_permits() {
        let limiter = Arc::<RequestLimiter>::default();
        let mut crm = many(&limiter, "crm", 3000);
        assert_eq!(served(&mut crm), 7);
        let (mut erp, mut late) = (wait(&limiter, "erp"), wait(&limiter, "erp"));
        assert!(erp.is_served() && !late.is_served());
        drop(erp);
        assert!(late.is_served());
    }

    #[test]
    fn free_permits_go_to_the_waiting_connections_round_robin() {
        let limiter = Arc::<RequestLimiter>::default();
        let (mut crm, mut erp, mut hr) =
            (many(&limiter, "crm", 100), many(&limiter, "erp", 100), many(&limiter, "hr", 2));
        assert_eq!([&mut crm, &mut erp, &mut hr].map(served), [7, 1, 0]);
        // The served waiters return their permits one by one.
        crm.drain(..6);
        let now = [&mut crm, &mut erp, &mut hr]
            .map(|waiters| waiters.iter_mut().map(|waiter| usize::from(waiter.is_served())).sum::<usize>());
        assert_eq!(now, [2, 2, 2], "two of each, round-robin");
    }

    #[test]
    fn a_dropped_waiter_leaves_the_queue_at_once() {
        let limiter = Arc::<RequestLimiter>::default();
        let mut held = many(&limiter, "crm", 7);
        assert_eq!(served(&mut held), 7);
        let mut waiting = many(&limiter, "crm", 3000);
        let last = waiting.pop_back().unwrap();
        drop(waiting);
        assert_eq!(limiter.queue().connections[&name("crm")].waiting.len(), 1);
        held.pop_front();
        let Waiter { permit, mut granted } = last;
        assert!(granted.try_recv().is_ok(), "no waiter is ahead of it");
        // A waiter that is dropped after it was served returns its permit.
        let (hr, next) = (many(&limiter, "hr", 1), wait(&limiter, "crm"));
        drop((permit, next, held, hr));
        let queue = limiter.queue();
        assert!(queue.in_use == 0 && queue.connections.is_empty() && queue.round_robin.is_empty(), "{queue:?}");
    }

    #[tokio::test]
    async fn dropping_the_future_ends_the_wait() {
        let (limiter, crm) = (Arc::<RequestLimiter>::default(), name("crm"));
        let mut permits = Vec::new();
        for _ in 0..7 {
            permits.push(limiter.acquire(&crm).await);
        }
        tokio::select! {
            biased;
            _ = limiter.acquire(&crm) => panic!("no permit is free"),
            () = std::future::ready(()) => {}
        }
        permits.pop();
        permits.push(limiter.acquire(&crm).await);
        drop(permits);
        assert!(limiter.queue().connections.is_empty());
    }
}
