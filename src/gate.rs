//! A bounded number of places, shared by all threads, and a queue in which callers take turns.
//!
//! Bounds the requests in flight to one origin, the connections in use, tunnels, callers' connections, and lookups of names.
//! Invariants: without waiters, and where places are shared fairly within the first half of them, entering and leaving is one
//! atomic operation; with waiters, places change hands
//! under the lock alone, so a place that is given back goes to exactly one waiter; no newcomer overtakes a waiter that
//! may enter; callers take turns (round robin), and the requests of one caller keep their order. Where places are shared
//! fairly, from 15 places on one caller never holds the last ones, so another finds a place although the first gives none back.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, ready};

use tokio::sync::oneshot;

use crate::model::Name;
use crate::sync::lock;

/// In a gate's state: there are waiters.
const WAITING: usize = 1;
/// In a gate's state: one place is taken.
const PLACE: usize = 2;
/// Where places are shared fairly, a caller gets one of their second half only while it holds fewer than this many of them for
/// each free one: alone it gets all but a sixteenth of all places, and each further caller finds some.
const HELD_PER_FREE_PLACE: usize = 7;

/// Whose turn a request waits for: the caller's, or that of where it comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Turn {
    Caller(Name),
    Address(IpAddr),
    /// By a Unix socket.
    User(u32),
    /// The program itself, for no caller.
    Own,
}

/// How many may be inside, how many may wait, and what one caller may take of the places.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub places: usize,
    pub queued: usize,
    pub sharing: Sharing,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// One caller may take all places.
    #[default]
    Unbounded,
    /// One caller leaves places to others, if there are enough: see `HELD_PER_FREE_PLACE`.
    Fair,
}

impl Bounds {
    /// Taken by the fast path, which does not count by caller.
    fn uncounted(self) -> usize {
        match self.sharing {
            Sharing::Unbounded => self.places,
            Sharing::Fair => self.places / 2,
        }
    }

    /// May a caller get another place while `inside` are taken? Of those, `own` are counted as its own, and `counted` as any
    /// caller's: beyond the first half it holds its part of what is there.
    fn admit(self, inside: usize, own: usize, counted: usize) -> bool {
        let free = self.places.saturating_sub(inside);
        let beyond = inside.saturating_sub(self.places / 2).min(counted);
        let is_within_share = own * beyond < HELD_PER_FREE_PLACE * free * counted.max(1);
        free > 0 && (self.sharing == Sharing::Unbounded || is_within_share)
    }
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
pub struct Permit {
    gate: Arc<Gate>,
    /// Counted as a place of this caller's.
    counted: Option<Turn>,
}

/// The outcome of asking for a place.
#[derive(Debug)]
pub enum Entered {
    Inside(Permit),
    Queued(Waiting),
}

impl Gate {
    /// Enters if there is room and no waiter. Where places are shared fairly, the second half is not for this.
    pub fn try_enter(self: &Arc<Gate>, bounds: Bounds) -> Option<Permit> {
        let enter = |state| (state & WAITING == 0 && state / PLACE < bounds.uncounted()).then_some(state + PLACE);
        let entered = self.state.fetch_update(Ordering::SeqCst, Ordering::SeqCst, enter);
        entered.ok().map(|_| Permit { gate: self.clone(), counted: None })
    }

    /// Enters, or joins the queue. The bounds are those of the moment: a raised one lets others in, too.
    pub fn enter_or_queue(self: &Arc<Gate>, bounds: Bounds, turn: &Turn) -> Result<Entered, Full> {
        let mut queue = self.lock();
        queue.bounds = Some(bounds);
        let unclaimed = self.admit(&mut queue);
        let entry = self.take_or_join(&mut queue, bounds, turn);
        drop(queue);
        drop(unclaimed);
        entry
    }

    /// Enters, if that is possible without waiting.
    pub fn enter_now(self: &Arc<Gate>, places: usize, sharing: Sharing, turn: &Turn) -> Option<Permit> {
        let bounds = Bounds { places, queued: 0, sharing };
        if let Some(permit) = self.try_enter(bounds) {
            return Some(permit);
        }
        match self.enter_or_queue(bounds, turn) {
            Ok(Entered::Inside(permit)) => Some(permit),
            Ok(Entered::Queued(_)) | Err(Full) => None,
        }
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

    /// To be called after `admit`: who still waits then may not enter.
    fn take_or_join(self: &Arc<Gate>, queue: &mut Queue, bounds: Bounds, turn: &Turn) -> Result<Entered, Full> {
        let may_enter = |state| queue.may_enter(bounds, state / PLACE, turn);
        // Marked as waiting in the same step in which there is no room: a place that is given back later is ours.
        let take_or_mark = |state| Some(if may_enter(state) { state + PLACE } else { state | WAITING });
        let before = self.state.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take_or_mark);
        if before.is_ok_and(may_enter) {
            return Ok(Entered::Inside(self.permit(queue, turn)));
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
        while let Some((turn, waiter)) = queue.next(self.inside()) {
            self.state.fetch_add(PLACE, Ordering::SeqCst);
            if let Err(permit) = waiter.send(self.permit(queue, &turn)) {
                unclaimed.push(permit);
            }
        }
        self.unmark_if_empty(queue);
        unclaimed
    }

    /// For a place that was just taken.
    fn permit(self: &Arc<Gate>, queue: &mut Queue, turn: &Turn) -> Permit {
        Permit { gate: self.clone(), counted: queue.count(turn) }
    }

    fn leave(self: &Arc<Gate>, counted: Option<Turn>) {
        let leave = |state| (state & WAITING == 0).then_some(state - PLACE);
        if counted.is_none() && self.state.fetch_update(Ordering::SeqCst, Ordering::SeqCst, leave).is_ok() {
            return;
        }
        let mut queue = self.lock();
        if let Some(turn) = counted {
            queue.discount(&turn);
        }
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
        self.gate.leave(self.counted.take());
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
    /// As the last one to come knew them.
    bounds: Option<Bounds>,
    /// Places of each caller, of those that are counted, and their sum.
    held: HashMap<Turn, usize>,
    counted: usize,
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

    /// The next waiter that may enter while `inside` places are taken.
    fn next(&mut self, inside: usize) -> Option<(Turn, oneshot::Sender<Permit>)> {
        let bounds = self.bounds.filter(|bounds| inside < bounds.places)?;
        let at = self.lines.iter().position(|line| self.may_enter(bounds, inside, &line.turn))?;
        let mut line = self.lines.remove(at)?;
        let (_, waiter) = line.waiters.pop_front()?;
        self.waiting -= 1;
        let turn = line.turn.clone();
        if !line.waiters.is_empty() {
            self.lines.push_back(line);
        }
        Some((turn, waiter))
    }

    fn may_enter(&self, bounds: Bounds, inside: usize, turn: &Turn) -> bool {
        bounds.admit(inside, self.held.get(turn).copied().unwrap_or(0), self.counted)
    }

    /// Counts a place of this caller's, where that matters.
    fn count(&mut self, turn: &Turn) -> Option<Turn> {
        self.bounds.filter(|bounds| bounds.sharing == Sharing::Fair)?;
        *self.held.entry(turn.clone()).or_default() += 1;
        self.counted += 1;
        Some(turn.clone())
    }

    fn discount(&mut self, turn: &Turn) {
        if let Some(held) = self.held.get_mut(turn) {
            *held -= 1;
            self.counted -= 1;
            if *held == 0 {
                self.held.remove(turn);
            }
        }
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
