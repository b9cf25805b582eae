//! Gate: a semaphore shared by all threads, with a bounded queue that serves callers round-robin.
//!
//! Bounds the requests in flight to one origin, the upstream connections in use, tunnels, downstream connections and
//! name lookups.
//! Invariants: without waiters, entering and leaving is one atomic operation (under fair sharing, only for the first
//! half of the permits); with waiters, permits change hands only under the lock, so a released permit goes to exactly
//! one waiter; no newcomer overtakes a waiter that may enter; callers are served round-robin, and the requests of one
//! caller in FIFO order. Under fair sharing, from 15 permits on, one caller never holds the last ones, so another
//! caller gets a permit even if the first releases none.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, ready};

use tokio::sync::oneshot;

use crate::model::Name;
use crate::sync::lock;

/// Flag in [`Gate::state`]: there are waiters.
const WAITING: usize = 1;
/// Unit of [`Gate::state`]: one permit is taken.
const PERMIT: usize = 2;
/// Under fair sharing, a caller gets a permit of the second half only while it holds fewer than this many of that half
/// per free permit. A single caller gets all but a sixteenth of the permits, and each further caller still finds some.
const HELD_PER_FREE_PERMIT: usize = 7;

/// Round-robin key: the queue serves keys in turn, and fair sharing counts the permits of each. The caller, or its
/// origin.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Turn {
    Caller(Name),
    Address(IpAddr),
    /// The user at the other end of a Unix socket.
    User(u32),
    /// Keybearer itself, on behalf of no caller.
    Own,
}

/// Number of permits, length of the queue, and how many permits one caller may take.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub permits: usize,
    pub queued: usize,
    pub sharing: Sharing,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// One caller may take all permits.
    #[default]
    Unbounded,
    /// One caller leaves permits to others, if there are enough: see `HELD_PER_FREE_PERMIT`.
    Fair,
}

impl Bounds {
    /// Number of permits that the fast path hands out, which does not count by caller.
    fn uncounted(self) -> usize {
        match self.sharing {
            Sharing::Unbounded => self.permits,
            Sharing::Fair => self.permits / 2,
        }
    }

    /// True if a caller may get another permit while `inside` are taken, `counted` of them on the slow path and `held`
    /// of those by this caller. The second half of the permits is attributed in proportion.
    fn admit(self, inside: usize, held: usize, counted: usize) -> bool {
        let free = self.permits.saturating_sub(inside);
        let beyond = inside.saturating_sub(self.permits / 2).min(counted);
        let is_within_share = held * beyond < HELD_PER_FREE_PERMIT * free * counted.max(1);
        free > 0 && (self.sharing == Sharing::Unbounded || is_within_share)
    }
}

#[derive(Debug, Default)]
pub struct Gate {
    /// Permits taken, in units of [`PERMIT`], plus [`WAITING`].
    state: AtomicUsize,
    queue: Mutex<Queue>,
}

/// No permit is free and the queue is full.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

/// Released on drop.
#[derive(Debug)]
pub struct Permit {
    gate: Arc<Gate>,
    /// Set if the permit is counted as this caller's.
    counted: Option<Turn>,
}

/// Outcome of [`Gate::enter_or_queue`].
#[derive(Debug)]
pub enum Entered {
    Inside(Permit),
    Queued(Waiting),
}

impl Gate {
    /// Fast path: enters if a permit is free and there are no waiters. Under fair sharing, only the first half is
    /// available.
    pub fn try_enter(self: &Arc<Gate>, bounds: Bounds) -> Option<Permit> {
        let enter = |state| (state & WAITING == 0 && state / PERMIT < bounds.uncounted()).then_some(state + PERMIT);
        let entered = self.state.fetch_update(Ordering::SeqCst, Ordering::SeqCst, enter);
        entered.ok().map(|_| Permit { gate: self.clone(), counted: None })
    }

    /// Enters, or joins the queue. The new bounds take effect at once: a raised one admits waiters too.
    pub fn enter_or_queue(self: &Arc<Gate>, bounds: Bounds, turn: &Turn) -> Result<Entered, Full> {
        let mut queue = self.lock();
        queue.bounds = Some(bounds);
        let unclaimed = self.admit(&mut queue);
        let entry = self.take_or_join(&mut queue, bounds, turn);
        drop(queue);
        drop(unclaimed);
        entry
    }

