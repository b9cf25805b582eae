//! Bodies on their way through: streamed, watched for silence, and kept for a replay while they are small.
//!
//! Holds: what is kept never exceeds `limits.replay_body`; an exchange is silent when neither body moves; no body is ever
//! shown as complete when it was cut off.

mod progress;

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderName;
use http_body_util::Full;
use hyper::body::{Body, Frame, SizeHint};

use super::answered::UpstreamBody;
use tokio::time::{Instant, Sleep};

use super::headers;
use super::received::{ReceiveError, Received};
use super::watched::Upload;
use progress::Sending;
pub use progress::{Progress, Silent};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request body that may be sent twice: what has been read is kept until it grows too large.
#[derive(Clone)]
pub struct RequestSource(Rc<RefCell<Source>>);

struct Source {
    incoming: Received,
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
        let frame = match ready!(Pin::new(&mut self.incoming).poll_frame(cx)) {
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

/// Whoever goes along with a body hears how it ended.
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
