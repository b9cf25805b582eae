//! The downstream peer of a connection: how it arrived, and the tunnel it is inside.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

use super::arrival::Arrival;
use super::caller::AuthenticatedCaller;
use super::connection_limit::ConnectionPermit;
use super::io::Activity;
use crate::model::origin::{Host, Scheme};

/// The peer of one connection, or of one tunnel inside it.
pub struct Peer {
    pub arrival: Rc<Arrival>,
    pub activity: Activity,
    pub tunnel: Option<TunnelContext>,
    /// Shared by the connection and the tunnel that it may become.
    pub guard: Rc<ConnectionGuard>,
}

/// Keeps a connection counted: as open on its worker, and against the connection limit.
pub struct ConnectionGuard {
    open: Arc<AtomicUsize>,
    pub permit: ConnectionPermit,
}

impl ConnectionGuard {
    pub fn new(open: Arc<AtomicUsize>, permit: ConnectionPermit) -> ConnectionGuard {
        ConnectionGuard { open, permit }
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What CONNECT fixed for every request inside its tunnel.
pub struct TunnelContext {
    /// Scheme of the requests inside: https where TLS was intercepted.
    pub scheme: Scheme,
    pub host: Host,
    pub port: u16,
    /// `None`: no callers were configured.
    pub caller: Option<AuthenticatedCaller>,
    /// The SNI inside differs from the CONNECT host, so every request inside is refused.
    pub sni_mismatch: bool,
    /// Notified when the configuration no longer has the caller that opened the tunnel.
    pub caller_removed: Notify,
}

impl Peer {
    /// Returns once the tunnel must close because the configuration no longer has the caller that opened it.
    pub async fn tunnel_caller_removed(&self) {
        match &self.tunnel {
            Some(tunnel) => tunnel.caller_removed.notified().await,
            None => std::future::pending().await,
        }
    }
}
