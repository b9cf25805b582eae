//! Trust anchors and TLS client configurations.
//!
//! Not here: who is dialled (`dial`), which roots a connection or a route names (`config`).
//! Holds: certificates are always verified; nothing in the configuration can switch that off.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use crate::model::Roots;

/// The roots that vouch where neither a connection nor a route names its own.
#[derive(Clone)]
pub struct Trust {
    shared: Arc<ClientConfig>,
}

impl Trust {
    /// The platform's roots (Mozilla's where the platform has none), with `extra` beside them.
    pub fn new(extra: &Roots) -> Trust {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
        roots.add_parsable_certificates(extra.iter().cloned());
        Trust { shared: Arc::new(client_config(roots)) }
    }

    /// A client configuration over the shared roots, or over `own` in their place.
    pub fn client_config(&self, own: Option<&Roots>) -> Arc<ClientConfig> {
        let Some(own) = own else { return self.shared.clone() };
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(own.iter().cloned());
        Arc::new(client_config(roots))
    }
}

/// TLS 1.2 and 1.3, HTTP/1.1 by ALPN, no client certificate.
fn client_config(roots: RootCertStore) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("aws-lc-rs supports the default protocol versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

/// Reads PEM certificates that are to be trust anchors: at least one, each of them usable.
pub fn read_roots(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, RootsError> {
    let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let certificates = certificates.map_err(|_| RootsError::Pem)?;
    if certificates.is_empty() {
        return Err(RootsError::Empty);
    }
    let mut store = RootCertStore::empty();
    for certificate in &certificates {
        store.add(certificate.clone()).map_err(|_| RootsError::Certificate)?;
    }
    Ok(certificates)
}

/// The end of a certificate's validity (RFC 5280 §4.1.2.5), since the Unix epoch; `None` where it cannot be read.
pub fn expiry(certificate: &CertificateDer<'_>) -> Option<Duration> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    // Before 1970 is over, too.
    Some(Duration::from_secs(certificate.validity().not_after.timestamp().try_into().unwrap_or(0)))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RootsError {
    #[error("holds broken PEM")]
    Pem,
    #[error("holds no certificate")]
    Empty,
    #[error("holds a certificate that cannot be a trust anchor")]
    Certificate,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_must_be_certificates() {
        assert_eq!(read_roots(b""), Err(RootsError::Empty));
        assert_eq!(read_roots(b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"), Err(RootsError::Pem));
        let nonsense = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert_eq!(read_roots(nonsense), Err(RootsError::Certificate));
    }
}
