//! Routes: which requests get the connection's token, and how they are forwarded.

use http::{HeaderName, HeaderValue, Method};

use super::client::ClientCertificate;
use super::inject::{Existing, Inject, OtherToken};
use super::strip::Strip;
use crate::model::origin::{Host, Origin, Scheme};
use crate::model::{Name, Roots};

/// Matches requests, and decides how they are forwarded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub matches: RouteMatch,
    /// Matches this path and below; `/` is every path.
    pub path: PathPrefix,
    /// `None`: all methods.
    pub methods: Option<Vec<Method>>,
    pub tls: UpstreamTls,
    /// Injection point of the connection's own token.
    pub inject: Inject,
    /// Tokens of other connections that are injected, too.
    pub others: Vec<OtherToken>,
    /// Headers that override the caller's; the values may be secrets.
    pub set_headers: Vec<(HeaderName, HeaderValue)>,
    pub existing: Existing,
    /// Credentials of the caller that are removed.
    pub strip: Strip,
    pub without_token: WithoutToken,
    /// The profile whose token is injected, as written.
    pub profile: Option<Name>,
    /// Matches only requests that name the connection.
    pub only_when_named: bool,
    /// If there is a CA, TLS inside a tunnel to the host is intercepted.
    pub intercept: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouteMatch {
    /// Forward mode: requests whose target names this host.
    Host { pattern: HostPattern, port: PortRule },
    /// Reverse mode: `http://keybearer<prefix>/x` goes to `<upstream><base>/x`.
    Mount { prefix: PathPrefix, upstream: Origin, base: PathPrefix },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HostPattern {
    Exact(Host),
    /// One or more labels before this suffix (`a.com` for `*.a.com`), never the suffix itself.
    Subdomains(Host),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PortRule {
    /// No port is written: 443, to which http requests for port 80 are forwarded over TLS. Without upstream TLS: 80.
    Default,
    Stated(u16),
    /// `:*`
    Any,
}

/// A path prefix that ends at a segment boundary: `/v1` matches `/v1` and `/v1/x`, not `/v10`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PathPrefix(String);

impl PathPrefix {
    pub fn root() -> PathPrefix {
        PathPrefix(String::new())
    }

    /// Accepts an absolute path of plain segments: no query, no escapes, no `.` or `..`, no `//`.
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

    /// True if `path` is the prefix or below it. The root also matches `*`, the target for the whole server.
    pub fn matches(&self, path: &[u8]) -> bool {
        let rest = path.strip_prefix(self.0.as_bytes());
        self.is_root() || rest.is_some_and(|rest| matches!(rest, [] | [b'/', ..]))
    }
}

/// TLS settings of the upstream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UpstreamTls {
    /// Forwards http requests over TLS, as https requests always are.
    pub upgrade: bool,
    /// In place of the global roots.
    pub trust: Option<Roots>,
    /// Name for SNI and certificate verification, in place of the host.
    pub server_name: Option<Host>,
    /// Client certificate for the upstream, for tokens that are bound to it (RFC 8705 §3).
    pub certificate: Option<ClientCertificate>,
}

impl UpstreamTls {
    /// The origin to which a request for `requested` is forwarded by a route with this port: over TLS if the route
    /// upgrades, and then to port 443 if the requested port is http's default.
    pub fn upstream_origin(&self, port: PortRule, requested: &Origin) -> Origin {
        let upgraded = self.upgrade && requested.scheme == Scheme::Http;
        let scheme = if upgraded { Scheme::Https } else { requested.scheme };
        let port = match port {
            PortRule::Stated(port) => port,
            PortRule::Default | PortRule::Any if upgraded && requested.port == 80 => 443,
            PortRule::Default | PortRule::Any => requested.port,
        };
        Origin { scheme, host: requested.host.clone(), port }
    }
}

/// What happens to a request without a usable token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WithoutToken {
    #[default]
    Fail,
    Forward,
}

impl HostPattern {
    pub fn matches(&self, host: &Host) -> bool {
        match (self, host) {
            (HostPattern::Exact(expected), host) => expected == host,
            (HostPattern::Subdomains(Host::Name(suffix)), Host::Name(name)) => {
                name.strip_suffix(&**suffix).is_some_and(|labels| labels.ends_with('.'))
            }
            (HostPattern::Subdomains(_), _) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::origin::Authority;

    #[test]
    fn requests_are_forwarded_to_the_port_and_scheme_of_the_route() {
        let origin = |text: &str| {
            let (scheme, authority) = text.split_once("://").unwrap();
            let scheme = if scheme == "https" { Scheme::Https } else { Scheme::Http };
            Origin::new(scheme, Authority::parse(authority).unwrap())
        };
        #[track_caller]
        fn check(upstream: Origin, expected: Origin) {
            assert_eq!(upstream, expected);
        }
        let tls = UpstreamTls { upgrade: true, ..UpstreamTls::default() };
        let plain = UpstreamTls::default();
        check(tls.upstream_origin(PortRule::Default, &origin("http://a.test")), origin("https://a.test"));
        check(tls.upstream_origin(PortRule::Default, &origin("https://a.test")), origin("https://a.test"));
        check(
            tls.upstream_origin(PortRule::Stated(9443), &origin("http://a.test:9443")),
            origin("https://a.test:9443"),
        );
        check(tls.upstream_origin(PortRule::Any, &origin("http://a.test")), origin("https://a.test"));
        check(tls.upstream_origin(PortRule::Any, &origin("http://a.test:81")), origin("https://a.test:81"));
        check(plain.upstream_origin(PortRule::Default, &origin("http://a.test")), origin("http://a.test"));
        check(plain.upstream_origin(PortRule::Any, &origin("https://a.test")), origin("https://a.test"));
    }

    #[test]
    fn a_prefix_matches_whole_segments() {
        let v1 = PathPrefix::parse("/v1/").unwrap();
        assert_eq!(v1, PathPrefix::parse("/v1").unwrap());
        for path in ["/v1", "/v1/", "/v1/x"] {
            assert!(v1.matches(path.as_bytes()), "{path}");
        }
        for path in ["/v10", "/v1x", "/v1%20", "/V1/x", "/", ""] {
            assert!(!v1.matches(path.as_bytes()), "{path}");
        }
        assert!(PathPrefix::root().matches(b"/x") && PathPrefix::root().matches(b"*") && !v1.matches(b"*"));
    }

    #[test]
    fn a_prefix_has_only_plain_segments() {
        for bad in ["", "v1", "/a//b", "/a/../b", "/.", "/a%2fb", "/a?b", "/a;b", "/a\\b", "//", "/a//"] {
            assert!(PathPrefix::parse(bad).is_none(), "{bad}");
        }
    }
}
