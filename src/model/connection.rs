//! A configured OAuth connection and its routes.

mod answer;
mod client;
mod grant;
mod identity;
mod inject;
mod origins;
mod profile;
mod strip;

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};
use url::Url;

use super::origin::{Host, Origin, Scheme};
use super::secret::Secret;
use super::{Name, Roots};
pub use answer::*;
pub use client::*;
pub use grant::*;
pub use identity::Identity;
pub use inject::*;
pub use origins::{OriginSet, RouteOrigin};
pub use strip::*;

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
    pub token_request: TokenRequest,
    pub token_response: TokenResponse,
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

/// Which requests get the connection's token, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub place: Place,
    /// Requests below this path; `/` is every path.
    pub path: PathPrefix,
    /// `None`: all methods.
    pub methods: Option<Vec<Method>>,
    pub tls: UpstreamTls,
    /// Where the connection's own token goes.
    pub inject: Inject,
    /// Tokens of other connections that the request carries too.
    pub others: Vec<OtherToken>,
    /// Set on each request, whatever the caller sent there; the values may be secrets.
    pub set_headers: Vec<(HeaderName, HeaderValue)>,
    pub existing: Existing,
    /// Credentials that the caller brings and the upstream never sees.
    pub strip: Strip,
    pub without_token: WithoutToken,
    /// Whose token it carries, as written.
    pub profile: Option<Name>,
    /// Takes part only if the request names the connection.
    pub only_when_named: bool,
    /// Where there is a CA, TLS inside a tunnel to its host is opened.
    pub intercept: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Forward mode: requests whose target names this host.
    Host { pattern: HostPattern, port: PortRule },
    /// Reverse mode: `http://keybearer<prefix>/x` goes to `<upstream><base>/x`.
    Mount { prefix: PathPrefix, upstream: Origin, base: PathPrefix },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HostPattern {
    Exact(Host),
    /// One or more labels before this suffix (`*.a.com` holds `a.com`), never the suffix itself.
    Below(Host),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PortRule {
    /// No port was written: 443, and http requests for port 80 leave for it over TLS. Without upstream TLS: 80.
    Default,
    Stated(u16),
    /// `:*`
    Any,
}

/// A path with all that lies below it, on segment boundaries: `/v1` holds `/v1` and `/v1/x`, not `/v10`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PathPrefix(String);

impl PathPrefix {
    pub fn root() -> PathPrefix {
        PathPrefix(String::new())
    }

    /// `None` unless the text is an absolute path in plain segments: no query, no escapes, no `.` or `..`, no `//`.
    pub fn parse(text: &str) -> Option<PathPrefix> {
        let body = text.strip_prefix('/')?.trim_end_matches('/');
        if body.is_empty() {
            return (text == "/").then(PathPrefix::root);
        }
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,=:@".contains(&b);
        let segment = |s: &str| !s.is_empty() && s != "." && s != ".." && s.bytes().all(plain);
        (text.len() - body.len() <= 2 && body.split('/').all(segment)).then(|| PathPrefix(format!("/{body}")))
    }

    /// Without a trailing slash; the root is empty.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Is `path` the prefix itself or below it? The root holds `*`, too, which is about the whole server.
    pub fn holds(&self, path: &[u8]) -> bool {
        let rest = path.strip_prefix(self.0.as_bytes());
        self.is_root() || rest.is_some_and(|rest| matches!(rest, [] | [b'/', ..]))
    }
}

/// How the upstream is reached.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UpstreamTls {
    /// Plain http requests leave over TLS. An https request always does.
    pub upgrade: bool,
    /// In place of the global roots.
    pub trust: Option<Roots>,
    /// The name in SNI and in the certificate, in place of the host.
    pub server_name: Option<Host>,
    /// Shown to the upstream, for tokens that are bound to it (RFC 8705 §3).
    pub certificate: Option<ClientCertificate>,
}

impl UpstreamTls {
    /// Where a request for `asked` really goes, by a route with this port: over TLS where the route says so, and then to
    /// 443 where the request's port was only http's own.
    pub fn leave_for(&self, port: PortRule, asked: &Origin) -> Origin {
        let upgraded = self.upgrade && asked.scheme == Scheme::Http;
        let scheme = if upgraded { Scheme::Https } else { asked.scheme };
        let port = match port {
            PortRule::Stated(port) => port,
            PortRule::Default | PortRule::Any if upgraded && asked.port == 80 => 443,
            PortRule::Default | PortRule::Any => asked.port,
        };
        Origin { scheme, host: asked.host.clone(), port }
    }
}

/// What becomes of a request for which there is no usable token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WithoutToken {
    #[default]
    Fail,
    Forward,
}

impl HostPattern {
    pub fn holds(&self, host: &Host) -> bool {
        match (self, host) {
            (HostPattern::Exact(own), host) => own == host,
            (HostPattern::Below(Host::Name(suffix)), Host::Name(name)) => {
                name.strip_suffix(&**suffix).is_some_and(|labels| labels.ends_with('.'))
            }
            (HostPattern::Below(_), _) => false,
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
            token_request: TokenRequest::default(),
            token_response: TokenResponse::default(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::origin::Authority;

    #[test]
    fn requests_leave_for_the_port_and_scheme_of_the_route() {
        let origin = |text: &str| {
            let (scheme, authority) = text.split_once("://").unwrap();
            let scheme = if scheme == "https" { Scheme::Https } else { Scheme::Http };
            Origin::new(scheme, Authority::parse(authority).unwrap())
        };
        #[track_caller]
        fn check(leave: Origin, expected: Origin) {
            assert_eq!(leave, expected);
        }
        let tls = UpstreamTls { upgrade: true, ..UpstreamTls::default() };
        let plain = UpstreamTls::default();
        check(tls.leave_for(PortRule::Default, &origin("http://a.test")), origin("https://a.test"));
        check(tls.leave_for(PortRule::Default, &origin("https://a.test")), origin("https://a.test"));
        check(tls.leave_for(PortRule::Stated(9443), &origin("http://a.test:9443")), origin("https://a.test:9443"));
        check(tls.leave_for(PortRule::Any, &origin("http://a.test")), origin("https://a.test"));
        check(tls.leave_for(PortRule::Any, &origin("http://a.test:81")), origin("https://a.test:81"));
        check(plain.leave_for(PortRule::Default, &origin("http://a.test")), origin("http://a.test"));
        check(plain.leave_for(PortRule::Any, &origin("https://a.test")), origin("https://a.test"));
    }

    #[test]
    fn a_prefix_ends_at_a_segment() {
        let v1 = PathPrefix::parse("/v1/").unwrap();
        assert_eq!(v1, PathPrefix::parse("/v1").unwrap());
        for path in ["/v1", "/v1/", "/v1/x"] {
            assert!(v1.holds(path.as_bytes()), "{path}");
        }
        for path in ["/v10", "/v1x", "/v1%20", "/V1/x", "/", ""] {
            assert!(!v1.holds(path.as_bytes()), "{path}");
        }
        assert!(PathPrefix::root().holds(b"/x") && PathPrefix::root().holds(b"*") && !v1.holds(b"*"));
    }

    #[test]
    fn a_prefix_is_written_plainly() {
        for bad in ["", "v1", "/a//b", "/a/../b", "/.", "/a%2fb", "/a?b", "/a;b", "/a\\b", "//", "/a//"] {
            assert!(PathPrefix::parse(bad).is_none(), "{bad}");
        }
    }
}
