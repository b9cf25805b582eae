//! Destination of a request, and the pool key: what makes two connections interchangeable.

use std::sync::Arc;

use rustls::pki_types::ServerName;

use super::super::error::{Fault, ProxyError, TlsFault};
use crate::dial::Dialer;
use crate::model::origin::{Host, Origin, Scheme};
use crate::snapshot::TlsProfile;

/// Origin, TLS settings and protocol of a request.
#[derive(Debug, Clone)]
pub struct Destination {
    pub origin: Origin,
    pub tls: Arc<TlsProfile>,
    /// Replaces the host in SNI and in certificate verification.
    pub server_name: Option<Host>,
    pub protocol: Protocol,
    pub dialer: Dialer,
}

/// Protocol that a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Negotiated by ALPN; HTTP/1.1 without TLS.
    Any,
    /// WebSocket: HTTP/1.1, or HTTP/2 if the upstream refuses HTTP/1.1.
    WebSocket,
    /// gRPC: HTTP/2, with prior knowledge if without TLS.
    Http2,
}

/// Pool key: connections with equal keys are interchangeable.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    pub origin: Origin,
    dialer: usize,
    tls: usize,
    server_name: Option<Host>,
    pub protocol: Protocol,
}

impl Destination {
    pub fn key(&self) -> Key {
        let tls = if self.origin.scheme == Scheme::Https { self.tls.id } else { 0 };
        let protocol = match (self.origin.scheme, self.protocol) {
            (Scheme::Https, Protocol::Http2) => Protocol::Any,
            (_, protocol) => protocol,
        };
        let (origin, server_name) = (self.origin.clone(), self.server_name.clone());
        Key { origin, dialer: self.dialer.number, tls, server_name, protocol }
    }

    /// The name for SNI and for certificate verification.
    pub fn server_name(&self) -> Result<ServerName<'static>, Fault> {
        match self.server_name.as_ref().unwrap_or(&self.origin.host) {
            Host::Ip(address) => Ok(ServerName::from(*address)),
            Host::Name(name) => ServerName::try_from(name.to_string())
                .map_err(|error| ProxyError::UpstreamTls(TlsFault::Certificate).because(error)),
        }
    }
}

impl Key {
    /// The same key, regardless of protocol.
    pub fn of_any_protocol(&self) -> Key {
        Key { protocol: Protocol::Any, ..self.clone() }
    }

    /// Cleartext, without an egress proxy.
    #[cfg(test)]
    pub fn of_origin(origin: Origin) -> Key {
        Key { origin, dialer: 0, tls: 0, server_name: None, protocol: Protocol::Any }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dial::{AddressPolicy, NetworkSettings};
    use crate::model::origin::Authority;
    use crate::tasks::Tasks;

    fn destination(scheme: Scheme, tls_id: usize, server_name: Option<&str>) -> Destination {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let roots = rustls::RootCertStore::empty();
        let config = Arc::new(builder.unwrap().with_root_certificates(roots).with_no_client_auth());
        let reach = NetworkSettings { hosts: &[], policy: AddressPolicy::default(), egress_proxy: None };
        Destination {
            origin: Origin::new(scheme, Authority::parse("api.test").unwrap()),
            tls: Arc::new(TlsProfile { id: tls_id, any: config.clone(), http1: config }),
            server_name: server_name.map(|name| Host::parse(name).unwrap()),
            protocol: Protocol::Any,
            dialer: Dialer::new(reach, &Tasks::default(), None),
        }
    }

    #[test]
    fn a_connection_is_shared_only_if_everything_that_its_handshake_checked_is_equal() {
        let key = |scheme, tls, name| destination(scheme, tls, name).key();
        let https = |tls, name| key(Scheme::Https, tls, name);
        assert_eq!(https(1, Some("one.test")), https(1, Some("one.test")));
        assert_ne!(
            https(1, Some("one.test")),
            https(1, Some("two.test")),
            "the certificate is checked against another name"
        );
        assert_ne!(https(1, Some("one.test")), https(1, None), "the host's own name");
        assert_ne!(https(1, None), https(2, None), "other roots or another client certificate");
        assert_eq!(key(Scheme::Http, 1, None), key(Scheme::Http, 2, None), "there is no handshake");
        let named = key(Scheme::Https, 1, None);
        let mut other = destination(Scheme::Https, 1, None);
        other.dialer = other.dialer.by_port();
        assert_ne!(other.key(), named, "another address policy");
    }
}
