//! Downstream HTTP/2 (RFC 9113): concurrent requests on one connection.
//!
//! Invariants: each request is translated to its HTTP/1.1 form, origin form inside a tunnel and absolute form
//! elsewhere, and served like one; concurrent streams, flow control windows, heads and stalled responses are bounded.
//! Not here: which absolute-form requests are for a mount (`exchange`).

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HOST};
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, Response, Uri};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use super::super::body::ResponseBody;
use super::super::io::{TimeoutKind, Watched};
use super::super::peer::Peer;
use super::super::report::ResponseReport;
use super::super::worker::Worker;
use super::super::{dispatch, headers, upgrade};
use super::{End, drive, shutdown_requested};
use crate::tasks::Tasks;

/// SETTINGS_MAX_CONCURRENT_STREAMS; the value of Envoy's edge best practices.
const STREAMS_MAX: u32 = 100;
/// Flow control windows, in bytes.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Response bytes buffered per stream while its flow control window is closed.
const SEND_BUFFER_BYTES: usize = 32 * 1024;
/// Lower bound of SETTINGS_MAX_HEADER_LIST_SIZE, which adds 32 bytes to the name and value of each field (RFC 9113
/// §6.5.2).
const HEADER_LIST_BYTES_MIN: usize = 256 * 1024;
/// Time to send GOAWAY and close.
const GOAWAY_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves `io` until either side closes.
pub async fn serve(worker: Rc<Worker>, io: Watched, peer: Rc<Peer>) {
    let snapshot = worker.snapshot();
    let (timeouts, head_bytes_max) = (snapshot.timeouts.clone(), snapshot.limits.head_bytes);
    drop(snapshot);
    let (watch, from) = (io.watch.clone(), peer.arrival.from);
    watch.multiplex(worker.state.head_budget.clone());
    let executor = StreamExecutor { tasks: worker.state.tasks.clone(), idle: timeouts.idle, pending: Rc::default() };
    let pending = executor.pending.clone();
    let mut drain = worker.state.tasks.watch();
    let service = {
        let peer = peer.clone();
        service_fn(move |request| {
            let stall = Rc::new(Stall::default());
            pending.replace(Some(stall.clone()));
            serve_one(worker.clone(), peer.clone(), request, stall)
        })
    };
    let mut connection = http2::Builder::new(executor)
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_header_list_size(header_list_bytes_max(head_bytes_max))
        .keep_alive_interval(timeouts.keep_alive)
        .enable_connect_protocol()
        .serve_connection(TokioIo::new(io), service);
    let mut timer = std::pin::pin!(sleep_until(Instant::now() + timeouts.client_head));
    let mut draining = false;
    loop {
        tokio::select! {
            biased;
            end = drive(&mut connection, &watch, timer.as_mut(), &timeouts) => {
                match end {
                    End::TimedOut(TimeoutKind::Stalled) => {
                        tracing::debug!(%from, "caller stopped reading; connection closed");
                    }
                    End::TimedOut(_) | End::HeadTooLarge => break,
                    _ => {}
                }
                return;
            }
            () = shutdown_requested(&mut drain, &peer), if !draining => {
                draining = true;
                Pin::new(&mut connection).graceful_shutdown();
            }
        }
    }
    // GOAWAY tells a caller that sends a request at this moment that it was not served. After an excessive head nothing
    // more is read.
    Pin::new(&mut connection).graceful_shutdown();
    let _ = timeout(GOAWAY_TIMEOUT, &mut connection).await;
}

/// SETTINGS_MAX_HEADER_LIST_SIZE: larger than our own limits, so that we, not h2, respond to a head that is too large.
fn header_list_bytes_max(head_bytes_max: usize) -> u32 {
    u32::try_from((2 * head_bytes_max).max(HEADER_LIST_BYTES_MIN)).unwrap_or(u32::MAX)
}

async fn serve_one(
    worker: Rc<Worker>,
    peer: Rc<Peer>,
    mut request: Request<Incoming>,
    stall: Rc<Stall>,
) -> Result<Response<StallTrackedBody>, Infallible> {
    let websocket = upgrade::from_extended_connect(&mut request);
    headers::join_cookies(request.headers_mut());
    add_host(&mut request);
    if peer.tunnel.is_some() && request.method() != Method::CONNECT {
        let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        *request.uri_mut() = Uri::from(path);
    }
    let mut response = dispatch::serve(worker, peer, request).await;
    if websocket {
        upgrade::to_extended_connect(&mut response);
    }
    response.headers_mut().remove(CONNECTION);
    // Counts as stalled from the start: with a closed window, h2 does not even poll the body.
    stall.since.set(Some(Instant::now()));
    Ok(response.map(|inner| StallTrackedBody { inner, stall }))
}

/// Copies `:authority` to Host, as HTTP/1.1 has it. A differing Host field stays as a second one, and two Host fields
/// are refused.
fn add_host(request: &mut Request<Incoming>) {
    let authority = request.uri().authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    if let Some(authority) = authority
        && request.headers().get_all(HOST).iter().ne([&authority])
    {
        request.headers_mut().append(HOST, authority);
    }
}

/// When response data of one stream began to wait for the caller's flow control window.
#[derive(Default)]
struct Stall {
    since: Cell<Option<Instant>>,
}

/// A response body that updates its stream's [`Stall`].
struct StallTrackedBody {
    inner: ResponseBody<ResponseReport>,
    stall: Rc<Stall>,
}

impl Body for StallTrackedBody {
    type Data = Bytes;
    type Error = <ResponseBody<ResponseReport> as Body>::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        let frame = Pin::new(&mut this.inner).poll_frame(cx);
        this.stall.since.set(frame.is_ready().then(Instant::now));
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Spawns the streams of one connection, each with a stall timeout of `idle`.
#[derive(Clone)]
struct StreamExecutor {
    tasks: Tasks,
    idle: Duration,
    /// Belongs to the request that hyper has just passed to the service; hyper spawns its stream next.
    pending: Rc<RefCell<Option<Rc<Stall>>>>,
}

impl<F: Future<Output = ()> + 'static> Executor<F> for StreamExecutor {
    fn execute(&self, stream: F) {
        match self.pending.take() {
            Some(stall) => self.tasks.spawn_local(with_stall_timeout(stream, stall, self.idle)),
            None => self.tasks.spawn_local(stream),
        }
    }
}

/// Runs a stream; drops it, which resets it, once it has been stalled for `idle`.
async fn with_stall_timeout(stream: impl Future<Output = ()>, stall: Rc<Stall>, idle: Duration) {
    let mut stream = std::pin::pin!(stream);
    let mut timer: Option<Pin<Box<Sleep>>> = None;
    std::future::poll_fn(|cx| {
        if stream.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        // After a window update the poll above has either sent data, which moves `since`, or is still stalled.
        let Some(since) = stall.since.get() else { return Poll::Pending };
        let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(since + idle)));
        while timer.as_mut().poll(cx).is_ready() {
            if since.elapsed() >= idle {
                tracing::debug!("caller stopped reading the response; HTTP/2 stream reset");
                return Poll::Ready(());
            }
            timer.as_mut().reset(since + idle);
        }
        Poll::Pending
    })
    .await;
}
