//! Signing of JWTs (RFC 7519): reads and checks private keys and shared secrets; jsonwebtoken signs.
//!
//! Not here: the claims of a grant or client assertion; verifying the JWTs of others.
//! Invariants: a key is checked against its algorithm (type, curve, size) before use; no key appears in `Debug` output
//! or an error, and its bytes are wiped on drop. jsonwebtoken parses the key for each signature: about a millisecond
//! for RSA.

mod certificate;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
    Ed25519KeyPair, KeyPair, RsaKeyPair,
};
use jsonwebtoken::{EncodingKey, Header};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Map, Value};
use x509_parser::asn1_rs::{Any, FromDer as _, OctetString, Sequence};
use zeroize::Zeroizing;

use crate::model::connection::{Algorithm, Thumbprint};
use crate::model::secret::Secret;

pub use certificate::certificate_matches;

/// Key type that an algorithm needs.
enum KeyKind {
    Rsa,
    Ecdsa(&'static EcdsaSigningAlgorithm),
    Ed25519,
    Shared,
}

impl Algorithm {
    /// The library's constant for the algorithm, and the key type that it needs.
    fn signing(self) -> (jsonwebtoken::Algorithm, KeyKind) {
        use jsonwebtoken::Algorithm as Library;
        match self {
            Algorithm::RS256 => (Library::RS256, KeyKind::Rsa),
            Algorithm::RS384 => (Library::RS384, KeyKind::Rsa),
            Algorithm::RS512 => (Library::RS512, KeyKind::Rsa),
            Algorithm::PS256 => (Library::PS256, KeyKind::Rsa),
            Algorithm::PS384 => (Library::PS384, KeyKind::Rsa),
            Algorithm::PS512 => (Library::PS512, KeyKind::Rsa),
            Algorithm::ES256 => (Library::ES256, KeyKind::Ecdsa(&ECDSA_P256_SHA256_FIXED_SIGNING)),
            Algorithm::ES384 => (Library::ES384, KeyKind::Ecdsa(&ECDSA_P384_SHA384_FIXED_SIGNING)),
            Algorithm::EdDSA => (Library::EdDSA, KeyKind::Ed25519),
            Algorithm::HS256 => (Library::HS256, KeyKind::Shared),
            Algorithm::HS384 => (Library::HS384, KeyKind::Shared),
            Algorithm::HS512 => (Library::HS512, KeyKind::Shared),
        }
    }

    /// The key type, for messages.
    fn key_kind(self) -> &'static str {
        match self {
            Algorithm::RS256
            | Algorithm::RS384
            | Algorithm::RS512
            | Algorithm::PS256
            | Algorithm::PS384
            | Algorithm::PS512 => "RSA",
            Algorithm::ES256 => "P-256",
            Algorithm::ES384 => "P-384",
            Algorithm::EdDSA => "Ed25519",
            Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => "shared",
        }
    }
}

/// Why a key cannot be used. The message completes a sentence that starts with the location of the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("holds no private key in PEM")]
    NotPem,
    #[error("is encrypted")]
    Encrypted,
    #[error("is not the {} key that {} needs", .0.key_kind(), .0.as_str())]
    Kind(Algorithm),
    #[error("is an RSA key shorter than 2048 bits")]
    ShortRsa,
    #[error("is a private key, and {} needs a shared secret", .0.as_str())]
    NeedsSecret(Algorithm),
    #[error("is a shared secret, and {} needs a private key", .0.as_str())]
    NeedsPrivateKey(Algorithm),
    #[error("is empty")]
    Empty,
}

