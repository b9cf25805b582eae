//! Trust anchors, client certificates and TLS client configurations; the interception CA (`authority`).
//!
//! Not here: dialling (`dial`), the roots that a connection or route configures (`config`).
//! Invariant: certificates are always verified; no configuration can disable that.

pub mod authority;
mod presented;
mod proxied;
mod verifier;

use std::collections::HashSet;
use std::error::Error;
use std::io;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, InconsistentKeys, RootCertStore, ServerConfig};
use x509_parser::extensions::GeneralName;
use x509_parser::x509::X509Version;

pub use presented::presented_issuer;
pub use proxied::Proxied;

use crate::model::connection::ClientCertificate;
use crate::model::san::San;
use crate::model::secret::Secret;
use crate::model::time::WallTime;
use crate::model::{ListenerTls, Roots};
use proxied::ProxiedVerifier;
use verifier::{Anchors, ServerVerifier};

/// The TLS error behind `error`, if any. An I/O error hides what it wraps from `source`: look inside.
pub fn cause<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let wrapped = || error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    error.downcast_ref().or_else(|| cause(wrapped()?)).or_else(|| cause(error.source()?))
}

/// The global trust anchors, used where neither a connection nor a route configures its own.
#[derive(Clone)]
pub struct Trust {
    anchors: Anchors,
    default_config: Arc<ClientConfig>,
}

impl Trust {
    /// The platform's roots (Mozilla's if the platform has none) plus `extra`.
    pub fn new(extra: &Roots) -> Trust {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(platform_roots());
        if roots.is_empty() {
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
        roots.add_parsable_certificates(extra.iter().cloned());
        let anchors = Anchors { roots: Arc::new(roots), named: extra.clone() };
        Trust { default_config: Arc::new(client_config(&anchors)), anchors }
    }

    /// A client configuration that trusts the global roots, or `roots` instead, and presents `certificate` to servers
    /// that request one.
    pub fn client_config(&self, roots: Option<&Roots>, certificate: Option<&ClientCertificate>) -> Arc<ClientConfig> {
        self.client_config_through(roots, certificate, None)
    }

    /// The same, for servers behind an egress proxy that speaks TLS itself.
    pub fn client_config_through(
        &self,
        roots: Option<&Roots>,
        certificate: Option<&ClientCertificate>,
        proxied: Option<Proxied>,
    ) -> Arc<ClientConfig> {
        if roots.is_none() && certificate.is_none() && proxied.is_none() {
            return self.default_config.clone();
        }
        let anchors = roots.map_or_else(|| self.anchors.clone(), Anchors::of);
        let mut config = client_config(&anchors);
        if let Some(certified) = certificate.and_then(|certificate| certified_key(certificate).ok()) {
            config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(certified));
        }
        let verifier = proxied.and_then(|proxied| ProxiedVerifier::new(proxied, &anchors, &self.anchors));
        if let Some(verifier) = verifier {
            config.dangerous().set_certificate_verifier(Arc::new(verifier));
        }
        Arc::new(config)
    }
}

/// The platform's trusted roots; empty if it has no certificate store.
pub fn platform_roots() -> Vec<CertificateDer<'static>> {
    rustls_native_certs::load_native_certs().certs
}

/// Encodes certificates as PEM, without duplicates.
pub fn to_pem<'c>(certificates: impl IntoIterator<Item = &'c CertificateDer<'static>>) -> String {
    let (mut seen, mut pem) = (HashSet::new(), String::new());
    for certificate in certificates.into_iter().filter(|certificate| seen.insert(*certificate)) {
        pem += "-----BEGIN CERTIFICATE-----\n";
        let text = BASE64_STANDARD.encode(certificate);
        // RFC 7468 §2: 64 characters a line.
        for at in (0..text.len()).step_by(64) {
            pem += &text[at..text.len().min(at + 64)];
            pem.push('\n');
        }
        pem += "-----END CERTIFICATE-----\n";
    }
    pem
}

