//! Limit of concurrent token requests to one authorization server, shared fairly among connections.
//!
//! Free permits go to the waiting connections in turn; within one connection the first waiter is served first. No
//! connection holds all permits, so its hanging requests do not block the others.
//! Bounds: a waiter leaves the queue with its future, so there is at most one for each slot in memory and for each request
//! that waits at a slot which has left memory.
//! Not here: when an attempt stops waiting (`acquire`).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::oneshot;

use crate::model::Name;
use crate::sync::lock;

/// Concurrent token requests to one authorization server.
const PERMITS_MAX: usize = 8;
const PERMITS_PER_CONNECTION_MAX: usize = PERMITS_MAX - 1;

#[derive(Debug, Default)]
pub struct Gate {
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    taken: usize,
    last_ticket: u64,
    connections: HashMap<Name, Line>,
    /// Connections with waiters; the first is served next.
    turns: VecDeque<Name>,
}

/// One connection's permits and waiters.
#[derive(Debug, Default)]
struct Line {
    taken: usize,
    /// By ticket, in order of arrival.
    waiting: BTreeMap<u64, oneshot::Sender<()>>,
}

/// A permit, or a wait for one; dropping it returns the permit or leaves the queue.
#[derive(Debug)]
pub struct Permit {
    gate: Arc<Gate>,
    connection: Name,
    ticket: u64,
}

impl Gate {
    /// Waits for a permit. Dropping the future ends the wait.
    pub async fn enter(self: &Arc<Gate>, connection: &Name) -> Permit {
        let (permit, turn) = self.join(connection);
        // Its sender leaves the queue only to be used, or with the permit.
        let _ = turn.await;
        permit
    }

    fn join(self: &Arc<Gate>, connection: &Name) -> (Permit, oneshot::Receiver<()>) {
        let mut queue = self.queue();
        queue.last_ticket += 1;
        let ticket = queue.last_ticket;
        let (sender, turn) = oneshot::channel();
        let line = queue.connections.entry(connection.clone()).or_default();
        let is_first = line.waiting.is_empty();
        line.waiting.insert(ticket, sender);
        if is_first {
            queue.turns.push_back(connection.clone());
        }
        queue.serve();
        (Permit { gate: self.clone(), connection: connection.clone(), ticket }, turn)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }
}

impl Queue {
    /// Hands out free permits.
    fn serve(&mut self) {
        while self.taken < PERMITS_MAX {
            let may_enter = |name: &Name| self.connections.get(name).is_some_and(Line::may_enter);
            let next = self.turns.iter().position(may_enter).and_then(|at| self.turns.remove(at));
            let Some(name) = next else { return };
            let Some(line) = self.connections.get_mut(&name) else { return };
            let Some((_, turn)) = line.waiting.pop_first() else { return };
            line.taken += 1;
            self.taken += 1;
            if !line.waiting.is_empty() {
                self.turns.push_back(name);
            }
            // A waiter that is being dropped returns it.
            let _ = turn.send(());
        }
    }

    fn leave(&mut self, connection: &Name, ticket: u64) {
        let Some(line) = self.connections.get_mut(connection) else { return };
        if line.waiting.remove(&ticket).is_none() {
            line.taken -= 1;
            self.taken -= 1;
        } else if line.waiting.is_empty() {
            self.turns.retain(|name| name != connection);
        }
        if line.waiting.is_empty() && line.taken == 0 {
            self.connections.remove(connection);
        }
        self.serve();
    }
}

impl Line {
    fn may_enter(&self) -> bool {
        self.taken < PERMITS_PER_CONNECTION_MAX && !self.waiting.is_empty()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.gate.queue().leave(&self.connection, self.ticket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A waiter whose turn can be looked at.
    struct Waiter {
        permit: Permit,
        turn: oneshot::Receiver<()>,
    }

    impl Waiter {
        fn is_served(&mut self) -> bool {
            self.turn.try_recv().is_ok()
        }
    }

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    fn wait(gate: &Arc<Gate>, connection: &str) -> Waiter {
        let (permit, turn) = gate.join(&name(connection));
        Waiter { permit, turn }
    }

    fn many(gate: &Arc<Gate>, connection: &str, count: usize) -> VecDeque<Waiter> {
        (0..count).map(|_| wait(gate, connection)).collect()
    }

    fn served(waiters: &mut VecDeque<Waiter>) -> usize {
        let served = waiters.iter_mut().map_while(|waiter| waiter.is_served().then_some(())).count();
        assert!(waiters.iter_mut().skip(served).all(|waiter| !waiter.is_served()), "first come, first served");
        served
    }

    #[test]
    fn one_connection_leaves_a_permit_to_the_others() {
        let gate = Arc::<Gate>::default();
        let mut crm = many(&gate, "crm", 3000);
        assert_eq!(served(&mut crm), 7);
        let (mut erp, mut late) = (wait(&gate, "erp"), wait(&gate, "erp"));
        assert!(erp.is_served() && !late.is_served());
        drop(erp);
        assert!(late.is_served());
    }

    #[test]
    fn free_permits_go_to_the_waiting_connections_in_turn() {
        let gate = Arc::<Gate>::default();
        let (mut crm, mut erp, mut hr) = (many(&gate, "crm", 100), many(&gate, "erp", 100), many(&gate, "hr", 2));
        assert_eq!([&mut crm, &mut erp, &mut hr].map(served), [7, 1, 0]);
        // Those that were served leave one after the other.
        crm.drain(..6);
        let now = [&mut crm, &mut erp, &mut hr]
            .map(|waiters| waiters.iter_mut().map(|waiter| usize::from(waiter.is_served())).sum::<usize>());
        assert_eq!(now, [2, 2, 2], "two of each in turn");
    }

    #[test]
    fn a_dropped_waiter_leaves_the_queue_at_once() {
        let gate = Arc::<Gate>::default();
        let mut held = many(&gate, "crm", 7);
        assert_eq!(served(&mut held), 7);
        let mut waiting = many(&gate, "crm", 3000);
        let last = waiting.pop_back().unwrap();
        drop(waiting);
        assert_eq!(gate.queue().connections[&name("crm")].waiting.len(), 1);
        held.pop_front();
        let Waiter { permit, mut turn } = last;
        assert!(turn.try_recv().is_ok(), "no waiter is before it any more");
        // One that was served while it was dropped returns its permit.
        let (hr, next) = (many(&gate, "hr", 1), wait(&gate, "crm"));
        drop((permit, next, held, hr));
        let queue = gate.queue();
        assert!(queue.taken == 0 && queue.connections.is_empty() && queue.turns.is_empty(), "{queue:?}");
    }

    #[tokio::test]
    async fn a_wait_ends_with_its_future() {
        let (gate, crm) = (Arc::<Gate>::default(), name("crm"));
        let mut permits = Vec::new();
        for _ in 0..7 {
            permits.push(gate.enter(&crm).await);
        }
        tokio::select! {
            biased;
            _ = gate.enter(&crm) => panic!("there is no permit"),
            () = std::future::ready(()) => {}
        }
        permits.pop();
        permits.push(gate.enter(&crm).await);
        drop(permits);
        assert!(gate.queue().connections.is_empty());
    }
}
