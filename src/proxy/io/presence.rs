//! Probes that find out whether the caller of an HTTP/1.1 request is still connected.
//!
//! Not here: when to probe after a FIN (`disconnect`). HTTP/2 needs neither, because hyper reads it continuously.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep};

use super::socket::Socket;
use crate::gate::Gate;
use crate::sync::lock;

/// An interim response that a live caller ignores; a closed socket replies with RST (RFC 9110 §15.2.1).
const PROBE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Silence of the upstream after which a caller is probed. Doubles with each probe, up to `PROBE_INTERVAL_MAX`.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(2);
pub(super) const PROBE_INTERVAL_MAX: Duration = Duration::from_secs(16);

/// Probe state of one connection. Atomics for the same reason as in `Watch`.
#[derive(Debug)]
pub struct Presence {
    /// The connection's socket; `None` for a tunnel inside HTTP/2.
    socket: Option<Socket>,
    /// Successful writes to the stream.
    writes: AtomicU64,
    /// True while an interim response may be sent.
    accepts_interim: AtomicBool,
    /// True if a requested probe is not written yet.
    probe_requested: AtomicBool,
    /// True if the current request was sent to its upstream.
    sent: AtomicBool,
    /// True once a request of the connection was accepted: authenticated, routed and within its limits.
    proven: AtomicBool,
    /// Gate of the origin of the current request, or of the one before it.
    gate: Mutex<Weak<Gate>>,
}

impl Presence {
    pub fn new(socket: Option<Socket>) -> Presence {
        Presence {
            socket,
            writes: AtomicU64::new(0),
            accepts_interim: AtomicBool::new(false),
            probe_requested: AtomicBool::new(false),
            sent: AtomicBool::new(false),
            proven: AtomicBool::new(false),
            gate: Mutex::default(),
        }
    }

    pub fn socket(&self) -> Option<&Socket> {
        self.socket.as_ref()
    }

    pub fn record_write(&self) {
        self.writes.fetch_add(1, Ordering::Relaxed);
    }

    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    pub fn begin_request(&self, accepts_interim: bool) {
        self.sent.store(false, Ordering::Relaxed);
        self.accepts_interim.store(accepts_interim, Ordering::Relaxed);
    }

    /// Records the gate at which the request holds a permit or waits for one.
    pub fn set_gate(&self, gate: &Arc<Gate>) {
        let mut current = lock(&self.gate);
        // Usually unchanged since the last request.
        if current.as_ptr() != Arc::as_ptr(gate) {
            *current = Arc::downgrade(gate);
        }
    }

    /// Records that the request is being sent upstream.
    pub fn mark_sent(&self) {
        self.sent.store(true, Ordering::Relaxed);
        self.mark_proven();
    }

    /// Records that a request of this connection was accepted.
    pub fn mark_proven(&self) {
        self.proven.store(true, Ordering::Relaxed);
    }

    /// True once a request of this connection was accepted: authenticated, routed and within its limits.
    pub fn is_proven(&self) -> bool {
        self.proven.load(Ordering::Relaxed)
    }

    /// Records the start of the final response; an interim one would be too late.
    pub fn begin_response(&self) {
        self.accepts_interim.store(false, Ordering::Relaxed);
    }

    /// True if other requests wait at the gate.
    pub fn has_waiters(&self) -> bool {
        let gate = lock(&self.gate).upgrade();
        gate.is_some_and(|gate| gate.has_waiters())
    }

    pub fn can_be_probed(&self) -> bool {
        self.accepts_interim.load(Ordering::Relaxed)
    }

    pub fn request_probe(&self) {
        self.probe_requested.store(true, Ordering::Relaxed);
    }

    /// Probes the caller periodically while its upload is stalled, for as long as this future is polled. Bytes that the
    /// proxy does not read hide the caller's FIN, so only a probe reveals a disconnect. Probes only while other
    /// requests wait for the permit.
    pub async fn probe_stalled(&self, stalled_since: impl Fn() -> Option<Instant>) {
        let mut interval = SILENCE_MAX;
        loop {
            sleep(interval).await;
            let is_stalled = stalled_since().is_some_and(|since| since.elapsed() >= SILENCE_MAX);
            if is_stalled && self.has_waiters() && self.can_be_probed() {
                self.request_probe();
                interval = PROBE_INTERVAL_MAX.min(2 * interval);
            }
        }
    }

    /// The probe to write now; returned once per `request_probe`.
    pub fn take_probe(&self) -> Option<Bytes> {
        if !self.probe_requested.load(Ordering::Relaxed) {
            return None;
        }
        self.probe_requested.store(false, Ordering::Relaxed);
        self.can_be_probed().then(|| Bytes::from_static(PROBE))
    }

    pub fn is_sent(&self) -> bool {
        self.sent.load(Ordering::Relaxed)
    }
}
