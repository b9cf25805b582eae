//! Upstream connections of one worker, indexed by destination; idle ones also by age.
//!
//! Invariants: an entry exists only while a request uses it or it has a connection, so an unused origin costs no
//! memory; the oldest idle connection across all entries is found in logarithmic time.

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
use super::entry::{Entry, Http1Conn, Idle, IdleId};
use super::gates::Gates;
use super::http2::Http2Conn;

pub struct Connections {
    entries: RefCell<HashMap<Key, Rc<Entry>>>,
    /// Ordered by idle time, longest first.
    idle: RefCell<BTreeMap<IdleId, (Instant, Rc<Entry>)>>,
    next_id: Cell<IdleId>,
    gates: Arc<Gates>,
    descriptors: Arc<Descriptors>,
    /// Index of this worker.
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

    pub fn find(self: &Rc<Self>, key: &Key) -> Option<EntryRef> {
        let entry = self.entries.borrow().get(key).cloned()?;
        Some(self.hold(entry))
    }

    /// Returns the entry of `key`, creating it if missing. The egress policy must have permitted the destination.
    pub fn find_or_add(self: &Rc<Self>, key: Key) -> EntryRef {
        if let Some(held) = self.find(&key) {
            return held;
        }
        // One bound for the origin, across protocols.
        let gate = self.gates.get(key.of_any_protocol());
        let entry = Rc::new(Entry::new(key.clone(), gate));
        self.entries.borrow_mut().insert(key, entry.clone());
        self.hold(entry)
    }

    fn hold(self: &Rc<Self>, entry: Rc<Entry>) -> EntryRef {
        entry.users.set(entry.users.get() + 1);
        EntryRef { entry, connections: self.clone() }
    }

    fn remove_if_unused(&self, entry: &Rc<Entry>) {
        if entry.is_unused() {
            let mut entries = self.entries.borrow_mut();
            if entries.get(&entry.key).is_some_and(|found| Rc::ptr_eq(found, entry)) {
                entries.remove(&entry.key);
            }
        }
    }

    /// Records that a connection of `entry` has become idle.
    fn record_idle(&self, entry: &Rc<Entry>, now: Instant) -> IdleId {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        self.idle.borrow_mut().insert(id, (now, entry.clone()));
        self.publish();
        id
    }

    /// Records that a connection is no longer idle, or has closed.
    fn record_used(&self, id: IdleId) {
        self.idle.borrow_mut().remove(&id);
        self.publish();
    }

    fn publish(&self) {
        let idle = self.idle.borrow();
        let oldest = idle.first_key_value().map(|(_, (since, _))| *since);
        self.descriptors.publish(self.worker, idle.len(), oldest);
    }

    /// Closes the connection that has been idle longest. Returns false if none is idle.
    fn close_oldest(&self) -> bool {
        let oldest = self.idle.borrow_mut().pop_first();
        self.publish();
        let Some((id, (_, entry))) = oldest else { return false };
        entry.close(id);
        self.remove_if_unused(&entry);
        true
    }

    /// Called after a connection has become idle: dials waiting on any worker take precedence over keeping it.
    fn yield_descriptor(&self) {
        if self.descriptors.has_waiting_dials() {
            self.close_oldest();
        }
    }

    /// Closes connections that have been idle for `keep_alive`.
    pub fn close_expired(&self, keep_alive: Duration) {
        let now = Instant::now();
        let is_over = |since: Instant| now.duration_since(since) >= keep_alive;
        while self.idle.borrow().first_key_value().is_some_and(|(_, (since, _))| is_over(*since)) {
            self.close_oldest();
        }
    }

    /// Closes idle connections whenever dials of any worker need their descriptors. Never returns.
    pub async fn close_on_demand(&self) {
        loop {
            let requested = self.descriptors.close_requests(self.worker).await;
            let closed = (0..requested).take_while(|_| self.close_oldest()).count();
            for _ in closed..requested {
                self.descriptors.request_close();
            }
        }
    }
}

