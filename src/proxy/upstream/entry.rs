//! One worker's pool entry for one destination: idle HTTP/1.1 connections, HTTP/2 connections, and the last protocol
//! seen.

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
use super::counting::BytesRead;
use super::destination::{Key, Protocol};
use super::gates::OriginGate;
use super::http2::{Http2Conn, Http2Stream};
use crate::dial::Forwarding;
use crate::gate::{Gate, Permit};
use crate::model::origin::Scheme;

/// Concurrent dials per worker to one destination while it is not known whether it speaks HTTP/2.
const DIALS_MAX: usize = 4;

/// Identifies an idle connection of a worker. IDs ascend, so the smallest has been idle longest.
pub type IdleId = u64;

pub struct Entry {
    pub key: Key,
    gate: OriginGate,
    /// Requests that hold this entry.
    pub users: Cell<usize>,
    pub idle: RefCell<Vec<Idle>>,
    pub http2_conns: RefCell<Vec<Rc<Http2Conn>>>,
    /// HTTP version of the last connection; `None`: unknown, or the last attempt failed.
    pub last_version: Cell<Option<Version>>,
    dials: Cell<usize>,
    changed: Notify,
}

pub struct Idle {
    pub conn: Http1Conn,
    pub since: Instant,
    pub id: IdleId,
}

/// An HTTP/1.1 connection.
pub struct Http1Conn {
    pub sender: SendRequest<RequestBody>,
    /// Set if the connection ends at an egress proxy.
    pub forwarding: Option<Forwarding>,
    pub bytes_read: BytesRead,
    pub gauge: ConnGauge,
}

/// Counts an open connection in the gauge, as idle or active.
pub struct ConnGauge {
    gauge: RefCell<IntGauge>,
    /// Held while the connection is active.
    in_use: RefCell<Option<Permit>>,
}

impl ConnGauge {
    pub fn active(active: &IntGauge, permit: Permit) -> ConnGauge {
        active.inc();
        ConnGauge { gauge: RefCell::new(active.clone()), in_use: RefCell::new(Some(permit)) }
    }

    pub fn set_active(&self, active: &IntGauge, permit: Permit) {
        self.move_to(active);
        self.in_use.replace(Some(permit));
    }

    pub fn set_idle(&self, idle: &IntGauge) {
        self.move_to(idle);
        self.in_use.take();
    }

    pub fn reclaim_permit(&self) -> Option<Permit> {
        self.in_use.take()
    }

    fn move_to(&self, state: &IntGauge) {
        state.inc();
        self.gauge.replace(state.clone()).dec();
    }
}

impl Drop for ConnGauge {
    fn drop(&mut self) {
        self.gauge.borrow().dec();
    }
}

/// A connection as one exchange uses it: a whole HTTP/1.1 connection, or a stream on an HTTP/2 one.
pub enum Conn {
    Http1(Http1Conn),
    Http2(Http2Stream),
}

impl Conn {
    pub fn bytes_read(&self) -> &BytesRead {
        match self {
            Conn::Http1(conn) => &conn.bytes_read,
            Conn::Http2(stream) => stream.bytes_read(),
        }
    }

    /// Takes back the permit of a dead connection. The first request to call this gets it.
    pub fn reclaim_permit(&self) -> Option<Permit> {
        match self {
            Conn::Http1(conn) => conn.gauge.reclaim_permit(),
            Conn::Http2(stream) => stream.reclaim_permit(),
        }
    }

    pub fn is_on(&self, conn: &Rc<Http2Conn>) -> bool {
        matches!(self, Conn::Http2(stream) if stream.is_on(conn))
    }
}

impl Entry {
    pub fn new(key: Key, gate: OriginGate) -> Entry {
        let last_version = match (key.origin.scheme, key.protocol) {
            (Scheme::Http, Protocol::Any) | (_, Protocol::WebSocket) => Some(Version::HTTP_11),
            _ => None,
        };
        Entry {
            key,
            gate,
            users: Cell::new(0),
            idle: RefCell::default(),
            http2_conns: RefCell::default(),
            last_version: Cell::new(last_version),
            dials: Cell::new(0),
            changed: Notify::new(),
        }
    }

    /// Bounds the requests in flight to the origin, across all workers.
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate.gate
    }

    pub fn is_unused(&self) -> bool {
        self.users.get() == 0 && self.idle.borrow().is_empty() && self.http2_conns.borrow().is_empty()
    }

    /// Closes one idle connection.
    pub fn close(&self, id: IdleId) {
        self.idle.borrow_mut().retain(|idle| idle.id != id);
        self.http2_conns.borrow_mut().retain(|conn| conn.idle.get() != Some(id));
    }

    /// Removes closed connections; returns the IDs of those that were idle.
    pub fn remove_closed(&self) -> Vec<IdleId> {
        let mut closed = Vec::new();
        self.idle.borrow_mut().retain(|idle| {
            let is_closed = idle.conn.sender.is_closed();
            closed.extend(is_closed.then_some(idle.id));
            !is_closed
        });
        self.http2_conns.borrow_mut().retain(|conn| {
            let is_closed = conn.is_closed();
            closed.extend(conn.idle.get().filter(|_| is_closed));
            !is_closed
        });
        closed
    }

    /// Starts a dial, unless enough are in progress. Where the destination may speak HTTP/2, one request dials and the
    /// others wait for it; once that wait (`waited`) has failed to reveal the protocol, up to [`DIALS_MAX`] dial
    /// concurrently.
    pub fn try_dial(&self, waited: bool) -> Option<Dialing<'_>> {
        let dials_max = match self.last_version.get() {
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

    /// Returns when a dial has ended, or an idle HTTP/2 connection is active again.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Wakes the requests that wait in [`Entry::changed`].
    pub fn wake_waiters(&self) {
        self.changed.notify_waiters();
    }
}

/// A dial in progress; its end wakes the waiting requests.
pub struct Dialing<'a>(&'a Entry);

impl Drop for Dialing<'_> {
    fn drop(&mut self) {
        self.0.dials.set(self.0.dials.get() - 1);
        self.0.wake_waiters();
    }
}

impl Idle {
    pub fn is_over(&self, now: Instant, keep_alive: Duration) -> bool {
        self.conn.sender.is_closed() || now.duration_since(self.since) >= keep_alive
    }
}
