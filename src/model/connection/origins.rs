//! The origins that a token may be sent to, in a form that can be compared, stored and shown.

use super::{Connection, HostPattern, Inject, PortRule, Route, RouteMatch};
use crate::model::origin::{Host, Origin, Scheme};
use crate::model::token::default_profile;

/// The origins that a definition's token may be sent to: those of the routes that inject it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginSet(Vec<RouteOrigin>);

/// The origins that a route forwards to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteOrigin {
    pub pattern: HostPattern,
    pub port: PortRule,
    pub tls_only: bool,
}

impl Route {
    pub fn origin(&self) -> RouteOrigin {
        match &self.matches {
            RouteMatch::Host { pattern, port } => {
                RouteOrigin { pattern: pattern.clone(), port: *port, tls_only: self.tls.upgrade }
            }
            RouteMatch::Mount { upstream, .. } => RouteOrigin {
                pattern: HostPattern::Exact(upstream.host.clone()),
                port: PortRule::Stated(upstream.port),
                tls_only: upstream.scheme == Scheme::Https,
            },
        }
    }
}

impl Connection {
    /// The origins of all routes that inject the token of this definition, in configuration order; those of other
    /// connections last.
    pub fn origins(&self) -> OriginSet {
        let injects = |route: &&Route| route.inject != Inject::Nothing && route.carries(&self.profile);
        let injected = self.routes.iter().filter(injects).map(Route::origin);
        // Other connections' routes never inject the token of a profile.
        let extra = self.extra_origins.iter().filter(|_| self.profile == default_profile());
        OriginSet(injected.chain(extra.cloned()).collect())
    }
}

impl OriginSet {
    /// True if this set contains every origin of `other`.
    pub fn covers(&self, other: &OriginSet) -> bool {
        other.0.iter().all(|origin| self.0.contains(origin))
    }

    /// One line per origin, for the store.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|RouteOrigin { pattern, port, tls_only }| {
            let tls = if *tls_only { "tls" } else { "plain" };
            let pattern = match pattern {
                HostPattern::Exact(host) => host.to_string(),
                HostPattern::Subdomains(host) => format!("*.{host}"),
            };
            match port {
                PortRule::Default => format!("{tls} {pattern}"),
                PortRule::Stated(port) => format!("{tls} {pattern} {port}"),
                PortRule::Any => format!("{tls} {pattern} *"),
            }
        })
    }

    /// Parses the output of [`OriginSet::lines`].
    pub fn from_lines<'a>(lines: impl IntoIterator<Item = &'a str>) -> Option<OriginSet> {
        let origin = |line: &str| {
            let mut parts = line.split(' ');
            let tls_only = match parts.next()? {
                "tls" => true,
                "plain" => false,
                _ => return None,
            };
            let pattern = parts.next()?;
            let pattern = match pattern.strip_prefix("*.") {
                Some(suffix) => HostPattern::Subdomains(Host::parse(suffix).ok()?),
                None => HostPattern::Exact(Host::parse(pattern).ok()?),
            };
            let port = match (parts.next(), parts.next()) {
                (None, _) => PortRule::Default,
                (Some("*"), None) => PortRule::Any,
                (Some(port), None) => PortRule::Stated(port.parse().ok()?),
                (Some(_), Some(_)) => return None,
            };
            Some(RouteOrigin { pattern, port, tls_only })
        };
        lines.into_iter().map(origin).collect::<Option<_>>().map(OriginSet)
    }

    /// True if the token may be sent to `origin`, which is about to be dialled.
    pub fn permits(&self, origin: &Origin) -> bool {
        self.0.iter().any(|RouteOrigin { pattern, port, tls_only }| {
            let port = match port {
                PortRule::Default => origin.port == if *tls_only { 443 } else { 80 },
                PortRule::Stated(port) => origin.port == *port,
                PortRule::Any => true,
            };
            port && (!tls_only || origin.scheme == Scheme::Https) && pattern.matches(&origin.host)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Name;
    use crate::model::origin::Authority;

    #[test]
    fn only_the_origins_of_a_tokens_routes_are_permitted() {
        let set = |pattern: &str, port, tls_only| {
            let host = Host::parse(pattern.trim_start_matches("*.")).unwrap();
            let pattern =
                if pattern.starts_with('*') { HostPattern::Subdomains(host) } else { HostPattern::Exact(host) };
            OriginSet(vec![RouteOrigin { pattern, port, tls_only }])
        };
        let origin = |scheme, text: &str| Origin::new(scheme, Authority::parse(text).unwrap());
        let a = set("a.test", PortRule::Default, true);
        assert!(a.permits(&origin(Scheme::Https, "a.test")));
        assert!(!a.permits(&origin(Scheme::Http, "a.test:443")));
        assert!(!a.permits(&origin(Scheme::Https, "a.test:444")));
        assert!(!a.permits(&origin(Scheme::Https, "b.a.test")));
        let below = set("*.a.test", PortRule::Any, false);
        assert!(below.permits(&origin(Scheme::Http, "x.y.a.test:81")));
        assert!(!below.permits(&origin(Scheme::Http, "a.test")));
        assert!(!below.permits(&origin(Scheme::Http, "xa.test")));
    }

    #[test]
    fn a_profile_has_the_origins_of_its_routes_and_the_connection_those_of_the_others() {
        let route = |profile: Option<&str>, only_when_named, port| Route {
            inject: Inject::Header { header: http::header::AUTHORIZATION, scheme: String::new() },
            profile: profile.map(|name| Name::parse(name).unwrap()),
            only_when_named,
            ..Route::sample(RouteMatch::Host { pattern: HostPattern::Exact(Host::parse("a.test").unwrap()), port })
        };
        let mut connection = Connection::sample("crm");
        connection.routes = vec![
            route(None, false, PortRule::Stated(1)),
            route(Some("read"), false, PortRule::Stated(2)),
            route(Some("read"), true, PortRule::Stated(3)),
            route(None, true, PortRule::Stated(4)),
            route(Some("default"), true, PortRule::Stated(5)),
        ];
        connection.extra_origins = vec![route(None, false, PortRule::Stated(6)).origin()];
        let mut lines = |profile: &str| {
            connection.profile = Name::parse(profile).unwrap();
            connection.origins().lines().map(|line| line.replace("plain a.test ", "")).collect::<Vec<_>>()
        };
        assert_eq!(lines("default"), ["1", "4", "5", "6"]);
        assert_eq!(lines("read"), ["2", "3", "4"]);
        assert_eq!(lines("write"), ["4"]);
    }

    #[test]
    fn origins_survive_formatting_and_parsing() {
        let host = |text: &str| Host::parse(text).unwrap();
        let origin = |pattern, port, tls_only| RouteOrigin { pattern, port, tls_only };
        let set = OriginSet(vec![
            origin(HostPattern::Exact(host("a.test")), PortRule::Default, true),
            origin(HostPattern::Subdomains(host("b.test")), PortRule::Any, false),
            origin(HostPattern::Exact(host("[::1]")), PortRule::Stated(8443), true),
        ]);
        let lines: Vec<_> = set.lines().collect();
        assert_eq!(OriginSet::from_lines(lines.iter().map(String::as_str)), Some(set));
        for bad in ["", "tls", "ssl a.test", "tls a.test x", "tls a.test 1 2", "tls *", "tls a.test 70000"] {
            assert_eq!(OriginSet::from_lines([bad]), None, "{bad}");
        }
    }
}
