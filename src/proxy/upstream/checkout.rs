//! The right to send one request to an upstream: a permit of its gate, and a connection.

use http::{Request, Response, Version};
use hyper::body::Incoming;

use super::connections::Held;
use super::entry::Link;
use super::failure::SendError;
use crate::dial::Forwarding;
use crate::gate::Permit;
use crate::proxy::body::RequestBody;

/// An HTTP/1.1 connection, or a stream on an HTTP/2 one, for a single exchange.
pub struct Checkout {
    link: Link,
    _permit: Permit,
    entry: Held,
    /// The connection has served before, so the upstream may have closed it meanwhile; false for one that replaces a dead one.
    pub reused: bool,
}

impl Checkout {
    pub fn new(link: Link, permit: Permit, entry: Held, reused: bool) -> Checkout {
        Checkout { link, _permit: permit, entry, reused }
    }

    /// The same permit with another connection, for one that turned out to be dead.
    pub fn with(self, link: Link) -> Checkout {
        Checkout { link, reused: false, ..self }
    }

    pub fn link(&self) -> &Link {
        &self.link
    }

    pub fn entry(&self) -> &Held {
        &self.entry
    }

    /// The version in which the request must be sent.
    pub fn version(&self) -> Version {
        match self.link {
            Link::Http1(_) => Version::HTTP_11,
            Link::Http2(_) => Version::HTTP_2,
        }
    }

    /// Does the connection allow a WebSocket handshake?
    pub fn takes_websocket(&self) -> bool {
        match &self.link {
            Link::Http1(_) => true,
            Link::Http2(stream) => stream.takes_websocket(),
        }
    }

    /// Set where the connection leads to an egress proxy, which takes requests in absolute form.
    pub fn forwarding(&self) -> Option<&Forwarding> {
        match &self.link {
            Link::Http1(sender) => sender.forwarding.as_ref(),
            Link::Http2(_) => None,
        }
    }

    pub async fn send(&mut self, request: Request<RequestBody>) -> Result<Response<Incoming>, SendError> {
        let heard = self.link.heard().clone();
        let before = heard.bytes();
        let sent = match &mut self.link {
            Link::Http1(sender) => sender.request.try_send_request(request).await,
            Link::Http2(stream) => stream.sender().try_send_request(request).await,
        };
        sent.map_err(|mut error| {
            let unsent = error.take_message().is_some();
            SendError { error: error.into_error(), unsent, heard: heard.bytes() > before }
        })
    }

    /// Returns an HTTP/1.1 connection whose response was read to its end to the idle ones.
    pub fn give_back(self) {
        if let Link::Http1(sender) = self.link
            && !sender.request.is_closed()
        {
            self.entry.put_idle(sender);
        }
    }
}
