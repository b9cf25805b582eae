//! An upstream's response body, which can be peeked at before it is forwarded.
//!
//! Invariant: peeked frames are forwarded unchanged, and a failure keeps its position in the stream.

use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::Response;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use super::inflate;
use super::progress::Progress;
use super::received::{ReceiveError, Received};
use crate::model::connection::{RejectionSign, SIGN_BYTES_MAX};

/// A body that takes longer to arrive counts as a stream, not as a sign of rejection.
const PEEK_TIMEOUT: Duration = Duration::from_secs(2);

/// Peeked frames, and the failure after them.
#[derive(Default)]
struct Peeked(VecDeque<Result<Frame<Bytes>, ReceiveError>>);

pub struct UpstreamBody {
    /// `None`: nothing was peeked at, as for nearly every response.
    peeked: Option<Box<Peeked>>,
    incoming: Received,
    /// Progress of the request, whose body may not be sent completely yet.
    progress: Rc<Progress>,
}

impl UpstreamBody {
    pub fn new(incoming: Received, progress: Rc<Progress>) -> UpstreamBody {
        UpstreamBody { peeked: None, incoming, progress }
    }

    /// Peeks at the frame that arrived together with the head. No effect over HTTP/1.1, where it cannot be known yet.
    ///
    /// # Errors
    /// The stream was reset before any byte of the body.
    pub fn peek_first_frame(&mut self) -> Result<(), ReceiveError> {
        if !self.incoming.is_http2() || self.incoming.is_end_stream() {
            return Ok(());
        }
        match self.incoming.frame().now_or_never().flatten() {
            Some(Err(error)) => return Err(error),
            Some(frame) => self.peeked.get_or_insert_default().0.push_back(frame),
            None => {}
        }
        Ok(())
    }

    /// When the request's own body last moved.
    pub fn request_moved_at(&self) -> Instant {
        self.progress.moved_at()
    }

    /// Peeks at the whole body, if it is short and arrives within `wait`.
    async fn peek(&mut self, wait: Duration) -> Option<Vec<u8>> {
        if self.size_hint().lower() > SIGN_BYTES_MAX as u64 {
            return None;
        }
        let wait = wait.min(PEEK_TIMEOUT);
        let reading = async {
            let mut bytes = Vec::new();
            let peeked = &mut self.peeked.get_or_insert_default().0;
            for frame in peeked.iter() {
                bytes.extend_from_slice(frame.as_ref().ok()?.data_ref().map_or(&[], |data| data));
            }
            while let Some(frame) = self.incoming.frame().await {
                if let Ok(data) = frame.as_ref().map(Frame::data_ref) {
                    bytes.extend_from_slice(data.map_or(&[], |data| data));
                }
                let failed = frame.is_err();
                peeked.push_back(frame);
                if failed || bytes.len() > SIGN_BYTES_MAX {
                    return None;
                }
            }
            Some(bytes)
        };
        tokio::time::timeout(wait, reading).await.ok().flatten()
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = ReceiveError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ReceiveError>>> {
        let this = self.get_mut();
        match this.peeked.as_mut().and_then(|peeked| peeked.0.pop_front()) {
            Some(frame) => Poll::Ready(Some(frame)),
            None => Pin::new(&mut this.incoming).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.peeked.as_ref().is_none_or(|peeked| peeked.0.is_empty()) && self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.incoming.size_hint();
        let Some(peeked) = &self.peeked else { return rest };
        let peeked_bytes: u64 =
            peeked.0.iter().flatten().filter_map(Frame::data_ref).map(|data| data.len() as u64).sum();
        let mut hint = SizeHint::new();
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + peeked_bytes);
        }
        hint.set_lower(rest.lower() + peeked_bytes);
        hint
    }
}

/// True if the response matches a sign of a rejected token. Peeks at the body only if a sign refers to it.
pub async fn is_rejection(response: &mut Response<UpstreamBody>, signs: &[RejectionSign], wait: Duration) -> bool {
    let status = response.status();
    for sign in signs.iter().filter(|sign| sign.status == status) {
        let has_header = |(name, text): &(http::HeaderName, String)| {
            let values = response.headers().get_all(name).iter();
            let text = text.to_ascii_lowercase();
            values.filter_map(|value| value.to_str().ok()).any(|value| value.to_ascii_lowercase().contains(&text))
        };
        if !sign.header.as_ref().is_none_or(has_header) {
            continue;
        }
        let Some(member) = &sign.body else { return true };
        let is_event_stream = |value: &http::HeaderValue| value.as_bytes().starts_with(b"text/event-stream");
        if response.headers().get(http::header::CONTENT_TYPE).is_some_and(is_event_stream) {
            continue;
        }
        let body = response.body_mut().peek(wait).await;
        let content = body.and_then(|body| inflate::content(response.headers(), body, SIGN_BYTES_MAX));
        let json = content.and_then(|content| serde_json::from_slice::<serde_json::Value>(&content).ok());
        let path = member.pointer.parts();
        let found = json.as_ref().and_then(|json| {
            path.iter().try_fold(json, |value, part| match value {
                serde_json::Value::Array(items) => items.get(part.parse::<usize>().ok()?),
                value => value.get(part),
            })
        });
        let matches = |value: &serde_json::Value| match value {
            serde_json::Value::String(text) => *text == member.equals,
            serde_json::Value::Array(_) | serde_json::Value::Object(_) => false,
            serde_json::Value::Null => member.equals == "null",
            serde_json::Value::Bool(value) => member.equals == if *value { "true" } else { "false" },
            serde_json::Value::Number(number) => member.equals == format!("{number}"),
        };
        if found.is_some_and(matches) {
            return true;
        }
    }
    false
}
