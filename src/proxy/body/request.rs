//! A request body, buffered for a replay while it is small.
//!
//! Invariants: one pass at a time reads from the caller; the buffer never exceeds `limits.replay_body`.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::FutureExt;
use http::HeaderName;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use super::BoxError;
use super::progress::{Progress, Sending};
use super::received::{ReceiveError, Received};
use crate::proxy::headers;
use crate::proxy::io::Upload;

/// A request body that can be sent more than once: frames are buffered until they exceed the limit.
#[derive(Clone)]
pub struct RequestSource(Rc<RefCell<Source>>);

struct Source {
    incoming: Received,
    /// Read ahead before the first pass.
    prefetched: Option<Result<Frame<Bytes>, ReceiveError>>,
    /// Frames read so far; `None`: they exceeded the limit.
    buffered: Option<Vec<Bytes>>,
    buffered_bytes: usize,
    buffered_bytes_max: usize,
    trailers: Option<http::HeaderMap>,
    /// Fields that the caller's trailers must not contain.
    reserved: Arc<[HeaderName]>,
    finished: bool,
    /// The body was invalid or cut off.
    broken: bool,
    /// Passes begun; only the latest may read from the caller.
    passes: usize,
    /// Finished once the caller has sent the whole body.
    upload: Option<Upload>,
}

impl RequestSource {
    pub fn new(
        incoming: Received,
        buffered_bytes_max: usize,
        reserved: Arc<[HeaderName]>,
        upload: Option<Upload>,
    ) -> RequestSource {
        let finished = incoming.is_end_stream();
        let buffered = (buffered_bytes_max > 0 || finished).then(Vec::new);
        RequestSource(Rc::new(RefCell::new(Source {
            incoming,
            prefetched: None,
            buffered,
            buffered_bytes: 0,
            buffered_bytes_max,
            trailers: None,
            reserved,
            finished,
            broken: false,
            passes: 0,
            upload,
        })))
    }

    /// Detects that a body of unknown length is empty, if its end has already arrived: a GET is then sent without a
    /// body.
    pub fn detect_empty(&self) {
        let mut source = self.0.borrow_mut();
        if source.finished || source.incoming.size_hint().exact().is_some() {
            return;
        }
        let Some(frame) = source.incoming.frame().now_or_never() else { return };
        let is_empty = |frame: &Frame<Bytes>| frame.data_ref().is_some_and(Bytes::is_empty);
        match frame {
            None => source.finish(),
            Some(Ok(frame)) if is_empty(&frame) && source.incoming.is_end_stream() => source.finish(),
            Some(frame) => source.prefetched = Some(frame),
        }
    }

    /// True if the caller's body was invalid or cut off. An HTTP/2 error on the upstream connection does not show it.
    pub fn is_broken(&self) -> bool {
        self.0.borrow().broken
    }

    /// Prepares to send the whole body again. Returns false if it is not buffered. The previous pass is superseded at
    /// once: bytes that it read from now on would be missing in the next.
    pub fn rewind(&self) -> bool {
        let mut source = self.0.borrow_mut();
        let is_whole = source.buffered.is_some();
        source.passes += usize::from(is_whole);
        is_whole
    }

    /// Begins a pass over the body from its start.
    pub fn body(&self, progress: Rc<Progress>) -> RequestBody {
        progress.set(if self.0.borrow().finished {
            Sending::Done(Instant::now())
        } else {
            Sending::AwaitingUpstream(Instant::now())
        });
        let pass = {
            let mut source = self.0.borrow_mut();
            source.passes += 1;
            source.passes
        };
        RequestBody { source: self.clone(), pass, position: 0, trailers_sent: false, progress }
    }
}

impl Source {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ReceiveError>>> {
        let frame = match self.prefetched.take() {
            None => ready!(Pin::new(&mut self.incoming).poll_frame(cx)),
            prefetched => prefetched,
        };
        let frame = match frame {
            None => {
                self.finish();
                return Poll::Ready(None);
            }
            Some(Err(error)) => {
                self.broken = true;
                return Poll::Ready(Some(Err(error)));
            }
            Some(Ok(frame)) => frame,
        };
        let frame = match frame.into_data() {
            Ok(data) => {
                self.buffer(&data);
                Frame::data(data)
            }
            Err(frame) => {
                let trailers = headers::sanitize_trailers(frame.into_trailers().unwrap_or_default(), &self.reserved);
                self.trailers = Some(trailers.clone());
                Frame::trailers(trailers)
            }
        };
        if self.incoming.is_end_stream() {
            self.finish();
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn finish(&mut self) {
        self.finished = true;
        if let Some(upload) = self.upload.take() {
            upload.finish();
        }
    }

    fn buffer(&mut self, data: &Bytes) {
        self.buffered_bytes += data.len();
        match &mut self.buffered {
            Some(buffered) if self.buffered_bytes <= self.buffered_bytes_max => buffered.push(data.clone()),
            _ => self.buffered = None,
        }
    }
}

/// One pass over a [`RequestSource`].
pub struct RequestBody {
    source: RequestSource,
    pass: usize,
    /// Index of the next frame.
    position: usize,
    trailers_sent: bool,
    progress: Rc<Progress>,
}

#[derive(Debug, thiserror::Error)]
#[error("the request is being sent again")]
struct Superseded;

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let mut source = this.source.0.borrow_mut();
        if source.passes != this.pass {
            // The connection of an earlier pass may outlive it; bytes that it read now would be missing in the later
            // pass.
            return Poll::Ready(Some(Err(BoxError::from(Superseded))));
        }
        if let Some(data) = source.buffered.as_ref().and_then(|buffered| buffered.get(this.position)).cloned() {
            this.position += 1;
            this.progress.set(Sending::AwaitingUpstream(Instant::now()));
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if source.finished {
            this.progress.set(Sending::Done(Instant::now()));
            let trailers = source.trailers.clone().filter(|_| !std::mem::replace(&mut this.trailers_sent, true));
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let Poll::Ready(frame) = source.poll_next(cx) else {
            if !this.progress.is_waiting_for_caller() {
                this.progress.set(Sending::AwaitingCaller(Instant::now()));
            }
            return Poll::Pending;
        };
        this.position += 1;
        this.trailers_sent |= matches!(&frame, Some(Ok(frame)) if frame.is_trailers());
        let now = Instant::now();
        this.progress.set(if source.finished { Sending::Done(now) } else { Sending::AwaitingUpstream(now) });
        Poll::Ready(frame.map(|frame| frame.map_err(BoxError::from)))
    }

    fn is_end_stream(&self) -> bool {
        let source = self.source.0.borrow();
        let is_read = match &source.buffered {
            Some(buffered) => source.finished && self.position >= buffered.len(),
            None => source.finished,
        };
        is_read && (source.trailers.is_none() || self.trailers_sent)
    }

    fn size_hint(&self) -> SizeHint {
        let source = self.source.0.borrow();
        let buffered: usize = source.buffered.iter().flatten().skip(self.position).map(Bytes::len).sum();
        let mut hint = source.incoming.size_hint();
        match hint.exact() {
            Some(rest) => hint.set_exact(rest + buffered as u64),
            None => hint.set_lower(hint.lower() + buffered as u64),
        }
        hint
    }
}
