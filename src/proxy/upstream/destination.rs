//! Where a request goes, and what makes two connections interchangeable.

use std::sync::Arc;

use rustls::pki_types::ServerName;

use super::super::error::{Fault, ProxyError, TlsFault};
use crate::dial::Dialer;
use crate::model::origin::{Host, Origin, Scheme};
use crate::snapshot::TlsProfile;

/// Where a request goes, and how TLS is verified there.
#[derive(Debug, Clone)]
pub struct Destination {
    pub origin: Origin,
    pub tls: Arc<TlsProfile>,
    /// In SNI and in the certificate, in place of the host.
    pub server_name: Option<Host>,
    pub protocol: Protocol,
}

/// What a request may be sent by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// What TLS agrees on; HTTP/1.1 without TLS.
    Any,
    /// WebSocket: HTTP/1.1, or HTTP/2 where the upstream refuses the former.
    WebSocket,
    /// HTTP/2, without TLS by prior knowledge: gRPC.
    Http2,
}

/// Connections of one key are interchangeable.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    pub origin: Origin,
    dialer: usize,
    tls: usize,
    server_name: Option<Host>,
    pub protocol: Protocol,
}

impl Destination {
    pub fn key(&self, dialer: &Dialer) -> Key {
        let tls = if self.origin.scheme == Scheme::Https { self.tls.id } else { 0 };
        let protocol = match (self.origin.scheme, self.protocol) {
            (Scheme::Https, Protocol::Http2) => Protocol::Any,
            (_, protocol) => protocol,
        };
        let (origin, server_name) = (self.origin.clone(), self.server_name.clone());
        Key { origin, dialer: dialer.number, tls, server_name, protocol }
    }

    /// In SNI and in the certificate.
    pub fn server_name(&self) -> Result<ServerName<'static>, Fault> {
        match self.server_name.as_ref().unwrap_or(&self.origin.host) {
            Host::Ip(address) => Ok(ServerName::from(*address)),
            Host::Name(name) => ServerName::try_from(name.to_string())
                .map_err(|error| ProxyError::UpstreamTls(TlsFault::Certificate).because(error)),
        }
    }
}

impl Key {
    /// The same for whatever is spoken there.
    pub fn of_any_protocol(&self) -> Key {
        Key { protocol: Protocol::Any, ..self.clone() }
    }

    /// In clear, directly.
    #[cfg(test)]
    pub fn of_origin(origin: Origin) -> Key {
        Key { origin, dialer: 0, tls: 0, server_name: None, protocol: Protocol::Any }
    }
}
