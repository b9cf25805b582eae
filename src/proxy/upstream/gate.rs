//! A bounded number of places, shared by all workers, and a queue in which callers take turns.
//!
//! Bounds the requests in flight to one origin, and the open connections to all origins (`descriptors`).
//! Invariants: without waiters, entering and leaving is one atomic operation; with waiters, places change hands
//! under the lock alone, so a place that is given back goes to exactly one waiter and no newcomer overtakes it; callers take
//! turns (round robin), and the requests of one caller keep their order.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, ready};

use tokio::sync::oneshot;

use super::super::arrival::From;
use super::Key;
use crate::model::Name;
use crate::sync::lock;

/// In a gate's state: there are waiters.
const WAITING: usize = 1;
/// In a gate's state: one place is taken.
const PLACE: usize = 2;

/// The gates of the origins in use. The lock is taken when a worker begins or ceases to use an origin.
#[derive(Debug, Default)]
pub struct Gates(Mutex<HashMap<Key, Arc<Gate>>>);

impl Gates {
    pub fn of(self: &Arc<Gates>, key: Key) -> GateOf {
        let gate = self.lock().entry(key.clone()).or_default().clone();
        GateOf { gate, key, gates: self.clone() }
    }

    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Arc<Gate>>> {
        lock(&self.0)
    }
}

/// The gate of one origin; the last one to drop it removes the gate. Its permits must not outlive it.
pub struct GateOf {
    pub gate: Arc<Gate>,
    key: Key,
    gates: Arc<Gates>,
}

impl Drop for GateOf {
    fn drop(&mut self) {
        let mut gates = self.gates.lock();
        drop(std::mem::take(&mut self.gate));
        // Under the lock no waiter gets another.
        if gates.get(&self.key).is_some_and(|gate| Arc::strong_count(gate) == 1) {
            gates.remove(&self.key);
        }
    }
}

/// Whose turn a request waits for: the caller's, or that of where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turn {
    Caller(Name),
    Address(IpAddr),
    /// By a Unix socket.
    User(u32),
}

impl Turn {
    /// `caller` is `None` where no callers are configured.
    pub fn of(caller: Option<&Name>, from: From) -> Turn {
        match (caller, from) {
            (Some(name), _) => Turn::Caller(name.clone()),
            (None, From::Address(address)) => Turn::Address(address.ip().to_canonical()),
            (None, From::User(user)) => Turn::User(user),
        }
    }
}

/// How many may be inside, and how many may wait.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub places: usize,
    pub queued: usize,
}

#[derive(Debug, Default)]
pub struct Gate {
    /// Places taken, in units of `PLACE`, and `WAITING`.
    state: AtomicUsize,
    queue: Mutex<Queue>,
}

/// Both the places and the queue are full.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

/// A place inside; given back on drop.
#[derive(Debug)]
pub struct Permit(Arc<Gate>);

/// The outcome of asking for a place.
#[derive(Debug)]
pub enum Entered {
    Inside(Permit),
    Queued(Waiting),
}

impl Gate {
    /// Enters if there is room and no waiter.
    pub fn try_enter(self: &Arc<Gate>, places: usize) -> Option<Permit> {
        let enter = |state| (state & WAITING == 0 && state / PLACE < places).then_some(state + PLACE);
        let entered = self.state.fetch_update(Ordering::SeqCst, Ordering::SeqCst, enter);
        entered.ok().map(|_| Permit(self.clone()))
    }

    /// Enters, or joins the queue. The bounds are those of the moment: a raised one lets others in, too.
    pub fn enter_or_queue(self: &Arc<Gate>, bounds: Bounds, turn: &Turn) -> Result<Entered, Full> {
        let mut queue = self.lock();
        queue.places = bounds.places;
        let unclaimed = self.admit(&mut queue);
        let entry = self.take_or_join(&mut queue, bounds, turn);
        drop(queue);
        drop(unclaimed);
        entry
    }

    pub async fn enter(self: &Arc<Gate>, bounds: Bounds, turn: &Turn) -> Result<Permit, Full> {
        match self.enter_or_queue(bounds, turn)? {
            Entered::Inside(permit) => Ok(permit),
            Entered::Queued(waiting) => waiting.await,
        }
    }

    pub fn has_waiters(&self) -> bool {
        self.state.load(Ordering::SeqCst) & WAITING != 0
    }

