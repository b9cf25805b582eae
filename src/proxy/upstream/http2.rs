//! An upstream HTTP/2 connection, multiplexed across the requests of one worker (RFC 9113 §5.1.2).
//!
//! Invariant: a request is sent only while the peer's MAX_CONCURRENT_STREAMS allows another stream; before the peer's
//! SETTINGS frame has arrived, none is.

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
use super::connections::WeakEntryRef;
use super::counting::{BytesRead, CountingStream};
use super::entry::{ConnGauge, IdleId};
use crate::gate::Permit;
use crate::tasks::Tasks;

/// Concurrent streams per connection; beyond that, another connection is opened.
const STREAMS_MAX: usize = 100;
/// Flow control windows, in bytes. The stream window bounds what a stalled download buffers; the connection window has
/// room for every stream's, so that one stalled caller does not block the others.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = STREAMS_MAX as u32 * STREAM_WINDOW;
/// HTTP/2 counts 32 bytes per field on top of its name and value (RFC 9113 §6.5.2); `limits.head` does not.
const HEADER_LIST_EXTRA_BYTES: usize = 32 * FIELDS_MAX;
/// HTTP/2 keep-alive: ping after this much silence; close the connection if no ack arrives within `PING_TIMEOUT`.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Spawns hyper's tasks on the worker's own runtime.
#[derive(Clone)]
struct LocalExecutor {
    tasks: Tasks,
    /// Woken after the next poll of a spawned task: hyper reads frames in its own task and does not announce SETTINGS.
    poll_waker: Rc<RefCell<Option<Waker>>>,
}

impl<F: Future + 'static> Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        let poll_waker = self.poll_waker.clone();
        self.tasks.spawn_local(async move {
            let mut future = pin!(future);
            poll_fn(|cx| {
                let step = future.as_mut().poll(cx);
                if let Some(waker) = poll_waker.take() {
                    waker.wake();
                }
                step
            })
            .await;
        });
    }
}

/// Limits announced in the upstream's SETTINGS frame.
#[derive(Clone, Copy, Default)]
struct PeerSettings {
    /// MAX_CONCURRENT_STREAMS, capped at [`STREAMS_MAX`].
    max_concurrent_streams: usize,
    /// ENABLE_CONNECT_PROTOCOL: WebSocket over HTTP/2 (RFC 8441).
    extended_connect: bool,
}

pub struct Http2Conn {
    sender: SendRequest<RequestBody>,
    bytes_read: BytesRead,
    peer_settings: Rc<Cell<PeerSettings>>,
    in_flight: Cell<usize>,
    /// Set while the connection is idle.
    pub idle: Cell<Option<IdleId>>,
    entry: WeakEntryRef,
    gauge: ConnGauge,
    idle_gauge: IntGauge,
    active_gauge: IntGauge,
}

impl Http2Conn {
    /// Opens a connection and its first stream, once the upstream's SETTINGS frame has arrived. `None`: the upstream
    /// closed the connection first. Sets no deadline itself.
    pub async fn open<T>(
        stream: T,
        head_bytes_max: usize,
        tasks: &Tasks,
        (idle_gauge, active_gauge): (&IntGauge, &IntGauge),
        (entry, in_use): (WeakEntryRef, Permit),
    ) -> hyper::Result<Option<Http2Stream>>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (stream, bytes_read) = CountingStream::new(stream);
        let poll_waker = Rc::<RefCell<Option<Waker>>>::default();
        let (sender, connection) = Builder::new(LocalExecutor { tasks: tasks.clone(), poll_waker: poll_waker.clone() })
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
        let settings = peer_settings.clone();
        let mut driver = Box::pin(poll_fn(move |cx| {
            let end = connection.as_mut().poll(cx);
            settings.set(PeerSettings {
                max_concurrent_streams: connection.current_max_send_streams().min(STREAMS_MAX),
                extended_connect: connection.is_extended_connect_protocol_enabled(),
            });
            end
        }));
        let first_settings = poll_fn(|cx| match driver.as_mut().poll(cx) {
            Poll::Ready(end) => Poll::Ready(Some(end)),
            Poll::Pending if peer_settings.get().max_concurrent_streams > 0 => Poll::Ready(None),
            Poll::Pending => {
                poll_waker.replace(Some(cx.waker().clone()));
                Poll::Pending
            }
        });
        if let Some(end) = first_settings.await {
            return end.map(|()| None);
        }
        let entry_ref = entry.clone();
        tasks.spawn_local(async move {
            if let Err(error) = driver.await {
                tracing::debug!(%error, "upstream connection ended");
            }
            entry_ref.on_closed();
        });
        Ok(Some(Http2Stream(Rc::new(Http2Conn {
            sender,
            bytes_read,
            peer_settings,
            in_flight: Cell::new(1),
            idle: Cell::new(None),
            entry,
            gauge: ConnGauge::active(active_gauge, in_use),
            idle_gauge: idle_gauge.clone(),
            active_gauge: active_gauge.clone(),
        }))))
    }

    /// Adds a stream to a connection in use, if there is room.
    pub fn try_join(self: &Rc<Http2Conn>) -> Option<Http2Stream> {
        (self.in_flight.get() > 0 && self.has_room()).then(|| self.add())
    }

    /// Opens a stream on an idle connection. Returns the permit if it is not idle or has no room.
    pub fn reuse_idle(self: &Rc<Http2Conn>, in_use: Permit) -> Result<Http2Stream, Permit> {
        if self.in_flight.get() > 0 || !self.has_room() {
            return Err(in_use);
        }
        self.entry.on_not_idle(self);
        self.gauge.set_active(&self.active_gauge, in_use);
        Ok(self.add())
    }

    fn has_room(&self) -> bool {
        !self.is_closed() && self.in_flight.get() < self.peer_settings.get().max_concurrent_streams
    }

    fn add(self: &Rc<Http2Conn>) -> Http2Stream {
        self.in_flight.set(self.in_flight.get() + 1);
        Http2Stream(self.clone())
    }

    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

/// One request's stream on an HTTP/2 connection.
pub struct Http2Stream(Rc<Http2Conn>);

impl Http2Stream {
    pub fn sender(&self) -> SendRequest<RequestBody> {
        self.0.sender.clone()
    }

    pub fn conn(&self) -> &Rc<Http2Conn> {
        &self.0
    }

    pub fn is_on(&self, conn: &Rc<Http2Conn>) -> bool {
        Rc::ptr_eq(&self.0, conn)
    }

    /// Takes back the permit of a dead connection. The first of its streams to call this gets it.
    pub fn reclaim_permit(&self) -> Option<Permit> {
        self.0.gauge.reclaim_permit()
    }

    /// Bytes read from the whole connection, those for other streams included.
    pub fn bytes_read(&self) -> &BytesRead {
        &self.0.bytes_read
    }

    /// True if the upstream supports WebSocket over HTTP/2 (RFC 8441).
    pub fn supports_websocket(&self) -> bool {
        self.0.peer_settings.get().extended_connect
    }
}

impl Drop for Http2Stream {
    fn drop(&mut self) {
        let left = self.0.in_flight.get() - 1;
        self.0.in_flight.set(left);
        if left == 0 {
            self.0.gauge.set_idle(&self.0.idle_gauge);
            if !self.0.is_closed() {
                self.0.entry.on_idle(&self.0);
            }
        }
    }
}
