//! What is known of a caller's connection: what is being served, since when it is silent, how much of a head has come.
//!
//! Not here: what happens to a caller that is late (`downstream`). A clock is read only where a silence begins or ends.

mod activity;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::time::Instant;

use super::frames::Frames;
use super::head_budget::{HeadBudget, HeadShare};
use super::interim::Saying;
use super::presence::Presence;
use super::socket::Socket;
use crate::model::Timeouts;
pub use activity::{Activity, Serving, Upload};

/// What hyper makes room for before it reads.
const HYPER_READ_BYTES: usize = 8 * 1024;
/// Memory of an HTTP/2 connection beyond that of an idle one over HTTP/1.1.
const HTTP2_CONNECTION_BYTES: usize = 10 * 1024;
/// Read over HTTP/2 before the first request that is sent to an upstream; a connection that sends more is closed.
const HTTP2_UNPROVEN_BYTES_MAX: usize = 256 * 1024;

/// Where a connection stands. Atomics, because hyper hands the stream over between threads when it is upgraded.
#[derive(Debug)]
pub struct Watch {
    epoch: Instant,
    /// Requests, and tunnels inside HTTP/2.
    serving: AtomicUsize,
    /// Many requests at once: what is read is no head, and no sign of one.
    multiplexed: AtomicBool,
    /// When the present silence, head or stall began; milliseconds since `epoch`.
    since_ms: AtomicU64,
    /// Over HTTP/1.1 what was read of the present head, over HTTP/2 the memory of what is unfinished.
    head_bytes: AtomicUsize,
    head_bytes_max: AtomicUsize,
    /// Read over HTTP/2 in all.
    http2_bytes: AtomicUsize,
    /// Of the memory for unfinished heads, once it is known which version of HTTP is spoken.
    share: OnceLock<HeadShare>,
    /// Are automatic responses held back?
    guarded: AtomicBool,
    /// A request was handed over, and its response is not yet written to its end.
    responding: AtomicBool,
    /// Was an automatic response held back?
    held_back: AtomicBool,
    /// Has anything come, of which the rest of this knows nothing yet?
    begun: AtomicBool,
    /// Has this connection served a request?
    served: AtomicBool,
    /// Since when the caller reads nothing; 0: it reads.
    blocked_since_ms: AtomicU64,
    /// Wakes the response body that waits until the caller reads again.
    unblocked: AtomicWaker,
    /// Request bodies that are not read to their end; at most one but for moments.
    uploads: AtomicUsize,
    /// Was a body left unread?
    abandoned: AtomicBool,
    pub saying: Saying,
    pub presence: Presence,
}

/// With what a caller is late.
#[derive(Debug, PartialEq, Eq)]
pub enum Overdue {
    Head,
    Idle,
    Stalled,
}

