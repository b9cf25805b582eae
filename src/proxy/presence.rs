//! Whether a caller is still there while its request over HTTP/1.1 is served and nothing is read from it.
//!
//! A reset ends the exchange at once. The end of what the caller sends (FIN) may be that of a program that has gone away, or of
//! one that still reads. One that reads takes an interim `100 Continue` without noticing; a closed socket answers it with a
//! reset. So the caller is asked as soon as others wait for the place that its request holds or waits for, and else when the
//! upstream has been silent for a while. Where no interim response can be sent (HTTP/1.0, or the response has begun), a
//! caller is taken to be gone after that silence.
//!
//! Not here: HTTP/2, where hyper reads all the time.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::io::Interest;
use tokio::time::{Instant, sleep};

use super::stream::Socket;
use super::upstream::Gate;
use super::watched::Watch;

use crate::sync::lock;

/// How long an upstream may be silent before a caller that has sent FIN is asked, or given up. Each further question comes
/// after twice as long a silence.
const SILENCE_MAX: Duration = Duration::from_secs(2);
const QUESTION_PAUSE_MAX: Duration = Duration::from_secs(16);
/// How often is looked whether others wait, for a caller that has sent FIN.
const LOOK: Duration = Duration::from_millis(100);

/// What asks a caller whether it still reads (RFC 9110 §15.2.1).
const QUESTION: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// What is known of a caller, and how to ask it. Atomics, as in the watch that it is part of.
#[derive(Debug)]
pub struct Presence {
    /// What carries the connection.
    socket: Option<Socket>,
    /// Successful writes to the stream.
    writes: AtomicU64,
    /// An interim response may be sent now.
    takes_interim: AtomicBool,
    /// A question is to be sent.
    asks: AtomicBool,
    /// The request has been sent to its upstream.
    sent: AtomicBool,
    /// A request of the connection has passed every check.
    proven: AtomicBool,
    /// Where the request holds a place, or waits for one; that of the last one, where it is not known yet.
    gate: Mutex<Weak<Gate>>,
}

impl Presence {
    pub fn new(socket: Option<Socket>) -> Presence {
        Presence {
            socket,
            writes: AtomicU64::new(0),
            takes_interim: AtomicBool::new(false),
            asks: AtomicBool::new(false),
            sent: AtomicBool::new(false),
            proven: AtomicBool::new(false),
            gate: Mutex::default(),
        }
    }

    pub fn socket(&self) -> Option<&Socket> {
        self.socket.as_ref()
    }

    pub fn has_written(&self) {
        self.writes.fetch_add(1, Ordering::Relaxed);
    }

    fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    pub fn begin_request(&self, takes_interim: bool) {
        self.sent.store(false, Ordering::Relaxed);
        self.takes_interim.store(takes_interim, Ordering::Relaxed);
    }

    /// The request wants a place there.
    pub fn enters(&self, gate: &Arc<Gate>) {
        let mut own = lock(&self.gate);
        // Mostly the same one as for the request before.
        if own.as_ptr() != Arc::as_ptr(gate) {
            *own = Arc::downgrade(gate);
        }
    }

    pub fn is_sent(&self) {
        self.sent.store(true, Ordering::Relaxed);
        self.prove();
    }

    /// A request of this connection has passed every check.
    pub fn prove(&self) {
        self.proven.store(true, Ordering::Relaxed);
    }

    /// Has a request of this connection passed every check?
    pub fn is_proven(&self) -> bool {
        self.proven.load(Ordering::Relaxed)
    }

    /// From here on an interim response would come too late.
    pub fn begin_response(&self) {
        self.takes_interim.store(false, Ordering::Relaxed);
    }

    /// Do others wait for the place of the request, or the request itself for one?
    fn is_crowded(&self) -> bool {
        let gate = lock(&self.gate).upgrade();
        gate.is_some_and(|gate| gate.has_waiters())
    }

    /// What is to be sent now, once.
    pub fn question(&self) -> Option<Bytes> {
        if !self.asks.load(Ordering::Relaxed) {
            return None;
        }
        self.asks.store(false, Ordering::Relaxed);
        self.takes_interim.load(Ordering::Relaxed).then(|| Bytes::from_static(QUESTION))
    }
}

/// Returns once the caller of the request that is being served is gone.
pub async fn caller_gone(watch: &Watch) {
    let presence = &watch.presence;
    let Some(socket) = presence.socket() else { return std::future::pending().await };
    // This interest includes a closed read side, and bytes that wait to be read do not satisfy it.
    socket.ready(Interest::PRIORITY).await;
    let (mut writes, mut silent_since) = (presence.writes(), Instant::now());
    let (mut was_asked, mut patience) = (false, SILENCE_MAX);
    loop {
        let is_closed = is_closed(socket);
        if is_closed && watch.is_serving() {
            return;
        }
        if presence.writes() != writes || watch.is_blocked() || !watch.is_serving() {
            (writes, silent_since) = (presence.writes(), Instant::now());
        }
        let is_silent = presence.sent.load(Ordering::Relaxed) && silent_since.elapsed() >= patience;
        let can_be_asked = presence.takes_interim.load(Ordering::Relaxed);
        if is_silent && !can_be_asked {
            return;
        }
        if can_be_asked && (is_silent || !was_asked && presence.is_crowded()) {
            presence.asks.store(true, Ordering::Relaxed);
            patience = if was_asked { QUESTION_PAUSE_MAX.min(2 * patience) } else { patience };
            was_asked = true;
        }
        tokio::select! {
            _ = socket.ready(Interest::ERROR), if !is_closed => {}
            () = sleep(LOOK) => {}
        }
    }
}

/// Are both directions closed?
fn is_closed(socket: &Socket) -> bool {
    let ready = socket.ready(Interest::WRITABLE | Interest::ERROR).now_or_never();
    ready.is_some_and(|ready| ready.is_write_closed() || ready.is_error())
}
