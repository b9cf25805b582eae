//! The upstream connections of one worker, by destination; the idle ones also by their age.
//!
//! Invariants: an entry exists while a request uses it or it has a connection, so an origin that is not used takes no
//! memory; the oldest idle connection of all entries is found at once, however many there are.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::ops::Deref;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use prometheus::IntGauge;
use tokio::time::Instant;

use super::descriptors::Descriptors;
use super::destination::Key;
use super::entry::{Entry, Idle, IdleId, Sender};
use super::gates::Gates;
use super::http2::Http2Conn;

pub struct Connections {
    entries: RefCell<HashMap<Key, Rc<Entry>>>,
    /// The longest idle first.
    idle: RefCell<BTreeMap<IdleId, (Instant, Rc<Entry>)>>,
    next_id: Cell<IdleId>,
    gates: Arc<Gates>,
    descriptors: Arc<Descriptors>,
    /// This worker's number.
    worker: usize,
    idle_gauge: IntGauge,
}

impl Connections {
    pub fn new(gates: Arc<Gates>, descriptors: Arc<Descriptors>, worker: usize, idle_gauge: IntGauge) -> Connections {
        Connections {
            entries: RefCell::default(),
            idle: RefCell::default(),
            next_id: Cell::default(),
            gates,
            descriptors,
            worker,
            idle_gauge,
        }
    }

    /// The entry of `key`, if there is one.
    pub fn find(self: &Rc<Self>, key: &Key) -> Option<Held> {
        let entry = self.entries.borrow().get(key).cloned()?;
        Some(self.hold(entry))
    }

    /// The entry of `key`, made if there is none. The destination must be one that may be reached.
    pub fn find_or_add(self: &Rc<Self>, key: Key) -> Held {
        if let Some(held) = self.find(&key) {
            return held;
        }
        // One bound for the origin, whatever is spoken.
        let gate = self.gates.of(key.of_any_protocol());
        let entry = Rc::new(Entry::new(key.clone(), gate));
        self.entries.borrow_mut().insert(key, entry.clone());
        self.hold(entry)
    }

    fn hold(self: &Rc<Self>, entry: Rc<Entry>) -> Held {
        entry.users.set(entry.users.get() + 1);
        Held { entry, connections: self.clone() }
    }

    fn remove_if_unused(&self, entry: &Rc<Entry>) {
        if entry.is_unused() {
            let mut entries = self.entries.borrow_mut();
            if entries.get(&entry.key).is_some_and(|found| Rc::ptr_eq(found, entry)) {
                entries.remove(&entry.key);
            }
        }
    }

    /// Notes that a connection of `entry` has become idle.
    fn note_idle(&self, entry: &Rc<Entry>, now: Instant) -> IdleId {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        self.idle.borrow_mut().insert(id, (now, entry.clone()));
        self.publish();
        id
    }

    /// Notes that a connection is no longer idle, or no longer there.
    fn note_used(&self, id: IdleId) {
        self.idle.borrow_mut().remove(&id);
        self.publish();
    }

    fn publish(&self) {
        let idle = self.idle.borrow();
        let oldest = idle.first_key_value().map(|(_, (since, _))| *since);
        self.descriptors.publish(self.worker, idle.len(), oldest);
    }

    /// Closes the connection that has been idle for longest; false: none is idle.
    fn close_oldest(&self) -> bool {
        let oldest = self.idle.borrow_mut().pop_first();
        self.publish();
        let Some((id, (_, entry))) = oldest else { return false };
        entry.close(id);
        self.remove_if_unused(&entry);
        true
    }

    /// After a connection has become idle: dials that wait come first, of whatever worker they are.
    fn yield_descriptor(&self) {
        if self.descriptors.are_wanted() {
            self.close_oldest();
        }
    }

    /// Closes what has been idle for too long.
    pub fn close_expired(&self, keep_alive: Duration) {
        let now = Instant::now();
        let is_over = |since: Instant| now.duration_since(since) >= keep_alive;
        while self.idle.borrow().first_key_value().is_some_and(|(_, (since, _))| is_over(*since)) {
            self.close_oldest();
        }
    }

