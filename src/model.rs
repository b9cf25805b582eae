//! The checked configuration as plain data.
//!
//! Invariant: every value has passed the validator, so no other module parses or checks it again.
//! Not here: YAML and its problems (`config`), sockets, clocks, metrics.

pub mod access;
pub mod connection;
pub mod egress;
mod listener;
pub mod origin;
pub mod query;
pub mod san;
pub mod secret;
mod store;
pub mod time;
pub mod token;

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use rustls::pki_types::CertificateDer;
use url::Url;

use connection::Connection;
use origin::Host;
use secret::{Secret, SecretDigest};
use token::Subject;

pub use access::{AdminAccess, Role, SignIn, User};
pub use egress::Egress;
pub use listener::{ListenAt, Listener, ListenerTls, Listeners, ProxyListener};
pub use store::{RedisAt, RedisKind, RedisSettings, StoreKind, StoreSettings};

/// Root certificates, in addition to the platform's or instead of them.
pub type Roots = Arc<[CertificateDer<'static>]>;

/// The whole configuration, with references resolved and defaults filled in.
#[derive(Debug)]
pub struct Model {
    pub listeners: Listeners,
    /// TLS settings of the listeners that use TLS, by listener name.
    pub listener_tls: HashMap<Name, ListenerTls>,
    /// Data-plane threads, at least one.
    pub workers: usize,
    /// How long `/readyz` waits for the first tokens.
    pub readiness_wait: Duration,
    /// Names that are dialled at a fixed address, which may be private.
    pub hosts: Vec<HostOverride>,
    /// Roots in addition to the platform's, for every upstream and token endpoint.
    pub trust: Roots,
    pub egress: Egress,
    /// `None`: TLS inside tunnels is relayed.
    pub interception: Option<Interception>,
    pub callers: Vec<Caller>,
    pub admin: AdminAccess,
    /// Where browsers reach `/connect` and `/oauth/callback`; `None`: the loopback listener that serves them.
    pub public_url: Option<Url>,
    /// Directory for files that outlive the process.
    pub state_dir: PathBuf,
    pub store: StoreSettings,
    pub timeouts: Timeouts,
    pub limits: Limits,
    pub log: Log,
    /// `None`: no traces are exported.
    pub tracing: Option<Tracing>,
    pub audit: Audit,
    pub connections: Vec<Arc<Connection>>,
}

/// An entry of `hosts`: a name, and the address at which it is dialled.
#[derive(Debug, Clone)]
pub struct HostOverride {
    pub host: Host,
    pub address: IpAddr,
    /// Overrides the request's port.
    pub port: Option<u16>,
}

/// The CA for intercepting TLS inside tunnels; callers trust it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interception {
    /// The CA's certificate first, then its issuers; never empty.
    pub chain: Roots,
    /// PEM; matches the certificate.
    pub key: Secret,
}

/// A program that may use the proxy. All its conditions must match.
#[derive(Debug, Clone)]
pub struct Caller {
    pub name: Name,
    pub secret: Option<SecretDigest>,
    /// Alternatives; empty: any address.
    pub cidr: Vec<IpNet>,
    /// Alternative listeners; empty: any.
    pub listeners: Vec<Name>,
    /// Alternative users of a Unix socket's peer, by numeric ID; empty: any.
    pub unix_users: Vec<u32>,
    /// Alternative names in its client certificate; empty: any.
    pub certificate_names: Vec<san::San>,
    /// Subjects that it may act for; `None`: only itself.
    pub subjects: Option<Vec<SubjectPattern>>,
}

/// A subject, or a prefix of subjects (`team-*`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubjectPattern {
    Exact(Subject),
    /// Empty: every subject.
    Prefix(String),
}

impl Caller {
    pub fn may_act_for(&self, subject: &Subject) -> bool {
        let Some(subjects) = &self.subjects else { return subject.as_str() == self.name.as_str() };
        subjects.iter().any(|pattern| match pattern {
            SubjectPattern::Exact(expected) => expected == subject,
            SubjectPattern::Prefix(prefix) => subject.as_str().starts_with(prefix.as_str()),
        })
    }
}

