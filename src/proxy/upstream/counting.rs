//! Counts the bytes read from an upstream connection, and bounds each read.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, Take};

/// Longest read: hyper allocates twice as much, and keeps it while the caller stalls a download.
const READ_BYTES_MAX: u64 = 16 * 1024;

/// Number of bytes read from a connection.
#[derive(Clone, Default)]
pub struct BytesRead(Arc<AtomicUsize>);

impl BytesRead {
    pub fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// A stream that counts the bytes read from it.
pub struct CountingStream<T> {
    stream: Take<T>,
    bytes_read: BytesRead,
}

impl<T: AsyncRead> CountingStream<T> {
    pub fn new(stream: T) -> (CountingStream<T>, BytesRead) {
        let bytes_read = BytesRead::default();
        (CountingStream { stream: stream.take(READ_BYTES_MAX), bytes_read: bytes_read.clone() }, bytes_read)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for CountingStream<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        self.stream.set_limit(READ_BYTES_MAX);
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        self.bytes_read.0.fetch_add(buffer.filled().len() - before, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for CountingStream<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(self.stream.get_mut()).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(self.stream.get_mut()).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.get_ref().is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.stream.get_mut()).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.stream.get_mut()).poll_shutdown(cx)
    }
}
