//! A request body, kept for a replay while it is small.
//!
//! Invariant: one pass reads from the caller at a time; what is kept never exceeds `limits.replay_body`.

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

/// A request body that may be sent twice: what has been read is kept until it grows too large.
#[derive(Clone)]
pub struct RequestSource(Rc<RefCell<Source>>);

struct Source {
    incoming: Received,
    /// Read before the first pass began.
    ahead: Option<Result<Frame<Bytes>, ReceiveError>>,
    /// Frames read so far, while they may still be needed again.
    kept: Option<Vec<Bytes>>,
    kept_bytes: usize,
    kept_bytes_max: usize,
    trailers: Option<http::HeaderMap>,
    /// Fields that the caller's trailers must not hold.
    reserved: Arc<[HeaderName]>,
    finished: bool,
    /// What came is not valid, or broke off.
    broken: bool,
    /// How many passes have begun; only the last may read on.
    passes: usize,
    /// Told when the caller has sent everything.
    upload: Option<Upload>,
}

impl RequestSource {
    pub fn new(
        incoming: Received,
        kept_bytes_max: usize,
        reserved: Arc<[HeaderName]>,
        upload: Option<Upload>,
    ) -> RequestSource {
        let finished = incoming.is_end_stream();
        let kept = (kept_bytes_max > 0 || finished).then(Vec::new);
        RequestSource(Rc::new(RefCell::new(Source {
            incoming,
            ahead: None,
            kept,
            kept_bytes: 0,
            kept_bytes_max,
            trailers: None,
            reserved,
            finished,
            broken: false,
            passes: 0,
            upload,
        })))
    }

    /// Notices that a body of unknown length is empty, where its end has come already: a GET then leaves without a body.
    pub fn notice_empty(&self) {
        let mut source = self.0.borrow_mut();
        if source.finished || source.incoming.size_hint().exact().is_some() {
            return;
        }
        let Some(frame) = source.incoming.frame().now_or_never() else { return };
        let is_empty = |frame: &Frame<Bytes>| frame.data_ref().is_some_and(Bytes::is_empty);
        match frame {
            None => source.finish(),
            Some(Ok(frame)) if is_empty(&frame) && source.incoming.is_end_stream() => source.finish(),
            Some(frame) => source.ahead = Some(frame),
        }
    }

    /// Is it the caller's fault that the body was not sent to its end? An error of HTTP/2 does not say so.
    pub fn is_broken(&self) -> bool {
        self.0.borrow().broken
    }

    /// May the whole body be sent once more? Then the pass before reads no further: what it took while the next one is
    /// prepared would be missing there.
    pub fn reclaim(&self) -> bool {
        let mut source = self.0.borrow_mut();
        let whole = source.kept.is_some();
        source.passes += usize::from(whole);
        whole
    }

    /// A body that begins at the beginning.
    pub fn body(&self, progress: Rc<Progress>) -> RequestBody {
        progress.set(if self.0.borrow().finished {
            Sending::Done(Instant::now())
        } else {
            Sending::Upstream(Instant::now())
        });
        let pass = {
            let mut source = self.0.borrow_mut();
            source.passes += 1;
            source.passes
        };
        RequestBody { source: self.clone(), pass, at: 0, trailers_sent: false, progress }
    }
}

impl Source {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ReceiveError>>> {
        let frame = match self.ahead.take() {
            None => ready!(Pin::new(&mut self.incoming).poll_frame(cx)),
            ahead => ahead,
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
                self.keep(&data);
                Frame::data(data)
            }
            Err(frame) => {
                let trailers = headers::trailers(frame.into_trailers().unwrap_or_default(), &self.reserved);
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

    fn keep(&mut self, data: &Bytes) {
        self.kept_bytes += data.len();
        match &mut self.kept {
            Some(kept) if self.kept_bytes <= self.kept_bytes_max => kept.push(data.clone()),
            _ => self.kept = None,
        }
    }
}

/// One pass over a [`RequestSource`].
pub struct RequestBody {
    source: RequestSource,
    pass: usize,
    at: usize,
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
            // The connection of an earlier pass may outlive it; what it took now would be missing from the later one.
            return Poll::Ready(Some(Err(BoxError::from(Superseded))));
        }
        if let Some(data) = source.kept.as_ref().and_then(|kept| kept.get(this.at)).cloned() {
            this.at += 1;
            this.progress.set(Sending::Upstream(Instant::now()));
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if source.finished {
            this.progress.set(Sending::Done(Instant::now()));
            let trailers = source.trailers.clone().filter(|_| !std::mem::replace(&mut this.trailers_sent, true));
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let Poll::Ready(frame) = source.poll_next(cx) else {
            if !this.progress.is_waiting_for_caller() {
                this.progress.set(Sending::Client(Instant::now()));
            }
            return Poll::Pending;
        };
        this.at += 1;
        this.trailers_sent |= matches!(&frame, Some(Ok(frame)) if frame.is_trailers());
        let now = Instant::now();
        this.progress.set(if source.finished { Sending::Done(now) } else { Sending::Upstream(now) });
        Poll::Ready(frame.map(|frame| frame.map_err(BoxError::from)))
    }

    fn is_end_stream(&self) -> bool {
        let source = self.source.0.borrow();
        let read = source.kept.as_ref().map_or(source.finished, |kept| source.finished && self.at >= kept.len());
        read && (source.trailers.is_none() || self.trailers_sent)
    }

    fn size_hint(&self) -> SizeHint {
        let source = self.source.0.borrow();
        let again: usize = source.kept.iter().flatten().skip(self.at).map(Bytes::len).sum();
        let mut hint = source.incoming.size_hint();
        match hint.exact() {
            Some(rest) => hint.set_exact(rest + again as u64),
            None => hint.set_lower(hint.lower() + again as u64),
        }
        hint
    }
}
