//! Interim answers (1xx) on their way from an upstream to a caller, both over HTTP/1.1 (RFC 9110 §15.2).
//!
//! hyper's server writes none, so the caller's stream does (`watched`), when it has written all that came before. Holds: what
//! waits is bounded; heads are rebuilt as those of answers are; the answer follows the last of them.

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

/// How many may wait to be passed on; an upstream that sends more at once sends too many.
const WAITING_MAX: usize = 32;
const HEAD_BYTES_MAX: usize = 8 * 1024;

/// The heads that come before the answer to one request.
pub struct Heads {
    coming: mpsc::Receiver<Bytes>,
    too_many: Arc<AtomicBool>,
}

impl Heads {
    /// Those before the answer to `request`, from when it is sent.
    pub fn of<B>(request: &mut Request<B>, via: HeaderValue) -> Heads {
        let (sender, coming) = mpsc::channel(WAITING_MAX);
        let too_many = Arc::new(AtomicBool::new(false));
        let heads = Heads { coming, too_many: too_many.clone() };
        hyper::ext::on_informational(request, move |answer| {
            let head = head(answer.status(), answer.headers().clone(), &via);
            if head.len() > HEAD_BYTES_MAX || matches!(sender.try_send(head), Err(TrySendError::Full(_))) {
                too_many.store(true, Ordering::Relaxed);
            }
        });
        heads
    }

    pub async fn next(&mut self) -> Option<Bytes> {
        self.coming.recv().await
    }

    /// The next one, if it has come.
    pub fn waiting(&mut self) -> Option<Bytes> {
        self.coming.try_recv().ok()
    }

    /// # Errors
    /// Where more came than is passed on.
    pub fn check(&self) -> Result<(), Fault> {
        match self.too_many.load(Ordering::Relaxed) {
            true => Err(ProxyError::UpstreamProtocol.because("too many interim answers at once, or too large")),
            false => Ok(()),
        }
    }
}

/// As it goes on the wire. Empty for 100: it answers an expectation, and none was sent on.
fn head(status: StatusCode, mut fields: HeaderMap, via: &HeaderValue) -> Bytes {
    if status == StatusCode::CONTINUE {
        return Bytes::new();
    }
    headers::response(&mut fields, via);
    fields.remove(CONTENT_LENGTH);
    let mut wire = format!("HTTP/1.1 {} {}\r\n", status.as_u16(), status.canonical_reason().unwrap_or("")).into_bytes();
    for (name, value) in &fields {
        wire.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    wire.extend(b"\r\n");
    wire.into()
}

/// What a caller's stream is to write in hyper's place, at most one head at a time. Shared as its watch is.
#[derive(Debug, Default)]
pub struct Saying {
    waits: AtomicBool,
    head: Mutex<Bytes>,
    said: Notify,
}

impl Saying {
    /// Returns once it is written.
    pub async fn say(&self, head: Bytes) {
        *lock(&self.head) = head;
        self.waits.store(true, Ordering::Release);
        self.said.notified().await;
    }

    /// What waits to be written.
    pub fn take(&self) -> Option<Bytes> {
        if !self.waits.load(Ordering::Acquire) {
            return None;
        }
        self.waits.store(false, Ordering::Relaxed);
        Some(std::mem::take(&mut *lock(&self.head)))
    }

    pub fn said(&self) {
        self.said.notify_one();
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
