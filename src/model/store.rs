//! Where tokens are kept, as configured.

use std::fmt;
use std::path::PathBuf;

use super::Roots;
use super::secret::{SealKey, Secret};

/// Where tokens are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreSettings {
    pub kind: StoreKind,
    /// The first seals, all open. Empty: a key is made in the state directory.
    pub seal_keys: Vec<SealKey>,
}

impl StoreSettings {
    /// The same without what a running program takes over.
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
    /// Does what it keeps outlast the process?
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
    /// One; the sentinels, which know where it is; or some nodes of a cluster.
    pub servers: Vec<RedisAt>,
    pub kind: RedisKind,
    pub tls: bool,
    /// In place of the platform's roots.
    pub trust: Option<Roots>,
    pub database: i64,
    pub username: Option<String>,
    pub password: Option<Secret>,
    /// What every key begins with.
    pub key_prefix: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisKind {
    Server,
    Sentinels {
        /// The name by which they know it.
        primary: String,
    },
    Cluster,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisAt {
    /// Name or address.
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
