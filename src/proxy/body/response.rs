//! The body of a response: the upstream's, or one of our own.
//!
//! Invariant: the companion hears of the end exactly once; a failure of the upstream reaches the caller as one.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use super::BoxError;
use super::received::ReceiveError;
use super::upstream::UpstreamBody;
use crate::proxy::headers;

/// The body of an answer: the upstream's, or the proxy's own words. Its companion hears of the end exactly once.
pub struct ResponseBody<T: Companion> {
    inner: Inner,
    companion: Option<T>,
}

enum Inner {
    Own(Full<Bytes>),
    Upstream {
        incoming: UpstreamBody,
        /// What cut it off, until the caller gets the error.
        failure: Option<ReceiveError>,
        idle: Duration,
        silent_since: Option<Instant>,
        timer: Option<Pin<Box<Sleep>>>,
    },
}

/// How the body of a response ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Complete,
    /// The upstream cut it off, or fell silent.
    CutOff,
    /// The caller did not take it to its end.
    Abandoned,
}

/// Follows a body, and learns how it ended.
pub trait Companion {
    fn end(self, ending: Ending);
}

impl<T: Companion> ResponseBody<T> {
    pub fn own(text: Bytes, companion: T) -> ResponseBody<T> {
        ResponseBody { inner: Inner::Own(Full::new(text)), companion: Some(companion) }
    }

    pub fn upstream(incoming: UpstreamBody, idle: Duration, companion: T) -> ResponseBody<T> {
        ResponseBody {
            inner: Inner::Upstream { incoming, failure: None, idle, silent_since: None, timer: None },
            companion: Some(companion),
        }
    }

    fn end(&mut self, ending: Ending) {
        if let Some(companion) = self.companion.take() {
            companion.end(ending);
        }
    }

    fn is_complete(&self) -> bool {
        match &self.inner {
            Inner::Own(full) => full.is_end_stream(),
            Inner::Upstream { incoming, failure, .. } => failure.is_none() && incoming.is_end_stream(),
        }
    }
}

impl<T: Companion> Drop for ResponseBody<T> {
    fn drop(&mut self) {
        // A body without bytes is never polled.
        self.end(if self.is_complete() { Ending::Complete } else { Ending::Abandoned });
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the upstream fell silent within its answer")]
struct UpstreamSilent;

impl<T: Companion + Unpin> Body for ResponseBody<T> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let frame = match &mut this.inner {
            Inner::Own(full) => {
                ready!(Pin::new(full).poll_frame(cx)).map(|frame| frame.map_err(|never| match never {}))
            }
            Inner::Upstream { failure: failure @ Some(_), .. } => {
                failure.take().map(|error| Err(BoxError::from(error)))
            }
            Inner::Upstream { incoming, failure, idle, silent_since, timer } => {
                match Pin::new(&mut *incoming).poll_frame(cx) {
                    Poll::Ready(Some(Err(error))) => {
                        // hyper throws away what it has not yet written when a body fails; it writes when one is pending.
                        *failure = Some(error);
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    Poll::Ready(frame) => {
                        *silent_since = None;
                        frame.map(|frame| frame.map(without_forbidden_trailers).map_err(BoxError::from))
                    }
                    Poll::Pending => {
                        let moved_at = || incoming.request_moved_at();
                        ready!(poll_silence(*idle, silent_since, moved_at, timer, cx));
                        Some(Err(BoxError::from(UpstreamSilent)))
                    }
                }
            }
        };
        match &frame {
            None => this.end(Ending::Complete),
            Some(Err(_)) => this.end(Ending::CutOff),
            Some(Ok(_)) if this.is_complete() => this.end(Ending::Complete),
            Some(Ok(_)) => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.is_complete()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Own(full) => full.size_hint(),
            Inner::Upstream { incoming, .. } => incoming.size_hint(),
        }
    }
}

fn without_forbidden_trailers(frame: Frame<Bytes>) -> Frame<Bytes> {
    match frame.into_data() {
        Ok(data) => Frame::data(data),
        Err(frame) => Frame::trailers(headers::trailers(frame.into_trailers().unwrap_or_default(), &[])),
    }
}

/// Ready when nothing has come, and nothing of the request has gone, for `idle`: a caller may have much to say before the
/// upstream goes on. The timer is armed at most once for each `idle`, not for each frame.
fn poll_silence(
    idle: Duration,
    silent_since: &mut Option<Instant>,
    request_moved_at: impl Fn() -> Instant,
    timer: &mut Option<Pin<Box<Sleep>>>,
    cx: &mut Context<'_>,
) -> Poll<()> {
    let since = (*silent_since.get_or_insert_with(Instant::now)).max(request_moved_at());
    let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(since + idle)));
    loop {
        ready!(timer.as_mut().poll(cx));
        if since.elapsed() >= idle {
            return Poll::Ready(());
        }
        timer.as_mut().reset(since + idle);
    }
}