    /// Enters, unless that needs waiting.
    pub fn enter_now(self: &Arc<Gate>, permits: usize, sharing: Sharing, turn: &Turn) -> Option<Permit> {
        let bounds = Bounds { permits, queued: 0, sharing };
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

    /// Called after `admit`, so that the remaining waiters may not enter.
    fn take_or_join(self: &Arc<Gate>, queue: &mut Queue, bounds: Bounds, turn: &Turn) -> Result<Entered, Full> {
        let may_enter = |state| queue.may_enter(bounds, state / PERMIT, turn);
        // The flag is set in the same step that finds no permit, so a permit released later is ours.
        let take_or_mark = |state| Some(if may_enter(state) { state + PERMIT } else { state | WAITING });
        let before = self.state.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take_or_mark);
        if before.is_ok_and(may_enter) {
            return Ok(Entered::Inside(self.permit(queue, turn)));
        }
        let joined = queue.join(turn, bounds.queued);
        self.unmark_if_empty(queue);
        let (id, permit) = joined.ok_or(Full)?;
        Ok(Entered::Queued(Waiting { gate: self.clone(), turn: turn.clone(), id, permit }))
    }

    /// Hands free permits to the next waiters. Returns the permits of waiters that are being dropped; the caller must
    /// drop them after releasing the lock.
    fn admit(self: &Arc<Gate>, queue: &mut Queue) -> Vec<Permit> {
        let mut unclaimed = Vec::new();
        while let Some((turn, waiter)) = queue.next(self.inside()) {
            self.state.fetch_add(PERMIT, Ordering::SeqCst);
            if let Err(permit) = waiter.send(self.permit(queue, &turn)) {
                unclaimed.push(permit);
            }
        }
        self.unmark_if_empty(queue);
        unclaimed
    }

    /// Wraps a permit that was just taken.
    fn permit(self: &Arc<Gate>, queue: &mut Queue, turn: &Turn) -> Permit {
        Permit { gate: self.clone(), counted: queue.count(turn) }
    }

    fn leave(self: &Arc<Gate>, counted: Option<Turn>) {
        let leave = |state| (state & WAITING == 0).then_some(state - PERMIT);
        if counted.is_none() && self.state.fetch_update(Ordering::SeqCst, Ordering::SeqCst, leave).is_ok() {
            return;
        }
        let mut queue = self.lock();
        if let Some(turn) = counted {
            queue.discount(&turn);
        }
        self.state.fetch_sub(PERMIT, Ordering::SeqCst);
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
        self.state.load(Ordering::SeqCst) / PERMIT
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

/// A queued request; resolves to its permit, and leaves the queue on drop.
#[derive(Debug)]
pub struct Waiting {
    gate: Arc<Gate>,
    turn: Turn,
    id: u64,
    permit: oneshot::Receiver<Permit>,
}

impl Future for Waiting {
    type Output = Result<Permit, Full>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // The sender is dropped without a permit if another caller's request took this slot of the queue.
        Poll::Ready(ready!(Pin::new(&mut self.permit).poll(cx)).map_err(|_| Full))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut queue = self.gate.lock();
        queue.leave(&self.turn, self.id);
        self.gate.unmark_if_empty(&queue);
        // A permit that has just arrived is released with `permit`, after the lock.
    }
}

/// The waiters, one FIFO line per caller. Lines are never empty, so the queue bound limits their number.
#[derive(Debug, Default)]
struct Queue {
    /// Bounds that the last request passed.
    bounds: Option<Bounds>,
    /// Counted permits by caller, and their sum.
    held: HashMap<Turn, usize>,
    counted: usize,
    /// In round-robin order.
    lines: VecDeque<Line>,
    waiting: usize,
    next_id: u64,
}

/// The queued requests of one caller, in FIFO order; never empty.
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

    /// Makes room in a full queue: evicts the last request of the caller with the most, if `turn` has fewer.
    fn make_room(&mut self, turn: &Turn) -> bool {
        let queued = self.lines.iter().find(|line| line.turn == *turn).map_or(0, |line| line.waiters.len());
        let longest = self.lines.iter_mut().max_by_key(|line| line.waiters.len());
        let Some(longest) = longest.filter(|line| line.waiters.len() > queued + 1) else { return false };
        longest.waiters.pop_back();
        self.waiting -= 1;
        true
    }

    /// Pops the next waiter that may enter while `inside` permits are taken.
    fn next(&mut self, inside: usize) -> Option<(Turn, oneshot::Sender<Permit>)> {
        let bounds = self.bounds.filter(|bounds| inside < bounds.permits)?;
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

    /// Counts a permit as this caller's, under fair sharing.
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
        let Ok(index) = line.waiters.binary_search_by_key(&id, |(id, _)| *id) else { return };
        line.waiters.remove(index);
        self.waiting -= 1;
        if line.waiters.is_empty() {
            self.lines.remove(at);
        }
    }
}

#[cfg(test)]
mod tests;
