//! Listeners of the proxy, the admin API, health checks and consent pages.

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

impl Listeners {
    /// True if the listener of the consent pages is on loopback.
    pub fn consent_is_local(&self) -> bool {
        self.public.as_ref().unwrap_or(&self.admin).address.ip().to_canonical().is_loopback()
    }
}

/// A listener's address; with port 0, the system picks a free port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    pub name: Name,
    pub address: SocketAddr,
    /// True if it uses TLS; its [`ListenerTls`] is in the model.
    pub secure: bool,
}

/// A listener of the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyListener {
    pub name: Name,
    pub at: ListenAt,
    /// True if it uses TLS; its [`ListenerTls`] is in the model.
    pub secure: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAt {
    Address(SocketAddr),
    /// A Unix socket with its file mode.
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

/// TLS settings of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerTls {
    pub certificate: ClientCertificate,
    /// Issuers of the client certificates that clients must present; `None`: no client certificates.
    pub client_ca: Option<Roots>,
}
