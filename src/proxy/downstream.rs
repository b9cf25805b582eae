//! One connection from a caller: hyper serves it, this file watches its time and its size.
//!
//! Holds: a head has a deadline and a bound, a kept connection a limited silence, and a caller that stops reading is
//! dropped. On drain the request in flight finishes and the connection closes.

mod multiplexed;

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Version};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use super::arrival::From;
use super::body::ResponseBody;
use super::dispatch;
use super::error::{About, LONG_TARGET, ProxyError, to_wire};
use super::headers;
use super::io::{Overdue, Socket, Watch, Watched, caller_gone};
use super::peer::Peer;
use super::report::ResponseReport;
use super::worker::Worker;
use crate::model::{Limits, LogRequests, Timeouts};
use crate::tasks::{Phase, PhaseWatch};

/// What a client that speaks HTTP/2 sends first (RFC 9113 §3.4), as far as no request over HTTP/1.1 begins like it.
const PREFACE: &[u8] = b"PRI ";

/// Serves `io`, whichever version of HTTP is spoken on it.
pub async fn serve(worker: Rc<Worker>, mut io: Watched, peer: Rc<Peer>) {
    let snapshot = worker.snapshot();
    let mut drain = worker.shared.tasks.watch();
    let first = tokio::select! {
        first = timeout(snapshot.timeouts.client_head, io.begins_with(PREFACE)) => first,
        () = drain.reached(Phase::Drain) => return,
    };
    match first {
        Ok(Ok(true)) => Box::pin(multiplexed::serve(worker, io, peer)).await,
        Ok(Ok(false)) => one_by_one(worker, io, peer).await,
        Err(_) if io.has_begun() => {
            Box::pin(refuse(&worker, peer.arrival.from, io, ProxyError::RequestTimeout, &snapshot.limits)).await;
        }
        Ok(Err(_)) | Err(_) => {}
    }
}

/// HTTP/1.1, until either side has had enough.
async fn one_by_one(worker: Rc<Worker>, io: Watched, peer: Rc<Peer>) {
    let snapshot = worker.snapshot();
    let (timeouts, limits) = (snapshot.timeouts.clone(), snapshot.limits.clone());
    drop(snapshot);
    let (watch, from) = (io.watch.clone(), peer.arrival.from);
    watch.guard(limits.head_bytes, worker.shared.head_budget.clone());
    let service = {
        let (worker, peer) = (worker.clone(), peer.clone());
        let (watch, socket) = (watch.clone(), io.own_socket());
        service_fn(move |request: Request<Incoming>| {
            let socket = socket.clone().filter(|_| request.version() == Version::HTTP_10);
            // Boxed, because hyper keeps room for one future as long as a connection lives, idle or not; at once, because its
            // size makes each move dear.
            Box::pin(serve_one(worker.clone(), peer.clone(), request, (watch.clone(), socket)))
        })
    };
    // Larger than our own bound, so that it is we who answer a head that is too large.
    let buffer_bytes = 2 * limits.head_bytes + 16 * 1024;
    // Inside HTTP/2 only reading shows that a stream was reset.
    let half_close = !io.is_inside_http2();
    let mut connection = http1::Builder::new()
        .half_close(half_close)
        .max_buf_size(buffer_bytes)
        .max_headers(headers::FIELDS_MAX)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    let mut timer = std::pin::pin!(sleep_until(Instant::now() + timeouts.client_head));
    let mut gone = std::pin::pin!(caller_gone(&watch));
    let mut phase = worker.shared.tasks.watch();
    let mut draining = false;
    let end = loop {
        tokio::select! {
            biased;
            // Before hyper, which flushes the question that this may ask.
            () = &mut gone => return tracing::debug!(%from, "caller gone; its request is cancelled"),
            end = until(&mut connection, &watch, timer.as_mut(), &timeouts) => break end,
            () = last_request(&mut phase, &peer), if !draining => {
                draining = true;
                Pin::new(&mut connection).graceful_shutdown();
            }
        }
    };
    let held_back = watch.unguard();
    let error = match end {
        End::Late(Overdue::Idle) => return,
        End::Late(Overdue::Stalled) => return tracing::debug!("a caller stopped reading and was dropped"),
        End::Late(Overdue::Head) => Some(ProxyError::RequestTimeout),
        End::HeadTooLarge => Some(ProxyError::HeadTooLarge),
        End::Overloaded => Some(ProxyError::Overloaded),
        End::Done(Err(error)) if held_back && error.is_parse_too_large() => Some(ProxyError::HeadTooLarge),
        End::Done(Err(_)) if held_back => Some(ProxyError::BadRequestTarget("the request is not valid HTTP/1.1")),
        End::Done(_) if watch.has_abandoned() => None,
        End::Done(_) => return,
    };
    let Some(parts) = connection.into_parts() else { return };
    let mut io = parts.io.into_inner();
    let line_too_long = is_line_too_long(&parts.read_buf, limits.head_bytes);
    // A refusal lingers for a moment, and many at once must not keep what they have read.
    drop(parts.read_buf);
    match error {
        None => Box::pin(say_last(&mut io, &[], LATE_BYTES_MAX)).await,
        Some(ProxyError::HeadTooLarge) if line_too_long => {
            Box::pin(refuse(&worker, from, io, ProxyError::TargetTooLong(LONG_TARGET), &limits)).await;
        }
        Some(error) => Box::pin(refuse(&worker, from, io, error, &limits)).await,
    }
}

