//! The certificate of a signing key: its thumbprint, and whether it matches the key.
//!
//! Not here: validity and trust; the authorization server checks them.

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::SigningKey;
use crate::model::connection::Thumbprint;

/// Why a certificate cannot be used. The message completes a sentence that starts with its location.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    #[error("holds no certificate in PEM")]
    NotPem,
    #[error("holds a certificate that cannot be parsed")]
    Unreadable,
}

impl Thumbprint {
    /// The thumbprint of the first certificate of `pem`, in base64url.
    ///
    /// # Errors
    /// If there is none.
    pub fn of(self, pem: &[u8]) -> Result<(Thumbprint, String), CertificateError> {
        let algorithm = match self {
            // Some servers require `x5t`. It only selects a certificate, so SHA-1 is strong enough.
            Thumbprint::Sha1 => &digest::SHA1_FOR_LEGACY_USE_ONLY,
            Thumbprint::Sha256 => &digest::SHA256,
        };
        let certificate = first(pem)?;
        Ok((self, BASE64_URL_SAFE_NO_PAD.encode(digest::digest(algorithm, &certificate))))
    }
}

/// True if the first certificate of `pem` is for `key`; always false for a shared secret.
///
/// # Errors
/// If there is none, or it cannot be parsed.
pub fn certificate_matches(key: &SigningKey, pem: &[u8]) -> Result<bool, CertificateError> {
    let certificate = first(pem)?;
    let (_, certificate) =
        x509_parser::parse_x509_certificate(&certificate).map_err(|_| CertificateError::Unreadable)?;
    let theirs = certificate.public_key().subject_public_key.data.as_ref();
    Ok(key.public_key() == Some(theirs))
}

fn first(pem: &[u8]) -> Result<CertificateDer<'static>, CertificateError> {
    CertificateDer::from_pem_slice(pem).map_err(|_| CertificateError::NotPem)
}
