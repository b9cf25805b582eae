//! How far the sending of one request has come, and whose silence it is that the other side waits for.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// Where a request body stands, and since when: tells whose silence it is.
#[derive(Debug, Clone, Copy)]
pub enum Sending {
    /// Waiting for the client's next bytes.
    Client(Instant),
    /// The upstream has what there is and asks for no more.
    Upstream(Instant),
    /// All of it was handed over.
    Done(Instant),
}

/// The progress of sending one request.
#[derive(Debug)]
pub struct Progress {
    sending: Cell<Sending>,
    done: Notify,
}

/// Who has been silent for too long.
#[derive(Debug, PartialEq, Eq)]
pub enum Silent {
    Client,
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
        matches!(self.sending.get(), Sending::Client(_))
    }

    /// Since when the upstream has asked for no more of the body.
    pub fn stalled_since(&self) -> Option<Instant> {
        match self.sending.get() {
            Sending::Upstream(since) => Some(since),
            Sending::Client(_) | Sending::Done(_) => None,
        }
    }

    /// Has the body been handed over?
    pub fn is_done(&self) -> bool {
        matches!(self.sending.get(), Sending::Done(_))
    }

    /// Returns when the body has been handed over, because the deadline may then come sooner.
    pub async fn done(&self) {
        self.done.notified().await;
    }

    /// When something of the body was last handed over, or asked for.
    pub fn moved_at(&self) -> Instant {
        match self.sending.get() {
            Sending::Client(since) | Sending::Upstream(since) | Sending::Done(since) => since,
        }
    }

    /// When the present silence becomes too long, and whose it then is.
    pub fn deadline(&self, idle: Duration, response_head: Duration) -> (Instant, Silent) {
        match self.sending.get() {
            Sending::Client(since) => (since + idle, Silent::Client),
            Sending::Upstream(since) => (since + idle, Silent::Upstream),
            Sending::Done(since) => (since + response_head, Silent::Upstream),
        }
    }
}
