//! Seats of callers' connections: how many there are, whose they are, and who makes way for a new one.
//!
//! Invariants: a connection has a seat from accept to its end, the tunnel that it may become included; one address leaves
//! some seats to others (`gate`); where a new connection finds none, the address with the most gives up the connection
//! that has waited longest for a request. Not here: how the others are refused (`accept`). The lock is taken when a
//! connection begins and ends, never by a request.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::io::Watch;
use crate::gate::{Bounds, Entered, Full, Gate, Permit, Turn, Waiting};
use crate::sync::lock;

/// Pause of the search for an idle connection after one that found none.
const SEARCH_PAUSE: Duration = Duration::from_millis(50);

#[derive(Default)]
pub struct Seats {
    gate: Arc<Gate>,
    taken: Mutex<Occupants>,
}

#[derive(Default)]
struct Occupants {
    /// By address; the oldest connection first.
    by_turn: HashMap<Turn, BTreeMap<u64, Arc<Occupant>>>,
    next_id: u64,
    search_after: Option<Instant>,
}

/// A connection, as the accept thread knows it.
#[derive(Default)]
struct Occupant {
    watch: Mutex<Weak<Watch>>,
    /// It shall make way.
    asked: AtomicBool,
    bell: Notify,
}

/// The seat of one connection; given up on drop.
pub struct Seat {
    seats: Arc<Seats>,
    turn: Turn,
    id: u64,
    occupant: Arc<Occupant>,
    _permit: Permit,
}

/// The outcome of asking for a seat.
pub enum Admission {
    Seated(Seat),
    /// Another connection may make way.
    Queued(Waiting),
}

impl Seats {
    /// A seat for a connection of this address, or a place in the queue for one.
    pub fn ask(self: &Arc<Seats>, bounds: Bounds, turn: &Turn) -> Result<Admission, Full> {
        if let Some(permit) = self.gate.try_enter(bounds) {
            return Ok(Admission::Seated(self.seat(permit, turn)));
        }
        match self.gate.enter_or_queue(bounds, turn)? {
            Entered::Inside(permit) => Ok(Admission::Seated(self.seat(permit, turn))),
            Entered::Queued(waiting) => {
                self.lock().ask_idle_to_leave(turn, Instant::now());
                Ok(Admission::Queued(waiting))
            }
        }
    }

    /// Waits for a place. Connections that become idle meanwhile are asked to make way.
    pub async fn wait(&self, mut waiting: Waiting, turn: &Turn) -> Result<Permit, Full> {
        loop {
            if let Ok(place) = timeout(SEARCH_PAUSE, &mut waiting).await {
                return place;
            }
            self.lock().ask_idle_to_leave(turn, Instant::now());
        }
    }

    /// The seat of a place that came in the queue.
    pub fn seat(self: &Arc<Seats>, permit: Permit, turn: &Turn) -> Seat {
        let (occupant, mut taken) = (Arc::<Occupant>::default(), self.lock());
        let id = taken.next_id;
        taken.next_id += 1;
        taken.by_turn.entry(turn.clone()).or_default().insert(id, occupant.clone());
        drop(taken);
        Seat { seats: self.clone(), turn: turn.clone(), id, occupant, _permit: permit }
    }

    fn lock(&self) -> MutexGuard<'_, Occupants> {
        lock(&self.taken)
    }
}

impl Occupants {
    /// Asks the longest idle connection of the address with the most; of `turn` itself, if no other has more.
    fn ask_idle_to_leave(&mut self, turn: &Turn, now: Instant) {
        if self.search_after.is_some_and(|after| now < after) {
            return;
        }
        let most = self.by_turn.iter().max_by_key(|(own, seats)| (seats.len(), *own == turn));
        let idle = most.into_iter().flat_map(|(_, seats)| seats.values());
        let longest =
            idle.filter_map(|occupant| Some((occupant.idle_since()?, occupant))).min_by_key(|(since, _)| *since);
        match longest {
            Some((_, occupant)) => occupant.ask_to_leave(),
            None => self.search_after = Some(now + SEARCH_PAUSE),
        }
    }
}

impl Occupant {
    /// `None`: it is not idle, or makes way already.
    fn idle_since(&self) -> Option<Instant> {
        if self.asked.load(Ordering::SeqCst) {
            return None;
        }
        lock(&self.watch).upgrade()?.idle_since()
    }

    fn ask_to_leave(&self) {
        self.asked.store(true, Ordering::SeqCst);
        self.bell.notify_one();
    }
}

impl Seat {
    /// `watch` knows from here on whether the connection is idle.
    pub fn occupied_by(&self, watch: &Arc<Watch>) {
        *lock(&self.occupant.watch) = Arc::downgrade(watch);
    }

    /// Returns once the connection shall make way for another; it is idle then.
    pub async fn is_wanted(&self) {
        loop {
            self.occupant.bell.notified().await;
            self.occupant.asked.store(false, Ordering::SeqCst);
            if self.occupant.idle_since().is_some() {
                return;
            }
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.lock();
        if let Some(seats) = taken.by_turn.get_mut(&self.turn) {
            seats.remove(&self.id);
            if seats.is_empty() {
                taken.by_turn.remove(&self.turn);
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
    fn seated(seats: &Arc<Seats>, name: &str) -> (Seat, Arc<Watch>) {
        let Ok(Admission::Seated(seat)) = seats.ask(BOUNDS, &of(name)) else { panic!("no seat") };
        let watch = Arc::new(Watch::new(None));
        seat.occupied_by(&watch);
        (seat, watch)
    }

    fn is_wanted(seat: &Seat) -> bool {
        seat.is_wanted().now_or_never().is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_idle_connection_of_the_address_with_the_most_makes_way() {
        let seats = Arc::<Seats>::default();
        let busy = seated(&seats, "a");
        let serving = crate::proxy::io::Activity::new(busy.1.clone()).begin();
        let other = seated(&seats, "b");
        tokio::time::advance(Duration::from_millis(10)).await;
        let (first, second) = (seated(&seats, "a"), seated(&seats, "a"));
        let Ok(Admission::Queued(waiting)) = seats.ask(BOUNDS, &of("b")) else { panic!("all are taken") };
        assert!(!is_wanted(&busy.0) && !is_wanted(&other.0) && !is_wanted(&second.0));
        assert!(is_wanted(&first.0));
        drop(first);
        let permit = waiting.now_or_never().expect("the seat is free").unwrap();
        let third = seats.seat(permit, &of("b"));
        let watch = Arc::new(Watch::new(None));
        third.occupied_by(&watch);
        // Both have as many: its own.
        let Ok(Admission::Queued(_waiting)) = seats.ask(BOUNDS, &of("b")) else { panic!("all are taken") };
        assert!(is_wanted(&other.0) && !is_wanted(&second.0));
        drop((serving, busy, other, second, third));
        assert!(seats.lock().by_turn.is_empty());
    }
}
