//! The way out through a forward proxy: a tunnel for what is to stay unread, absolute form for the rest.
//!
//! Holds: names go to the proxy unresolved; its credentials go to it alone; its answer to CONNECT is bounded, and not a byte
//! behind that answer is taken from the tunnel.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use base64::prelude::{BASE64_STANDARD, Engine};
use http::HeaderValue;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::DialError;
use crate::model::Roots;
use crate::model::connection::ForwardProxy;
use crate::model::egress::Bypass;
use crate::model::origin::{Host, Origin, Scheme};
use crate::tls::Trust;

/// The longest head of a proxy's answer, in bytes.
const ANSWER_BYTES_MAX: usize = 16 * 1024;

/// A stream to an upstream, or to the proxy in front of it.
pub enum Conduit {
    Direct(TcpStream),
    /// The proxy speaks TLS; within may be TLS again.
    Secured(Box<TlsStream<TcpStream>>),
}

/// Requests on this stream go to a proxy, in absolute form.
#[derive(Debug, Clone)]
pub struct Forwarding {
    /// What the proxy wants to see with each of them.
    pub authorization: Option<HeaderValue>,
}

/// The proxy on the way out, and what goes around it.
#[derive(Debug, Clone)]
pub struct EgressProxy {
    pub proxy: ForwardProxy,
    pub around: Vec<Bypass>,
    address: Origin,
    tls: Option<Arc<ClientConfig>>,
    /// The shared roots beside the platform's, where those vouch for the proxy.
    shared: Option<Roots>,
    authorization: Option<HeaderValue>,
}

/// Equal ways lead to the same place as the same user, and the same roots vouch for it.
impl PartialEq for EgressProxy {
    fn eq(&self, other: &EgressProxy) -> bool {
        self.proxy == other.proxy && self.around == other.around && self.shared == other.shared
    }
}

impl Eq for EgressProxy {}

impl EgressProxy {
    /// `extra` are the roots of `trust` that the configuration names. `None` for a URL without a host, which no
    /// configuration has.
    pub fn new(proxy: &ForwardProxy, around: &[Bypass], trust: &Trust, extra: &Roots) -> Option<EgressProxy> {
        let secure = proxy.url.scheme() == "https";
        let host = Host::parse(proxy.url.host_str()?).ok()?;
        let scheme = if secure { Scheme::Https } else { Scheme::Http };
        let address = Origin { scheme, host, port: proxy.url.port_or_known_default()? };
        let authorization = proxy.credentials.as_ref().and_then(|(username, password)| {
            let pair = format!("{username}:{}", password.expose());
            let mut value = HeaderValue::try_from(format!("Basic {}", BASE64_STANDARD.encode(pair))).ok()?;
            value.set_sensitive(true);
            Some(value)
        });
        let tls = secure.then(|| trust.client_config(proxy.trust.as_ref(), None));
        let shared = (secure && proxy.trust.is_none()).then(|| extra.clone());
        Some(EgressProxy { proxy: proxy.clone(), around: around.to_vec(), address, tls, shared, authorization })
    }

    pub fn takes(&self, host: &Host, port: u16) -> bool {
        !self.around.iter().any(|entry| entry.matches(host, port))
    }

    /// Where the proxy itself stands.
    pub fn place(&self) -> &Origin {
        &self.address
    }

    pub fn forwarding(&self) -> Forwarding {
        Forwarding { authorization: self.authorization.clone() }
    }

    /// The proxy itself, at the other end of `stream`.
    pub async fn reach(&self, stream: TcpStream) -> Result<Conduit, DialError> {
        let Some(tls) = &self.tls else { return Ok(Conduit::Direct(stream)) };
        let name = match &self.address.host {
            Host::Ip(address) => Ok(ServerName::from(*address)),
            Host::Name(name) => ServerName::try_from(name.to_string()).map_err(io::Error::other),
        };
        let failed = |source| DialError::Proxy { proxy: self.address.authority(), source };
        let stream = TlsConnector::from(tls.clone()).connect(name.map_err(failed)?, stream).await;
        Ok(Conduit::Secured(Box::new(stream.map_err(failed)?)))
    }

    /// A tunnel through the proxy to `origin`.
    pub async fn tunnel(&self, stream: TcpStream, origin: &Origin) -> Result<Conduit, DialError> {
        let mut conduit = self.reach(stream).await?;
        let target = format!("{}:{}", origin.host, origin.port);
        let mut ask = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n").into_bytes();
        if let Some(authorization) = &self.authorization {
            ask.extend_from_slice(b"Proxy-Authorization: ");
            ask.extend_from_slice(authorization.as_bytes());
            ask.extend_from_slice(b"\r\n");
        }
        ask.extend_from_slice(b"\r\n");
        let failed = |source| DialError::Proxy { proxy: self.address.authority(), source };
        match exchange(&mut conduit, &ask).await.map_err(failed)? {
            200..=299 => Ok(conduit),
            status => Err(DialError::ProxyRefused { proxy: self.address.authority(), status }),
        }
    }
}

/// The status of the answer. Read byte by byte: what follows the head belongs to the tunnel.
async fn exchange(conduit: &mut Conduit, ask: &[u8]) -> io::Result<u16> {
    conduit.write_all(ask).await?;
    conduit.flush().await?;
    let mut head = Vec::with_capacity(256);
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == ANSWER_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its answer is too long"));
        }
        head.push(conduit.read_u8().await?);
    }
    let status = head.strip_prefix(b"HTTP/1.").and_then(|rest| rest.get(2..5));
    let status = status.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
    status.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "its answer is not HTTP"))
}

impl Conduit {
    /// Returns once something may be read, without reading it.
    pub async fn readable(&self) {
        // A failure shows in the next read.
        let _ = self.socket().readable().await;
    }

    /// Closing sends RST from here on.
    pub fn set_resets(&self) {
        if let Err(error) = self.socket().set_zero_linger() {
            tracing::debug!(%error, "SO_LINGER of a connection to an upstream is not set");
        }
    }

    fn socket(&self) -> &TcpStream {
        match self {
            Conduit::Direct(stream) => stream,
            Conduit::Secured(stream) => stream.get_ref().0,
        }
    }
}

/// The same call on whichever stream it is.
macro_rules! on {
    ($this:ident, $stream:ident => $call:expr) => {
        match $this.get_mut() {
            Conduit::Direct($stream) => $call,
            Conduit::Secured($stream) => $call,
        }
    };
}

impl AsyncRead for Conduit {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        on!(self, stream => Pin::new(stream).poll_read(cx, buffer))
    }
}

impl AsyncWrite for Conduit {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        on!(self, stream => Pin::new(stream).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        on!(self, stream => Pin::new(stream).poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Conduit::Direct(stream) => stream.is_write_vectored(),
            Conduit::Secured(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}
