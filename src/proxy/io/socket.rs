//! The socket below a downstream stream: waits for its close without reading, and closes it with RST instead of FIN.

use std::fmt;
use std::sync::Weak;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::net::sockopt::set_socket_linger;
use tokio::io::{Interest, Ready};
use tokio::net::{TcpStream, tcp, unix};

/// Write half of a TCP connection.
pub struct TcpWriteHalf {
    /// `None` only during drop.
    half: Option<tcp::OwnedWriteHalf>,
    resets: AtomicBool,
}

impl TcpWriteHalf {
    pub fn new(half: tcp::OwnedWriteHalf) -> TcpWriteHalf {
        TcpWriteHalf { half: Some(half), resets: AtomicBool::new(false) }
    }

    /// Sets or clears a zero SO_LINGER. With it the kernel sends RST on close, even if the process is killed.
    fn set_resets(&self, resets: bool) {
        let linger = resets.then_some(Duration::ZERO);
        match set_socket_linger::<&TcpStream>(self.as_ref(), linger) {
            Ok(()) => self.resets.store(resets, Ordering::Relaxed),
            Err(error) => tracing::debug!(%error, "could not set SO_LINGER on a downstream socket"),
        }
    }
}

impl AsRef<TcpStream> for TcpWriteHalf {
    fn as_ref(&self) -> &TcpStream {
        self.half.as_ref().expect("the write half is present until drop").as_ref()
    }
}

impl Drop for TcpWriteHalf {
    fn drop(&mut self) {
        // Dropping the half would send FIN before the RST.
        if *self.resets.get_mut()
            && let Some(half) = self.half.take()
        {
            half.forget();
        }
    }
}

impl fmt::Debug for TcpWriteHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpWriteHalf").field("resets", &self.resets).finish_non_exhaustive()
    }
}

/// A weak handle: it does not keep the socket open.
#[derive(Debug, Clone)]
pub enum Socket {
    Tcp(Weak<TcpWriteHalf>),
    Unix(Weak<unix::OwnedWriteHalf>),
}

impl Socket {
    /// Chooses whether closing sends RST or FIN. No effect on Unix sockets, which have no RST.
    pub fn set_resets(&self, resets: bool) {
        let Socket::Tcp(socket) = self else { return };
        if let Some(socket) = socket.upgrade() {
            socket.set_resets(resets);
        }
    }

    /// True if closing sends RST. Then the stream must not be shut down gracefully first.
    pub fn resets(&self) -> bool {
        match self {
            Socket::Tcp(socket) => socket.upgrade().is_some_and(|socket| socket.resets.load(Ordering::Relaxed)),
            Socket::Unix(_) => false,
        }
    }

    /// Waits for one of these events. The close of both directions is reported with any interest.
    pub async fn ready(&self, interest: Interest) -> Ready {
        let ready = match self {
            Socket::Tcp(socket) => match socket.upgrade() {
                Some(socket) => {
                    let stream: &TcpStream = (*socket).as_ref();
                    stream.ready(interest).await
                }
                None => Ok(Ready::WRITE_CLOSED),
            },
            Socket::Unix(socket) => match socket.upgrade() {
                Some(socket) => socket.ready(interest).await,
                None => Ok(Ready::WRITE_CLOSED),
            },
        };
        ready.unwrap_or(Ready::WRITE_CLOSED)
    }
}
