//! A configured OAuth connection.

mod assertion;
mod client;
mod grant;
mod identity;
mod inject;
mod origins;
mod profile;
mod route;
mod strip;
mod token_format;
mod written;

use std::sync::Arc;
use std::time::Duration;

use url::Url;

use super::Name;
use super::origin::Host;
use super::secret::Secret;
use super::time::WallTime;

pub use assertion::*;
pub use client::*;
pub use grant::*;
pub use identity::Identity;
pub use inject::*;
pub use origins::{OriginSet, RouteOrigin};
pub use route::*;
pub use strip::*;
pub use token_format::*;
pub use written::*;

/// A configured OAuth link: how its token is acquired, and which requests get it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// Unique among all connections; the label `connection` of metrics.
    pub name: Name,
    /// As its administrator wrote it; shared by its profiles.
    pub written: Arc<WrittenDefinition>,
    /// Name of this definition: `default`, or one of `profiles`.
    pub profile: Name,
    /// Other definitions of the same client, in configuration order; their own `profiles` are empty.
    pub profiles: Vec<Arc<Connection>>,
    /// An inactive connection keeps its routes, and their requests are refused.
    pub active: bool,
    /// Free text for people; the admin API shows it.
    pub comments: Option<String>,
    /// https.
    pub logo_url: Option<Url>,
    /// The application that owns the connection.
    pub application: Option<String>,
    /// A forecast.
    pub client_secret_expires_at: Option<WallTime>,
    /// Variables of the script; a value may be a key, so all are secrets.
    pub variables: Vec<(String, Secret)>,
    /// How the first token is acquired, with the parameters of the grant.
    pub grant: Grant,
    /// `grant_type` of the first token request, if the server has its own name for the grant.
    pub grant_type: Option<String>,
    /// Client identifier at the authorization server (RFC 6749 §2.2).
    pub client_id: String,
    /// How token and revocation requests authenticate the client.
    pub client_auth: ClientAuth,
    /// Client certificate for the token and the revocation endpoint, with any `client_auth`.
    pub mutual_tls: Option<ClientCertificate>,
    /// Endpoints of the authorization server: configured, or from its metadata.
    pub endpoints: Endpoints,
    /// For the `authorization_code` grant.
    pub authorization: Authorization,
    /// How the OAuth endpoints are reached: roots, egress proxy, timeout.
    pub authorization_server: AuthorizationServer,
    /// In configuration order, without duplicates.
    pub scopes: Vec<String>,
    /// Names for `scopes`, each with the scopes that it stands for.
    pub available_scopes: Vec<(String, Vec<String>)>,
    /// The `audience` of token requests; not in RFC 6749, but required by some servers.
    pub audience: Option<String>,
    /// The `resource` of token requests (RFC 8707).
    pub resource: Option<String>,
    /// Extra parameters of every token request.
    pub token_params: Vec<(String, String)>,
    /// Encoding and headers of token requests.
    pub token_request: TokenRequestFormat,
    /// Where a token response has its members, for servers that depart from RFC 6749.
    pub token_response: TokenResponseFormat,
    /// Edits the token request and the token response.
    pub script: Option<ScriptSource>,
    /// Defaults and safety margins for the lifetimes of tokens.
    pub lifetimes: Lifetimes,
    /// Whether callers share one token.
    pub tokens: Tokens,
    /// A response that matches any of them rejects the token.
    pub token_rejected: Vec<RejectionSign>,
    /// Callers that may use it; `None`: all.
    pub accessible_from: Option<Vec<Name>>,
    /// In configuration order; the router orders them by precedence.
    pub routes: Vec<Route>,
    /// Hosts that its requests with secrets may be sent to; `None`: any, since no published secret is among them.
    pub secret_hosts: Option<Arc<[Host]>>,
    /// Origins of other connections' routes that inject this connection's token.
    pub extra_origins: Vec<RouteOrigin>,
}

impl Connection {
    /// The same connection and profiles, restricted to `hosts`.
    pub fn with_secret_hosts(self, hosts: Option<Arc<[Host]>>) -> Connection {
        let restricted =
            |profile: Arc<Connection>| Arc::new(Arc::unwrap_or_clone(profile).with_secret_hosts(hosts.clone()));
        let profiles = self.profiles.into_iter().map(restricted).collect();
        Connection { profiles, secret_hosts: hosts, ..self }
    }

    /// True if the secrets of the connection may be sent to `url`.
    pub fn may_send_secrets_to(&self, url: &Url) -> bool {
        let Some(hosts) = &self.secret_hosts else { return true };
        let host = url.host_str().and_then(|host| Host::parse(host).ok());
        host.is_some_and(|host| hosts.contains(&host))
    }
}

/// OAuth endpoints. Each is https or loopback, unless `allow_cleartext` is set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoints {
    /// Identifies the authorization server: the token URL, else the issuer.
    pub server: Url,
    /// `None`: from the issuer's metadata.
    pub token: Option<Url>,
    /// `None`: from the issuer's metadata, if it has one; otherwise nothing is revoked.
    pub revocation: Option<Url>,
    /// Where a person's browser is sent; may have a query. `None`: from the issuer's metadata.
    pub authorization: Option<Url>,
    /// For the `device_code` grant; `None`: from the issuer's metadata.
    pub device_authorization: Option<Url>,
    /// As written, since it is compared as text (RFC 8414 §3.3).
    pub issuer: Option<String>,
    /// Also permits http for endpoints from the issuer's metadata.
    pub allow_cleartext: bool,
}

/// The URL of an endpoint as it may be shown: without its query, which may hold a secret.
pub fn without_query(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.into()
}

/// A script that compiles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScriptSource {
    /// Path, or `FILE:LINE`, for messages.
    pub location: String,
    pub text: String,
}

/// Whether callers share the token of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tokens {
    /// One token for all callers of the connection.
    #[default]
    Shared,
    /// One for each subject.
    PerSubject,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    /// Used if the token response has no lifetime.
    pub default_token_lifetime: Duration,
    /// How long before expiry a token is refreshed; at most half of its lifetime.
    pub refresh_ahead: Duration,
    /// A token with less lifetime left is never injected; at most a quarter of its lifetime.
    pub usable_margin: Duration,
    /// Assumed lifetime of a refresh token, if the token response has none; only a forecast.
    pub refresh_token: Option<Duration>,
    /// Maximum interval between refreshes of a subject's unused token; `None`: refreshed only while in use.
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
    /// A connection without routes, for tests of other modules.
    pub fn sample(name: &str) -> Connection {
        Connection {
            name: Name::parse(name).unwrap(),
            written: Arc::new(WrittenDefinition {
                defined_in: DefinedIn::File(std::path::Path::new("a.yaml").into()),
                json: "{}".to_owned(),
                lines: Vec::new(),
            }),
            profile: super::token::default_profile(),
            profiles: Vec::new(),
            active: true,
            comments: None,
            logo_url: None,
            application: None,
            client_secret_expires_at: None,
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
            secret_hosts: None,
            extra_origins: Vec::new(),
        }
    }
}