impl Watch {
    pub fn new(socket: Option<Socket>) -> Watch {
        Watch {
            epoch: Instant::now(),
            serving: AtomicUsize::new(0),
            multiplexed: AtomicBool::new(false),
            since_ms: AtomicU64::new(0),
            head_bytes: AtomicUsize::new(0),
            head_bytes_max: AtomicUsize::new(usize::MAX),
            http2_bytes: AtomicUsize::new(0),
            share: OnceLock::new(),
            guarded: AtomicBool::new(false),
            responding: AtomicBool::new(false),
            held_back: AtomicBool::new(false),
            begun: AtomicBool::new(false),
            served: AtomicBool::new(false),
            blocked_since_ms: AtomicU64::new(0),
            unblocked: AtomicWaker::new(),
            uploads: AtomicUsize::new(0),
            abandoned: AtomicBool::new(false),
            saying: Saying::default(),
            presence: Presence::new(socket),
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn at(&self, ms: u64) -> Instant {
        self.epoch + Duration::from_millis(ms)
    }

    /// When the caller will be late, and with what; `None` while its request is being served.
    pub fn next(&self, timeouts: &Timeouts) -> Option<(Instant, Overdue)> {
        // The last bytes of an answer may still wait for the caller when nothing is being served any more.
        let blocked = self.blocked_since_ms.load(Ordering::Relaxed);
        if blocked > 0 {
            return Some((self.at(blocked) + timeouts.idle, Overdue::Stalled));
        }
        if self.is_serving() {
            return None;
        }
        let since = self.at(self.since_ms.load(Ordering::Relaxed));
        let begun = self.head_bytes.load(Ordering::Relaxed) > 0 && !self.is_multiplexed();
        Some(match (begun, self.served.load(Ordering::Relaxed)) {
            _ if self.uploads.load(Ordering::Relaxed) > 0 && !self.is_multiplexed() => {
                (since + timeouts.idle, Overdue::Idle)
            }
            (true, _) => (since + timeouts.client_head, Overdue::Head),
            (false, false) => (since + timeouts.client_head, Overdue::Idle),
            (false, true) => (since + timeouts.keep_alive, Overdue::Idle),
        })
    }

    /// Since when the connection waits for a request of which nothing has come; `None`: it does something else.
    pub fn idle_since(&self) -> Option<Instant> {
        let is_set = |flag: &AtomicBool| flag.load(Ordering::Relaxed);
        let has_bytes = |count: &AtomicUsize| count.load(Ordering::Relaxed) > 0;
        let is_first_begun = is_set(&self.begun) && !is_set(&self.served);
        let is_busy = self.is_serving() || is_set(&self.responding) || self.is_blocked() || has_bytes(&self.uploads);
        let is_idle = !(is_busy || is_first_begun || has_bytes(&self.head_bytes));
        is_idle.then(|| self.at(self.since_ms.load(Ordering::Relaxed)))
    }

    /// Something has come that will be read again.
    pub fn has_begun(&self) {
        self.begun.store(true, Ordering::Relaxed);
    }

    /// Does the caller read what is written to it? If not, `cx` is woken once it does.
    pub fn poll_unblocked(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.blocked_since_ms.load(Ordering::Relaxed) == 0 {
            return Poll::Ready(());
        }
        self.unblocked.register(cx.waker());
        match self.blocked_since_ms.load(Ordering::Relaxed) {
            0 => Poll::Ready(()),
            _ => Poll::Pending,
        }
    }

    /// Has more been read than may be, before a request?
    pub fn is_head_over(&self) -> bool {
        if self.is_serving() {
            return false;
        }
        match self.unproven_bytes() {
            Some(read) => read > HTTP2_UNPROVEN_BYTES_MAX,
            None => self.head_bytes.load(Ordering::Relaxed) > self.head_bytes_max.load(Ordering::Relaxed),
        }
    }

    /// Adjusts the connection's share of the memory for unfinished heads; false if there is none left.
    pub fn is_within_budget(&self) -> bool {
        self.share.get().is_none_or(|share| share.adjust(self.unfinished_head_bytes()))
    }

    /// An estimate of the memory that hyper holds for a head that is not complete, and for an HTTP/2 connection on which no
    /// request has been accepted.
    fn unfinished_head_bytes(&self) -> usize {
        let head = self.head_bytes.load(Ordering::Relaxed);
        match self.unproven_bytes() {
            Some(read) => HTTP2_CONNECTION_BYTES + 2 * read.min(HTTP2_UNPROVEN_BYTES_MAX) + head,
            None if self.is_multiplexed() => head,
            None if head == 0 || self.is_serving() => 0,
            None => (head + HYPER_READ_BYTES).next_power_of_two(),
        }
    }

    /// What has been read over HTTP/2 of a caller none of whose requests has passed every check: any of it may still be held, because
    /// entries of the HPACK table keep the buffers that they were read into.
    fn unproven_bytes(&self) -> Option<usize> {
        let is_unproven = self.is_multiplexed() && !self.presence.is_proven();
        is_unproven.then(|| self.http2_bytes.load(Ordering::Relaxed))
    }

    pub fn is_serving(&self) -> bool {
        self.serving.load(Ordering::Relaxed) > 0
    }

    /// The caller does not take what there is for it.
    pub fn is_blocked(&self) -> bool {
        self.blocked_since_ms.load(Ordering::Relaxed) > 0
    }

    pub fn is_multiplexed(&self) -> bool {
        self.multiplexed.load(Ordering::Relaxed)
    }

    /// From here on HTTP/2 is spoken.
    pub fn multiplex(&self, budget: Arc<HeadBudget>) {
        self.share.get_or_init(|| HeadShare::new(budget));
        self.multiplexed.store(true, Ordering::Relaxed);
        self.head_bytes.store(0, Ordering::Relaxed);
    }

    /// From here on a head larger than this is over, and hyper's automatic responses, to heads that it cannot read, are held
    /// back: `downstream` answers both.
    pub fn guard(&self, head_bytes_max: usize, budget: Arc<HeadBudget>) {
        self.share.get_or_init(|| HeadShare::new(budget));
        self.head_bytes_max.store(head_bytes_max, Ordering::Relaxed);
        self.guarded.store(true, Ordering::Relaxed);
    }

    /// Ends what `guard` began. True: an automatic response was held back.
    pub fn unguard(&self) -> bool {
        self.head_bytes_max.store(usize::MAX, Ordering::Relaxed);
        self.guarded.store(false, Ordering::Relaxed);
        self.held_back.load(Ordering::Relaxed)
    }

    /// Is it hyper's own idea to write now?
    pub fn is_automatic(&self) -> bool {
        self.guarded.load(Ordering::Relaxed) && !self.responding.load(Ordering::Relaxed)
    }

    pub fn hold_back(&self) {
        self.held_back.store(true, Ordering::Relaxed);
    }

    pub fn has_held_back(&self) -> bool {
        self.held_back.load(Ordering::Relaxed)
    }

    pub fn has_flushed(&self) {
        if !self.is_serving() {
            self.responding.store(false, Ordering::Relaxed);
        }
    }

    /// Was a request body left unread?
    pub fn has_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed)
    }

    pub fn has_read_frames(&self, count: usize, frames: &Frames) {
        self.http2_bytes.fetch_add(count, Ordering::Relaxed);
        self.head_bytes.store(frames.unfinished_bytes(!self.is_serving()), Ordering::Relaxed);
    }

    pub fn has_read(&self, count: usize) {
        if self.is_serving() || count == 0 {
            return;
        }
        // The rest of a body whose answer is complete is no head.
        let uploading = self.uploads.load(Ordering::Relaxed) > 0;
        if uploading || self.head_bytes.fetch_add(count, Ordering::Relaxed) == 0 {
            self.since_ms.store(self.now_ms(), Ordering::Relaxed);
        }
    }

    pub fn has_written(&self, pending: bool) {
        if !pending {
            self.presence.has_written();
        }
        match (pending, self.blocked_since_ms.load(Ordering::Relaxed)) {
            (true, 0) => self.blocked_since_ms.store(self.now_ms().max(1), Ordering::Relaxed),
            (false, 1..) => {
                self.blocked_since_ms.store(0, Ordering::Relaxed);
                // An idle connection is one that has said all it had to say.
                self.since_ms.store(self.now_ms(), Ordering::Relaxed);
                self.unblocked.wake();
            }
            _ => {}
        }
    }
}
