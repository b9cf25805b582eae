//! A caller's stream, watched: reading and writing update its `Watch`, at the cost of a few relaxed atomics.

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

/// First read of a stream, to see how it begins: a usual head fits.
const FIRST_READ_BYTES: usize = 2048;

/// A caller's stream with what was already read of it, watched for time and size.
pub struct Watched {
    stream: Stream<Watched>,
    /// Read before, not yet served.
    buffered: Bytes,
    /// An interim response, partly written.
    interim: Bytes,
    /// The interim response is a probe: no task waits for it.
    is_probe: bool,
    /// Followed once HTTP/2 is spoken.
    frames: Frames,
    pub watch: Arc<Watch>,
}

impl Watched {
    pub fn new(stream: Stream<Watched>) -> Watched {
        let socket = stream.socket(|inner| inner.watch.presence.socket().cloned());
        Watched::over(stream, socket)
    }

    /// A stream inside the connection of `outer`, whose socket carries it.
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

    /// Does the stream begin with `prefix`? If not, the first head is read to its end as well while it is small: here an
    /// unfinished one takes a tenth of what it takes in hyper. What is read is read again.
    pub async fn begins_with(&mut self, prefix: &[u8]) -> io::Result<bool> {
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
            self.watch.has_begun();
        }
    }

    /// Has anything been read that was not yet served?
    pub fn has_begun(&self) -> bool {
        self.buffered.has_remaining()
    }

    /// A tunnel inside an HTTP/2 connection.
    pub fn is_inside_http2(&self) -> bool {
        match &self.stream {
            Stream::Tcp(..) | Stream::Unix(..) => false,
            Stream::Tls(stream) => stream.get_ref().0.is_inside_http2(),
            Stream::Tunnel(_) => true,
        }
    }

    /// The socket that carries it and nothing else; `None` inside HTTP/2.
    pub fn own_socket(&self) -> Option<Socket> {
        self.watch.presence.socket().filter(|_| !self.is_inside_http2()).cloned()
    }

    /// The same stream served anew, as inside a tunnel, with what was read of it so far.
    pub fn again(self, buffered: Bytes) -> Watched {
        let socket = self.watch.presence.socket().cloned();
        Watched { buffered, ..Watched::over(self.stream, socket) }
    }

    fn has_read(&mut self, bytes: &[u8]) -> io::Result<()> {
        if !self.watch.is_multiplexed() {
            self.watch.has_read(bytes.len());
            return Ok(());
        }
        self.frames.read(bytes);
        self.watch.has_read_frames(bytes.len(), &self.frames);
        // At once: of many connections that are readable each would take much before `until` looks.
        let error = || io::Error::other("no memory is left for unfinished heads over HTTP/2");
        self.watch.is_within_budget().then_some(()).ok_or_else(error)
    }

    /// Writes an interim response to its end; nothing may come between its bytes.
    fn poll_interim(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.interim.has_remaining() {
            let written = Pin::new(&mut self.stream).poll_write(cx, &self.interim);
            self.watch.has_written(written.is_pending());
            match ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.interim.advance(count),
            }
            if self.interim.is_empty() && !std::mem::take(&mut self.is_probe) {
                self.watch.saying.said();
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Watched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.watch.is_head_over() {
            // Nothing wakes this up: `until` looks right after the poll, and answers.
            return Poll::Pending;
        }
        if this.buffered.has_remaining() {
            let part = this.buffered.split_to(this.buffered.len().min(buffer.remaining()));
            buffer.put_slice(&part);
            return Poll::Ready(this.has_read(&part));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        Poll::Ready(this.has_read(&buffer.filled()[before..]))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.watch.is_automatic() {
            this.watch.hold_back();
            return Poll::Ready(Ok(bytes.len()));
        }
        ready!(this.poll_interim(cx))?;
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
        if this.watch.is_automatic() {
            this.watch.hold_back();
            return Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()));
        }
        ready!(this.poll_interim(cx))?;
        let result = Pin::new(&mut this.stream).poll_write_vectored(cx, slices);
        this.watch.has_written(result.is_pending());
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // hyper flushes when all that it has is written, so an interim response splits nothing.
        if let Some(head) = this.watch.saying.take() {
            this.interim = head;
        } else if this.interim.is_empty()
            && let Some(probe) = this.watch.presence.take_probe()
        {
            (this.interim, this.is_probe) = (probe, true);
        }
        ready!(this.poll_interim(cx))?;
        ready!(Pin::new(&mut this.stream).poll_flush(cx))?;
        this.watch.has_flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let resets = this.watch.presence.socket().is_some_and(Socket::resets);
        if resets || this.watch.is_automatic() && this.watch.has_held_back() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}
