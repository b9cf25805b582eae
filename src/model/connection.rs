//! A configured OAuth connection.

mod token_format;
mod assertion;
mod client;
mod grant;
mod identity;
mod inject;
mod origins;
mod profile;
mod route;
mod strip;

use std::sync::Arc;
use std::time::Duration;

use url::Url;

use super::Name;
use super::secret::Secret;

pub use assertion::*;
pub use client::*;
pub use grant::*;
pub use identity::Identity;
pub use inject::*;
pub use origins::{OriginSet, RouteOrigin};
pub use route::*;
pub use strip::*;
pub use token_format::*;

/// A configured OAuth link: how its token is obtained, and which requests get it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    pub name: Name,
    /// Which definition this is: `default`, or one of `profiles`.
    pub profile: Name,
    /// Other definitions over the same client, in the order of the configuration; they have none of their own.
    pub profiles: Vec<Arc<Connection>>,
    /// An inactive connection keeps its routes and refuses their requests.
    pub active: bool,
    pub comments: Option<String>,
    /// What a script may read; a value may be a key, so none is shown.
    pub variables: Vec<(String, Secret)>,
    pub grant: Grant,
    /// `grant_type` of the first grant, where the server has a name of its own.
    pub grant_type: Option<String>,
    pub client_id: String,
    pub client_auth: ClientAuth,
    /// At the token and the revocation endpoint, with whatever method.
    pub mutual_tls: Option<ClientCertificate>,
    pub endpoints: Endpoints,
    /// Of the `authorization_code` grant.
    pub authorization: Authorization,
    pub authorization_server: AuthorizationServer,
    /// In the order of the configuration, without repetitions.
    pub scopes: Vec<String>,
    /// Names that stand for scopes, each with what is asked for in its place.
    pub available_scopes: Vec<(String, Vec<String>)>,
    pub audience: Option<String>,
    pub resource: Option<String>,
    /// Extra fields of every token request.
    pub token_params: Vec<(String, String)>,
    pub token_request: TokenRequestFormat,
    pub token_response: TokenResponseFormat,
    pub script: Option<ScriptSource>,
    pub lifetimes: Lifetimes,
    pub tokens: Tokens,
    /// Any of them: the API says that a token has expired.
    pub token_rejected: Vec<RejectionSign>,
    /// Callers that may use it; `None`: all.
    pub accessible_from: Option<Vec<Name>>,
    pub routes: Vec<Route>,
    /// Where routes of other connections lead that carry its token.
    pub lent: Vec<RouteOrigin>,
}

/// Each is https, or loopback, or `allow_cleartext` was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoints {
    /// What names the authorization server: the token URL, else the issuer.
    pub server: Url,
    /// `None`: the issuer tells.
    pub token: Option<Url>,
    /// `None`: the issuer may tell; without one, nothing is revoked.
    pub revocation: Option<Url>,
    /// Where a person's browser is sent, with a query of its own; `None`: the issuer tells.
    pub authorization: Option<Url>,
    /// Of the `device_code` grant; `None`: the issuer tells.
    pub device_authorization: Option<Url>,
    /// As written, since it is compared as a text (RFC 8414 §3.3).
    pub issuer: Option<String>,
    /// What the issuer tells may be http, too.
    pub allow_cleartext: bool,
}

/// A script that compiles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScriptSource {
    /// Where it stands, for messages.
    pub place: String,
    pub text: String,
}

/// Whose the tokens of a connection are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tokens {
    /// One token for whoever may use the connection.
    #[default]
    Shared,
    /// One for each subject.
    PerSubject,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    /// When the answer names none.
    pub default_token_lifetime: Duration,
    /// How long before expiry the next token is asked for; at most half of the token's life.
    pub refresh_ahead: Duration,
    /// Never injected with less left; at most a quarter of the token's life.
    pub usable_margin: Duration,
    /// What a refresh token is good for where the answer names nothing; a forecast.
    pub refresh_token: Option<Duration>,
    /// A subject's token is refreshed at least this often although nobody asks; `None`: only while in use.
    pub keep_warm: Option<Duration>,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Lifetimes {
            default_token_lifetime: Duration::from_secs(3600),
            refresh_ahead: Duration::from_secs(5 * 60),
            usable_margin: Duration::from_secs(5),
            refresh_token: None,
            keep_warm: None,
        }
    }
}

#[cfg(test)]
impl Endpoints {
    pub fn of_token_url(url: Url) -> Endpoints {
        let (server, token) = (url.clone(), Some(url));
        Endpoints {
            server,
            token,
            revocation: None,
            authorization: None,
            device_authorization: None,
            issuer: None,
            allow_cleartext: false,
        }
    }
}

#[cfg(test)]
impl Connection {
    /// A connection without routes, for the tests of other rooms.
    pub fn sample(name: &str) -> Connection {
        Connection {
            name: Name::parse(name).unwrap(),
            profile: super::token::default_profile(),
            profiles: Vec::new(),
            active: true,
            comments: None,
            variables: Vec::new(),
            grant: Grant::ClientCredentials,
            grant_type: None,
            client_id: "id".to_owned(),
            client_auth: ClientAuth::None,
            mutual_tls: None,
            endpoints: Endpoints::of_token_url("https://as.test/token".parse().unwrap()),
            authorization: Authorization::default(),
            authorization_server: AuthorizationServer {
                trust: None,
                proxy: ServerProxy::Inherit,
                timeout: Duration::from_secs(10),
            },
            scopes: Vec::new(),
            available_scopes: Vec::new(),
            audience: None,
            resource: None,
            token_params: Vec::new(),
            token_request: TokenRequestFormat::default(),
            token_response: TokenResponseFormat::default(),
            script: None,
            lifetimes: Lifetimes::default(),
            tokens: Tokens::default(),
            token_rejected: Vec::new(),
            accessible_from: None,
            routes: Vec::new(),
            lent: Vec::new(),
        }
    }
}
