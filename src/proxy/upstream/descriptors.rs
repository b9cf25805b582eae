//! The file descriptors that connections to upstreams may take, over all origins and workers.
//!
//! Invariants: a dial has its descriptor before it opens a socket, and gives it back when the socket is closed. Where none is
//! left, the oldest idle connection is closed, whichever worker it belongs to; dials wait for that in a queue in which
//! callers take turns. From 15 connections on, one caller never has all of them in use.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::dial::Conduit;
use crate::gate::{Bounds, Entered, Full, Gate, Permit, Sharing, Turn};
use crate::model::Limits;
use crate::telemetry::system::OpenFiles;

/// Requests that may wait for a connection, and dials for a descriptor.
const DIALS_QUEUED_MAX: usize = 1024;

/// A worker's `oldest_ms` that has no idle connection.
const NONE_IDLE: u64 = u64::MAX;

pub struct Descriptors {
    files: OpenFiles,
    /// Open connections.
    open: Arc<Gate>,
    /// Those of them that are not idle, by the caller who took or dialled them.
    in_use: Arc<Gate>,
    workers: Box<[IdleOf]>,
    epoch: Instant,
}

/// What the others know of one worker's idle connections, and what they ask of it.
struct IdleOf {
    count: AtomicUsize,
    /// When its oldest one became idle, in milliseconds since `epoch`.
    oldest_ms: AtomicU64,
    /// How many it shall close.
    asked: AtomicUsize,
    bell: Notify,
}

impl Descriptors {
    pub fn new(files: OpenFiles, workers: usize) -> Descriptors {
        let idle_of = |_| IdleOf {
            count: AtomicUsize::new(0),
            oldest_ms: AtomicU64::new(NONE_IDLE),
            asked: AtomicUsize::new(0),
            bell: Notify::new(),
        };
        let workers = (0..workers).map(idle_of).collect();
        Descriptors { files, open: Arc::default(), in_use: Arc::default(), workers, epoch: Instant::now() }
    }

    /// Connections from callers.
    pub fn downstream_max(&self, limits: &Limits) -> usize {
        self.files.downstream_max(limits.downstream_connections)
    }

    /// Connections from callers that are told that there is no place for them.
    pub fn refused_max(&self) -> usize {
        self.files.refused_max()
    }

    /// Tunnels: they last, so requests keep half of the connections to upstreams.
    pub fn tunnels_max(&self, limits: &Limits) -> usize {
        limits.tunnels.min(self.upstream_max(limits) / 2)
    }

    fn upstream_max(&self, limits: &Limits) -> usize {
        self.files.upstream_max(limits.downstream_connections)
    }

    fn bounds(&self, limits: &Limits, sharing: Sharing) -> Bounds {
        Bounds { places: self.upstream_max(limits), queued: DIALS_QUEUED_MAX, sharing }
    }

    /// The right to use one connection, idle or yet to be dialled, while no caller needs to wait for its share.
    pub fn try_use_one(&self, limits: &Limits) -> Option<Permit> {
        self.in_use.try_enter(self.bounds(limits, Sharing::Fair))
    }

    /// The same in the caller's turn. The caller sets the deadline.
    pub async fn use_one(&self, limits: &Limits, turn: &Turn) -> Result<Permit, Full> {
        self.in_use.enter(self.bounds(limits, Sharing::Fair), turn).await
    }

    /// A descriptor for one dial. The caller sets the deadline.
    pub async fn take(&self, limits: &Limits, turn: &Turn) -> Result<Permit, Full> {
        // Here, since what is dialled will be idle one day.
        let idle: usize = self.workers.iter().map(|idle| idle.count.load(Ordering::Relaxed)).sum();
        if idle >= self.files.idle_max(limits.downstream_connections) {
            self.ask_for_one();
        }
        let bounds = self.bounds(limits, Sharing::Unbounded);
        if let Some(permit) = self.open.try_enter(bounds) {
            return Ok(permit);
        }
        match self.open.enter_or_queue(bounds, turn)? {
            Entered::Inside(permit) => Ok(permit),
            Entered::Queued(waiting) => {
                // Asked by those in the queue alone, so that what is closed comes to them.
                self.ask_for_one();
                waiting.await
            }
        }
    }

    /// Dials wait: a connection that has just become idle is worth less than its descriptor.
    pub fn are_wanted(&self) -> bool {
        self.open.has_waiters()
    }

    /// Asks the worker with the oldest idle connection to close it.
    pub fn ask_for_one(&self) {
        let oldest = self.workers.iter().min_by_key(|idle| idle.oldest_ms.load(Ordering::SeqCst));
        if let Some(idle) = oldest.filter(|idle| idle.oldest_ms.load(Ordering::SeqCst) != NONE_IDLE) {
            idle.asked.fetch_add(1, Ordering::Relaxed);
            idle.bell.notify_one();
        }
    }

    /// Returns how many idle connections this worker shall close, once it is asked to.
    pub async fn asked_of(&self, worker: usize) -> usize {
        let idle = &self.workers[worker];
        loop {
            match idle.asked.swap(0, Ordering::Relaxed) {
                0 => idle.bell.notified().await,
                asked => return asked,
            }
        }
    }

    /// How many idle connections a worker has, and when the oldest became idle.
    pub fn publish(&self, worker: usize, count: usize, oldest: Option<Instant>) {
        let since = |since: Instant| u64::try_from(since.duration_since(self.epoch).as_millis()).unwrap_or(NONE_IDLE);
        self.workers[worker].count.store(count, Ordering::Relaxed);
        self.workers[worker].oldest_ms.store(oldest.map_or(NONE_IDLE, since), Ordering::SeqCst);
    }
}

/// An open connection to an upstream, and its descriptor.
pub struct Dialed {
    conduit: Conduit,
    _descriptor: Permit,
    /// Of a tunnel, which uses its connection as long as that is open.
    _in_use: Option<Permit>,
}

impl Dialed {
    pub fn new(conduit: Conduit, descriptor: Permit) -> Dialed {
        Dialed { conduit, _descriptor: descriptor, _in_use: None }
    }

    /// The same, in use to its end.
    pub fn used_by(self, in_use: Permit) -> Dialed {
        Dialed { _in_use: Some(in_use), ..self }
    }

    /// Returns once something may be read, without reading it.
    pub async fn readable(&self) {
        self.conduit.readable().await;
    }

    /// Closing sends RST from here on.
    pub fn set_resets(&self) {
        self.conduit.set_resets();
    }
}

impl AsyncRead for Dialed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.conduit).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Dialed {
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
