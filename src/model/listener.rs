//! Where callers, people and monitors reach us.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::connection::ClientCertificate;
use super::{Name, Roots};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listeners {
    pub proxy: Vec<ProxyListener>,
    pub admin: Listener,
    pub telemetry: Option<Listener>,
    /// `/connect` and `/oauth/callback`, in place of the admin listener.
    pub public: Option<Listener>,
}

/// An address to listen at; port 0 asks the system for a free one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    pub name: Name,
    pub address: SocketAddr,
}

/// Where callers reach the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyListener {
    pub name: Name,
    pub at: ListenAt,
    /// TLS is spoken there, as [`ListenerTls`] says.
    pub secure: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAt {
    Address(SocketAddr),
    /// A socket in the file system, and who may open it.
    Unix {
        path: PathBuf,
        mode: u32,
    },
}

impl fmt::Display for ListenAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenAt::Address(address) => address.fmt(f),
            ListenAt::Unix { path, .. } => write!(f, "unix:{}", path.display()),
        }
    }
}

/// How a listener proves itself, and who has to prove itself there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerTls {
    pub certificate: ClientCertificate,
    /// Callers show a certificate that one of these vouches for; `None`: none is asked for.
    pub client_ca: Option<Roots>,
}
