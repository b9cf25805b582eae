//! How the client proves who it is, and how the authorization server is reached.

use std::time::Duration;

use url::Url;

use super::grant::Audience;
use crate::model::Roots;
use crate::model::secret::Secret;

/// RFC 6749 §2.3. Several secrets while one is being rotated: tried in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientAuth {
    /// `client_secret_post`
    Body(Vec<Secret>),
    /// `client_secret_basic`
    Basic(Vec<Secret>, BasicEncoding),
    /// RFC 7523 §2.2, signed with the client's own key.
    PrivateKeyJwt(AssertionKey, Audience),
    /// RFC 7523 §2.2, with a MAC under the client's secret.
    ClientSecretJwt(Vec<Secret>, Algorithm, Audience),
    /// RFC 8705 §2: the certificate of the TLS connection says it all.
    Tls,
    /// A public client: only its identifier, in the body.
    None,
}

impl ClientAuth {
    /// The name in the configuration.
    pub fn as_str(&self) -> &'static str {
        match self {
            ClientAuth::Body(_) => "body",
            ClientAuth::Basic(..) => "basic",
            ClientAuth::PrivateKeyJwt(..) => "private_key_jwt",
            ClientAuth::ClientSecretJwt(..) => "client_secret_jwt",
            ClientAuth::Tls => "tls",
            ClientAuth::None => "none",
        }
    }

    /// Is all that it sends in the `Authorization` header, so that the form does not name the client?
    pub fn is_in_header(&self) -> bool {
        match self {
            ClientAuth::Basic(..) => true,
            ClientAuth::Body(_)
            | ClientAuth::PrivateKeyJwt(..)
            | ClientAuth::ClientSecretJwt(..)
            | ClientAuth::Tls
            | ClientAuth::None => false,
        }
    }

    pub fn secrets(&self) -> &[Secret] {
        match self {
            ClientAuth::Body(secrets) | ClientAuth::Basic(secrets, _) | ClientAuth::ClientSecretJwt(secrets, ..) => {
                secrets
            }
            ClientAuth::PrivateKeyJwt(..) | ClientAuth::Tls | ClientAuth::None => &[],
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BasicEncoding {
    /// Form-encoded before base64 (RFC 6749 §2.3.1), a space as `%20`.
    #[default]
    Form,
    /// As written, for servers that do not decode.
    Raw,
}

/// How a JWT is signed (RFC 7518 §3.1, RFC 8037 §3.1).
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

    /// Is the key a secret that both sides know?
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

/// A key that signs JWTs, and how their header names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssertionKey {
    /// PEM; it fits the algorithm.
    pub pem: Secret,
    pub algorithm: Algorithm,
    /// `kid`
    pub key_id: Option<String>,
    /// Of its certificate, with the value in base64url.
    pub thumbprint: Option<(Thumbprint, String)>,
}

/// How a certificate is named in the header of a JWT (RFC 7515 §4.1.7, §4.1.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thumbprint {
    /// `x5t`
    Sha1,
    /// `x5t#S256`
    Sha256,
}

/// A certificate by which we are known in TLS, with its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The leaf first.
    pub chain: Roots,
    /// PEM; it belongs to the leaf.
    pub key: Secret,
}

/// How the connection's OAuth endpoints are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorizationServer {
    /// In place of the global roots.
    pub trust: Option<Roots>,
    pub proxy: ServerProxy,
    /// A whole call, from the dial to the last byte of the answer.
    pub timeout: Duration,
}

/// Through which proxy OAuth endpoints are reached.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ServerProxy {
    /// The one of `egress`, if there is one.
    #[default]
    Inherit,
    Direct,
    Own(ForwardProxy),
}

/// A proxy on the way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardProxy {
    /// http or https, with a host and a port and nothing else.
    pub url: Url,
    pub credentials: Option<(String, Secret)>,
    /// For the proxy's own certificate, in place of the global roots.
    pub trust: Option<Roots>,
}
