//! A configured OAuth connection and its routes.

use std::time::Duration;

use aws_lc_rs::digest;
use http::{HeaderName, Method, StatusCode};
use url::Url;

use super::origin::{Host, Origin, Scheme};
use super::secret::Secret;
use super::{Name, Roots};

/// A configured OAuth link: how its token is obtained, and which requests get it.
#[derive(Debug, PartialEq, Eq)]
pub struct Connection {
    pub name: Name,
    /// An inactive connection keeps its routes and refuses their requests.
    pub active: bool,
    pub comments: Option<String>,
    pub grant: Grant,
    pub client_id: String,
    pub client_auth: ClientAuth,
    /// https, or loopback, or `allow_cleartext` was given.
    pub token_url: Url,
    pub authorization_server: AuthorizationServer,
    /// In the order of the configuration, without repetitions.
    pub scopes: Vec<String>,
    pub audience: Option<String>,
    pub resource: Option<String>,
    /// Extra fields of every token request.
    pub token_params: Vec<(String, String)>,
    pub lifetimes: Lifetimes,
    pub tokens: Tokens,
    /// Statuses by which the API says that a token has expired.
    pub token_rejected: Vec<StatusCode>,
    /// Callers that may use it; `None`: all.
    pub accessible_from: Option<Vec<Name>>,
    pub routes: Vec<Route>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grant {
    ClientCredentials,
    /// RFC 6749 §4.3
    Password {
        username: String,
        password: Secret,
    },
    /// RFC 6749 §4.1: a person is needed for the first token.
    AuthorizationCode,
}

impl Grant {
    /// The name in the configuration, in labels and in the log.
    pub fn as_str(&self) -> &'static str {
        match self {
            Grant::ClientCredentials => "client_credentials",
            Grant::Password { .. } => "password",
            Grant::AuthorizationCode => "authorization_code",
        }
    }

    /// Can only a person give the first token?
    pub fn needs_person(&self) -> bool {
        matches!(self, Grant::AuthorizationCode)
    }
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

/// How the client proves who it is (RFC 6749 §2.3). Several secrets while one is being rotated: tried in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientAuth {
    /// `client_secret_post`
    Body(Vec<Secret>),
    /// `client_secret_basic`
    Basic(Vec<Secret>, BasicEncoding),
    /// A public client: only its identifier, in the body.
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BasicEncoding {
    /// Form-encoded before base64 (RFC 6749 §2.3.1), a space as `%20`.
    #[default]
    Form,
    /// As written, for servers that do not decode.
    Raw,
}

/// How the connection's OAuth endpoints are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorizationServer {
    /// In place of the global roots.
    pub trust: Option<Roots>,
    /// A whole call, from the dial to the last byte of the answer.
    pub timeout: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    /// When the answer names none.
    pub default_token_lifetime: Duration,
    /// How long before expiry the next token is asked for; at most half of the token's life.
    pub refresh_ahead: Duration,
    /// Never injected with less left; at most a quarter of the token's life.
    pub usable_margin: Duration,
    /// A subject's token is refreshed at least this often although nobody asks; `None`: only while in use.
    pub keep_warm: Option<Duration>,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Lifetimes {
            default_token_lifetime: Duration::from_secs(3600),
            refresh_ahead: Duration::from_secs(5 * 60),
            usable_margin: Duration::from_secs(5),
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
    pub inject: Inject,
    pub existing: Existing,
    pub without_token: WithoutToken,
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

    /// What follows the prefix in `path`: empty, or from a slash on.
    pub fn rest<'a>(&self, path: &'a str) -> Option<&'a str> {
        let rest = path.strip_prefix(self.0.as_str())?;
        (rest.is_empty() || rest.starts_with('/')).then_some(rest)
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

/// Where the token is put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inject {
    /// `<header>: <scheme> <token>`; an empty scheme is the token alone.
    Header { header: HeaderName, scheme: String },
    /// A route that forwards without a token.
    Nothing,
}

/// What becomes of what the caller sent in the token's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Existing {
    #[default]
    Overwrite,
    Keep,
    Refuse,
}

/// What becomes of a request for which there is no usable token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WithoutToken {
    #[default]
    Fail,
    Forward,
}

/// The origins that a connection's token may go to: those of its routes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginSet(Vec<(HostPattern, PortRule, bool)>);

