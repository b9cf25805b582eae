//! The worker's pool of upstream connections, keyed by origin, TLS profile and protocol, over `hyper::client::conn`.
//!
//! Holds: the origin of the key is the origin that is dialled, named in SNI and checked in the certificate; a connection
//! is used again only when it is ready again; requests in flight to one origin, and open connections to all of them, are
//! bounded over all workers; nothing is kept of an origin before the egress policy has permitted it.
//! Metrics: `keybearer_upstream_connections`.

mod connections;
mod descriptors;
mod destination;
mod entry;
mod failure;
mod gates;
mod heard;
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
use crate::gate::{Bounds, Full, Permit, Sharing, Turn};
use crate::model::Limits;
use crate::model::origin::{Origin, Scheme};
use crate::snapshot::Snapshot;
use crate::tasks::Tasks;
use crate::telemetry::metrics::Metrics;
pub use checkout::Checkout;
use connections::{Connections, Held};
pub use descriptors::{Descriptors, Dialed};
use destination::Key;
pub use destination::{Destination, Protocol};
use entry::{Counted, Link, Sender};
use failure::{SendError, dial_fault, is_other_protocol, tls_fault};
pub use gates::Gates;
use heard::Counting;
use http2::Http2Conn;

/// What a connection is wanted for: the configuration that holds for it, in whose turn it waits, and for whom.
#[derive(Clone, Copy)]
pub struct Wanted<'a> {
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
    /// That of the worker of this number.
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

    /// A connection to the destination: an idle one, or a new one.
    pub async fn checkout(&self, wanted: Wanted<'_>) -> Result<Checkout, Fault> {
        let entry = self.entry(wanted).await?;
        wanted.caller.set_gate(entry.gate());
        let permit = match entry.gate().try_enter(bounds_of_origin(&wanted.snapshot.limits)) {
            Some(permit) => permit,
            None => Box::pin(wait_for_place(wanted, &entry)).await?,
        };
        let (link, reused) = self.link(wanted, &entry, None).await?;
        Ok(Checkout::new(link, permit, entry, reused))
    }

    /// The same place with another connection, for one that turned out to be dead: a new one, or one that is shared.
    pub async fn renew(&self, wanted: Wanted<'_>, dead: Checkout) -> Result<Checkout, Fault> {
        let (link, _) = self.link(wanted, dead.entry(), Some(dead.link())).await?;
        Ok(dead.with(link))
    }

    /// A stream to `origin` without TLS, for a tunnel.
    pub async fn reach(&self, snapshot: &Snapshot, origin: &Origin, turn: &Turn) -> Result<Dialed, Fault> {
        let in_use = self.in_use(snapshot, turn).await?;
        let descriptor = self.descriptor(snapshot, turn).await?;
        match timeout(snapshot.timeouts.connect, snapshot.dialer.connect(origin, turn)).await {
            Ok(result) => Ok(Dialed::new(result.map_err(dial_fault)?, descriptor).used_by(in_use)),
            Err(_) => Err(late()),
        }
    }

    async fn entry(&self, wanted: Wanted<'_>) -> Result<Held, Fault> {
        let Wanted { snapshot, destination, turn, .. } = wanted;
        let key = destination.key(&snapshot.dialer);
        if let Some(entry) = self.connections.find(&key) {
            return Ok(entry);
        }
        match timeout(snapshot.timeouts.connect, snapshot.dialer.permit(&destination.origin, turn)).await {
            Ok(permitted) => permitted.map_err(dial_fault)?,
            Err(_) => return Err(late()),
        }
        Ok(self.connections.find_or_add(key))
    }

    /// A connection, and whether it has served before.
    async fn link(&self, wanted: Wanted<'_>, entry: &Held, dead: Option<&Link>) -> Result<(Link, bool), Fault> {
        let link = self.take_or_open(wanted, entry, dead).await;
        if link.is_err() && entry.spoken.get() == Some(Version::HTTP_2) {
            entry.spoken.set(None);
        }
        link
    }

    async fn take_or_open(&self, wanted: Wanted<'_>, entry: &Held, dead: Option<&Link>) -> Result<(Link, bool), Fault> {
        let timeouts = &wanted.snapshot.timeouts;
        let deadline = Instant::now() + timeouts.connect;
        // A dead connection is no longer in use; waiting for another permit beside its own could wait for itself.
        let (mut waited, mut in_use) = (false, dead.and_then(Link::reclaim));
        let (_dialing, in_use) = loop {
            if let Some(stream) = not_dead(entry, dead).find_map(|shared| shared.join()) {
                return Ok((Link::Http2(stream), true));
            }
            let at_once = || self.descriptors.try_use_one(&wanted.snapshot.limits);
            let Some(permit) = in_use.take().or_else(at_once) else {
                tokio::select! {
                    permit = self.in_use(wanted.snapshot, wanted.turn) => in_use = Some(permit?),
                    // A connection may have become one that this request can share.
                    () = entry.changed() => {}
                }
                if deadline <= Instant::now() {
                    return Err(late());
                }
                continue;
            };
            let permit = match self.take_idle(entry, timeouts.keep_alive, dead, permit) {
                Ok(link) => return Ok((link, true)),
                Err(permit) => permit,
            };
            if waited && deadline <= Instant::now() {
                return Err(late());
            }
            if let Some(dialing) = entry.dial(waited) {
                break (dialing, permit);
            }
            // Another caller may need it for the dial that this request waits for.
            drop(permit);
            timeout_at(deadline, entry.changed()).await.map_err(|_| late())?;
            waited = true;
        };
        let opened = timeout_at(deadline, Box::pin(self.open(wanted, entry, in_use))).await;
        Ok((opened.map_err(|_| late())??, false))
    }

    /// A connection that no request uses. Where one was `dead`, those that were idle with it may be so, too.
    fn take_idle(
        &self,
        entry: &Held,
        keep_alive: Duration,
        dead: Option<&Link>,
        mut in_use: Permit,
    ) -> Result<Link, Permit> {
        if dead.is_none()
            && let Some(sender) = entry.take_idle(keep_alive)
        {
            sender.counted.become_used(&self.active, in_use);
            return Ok(Link::Http1(sender));
        }
        for shared in not_dead(entry, dead) {
            match shared.wake(in_use) {
                Ok(stream) => {
                    entry.announce();
                    return Ok(Link::Http2(stream));
                }
                Err(permit) => in_use = permit,
            }
        }
        Err(in_use)
    }

    async fn open(&self, wanted: Wanted<'_>, entry: &Held, in_use: Permit) -> Result<Link, Fault> {
        let Wanted { snapshot, destination, turn, .. } = wanted;
        let (dialer, origin) = (&snapshot.dialer, &destination.origin);
        if origin.scheme == Scheme::Http && destination.protocol == Protocol::Any {
            let descriptor = self.descriptor(snapshot, turn).await?;
            let (conduit, forwarding) = dialer.connect_for_requests(origin, turn).await.map_err(dial_fault)?;
            return self.alone(Dialed::new(conduit, descriptor), snapshot, entry, (in_use, forwarding)).await;
        }
        if origin.scheme == Scheme::Http {
            let stream = self.dial(wanted).await?;
            return match destination.protocol {
                Protocol::Http2 => self.among(stream, snapshot, entry, in_use).await,
                Protocol::Any | Protocol::WebSocket => self.alone(stream, snapshot, entry, (in_use, None)).await,
            };
        }
        let tls = &destination.tls;
        let websocket = destination.protocol == Protocol::WebSocket && entry.spoken.get() != Some(Version::HTTP_2);
        let config = if websocket { &tls.http1 } else { &tls.any };
        let mut secured = self.secure(wanted, config).await?;
        if websocket && secured.as_ref().is_err_and(is_other_protocol) {
            secured = self.secure(wanted, &tls.any).await?;
        }
        let stream = secured.map_err(|error| {
            tls_fault(&error).unwrap_or_else(|| ProxyError::UpstreamUnreachable(Unreachable::Handshake).because(error))
        })?;
        match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => self.among(stream, snapshot, entry, in_use).await,
            _ => self.alone(stream, snapshot, entry, (in_use, None)).await,
        }
    }

    async fn dial(&self, wanted: Wanted<'_>) -> Result<Dialed, Fault> {
        let descriptor = self.descriptor(wanted.snapshot, wanted.turn).await?;
        let conduit =
            wanted.snapshot.dialer.connect(&wanted.destination.origin, wanted.turn).await.map_err(dial_fault)?;
        Ok(Dialed::new(conduit, descriptor))
    }

    /// TLS to the destination, or what became of the handshake.
    async fn secure(
        &self,
        wanted: Wanted<'_>,
        config: &Arc<ClientConfig>,
    ) -> Result<io::Result<TlsStream<Dialed>>, Fault> {
        let name = wanted.destination.server_name()?;
        let stream = self.dial(wanted).await?;
        Ok(TlsConnector::from(config.clone()).connect(name, stream).await)
    }

    /// The right to use a connection. Waiting for it leaves time to dial before the same `timeouts.connect` is over.
    async fn in_use(&self, snapshot: &Snapshot, turn: &Turn) -> Result<Permit, Fault> {
        unless_full(snapshot, self.descriptors.use_one(&snapshot.limits, turn)).await
    }

    /// The descriptor for a dial.
    async fn descriptor(&self, snapshot: &Snapshot, turn: &Turn) -> Result<Permit, Fault> {
        unless_full(snapshot, self.descriptors.take(&snapshot.limits, turn)).await
    }

    /// A connection over HTTP/2, and a stream on it.
    async fn among<T>(&self, stream: T, snapshot: &Snapshot, entry: &Held, in_use: Permit) -> Result<Link, Fault>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let gauges = (&self.idle, &self.active);
        let home = (entry.home(), in_use);
        let opened = Http2Conn::open(stream, snapshot.limits.head_bytes, &self.tasks, gauges, home).await;
        let opened = opened.map_err(|error| SendError { error, unsent: true, heard: false }.fault())?;
        let closed = || ProxyError::UpstreamUnreachable(Unreachable::ClosedUnsent).because("closed at once");
        let stream = opened.ok_or_else(closed)?;
        entry.spoken.set(Some(Version::HTTP_2));
        entry.shared.borrow_mut().push(stream.shared().clone());
        Ok(Link::Http2(stream))
    }

    /// One over HTTP/1.1, perhaps to a proxy.
    async fn alone<T>(
        &self,
        stream: T,
        snapshot: &Snapshot,
        entry: &Held,
        (in_use, forwarding): (Permit, Option<Forwarding>),
    ) -> Result<Link, Fault>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (stream, heard) = Counting::new(stream);
        let mut builder = http1::Builder::new();
        builder.max_buf_size(snapshot.limits.head_bytes).max_headers(FIELDS_MAX);
        let handshake = builder.handshake(TokioIo::new(stream)).await;
        let (request, connection) = handshake.map_err(|error| ProxyError::UpstreamProtocol.because(error))?;
        let home = entry.home();
        self.tasks.spawn_local(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "upstream connection ended");
            }
            home.has_ended();
        });
        entry.spoken.set(Some(Version::HTTP_11));
        Ok(Link::Http1(Sender { request, forwarding, heard, counted: Counted::in_use(&self.active, in_use) }))
    }

    /// Closes what has been idle for too long.
    pub fn sweep(&self, keep_alive: Duration) {
        self.connections.close_expired(keep_alive);
    }

    /// Closes idle connections when dials need their descriptors, for as long as the worker runs.
    pub async fn close_when_asked(&self) {
        self.connections.close_when_asked().await;
    }
}

