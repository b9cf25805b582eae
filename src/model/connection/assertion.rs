//! JWTs that we sign for an authorization server: their keys, algorithms and audience.

use crate::model::secret::Secret;

/// JWT signature algorithms (RFC 7518 §3.1, RFC 8037 §3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    EdDSA,
    HS256,
    HS384,
    HS512,
}

impl Algorithm {
    pub const ALL: [Algorithm; 12] = [
        Algorithm::RS256,
        Algorithm::RS384,
        Algorithm::RS512,
        Algorithm::PS256,
        Algorithm::PS384,
        Algorithm::PS512,
        Algorithm::ES256,
        Algorithm::ES384,
        Algorithm::EdDSA,
        Algorithm::HS256,
        Algorithm::HS384,
        Algorithm::HS512,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Algorithm::RS256 => "RS256",
            Algorithm::RS384 => "RS384",
            Algorithm::RS512 => "RS512",
            Algorithm::PS256 => "PS256",
            Algorithm::PS384 => "PS384",
            Algorithm::PS512 => "PS512",
            Algorithm::ES256 => "ES256",
            Algorithm::ES384 => "ES384",
            Algorithm::EdDSA => "EdDSA",
            Algorithm::HS256 => "HS256",
            Algorithm::HS384 => "HS384",
            Algorithm::HS512 => "HS512",
        }
    }

    /// True if the key is a shared secret.
    pub fn is_symmetric(self) -> bool {
        match self {
            Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => true,
            Algorithm::RS256
            | Algorithm::RS384
            | Algorithm::RS512
            | Algorithm::PS256
            | Algorithm::PS384
            | Algorithm::PS512
            | Algorithm::ES256
            | Algorithm::ES384
            | Algorithm::EdDSA => false,
        }
    }
}

/// A key that signs JWTs, and how the JWT header identifies it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssertionKey {
    /// PEM; fits the algorithm.
    pub pem: Secret,
    pub algorithm: Algorithm,
    /// `kid`
    pub key_id: Option<String>,
    /// Thumbprint of the key's certificate, in base64url.
    pub thumbprint: Option<(Thumbprint, String)>,
}

/// The JWT header parameter that identifies a certificate (RFC 7515 §4.1.7, §4.1.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thumbprint {
    /// `x5t`
    Sha1,
    /// `x5t#S256`
    Sha256,
}

/// The `aud` claim of an assertion.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Audience {
    #[default]
    TokenUrl,
    Issuer,
    Text(String),
}
