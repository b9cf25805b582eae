//! Two sets of roots in one client: a proxy's own certificate, and those of the servers behind it.
//!
//! Holds: each certificate is verified as strictly as without a proxy; roots for the one vouch for nobody else.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use crate::model::Roots;

/// A proxy that speaks TLS: its name, and whom it is vouched for by, in place of the shared roots.
pub struct Proxied {
    name: ServerName<'static>,
    roots: Option<Arc<RootCertStore>>,
}

impl Proxied {
    /// `None` for a name that no certificate can have.
    pub fn new(host: &str, trust: Option<&Roots>) -> Option<Proxied> {
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).ok()?;
        Some(Proxied { name, roots: trust.map(super::roots_of) })
    }
}

#[derive(Debug)]
pub(super) struct ByName {
    proxy: ServerName<'static>,
    of_proxy: Arc<WebPkiServerVerifier>,
    of_others: Arc<WebPkiServerVerifier>,
}

impl ByName {
    pub fn new(proxied: Proxied, roots: Arc<RootCertStore>, shared: &Arc<RootCertStore>) -> Option<ByName> {
        let verifier = |roots| {
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            WebPkiServerVerifier::builder_with_provider(roots, provider).build().ok()
        };
        let of_proxy = verifier(proxied.roots.unwrap_or_else(|| shared.clone()))?;
        Some(ByName { proxy: proxied.name, of_proxy, of_others: verifier(roots)? })
    }
}

impl ServerCertVerifier for ByName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verifier = if *server_name == self.proxy { &self.of_proxy } else { &self.of_others };
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.of_others.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.of_others.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.of_others.supported_verify_schemes()
    }
}
