//! How to find out whether the caller of an HTTP/1.1 request is still there.
//!
//! Not here: when to ask (`gone`). HTTP/2 needs neither: hyper reads all the time.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep};

use super::socket::Socket;
use crate::gate::Gate;
use crate::sync::lock;

/// An interim response that a caller skips and a closed socket answers with a reset (RFC 9110 §15.2.1).
const PROBE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Silence after which a caller is probed. Doubles with each probe.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(2);
pub(super) const PROBE_INTERVAL_MAX: Duration = Duration::from_secs(16);

/// State of a caller's presence. Atomics, for the reason that `Watch` gives.
#[derive(Debug)]
pub struct Presence {
    /// Of the connection; `None` inside HTTP/2.
    socket: Option<Socket>,
    /// Successful writes to the stream.
    writes: AtomicU64,
    /// An interim response may be sent now.
    takes_interim: AtomicBool,
    /// A probe is to be sent.
    probes: AtomicBool,
    /// The request has been sent to its upstream.
    sent: AtomicBool,
    /// A request of the connection has passed every check.
    proven: AtomicBool,
    /// Gate of the origin that the request, or the one before it, was sent to.
    gate: Mutex<Weak<Gate>>,
}

impl Presence {
    pub fn new(socket: Option<Socket>) -> Presence {
        Presence {
            socket,
            writes: AtomicU64::new(0),
            takes_interim: AtomicBool::new(false),
            probes: AtomicBool::new(false),
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

    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    pub fn begin_request(&self, takes_interim: bool) {
        self.sent.store(false, Ordering::Relaxed);
        self.takes_interim.store(takes_interim, Ordering::Relaxed);
    }

    /// The request holds a permit of this gate, or waits for one.
    pub fn enters(&self, gate: &Arc<Gate>) {
        let mut own = lock(&self.gate);
        // Mostly the same one as for the request before.
        if own.as_ptr() != Arc::as_ptr(gate) {
            *own = Arc::downgrade(gate);
        }
    }

    /// The request is on its way to its upstream.
    pub fn mark_sent(&self) {
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

    /// Does any request wait at the gate?
    pub fn is_crowded(&self) -> bool {
        let gate = lock(&self.gate).upgrade();
        gate.is_some_and(|gate| gate.has_waiters())
    }

    pub fn can_be_probed(&self) -> bool {
        self.takes_interim.load(Ordering::Relaxed)
    }

    pub fn request_probe(&self) {
        self.probes.store(true, Ordering::Relaxed);
    }

    /// Probes a caller again and again while `stalled_since` gives a time, for as long as it is polled: what the caller has sent
    /// and the proxy does not read hides its FIN, so nothing else shows that it is gone. Only others that wait make it matter.
    pub async fn probe_stalled(&self, stalled_since: impl Fn() -> Option<Instant>) {
        let mut patience = SILENCE_MAX;
        loop {
            sleep(patience).await;
            let is_stalled = stalled_since().is_some_and(|since| since.elapsed() >= SILENCE_MAX);
            if is_stalled && self.is_crowded() && self.can_be_probed() {
                self.request_probe();
                patience = PROBE_INTERVAL_MAX.min(2 * patience);
            }
        }
    }

    /// The probe to write now, returned once for each request of one.
    pub fn take_probe(&self) -> Option<Bytes> {
        if !self.probes.load(Ordering::Relaxed) {
            return None;
        }
        self.probes.store(false, Ordering::Relaxed);
        self.can_be_probed().then(|| Bytes::from_static(PROBE))
    }

    pub fn has_sent(&self) -> bool {
        self.sent.load(Ordering::Relaxed)
    }
}
