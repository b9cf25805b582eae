//! Egress through a forward proxy: CONNECT for TLS and tunnels, absolute form for cleartext requests.
//!
//! Invariants: names are sent to the proxy unresolved; its credentials are sent only to it; its response to CONNECT is
//! bounded, and no byte after that response is consumed.

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

/// Maximum length of the head of a response to CONNECT.
const RESPONSE_HEAD_BYTES_MAX: usize = 16 * 1024;

/// A stream to an upstream, or to the egress proxy in front of it.
pub enum Conduit {
    Direct(TcpStream),
    /// TLS to the egress proxy; may carry a second TLS session, to the upstream.
    Secured(Box<TlsStream<TcpStream>>),
}

/// Marks a stream that ends at an egress proxy: requests are sent in absolute form.
#[derive(Debug, Clone)]
pub struct Forwarding {
    /// `Proxy-Authorization` of every request.
    pub authorization: Option<HeaderValue>,
}

/// The egress proxy, and the hosts that bypass it.
#[derive(Debug, Clone)]
pub struct EgressProxy {
    pub proxy: ForwardProxy,
    pub no_proxy: Vec<Bypass>,
    origin: Origin,
    tls: Option<Arc<ClientConfig>>,
    /// The configured roots that extend the platform's, if the proxy is verified against those.
    extra_roots: Option<Roots>,
    authorization: Option<HeaderValue>,
}

/// Equal if URL, credentials, bypass rules and trust anchors are.
impl PartialEq for EgressProxy {
    fn eq(&self, other: &EgressProxy) -> bool {
        self.proxy == other.proxy && self.no_proxy == other.no_proxy && self.extra_roots == other.extra_roots
    }
}

impl Eq for EgressProxy {}

impl EgressProxy {
    /// `extra` are the roots of `trust` that the configuration names. `None` for a URL without a host, which the
    /// validator rejects.
    pub fn new(proxy: &ForwardProxy, no_proxy: &[Bypass], trust: &Trust, extra: &Roots) -> Option<EgressProxy> {
        let secure = proxy.url.scheme() == "https";
        let host = Host::parse(proxy.url.host_str()?).ok()?;
        let scheme = if secure { Scheme::Https } else { Scheme::Http };
        let origin = Origin { scheme, host, port: proxy.url.port_or_known_default()? };
        let authorization = proxy.credentials.as_ref().and_then(|(username, password)| {
            let pair = format!("{username}:{}", password.expose());
            let mut value = HeaderValue::try_from(format!("Basic {}", BASE64_STANDARD.encode(pair))).ok()?;
            value.set_sensitive(true);
            Some(value)
        });
        let tls = secure.then(|| trust.client_config(proxy.trust.as_ref(), None));
        let extra_roots = (secure && proxy.trust.is_none()).then(|| extra.clone());
        Some(EgressProxy { proxy: proxy.clone(), no_proxy: no_proxy.to_vec(), origin, tls, extra_roots, authorization })
    }

    pub fn applies_to(&self, host: &Host, port: u16) -> bool {
        !self.no_proxy.iter().any(|entry| entry.matches(host, port))
    }

    /// The proxy's own origin.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    pub fn forwarding(&self) -> Forwarding {
        Forwarding { authorization: self.authorization.clone() }
    }

    /// Performs the TLS handshake with the proxy, if it speaks TLS.
    pub async fn handshake(&self, stream: TcpStream) -> Result<Conduit, DialError> {
        let Some(tls) = &self.tls else { return Ok(Conduit::Direct(stream)) };
        let name = match &self.origin.host {
            Host::Ip(address) => Ok(ServerName::from(*address)),
            Host::Name(name) => ServerName::try_from(name.to_string()).map_err(io::Error::other),
        };
        let failed = |source| DialError::Proxy { proxy: self.origin.authority(), source };
        let stream = TlsConnector::from(tls.clone()).connect(name.map_err(failed)?, stream).await;
        Ok(Conduit::Secured(Box::new(stream.map_err(failed)?)))
    }

    /// Opens a tunnel to `origin` with CONNECT.
    pub async fn tunnel(&self, stream: TcpStream, origin: &Origin) -> Result<Conduit, DialError> {
        let mut conduit = self.handshake(stream).await?;
        let target = format!("{}:{}", origin.host, origin.port);
        let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n").into_bytes();
        if let Some(authorization) = &self.authorization {
            request.extend_from_slice(b"Proxy-Authorization: ");
            request.extend_from_slice(authorization.as_bytes());
            request.extend_from_slice(b"\r\n");
        }
        request.extend_from_slice(b"\r\n");
        let failed = |source| DialError::Proxy { proxy: self.origin.authority(), source };
        match send_connect(&mut conduit, &request).await.map_err(failed)? {
            200..=299 => Ok(conduit),
            status => Err(DialError::ProxyRefused { proxy: self.origin.authority(), status }),
        }
    }
}

/// Sends CONNECT and returns the status of the response. Reads byte by byte: what follows the head belongs to the
/// tunnel.
async fn send_connect(conduit: &mut Conduit, request: &[u8]) -> io::Result<u16> {
    conduit.write_all(request).await?;
    conduit.flush().await?;
    let mut head = Vec::with_capacity(256);
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == RESPONSE_HEAD_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the head of its response is too long"));
        }
        head.push(conduit.read_u8().await?);
    }
    let status = head.strip_prefix(b"HTTP/1.").and_then(|rest| rest.get(2..5));
    let status = status.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
    status.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "its response is not HTTP/1.x"))
}

impl Conduit {
    /// Waits until the stream is readable, without reading.
    pub async fn readable(&self) {
        // The next read reports a failure.
        let _ = self.socket().readable().await;
    }

    /// Makes closing send RST.
    pub fn set_resets(&self) {
        if let Err(error) = self.socket().set_zero_linger() {
            tracing::debug!(%error, "setting SO_LINGER on an upstream connection failed");
        }
    }

    fn socket(&self) -> &TcpStream {
        match self {
            Conduit::Direct(stream) => stream,
            Conduit::Secured(stream) => stream.get_ref().0,
        }
    }
}

/// Delegates a call to the stream of either variant.
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
