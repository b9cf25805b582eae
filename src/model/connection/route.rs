//! Which requests get the connection's token, and how they leave.

use http::{HeaderName, HeaderValue, Method};

use super::client::ClientCertificate;
use super::inject::{Existing, Inject, OtherToken};
use super::strip::Strip;
use crate::model::origin::{Host, Origin, Scheme};
use crate::model::{Name, Roots};

/// Which requests get the connection's token, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub matches: RouteMatch,
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
pub enum RouteMatch {
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