/// A unique identifier: 128 random bits in hexadecimal.
pub fn unique_id() -> String {
    let mut bytes = [0; 16];
    // Fails only without a source of randomness, and then no secret would be safe.
    aws_lc_rs::rand::fill(&mut bytes).expect("the system has a source of randomness");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Signing failed: out of memory or randomness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the key cannot sign")]
pub struct SignError;

/// Key identification in the header of a JWT (RFC 7515 §4.1.4, §4.1.7, §4.1.8).
#[derive(Debug, Clone, Default)]
pub struct KeyHint {
    pub key_id: Option<String>,
    pub thumbprint: Option<(Thumbprint, String)>,
}

/// A key with its algorithm. Clones share the key.
#[derive(Clone)]
pub struct SigningKey {
    algorithm: Algorithm,
    key: Arc<Key>,
}

struct Key {
    signs: EncodingKey,
    /// Public key as in a certificate's `subjectPublicKey`; `None` for a shared secret.
    public: Option<Vec<u8>>,
}

impl SigningKey {
    /// The first private key of `pem`: PKCS#8, PKCS#1 (RSA) or SEC1 (elliptic curves).
    ///
    /// # Errors
    /// No private key, an encrypted one, or one that does not fit `algorithm`.
    pub fn from_pem(pem: &Secret, algorithm: Algorithm) -> Result<SigningKey, KeyError> {
        let text = pem.expose();
        // RFC 7468 §11, and RFC 1421 §4.6.1.1 as OpenSSL writes it.
        let is_encrypted = text.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----") || text.contains("4,ENCRYPTED");
        let der = match PrivateKeyDer::from_pem_slice(text.as_bytes()) {
            _ if is_encrypted => return Err(KeyError::Encrypted),
            Ok(der) => Zeroizing::new(der),
            Err(_) => return Err(KeyError::NotPem),
        };
        let (_, kind) = algorithm.signing();
        let key = match kind {
            KeyKind::Rsa => rsa(&der).map_err(|fault| match fault {
                RsaFault::TooShort => KeyError::ShortRsa,
                RsaFault::Other => KeyError::Kind(algorithm),
            })?,
            KeyKind::Ecdsa(curve) => ecdsa(&der, curve).ok_or(KeyError::Kind(algorithm))?,
            KeyKind::Ed25519 => ed25519(&der).ok_or(KeyError::Kind(algorithm))?,
            KeyKind::Shared => return Err(KeyError::NeedsSecret(algorithm)),
        };
        Ok(SigningKey { algorithm, key: Arc::new(key) })
    }

    /// # Errors
    /// An empty secret, or an algorithm that needs a private key.
    pub fn from_secret(secret: &Secret, algorithm: Algorithm) -> Result<SigningKey, KeyError> {
        if !algorithm.is_symmetric() {
            return Err(KeyError::NeedsPrivateKey(algorithm));
        }
        let signs = EncodingKey::from_secret(secret.expose().as_bytes()).map_err(|_| KeyError::Empty)?;
        Ok(SigningKey { algorithm, key: Arc::new(Key { signs, public: None }) })
    }

    /// Signs a JWT in compact serialization (RFC 7515 §3.1), with `typ: JWT` and the key's `alg`.
    ///
    /// # Errors
    /// Out of memory or randomness.
    pub fn sign(&self, hint: &KeyHint, claims: &Map<String, Value>) -> Result<Secret, SignError> {
        let mut header = Header::new(self.algorithm.signing().0);
        header.kid.clone_from(&hint.key_id);
        match &hint.thumbprint {
            Some((Thumbprint::Sha1, value)) => header.x5t = Some(value.clone()),
            Some((Thumbprint::Sha256, value)) => header.x5t_s256 = Some(value.clone()),
            None => {}
        }
        jsonwebtoken::encode(&header, claims, &self.key.signs).map(Secret::new).map_err(|_| SignError)
    }

    /// Public key as in a certificate's `subjectPublicKey`; `None` for a shared secret.
    fn public_key(&self) -> Option<&[u8]> {
        self.key.public.as_deref()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

enum RsaFault {
    TooShort,
    Other,
}

/// jsonwebtoken expects RSA keys in PKCS#1.
fn rsa(der: &PrivateKeyDer<'_>) -> Result<Key, RsaFault> {
    // aws-lc-rs reports the reason only as text.
    let fault = |error: aws_lc_rs::error::KeyRejected| match error.to_string() == "TooSmall" {
        true => RsaFault::TooShort,
        false => RsaFault::Other,
    };
    let (pair, signs) = match der {
        PrivateKeyDer::Pkcs8(der) => {
            let pair = RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()).map_err(fault)?;
            (pair, rsa_inside_pkcs8(der.secret_pkcs8_der()).ok_or(RsaFault::Other)?)
        }
        PrivateKeyDer::Pkcs1(der) => {
            let pair = RsaKeyPair::from_der(der.secret_pkcs1_der()).map_err(fault)?;
            (pair, EncodingKey::from_rsa_der(der.secret_pkcs1_der()))
        }
        _ => return Err(RsaFault::Other),
    };
    Ok(Key { signs, public: public(&pair) })
}

/// RFC 5958 §2: the PKCS#1 key is the octet string after version and algorithm.
fn rsa_inside_pkcs8(der: &[u8]) -> Option<EncodingKey> {
    let (_, pkcs8) = Sequence::from_der(der).ok()?;
    let (rest, _version) = Any::from_der(&pkcs8.content).ok()?;
    let (rest, _algorithm) = Any::from_der(rest).ok()?;
    let (_, key) = OctetString::from_der(rest).ok()?;
    Some(EncodingKey::from_rsa_der(key.as_ref()))
}

/// jsonwebtoken expects EC keys in PKCS#8.
fn ecdsa(der: &PrivateKeyDer<'_>, curve: &'static EcdsaSigningAlgorithm) -> Option<Key> {
    let pair = match der {
        PrivateKeyDer::Pkcs8(der) => EcdsaKeyPair::from_pkcs8(curve, der.secret_pkcs8_der()).ok()?,
        PrivateKeyDer::Sec1(der) => EcdsaKeyPair::from_private_key_der(curve, der.secret_sec1_der()).ok()?,
        _ => return None,
    };
    let signs = EncodingKey::from_ec_der(pair.to_pkcs8v1().ok()?.as_ref());
    Some(Key { signs, public: public(&pair) })
}

fn ed25519(der: &PrivateKeyDer<'_>) -> Option<Key> {
    let PrivateKeyDer::Pkcs8(der) = der else { return None };
    let pair = Ed25519KeyPair::from_pkcs8(der.secret_pkcs8_der()).ok()?;
    Some(Key { signs: EncodingKey::from_ed_der(der.secret_pkcs8_der()), public: public(&pair) })
}

fn public(pair: &impl KeyPair) -> Option<Vec<u8>> {
    Some(pair.public_key().as_ref().to_vec())
}
