//! The interception CA itself, which may sign leaf certificates only: creates it for `ca init`, reads it for the
//! configuration.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, GeneralSubtree, IsCa, KeyPair,
    KeyUsagePurpose, NameConstraints, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::OffsetDateTime;
use x509_parser::parse_x509_certificate;

use super::CLOCK_SKEW;
use crate::model::origin::Host;
use crate::model::secret::Secret;
use crate::model::time::WallTime;
use crate::model::{Interception, Roots};

const CA_VALIDITY: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Why a CA was rejected. The messages complete a sentence that starts with the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CaError {
    #[error("holds no certificate in valid PEM")]
    Certificate,
    #[error("is not a CA certificate: its basic constraints lack CA:TRUE, or its key usage excludes signing")]
    NotCa,
    #[error("is not an unencrypted private key in PEM that can sign certificates")]
    Key,
    #[error("does not belong to the certificate")]
    Pair,
}

/// Reads a CA's certificate, followed by its issuers, and its key, each in PEM.
///
/// # Errors
/// [`CaError::Certificate`] and [`CaError::NotCa`] concern the certificate, the others the key.
pub fn read_ca(certificate: &[u8], key: Secret) -> Result<Interception, CaError> {
    let chain = read_certificates(certificate)?;
    let (_, parsed) = parse_x509_certificate(&chain[0]).map_err(|_| CaError::Certificate)?;
    if key_pair(&key)?.public_key_raw() != parsed.public_key().subject_public_key.data.as_ref() {
        return Err(CaError::Pair);
    }
    Ok(Interception { chain, key })
}

pub(super) fn key_pair(key: &Secret) -> Result<KeyPair, CaError> {
    KeyPair::from_pem(key.expose()).map_err(|_| CaError::Key)
}

/// Roots are not sent: a TLS client that trusts one has it already.
pub(super) fn is_root(certificate: &CertificateDer<'_>) -> bool {
    parse_x509_certificate(certificate).is_ok_and(|(_, parsed)| parsed.subject() == parsed.issuer())
}

/// Reads PEM certificates from a file that may contain other items.
///
/// # Errors
/// [`CaError::Certificate`] if there is none or a malformed one; [`CaError::NotCa`] if the first is not a CA
/// certificate.
pub fn read_certificates(pem: &[u8]) -> Result<Roots, CaError> {
    let chain = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|_| CaError::Certificate)?;
    let first = chain.first().ok_or(CaError::Certificate)?;
    let (_, parsed) = parse_x509_certificate(first).map_err(|_| CaError::Certificate)?;
    let usage = parsed.key_usage().map_err(|_| CaError::Certificate)?;
    if !parsed.is_ca() || usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err(CaError::NotCa);
    }
    Ok(chain.into())
}

/// A new CA, as `ca init` writes it.
#[derive(Debug)]
pub struct NewCa {
    pub certificate_pem: String,
    pub key_pem: Secret,
}

/// Creates a CA with the common name `name`, for any host, or constrained to `hosts` and their subdomains.
///
/// # Errors
/// Without a source of randomness.
pub fn make_ca(name: &str, hosts: &[Host], wall: WallTime) -> Result<NewCa, rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = moment(wall - CLOCK_SKEW);
    params.not_after = moment(wall + CA_VALIDITY);
    params.serial_number = Some(serial()?);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    if !hosts.is_empty() {
        params.name_constraints = Some(constraints(hosts));
    }
    let certificate_pem = params.self_signed(&key)?.pem();
    Ok(NewCa { certificate_pem, key_pem: Secret::new(key.serialize_pem()) })
}

/// A name type without a permitted subtree is unconstrained (RFC 5280 §4.2.1.10), so all of its names are excluded.
fn constraints(hosts: &[Host]) -> NameConstraints {
    let mut excluded_subtrees = Vec::new();
    if !hosts.iter().any(|host| matches!(host, Host::Ip(_))) {
        let all = [IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::from(Ipv6Addr::UNSPECIFIED)];
        excluded_subtrees.extend(all.map(|all| GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(all, 0))));
    }
    if !hosts.iter().any(|host| matches!(host, Host::Name(_))) {
        excluded_subtrees.push(GeneralSubtree::DnsName(String::new()));
    }
    NameConstraints { permitted_subtrees: hosts.iter().map(subtree).collect(), excluded_subtrees }
}

fn subtree(host: &Host) -> GeneralSubtree {
    match host {
        Host::Name(name) => GeneralSubtree::DnsName(name.to_string()),
        Host::Ip(address @ IpAddr::V4(_)) => GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(*address, 32)),
        Host::Ip(address @ IpAddr::V6(_)) => GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(*address, 128)),
    }
}

/// 126 random bits, positive (RFC 5280 §4.1.2.2).
pub(super) fn serial() -> Result<SerialNumber, rcgen::Error> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| rcgen::Error::RingUnspecified)?;
    bytes[0] = bytes[0] & 0x3f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

pub(super) fn moment(wall: WallTime) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + wall.since_epoch()
}
