//! The worker's pool of upstream connections, keyed by origin, TLS profile and protocol, over `hyper::client::conn`.
//!
//! Invariants: the key's origin is the one that is dialled, sent in SNI and checked in the certificate; a connection is
//! reused only once it is ready; requests in flight to one origin, and open connections to all origins, are bounded
//! across all workers; no state is kept for an origin before the egress policy has permitted it.
//! Metrics: `keybearer_upstream_connections`.

mod connections;
mod descriptors;
mod destination;
mod entry;
mod failure;
mod gates;
mod counting;
mod checkout;
mod http2;

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::Version;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use prometheus::IntGauge;
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::error::{Fault, ProxyError, Unreachable};
use super::headers::FIELDS_MAX;
use super::io::Presence;
use crate::dial::Forwarding;
use crate::gate::{Permit, Turn};
use crate::model::origin::Scheme;
use crate::snapshot::Snapshot;
use crate::tasks::Tasks;
use crate::telemetry::metrics::Metrics;
pub use checkout::Checkout;
use connections::{Connections, EntryRef};
use counting::CountingStream;
use descriptors::or_overloaded;
pub use descriptors::{Descriptors, Dialled};
use destination::Key;
pub use destination::{Destination, Protocol};
use entry::{Conn, ConnGauge, Http1Conn};
use failure::{SendError, dial_fault, is_other_protocol, tls_fault};
pub use gates::Gates;
use gates::{origin_bounds, wait_for_permit};
use http2::Http2Conn;

/// Context of a checkout: the current configuration, the destination, the queue turn and the downstream connection.
#[derive(Clone, Copy)]
pub struct CheckoutContext<'a> {
    pub snapshot: &'a Snapshot,
    pub destination: &'a Destination,
    pub turn: &'a Turn,
    pub caller: &'a Presence,
}

pub struct Pool {
    tasks: Tasks,
    connections: Rc<Connections>,
    descriptors: Arc<Descriptors>,
    idle: IntGauge,
    active: IntGauge,
}

impl Pool {
    pub fn new(
        tasks: Tasks,
        gates: Arc<Gates>,
        descriptors: Arc<Descriptors>,
        worker: usize,
        metrics: &Metrics,
    ) -> Pool {
        let gauge = |state| metrics.upstream_connections.with_label_values(&[state]);
        let (idle, active) = (gauge("idle"), gauge("active"));
        let connections = Rc::new(Connections::new(gates, descriptors.clone(), worker, idle.clone()));
        Pool { tasks, connections, descriptors, idle, active }
    }

    /// Checks out a connection to the destination: a pooled one, or a new one.
    pub async fn checkout(&self, ctx: CheckoutContext<'_>) -> Result<Checkout, Fault> {
        let entry = self.entry(ctx).await?;
        ctx.caller.set_gate(entry.gate());
        let permit = match entry.gate().try_enter(origin_bounds(&ctx.snapshot.limits)) {
            Some(permit) => permit,
            None => Box::pin(wait_for_permit(ctx, entry.gate())).await?,
        };
        let (conn, reused) = self.checkout_conn(ctx, &entry, None).await?;
        Ok(Checkout::new(conn, permit, entry, reused))
    }

    /// Replaces a dead connection and keeps its permit: with a new connection, or with a stream on a live HTTP/2 one.
    pub async fn replace_dead(&self, ctx: CheckoutContext<'_>, dead: Checkout) -> Result<Checkout, Fault> {
        let (conn, _) = self.checkout_conn(ctx, dead.entry(), Some(dead.conn())).await?;
        Ok(dead.with_conn(conn))
    }

    /// Dials `to` without TLS, for a tunnel.
    pub async fn dial_tunnel(&self, snapshot: &Snapshot, to: &Destination, turn: &Turn) -> Result<Dialled, Fault> {
        let in_use = self.take_use_permit(snapshot, turn).await?;
        let descriptor = self.take_descriptor(snapshot, turn).await?;
        match timeout(snapshot.timeouts.connect, to.dialer.connect(&to.origin, turn)).await {
            Ok(result) => Ok(Dialled::new(result.map_err(dial_fault)?, descriptor).holding(in_use)),
            Err(_) => Err(connect_timed_out()),
        }
    }

    async fn entry(&self, ctx: CheckoutContext<'_>) -> Result<EntryRef, Fault> {
        let CheckoutContext { snapshot, destination, turn, .. } = ctx;
        let key = destination.key();
        if let Some(entry) = self.connections.find(&key) {
            return Ok(entry);
        }
        match timeout(snapshot.timeouts.connect, destination.dialer.permit(&destination.origin, turn)).await {
            Ok(permitted) => permitted.map_err(dial_fault)?,
            Err(_) => return Err(connect_timed_out()),
        }
        Ok(self.connections.find_or_add(key))
    }

