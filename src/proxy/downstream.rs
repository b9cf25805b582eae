//! One downstream connection: hyper serves it; this file enforces its timeouts and size limits.
//!
//! Invariants: a request head has a deadline and a size limit, a keep-alive connection an idle timeout; a caller that
//! stops reading is disconnected. On drain, the request in flight finishes and the connection closes. Not here: HTTP/2
//! (`http2`).

mod http2;

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

use super::arrival::PeerAddress;
use super::body::ResponseBody;
use super::dispatch;
use super::error::{ErrorContext, LONG_TARGET, ProxyError, to_wire};
use super::headers;
use super::io::{Socket, TimeoutKind, Watch, Watched, caller_disconnected};
use super::peer::Peer;
use super::report::ResponseReport;
use super::worker::Worker;
use crate::model::{Limits, LogRequests, Timeouts};
use crate::tasks::{Phase, PhaseWatch};

/// The start of the HTTP/2 connection preface (RFC 9113 §3.4). No HTTP/1.1 request starts with it.
const PREFACE: &[u8] = b"PRI ";
/// Maximum duration of a lingering close.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves `io` over HTTP/1.1 or HTTP/2, by its first bytes.
pub async fn serve(worker: Rc<Worker>, mut io: Watched, peer: Rc<Peer>) {
    let snapshot = worker.snapshot();
    let mut drain = worker.state.tasks.watch();
    let first = tokio::select! {
        first = timeout(snapshot.timeouts.client_head, io.peek_prefix(PREFACE)) => first,
        () = drain.reached(Phase::Drain) => return,
    };
    match first {
        Ok(Ok(true)) => Box::pin(http2::serve(worker, io, peer)).await,
        Ok(Ok(false)) => serve_http1(worker, io, peer).await,
        Err(_) if io.has_buffered() => {
            Box::pin(refuse(&worker, peer.arrival.from, io, ProxyError::RequestTimeout, &snapshot.limits)).await;
        }
        Ok(Err(_)) | Err(_) => {}
    }
}

/// Serves HTTP/1.1 until either side closes.
async fn serve_http1(worker: Rc<Worker>, io: Watched, peer: Rc<Peer>) {
    let snapshot = worker.snapshot();
    let (timeouts, limits) = (snapshot.timeouts.clone(), snapshot.limits.clone());
    drop(snapshot);
    let (watch, from) = (io.watch.clone(), peer.arrival.from);
    watch.guard(limits.head_bytes, worker.state.head_budget.clone());
    let service = {
        let (worker, peer) = (worker.clone(), peer.clone());
        let (watch, socket) = (watch.clone(), io.own_socket());
        service_fn(move |request: Request<Incoming>| {
            let socket = socket.clone().filter(|_| request.version() == Version::HTTP_10);
            // Boxed, because hyper stores one future inline for the life of the connection, idle or not; boxed at once,
            // because moving a future of this size is expensive.
            Box::pin(serve_one(worker.clone(), peer.clone(), request, (watch.clone(), socket)))
        })
    };
    // Larger than our own limit, so that we, not hyper, respond to a head that is too large.
    let buffer_bytes = 2 * limits.head_bytes + 16 * 1024;
    // A tunnel inside HTTP/2 learns of a stream reset only by reading.
    let half_close = !io.is_inside_http2();
    let mut connection = http1::Builder::new()
        .half_close(half_close)
        .max_buf_size(buffer_bytes)
        .max_headers(headers::FIELDS_MAX)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    let mut timer = std::pin::pin!(sleep_until(Instant::now() + timeouts.client_head));
    let mut disconnected = std::pin::pin!(caller_disconnected(&watch));
    let mut phase = worker.state.tasks.watch();
    let mut draining = false;
    let end = loop {
        tokio::select! {
            biased;
            // Polled before hyper, because this may request a probe that hyper's flush writes.
            () = &mut disconnected => return tracing::debug!(%from, "caller disconnected; request cancelled"),
            end = drive(&mut connection, &watch, timer.as_mut(), &timeouts) => break end,
            () = shutdown_requested(&mut phase, &peer), if !draining => {
                draining = true;
                Pin::new(&mut connection).graceful_shutdown();
            }
        }
    };
    let suppressed = watch.unguard();
    let error = match end {
        End::TimedOut(TimeoutKind::Idle) => return,
        End::TimedOut(TimeoutKind::Stalled) => {
            return tracing::debug!(%from, "caller stopped reading; connection closed");
        }
        End::TimedOut(TimeoutKind::Head) => Some(ProxyError::RequestTimeout),
        End::HeadTooLarge => Some(ProxyError::HeadTooLarge),
        End::Overloaded => Some(ProxyError::Overloaded),
        End::Done(Err(error)) if suppressed && error.is_parse_too_large() => Some(ProxyError::HeadTooLarge),
        End::Done(Err(_)) if suppressed => Some(ProxyError::BadRequestTarget("the request is not valid HTTP/1.1")),
        End::Done(_) if watch.has_abandoned_upload() => None,
        End::Done(_) => return,
    };
    let Some(parts) = connection.into_parts() else { return };
    let mut io = parts.io.into_inner();
    let line_too_long = is_line_too_long(&parts.read_buf, limits.head_bytes);
    // A refusal lingers for up to a second; many at once must not hold their read buffers.
    drop(parts.read_buf);
    match error {
        None => Box::pin(close_lingering(&mut io, &[], UNREAD_UPLOAD_BYTES_MAX)).await,
        Some(ProxyError::HeadTooLarge) if line_too_long => {
            Box::pin(refuse(&worker, from, io, ProxyError::TargetTooLong(LONG_TARGET), &limits)).await;
        }
        Some(error) => Box::pin(refuse(&worker, from, io, error, &limits)).await,
    }
}

