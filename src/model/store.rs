//! Settings of the token store.

use std::fmt;
use std::path::PathBuf;

use super::Roots;
use super::secret::{SealKey, Secret};

/// Where tokens are stored, and the keys that seal them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreSettings {
    pub kind: StoreKind,
    /// The first seals, all open. Empty: a key is generated in the state directory.
    pub seal_keys: Vec<SealKey>,
}

impl StoreSettings {
    /// The settings without those that can change while the program runs.
    pub fn fixed(&self) -> StoreSettings {
        let mut fixed = self.clone();
        match &mut fixed.kind {
            StoreKind::Redis(redis) => (redis.username, redis.password, redis.trust) = (None, None, None),
            StoreKind::Embedded { .. } | StoreKind::Memory => {}
        }
        fixed
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreKind {
    /// One file.
    Embedded {
        path: PathBuf,
    },
    Memory,
    /// Shared with other replicas.
    Redis(Box<RedisSettings>),
}

impl StoreKind {
    /// True if records survive the process.
    pub fn is_durable(&self) -> bool {
        match self {
            StoreKind::Embedded { .. } | StoreKind::Redis(_) => true,
            StoreKind::Memory => false,
        }
    }
}

/// `store.redis`: the servers, and the settings of connections to them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisSettings {
    /// The server; its sentinels; or some nodes of the cluster.
    pub servers: Vec<RedisAt>,
    /// Topology; decides what `servers` lists.
    pub kind: RedisKind,
    /// TLS on connections to every server, sentinels included.
    pub tls: bool,
    /// In place of the platform's roots.
    pub trust: Option<Roots>,
    /// Number of the database; 0 in a cluster, which has no others.
    pub database: i64,
    /// ACL user; `None`: the default user.
    pub username: Option<String>,
    /// `None`: connections do not authenticate. Sentinels get the same credentials.
    pub password: Option<Secret>,
    /// Prefix of every key.
    pub key_prefix: String,
}

/// Topology of the Redis or Valkey servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisKind {
    /// One server.
    Server,
    /// Sentinels, which know the current primary.
    Sentinels {
        /// The sentinels' name for the primary.
        primary: String,
    },
    /// A cluster: keys are spread over its nodes.
    Cluster,
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisAt {
    /// `host` is a name or an address.
    Tcp {
        /// IPv6 addresses without brackets.
        host: String,
        /// Default: 6379.
        port: u16,
    },
    /// Path of a Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for RedisAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RedisAt::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            RedisAt::Tcp { host, port } => write!(f, "{host}:{port}"),
            RedisAt::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}
