//! Forwards interim (1xx) responses from an upstream to a caller, both over HTTP/1.1 (RFC 9110 §15.2).
//!
//! hyper's server cannot write them, so the downstream stream does (`watched`), once all earlier bytes are written.
//! Invariants: the queue is bounded; heads are rebuilt like those of final responses; the final response follows the
//! last interim one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc};

use crate::proxy::error::{Fault, ProxyError};
use crate::proxy::headers;
use crate::sync::lock;

/// Interim responses queued per request; an upstream that sends more at once fails the request.
const QUEUED_MAX: usize = 32;
const HEAD_BYTES_MAX: usize = 8 * 1024;

/// The heads of the interim responses to one request.
pub struct InterimHeads {
    receiver: mpsc::Receiver<Bytes>,
    overflowed: Arc<AtomicBool>,
}

impl InterimHeads {
    /// Subscribes to the interim responses to `request`, which is about to be sent.
    pub fn subscribe<B>(request: &mut Request<B>, via: HeaderValue) -> InterimHeads {
        let (sender, receiver) = mpsc::channel(QUEUED_MAX);
        let overflowed = Arc::new(AtomicBool::new(false));
        let heads = InterimHeads { receiver, overflowed: overflowed.clone() };
        hyper::ext::on_informational(request, move |response| {
            let head = head(response.status(), response.headers().clone(), &via);
            if head.len() > HEAD_BYTES_MAX || matches!(sender.try_send(head), Err(TrySendError::Full(_))) {
                overflowed.store(true, Ordering::Relaxed);
            }
        });
        heads
    }

    pub async fn next(&mut self) -> Option<Bytes> {
        self.receiver.recv().await
    }

    /// The next one, if it has arrived.
    pub fn try_next(&mut self) -> Option<Bytes> {
        self.receiver.try_recv().ok()
    }

    /// # Errors
    /// The upstream sent too many interim responses at once, or one that is too large.
    pub fn check(&self) -> Result<(), Fault> {
        match self.overflowed.load(Ordering::Relaxed) {
            true => {
                Err(ProxyError::UpstreamProtocol.because("too many interim responses at once, or one is too large"))
            }
            false => Ok(()),
        }
    }
}

/// The wire form of an interim response. Empty for 100, because `Expect` is not forwarded.
fn head(status: StatusCode, mut fields: HeaderMap, via: &HeaderValue) -> Bytes {
    if status == StatusCode::CONTINUE {
        return Bytes::new();
    }
    headers::rewrite_response(&mut fields, via);
    fields.remove(CONTENT_LENGTH);
    let mut wire = format!("HTTP/1.1 {} {}\r\n", status.as_u16(), status.canonical_reason().unwrap_or("")).into_bytes();
    for (name, value) in &fields {
        wire.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    wire.extend(b"\r\n");
    wire.into()
}

/// Hands interim responses to the downstream stream, one at a time.
#[derive(Debug, Default)]
pub struct InterimWriter {
    is_pending: AtomicBool,
    head: Mutex<Bytes>,
    written: Notify,
}

impl InterimWriter {
    /// Returns once the head is written.
    pub async fn write(&self, head: Bytes) {
        *lock(&self.head) = head;
        self.is_pending.store(true, Ordering::Release);
        self.written.notified().await;
    }

    /// The head to write now.
    pub fn take(&self) -> Option<Bytes> {
        if !self.is_pending.load(Ordering::Acquire) {
            return None;
        }
        self.is_pending.store(false, Ordering::Relaxed);
        Some(std::mem::take(&mut *lock(&self.head)))
    }

    pub fn mark_written(&self) {
        self.written.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_rebuilt_for_the_next_hop() {
        let via = HeaderValue::from_static("1.1 keybearer-1");
        let fields = [
            ("link", "</x>"),
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("keybearer-error", "no_route"),
            ("content-length", "5"),
            ("transfer-encoding", "chunked"),
        ];
        let map: HeaderMap = fields
            .into_iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect();
        let wire = head(StatusCode::EARLY_HINTS, map, &via);
        assert_eq!(&wire[..], b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\nvia: 1.1 keybearer-1\r\n\r\n");
        assert!(head(StatusCode::CONTINUE, HeaderMap::new(), &via).is_empty());
    }
}