async fn wait_for_place(wanted: Wanted<'_>, entry: &Held) -> Result<Permit, Fault> {
    let bounds = bounds_of_origin(&wanted.snapshot.limits);
    match timeout(wanted.snapshot.timeouts.connect, entry.gate().enter(bounds, wanted.turn)).await {
        Ok(Ok(permit)) => Ok(permit),
        Ok(Err(Full)) => Err(ProxyError::Overloaded.because("limits.queued_per_upstream is reached")),
        Err(_) => Err(ProxyError::Overloaded.because("no place below limits.per_upstream became free")),
    }
}

/// The connections of `entry` that requests may share.
fn not_dead(entry: &Held, dead: Option<&Link>) -> impl Iterator<Item = Rc<Http2Conn>> {
    let shared = entry.shared.borrow();
    let others: Vec<_> = shared.iter().filter(|shared| !dead.is_some_and(|dead| dead.is_on(shared))).cloned().collect();
    others.into_iter()
}

async fn unless_full(snapshot: &Snapshot, taking: impl Future<Output = Result<Permit, Full>>) -> Result<Permit, Fault> {
    match timeout(snapshot.timeouts.connect / 2, taking).await {
        Ok(Ok(permit)) => Ok(permit),
        Ok(Err(Full)) | Err(_) => {
            let why = "no file descriptor is free for a connection to the upstream, or this caller has its share of them; \
                       raise the limit of open files";
            Err(ProxyError::Overloaded.because(why))
        }
    }
}

fn bounds_of_origin(limits: &Limits) -> Bounds {
    Bounds { places: limits.per_upstream, queued: limits.queued_per_upstream, sharing: Sharing::Fair }
}

fn late() -> Fault {
    ProxyError::UpstreamUnreachable(Unreachable::Timeout).because("timeouts.connect has passed")
}
