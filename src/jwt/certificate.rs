//! The certificate that goes with a signing key: its thumbprint, and whether it is the key's.
//!
//! Not here: whether it is valid or trusted; the authorization server decides that.

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::SigningKey;
use crate::model::connection::Thumbprint;

/// Why a certificate cannot be used: the end of a sentence that begins with where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    #[error("holds no certificate in PEM")]
    NotPem,
    #[error("holds a certificate that cannot be read")]
    Unreadable,
}

impl Thumbprint {
    /// The thumbprint of the first certificate of `pem`, in base64url.
    ///
    /// # Errors
    /// There is none.
    pub fn of(self, pem: &[u8]) -> Result<(Thumbprint, String), CertificateError> {
        let algorithm = match self {
            // The header that some servers ask for; nothing here rests on its strength.
            Thumbprint::Sha1 => &digest::SHA1_FOR_LEGACY_USE_ONLY,
            Thumbprint::Sha256 => &digest::SHA256,
        };
        let certificate = first(pem)?;
        Ok((self, BASE64_URL_SAFE_NO_PAD.encode(digest::digest(algorithm, &certificate))))
    }
}

/// Whether the first certificate of `pem` is about `key`. It never is about a shared secret.
///
/// # Errors
/// There is none, or it cannot be read.
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
