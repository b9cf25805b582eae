//! The grants: how the first token of a connection is acquired, and every property that differs between grants.
//!
//! To add a grant, add a line to `grant_kinds!` and a variant to [`Grant`]. The compiler then points to the rest: the
//! methods here, `config/connection/grant` (its keys), `oauth/grant` (its request, and its signer, if any),
//! `oauth/preflight/client` (how to probe the client). A grant that needs a person also needs a [`ConsentFlow`], and a
//! flow in `admin/consent`. Only these files match on grants, exhaustively; others call the methods here.

use std::time::Duration;

use super::assertion::{AssertionKey, Audience};
use crate::model::secret::Secret;

/// One line per grant: its name in the configuration, in labels and in the log; its `grant_type` on the wire.
macro_rules! grant_kinds {
    ($($kind:ident $name:literal $wire:literal,)+) => {
        /// A grant without its parameters.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum GrantKind {
            $($kind,)+
        }

        impl GrantKind {
            pub const ALL: &[GrantKind] = &[$(GrantKind::$kind,)+];

            pub fn as_str(self) -> &'static str {
                match self {
                    $(GrantKind::$kind => $name,)+
                }
            }

            /// The default `grant_type`.
            pub fn wire_name(self) -> &'static str {
                match self {
                    $(GrantKind::$kind => $wire,)+
                }
            }
        }
    };
}

grant_kinds! {
    ClientCredentials "client_credentials" "client_credentials",
    Password "password" "password",
    JwtBearer "jwt_bearer" "urn:ietf:params:oauth:grant-type:jwt-bearer",
    Saml2Bearer "saml2_bearer" "urn:ietf:params:oauth:grant-type:saml2-bearer",
    TokenExchange "token_exchange" "urn:ietf:params:oauth:grant-type:token-exchange",
    AuthorizationCode "authorization_code" "authorization_code",
    DeviceCode "device_code" "urn:ietf:params:oauth:grant-type:device_code",
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grant {
    ClientCredentials,
    /// RFC 6749 §4.3.
    Password {
        username: String,
        password: Secret,
    },
    /// RFC 7523 §2.1: a JWT that we sign.
    JwtBearer(JwtAssertion),
    /// RFC 7522 §2.1: an assertion that another party signed.
    Saml2Bearer {
        assertion: Secret,
    },
    /// RFC 8693.
    TokenExchange(TokenExchange),
    /// RFC 6749 §4.1: the first token needs a person.
    AuthorizationCode,
    /// RFC 8628: the first token needs a person, with a browser on any device.
    DeviceCode,
}

/// Settings of the authorization request (RFC 6749 §4.1.1).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Authorization {
    /// As written, since servers compare it as text; `None`: `<public_url>/oauth/callback`.
    pub redirect_url: Option<String>,
    pub pkce: Pkce,
    /// Extra parameters of the authorization request.
    pub params: Vec<(String, String)>,
}

/// PKCE method: how the authorization code is bound to the client that requested it (RFC 7636).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pkce {
    #[default]
    S256,
    Plain,
    None,
}

impl Pkce {
    /// The name in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Pkce::S256 => "S256",
            Pkce::Plain => "plain",
            Pkce::None => "none",
        }
    }
}

/// The JWT of a [`Grant::JwtBearer`] (RFC 7523 §3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwtAssertion {
    pub key: AssertionKey,
    /// `None`: the client identifier.
    pub issuer: Option<String>,
    /// `None`: the issuer.
    pub subject: Option<String>,
    pub audience: Audience,
    pub lifetime: Duration,
    /// Additional claims; the claims of RFC 7523 §3 take precedence.
    pub claims: serde_json::Map<String, serde_json::Value>,
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
    /// The bearer token of the caller's own request.
    FromCaller,
    Given(Secret),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    pub token: Secret,
    pub token_type: String,
}

/// How a person authorizes the first token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsentFlow {
    /// In the browser that opened the confirmation page (RFC 6749 §4.1).
    AuthorizationCode,
    /// With a user code on any device (RFC 8628).
    DeviceCode,
}

