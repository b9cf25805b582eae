//! What a worker holds of one upstream: idle connections, shared ones, and what is known of it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::Version;
use hyper::client::conn::http1::SendRequest;
use prometheus::IntGauge;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::super::body::RequestBody;
use super::super::error::{Fault, ProxyError};
use super::gate::{Full, Gate, Gates, Permit};
use super::heard::Heard;
use super::shared::{Shared, Stream};
use super::{Key, Protocol};
use crate::dial::Forwarding;
use crate::model::origin::Scheme;
use crate::snapshot::Snapshot;

pub struct Entry {
    pub gate: Arc<Gate>,
    pub idle: RefCell<Vec<Idle>>,
    pub shared: RefCell<Vec<Rc<Shared>>>,
    /// What the last connection spoke; `None`: nobody knows yet, or the last attempt failed.
    pub spoken: Cell<Option<Version>>,
    pub dialing: Cell<bool>,
    pub dialed: Notify,
    pub idle_gauge: IntGauge,
}

pub struct Idle {
    pub sender: Sender,
    pub since: Instant,
}

/// A connection over HTTP/1.1.
pub struct Sender {
    pub request: SendRequest<RequestBody>,
    /// It leads to a proxy.
    pub forwarding: Option<Forwarding>,
    pub heard: Heard,
    pub counted: Counted,
}

/// Counts a connection while it is open.
pub struct Counted(RefCell<IntGauge>);

impl Counted {
    pub fn new(state: &IntGauge) -> Counted {
        state.inc();
        Counted(RefCell::new(state.clone()))
    }

    pub fn move_to(&self, state: &IntGauge) {
        state.inc();
        self.0.replace(state.clone()).dec();
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.borrow().dec();
    }
}

/// What one exchange has of a connection.
pub enum Link {
    Alone(Sender),
    Among(Stream),
}

impl Link {
    pub fn heard(&self) -> &Heard {
        match self {
            Link::Alone(sender) => &sender.heard,
            Link::Among(stream) => stream.heard(),
        }
    }

    pub fn is_on(&self, shared: &Rc<Shared>) -> bool {
        matches!(self, Link::Among(stream) if stream.is_on(shared))
    }
}

impl Entry {
    pub fn new(key: &Key, gates: &Gates, idle: &IntGauge) -> Entry {
        Entry {
            // One bound for the origin, whatever is spoken.
            gate: gates.get(&Key { protocol: Protocol::Any, ..key.clone() }),
            idle: RefCell::default(),
            shared: RefCell::default(),
            spoken: Cell::new(match (key.origin.scheme, key.protocol) {
                (Scheme::Http, Protocol::Any) | (_, Protocol::WebSocket) => Some(Version::HTTP_11),
                _ => None,
            }),
            dialing: Cell::new(false),
            dialed: Notify::new(),
            idle_gauge: idle.clone(),
        }
    }

    pub async fn wait_for_place(&self, snapshot: &Snapshot) -> Result<Permit, Fault> {
        let limits = &snapshot.limits;
        let place = self.gate.enter(limits.per_upstream, limits.queued_per_upstream);
        match timeout(snapshot.timeouts.connect, place).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(Full)) => Err(ProxyError::Overloaded.because("limits.queued_per_upstream is reached")),
            Err(_) => Err(ProxyError::Overloaded.because("no place below limits.per_upstream became free")),
        }
    }

    /// The connection that was used last and is ready for another request. Older ones are left to `sweep`, so that a
    /// checkout costs the same however many are idle.
    pub fn take_idle(&self, keep_alive: Duration) -> Option<Sender> {
        let mut idle = self.idle.borrow_mut();
        let now = Instant::now();
        for at in (0..idle.len()).rev() {
            if idle[at].is_over(now, keep_alive) {
                idle.remove(at);
            } else if idle[at].sender.request.is_ready() {
                return Some(idle.remove(at).sender);
            }
        }
        None
    }
}

/// One who opens a connection; at its end the others look again.
pub struct Dialing<'a>(&'a Entry);

impl<'a> Dialing<'a> {
    pub fn begin(entry: &'a Entry) -> Dialing<'a> {
        entry.dialing.set(true);
        Dialing(entry)
    }
}

impl Drop for Dialing<'_> {
    fn drop(&mut self) {
        self.0.dialing.set(false);
        self.0.dialed.notify_waiters();
    }
}

impl Idle {
    pub fn is_over(&self, now: Instant, keep_alive: Duration) -> bool {
        self.sender.request.is_closed() || now.duration_since(self.since) >= keep_alive
    }
}
