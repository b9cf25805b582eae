//! The peer at the other end of a caller's connection: where it comes from, and which tunnel it is inside.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

use super::arrival::Arrival;
use super::caller::Proven;
use super::io::Activity;
use super::seats::Seat;
use crate::model::origin::{Host, Scheme};

/// The peer of one connection, or of one tunnel inside it.
pub struct Peer {
    pub arrival: Rc<Arrival>,
    pub activity: Activity,
    pub tunnel: Option<Tunnelled>,
    /// Held by the connection and by the tunnel that it may become.
    pub occupancy: Rc<Occupancy>,
}

/// Counts a connection as open for its worker, and keeps its seat.
pub struct Occupancy {
    open: Arc<AtomicUsize>,
    pub seat: Seat,
}

impl Occupancy {
    pub fn new(open: Arc<AtomicUsize>, seat: Seat) -> Occupancy {
        Occupancy { open, seat }
    }
}

impl Drop for Occupancy {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a CONNECT fixed for everything inside its tunnel.
pub struct Tunnelled {
    /// Of what is inside: https where TLS was opened.
    pub scheme: Scheme,
    pub host: Host,
    pub port: u16,
    /// `None`: no callers were configured.
    pub caller: Option<Proven>,
    /// TLS inside was asked for under another name, so nothing in it is for this host.
    pub misnamed: bool,
    /// Told when its caller is gone.
    pub over: Notify,
}

impl Peer {
    /// Returns once nothing more will be served in its tunnel, because who opened it is gone.
    pub async fn over(&self) {
        match &self.tunnel {
            Some(tunnel) => tunnel.over.notified().await,
            None => std::future::pending().await,
        }
    }
}