    /// Returns a connection, and whether it has served a request before.
    async fn checkout_conn(
        &self,
        ctx: CheckoutContext<'_>,
        entry: &EntryRef,
        dead: Option<&Conn>,
    ) -> Result<(Conn, bool), Fault> {
        let conn = self.reuse_or_dial(ctx, entry, dead).await;
        if conn.is_err() && entry.last_version.get() == Some(Version::HTTP_2) {
            entry.last_version.set(None);
        }
        conn
    }

    async fn reuse_or_dial(
        &self,
        ctx: CheckoutContext<'_>,
        entry: &EntryRef,
        dead: Option<&Conn>,
    ) -> Result<(Conn, bool), Fault> {
        let timeouts = &ctx.snapshot.timeouts;
        let deadline = Instant::now() + timeouts.connect;
        // Reuse the permit of a dead connection: waiting for a second one could deadlock on the first.
        let (mut waited, mut in_use) = (false, dead.and_then(Conn::reclaim_permit));
        let (_dialling, in_use) = loop {
            if let Some(stream) = live_http2_conns(entry, dead).find_map(|conn| conn.try_join()) {
                return Ok((Conn::Http2(stream), true));
            }
            let at_once = || self.descriptors.try_take_use_permit(&ctx.snapshot.limits);
            let Some(permit) = in_use.take().or_else(at_once) else {
                tokio::select! {
                    permit = self.take_use_permit(ctx.snapshot, ctx.turn) => in_use = Some(permit?),
                    // An HTTP/2 connection may now have room for this request.
                    () = entry.changed() => {}
                }
                if deadline <= Instant::now() {
                    return Err(connect_timed_out());
                }
                continue;
            };
            let permit = match self.take_idle(entry, timeouts.keep_alive, dead, permit) {
                Ok(conn) => return Ok((conn, true)),
                Err(permit) => permit,
            };
            if waited && deadline <= Instant::now() {
                return Err(connect_timed_out());
            }
            if let Some(dialling) = entry.try_dial(waited) {
                break (dialling, permit);
            }
            // The dial that this request waits for may need the permit.
            drop(permit);
            timeout_at(deadline, entry.changed()).await.map_err(|_| connect_timed_out())?;
            waited = true;
        };
        let opened = timeout_at(deadline, Box::pin(self.open(ctx, entry, in_use))).await;
        Ok((opened.map_err(|_| connect_timed_out())??, false))
    }

    /// Takes an idle connection. After a `dead` one, idle HTTP/1.1 connections are not trusted: they may be dead too.
    fn take_idle(
        &self,
        entry: &EntryRef,
        keep_alive: Duration,
        dead: Option<&Conn>,
        mut in_use: Permit,
    ) -> Result<Conn, Permit> {
        if dead.is_none()
            && let Some(conn) = entry.take_idle(keep_alive)
        {
            conn.gauge.set_active(&self.active, in_use);
            return Ok(Conn::Http1(conn));
        }
        for conn in live_http2_conns(entry, dead) {
            match conn.reuse_idle(in_use) {
                Ok(stream) => {
                    entry.wake_waiters();
                    return Ok(Conn::Http2(stream));
                }
                Err(permit) => in_use = permit,
            }
        }
        Err(in_use)
    }

