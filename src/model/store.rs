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
    pub kind: RedisKind,
    pub tls: bool,
    /// In place of the platform's roots.
    pub trust: Option<Roots>,
    pub database: i64,
    pub username: Option<String>,
    pub password: Option<Secret>,
    /// Prefix of every key.
    pub key_prefix: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisKind {
    Server,
    Sentinels {
        /// The sentinels' name for the primary.
        primary: String,
    },
    Cluster,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisAt {
    /// `host` is a name or an address.
    Tcp {
        host: String,
        port: u16,
    },
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