    fn take_or_join(self: &Arc<Gate>, queue: &mut Queue, bounds: Bounds, turn: &Turn) -> Result<Entered, Full> {
        if queue.is_empty() {
            // Marked as waiting in the same step in which there is no room: a place that is given back later is ours.
            let take_or_mark =
                |state| Some(if state / PLACE < bounds.places { state + PLACE } else { state | WAITING });
            let before = self.state.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take_or_mark);
            if before.is_ok_and(|state| state / PLACE < bounds.places) {
                return Ok(Entered::Inside(Permit(self.clone())));
            }
        }
        let joined = queue.join(turn, bounds.queued);
        self.unmark_if_empty(queue);
        let (id, place) = joined.ok_or(Full)?;
        Ok(Entered::Queued(Waiting { gate: self.clone(), turn: turn.clone(), id, place }))
    }

    /// Hands free places to those whose turn it is. What it returns must be dropped without the lock: places of waiters that
    /// are just going away.
    fn admit(self: &Arc<Gate>, queue: &mut Queue) -> Vec<Permit> {
        let mut unclaimed = Vec::new();
        while self.inside() < queue.places
            && let Some(waiter) = queue.next()
        {
            self.state.fetch_add(PLACE, Ordering::SeqCst);
            if let Err(permit) = waiter.send(Permit(self.clone())) {
                unclaimed.push(permit);
            }
        }
        self.unmark_if_empty(queue);
        unclaimed
    }

    fn leave(self: &Arc<Gate>) {
        let leave = |state| (state & WAITING == 0).then_some(state - PLACE);
        if self.state.fetch_update(Ordering::SeqCst, Ordering::SeqCst, leave).is_ok() {
            return;
        }
        let mut queue = self.lock();
        self.state.fetch_sub(PLACE, Ordering::SeqCst);
        let unclaimed = self.admit(&mut queue);
        drop(queue);
        drop(unclaimed);
    }

    fn unmark_if_empty(&self, queue: &Queue) {
        if queue.is_empty() {
            self.state.fetch_and(!WAITING, Ordering::SeqCst);
        }
    }

    fn inside(&self) -> usize {
        self.state.load(Ordering::SeqCst) / PLACE
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// A request in the queue, until it has a place; it leaves the queue on drop.
#[derive(Debug)]
pub struct Waiting {
    gate: Arc<Gate>,
    turn: Turn,
    id: u64,
    place: oneshot::Receiver<Permit>,
}

impl Future for Waiting {
    type Output = Result<Permit, Full>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // Without a place its sender is dropped where another caller's request took its place in the queue.
        Poll::Ready(ready!(Pin::new(&mut self.place).poll(cx)).map_err(|_| Full))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut queue = self.gate.lock();
        queue.leave(&self.turn, self.id);
        self.gate.unmark_if_empty(&queue);
        // A place that has come meanwhile is given back with `place`, after the lock.
    }
}

/// Who waits. There are few lines: each has at least one of the requests that may wait.
#[derive(Debug, Default)]
struct Queue {
    /// As the last one to come knew it.
    places: usize,
    /// The next turn is that of the first.
    lines: VecDeque<Line>,
    waiting: usize,
    next_id: u64,
}

/// The requests of one caller, in their order; never empty.
#[derive(Debug)]
struct Line {
    turn: Turn,
    waiters: VecDeque<(u64, oneshot::Sender<Permit>)>,
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    fn join(&mut self, turn: &Turn, queued_max: usize) -> Option<(u64, oneshot::Receiver<Permit>)> {
        if self.waiting >= queued_max && !self.make_room(turn) {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        let id = self.next_id;
        self.next_id += 1;
        self.waiting += 1;
        match self.lines.iter_mut().find(|line| line.turn == *turn) {
            Some(line) => line.waiters.push_back((id, sender)),
            None => self.lines.push_back(Line { turn: turn.clone(), waiters: [(id, sender)].into() }),
        }
        Some((id, receiver))
    }

    /// A caller that fills the queue loses its last request to one that has fewer in it.
    fn make_room(&mut self, turn: &Turn) -> bool {
        let own = self.lines.iter().find(|line| line.turn == *turn).map_or(0, |line| line.waiters.len());
        let longest = self.lines.iter_mut().max_by_key(|line| line.waiters.len());
        let Some(longest) = longest.filter(|line| line.waiters.len() > own + 1) else { return false };
        longest.waiters.pop_back();
        self.waiting -= 1;
        true
    }

    fn next(&mut self) -> Option<oneshot::Sender<Permit>> {
        let mut line = self.lines.pop_front()?;
        let (_, waiter) = line.waiters.pop_front()?;
        self.waiting -= 1;
        if !line.waiters.is_empty() {
            self.lines.push_back(line);
        }
        Some(waiter)
    }

    fn leave(&mut self, turn: &Turn, id: u64) {
        let Some(at) = self.lines.iter().position(|line| line.turn == *turn) else { return };
        let line = &mut self.lines[at];
        let Ok(place) = line.waiters.binary_search_by_key(&id, |(id, _)| *id) else { return };
        line.waiters.remove(place);
        self.waiting -= 1;
        if line.waiters.is_empty() {
            self.lines.remove(at);
        }
    }
}

#[cfg(test)]
mod tests;