    async fn open(&self, ctx: CheckoutContext<'_>, entry: &EntryRef, in_use: Permit) -> Result<Conn, Fault> {
        let CheckoutContext { snapshot, destination, turn, .. } = ctx;
        let Destination { dialer, origin, .. } = destination;
        if origin.scheme == Scheme::Http && destination.protocol == Protocol::Any {
            let descriptor = self.take_descriptor(snapshot, turn).await?;
            let (conduit, forwarding) = dialer.connect_for_requests(origin, turn).await.map_err(dial_fault)?;
            return self
                .handshake_http1(Dialled::new(conduit, descriptor), snapshot, entry, (in_use, forwarding))
                .await;
        }
        if origin.scheme == Scheme::Http {
            let stream = self.dial(ctx).await?;
            return match destination.protocol {
                Protocol::Http2 => self.handshake_http2(stream, snapshot, entry, in_use).await,
                Protocol::Any | Protocol::WebSocket => {
                    self.handshake_http1(stream, snapshot, entry, (in_use, None)).await
                }
            };
        }
        let tls = &destination.tls;
        let websocket =
            destination.protocol == Protocol::WebSocket && entry.last_version.get() != Some(Version::HTTP_2);
        let config = if websocket { &tls.http1 } else { &tls.any };
        let mut secured = self.connect_tls(ctx, config).await?;
        if websocket && secured.as_ref().is_err_and(is_other_protocol) {
            secured = self.connect_tls(ctx, &tls.any).await?;
        }
        let stream = secured.map_err(|error| {
            tls_fault(&error).unwrap_or_else(|| ProxyError::UpstreamUnreachable(Unreachable::Handshake).because(error))
        })?;
        match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => self.handshake_http2(stream, snapshot, entry, in_use).await,
            _ => self.handshake_http1(stream, snapshot, entry, (in_use, None)).await,
        }
    }

    async fn dial(&self, ctx: CheckoutContext<'_>) -> Result<Dialled, Fault> {
        let descriptor = self.take_descriptor(ctx.snapshot, ctx.turn).await?;
        let conduit = ctx.destination.dialer.connect(&ctx.destination.origin, ctx.turn).await.map_err(dial_fault)?;
        Ok(Dialled::new(conduit, descriptor))
    }

    /// Dials and performs the TLS handshake; the inner result is the handshake's.
    async fn connect_tls(
        &self,
        ctx: CheckoutContext<'_>,
        config: &Arc<ClientConfig>,
    ) -> Result<io::Result<TlsStream<Dialled>>, Fault> {
        let name = ctx.destination.server_name()?;
        let stream = self.dial(ctx).await?;
        Ok(TlsConnector::from(config.clone()).connect(name, stream).await)
    }

    /// Waits for a permit to use a connection, for half of `timeouts.connect`, so that the rest is left for the dial.
    async fn take_use_permit(&self, snapshot: &Snapshot, turn: &Turn) -> Result<Permit, Fault> {
        or_overloaded(snapshot, self.descriptors.take_use_permit(&snapshot.limits, turn)).await
    }

    /// Waits for the file descriptor of a dial, for half of `timeouts.connect`.
    async fn take_descriptor(&self, snapshot: &Snapshot, turn: &Turn) -> Result<Permit, Fault> {
        or_overloaded(snapshot, self.descriptors.take_descriptor(&snapshot.limits, turn)).await
    }

    /// Performs the HTTP/2 handshake and opens the first stream.
    async fn handshake_http2<T>(
        &self,
        stream: T,
        snapshot: &Snapshot,
        entry: &EntryRef,
        in_use: Permit,
    ) -> Result<Conn, Fault>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let gauges = (&self.idle, &self.active);
        let entry_and_permit = (entry.downgrade(), in_use);
        let opened = Http2Conn::open(stream, snapshot.limits.head_bytes, &self.tasks, gauges, entry_and_permit).await;
        let opened = opened.map_err(|error| SendError { error, unsent: true, received_bytes: false }.fault())?;
        let closed = || ProxyError::UpstreamUnreachable(Unreachable::ClosedUnsent).because("closed before SETTINGS");
        let stream = opened.ok_or_else(closed)?;
        entry.last_version.set(Some(Version::HTTP_2));
        entry.http2_conns.borrow_mut().push(stream.conn().clone());
        Ok(Conn::Http2(stream))
    }

    /// Performs the HTTP/1.1 handshake, with the upstream or with an egress proxy.
    async fn handshake_http1<T>(
        &self,
        stream: T,
        snapshot: &Snapshot,
        entry: &EntryRef,
        (in_use, forwarding): (Permit, Option<Forwarding>),
    ) -> Result<Conn, Fault>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (stream, bytes_read) = CountingStream::new(stream);
        let mut builder = http1::Builder::new();
        builder.max_buf_size(snapshot.limits.head_bytes).max_headers(FIELDS_MAX);
        let (sender, connection) = builder
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| ProxyError::UpstreamProtocol.because(error))?;
        let entry_ref = entry.downgrade();
        self.tasks.spawn_local(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "upstream connection ended");
            }
            entry_ref.on_closed();
        });
        entry.last_version.set(Some(Version::HTTP_11));
        Ok(Conn::Http1(Http1Conn { sender, forwarding, bytes_read, gauge: ConnGauge::active(&self.active, in_use) }))
    }

    /// Closes connections that have been idle for `keep_alive`.
    pub fn sweep(&self, keep_alive: Duration) {
        self.connections.close_expired(keep_alive);
    }

    /// Closes idle connections whenever dials need their descriptors. Never returns.
    pub async fn close_on_demand(&self) {
        self.connections.close_on_demand().await;
    }
}

/// HTTP/2 connections of `entry`, without the dead one.
fn live_http2_conns(entry: &EntryRef, dead: Option<&Conn>) -> impl Iterator<Item = Rc<Http2Conn>> {
    let conns = entry.http2_conns.borrow();
    let others: Vec<_> = conns.iter().filter(|conn| !dead.is_some_and(|dead| dead.is_on(conn))).cloned().collect();
    others.into_iter()
}

fn connect_timed_out() -> Fault {
    ProxyError::UpstreamUnreachable(Unreachable::Timeout).because("timeouts.connect exceeded")
}
