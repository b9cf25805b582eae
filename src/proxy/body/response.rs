//! The body of a response: the upstream's, or the proxy's own.
//!
//! Invariants: the observer is notified of the end exactly once; an upstream failure reaches the caller as a failure.

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

/// A response body that notifies its observer of the end exactly once.
pub struct ResponseBody<T: EndObserver> {
    inner: Inner,
    observer: Option<T>,
}

enum Inner {
    Generated(Full<Bytes>),
    Upstream {
        incoming: UpstreamBody,
        /// The error that ended the body, until it is returned.
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
    /// The upstream closed early or its idle timeout expired.
    CutOff,
    /// The caller disconnected before the end.
    Abandoned,
}

/// Is notified of how a response body ended.
pub trait EndObserver {
    fn on_end(self, ending: Ending);
}

impl<T: EndObserver> ResponseBody<T> {
    pub fn generated(text: Bytes, observer: T) -> ResponseBody<T> {
        ResponseBody { inner: Inner::Generated(Full::new(text)), observer: Some(observer) }
    }

    pub fn upstream(incoming: UpstreamBody, idle: Duration, observer: T) -> ResponseBody<T> {
        ResponseBody {
            inner: Inner::Upstream { incoming, failure: None, idle, silent_since: None, timer: None },
            observer: Some(observer),
        }
    }

    fn end(&mut self, ending: Ending) {
        if let Some(observer) = self.observer.take() {
            observer.on_end(ending);
        }
    }

    fn is_complete(&self) -> bool {
        match &self.inner {
            Inner::Generated(full) => full.is_end_stream(),
            Inner::Upstream { incoming, failure, .. } => failure.is_none() && incoming.is_end_stream(),
        }
    }
}

impl<T: EndObserver> Drop for ResponseBody<T> {
    fn drop(&mut self) {
        // hyper never polls an empty body.
        self.end(if self.is_complete() { Ending::Complete } else { Ending::Abandoned });
    }
}

#[derive(Debug, thiserror::Error)]
#[error("idle timeout: the upstream stopped sending its response body")]
struct UpstreamSilent;

impl<T: EndObserver + Unpin> Body for ResponseBody<T> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let frame = match &mut this.inner {
            Inner::Generated(full) => {
                ready!(Pin::new(full).poll_frame(cx)).map(|frame| frame.map_err(|never| match never {}))
            }
            Inner::Upstream { failure: failure @ Some(_), .. } => {
                failure.take().map(|error| Err(BoxError::from(error)))
            }
            Inner::Upstream { incoming, failure, idle, silent_since, timer } => {
                match Pin::new(&mut *incoming).poll_frame(cx) {
                    Poll::Ready(Some(Err(error))) => {
                        // When a body fails, hyper discards bytes it has not written; when a body is pending, it writes
                        // them.
                        *failure = Some(error);
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    Poll::Ready(frame) => {
                        *silent_since = None;
                        frame.map(|frame| frame.map(sanitize_trailers).map_err(BoxError::from))
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
            Inner::Generated(full) => full.size_hint(),
            Inner::Upstream { incoming, .. } => incoming.size_hint(),
        }
    }
}

fn sanitize_trailers(frame: Frame<Bytes>) -> Frame<Bytes> {
    match frame.into_data() {
        Ok(data) => Frame::data(data),
        Err(frame) => Frame::trailers(headers::sanitize_trailers(frame.into_trailers().unwrap_or_default(), &[])),
    }
}

/// Ready once neither response nor request body has moved for `idle`: a long upload may precede the rest of the
/// response. The timer is armed at most once per `idle`, not per frame.
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