/// Timeouts of the data plane, each with a finite default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// From the first byte of a request head to its last.
    pub client_head: Duration,
    /// How long a request waits for a token.
    pub token_wait: Duration,
    /// Name resolution, connecting and the TLS handshake together.
    pub connect: Duration,
    /// From the end of the request to the head of the response.
    pub response_head: Duration,
    /// Idle timeout within a body or a tunnel.
    pub idle: Duration,
    /// Idle timeout of a keep-alive connection, on either side.
    pub keep_alive: Duration,
    /// Grace period for requests in flight after SIGTERM.
    pub drain: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            client_head: Duration::from_secs(30),
            token_wait: Duration::from_secs(10),
            connect: Duration::from_secs(5),
            response_head: Duration::from_secs(60),
            idle: Duration::from_secs(5 * 60),
            keep_alive: Duration::from_secs(50),
            drain: Duration::from_secs(25),
        }
    }
}

/// Limits of the data plane, each with a finite default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Open connections from callers, all listeners and workers together.
    pub downstream_connections: usize,
    /// Requests in flight to one upstream origin, all workers together.
    pub per_upstream: usize,
    /// Requests queued for one upstream origin, all workers together.
    pub queued_per_upstream: usize,
    /// Size of a message head, including the first line.
    pub head_bytes: usize,
    /// Size of a request body that is buffered for a replay after a rejected token.
    pub replay_body_bytes: usize,
    /// Open CONNECT tunnels and WebSockets, all workers together.
    pub tunnels: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            downstream_connections: 10_000,
            per_upstream: 1024,
            queued_per_upstream: 256,
            head_bytes: 64 * 1024,
            replay_body_bytes: 64 * 1024,
            tunnels: 4096,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Log {
    pub level: LogLevel,
    pub format: LogFormat,
    pub requests: LogRequests,
}

/// Trace export.
#[derive(Debug, Clone, PartialEq)]
pub struct Tracing {
    /// The full URL for OTLP over HTTP.
    pub collector: Url,
    /// Fraction of the traces started here that is recorded: 0 to 1.
    pub sample: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogLevel {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    #[default]
    Auto,
    Text,
    Json,
}

/// Which requests are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogRequests {
    Off,
    /// Requests that the proxy itself answered with an error, and those whose response the upstream cut off.
    #[default]
    Errors,
    All,
}

/// Where audit records go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Audit {
    Off,
    /// To the log.
    #[default]
    Log,
    /// To a file, as JSON lines.
    File(PathBuf),
}

/// A name from the configuration; matches [`Name::PATTERN`]. Safe as a label, in a URL and in a log.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Arc<str>);

impl Name {
    /// A regular expression for all names.
    pub const PATTERN: &str = "^[a-z0-9][a-z0-9_-]{0,62}$";

    /// `None` if the text does not match the pattern.
    pub fn parse(text: &str) -> Option<Name> {
        Name::is_name(text).then(|| Name(text.into()))
    }

    /// Whether [`Name::parse`] accepts the text.
    pub fn is_name(text: &str) -> bool {
        let bytes = text.as_bytes();
        let plain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let first = bytes.first().is_some_and(plain);
        let rest = bytes.iter().all(|b| plain(b) || matches!(b, b'_' | b'-'));
        first && rest && bytes.len() <= 63
    }

    /// The text as in the configuration.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Destructured, so that a new field cannot be forgotten here.
    #[test]
    fn every_default_timeout_and_limit_is_finite() {
        let Timeouts { client_head, token_wait, connect, response_head, idle, keep_alive, drain } = Timeouts::default();
        for wait in [client_head, token_wait, connect, response_head, idle, keep_alive, drain] {
            assert!(wait > Duration::ZERO && wait <= Duration::from_secs(3600), "{wait:?}");
        }
        let Limits {
            downstream_connections,
            per_upstream,
            queued_per_upstream,
            head_bytes,
            replay_body_bytes,
            tunnels,
        } = Limits::default();
        for bound in [downstream_connections, per_upstream, queued_per_upstream, tunnels, head_bytes, replay_body_bytes]
        {
            assert!((1..=1024 * 1024).contains(&bound), "{bound}");
        }
    }

    #[test]
    fn a_name_is_a_short_lower_case_label() {
        for good in ["a", "crm", "0-a_b", &"x".repeat(63)] {
            assert!(Name::parse(good).is_some(), "{good}");
        }
        for bad in ["", "-a", "_a", "A", "a.b", "a b", "ä", &"x".repeat(64)] {
            assert!(Name::parse(bad).is_none(), "{bad}");
        }
    }
}