/// An HTTP/1.1 response body with backpressure: it reads from the upstream only while the caller reads. Without it,
/// hyper would buffer more in memory for each stalled download.
struct DownstreamBody {
    inner: ResponseBody<ResponseReport>,
    watch: Arc<Watch>,
    /// Set while closing the connection would look like the end of this body (RFC 9112 §8): closing sends RST instead.
    unfinished: Option<Socket>,
}

impl DownstreamBody {
    /// `socket` is set for HTTP/1.0, where a body without a length ends with the connection.
    fn new(inner: ResponseBody<ResponseReport>, watch: Arc<Watch>, socket: Option<Socket>) -> DownstreamBody {
        let ends_with_connection = !inner.is_end_stream() && inner.size_hint().exact().is_none();
        let unfinished = socket.filter(|_| ends_with_connection);
        if let Some(socket) = &unfinished {
            socket.set_resets(true);
        }
        DownstreamBody { inner, watch, unfinished }
    }
}

impl Body for DownstreamBody {
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
) -> Result<Response<DownstreamBody>, Infallible> {
    let version = request.version();
    let mut response = dispatch::serve(worker, peer, request).await;
    if version == Version::HTTP_10 {
        // Makes hyper close: a proxy must not keep an HTTP/1.0 connection alive (RFC 9112 §9.3).
        *response.version_mut() = version;
    }
    Ok(response.map(|inner| DownstreamBody::new(inner, watch, socket)))
}

/// True if the request line alone is too long, for our limit or for the parser.
fn is_line_too_long(head: &[u8], head_bytes_max: usize) -> bool {
    let line = head.iter().position(|b| *b == b'\n');
    line.is_none_or(|bytes| bytes > head_bytes_max.min(TARGET_BYTES_MAX))
}

/// Returns when the connection must close after the requests in flight.
async fn shutdown_requested(phase: &mut PhaseWatch, peer: &Peer) {
    tokio::select! {
        () = phase.reached(Phase::Drain) => {}
        () = peer.tunnel_caller_removed() => {}
    }
}

/// Bytes read and discarded of an upload after its response, so that the caller receives the response instead of a
/// reset.
const UNREAD_UPLOAD_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The longest request target that hyper parses.
const TARGET_BYTES_MAX: usize = u16::MAX as usize - 1;

/// Why a connection ended.
enum End {
    Done(hyper::Result<()>),
    HeadTooLarge,
    /// The memory budget for unfinished heads is exhausted.
    Overloaded,
    TimedOut(TimeoutKind),
}

/// Drives the connection. Ends it early when a head exceeds its limit or a deadline passes. The deadline is recomputed
/// after every poll, because it may move either way.
async fn drive<C>(connection: &mut C, watch: &Watch, mut timer: Pin<&mut Sleep>, timeouts: &Timeouts) -> End
where
    C: Future<Output = hyper::Result<()>> + Unpin,
{
    std::future::poll_fn(|cx| {
        if let Poll::Ready(result) = Pin::new(&mut *connection).poll(cx) {
            if let Err(error) = &result {
                tracing::debug!(%error, "downstream connection ended");
            }
            return Poll::Ready(End::Done(result));
        }
        if watch.is_head_over() {
            return Poll::Ready(End::HeadTooLarge);
        }
        if !watch.is_within_budget() {
            return Poll::Ready(End::Overloaded);
        }
        let next = watch.next_deadline(timeouts);
        if let Some((deadline, _)) = next
            && deadline < timer.deadline()
        {
            timer.as_mut().reset(deadline);
        }
        while timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            match next {
                Some((deadline, overdue)) if deadline <= now => return Poll::Ready(End::TimedOut(overdue)),
                Some((deadline, _)) => timer.as_mut().reset(deadline),
                None => timer.as_mut().reset(now + timeouts.idle),
            }
        }
        Poll::Pending
    })
    .await
}

/// Responds in place of hyper, which no longer serves the connection, and closes it.
async fn refuse(worker: &Worker, from: PeerAddress, mut io: Watched, error: ProxyError, limits: &Limits) {
    worker.state.metrics.errors.with_label_values(&["", error.code()]).inc();
    let request_id = format!("{:016x}", fastrand::u64(..));
    if worker.snapshot().log_requests != LogRequests::Off {
        tracing::warn!(code = error.code(), request_id, %from, "request refused");
    }
    let response = to_wire(&error.response(ErrorContext { request_id: &request_id, ..ErrorContext::default() }));
    close_lingering(&mut io, &response, 4 * limits.head_bytes).await;
}

/// Lingering close: sends the last bytes of a connection, then discards what the peer sends for up to a second. Closing
/// with unread bytes would send RST, and the peer might never receive the response.
pub async fn close_lingering<T: AsyncRead + AsyncWrite + Unpin>(
    io: &mut T,
    last_bytes: &[u8],
    discard_bytes_max: usize,
) {
    let closing = async {
        io.write_all(last_bytes).await?;
        io.shutdown().await?;
        let mut buffer = [0; 4096];
        let mut discarded = 0;
        while discarded < discard_bytes_max {
            match io.read(&mut buffer).await? {
                0 => break,
                count => discarded += count,
            }
        }
        io::Result::Ok(())
    };
    let _ = timeout(LINGER_TIMEOUT, closing).await;
}
