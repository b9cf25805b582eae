//! A downstream byte stream: TCP, a Unix socket, TLS over either, or a tunnel inside HTTP/2.
//!
//! Not here: activity tracking (`watched`).

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use rustix::net::{Shutdown, shutdown};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream, tcp, unix};
use tokio_rustls::server::TlsStream;

use super::socket::{Socket, TcpWriteHalf};

/// `T`: the stream below TLS.
pub enum Stream<T> {
    Tcp(tcp::OwnedReadHalf, Arc<TcpWriteHalf>),
    Unix(unix::OwnedReadHalf, Arc<unix::OwnedWriteHalf>),
    /// TLS terminated by us.
    Tls(Box<TlsStream<T>>),
    /// A tunnel inside an HTTP/2 connection.
    Tunnel(TokioIo<Upgraded>),
}

impl<T> From<TcpStream> for Stream<T> {
    fn from(stream: TcpStream) -> Stream<T> {
        let (read, write) = stream.into_split();
        Stream::Tcp(read, Arc::new(TcpWriteHalf::new(write)))
    }
}

impl<T> From<UnixStream> for Stream<T> {
    fn from(stream: UnixStream) -> Stream<T> {
        let (read, write) = stream.into_split();
        Stream::Unix(read, Arc::new(write))
    }
}

impl<T> Stream<T> {
    /// The underlying socket; `None` for a tunnel inside HTTP/2. `below_tls` returns the socket of the stream below
    /// TLS.
    pub fn socket(&self, below_tls: impl Fn(&T) -> Option<Socket>) -> Option<Socket> {
        match self {
            Stream::Tcp(_, write) => Some(Socket::Tcp(Arc::downgrade(write))),
            Stream::Unix(_, write) => Some(Socket::Unix(Arc::downgrade(write))),
            Stream::Tls(stream) => below_tls(stream.get_ref().0),
            Stream::Tunnel(_) => None,
        }
    }
}

/// Dispatches on the variant: `$plain` for the two halves of a socket, `$call` for a whole stream.
macro_rules! on {
    ($this:ident, $read:ident, $write:ident => $plain:expr, $stream:ident => $call:expr) => {
        match $this.get_mut() {
            Stream::Tcp($read, $write) => $plain,
            Stream::Unix($read, $write) => $plain,
            Stream::Tls($stream) => $call,
            Stream::Tunnel($stream) => $call,
        }
    };
}

/// Writes through a shared reference to the socket: its write half is in an `Arc`.
macro_rules! poll_write_socket {
    ($half:ident, $cx:ident, $try:ident, $bytes:ident) => {{
        let socket = (**$half).as_ref();
        loop {
            ready!(socket.poll_write_ready($cx))?;
            match socket.$try($bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }};
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        on!(self, read, _write => Pin::new(read).poll_read(cx, buffer), stream => Pin::new(stream).poll_read(cx, buffer))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        on!(
            self,
            _read, half => poll_write_socket!(half, cx, try_write, bytes),
            stream => Pin::new(stream).poll_write(cx, bytes)
        )
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        on!(
            self,
            _read, half => poll_write_socket!(half, cx, try_write_vectored, slices),
            stream => Pin::new(stream).poll_write_vectored(cx, slices)
        )
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Stream::Tcp(..) | Stream::Unix(..) => true,
            Stream::Tls(stream) => stream.is_write_vectored(),
            Stream::Tunnel(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on!(self, _read, _write => Poll::Ready(Ok(())), stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(_, write) => {
                let socket: &TcpStream = (**write).as_ref();
                Poll::Ready(Ok(shutdown(socket, Shutdown::Write)?))
            }
            Stream::Unix(_, write) => {
                let socket: &UnixStream = write.as_ref().as_ref();
                Poll::Ready(Ok(shutdown(socket, Shutdown::Write)?))
            }
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tunnel(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
