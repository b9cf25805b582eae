//! The socket below a caller's stream, for a task that waits for its end without reading.

use std::sync::Weak;

use tokio::io::{Interest, Ready};
use tokio::net::{tcp, unix};

/// Does not keep the socket open.
#[derive(Debug, Clone)]
pub enum Socket {
    Tcp(Weak<tcp::OwnedWriteHalf>),
    Unix(Weak<unix::OwnedWriteHalf>),
}

impl Socket {
    /// Waits for one of these events; the end of both directions is reported with any.
    pub async fn ready(&self, interest: Interest) -> Ready {
        let ready = match self {
            Socket::Tcp(socket) => match socket.upgrade() {
                Some(socket) => socket.ready(interest).await,
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
