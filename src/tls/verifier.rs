//! Server certificate verification: accepts certificates that chain to a root, and certificates that are listed in
//! `trust`.
//!
//! The second kind is what `openssl req -x509` creates: a server's own certificate with CA:TRUE, which WebPKI rejects
//! and OpenSSL and Go accept. Invariant: names (by type, RFC 6125 §6.4), dates and purpose are checked in either case.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use x509_parser::time::ASN1Time;

use crate::model::Roots;

/// Trust anchors for server certificates.
#[derive(Debug, Clone)]
pub struct Anchors {
    pub roots: Arc<RootCertStore>,
    /// The certificates among the roots that the configuration lists.
    pub named: Roots,
}

impl Anchors {
    pub fn of(named: &Roots) -> Anchors {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(named.iter().cloned());
        Anchors { roots: Arc::new(roots), named: named.clone() }
    }
}

#[derive(Debug)]
pub struct ServerVerifier {
    by_roots: Arc<WebPkiServerVerifier>,
    named: Roots,
}

impl ServerVerifier {
    /// `None` if there is no root.
    pub fn new(anchors: &Anchors) -> Option<ServerVerifier> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let by_roots = WebPkiServerVerifier::builder_with_provider(anchors.roots.clone(), provider).build().ok()?;
        Some(ServerVerifier { by_roots, named: anchors.named.clone() })
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match self.by_roots.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Err(Error::InvalidCertificate(_)) if self.named.contains(end_entity) => {
                verify_named(end_entity, server_name, now).map(|()| ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.by_roots.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.by_roots.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.by_roots.supported_verify_schemes()
    }
}

/// Checks everything but the issuer.
fn verify_named(end_entity: &CertificateDer<'_>, server_name: &ServerName<'_>, now: UnixTime) -> Result<(), Error> {
    // Rejects unknown critical extensions.
    let parsed = ParsedCertificate::try_from(end_entity)?;
    let bad = |_| CertificateError::BadEncoding;
    let (_, certificate) =
        x509_parser::parse_x509_certificate(end_entity).map_err(|_| CertificateError::BadEncoding)?;
    let (not_before, not_after) = (moment(certificate.validity().not_before), moment(certificate.validity().not_after));
    if now < not_before {
        return Err(CertificateError::NotValidYetContext { time: now, not_before }.into());
    }
    if now > not_after {
        return Err(CertificateError::ExpiredContext { time: now, not_after }.into());
    }
    let purposes = certificate.extended_key_usage().map_err(bad)?;
    if purposes.is_some_and(|purposes| !purposes.value.server_auth && !purposes.value.any) {
        return Err(CertificateError::InvalidPurpose.into());
    }
    verify_server_name(&parsed, server_name)
}

/// Clamps dates before 1970 to the epoch.
fn moment(time: ASN1Time) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(time.timestamp().try_into().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
        date_time_ymd,
    };

    use super::*;

    /// A self-signed certificate, valid in 2026.
    fn certificate(names: &[SanType], change: impl Fn(&mut CertificateParams)) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names.to_vec();
        params.not_before = date_time_ymd(2026, 1, 1);
        params.not_after = date_time_ymd(2026, 12, 31);
        // Like `openssl req -x509`.
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        change(&mut params);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    fn dns(name: &str) -> SanType {
        SanType::DnsName(name.to_owned().try_into().unwrap())
    }

    fn ip(address: &str) -> SanType {
        SanType::IpAddress(address.parse().unwrap())
    }

    const IN_2026: u64 = 1_780_000_000;
    const IN_2025: u64 = 1_750_000_000;
    const IN_2027: u64 = 1_800_000_000;

    /// Verifies the server certificate `shown` while `trust` lists `named`.
    fn verify(
        named: &CertificateDer<'static>,
        shown: &CertificateDer<'static>,
        name: &str,
        at: u64,
    ) -> Result<(), Error> {
        let verifier = ServerVerifier::new(&Anchors::of(&Roots::from([named.clone()]))).unwrap();
        let (name, now) =
            (ServerName::try_from(name.to_owned()).unwrap(), UnixTime::since_unix_epoch(Duration::from_secs(at)));
        verifier.verify_server_cert(shown, &[], &name, &[], now).map(|_| ())
    }

    #[test]
    fn a_server_certificate_listed_in_trust_is_accepted_for_its_names_and_dates() {
        let own = certificate(&[dns("api.test"), ip("127.0.0.1")], |_| {});
        assert_eq!(verify(&own, &own, "api.test", IN_2026), Ok(()));
        assert_eq!(verify(&own, &own, "127.0.0.1", IN_2026), Ok(()));
        let refused = |result: Result<(), Error>| match result {
            Err(Error::InvalidCertificate(error)) => format!("{error:?}").split([' ', '(']).next().unwrap().to_owned(),
            other => format!("{other:?}"),
        };
        assert_eq!(refused(verify(&own, &own, "other.test", IN_2026)), "NotValidForNameContext");
        assert_eq!(refused(verify(&own, &own, "api.test", IN_2025)), "NotValidYetContext");
        assert_eq!(refused(verify(&own, &own, "api.test", IN_2027)), "ExpiredContext");
        let other = certificate(&[dns("api.test")], |_| {});
        assert!(verify(&own, &other, "api.test", IN_2026).is_err(), "the same names with another key");
        let client = certificate(&[dns("api.test")], |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        });
        assert_eq!(refused(verify(&client, &client, "api.test", IN_2026)), "InvalidPurpose");
        let leaf = certificate(&[dns("api.test")], |params| {
            params.is_ca = IsCa::ExplicitNoCa;
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        });
        assert_eq!(verify(&leaf, &leaf, "api.test", IN_2026), Ok(()), "a certificate without CA:TRUE");
    }

    #[test]
    fn names_compare_by_type() {
        #[track_caller]
        fn check(names: &[SanType], name: &str, expected: bool) {
            let ca = certificate(names, |_| {});
            assert_eq!(verify(&ca, &ca, name, IN_2026).is_ok(), expected, "{names:?} {name}");
            let leaf = certificate(names, |params| params.is_ca = IsCa::ExplicitNoCa);
            assert_eq!(verify(&leaf, &leaf, name, IN_2026).is_ok(), expected, "leaf: {names:?} {name}");
        }
        check(&[ip("127.0.0.1")], "127.0.0.1", true);
        check(&[ip("::1")], "::1", true);
        check(&[dns("127.0.0.1")], "127.0.0.1", false);
        check(&[dns("*")], "127.0.0.1", false);
        check(&[SanType::URI("https://127.0.0.1".to_owned().try_into().unwrap())], "127.0.0.1", false);
        check(&[dns("api.test")], "API.test", true);
        check(&[dns("*.api.test")], "a.api.test", true);
        check(&[ip("127.0.0.1")], "api.test", false);
        check(&[SanType::URI("https://api.test".to_owned().try_into().unwrap())], "api.test", false);
        check(&[SanType::Rfc822Name("a@api.test".to_owned().try_into().unwrap())], "api.test", false);
    }
}
