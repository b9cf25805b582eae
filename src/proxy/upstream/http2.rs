//! A connection over HTTP/2, shared by as many requests as its upstream takes at once (RFC 9113 §5.1.2).
//!
//! Holds: a request is put on a connection only while there is room for its stream; until the upstream has said how much
//! room there is, there is none.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::rt::Executor;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::IntGauge;
use tokio::io::{AsyncRead, AsyncWrite};

use super::super::body::RequestBody;
use super::super::headers::FIELDS_MAX;
use super::connections::Home;
use super::entry::{Counted, IdleId};
use super::heard::{Counting, Heard};
use crate::gate::Permit;
use crate::tasks::Tasks;

/// Streams on one connection; beyond them another connection is better.
const STREAMS_MAX: usize = 100;
/// Flow control windows, in bytes: what a stalled download holds is bounded by the stream's; the connection's has as much for
/// each stream, so that one stalled caller does not stop the others.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = STREAMS_MAX as u32 * STREAM_WINDOW;
/// For which HTTP/2 counts fields larger than `limits.head` does: 32 bytes for each (RFC 9113 §6.5.2).
const HEADER_LIST_EXTRA_BYTES: usize = 32 * FIELDS_MAX;
/// A connection in use on which nothing comes for so long is asked whether it lives, and given so long to answer.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Spawns on the worker's own runtime.
#[derive(Clone)]
struct Local {
    tasks: Tasks,
    /// Woken after each step of what it runs, once: hyper reads frames in a task of its own, and tells no one of settings.
    stepped: Rc<RefCell<Option<Waker>>>,
}

impl<F: Future + 'static> Executor<F> for Local {
    fn execute(&self, future: F) {
        let stepped = self.stepped.clone();
        self.tasks.spawn_local(async move {
            let mut future = pin!(future);
            poll_fn(|cx| {
                let step = future.as_mut().poll(cx);
                if let Some(waker) = stepped.take() {
                    waker.wake();
                }
                step
            })
            .await;
        });
    }
}

/// What the upstream has said that it takes.
#[derive(Clone, Copy, Default)]
struct PeerSettings {
    /// Streams at once.
    streams: usize,
    /// WebSocket (RFC 8441).
    websocket: bool,
}

pub struct Http2Conn {
    request: SendRequest<RequestBody>,
    heard: Heard,
    peer_settings: Rc<Cell<PeerSettings>>,
    in_flight: Cell<usize>,
    /// Its name among the idle connections while it is one.
    pub idle: Cell<Option<IdleId>>,
    home: Home,
    counted: Counted,
    idle_gauge: IntGauge,
    active_gauge: IntGauge,
}

impl Http2Conn {
    /// One in use, and its first stream, once the upstream has said how many streams it takes; `None`: it has closed instead. The
    /// caller sets the deadline.
    pub async fn open<T>(
        stream: T,
        head_bytes_max: usize,
        tasks: &Tasks,
        (idle_gauge, active_gauge): (&IntGauge, &IntGauge),
        (home, in_use): (Home, Permit),
    ) -> hyper::Result<Option<Stream>>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (stream, heard) = Counting::new(stream);
        let stepped = Rc::<RefCell<Option<Waker>>>::default();
        let (request, connection) = Builder::new(Local { tasks: tasks.clone(), stepped: stepped.clone() })
            .timer(TokioTimer::new())
            .initial_max_send_streams(0)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(u32::try_from(head_bytes_max + HEADER_LIST_EXTRA_BYTES).unwrap_or(u32::MAX))
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .handshake(TokioIo::new(stream))
            .await?;
        let peer_settings = Rc::new(Cell::new(PeerSettings::default()));
        let mut connection = Box::pin(connection);
        let told = peer_settings.clone();
        let mut driving = Box::pin(poll_fn(move |cx| {
            let end = connection.as_mut().poll(cx);
            told.set(PeerSettings {
                streams: connection.current_max_send_streams().min(STREAMS_MAX),
                websocket: connection.is_extended_connect_protocol_enabled(),
            });
            end
        }));
        let settled = poll_fn(|cx| match driving.as_mut().poll(cx) {
            Poll::Ready(end) => Poll::Ready(Some(end)),
            Poll::Pending if peer_settings.get().streams > 0 => Poll::Ready(None),
            Poll::Pending => {
                stepped.replace(Some(cx.waker().clone()));
                Poll::Pending
            }
        });
        if let Some(end) = settled.await {
            return end.map(|()| None);
        }
        let ended = home.clone();
        tasks.spawn_local(async move {
            if let Err(error) = driving.await {
                tracing::debug!(%error, "upstream connection ended");
            }
            ended.has_ended();
        });
        Ok(Some(Stream(Rc::new(Http2Conn {
            request,
            heard,
            peer_settings,
            in_flight: Cell::new(1),
            idle: Cell::new(None),
            home,
            counted: Counted::in_use(active_gauge, in_use),
            idle_gauge: idle_gauge.clone(),
            active_gauge: active_gauge.clone(),
        }))))
    }

    /// A place for one more request beside others, if there is room.
    pub fn join(self: &Rc<Http2Conn>) -> Option<Stream> {
        (self.in_flight.get() > 0 && self.has_room()).then(|| self.add())
    }

    /// A place for the first request, where there is none.
    pub fn wake(self: &Rc<Http2Conn>, in_use: Permit) -> Result<Stream, Permit> {
        if self.in_flight.get() > 0 || !self.has_room() {
            return Err(in_use);
        }
        self.home.is_not_idle(self);
        self.counted.become_used(&self.active_gauge, in_use);
        Ok(self.add())
    }

    fn has_room(&self) -> bool {
        !self.is_closed() && self.in_flight.get() < self.peer_settings.get().streams
    }

    fn add(self: &Rc<Http2Conn>) -> Stream {
        self.in_flight.set(self.in_flight.get() + 1);
        Stream(self.clone())
    }

    pub fn is_closed(&self) -> bool {
        self.request.is_closed()
    }
}

/// One request's place on a shared connection.
pub struct Stream(Rc<Http2Conn>);

impl Stream {
    pub fn sender(&self) -> SendRequest<RequestBody> {
        self.0.request.clone()
    }

    /// The connection that it is on.
    pub fn shared(&self) -> &Rc<Http2Conn> {
        &self.0
    }

    pub fn is_on(&self, shared: &Rc<Http2Conn>) -> bool {
        Rc::ptr_eq(&self.0, shared)
    }

    /// The right to use the connection, of one that is dead; for the first of its streams that asks.
    pub fn reclaim(&self) -> Option<Permit> {
        self.0.counted.reclaim()
    }

    /// What comes for other requests counts, too.
    pub fn heard(&self) -> &Heard {
        &self.0.heard
    }

    /// The upstream takes WebSocket on it.
    pub fn takes_websocket(&self) -> bool {
        self.0.peer_settings.get().websocket
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let left = self.0.in_flight.get() - 1;
        self.0.in_flight.set(left);
        if left == 0 {
            self.0.counted.become_idle(&self.0.idle_gauge);
            if !self.0.is_closed() {
                self.0.home.has_become_idle(&self.0);
            }
        }
    }
}
