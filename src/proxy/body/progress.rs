//! Progress of sending one request, and which peer is silent.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// State of sending a request body, with the time of the last change.
#[derive(Debug, Clone, Copy)]
pub enum Sending {
    /// Waiting for more bytes from the caller.
    AwaitingCaller(Instant),
    /// Waiting for the upstream connection to poll for more.
    AwaitingUpstream(Instant),
    /// The whole body was handed to the upstream connection.
    Done(Instant),
}

/// The progress of sending one request.
#[derive(Debug)]
pub struct Progress {
    sending: Cell<Sending>,
    done: Notify,
}

/// The peer that an exchange waits for.
#[derive(Debug, PartialEq, Eq)]
pub enum SilentPeer {
    Caller,
    Upstream,
}

impl Progress {
    pub fn new() -> Rc<Progress> {
        Rc::new(Progress { sending: Cell::new(Sending::Done(Instant::now())), done: Notify::new() })
    }

    pub fn set(&self, sending: Sending) {
        let was_done = matches!(self.sending.replace(sending), Sending::Done(_));
        if !was_done && matches!(sending, Sending::Done(_)) {
            self.done.notify_one();
        }
    }

    pub fn is_waiting_for_caller(&self) -> bool {
        matches!(self.sending.get(), Sending::AwaitingCaller(_))
    }

    /// When the wait for the upstream began; `None` if the body is not waiting for it.
    pub fn stalled_since(&self) -> Option<Instant> {
        match self.sending.get() {
            Sending::AwaitingUpstream(since) => Some(since),
            Sending::AwaitingCaller(_) | Sending::Done(_) => None,
        }
    }

    /// True if the whole body was handed to the upstream connection.
    pub fn is_done(&self) -> bool {
        matches!(self.sending.get(), Sending::Done(_))
    }

    /// Waits until the whole body has been handed over. The deadline may then be earlier.
    pub async fn done(&self) {
        self.done.notified().await;
    }

    /// When a part of the body was last handed over or requested.
    pub fn moved_at(&self) -> Instant {
        match self.sending.get() {
            Sending::AwaitingCaller(since) | Sending::AwaitingUpstream(since) | Sending::Done(since) => since,
        }
    }

    /// The deadline of the current silence, and the silent peer.
    pub fn deadline(&self, idle: Duration, response_head: Duration) -> (Instant, SilentPeer) {
        match self.sending.get() {
            Sending::AwaitingCaller(since) => (since + idle, SilentPeer::Caller),
            Sending::AwaitingUpstream(since) => (since + idle, SilentPeer::Upstream),
            Sending::Done(since) => (since + response_head, SilentPeer::Upstream),
        }
    }
}
