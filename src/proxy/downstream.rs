//! One connection from a caller: hyper serves it, this file watches its time and its size.
//!
//! Holds: a head has a deadline and a bound, a kept connection a limited silence, and a caller that stops reading is
//! dropped. On drain the request in flight finishes and the connection closes.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};

use super::error::{About, ProxyError, to_wire};
use super::worker::Worker;
use super::{Peer, tunnel};
use crate::model::{Limits, Timeouts};
use crate::tasks::Phase;

/// Serves `io` until either side has had enough.
pub async fn serve(worker: Rc<Worker>, io: Watched, peer: Rc<Peer>) {
    let snapshot = worker.snapshot();
    let (timeouts, limits) = (snapshot.timeouts.clone(), snapshot.limits.clone());
    drop(snapshot);
    let watch = io.watch.clone();
    let service = {
        let (worker, peer) = (worker.clone(), peer.clone());
        service_fn(move |request| tunnel::or_exchange(worker.clone(), peer.clone(), request))
    };
    // Larger than our own bound, so that it is we who answer a head that is too large.
    let buffer_bytes = 2 * limits.head_bytes + 16 * 1024;
    let mut connection = http1::Builder::new()
        .half_close(true)
        .max_buf_size(buffer_bytes)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    let mut phase = worker.shared.tasks.watch();
    let mut draining = false;
    let error = loop {
        let deadline = watch.deadline(&timeouts);
        let end = tokio::select! {
            biased;
            end = until(&mut connection, &watch, limits.head_bytes) => end,
            () = phase.reached(Phase::Drain), if !draining => {
                draining = true;
                Pin::new(&mut connection).graceful_shutdown();
                continue;
            }
            () = sleep_until(deadline) => match watch.overdue(&timeouts) {
                None => continue,
                Some(Overdue::Idle) => return,
                Some(Overdue::Stalled) => return tracing::debug!("a caller stopped reading and was dropped"),
                Some(Overdue::Head) => End::Refuse(ProxyError::RequestTimeout),
            },
        };
        match end {
            End::Done => return,
            End::Refuse(error) => break error,
        }
    };
    let Some(parts) = connection.into_parts() else { return };
    let error = match error {
        ProxyError::HeadTooLarge if !parts.read_buf.contains(&b'\n') => ProxyError::TargetTooLong,
        error => error,
    };
    refuse(&worker, parts.io.into_inner(), error, &limits).await;
}

enum End {
    Done,
    Refuse(ProxyError),
}

/// Drives the connection; ends early where a head outgrows its bound.
async fn until<C>(connection: &mut C, watch: &Watch, head_bytes_max: usize) -> End
where
    C: Future<Output = hyper::Result<()>> + Unpin,
{
    std::future::poll_fn(|cx| {
        if let Poll::Ready(result) = Pin::new(&mut *connection).poll(cx) {
            if let Err(error) = result {
                tracing::debug!(%error, "connection from a caller ended");
            }
            return Poll::Ready(End::Done);
        }
        match watch.is_head_over(head_bytes_max) {
            true => Poll::Ready(End::Refuse(ProxyError::HeadTooLarge)),
            false => Poll::Pending,
        }
    })
    .await
}

