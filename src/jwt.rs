//! JWTs that we sign: RFC 7515 (compact serialization), 7518 (algorithms), 7519.
//!
//! Not here: which claims a grant or a client assertion has, and reading the JWTs of others.
//! Holds: a key fits its algorithm from the start (kind, curve, size); keys are in no `Debug` and no error, and the bytes
//! that we hold of them are wiped; aws-lc-rs keeps its own copies.

mod certificate;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{self, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair as _, RsaKeyPair};
use aws_lc_rs::{hmac, signature::RsaEncoding};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use crate::model::connection::Algorithm;
use crate::model::secret::Secret;

pub use certificate::{CertificateError, Thumbprint, certificate_matches};

/// How an algorithm signs.
enum Method {
    Rsa(&'static dyn RsaEncoding),
    Ecdsa(&'static EcdsaSigningAlgorithm),
    Ed25519,
    Hmac(hmac::Algorithm),
}

impl Algorithm {
    fn method(self) -> Method {
        match self {
            Algorithm::RS256 => Method::Rsa(&signature::RSA_PKCS1_SHA256),
            Algorithm::RS384 => Method::Rsa(&signature::RSA_PKCS1_SHA384),
            Algorithm::RS512 => Method::Rsa(&signature::RSA_PKCS1_SHA512),
            Algorithm::PS256 => Method::Rsa(&signature::RSA_PSS_SHA256),
            Algorithm::PS384 => Method::Rsa(&signature::RSA_PSS_SHA384),
            Algorithm::PS512 => Method::Rsa(&signature::RSA_PSS_SHA512),
            Algorithm::ES256 => Method::Ecdsa(&signature::ECDSA_P256_SHA256_FIXED_SIGNING),
            Algorithm::ES384 => Method::Ecdsa(&signature::ECDSA_P384_SHA384_FIXED_SIGNING),
            Algorithm::EdDSA => Method::Ed25519,
            Algorithm::HS256 => Method::Hmac(hmac::HMAC_SHA256),
            Algorithm::HS384 => Method::Hmac(hmac::HMAC_SHA384),
            Algorithm::HS512 => Method::Hmac(hmac::HMAC_SHA512),
        }
    }

    /// The kind of key, for messages.
    fn key_kind(self) -> &'static str {
        match self.method() {
            Method::Rsa(_) => "RSA",
            Method::Ecdsa(_) if self == Algorithm::ES256 => "P-256",
            Method::Ecdsa(_) => "P-384",
            Method::Ed25519 => "Ed25519",
            Method::Hmac(_) => "shared",
        }
    }
}

/// Why a key cannot be used: the end of a sentence that begins with where the key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("holds no private key in PEM")]
    NotPem,
    #[error("is encrypted")]
    Encrypted,
    #[error("is no {} key, which {} needs", .0.key_kind(), .0.as_str())]
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

/// A text that nobody has used before: 128 random bits in hexadecimal digits.
pub fn unique_id() -> String {
    let mut bytes = [0; 16];
    // It fails only where the system has no randomness, and then nothing would be secret.
    aws_lc_rs::rand::fill(&mut bytes).expect("the system gives random bytes");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The key did not sign: out of memory, or of randomness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the key cannot sign")]
pub struct SignError;

/// A key and the algorithm that it signs with. Clones share it.
#[derive(Clone)]
pub struct SigningKey {
    algorithm: Algorithm,
    key: Arc<Key>,
}

enum Key {
    Rsa(RsaKeyPair, &'static dyn RsaEncoding),
    Ecdsa(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
    Hmac(Box<hmac::Key>),
}

impl SigningKey {
    /// The first private key of `pem`: PKCS#8, PKCS#1 (RSA) or SEC1 (elliptic curves).
    ///
    /// # Errors
    /// No such key, an encrypted one, or one that `algorithm` cannot use.
    pub fn from_pem(pem: &Secret, algorithm: Algorithm) -> Result<SigningKey, KeyError> {
        let text = pem.expose();
        // RFC 7468 §11, and RFC 1421 §4.6.1.1 as OpenSSL writes it.
        let is_encrypted = text.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----") || text.contains("4,ENCRYPTED");
        let der = match PrivateKeyDer::from_pem_slice(text.as_bytes()) {
            _ if is_encrypted => return Err(KeyError::Encrypted),
            Ok(der) => Zeroizing::new(der),
            Err(_) => return Err(KeyError::NotPem),
        };
        let key = match algorithm.method() {
            Method::Rsa(encoding) => Key::Rsa(rsa(&der, algorithm)?, encoding),
            Method::Ecdsa(curve) => {
                let pair = match &*der {
                    PrivateKeyDer::Pkcs8(der) => EcdsaKeyPair::from_pkcs8(curve, der.secret_pkcs8_der()).ok(),
                    PrivateKeyDer::Sec1(der) => EcdsaKeyPair::from_private_key_der(curve, der.secret_sec1_der()).ok(),
                    _ => None,
                };
                Key::Ecdsa(pair.ok_or(KeyError::Kind(algorithm))?)
            }
            Method::Ed25519 => {
                let pair = match &*der {
                    // OpenSSL leaves the public key out.
                    PrivateKeyDer::Pkcs8(der) => {
                        Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der()).ok()
                    }
                    _ => None,
                };
                Key::Ed25519(pair.ok_or(KeyError::Kind(algorithm))?)
            }
            Method::Hmac(_) => return Err(KeyError::NeedsSecret(algorithm)),
        };
        Ok(SigningKey { algorithm, key: Arc::new(key) })
    }

    /// # Errors
    /// An empty secret, or an algorithm that needs a private key.
    pub fn from_secret(secret: &Secret, algorithm: Algorithm) -> Result<SigningKey, KeyError> {
        let Method::Hmac(method) = algorithm.method() else { return Err(KeyError::NeedsPrivateKey(algorithm)) };
        if secret.expose().is_empty() {
            return Err(KeyError::Empty);
        }
        let key = Key::Hmac(Box::new(hmac::Key::new(method, secret.expose().as_bytes())));
        Ok(SigningKey { algorithm, key: Arc::new(key) })
    }

    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// A JWT in compact serialization (RFC 7515 §3.1). `alg` and `typ` of the header are set here.
    ///
    /// # Errors
    /// The system has no memory or no randomness.
    pub fn sign(&self, header: &Map<String, Value>, claims: &Map<String, Value>) -> Result<Secret, SignError> {
        let mut header = header.clone();
        header.insert("alg".into(), self.algorithm.as_str().into());
        header.insert("typ".into(), "JWT".into());
        let encoded =
            |part: &Map<String, Value>| serde_json::to_vec(part).map(|json| BASE64_URL_SAFE_NO_PAD.encode(json));
        let header = encoded(&header).map_err(|_| SignError)?;
        let claims = encoded(claims).map_err(|_| SignError)?;
        let mut token = format!("{header}.{claims}");
        let signature = self.signature(token.as_bytes())?;
        token.push('.');
        BASE64_URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Ok(Secret::new(token))
    }

    fn signature(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        let random = SystemRandom::new();
        match &*self.key {
            Key::Rsa(pair, encoding) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(*encoding, &random, message, &mut signature).map_err(|_| SignError)?;
                Ok(signature)
            }
            Key::Ecdsa(pair) => pair.sign(&random, message).map(|it| it.as_ref().to_vec()).map_err(|_| SignError),
            Key::Ed25519(pair) => pair.try_sign(message).map(|it| it.as_ref().to_vec()).map_err(|_| SignError),
            Key::Hmac(key) => Ok(hmac::sign(key, message).as_ref().to_vec()),
        }
    }

    /// What a certificate has as its subject's public key; `None` for a shared secret.
    fn public_key(&self) -> Option<&[u8]> {
        match &*self.key {
            Key::Rsa(pair, _) => Some(pair.public_key().as_ref()),
            Key::Ecdsa(pair) => Some(pair.public_key().as_ref()),
            Key::Ed25519(pair) => Some(pair.public_key().as_ref()),
            Key::Hmac(_) => None,
        }
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

fn rsa(der: &PrivateKeyDer<'_>, algorithm: Algorithm) -> Result<RsaKeyPair, KeyError> {
    let pair = match der {
        PrivateKeyDer::Pkcs8(der) => RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()),
        PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der()),
        _ => return Err(KeyError::Kind(algorithm)),
    };
    // aws-lc-rs has no other way to tell.
    let is_short = |error: &aws_lc_rs::error::KeyRejected| error.to_string() == "TooSmall";
    pair.map_err(|error| if is_short(&error) { KeyError::ShortRsa } else { KeyError::Kind(algorithm) })
}
