//! Waits until the caller of an HTTP/1.1 request is gone.
//!
//! A reset ends the exchange at once. A FIN may come from a program that has gone away or from one that still reads, so the caller
//! is probed with an interim `100 Continue`: as soon as other requests wait at the gate of its origin, else after the upstream
//! has been silent for a while. Where no interim response can be sent (HTTP/1.0, or the response has begun), the caller counts as
//! gone after that silence.
//!
//! A FIN behind bytes that the proxy does not read, because the upstream does not, is invisible: `Presence::probe_stalled`.

use std::time::Duration;

use futures_util::FutureExt;
use tokio::io::Interest;
use tokio::time::{Instant, sleep};

use super::presence::{PROBE_INTERVAL_MAX, SILENCE_MAX};
use super::socket::Socket;
use super::watch::Watch;

/// Poll interval of the gate, for a caller that has sent FIN.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Returns once the caller of the present request is gone.
pub async fn caller_gone(watch: &Watch) {
    let presence = &watch.presence;
    let Some(socket) = presence.socket() else { return std::future::pending().await };
    // This interest includes a closed read side, and bytes that wait to be read do not satisfy it.
    socket.ready(Interest::PRIORITY).await;
    let (mut writes, mut silent_since) = (presence.writes(), Instant::now());
    let (mut was_probed, mut patience) = (false, SILENCE_MAX);
    loop {
        let is_closed = is_closed(socket);
        if is_closed && watch.is_serving() {
            return;
        }
        if presence.writes() != writes || watch.is_blocked() || !watch.is_serving() {
            (writes, silent_since) = (presence.writes(), Instant::now());
        }
        let is_silent = presence.has_sent() && silent_since.elapsed() >= patience;
        let can_be_probed = presence.can_be_probed();
        if is_silent && !can_be_probed {
            return;
        }
        if can_be_probed && (is_silent || !was_probed && presence.is_crowded()) {
            presence.request_probe();
            patience = if was_probed { PROBE_INTERVAL_MAX.min(2 * patience) } else { patience };
            was_probed = true;
        }
        tokio::select! {
            _ = socket.ready(Interest::ERROR), if !is_closed => {}
            () = sleep(POLL_INTERVAL) => {}
        }
    }
}

/// Are both directions closed?
fn is_closed(socket: &Socket) -> bool {
    let ready = socket.ready(Interest::WRITABLE | Interest::ERROR).now_or_never();
    ready.is_some_and(|ready| ready.is_write_closed() || ready.is_error())
}
