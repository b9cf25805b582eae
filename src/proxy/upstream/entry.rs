//! What a worker has of one destination: idle connections, shared ones, and what is known of it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::Version;
use hyper::client::conn::http1::SendRequest;
use prometheus::IntGauge;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::super::body::RequestBody;
use super::destination::{Key, Protocol};
use super::gates::GateOf;
use super::heard::Heard;
use super::http2::{Http2Conn, Stream};
use crate::dial::Forwarding;
use crate::gate::{Gate, Permit};
use crate::model::origin::Scheme;

/// Dials under way to one destination, for each worker, while it is not known whether requests may share a connection there.
const DIALS_MAX: usize = 4;

/// Names an idle connection of a worker; the longer idle, the smaller.
pub type IdleId = u64;

pub struct Entry {
    pub key: Key,
    gate: GateOf,
    /// Requests that use it.
    pub users: Cell<usize>,
    pub idle: RefCell<Vec<Idle>>,
    pub shared: RefCell<Vec<Rc<Http2Conn>>>,
    /// What the last connection spoke; `None`: not known yet, or the last attempt failed.
    pub spoken: Cell<Option<Version>>,
    dials: Cell<usize>,
    changed: Notify,
}

pub struct Idle {
    pub sender: Sender,
    pub since: Instant,
    pub id: IdleId,
}

/// A connection over HTTP/1.1.
pub struct Sender {
    pub request: SendRequest<RequestBody>,
    /// It leads to a proxy.
    pub forwarding: Option<Forwarding>,
    pub heard: Heard,
    pub counted: Counted,
}

/// Counts a connection while it is open, as idle or as in use.
pub struct Counted {
    gauge: RefCell<IntGauge>,
    /// Held while the connection is in use.
    in_use: RefCell<Option<Permit>>,
}

impl Counted {
    pub fn in_use(active: &IntGauge, permit: Permit) -> Counted {
        active.inc();
        Counted { gauge: RefCell::new(active.clone()), in_use: RefCell::new(Some(permit)) }
    }

    pub fn become_used(&self, active: &IntGauge, permit: Permit) {
        self.move_to(active);
        self.in_use.replace(Some(permit));
    }

    pub fn become_idle(&self, idle: &IntGauge) {
        self.move_to(idle);
        self.in_use.take();
    }

    pub fn reclaim(&self) -> Option<Permit> {
        self.in_use.take()
    }

    fn move_to(&self, state: &IntGauge) {
        state.inc();
        self.gauge.replace(state.clone()).dec();
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.gauge.borrow().dec();
    }
}

/// What one exchange has of a connection.
pub enum Link {
    Http1(Sender),
    Http2(Stream),
}

impl Link {
    pub fn heard(&self) -> &Heard {
        match self {
            Link::Http1(sender) => &sender.heard,
            Link::Http2(stream) => stream.heard(),
        }
    }

    /// The right to use the connection, of one that is dead; for the first request that asks.
    pub fn reclaim(&self) -> Option<Permit> {
        match self {
            Link::Http1(sender) => sender.counted.reclaim(),
            Link::Http2(stream) => stream.reclaim(),
        }
    }

    pub fn is_on(&self, shared: &Rc<Http2Conn>) -> bool {
        matches!(self, Link::Http2(stream) if stream.is_on(shared))
    }
}

impl Entry {
    pub fn new(key: Key, gate: GateOf) -> Entry {
        let spoken = match (key.origin.scheme, key.protocol) {
            (Scheme::Http, Protocol::Any) | (_, Protocol::WebSocket) => Some(Version::HTTP_11),
            _ => None,
        };
        Entry {
            key,
            gate,
            users: Cell::new(0),
            idle: RefCell::default(),
            shared: RefCell::default(),
            spoken: Cell::new(spoken),
            dials: Cell::new(0),
            changed: Notify::new(),
        }
    }

    /// Bounds the requests in flight to the origin, over all workers.
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate.gate
    }

    pub fn is_unused(&self) -> bool {
        self.users.get() == 0 && self.idle.borrow().is_empty() && self.shared.borrow().is_empty()
    }

    /// Is there a connection that no request uses?
    pub fn has_idle(&self) -> bool {
        !self.idle.borrow().is_empty() || self.shared.borrow().iter().any(|shared| shared.idle.get().is_some())
    }

    /// Closes one idle connection.
    pub fn close(&self, id: IdleId) {
        self.idle.borrow_mut().retain(|idle| idle.id != id);
        self.shared.borrow_mut().retain(|shared| shared.idle.get() != Some(id));
    }

    /// Forgets the connections that are closed; those of them that were idle.
    pub fn remove_closed(&self) -> Vec<IdleId> {
        let mut closed = Vec::new();
        self.idle.borrow_mut().retain(|idle| {
            let is_closed = idle.sender.request.is_closed();
            closed.extend(is_closed.then_some(idle.id));
            !is_closed
        });
        self.shared.borrow_mut().retain(|shared| {
            let is_closed = shared.is_closed();
            closed.extend(shared.idle.get().filter(|_| is_closed));
            !is_closed
        });
        closed
    }

    /// A turn to dial. Where requests may share a connection, the first of them dials and the others wait for the outcome,
    /// not each for its own dial; a few dial side by side where that outcome (`waited`) told nothing.
    pub fn dial(&self, waited: bool) -> Option<Dialing<'_>> {
        let dials_max = match self.spoken.get() {
            Some(Version::HTTP_11) => usize::MAX,
            None if waited => DIALS_MAX,
            _ => 1,
        };
        let dials = self.dials.get();
        (dials < dials_max).then(|| {
            self.dials.set(dials + 1);
            Dialing(self)
        })
    }

    /// Returns when a dial has ended, or a shared connection is in use again.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Wakes the requests that wait for a change.
    pub fn announce(&self) {
        self.changed.notify_waiters();
    }
}

/// A dial under way; at its end the others look again.
pub struct Dialing<'a>(&'a Entry);

impl Drop for Dialing<'_> {
    fn drop(&mut self) {
        self.0.dials.set(self.0.dials.get() - 1);
        self.0.announce();
    }
}

impl Idle {
    pub fn is_over(&self, now: Instant, keep_alive: Duration) -> bool {
        self.sender.request.is_closed() || now.duration_since(self.since) >= keep_alive
    }
}
