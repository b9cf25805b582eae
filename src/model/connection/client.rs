//! Client authentication, and how the authorization server is reached.

use std::time::Duration;

use url::Url;

use super::assertion::{Algorithm, AssertionKey, Audience};
use crate::model::Roots;
use crate::model::secret::Secret;

/// Client authentication (RFC 6749 §2.3). During a rotation there are several secrets, tried in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientAuth {
    /// `client_secret_post`
    Body(Vec<Secret>),
    /// `client_secret_basic`
    Basic(Vec<Secret>, BasicEncoding),
    /// RFC 7523 §2.2, signed with the client's private key.
    PrivateKeyJwt(AssertionKey, Audience),
    /// RFC 7523 §2.2, with a MAC under the client's secret.
    ClientSecretJwt(Vec<Secret>, Algorithm, Audience),
    /// RFC 8705 §2: the client certificate of the TLS connection is enough.
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

    /// True if the credentials are in the `Authorization` header, and the form has no `client_id`.
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

/// A certificate that this program presents in TLS, with its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The leaf first.
    pub chain: Roots,
    /// PEM; matches the leaf.
    pub key: Secret,
}

/// How the connection's OAuth endpoints are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorizationServer {
    /// In place of the global roots.
    pub trust: Option<Roots>,
    pub proxy: ServerProxy,
    /// Timeout of a whole call, from dialling to the last byte of the response.
    pub timeout: Duration,
}

/// The egress proxy for OAuth endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ServerProxy {
    /// `egress.proxy`, if there is one.
    #[default]
    Inherit,
    Direct,
    Own(ForwardProxy),
}

/// An egress proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardProxy {
    /// http or https, with only a host and a port.
    pub url: Url,
    pub credentials: Option<(String, Secret)>,
    /// Roots for the proxy's own certificate, in place of the global roots.
    pub trust: Option<Roots>,
    /// Its host may have a private address: a file names it, and not a definition made over the API.
    pub may_be_private: bool,
}
