//! State of one downstream connection: requests in flight, idle and stall times, bytes of the unfinished head.
//!
//! The clock is read only when a silence begins or ends. Not here: what happens when a deadline passes (`downstream`).

mod activity;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::time::Instant;

use super::frames::Frames;
use super::head_budget::{HeadBudget, HeadShare};
use super::interim::InterimWriter;
use super::presence::Presence;
use super::socket::Socket;
use crate::model::Timeouts;
pub use activity::{Activity, Serving, Upload};

/// Buffer space that hyper reserves before it reads.
const HYPER_READ_BYTES: usize = 8 * 1024;
/// Memory of an HTTP/2 connection in excess of an idle HTTP/1.1 connection.
const HTTP2_CONNECTION_BYTES: usize = 10 * 1024;
/// Bytes that an HTTP/2 connection may send before its first request is accepted; a connection that sends more is
/// closed.
const HTTP2_UNPROVEN_BYTES_MAX: usize = 256 * 1024;

/// Activity of one connection. Atomics, because hyper requires a stream that can be upgraded to be `Send`.
#[derive(Debug)]
pub struct Watch {
    epoch: Instant,
    /// Requests and tunnels inside HTTP/2 being served.
    serving: AtomicUsize,
    /// HTTP/2: bytes read do not indicate a request head.
    multiplexed: AtomicBool,
    /// When the current silence, head or stall began; milliseconds since `epoch`.
    since_ms: AtomicU64,
    /// HTTP/1.1: bytes read of the current head. HTTP/2: estimated memory of unfinished frames and field blocks.
    head_bytes: AtomicUsize,
    head_bytes_max: AtomicUsize,
    /// Total bytes read over HTTP/2.
    http2_bytes: AtomicUsize,
    /// Share of the budget for unfinished heads; set once the HTTP version is known.
    head_share: OnceLock<HeadShare>,
    /// True while hyper's automatic responses are suppressed.
    guarded: AtomicBool,
    /// A request was dispatched, and its response is not completely written.
    responding: AtomicBool,
    /// True if an automatic response was suppressed.
    suppressed: AtomicBool,
    /// Bytes were read ahead that no other field accounts for.
    begun: AtomicBool,
    /// True once this connection has served a request.
    served: AtomicBool,
    /// When writes became blocked because the caller does not read; 0: not blocked.
    blocked_since_ms: AtomicU64,
    /// Wakes the response body that waits for the caller to read again.
    unblocked: AtomicWaker,
    /// Request bodies not read to their end; more than one only momentarily.
    uploads: AtomicUsize,
    /// True if a request body was left unread.
    abandoned: AtomicBool,
    pub interim: InterimWriter,
    pub presence: Presence,
}

/// Which timeout has expired.
#[derive(Debug, PartialEq, Eq)]
pub enum TimeoutKind {
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
            head_share: OnceLock::new(),
            guarded: AtomicBool::new(false),
            responding: AtomicBool::new(false),
            suppressed: AtomicBool::new(false),
            begun: AtomicBool::new(false),
            served: AtomicBool::new(false),
            blocked_since_ms: AtomicU64::new(0),
            unblocked: AtomicWaker::new(),
            uploads: AtomicUsize::new(0),
            abandoned: AtomicBool::new(false),
            interim: InterimWriter::default(),
            presence: Presence::new(socket),
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn at(&self, ms: u64) -> Instant {
        self.epoch + Duration::from_millis(ms)
    }

    /// The next deadline and its timeout; `None` while a request is being served.
    pub fn next_deadline(&self, timeouts: &Timeouts) -> Option<(Instant, TimeoutKind)> {
        // Checked first: the last bytes of a response may be blocked when no request is being served any more.
        let blocked = self.blocked_since_ms.load(Ordering::Relaxed);
        if blocked > 0 {
            return Some((self.at(blocked) + timeouts.idle, TimeoutKind::Stalled));
        }
        if self.is_serving() {
            return None;
        }
        let since = self.at(self.since_ms.load(Ordering::Relaxed));
        let begun = self.head_bytes.load(Ordering::Relaxed) > 0 && !self.is_multiplexed();
        Some(match (begun, self.served.load(Ordering::Relaxed)) {
            _ if self.uploads.load(Ordering::Relaxed) > 0 && !self.is_multiplexed() => {
                (since + timeouts.idle, TimeoutKind::Idle)
            }
            (true, _) => (since + timeouts.client_head, TimeoutKind::Head),
            (false, false) => (since + timeouts.client_head, TimeoutKind::Idle),
            (false, true) => (since + timeouts.keep_alive, TimeoutKind::Idle),
        })
    }

    /// When the connection became idle: no request in flight, and no byte of the next one. `None`: not idle.
    pub fn idle_since(&self) -> Option<Instant> {
        let is_set = |flag: &AtomicBool| flag.load(Ordering::Relaxed);
        let has_bytes = |count: &AtomicUsize| count.load(Ordering::Relaxed) > 0;
        let is_first_begun = is_set(&self.begun) && !is_set(&self.served);
        let is_busy = self.is_serving() || is_set(&self.responding) || self.is_blocked() || has_bytes(&self.uploads);
        let is_idle = !(is_busy || is_first_begun || has_bytes(&self.head_bytes));
        is_idle.then(|| self.at(self.since_ms.load(Ordering::Relaxed)))
    }