/// What the authorization server bases a token on. Tokens with the same basis may belong to one grant at the server;
/// then revoking one revokes the others (RFC 7009 §2.1).
#[derive(Debug, PartialEq, Eq)]
pub enum Basis<'a> {
    /// The client's own credentials: each token response is a separate grant.
    Client,
    /// The user name, or the subject of the assertion that we sign, if it is configured.
    Owner(Option<&'a str>),
    Assertion(&'a Secret),
    SubjectToken(&'a SubjectToken),
    /// A person whom only the server knows.
    Person,
}

impl Grant {
    pub fn kind(&self) -> GrantKind {
        match self {
            Grant::ClientCredentials => GrantKind::ClientCredentials,
            Grant::Password { .. } => GrantKind::Password,
            Grant::JwtBearer(_) => GrantKind::JwtBearer,
            Grant::Saml2Bearer { .. } => GrantKind::Saml2Bearer,
            Grant::TokenExchange(_) => GrantKind::TokenExchange,
            Grant::AuthorizationCode => GrantKind::AuthorizationCode,
            Grant::DeviceCode => GrantKind::DeviceCode,
        }
    }

    /// The name in the configuration, in labels and in the log.
    pub fn as_str(&self) -> &'static str {
        self.kind().as_str()
    }

    /// `None`: no person is needed.
    pub fn consent_flow(&self) -> Option<ConsentFlow> {
        match self.kind() {
            GrantKind::AuthorizationCode => Some(ConsentFlow::AuthorizationCode),
            GrantKind::DeviceCode => Some(ConsentFlow::DeviceCode),
            GrantKind::ClientCredentials
            | GrantKind::Password
            | GrantKind::JwtBearer
            | GrantKind::Saml2Bearer
            | GrantKind::TokenExchange => None,
        }
    }

    /// True if the first token needs a person.
    pub fn needs_person(&self) -> bool {
        self.consent_flow().is_some()
    }

    /// True if the first token request carries a code, or a token that another party has issued.
    pub fn sends_code_or_token(&self) -> bool {
        match self.basis() {
            Basis::Person | Basis::SubjectToken(_) => true,
            Basis::Client | Basis::Owner(_) | Basis::Assertion(_) => false,
        }
    }

    pub fn basis(&self) -> Basis<'_> {
        match self {
            Grant::ClientCredentials => Basis::Client,
            Grant::Password { username, .. } => Basis::Owner(Some(username)),
            Grant::JwtBearer(assertion) => Basis::Owner(assertion.subject.as_deref().or(assertion.issuer.as_deref())),
            Grant::Saml2Bearer { assertion } => Basis::Assertion(assertion),
            Grant::TokenExchange(exchange) => Basis::SubjectToken(&exchange.subject_token),
            Grant::AuthorizationCode | Grant::DeviceCode => Basis::Person,
        }
    }

    /// The owner of the token, if it is configured. Part of a stored identity.
    pub fn owner(&self) -> Option<&str> {
        match self.basis() {
            Basis::Owner(owner) => owner,
            Basis::Client | Basis::Assertion(_) | Basis::SubjectToken(_) | Basis::Person => None,
        }
    }

    /// The resource owner's name, if the grant sends it with a password.
    pub fn username(&self) -> Option<&str> {
        match self {
            Grant::Password { username, .. } => Some(username),
            Grant::ClientCredentials
            | Grant::JwtBearer(_)
            | Grant::Saml2Bearer { .. }
            | Grant::TokenExchange(_)
            | Grant::AuthorizationCode
            | Grant::DeviceCode => None,
        }
    }

    /// True if each caller's own token is exchanged for its own token.
    pub fn exchanges_caller_token(&self) -> bool {
        match self.basis() {
            Basis::SubjectToken(token) => match token {
                SubjectToken::FromCaller => true,
                SubjectToken::Given(_) => false,
            },
            Basis::Client | Basis::Owner(_) | Basis::Assertion(_) | Basis::Person => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_grants_share_a_name() {
        for name in [GrantKind::as_str, GrantKind::wire_name] {
            let names: std::collections::HashSet<_> = GrantKind::ALL.iter().map(|kind| name(*kind)).collect();
            assert_eq!(names.len(), GrantKind::ALL.len());
        }
    }
}