/// A reference to an entry, which keeps it in the pool.
pub struct EntryRef {
    entry: Rc<Entry>,
    connections: Rc<Connections>,
}

impl EntryRef {
    /// Takes the most recently used idle connection that is ready for another request.
    pub fn take_idle(&self, keep_alive: Duration) -> Option<Http1Conn> {
        let now = Instant::now();
        let mut idle = self.entry.idle.borrow_mut();
        for at in (0..idle.len()).rev() {
            let is_over = idle[at].is_over(now, keep_alive);
            if is_over || idle[at].conn.sender.is_ready() {
                let taken = idle.remove(at);
                self.connections.record_used(taken.id);
                if !is_over {
                    return Some(taken.conn);
                }
            }
        }
        None
    }

    /// Returns a connection to the pool.
    pub fn put_idle(&self, conn: Http1Conn) {
        conn.gauge.set_idle(&self.connections.idle_gauge);
        let since = Instant::now();
        let id = self.connections.record_idle(&self.entry, since);
        self.entry.idle.borrow_mut().push(Idle { conn, since, id });
        self.connections.yield_descriptor();
    }

    /// A weak reference, through which a connection reports that it has become idle or has closed.
    pub fn downgrade(&self) -> WeakEntryRef {
        WeakEntryRef { entry: Rc::downgrade(&self.entry), connections: Rc::downgrade(&self.connections) }
    }
}

impl Deref for EntryRef {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        &self.entry
    }
}

impl Drop for EntryRef {
    fn drop(&mut self) {
        self.entry.users.set(self.entry.users.get() - 1);
        self.connections.remove_if_unused(&self.entry);
    }
}

/// A weak reference from a connection to its entry.
#[derive(Clone)]
pub struct WeakEntryRef {
    entry: Weak<Entry>,
    connections: Weak<Connections>,
}

impl WeakEntryRef {
    /// An HTTP/2 connection has no stream left.
    pub fn on_idle(&self, conn: &Http2Conn) {
        if let (Some(entry), Some(connections)) = (self.entry.upgrade(), self.connections.upgrade()) {
            conn.idle.set(Some(connections.record_idle(&entry, Instant::now())));
            connections.yield_descriptor();
        }
    }

    /// An HTTP/2 connection is no longer idle, or has closed.
    pub fn on_not_idle(&self, conn: &Http2Conn) {
        if let (Some(id), Some(connections)) = (conn.idle.take(), self.connections.upgrade()) {
            connections.record_used(id);
        }
    }

    /// A connection has closed: removes it, and its entry if that is now unused.
    pub fn on_closed(&self) {
        if let (Some(entry), Some(connections)) = (self.entry.upgrade(), self.connections.upgrade()) {
            for id in entry.remove_closed() {
                connections.record_used(id);
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
    fn an_entry_is_removed_with_its_last_user() {
        let (gates, descriptors) = (Arc::<Gates>::default(), Arc::new(Descriptors::new(OpenFiles::of(600), 1)));
        let gauge = IntGauge::new("idle", "idle").unwrap();
        let connections = Rc::new(Connections::new(gates.clone(), descriptors, 0, gauge));
        let key = |host| Key::of_origin(Origin::new(Scheme::Http, Authority::parse(host).unwrap()));
        let first = connections.find_or_add(key("a.test"));
        let again = connections.find(&key("a.test")).expect("the entry is in use");
        let other = connections.find_or_add(key("b.test"));
        assert!(Rc::ptr_eq(&first.entry, &again.entry) && !Rc::ptr_eq(&first.entry, &other.entry));
        drop(first);
        assert!(connections.find(&key("a.test")).is_some(), "the entry is still in use");
        drop((again, other));
        assert!(connections.find(&key("a.test")).is_none());
        assert_eq!((connections.entries.borrow().len(), gates.count()), (0, 0));
        assert!(!connections.close_oldest());
    }
}