    /// Records that bytes were read ahead.
    pub fn mark_begun(&self) {
        self.begun.store(true, Ordering::Relaxed);
    }

    /// Ready while the caller reads what is written to it; otherwise wakes `cx` once it does.
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

    /// True if the caller has sent more than is allowed before a complete request.
    pub fn is_head_over(&self) -> bool {
        if self.is_serving() {
            return false;
        }
        match self.unproven_bytes() {
            Some(read) => read > HTTP2_UNPROVEN_BYTES_MAX,
            None => self.head_bytes.load(Ordering::Relaxed) > self.head_bytes_max.load(Ordering::Relaxed),
        }
    }

    /// Adjusts the connection's share of the budget for unfinished heads; false if the budget is exhausted.
    pub fn is_within_budget(&self) -> bool {
        self.head_share.get().is_none_or(|share| share.adjust(self.unfinished_head_bytes()))
    }

    /// Estimated memory that hyper holds for an incomplete head, and for an HTTP/2 connection without an accepted
    /// request.
    fn unfinished_head_bytes(&self) -> usize {
        let head = self.head_bytes.load(Ordering::Relaxed);
        match self.unproven_bytes() {
            Some(read) => HTTP2_CONNECTION_BYTES + 2 * read.min(HTTP2_UNPROVEN_BYTES_MAX) + head,
            None if self.is_multiplexed() => head,
            None if head == 0 || self.is_serving() => 0,
            None => (head + HYPER_READ_BYTES).next_power_of_two(),
        }
    }

    /// Bytes read on an HTTP/2 connection without an accepted request. All of them may still be in memory, because
    /// entries of the HPACK table keep alive the buffers that they were read into.
    fn unproven_bytes(&self) -> Option<usize> {
        let is_unproven = self.is_multiplexed() && !self.presence.is_proven();
        is_unproven.then(|| self.http2_bytes.load(Ordering::Relaxed))
    }

    pub fn is_serving(&self) -> bool {
        self.serving.load(Ordering::Relaxed) > 0
    }

    /// True if a write is blocked because the caller does not read.
    pub fn is_blocked(&self) -> bool {
        self.blocked_since_ms.load(Ordering::Relaxed) > 0
    }

    pub fn is_multiplexed(&self) -> bool {
        self.multiplexed.load(Ordering::Relaxed)
    }

    /// Switches the accounting to HTTP/2.
    pub fn multiplex(&self, budget: Arc<HeadBudget>) {
        self.head_share.get_or_init(|| HeadShare::new(budget));
        self.multiplexed.store(true, Ordering::Relaxed);
        self.head_bytes.store(0, Ordering::Relaxed);
    }

    /// Starts to limit heads to `head_bytes_max`, and to suppress the responses that hyper sends on its own to heads
    /// that it cannot parse: `downstream` responds in both cases.
    pub fn guard(&self, head_bytes_max: usize, budget: Arc<HeadBudget>) {
        self.head_share.get_or_init(|| HeadShare::new(budget));
        self.head_bytes_max.store(head_bytes_max, Ordering::Relaxed);
        self.guarded.store(true, Ordering::Relaxed);
    }

    /// Reverts `guard`. Returns whether an automatic response was suppressed.
    pub fn unguard(&self) -> bool {
        self.head_bytes_max.store(usize::MAX, Ordering::Relaxed);
        self.guarded.store(false, Ordering::Relaxed);
        self.suppressed.load(Ordering::Relaxed)
    }

    /// True if a write now would be an automatic response of hyper, which must be suppressed.
    pub fn is_automatic_response(&self) -> bool {
        self.guarded.load(Ordering::Relaxed) && !self.responding.load(Ordering::Relaxed)
    }

    pub fn mark_suppressed(&self) {
        self.suppressed.store(true, Ordering::Relaxed);
    }

    pub fn has_suppressed(&self) -> bool {
        self.suppressed.load(Ordering::Relaxed)
    }

    pub fn record_flush(&self) {
        if !self.is_serving() {
            self.responding.store(false, Ordering::Relaxed);
        }
    }

    /// True if a request body was left unread.
    pub fn has_abandoned_upload(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed)
    }

    pub fn record_frames(&self, count: usize, frames: &Frames) {
        self.http2_bytes.fetch_add(count, Ordering::Relaxed);
        self.head_bytes.store(frames.unfinished_bytes(!self.is_serving()), Ordering::Relaxed);
    }

    pub fn record_read(&self, count: usize) {
        if self.is_serving() || count == 0 {
            return;
        }
        // The rest of a request body after its response is not part of a head.
        let uploading = self.uploads.load(Ordering::Relaxed) > 0;
        if uploading || self.head_bytes.fetch_add(count, Ordering::Relaxed) == 0 {
            self.since_ms.store(self.now_ms(), Ordering::Relaxed);
        }
    }

    pub fn record_write(&self, pending: bool) {
        if !pending {
            self.presence.record_write();
        }
        match (pending, self.blocked_since_ms.load(Ordering::Relaxed)) {
            (true, 0) => self.blocked_since_ms.store(self.now_ms().max(1), Ordering::Relaxed),
            (false, 1..) => {
                self.blocked_since_ms.store(0, Ordering::Relaxed);
                // Idle time starts after the last write.
                self.since_ms.store(self.now_ms(), Ordering::Relaxed);
                self.unblocked.wake();
            }
            _ => {}
        }
    }
}