/// Reads a certificate chain and its private key, each in PEM.
pub fn read_client_certificate(pem: &[u8], key: Secret) -> Result<ClientCertificate, ClientCertificateError> {
    let chain = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().map_err(|_| RootsError::Pem)?;
    if chain.is_empty() {
        return Err(RootsError::Empty.into());
    }
    let certificate = ClientCertificate { chain: chain.into(), key };
    certified_key(&certificate).map(|_| certificate)
}

fn certified_key(certificate: &ClientCertificate) -> Result<CertifiedKey, ClientCertificateError> {
    let key = PrivateKeyDer::from_pem_slice(certificate.key.expose().as_bytes());
    let key = key.map_err(|_| ClientCertificateError::NoKey)?;
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).map_err(|_| ClientCertificateError::Kind)?;
    let certified = CertifiedKey::new(certificate.chain.to_vec(), key);
    match certified.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(certified),
        Err(rustls::Error::InconsistentKeys(_)) => Err(ClientCertificateError::Pair),
        Err(_) if is_version_1(&certificate.chain[0]) => Err(RootsError::Version1.into()),
        Err(_) => Err(RootsError::Certificate.into()),
    }
}

/// X.509 version 1 has no extensions (RFC 5280 §4.1.2.1); OpenSSL issues it unless extensions are given.
fn is_version_1(certificate: &CertificateDer<'_>) -> bool {
    x509_parser::parse_x509_certificate(certificate)
        .is_ok_and(|(_, certificate)| certificate.version() == X509Version::V1)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ClientCertificateError {
    #[error(transparent)]
    Certificate(#[from] RootsError),
    #[error("is not an unencrypted private key in PEM")]
    NoKey,
    #[error("is of a type that TLS does not support")]
    Kind,
    #[error("does not belong to the certificate")]
    Pair,
}

/// TLS 1.2 and 1.3, HTTP/1.1 by ALPN, no client certificate.
fn client_config(anchors: &Anchors) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("aws-lc-rs supports the default protocol versions");
    let builder = match ServerVerifier::new(anchors) {
        Some(verifier) => builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)),
        // Without a root, no server certificate is accepted.
        None => builder.with_root_certificates(anchors.roots.clone()),
    };
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

/// TLS server configuration of a listener: TLS 1.2 and 1.3; HTTP/2 or HTTP/1.1 by ALPN.
pub fn server_config(listener: &ListenerTls) -> Result<Arc<ServerConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = match &listener.client_ca {
        None => builder.with_no_client_auth(),
        Some(roots) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Anchors::of(roots).roots, provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| rustls::Error::General(error.to_string()))?)
        }
    };
    let certified = certified_key(&listener.certificate).map_err(|error| rustls::Error::General(error.to_string()))?;
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The names in a certificate's subjectAltName (RFC 5280 §4.2.1.6): DNS names, URIs, mail and IP addresses.
pub fn names(certificate: &CertificateDer<'_>) -> Vec<San> {
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(certificate) else { return Vec::new() };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let san = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some(San::dns(name)),
        GeneralName::URI(name) => Some(San::Uri((*name).to_owned())),
        GeneralName::RFC822Name(name) => Some(San::Mail((*name).to_owned())),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|bytes| San::Ip(bytes.into())),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| San::Ip(bytes.into())),
        },
        _ => None,
    };
    names.value.general_names.iter().filter_map(san).collect()
}

/// Reads trust anchors in PEM: at least one certificate, all of them usable.
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

/// The end of a certificate's validity (RFC 5280 §4.1.2.5); `None` if the certificate cannot be parsed.
pub fn expiry(certificate: &CertificateDer<'_>) -> Option<WallTime> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    // A date before 1970 has expired as well.
    Some(WallTime::from_secs(certificate.validity().not_after.timestamp().try_into().unwrap_or(0)))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RootsError {
    #[error("holds malformed PEM")]
    Pem,
    #[error("holds no certificate")]
    Empty,
    #[error("holds a certificate that cannot be used")]
    Certificate,
    #[error("holds a certificate of X.509 version 1, which cannot be presented over TLS")]
    Version1,
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