impl Connection {
    pub fn origins(&self) -> OriginSet {
        let origin = |route: &Route| match &route.place {
            Place::Host { pattern, port } => (pattern.clone(), *port, route.tls.upgrade),
            Place::Mount { upstream, .. } => {
                let tls = upstream.scheme == Scheme::Https;
                (HostPattern::Exact(upstream.host.clone()), PortRule::Stated(upstream.port), tls)
            }
        };
        OriginSet(self.routes.iter().filter(|route| route.inject != Inject::Nothing).map(origin).collect())
    }
}

/// The digest of what a token belongs to, beside its origins: with another identity the old token is never sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity([u8; 32]);

impl Identity {
    pub fn new(digest: [u8; 32]) -> Identity {
        Identity(digest)
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl Connection {
    /// Token URL, client, grant, scopes in any order, audience, resource and username; secrets, margins, callers and
    /// paths are no part of it. It is stored: what is digested here never changes but with the store's format.
    pub fn identity(&self) -> Identity {
        let mut scopes: Vec<&str> = self.scopes.iter().map(String::as_str).collect();
        scopes.sort_unstable();
        let username = match &self.grant {
            Grant::Password { username, .. } => Some(username.as_str()),
            Grant::ClientCredentials | Grant::AuthorizationCode => None,
        };
        let scopes = scopes.join(" ");
        let parts = [
            Some(self.token_url.as_str()),
            Some(&self.client_id),
            Some(self.grant.as_str()),
            Some(&scopes),
            self.audience.as_deref(),
            self.resource.as_deref(),
            username,
        ];
        let mut context = digest::Context::new(&digest::SHA256);
        for part in parts {
            // Its length before each part: two different lists never make one text.
            let length = part.map_or(u64::MAX, |part| part.len() as u64);
            context.update(&length.to_be_bytes());
            context.update(part.unwrap_or_default().as_bytes());
        }
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(context.finish().as_ref());
        Identity(sha256)
    }
}

impl OriginSet {
    /// Is everything that `other` permits permitted here too?
    pub fn covers(&self, other: &OriginSet) -> bool {
        other.0.iter().all(|origin| self.0.contains(origin))
    }

    /// One line for each origin, for the store.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|(pattern, port, tls)| {
            let tls = if *tls { "tls" } else { "plain" };
            let pattern = match pattern {
                HostPattern::Exact(host) => host.to_string(),
                HostPattern::Below(host) => format!("*.{host}"),
            };
            match port {
                PortRule::Default => format!("{tls} {pattern}"),
                PortRule::Stated(port) => format!("{tls} {pattern} {port}"),
                PortRule::Any => format!("{tls} {pattern} *"),
            }
        })
    }

    /// Reads what [`OriginSet::lines`] wrote; `None` for anything else.
    pub fn from_lines<'a>(lines: impl IntoIterator<Item = &'a str>) -> Option<OriginSet> {
        let origin = |line: &str| {
            let mut parts = line.split(' ');
            let tls = match parts.next()? {
                "tls" => true,
                "plain" => false,
                _ => return None,
            };
            let pattern = parts.next()?;
            let pattern = match pattern.strip_prefix("*.") {
                Some(suffix) => HostPattern::Below(Host::parse(suffix).ok()?),
                None => HostPattern::Exact(Host::parse(pattern).ok()?),
            };
            let port = match (parts.next(), parts.next()) {
                (None, _) => PortRule::Default,
                (Some("*"), None) => PortRule::Any,
                (Some(port), None) => PortRule::Stated(port.parse().ok()?),
                (Some(_), Some(_)) => return None,
            };
            Some((pattern, port, tls))
        };
        lines.into_iter().map(origin).collect::<Option<_>>().map(OriginSet)
    }

    /// May a token go to this origin, which is about to be dialled?
    pub fn permits(&self, origin: &Origin) -> bool {
        self.0.iter().any(|(pattern, port, tls)| {
            let port = match port {
                PortRule::Default => origin.port == if *tls { 443 } else { 80 },
                PortRule::Stated(port) => origin.port == *port,
                PortRule::Any => true,
            };
            port && (!tls || origin.scheme == Scheme::Https) && pattern.holds(&origin.host)
        })
    }
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
impl Connection {
    /// A connection without routes, for the tests of other rooms.
    pub fn sample(name: &str) -> Connection {
        Connection {
            name: Name::parse(name).unwrap(),
            active: true,
            comments: None,
            grant: Grant::ClientCredentials,
            client_id: "id".to_owned(),
            client_auth: ClientAuth::None,
            token_url: "https://as.test/token".parse().unwrap(),
            authorization_server: AuthorizationServer { trust: None, timeout: Duration::from_secs(10) },
            scopes: Vec::new(),
            audience: None,
            resource: None,
            token_params: Vec::new(),
            lifetimes: Lifetimes::default(),
            tokens: Tokens::default(),
            token_rejected: Vec::new(),
            accessible_from: None,
            routes: Vec::new(),
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
    fn a_token_goes_only_to_the_origins_of_its_routes() {
        let set = |pattern: &str, port, tls| {
            let host = Host::parse(pattern.trim_start_matches("*.")).unwrap();
            let pattern = if pattern.starts_with('*') { HostPattern::Below(host) } else { HostPattern::Exact(host) };
            OriginSet(vec![(pattern, port, tls)])
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
    fn origins_are_read_as_they_are_written() {
        let host = |text: &str| Host::parse(text).unwrap();
        let set = OriginSet(vec![
            (HostPattern::Exact(host("a.test")), PortRule::Default, true),
            (HostPattern::Below(host("b.test")), PortRule::Any, false),
            (HostPattern::Exact(host("[::1]")), PortRule::Stated(8443), true),
        ]);
        let lines: Vec<_> = set.lines().collect();
        assert_eq!(OriginSet::from_lines(lines.iter().map(String::as_str)), Some(set));
        for bad in ["", "tls", "ssl a.test", "tls a.test x", "tls a.test 1 2", "tls *", "tls a.test 70000"] {
            assert_eq!(OriginSet::from_lines([bad]), None, "{bad}");
        }
    }

    #[test]
    fn an_identity_is_what_a_token_belongs_to_and_nothing_else() {
        let changed = |change: fn(&mut Connection)| {
            let mut connection = Connection::sample("crm");
            connection.scopes = vec!["a".to_owned(), "b".to_owned()];
            change(&mut connection);
            connection.identity()
        };
        let password = |username: &str, password: &str| Grant::Password {
            username: username.to_owned(),
            password: Secret::new(password),
        };
        let own = changed(|_| {});
        assert_eq!(changed(|c| c.scopes.reverse()), own);
        assert_eq!(changed(|c| c.client_auth = ClientAuth::Body(vec![Secret::new("x")])), own);
        assert_eq!(changed(|c| c.lifetimes.keep_warm = Some(Duration::from_secs(1))), own);
        for other in [
            changed(|c| c.token_url = "https://as.test/other".parse().unwrap()),
            changed(|c| c.client_id = "other".to_owned()),
            changed(|c| c.grant = Grant::AuthorizationCode),
            changed(|c| c.scopes.truncate(1)),
            changed(|c| c.audience = Some(String::new())),
            changed(|c| c.resource = Some(String::new())),
        ] {
            assert_ne!(other, own);
        }
        let mut connection = Connection::sample("crm");
        let mut of = |grant| {
            connection.grant = grant;
            connection.identity()
        };
        assert_eq!(of(password("ann", "x")), of(password("ann", "y")));
        assert_ne!(of(password("ann", "x")), of(password("bob", "x")));
    }

    #[test]
    fn a_prefix_ends_at_a_segment() {
        let v1 = PathPrefix::parse("/v1/").unwrap();
        assert_eq!(v1, PathPrefix::parse("/v1").unwrap());
        for (path, rest) in [("/v1", Some("")), ("/v1/", Some("/")), ("/v1/x", Some("/x"))] {
            assert_eq!(v1.rest(path), rest);
        }
        for path in ["/v10", "/v1x", "/v1%20", "/V1/x", "/", ""] {
            assert_eq!(v1.rest(path), None, "{path}");
        }
        assert_eq!(PathPrefix::root().rest("/x"), Some("/x"));
    }

    #[test]
    fn a_prefix_is_written_plainly() {
        for bad in ["", "v1", "/a//b", "/a/../b", "/.", "/a%2fb", "/a?b", "/a;b", "/a\\b", "//", "/a//"] {
            assert!(PathPrefix::parse(bad).is_none(), "{bad}");
        }
    }
}
