//! Certificate verification with two sets of roots: one for an egress proxy, one for the servers behind it.
//!
//! Invariant: each certificate is verified as strictly as without a proxy, and only against its own set of roots.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, SignatureScheme};

use super::verifier::{Anchors, ServerVerifier};
use crate::model::Roots;

/// An egress proxy that speaks TLS: its name, and the trust anchors that replace the global ones.
pub struct Proxied {
    name: ServerName<'static>,
    anchors: Option<Anchors>,
}

impl Proxied {
    /// `None` if `host` is not valid as a certificate name.
    pub fn new(host: &str, trust: Option<&Roots>) -> Option<Proxied> {
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).ok()?;
        Some(Proxied { name, anchors: trust.map(Anchors::of) })
    }
}

#[derive(Debug)]
pub(super) struct ProxiedVerifier {
    proxy: ServerName<'static>,
    proxy_verifier: ServerVerifier,
    server_verifier: ServerVerifier,
}

impl ProxiedVerifier {
    pub fn new(proxied: Proxied, others: &Anchors, shared: &Anchors) -> Option<ProxiedVerifier> {
        let proxy_verifier = ServerVerifier::new(proxied.anchors.as_ref().unwrap_or(shared))?;
        Some(ProxiedVerifier { proxy: proxied.name, proxy_verifier, server_verifier: ServerVerifier::new(others)? })
    }
}

impl ServerCertVerifier for ProxiedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verifier = if *server_name == self.proxy { &self.proxy_verifier } else { &self.server_verifier };
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.server_verifier.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.server_verifier.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.server_verifier.supported_verify_schemes()
    }
}
