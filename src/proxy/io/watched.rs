//! A downstream stream whose reads and writes update its `Watch`, at the cost of a few relaxed atomic operations.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::frames::Frames;
use super::head_budget::is_unfinished;
use super::socket::Socket;
use super::stream::Stream;
use super::watch::{Activity, Watch};

/// Size of the first read, which detects the protocol; a typical head fits.
const FIRST_READ_BYTES: usize = 2048;

/// A downstream stream with the bytes already read from it.
pub struct Watched {
    stream: Stream<Watched>,
    /// Read ahead; returned by the next reads.
    buffered: Bytes,
    /// The unwritten rest of an interim response.
    interim: Bytes,
    /// `interim` is a probe: no task waits until it is written.
    is_probe: bool,
    /// Frame state; used on an HTTP/2 connection.
    frames: Frames,
    pub watch: Arc<Watch>,
}

impl Watched {
    pub fn new(stream: Stream<Watched>) -> Watched {
        let socket = stream.socket(|inner| inner.watch.presence.socket().cloned());
        Watched::over(stream, socket)
    }

    /// A tunnel inside the HTTP/2 connection of `outer`, whose socket carries it.
    pub fn inside(stream: Stream<Watched>, outer: &Activity) -> Watched {
        Watched::over(stream, outer.presence().socket().cloned())
    }

    fn over(stream: Stream<Watched>, socket: Option<Socket>) -> Watched {
        let watch = Arc::new(Watch::new(socket));
        Watched {
            stream,
            buffered: Bytes::new(),
            interim: Bytes::new(),
            is_probe: false,
            frames: Frames::default(),
            watch,
        }
    }

    /// Peeks whether the stream starts with `prefix`. If not, also reads ahead to the end of the first head while it is
    /// small: an unfinished head takes a tenth of the memory here that it takes in hyper.
    pub async fn peek_prefix(&mut self, prefix: &[u8]) -> io::Result<bool> {
        loop {
            let undecided = self.buffered.len() < prefix.len() && prefix.starts_with(&self.buffered);
            let begun = self.buffered.starts_with(prefix);
            let unfinished = self.buffered.len() < FIRST_READ_BYTES && is_unfinished(&self.buffered);
            if begun || !undecided && !unfinished {
                return Ok(begun);
            }
            let mut read = BytesMut::with_capacity(FIRST_READ_BYTES);
            read.extend_from_slice(&self.buffered);
            if self.stream.read_buf(&mut read).await? == 0 {
                return Ok(false);
            }
            self.buffered = read.freeze();
            self.watch.mark_begun();
        }
    }

    /// True if read-ahead is left that was not consumed.
    pub fn has_buffered(&self) -> bool {
        self.buffered.has_remaining()
    }

    /// True for a tunnel inside an HTTP/2 connection.
    pub fn is_inside_http2(&self) -> bool {
        match &self.stream {
            Stream::Tcp(..) | Stream::Unix(..) => false,
            Stream::Tls(stream) => stream.get_ref().0.is_inside_http2(),
            Stream::Tunnel(_) => true,
        }
    }

    /// The socket, if it carries only this stream; `None` inside HTTP/2.
    pub fn own_socket(&self) -> Option<Socket> {
        self.watch.presence.socket().filter(|_| !self.is_inside_http2()).cloned()
    }

    /// The same stream with a new watch, to serve the inside of a tunnel. `buffered` is read first.
    pub fn rewatched(self, buffered: Bytes) -> Watched {
        let socket = self.watch.presence.socket().cloned();
        Watched { buffered, ..Watched::over(self.stream, socket) }
    }

    fn record_read(&mut self, bytes: &[u8]) -> io::Result<()> {
        if !self.watch.is_multiplexed() {
            self.watch.record_read(bytes.len());
            return Ok(());
        }
        self.frames.read(bytes);
        self.watch.record_frames(bytes.len(), &self.frames);
        // Checked on every read: many readable connections would each take much memory before `drive` checks the
        // budget.
        let error = || io::Error::other("the memory budget for unfinished HTTP/2 heads is exhausted");
        self.watch.is_within_budget().then_some(()).ok_or_else(error)
    }

    /// Writes the pending interim response completely, before any other bytes.
    fn poll_interim(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.interim.has_remaining() {
            let written = Pin::new(&mut self.stream).poll_write(cx, &self.interim);
            self.watch.record_write(written.is_pending());
            match ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.interim.advance(count),
            }
            if self.interim.is_empty() && !std::mem::take(&mut self.is_probe) {
                self.watch.interim.mark_written();
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Watched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.watch.is_head_over() {
            // No wake-up is needed: `drive` checks right after this poll and responds.
            return Poll::Pending;
        }
        if this.buffered.has_remaining() {
            let part = this.buffered.split_to(this.buffered.len().min(buffer.remaining()));
            buffer.put_slice(&part);
            return Poll::Ready(this.record_read(&part));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        Poll::Ready(this.record_read(&buffer.filled()[before..]))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.watch.is_automatic_response() {
            this.watch.mark_suppressed();
            return Poll::Ready(Ok(bytes.len()));
        }
        ready!(this.poll_interim(cx))?;
        let result = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.watch.record_write(result.is_pending());
        result
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.watch.is_automatic_response() {
            this.watch.mark_suppressed();
            return Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()));
        }
        ready!(this.poll_interim(cx))?;
        let result = Pin::new(&mut this.stream).poll_write_vectored(cx, slices);
        this.watch.record_write(result.is_pending());
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // hyper flushes only after writing all its buffers, so an interim response cannot split a message.
        if let Some(head) = this.watch.interim.take() {
            this.interim = head;
        } else if this.interim.is_empty()
            && let Some(probe) = this.watch.presence.take_probe()
        {
            (this.interim, this.is_probe) = (probe, true);
        }
        ready!(this.poll_interim(cx))?;
        ready!(Pin::new(&mut this.stream).poll_flush(cx))?;
        this.watch.record_flush();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let resets = this.watch.presence.socket().is_some_and(Socket::resets);
        if resets || this.watch.is_automatic_response() && this.watch.has_suppressed() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}
