//! A checked-out connection for one request, with its permit from the origin's gate.

use http::{Request, Response, Version};
use hyper::body::Incoming;

use super::connections::EntryRef;
use super::entry::Conn;
use super::failure::SendError;
use crate::dial::Forwarding;
use crate::gate::Permit;
use crate::proxy::body::RequestBody;

/// An HTTP/1.1 connection, or a stream on an HTTP/2 one, for a single exchange.
pub struct Checkout {
    conn: Conn,
    _permit: Permit,
    entry: EntryRef,
    /// The connection has served before, so the upstream may have closed it while idle. False for a replacement.
    pub reused: bool,
}

impl Checkout {
    pub fn new(conn: Conn, permit: Permit, entry: EntryRef, reused: bool) -> Checkout {
        Checkout { conn, _permit: permit, entry, reused }
    }

    /// Replaces a dead connection; keeps the permit.
    pub fn with_conn(self, conn: Conn) -> Checkout {
        Checkout { conn, reused: false, ..self }
    }

    pub fn conn(&self) -> &Conn {
        &self.conn
    }

    pub fn entry(&self) -> &EntryRef {
        &self.entry
    }

    /// The version in which the request must be sent.
    pub fn version(&self) -> Version {
        match self.conn {
            Conn::Http1(_) => Version::HTTP_11,
            Conn::Http2(_) => Version::HTTP_2,
        }
    }

    /// True if a WebSocket handshake can be sent on this connection.
    pub fn supports_websocket(&self) -> bool {
        match &self.conn {
            Conn::Http1(_) => true,
            Conn::Http2(stream) => stream.supports_websocket(),
        }
    }

    /// Set if the connection ends at an egress proxy, which expects requests in absolute form.
    pub fn forwarding(&self) -> Option<&Forwarding> {
        match &self.conn {
            Conn::Http1(conn) => conn.forwarding.as_ref(),
            Conn::Http2(_) => None,
        }
    }

    pub async fn send(&mut self, request: Request<RequestBody>) -> Result<Response<Incoming>, SendError> {
        let bytes_read = self.conn.bytes_read().clone();
        let before = bytes_read.get();
        let sent = match &mut self.conn {
            Conn::Http1(conn) => conn.sender.try_send_request(request).await,
            Conn::Http2(stream) => stream.sender().try_send_request(request).await,
        };
        sent.map_err(|mut error| {
            let unsent = error.take_message().is_some();
            SendError { error: error.into_error(), unsent, received_bytes: bytes_read.get() > before }
        })
    }

    /// Returns an HTTP/1.1 connection to the pool, after its response was read to the end.
    pub fn give_back(self) {
        if let Conn::Http1(conn) = self.conn
            && !conn.sender.is_closed()
        {
            self.entry.put_idle(conn);
        }
    }
}
