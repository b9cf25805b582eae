//! Two sets of roots in one client: a proxy's own certificate, and those of the servers behind it.
//!
//! Holds: each certificate is verified as strictly as without a proxy; roots for the one vouch for nobody else.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, SignatureScheme};

use super::verifier::{Anchors, ServerVerifier};
use crate::model::Roots;

/// A proxy that speaks TLS: its name, and whom it is vouched for by, in place of the shared roots.
pub struct Proxied {
    name: ServerName<'static>,
    anchors: Option<Anchors>,
}

impl Proxied {
    /// `None` for a name that no certificate can have.
    pub fn new(host: &str, trust: Option<&Roots>) -> Option<Proxied> {
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).ok()?;
        Some(Proxied { name, anchors: trust.map(Anchors::of) })
    }
}

#[derive(Debug)]
pub(super) struct ByName {
    proxy: ServerName<'static>,
    of_proxy: ServerVerifier,
    of_others: ServerVerifier,
}

impl ByName {
    pub fn new(proxied: Proxied, others: &Anchors, shared: &Anchors) -> Option<ByName> {
        let of_proxy = ServerVerifier::new(proxied.anchors.as_ref().unwrap_or(shared))?;
        Some(ByName { proxy: proxied.name, of_proxy, of_others: ServerVerifier::new(others)? })
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