    /// Closes idle connections when dials of any worker need their descriptors, for as long as this worker runs.
    pub async fn close_when_asked(&self) {
        loop {
            let asked = self.descriptors.asked_of(self.worker).await;
            let closed = (0..asked).take_while(|_| self.close_oldest()).count();
            for _ in closed..asked {
                self.descriptors.ask_for_one();
            }
        }
    }
}

/// An entry in use.
pub struct Held {
    entry: Rc<Entry>,
    connections: Rc<Connections>,
}

impl Held {
    /// A connection of ours that is ready for another request, the one that was used last.
    pub fn take_idle(&self, keep_alive: Duration) -> Option<Sender> {
        let now = Instant::now();
        let mut idle = self.entry.idle.borrow_mut();
        for at in (0..idle.len()).rev() {
            let is_over = idle[at].is_over(now, keep_alive);
            if is_over || idle[at].sender.request.is_ready() {
                let taken = idle.remove(at);
                self.connections.note_used(taken.id);
                if !is_over {
                    return Some(taken.sender);
                }
            }
        }
        None
    }

    /// Keeps a connection for the next request.
    pub fn put_idle(&self, sender: Sender) {
        sender.counted.become_idle(&self.connections.idle_gauge);
        let since = Instant::now();
        let id = self.connections.note_idle(&self.entry, since);
        self.entry.idle.borrow_mut().push(Idle { sender, since, id });
        self.connections.yield_descriptor();
    }

    /// For what has to know when a connection becomes idle, or ends.
    pub fn home(&self) -> Home {
        Home { entry: Rc::downgrade(&self.entry), connections: Rc::downgrade(&self.connections) }
    }
}

impl Deref for Held {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        &self.entry
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.entry.users.set(self.entry.users.get() - 1);
        self.connections.remove_if_unused(&self.entry);
    }
}

/// Where a connection belongs, which does not keep that in memory.
#[derive(Clone)]
pub struct Home {
    entry: Weak<Entry>,
    connections: Weak<Connections>,
}

impl Home {
    /// A connection over HTTP/2 has no request left.
    pub fn has_become_idle(&self, shared: &Http2Conn) {
        if let (Some(entry), Some(connections)) = (self.entry.upgrade(), self.connections.upgrade()) {
            shared.idle.set(Some(connections.note_idle(&entry, Instant::now())));
            connections.yield_descriptor();
        }
    }

    /// A connection over HTTP/2 is not idle, or no longer there.
    pub fn is_not_idle(&self, shared: &Http2Conn) {
        if let (Some(id), Some(connections)) = (shared.idle.take(), self.connections.upgrade()) {
            connections.note_used(id);
        }
    }

    /// A connection has ended: it is forgotten if it was idle, and so is its entry if it was the last one.
    pub fn has_ended(&self) {
        if let (Some(entry), Some(connections)) = (self.entry.upgrade(), self.connections.upgrade()) {
            for id in entry.remove_closed() {
                connections.note_used(id);
            }
            connections.remove_if_unused(&entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::origin::{Authority, Origin, Scheme};
    use crate::telemetry::system::OpenFiles;

    #[test]
    fn a_destination_is_kept_while_it_is_used_and_no_longer() {
        let (gates, descriptors) = (Arc::<Gates>::default(), Arc::new(Descriptors::new(OpenFiles::of(600), 1)));
        let gauge = IntGauge::new("idle", "idle").unwrap();
        let connections = Rc::new(Connections::new(gates.clone(), descriptors, 0, gauge));
        let key = |host| Key::of_origin(Origin::new(Scheme::Http, Authority::parse(host).unwrap()));
        let first = connections.find_or_add(key("a.test"));
        let again = connections.find(&key("a.test")).expect("it is used");
        let other = connections.find_or_add(key("b.test"));
        assert!(Rc::ptr_eq(&first.entry, &again.entry) && !Rc::ptr_eq(&first.entry, &other.entry));
        drop(first);
        assert!(connections.find(&key("a.test")).is_some(), "it is still used");
        drop((again, other));
        assert!(connections.find(&key("a.test")).is_none());
        assert_eq!((connections.entries.borrow().len(), gates.count()), (0, 0));
        assert!(!connections.close_oldest());
    }
}