/// A response body that is read from the upstream only while the caller reads: what hyper would take beyond is memory that a
/// stalled download holds.
struct Outgoing {
    inner: ResponseBody<ResponseReport>,
    watch: Arc<Watch>,
    /// Set while the end of the connection would look like the end of this body (RFC 9112 §8): closing resets the socket.
    unfinished: Option<Socket>,
}

impl Outgoing {
    /// `socket` is that of a caller over HTTP/1.0, for which a body without a length ends with the connection.
    fn new(inner: ResponseBody<ResponseReport>, watch: Arc<Watch>, socket: Option<Socket>) -> Outgoing {
        let ends_with_connection = !inner.is_end_stream() && inner.size_hint().exact().is_none();
        let unfinished = socket.filter(|_| ends_with_connection);
        if let Some(socket) = &unfinished {
            socket.set_resets(true);
        }
        Outgoing { inner, watch, unfinished }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = <ResponseBody<ResponseReport> as Body>::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        ready!(this.watch.poll_unblocked(cx));
        let frame = ready!(Pin::new(&mut this.inner).poll_frame(cx));
        let is_complete = match &frame {
            None => true,
            Some(Ok(_)) => this.inner.is_end_stream(),
            Some(Err(_)) => false,
        };
        if is_complete && let Some(socket) = this.unfinished.take() {
            socket.set_resets(false);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

async fn serve_one(
    worker: Rc<Worker>,
    peer: Rc<Peer>,
    request: Request<Incoming>,
    (watch, socket): (Arc<Watch>, Option<Socket>),
) -> Result<Response<Outgoing>, Infallible> {
    let version = request.version();
    let mut response = dispatch::serve(worker, peer, request).await;
    if version == Version::HTTP_10 {
        // So that hyper closes: a proxy keeps no connection with a caller over HTTP/1.0 (RFC 9112 §9.3).
        *response.version_mut() = version;
    }
    Ok(response.map(|inner| Outgoing::new(inner, watch, socket)))
}

/// Is it the first line alone that is too large, for us or for the parser?
fn is_line_too_long(head: &[u8], head_bytes_max: usize) -> bool {
    let line = head.iter().position(|b| *b == b'\n');
    line.is_none_or(|bytes| bytes > head_bytes_max.min(TARGET_BYTES_MAX))
}

/// Returns when a connection shall serve no more than it does.
async fn last_request(phase: &mut PhaseWatch, peer: &Peer) {
    tokio::select! {
        () = phase.reached(Phase::Drain) => {}
        () = peer.over() => {}
    }
}

/// What is read of an upload that nobody wants any more, so that its caller sees the answer.
const LATE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The longest target that hyper parses.
const TARGET_BYTES_MAX: usize = u16::MAX as usize - 1;

enum End {
    Done(hyper::Result<()>),
    HeadTooLarge,
    /// The memory for unfinished heads is taken.
    Overloaded,
    Late(Overdue),
}

/// Drives the connection; ends early where a head outgrows its bound, or somebody is late. The deadline is looked at
/// after every step, because it may move either way.
async fn until<C>(connection: &mut C, watch: &Watch, mut timer: Pin<&mut Sleep>, timeouts: &Timeouts) -> End
where
    C: Future<Output = hyper::Result<()>> + Unpin,
{
    std::future::poll_fn(|cx| {
        if let Poll::Ready(result) = Pin::new(&mut *connection).poll(cx) {
            if let Err(error) = &result {
                tracing::debug!(%error, "connection from a caller ended");
            }
            return Poll::Ready(End::Done(result));
        }
        if watch.is_head_over() {
            return Poll::Ready(End::HeadTooLarge);
        }
        if !watch.is_within_budget() {
            return Poll::Ready(End::Overloaded);
        }
        let next = watch.next(timeouts);
        if let Some((deadline, _)) = next
            && deadline < timer.deadline()
        {
            timer.as_mut().reset(deadline);
        }
        while timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            match next {
                Some((deadline, overdue)) if deadline <= now => return Poll::Ready(End::Late(overdue)),
                Some((deadline, _)) => timer.as_mut().reset(deadline),
                None => timer.as_mut().reset(now + timeouts.idle),
            }
        }
        Poll::Pending
    })
    .await
}

/// Answers in hyper's place, then lets the caller finish talking for a moment, so that it reads the answer.
async fn refuse(worker: &Worker, from: From, mut io: Watched, error: ProxyError, limits: &Limits) {
    worker.shared.metrics.errors.with_label_values(&["", error.code()]).inc();
    let request_id = format!("{:016x}", fastrand::u64(..));
    if worker.snapshot().log_requests != LogRequests::Off {
        tracing::warn!(code = error.code(), request_id, %from, "request refused");
    }
    let answer = to_wire(&error.response(About { request_id: &request_id, ..About::default() }));
    say_last(&mut io, &answer, 4 * limits.head_bytes).await;
}

/// Sends the last bytes of a connection and discards what the peer still says for a moment: closing with bytes unread
/// would reset the connection, and the peer might never see the answer.
pub async fn say_last<T: AsyncRead + AsyncWrite + Unpin>(io: &mut T, answer: &[u8], discard_bytes_max: usize) {
    let talk = async {
        io.write_all(answer).await?;
        io.shutdown().await?;
        let mut rest = [0; 4096];
        let mut discarded = 0;
        while discarded < discard_bytes_max {
            match io.read(&mut rest).await? {
                0 => break,
                count => discarded += count,
            }
        }
        io::Result::Ok(())
    };
    let _ = timeout(Duration::from_secs(1), talk).await;
}
