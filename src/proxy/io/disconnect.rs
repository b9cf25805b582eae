//! Detects that the caller of an HTTP/1.1 request has disconnected.
//!
//! RST ends the exchange at once. FIN is ambiguous: the caller may have exited, or have half-closed and still read. So
//! the caller is probed with an interim `100 Continue`: at once if other requests wait at the gate of its origin,
//! otherwise after the upstream has been silent for a while. Where no interim response can be sent (HTTP/1.0, or the
//! response has begun), the caller counts as disconnected after that silence.
//!
//! Not here: a FIN behind unread bytes, which is invisible (`Presence::probe_stalled`).

use std::time::Duration;

use futures_util::FutureExt;
use tokio::io::Interest;
use tokio::time::{Instant, sleep};

use super::presence::{PROBE_INTERVAL_MAX, SILENCE_MAX};
use super::socket::Socket;
use super::watch::Watch;

/// Poll interval of the gate's waiters, once a caller has sent FIN.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Returns once the caller of the current request has disconnected.
pub async fn caller_disconnected(watch: &Watch) {
    let presence = &watch.presence;
    let Some(socket) = presence.socket() else { return std::future::pending().await };
    // PRIORITY becomes ready when the read side closes, but not when bytes can be read.
    socket.ready(Interest::PRIORITY).await;
    let (mut writes, mut silent_since) = (presence.writes(), Instant::now());
    let (mut was_probed, mut silence_max) = (false, SILENCE_MAX);
    loop {
        let is_closed = is_closed(socket);
        if is_closed && watch.is_serving() {
            return;
        }
        if presence.writes() != writes || watch.is_blocked() || !watch.is_serving() {
            (writes, silent_since) = (presence.writes(), Instant::now());
        }
        let is_silent = presence.is_sent() && silent_since.elapsed() >= silence_max;
        let can_be_probed = presence.can_be_probed();
        if is_silent && !can_be_probed {
            return;
        }
        if can_be_probed && (is_silent || !was_probed && presence.has_waiters()) {
            presence.request_probe();
            silence_max = if was_probed { PROBE_INTERVAL_MAX.min(2 * silence_max) } else { silence_max };
            was_probed = true;
        }
        tokio::select! {
            _ = socket.ready(Interest::ERROR), if !is_closed => {}
            () = sleep(POLL_INTERVAL) => {}
        }
    }
}

/// True if both directions are closed.
fn is_closed(socket: &Socket) -> bool {
    let ready = socket.ready(Interest::WRITABLE | Interest::ERROR).now_or_never();
    ready.is_some_and(|ready| ready.is_write_closed() || ready.is_error())
}