/// Answers in hyper's place, then lets the caller finish talking for a moment, so that it reads the answer.
async fn refuse(worker: &Worker, mut io: Watched, error: ProxyError, limits: &Limits) {
    worker.shared.metrics.errors.with_label_values(&["", error.code()]).inc();
    let request_id = format!("{:016x}", fastrand::u64(..));
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

/// A caller's stream with what was already read of it, watched for time and size.
pub struct Watched {
    stream: TcpStream,
    /// Read before, not yet served.
    buffered: Bytes,
    pub watch: Arc<Watch>,
}

impl Watched {
    pub fn new(stream: TcpStream) -> Watched {
        Watched { stream, buffered: Bytes::new(), watch: Arc::new(Watch::new()) }
    }

    /// The same stream served anew, as inside a tunnel, with what was read of it so far.
    pub fn again(self, buffered: Bytes) -> Watched {
        Watched { stream: self.stream, buffered, watch: Arc::new(Watch::new()) }
    }
}

/// Where a connection stands. Atomics, because hyper hands the stream over between threads when it is upgraded.
#[derive(Debug)]
pub struct Watch {
    epoch: Instant,
    serving: AtomicBool,
    /// When the present silence, head or stall began; milliseconds since `epoch`.
    since_ms: AtomicU64,
    head_bytes: AtomicUsize,
    /// Has this connection served a request?
    served: AtomicBool,
    /// Since when the caller reads nothing; 0: it reads.
    blocked_since_ms: AtomicU64,
}

#[derive(Debug, PartialEq, Eq)]
enum Overdue {
    Head,
    Idle,
    Stalled,
}

impl Watch {
    fn new() -> Watch {
        Watch {
            epoch: Instant::now(),
            serving: AtomicBool::new(false),
            since_ms: AtomicU64::new(0),
            head_bytes: AtomicUsize::new(0),
            served: AtomicBool::new(false),
            blocked_since_ms: AtomicU64::new(0),
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn at(&self, ms: u64) -> Instant {
        self.epoch + Duration::from_millis(ms)
    }

    /// When to look at this connection again, and what is then wrong with it.
    fn next(&self, timeouts: &Timeouts) -> (Instant, Option<Overdue>) {
        let since = self.at(self.since_ms.load(Ordering::Relaxed));
        // The last bytes of an answer may still wait for the caller when nothing is being served any more.
        let blocked = self.blocked_since_ms.load(Ordering::Relaxed);
        if blocked > 0 {
            return (self.at(blocked) + timeouts.idle, Some(Overdue::Stalled));
        }
        if !self.serving.load(Ordering::Relaxed) {
            let begun = self.head_bytes.load(Ordering::Relaxed) > 0;
            return match (begun, self.served.load(Ordering::Relaxed)) {
                (true, _) => (since + timeouts.client_head, Some(Overdue::Head)),
                (false, false) => (since + timeouts.client_head, Some(Overdue::Idle)),
                (false, true) => (since + timeouts.keep_alive, Some(Overdue::Idle)),
            };
        }
        (Instant::now() + timeouts.idle, None)
    }

    fn deadline(&self, timeouts: &Timeouts) -> Instant {
        self.next(timeouts).0
    }

    fn overdue(&self, timeouts: &Timeouts) -> Option<Overdue> {
        let (deadline, overdue) = self.next(timeouts);
        overdue.filter(|_| deadline <= Instant::now())
    }

    fn is_head_over(&self, head_bytes_max: usize) -> bool {
        !self.serving.load(Ordering::Relaxed) && self.head_bytes.load(Ordering::Relaxed) > head_bytes_max
    }

    fn has_read(&self, count: usize) {
        if self.serving.load(Ordering::Relaxed) || count == 0 {
            return;
        }
        if self.head_bytes.fetch_add(count, Ordering::Relaxed) == 0 {
            self.since_ms.store(self.now_ms(), Ordering::Relaxed);
        }
    }

    fn has_written(&self, pending: bool) {
        match (pending, self.blocked_since_ms.load(Ordering::Relaxed)) {
            (true, 0) => self.blocked_since_ms.store(self.now_ms().max(1), Ordering::Relaxed),
            (false, 1..) => {
                self.blocked_since_ms.store(0, Ordering::Relaxed);
                // An idle connection is one that has said all it had to say.
                self.since_ms.store(self.now_ms(), Ordering::Relaxed);
            }
            _ => {}
        }
    }
}

/// Tells the watch that a request is being served.
pub struct Activity(Arc<Watch>);

impl Activity {
    pub fn new(watch: Arc<Watch>) -> Activity {
        Activity(watch)
    }

    pub fn begin(&self) -> Activity {
        self.0.serving.store(true, Ordering::Relaxed);
        Activity(self.0.clone())
    }

    pub fn end(&self) {
        self.0.head_bytes.store(0, Ordering::Relaxed);
        self.0.served.store(true, Ordering::Relaxed);
        self.0.since_ms.store(self.0.now_ms(), Ordering::Relaxed);
        self.0.serving.store(false, Ordering::Relaxed);
    }
}

impl AsyncRead for Watched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.buffered.has_remaining() {
            let count = this.buffered.len().min(buffer.remaining());
            buffer.put_slice(&this.buffered.split_to(count));
            this.watch.has_read(count);
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        this.watch.has_read(buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.watch.has_written(result.is_pending());
        result
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_write_vectored(cx, slices);
        this.watch.has_written(result.is_pending());
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
