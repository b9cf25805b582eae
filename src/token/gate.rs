//! Places for token requests under way at one authorization server, shared fairly among connections.
//!
//! Free places go round the connections that wait; within one connection they are first come, first served. One connection
//! never holds them all, so requests that hang leave a way for the others.
//! Bounds: a waiter leaves the queue with its future, so there is at most one for each slot in memory and for each request
//! that waits at a slot which has left memory.
//! Not here: when an attempt gives up waiting (`acquire`).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::oneshot;

use crate::model::Name;
use crate::sync::lock;

/// Token requests under way at once to one authorization server.
const PLACES: usize = 8;
const PLACES_PER_CONNECTION: usize = PLACES - 1;

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

/// One connection's places and waiters.
#[derive(Debug, Default)]
struct Line {
    taken: usize,
    /// By ticket, which grows: the first has waited longest.
    waiting: BTreeMap<u64, oneshot::Sender<()>>,
}

/// A place, or a wait for one; it is given back, or left, when dropped.
#[derive(Debug)]
pub struct Place {
    gate: Arc<Gate>,
    connection: Name,
    ticket: u64,
}

impl Gate {
    /// Waits for a place. The wait ends with the future.
    pub async fn enter(self: &Arc<Gate>, connection: &Name) -> Place {
        let (place, turn) = self.join(connection);
        // Its sender leaves the queue only to be used, or with the place.
        let _ = turn.await;
        place
    }

    fn join(self: &Arc<Gate>, connection: &Name) -> (Place, oneshot::Receiver<()>) {
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
        (Place { gate: self.clone(), connection: connection.clone(), ticket }, turn)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }
}

impl Queue {
    /// Gives away what is free.
    fn serve(&mut self) {
        while self.taken < PLACES {
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
            // A waiter that is just going away gives it back.
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
        self.taken < PLACES_PER_CONNECTION && !self.waiting.is_empty()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.gate.queue().leave(&self.connection, self.ticket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A waiter whose turn can be looked at.
    struct Waiter {
        place: Place,
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
        let (place, turn) = gate.join(&name(connection));
        Waiter { place, turn }
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
    fn one_connection_leaves_a_place_to_the_others() {
        let gate = Arc::<Gate>::default();
        let mut crm = many(&gate, "crm", 3000);
        assert_eq!(served(&mut crm), 7);
        let (mut erp, mut late) = (wait(&gate, "erp"), wait(&gate, "erp"));
        assert!(erp.is_served() && !late.is_served());
        drop(erp);
        assert!(late.is_served());
    }

    #[test]
    fn free_places_go_round_the_connections_that_wait() {
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
    fn who_goes_away_leaves_the_queue_at_once() {
        let gate = Arc::<Gate>::default();
        let mut held = many(&gate, "crm", 7);
        assert_eq!(served(&mut held), 7);
        let mut waiting = many(&gate, "crm", 3000);
        let last = waiting.pop_back().unwrap();
        drop(waiting);
        assert_eq!(gate.queue().connections[&name("crm")].waiting.len(), 1);
        held.pop_front();
        let Waiter { place, mut turn } = last;
        assert!(turn.try_recv().is_ok(), "no waiter is before it any more");
        // One that was served as it went away gives its place back.
        let (hr, next) = (many(&gate, "hr", 1), wait(&gate, "crm"));
        drop((place, next, held, hr));
        let queue = gate.queue();
        assert!(queue.taken == 0 && queue.connections.is_empty() && queue.turns.is_empty(), "{queue:?}");
    }

    #[tokio::test]
    async fn a_wait_ends_with_its_future() {
        let (gate, crm) = (Arc::<Gate>::default(), name("crm"));
        let mut places = Vec::new();
        for _ in 0..7 {
            places.push(gate.enter(&crm).await);
        }
        tokio::select! {
            biased;
            _ = gate.enter(&crm) => panic!("there is no place"),
            () = std::future::ready(()) => {}
        }
        places.pop();
        places.push(gate.enter(&crm).await);
        drop(places);
        assert!(gate.queue().connections.is_empty());
    }
}
