//! HTTP/2 from a caller (RFC 9113): many requests at once on one connection.
//!
//! Holds: each request is served as one over HTTP/1.1 would be, inside a tunnel in origin form, else in absolute form; what a
//! caller may keep open or hold back is bounded: streams, windows, heads, and the time for which it takes nothing of an answer.
//! Not here: which requests in absolute form are for a mount (`exchange`).

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
use super::super::io::{Overdue, Watched};
use super::super::peer::Peer;
use super::super::report::ResponseReport;
use super::super::worker::Worker;
use super::super::{dispatch, headers, upgrade};
use super::{End, last_request, until};
use crate::tasks::Tasks;

/// What a caller may have under way at once, as Envoy's guide for edges has it.
const STREAMS_MAX: u32 = 100;
/// What a caller may send ahead on one stream and on all of a connection, in bytes.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// What is taken of a response before its stream's window has room for it.
const SEND_BUFFER_BYTES: usize = 32 * 1024;
/// What h2 reads of a head at least. Here a field counts 32 bytes beside its name and value (RFC 9113 §6.5.2).
const HEADER_LIST_BYTES: usize = 256 * 1024;
/// How long the end of an idle connection may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// Serves `io` until either side has had enough.
pub async fn serve(worker: Rc<Worker>, io: Watched, peer: Rc<Peer>) {
    let snapshot = worker.snapshot();
    let (timeouts, head_bytes_max) = (snapshot.timeouts.clone(), snapshot.limits.head_bytes);
    drop(snapshot);
    let watch = io.watch.clone();
    watch.multiplex(worker.shared.head_budget.clone());
    let streams = Streams { tasks: worker.shared.tasks.clone(), idle: timeouts.idle, coming: Rc::default() };
    let coming = streams.coming.clone();
    let mut drain = worker.shared.tasks.watch();
    let service = {
        let peer = peer.clone();
        service_fn(move |request| {
            let pace = Rc::new(Pace::default());
            coming.replace(Some(pace.clone()));
            serve_one(worker.clone(), peer.clone(), request, pace)
        })
    };
    let mut connection = http2::Builder::new(streams)
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
            end = until(&mut connection, &watch, timer.as_mut(), &timeouts) => {
                match end {
                    End::Late(Overdue::Stalled) => tracing::debug!("a caller stopped reading and was dropped"),
                    End::Late(_) | End::HeadTooLarge => break,
                    _ => {}
                }
                return;
            }
            () = last_request(&mut drain, &peer), if !draining => {
                draining = true;
                Pin::new(&mut connection).graceful_shutdown();
            }
        }
    }
    // A caller that would send just now learns by GOAWAY what was not served. Nothing more is read of one that sent too much.
    Pin::new(&mut connection).graceful_shutdown();
    let _ = timeout(GOODBYE, &mut connection).await;
}

/// What h2 reads of a head: more than our own bounds on one, so that it is we who answer a head that is too large.
fn header_list_bytes_max(head_bytes_max: usize) -> u32 {
    u32::try_from((2 * head_bytes_max).max(HEADER_LIST_BYTES)).unwrap_or(u32::MAX)
}

async fn serve_one(
    worker: Rc<Worker>,
    peer: Rc<Peer>,
    mut request: Request<Incoming>,
    pace: Rc<Pace>,
) -> Result<Response<Paced>, Infallible> {
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
    // Without room for a byte its body is not even asked for one.
    pace.held_since.set(Some(Instant::now()));
    Ok(response.map(|inner| Paced { inner, pace }))
}

/// The authority stands in Host, too, as HTTP/1.1 has it. A Host beside it that says something else stays, and two hosts are
/// refused.
fn add_host(request: &mut Request<Incoming>) {
    let authority = request.uri().authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    if let Some(authority) = authority
        && request.headers().get_all(HOST).iter().ne([&authority])
    {
        request.headers_mut().append(HOST, authority);
    }
}

/// Where one answer stands: since when the caller has taken nothing of what there is for it.
#[derive(Default)]
struct Pace {
    held_since: Cell<Option<Instant>>,
}

/// An answer's body that tells its pace.
struct Paced {
    inner: ResponseBody<ResponseReport>,
    pace: Rc<Pace>,
}

impl Body for Paced {
    type Data = Bytes;
    type Error = <ResponseBody<ResponseReport> as Body>::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        let frame = Pin::new(&mut this.inner).poll_frame(cx);
        this.pace.held_since.set(frame.is_ready().then(Instant::now));
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Runs the streams of one connection, and ends one of which the caller takes nothing for `idle`.
#[derive(Clone)]
struct Streams {
    tasks: Tasks,
    idle: Duration,
    /// Of the request that has just come: hyper makes its future, then runs it.
    coming: Rc<RefCell<Option<Rc<Pace>>>>,
}

impl<F: Future<Output = ()> + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        match self.coming.take() {
            Some(pace) => self.tasks.spawn_local(taken_in_time(stream, pace, self.idle)),
            None => self.tasks.spawn_local(stream),
        }
    }
}

async fn taken_in_time(stream: impl Future<Output = ()>, pace: Rc<Pace>, idle: Duration) {
    let mut stream = std::pin::pin!(stream);
    let mut timer: Option<Pin<Box<Sleep>>> = None;
    std::future::poll_fn(|cx| {
        if stream.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        // Polled again for a window update, it has given out more, or it stands where it stood.
        let Some(since) = pace.held_since.get() else { return Poll::Pending };
        let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(since + idle)));
        while timer.as_mut().poll(cx).is_ready() {
            if since.elapsed() >= idle {
                tracing::debug!("a caller took nothing of its answer, and the stream was reset");
                return Poll::Ready(());
            }
            timer.as_mut().reset(since + idle);
        }
        Poll::Pending
    })
    .await;
}
