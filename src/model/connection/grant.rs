//! How the first token of a connection is obtained.

use std::time::Duration;

use super::client::AssertionKey;
use crate::model::secret::Secret;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grant {
    ClientCredentials,
    /// RFC 6749 §4.3
    Password {
        username: String,
        password: Secret,
    },
    /// RFC 7523 §2.1: a JWT that we sign.
    JwtBearer(JwtAssertion),
    /// RFC 7522 §2.1: an assertion that somebody else has signed.
    Saml2Bearer {
        assertion: Secret,
    },
    /// RFC 8693
    TokenExchange(TokenExchange),
    /// RFC 6749 §4.1: a person is needed for the first token.
    AuthorizationCode,
    /// RFC 8628: the same, where the person has a browser elsewhere.
    DeviceCode,
}

/// How a person is asked (RFC 6749 §4.1.1).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Authorization {
    /// As written, since servers compare it as a text; `None`: `<public_url>/oauth/callback`.
    pub redirect_url: Option<String>,
    pub pkce: Pkce,
    /// Extra parameters of the authorization request.
    pub params: Vec<(String, String)>,
}

/// How the code is bound to whoever asked for it (RFC 7636).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pkce {
    #[default]
    S256,
    Plain,
    None,
}

impl Pkce {
    /// As the configuration writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Pkce::S256 => "S256",
            Pkce::Plain => "plain",
            Pkce::None => "none",
        }
    }
}

/// What the JWT of a [`Grant::JwtBearer`] says (RFC 7523 §3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwtAssertion {
    pub key: AssertionKey,
    /// `None`: the client identifier.
    pub issuer: Option<String>,
    /// `None`: the issuer.
    pub subject: Option<String>,
    pub audience: Audience,
    pub lifetime: Duration,
    /// Further claims; those of RFC 7523 §3 win over them.
    pub claims: serde_json::Map<String, serde_json::Value>,
}

/// Whom an assertion is made for: its `aud`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Audience {
    #[default]
    TokenUrl,
    Issuer,
    Text(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenExchange {
    pub subject_token: SubjectToken,
    pub subject_token_type: String,
    pub requested_token_type: Option<String>,
    pub actor: Option<Actor>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubjectToken {
    /// The bearer token that the caller's own request carries.
    OfCaller,
    Given(Secret),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    pub token: Secret,
    pub token_type: String,
}

impl Grant {
    /// The name in the configuration, in labels and in the log.
    pub fn as_str(&self) -> &'static str {
        match self {
            Grant::ClientCredentials => "client_credentials",
            Grant::Password { .. } => "password",
            Grant::JwtBearer(_) => "jwt_bearer",
            Grant::Saml2Bearer { .. } => "saml2_bearer",
            Grant::TokenExchange(_) => "token_exchange",
            Grant::AuthorizationCode => "authorization_code",
            Grant::DeviceCode => "device_code",
        }
    }

    /// `grant_type` on the wire, unless the connection has its own.
    pub fn wire_name(&self) -> &'static str {
        match self {
            Grant::ClientCredentials => "client_credentials",
            Grant::Password { .. } => "password",
            Grant::JwtBearer(_) => "urn:ietf:params:oauth:grant-type:jwt-bearer",
            Grant::Saml2Bearer { .. } => "urn:ietf:params:oauth:grant-type:saml2-bearer",
            Grant::TokenExchange(_) => "urn:ietf:params:oauth:grant-type:token-exchange",
            Grant::AuthorizationCode => "authorization_code",
            Grant::DeviceCode => "urn:ietf:params:oauth:grant-type:device_code",
        }
    }

    /// Can only a person give the first token?
    pub fn needs_person(&self) -> bool {
        matches!(self, Grant::AuthorizationCode | Grant::DeviceCode)
    }

    /// Whose token it is, where the configuration says so: the user name, or the subject of the assertion.
    pub fn owner(&self) -> Option<&str> {
        match self {
            Grant::Password { username, .. } => Some(username),
            Grant::JwtBearer(assertion) => assertion.subject.as_deref().or(assertion.issuer.as_deref()),
            Grant::ClientCredentials
            | Grant::Saml2Bearer { .. }
            | Grant::TokenExchange(_)
            | Grant::AuthorizationCode
            | Grant::DeviceCode => None,
        }
    }

    /// Does each caller's own token make a token of its own?
    pub fn takes_callers_token(&self) -> bool {
        matches!(self, Grant::TokenExchange(exchange) if exchange.subject_token == SubjectToken::OfCaller)
    }
}
