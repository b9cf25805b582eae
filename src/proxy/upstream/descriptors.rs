//! File descriptor budget of upstream connections, across all origins and workers.
//!
//! Invariants: a dial reserves a descriptor before it opens a socket, and releases it when the socket is closed. When
//! none is left, the oldest idle connection of any worker is closed; dials wait for that in a queue that serves callers
//! round-robin. From a budget of 15 connections on, one caller never has all of them in use.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::super::error::{Fault, ProxyError};
use crate::dial::Conduit;
use crate::gate::{Bounds, Entered, Full, Gate, Permit, Sharing, Turn};
use crate::model::Limits;
use crate::snapshot::Snapshot;
use crate::telemetry::system::OpenFiles;

/// Queue bound, both of requests that wait for a connection and of dials that wait for a descriptor.
const DIALS_QUEUED_MAX: usize = 1024;

/// `oldest_ms` of a worker without idle connections.
const NONE_IDLE: u64 = u64::MAX;

pub struct Descriptors {
    files: OpenFiles,
    /// Open connections.
    open: Arc<Gate>,
    /// Open connections that are not idle, by the caller that took or dialled them.
    in_use: Arc<Gate>,
    workers: Box<[WorkerIdle]>,
    epoch: Instant,
}

/// One worker's idle connections as other workers see them, and their requests to close some.
struct WorkerIdle {
    count: AtomicUsize,
    /// When the oldest became idle, in milliseconds since `epoch`.
    oldest_ms: AtomicU64,
    /// Connections that the worker has been asked to close.
    requested: AtomicUsize,
    bell: Notify,
}

impl Descriptors {
    pub fn new(files: OpenFiles, workers: usize) -> Descriptors {
        let worker_idle = |_| WorkerIdle {
            count: AtomicUsize::new(0),
            oldest_ms: AtomicU64::new(NONE_IDLE),
            requested: AtomicUsize::new(0),
            bell: Notify::new(),
        };
        let workers = (0..workers).map(worker_idle).collect();
        Descriptors { files, open: Arc::default(), in_use: Arc::default(), workers, epoch: Instant::now() }
    }

    /// Maximum number of downstream connections.
    pub fn downstream_max(&self, limits: &Limits) -> usize {
        self.files.downstream_max(limits.downstream_connections)
    }

    /// Maximum number of surplus downstream connections that are kept open to receive an error response.
    pub fn refused_max(&self) -> usize {
        self.files.refused_max()
    }

    /// Maximum number of tunnels. They are long-lived, so half of the upstream connections are reserved for requests.
    pub fn tunnels_max(&self, limits: &Limits) -> usize {
        limits.tunnels.min(self.upstream_max(limits) / 2)
    }

    fn upstream_max(&self, limits: &Limits) -> usize {
        self.files.upstream_max(limits.downstream_connections)
    }

    fn bounds(&self, limits: &Limits, sharing: Sharing) -> Bounds {
        Bounds { permits: self.upstream_max(limits), queued: DIALS_QUEUED_MAX, sharing }
    }

    /// Takes a permit to use one connection, idle or new, if that needs no waiting.
    pub fn try_take_use_permit(&self, limits: &Limits) -> Option<Permit> {
        self.in_use.try_enter(self.bounds(limits, Sharing::Fair))
    }

    /// Waits for a permit to use one connection, in the caller's turn. Sets no deadline itself.
    pub async fn take_use_permit(&self, limits: &Limits, turn: &Turn) -> Result<Permit, Full> {
        self.in_use.enter(self.bounds(limits, Sharing::Fair), turn).await
    }

    /// Waits for the descriptor of one dial. Sets no deadline itself.
    pub async fn take_descriptor(&self, limits: &Limits, turn: &Turn) -> Result<Permit, Full> {
        // Checked at the dial, since every new connection becomes idle eventually.
        let idle: usize = self.workers.iter().map(|idle| idle.count.load(Ordering::Relaxed)).sum();
        if idle >= self.files.idle_max(limits.downstream_connections) {
            self.request_close();
        }
        let bounds = self.bounds(limits, Sharing::Unbounded);
        if let Some(permit) = self.open.try_enter(bounds) {
            return Ok(permit);
        }
        match self.open.enter_or_queue(bounds, turn)? {
            Entered::Inside(permit) => Ok(permit),
            Entered::Queued(waiting) => {
                // Requested only once queued, so that the freed descriptor goes to the queue.
                self.request_close();
                waiting.await
            }
        }
    }

    /// True if dials wait for a descriptor; if so, a connection that becomes idle is closed.
    pub fn has_waiting_dials(&self) -> bool {
        self.open.has_waiters()
    }

    /// Requests that the worker with the oldest idle connection close it.
    pub fn request_close(&self) {
        let oldest = self.workers.iter().min_by_key(|idle| idle.oldest_ms.load(Ordering::SeqCst));
        if let Some(idle) = oldest.filter(|idle| idle.oldest_ms.load(Ordering::SeqCst) != NONE_IDLE) {
            idle.requested.fetch_add(1, Ordering::Relaxed);
            idle.bell.notify_one();
        }
    }

    /// Waits until the worker is asked to close idle connections; returns how many.
    pub async fn close_requests(&self, worker: usize) -> usize {
        let idle = &self.workers[worker];
        loop {
            match idle.requested.swap(0, Ordering::Relaxed) {
                0 => idle.bell.notified().await,
                requested => return requested,
            }
        }
    }

    /// Publishes how many idle connections a worker has, and when the oldest became idle.
    pub fn publish(&self, worker: usize, count: usize, oldest: Option<Instant>) {
        let since = |since: Instant| u64::try_from(since.duration_since(self.epoch).as_millis()).unwrap_or(NONE_IDLE);
        self.workers[worker].count.store(count, Ordering::Relaxed);
        self.workers[worker].oldest_ms.store(oldest.map_or(NONE_IDLE, since), Ordering::SeqCst);
    }
}

/// Waits for a permit, for at most half of `timeouts.connect`.
pub async fn or_overloaded(
    snapshot: &Snapshot,
    waiting: impl Future<Output = Result<Permit, Full>>,
) -> Result<Permit, Fault> {
    match timeout(snapshot.timeouts.connect / 2, waiting).await {
        Ok(Ok(permit)) => Ok(permit),
        Ok(Err(Full)) | Err(_) => {
            let why = "no file descriptor is free for an upstream connection, or this caller has used up its share; \
                       raise the open file limit";
            Err(ProxyError::Overloaded.because(why))
        }
    }
}

/// An open connection to an upstream, with its descriptor.
pub struct Dialled {
    conduit: Conduit,
    _descriptor: Permit,
    /// Set for a tunnel, which uses its connection for as long as it is open.
    _in_use: Option<Permit>,
}

impl Dialled {
    pub fn new(conduit: Conduit, descriptor: Permit) -> Dialled {
        Dialled { conduit, _descriptor: descriptor, _in_use: None }
    }

    /// Holds the permit until the connection is closed.
    pub fn holding(self, in_use: Permit) -> Dialled {
        Dialled { _in_use: Some(in_use), ..self }
    }

    /// Waits until the connection is readable, without reading.
    pub async fn readable(&self) {
        self.conduit.readable().await;
    }

    /// Makes closing send RST.
    pub fn set_resets(&self) {
        self.conduit.set_resets();
    }
}

impl AsyncRead for Dialled {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.conduit).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Dialled {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.conduit).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.conduit).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.conduit.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.conduit).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.conduit).poll_shutdown(cx)
    }
}
