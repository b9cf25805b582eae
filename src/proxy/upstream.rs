//! The worker's pool of upstream connections, keyed by origin, TLS profile and protocol, over `hyper::client::conn`.
//!
//! Holds: the origin of the key is the origin that is dialled, named in SNI and checked in the certificate; a connection
//! is used again only when it is ready again; requests in flight to one origin are bounded over all workers.
//! Metrics: `keybearer_upstream_connections`.

mod entry;
mod failure;
mod gate;
mod heard;
mod shared;

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use prometheus::IntGauge;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::body::RequestBody;
use super::error::{Fault, ProxyError, TlsFault, Unreachable};
use super::headers::FIELDS_MAX;
use crate::dial::{Conduit, Dialer, Forwarding};
use crate::model::origin::{Host, Origin, Scheme};
use crate::snapshot::{Snapshot, TlsProfile};
use crate::tasks::Tasks;
use crate::telemetry::metrics::Metrics;
use entry::{Counted, Dialing, Entry, Idle, Link, Sender};
pub use failure::SendError;
use failure::{dial_fault, is_other_protocol, tls_fault};
pub use gate::Gates;
use gate::Permit;
use heard::Counting;
use shared::Shared;

/// Where a request goes, and how TLS is verified there.
#[derive(Debug, Clone)]
pub struct Destination {
    pub origin: Origin,
    pub tls: Arc<TlsProfile>,
    /// In SNI and in the certificate, in place of the host.
    pub server_name: Option<Host>,
    pub protocol: Protocol,
}

/// What a request may be sent by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// What TLS agrees on; HTTP/1.1 without TLS.
    Any,
    /// WebSocket: HTTP/1.1, or HTTP/2 where the upstream refuses the former.
    WebSocket,
    /// HTTP/2, without TLS by prior knowledge: gRPC.
    Http2,
}

/// Connections of one key are interchangeable.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    origin: Origin,
    dialer: usize,
    tls: usize,
    server_name: Option<Host>,
    protocol: Protocol,
}

impl Destination {
    fn key(&self, dialer: &Dialer) -> Key {
        let tls = if self.origin.scheme == Scheme::Https { self.tls.id } else { 0 };
        let protocol = match (self.origin.scheme, self.protocol) {
            (Scheme::Https, Protocol::Http2) => Protocol::Any,
            (_, protocol) => protocol,
        };
        let (origin, server_name) = (self.origin.clone(), self.server_name.clone());
        Key { origin, dialer: dialer.number, tls, server_name, protocol }
    }
}

pub struct Pool {
    tasks: Tasks,
    gates: Arc<Gates>,
    entries: RefCell<HashMap<Key, Rc<Entry>>>,
    idle: IntGauge,
    active: IntGauge,
}

/// A connection that is ours for one exchange, or our stream on one.
pub struct Lease {
    link: Link,
    entry: Rc<Entry>,
    _permit: Permit,
    /// It has served before, so the upstream may have closed it meanwhile; not said of what stands in for a dead one.
    pub reused: bool,
}

impl Pool {
    pub fn new(tasks: Tasks, gates: Arc<Gates>, metrics: &Metrics) -> Pool {
        let gauge = |state| metrics.upstream_connections.with_label_values(&[state]);
        Pool { tasks, gates, entries: RefCell::default(), idle: gauge("idle"), active: gauge("active") }
    }

    /// A connection to `destination`: an idle one, or a new one.
    pub async fn checkout(&self, snapshot: &Snapshot, destination: &Destination) -> Result<Lease, Fault> {
        let entry = self.entry(&snapshot.dialer, destination);
        let permit = match entry.gate.try_enter(snapshot.limits.per_upstream) {
            Some(permit) => permit,
            None => Box::pin(entry.wait_for_place(snapshot)).await?,
        };
        let (link, reused) = self.link(snapshot, destination, &entry, None).await?;
        Ok(Lease { link, entry, _permit: permit, reused })
    }

    /// The same place with another connection, for one that turned out to be dead: a new one, or one that is shared.
    pub async fn renew(&self, snapshot: &Snapshot, destination: &Destination, dead: Lease) -> Result<Lease, Fault> {
        let (link, _) = self.link(snapshot, destination, &dead.entry, Some(&dead.link)).await?;
        Ok(Lease { link, reused: false, ..dead })
    }

    /// A connection, and whether it has served before.
    async fn link(
        &self,
        snapshot: &Snapshot,
        destination: &Destination,
        entry: &Entry,
        dead: Option<&Link>,
    ) -> Result<(Link, bool), Fault> {
        let link = match timeout(snapshot.timeouts.connect, self.take_or_open(snapshot, destination, entry, dead)).await
        {
            Ok(result) => result,
            Err(_) => Err(ProxyError::UpstreamUnreachable(Unreachable::Timeout).because("timeouts.connect has passed")),
        };
        if link.is_err() && entry.spoken.get() == Some(Version::HTTP_2) {
            entry.spoken.set(None);
        }
        link
    }

    async fn take_or_open(
        &self,
        snapshot: &Snapshot,
        destination: &Destination,
        entry: &Entry,
        dead: Option<&Link>,
    ) -> Result<(Link, bool), Fault> {
        let mut waited = false;
        loop {
            if let Some(link) = self.take(entry, snapshot.timeouts.keep_alive, dead) {
                return Ok((link, true));
            }
            // Many who want an upstream that may share one connection wait for the one who opens it, not each for its own.
            let shares = entry.spoken.get() == Some(Version::HTTP_2) || entry.spoken.get().is_none() && !waited;
            if shares && entry.dialing.get() {
                entry.dialed.notified().await;
                waited = true;
                continue;
            }
            let _dialing = Dialing::begin(entry);
            return Ok((Box::pin(self.connect(snapshot, destination, entry)).await?, false));
        }
    }

    /// A connection that is there already. Where one was `dead`, those that were idle with it may be so, too.
    fn take(&self, entry: &Entry, keep_alive: Duration, dead: Option<&Link>) -> Option<Link> {
        if dead.is_none()
            && let Some(sender) = entry.take_idle(keep_alive)
        {
            sender.counted.move_to(&self.active);
            return Some(Link::Alone(sender));
        }
        let shared = entry.shared.borrow();
        shared
            .iter()
            .filter(|shared| !dead.is_some_and(|dead| dead.is_on(shared)))
            .find_map(Shared::stream)
            .map(Link::Among)
    }

    async fn connect(&self, snapshot: &Snapshot, destination: &Destination, entry: &Entry) -> Result<Link, Fault> {
        let (dialer, origin) = (&snapshot.dialer, &destination.origin);
        if origin.scheme == Scheme::Http && destination.protocol == Protocol::Any {
            let (stream, forwarding) = dialer.connect_for_requests(origin).await.map_err(dial_fault)?;
            return self.alone(stream, snapshot, entry, forwarding).await;
        }
        if origin.scheme == Scheme::Http {
            let stream = dialer.connect(origin).await.map_err(dial_fault)?;
            return match destination.protocol {
                Protocol::Http2 => self.among(stream, snapshot, entry).await,
                Protocol::Any | Protocol::WebSocket => self.alone(stream, snapshot, entry, None).await,
            };
        }
        let tls = &destination.tls;
        let websocket = destination.protocol == Protocol::WebSocket && entry.spoken.get() != Some(Version::HTTP_2);
        let config = if websocket { &tls.http1 } else { &tls.any };
        let mut secured = secure(dialer, destination, config).await?;
        if websocket && secured.as_ref().is_err_and(is_other_protocol) {
            secured = secure(dialer, destination, &tls.any).await?;
        }
        let stream = secured.map_err(|error| {
            tls_fault(&error).unwrap_or_else(|| ProxyError::UpstreamUnreachable(Unreachable::Closed).because(error))
        })?;
        match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => self.among(stream, snapshot, entry).await,
            _ => self.alone(stream, snapshot, entry, None).await,
        }
    }

    /// A connection over HTTP/2, and a stream on it.
    async fn among<T>(&self, stream: T, snapshot: &Snapshot, entry: &Entry) -> Result<Link, Fault>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let gauges = (&self.idle, &self.active);
        let shared = Shared::open(stream, snapshot.limits.head_bytes, &self.tasks, gauges).await;
        let shared = shared.map_err(|error| ProxyError::UpstreamProtocol.because(error))?;
        let closed = || ProxyError::UpstreamUnreachable(Unreachable::Closed).because("closed at once");
        let shared = shared.ok_or_else(closed)?;
        let stream = shared.stream().ok_or_else(closed)?;
        entry.spoken.set(Some(Version::HTTP_2));
        entry.shared.borrow_mut().push(shared);
        Ok(Link::Among(stream))
    }

    /// One over HTTP/1.1, perhaps to a proxy.
    async fn alone<T>(
        &self,
        stream: T,
        snapshot: &Snapshot,
        entry: &Entry,
        forwarding: Option<Forwarding>,
    ) -> Result<Link, Fault>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (stream, heard) = Counting::new(stream);
        let mut builder = http1::Builder::new();
        builder.max_buf_size(snapshot.limits.head_bytes).max_headers(FIELDS_MAX);
        let handshake = builder.handshake(TokioIo::new(stream)).await;
        let (request, connection) = handshake.map_err(|error| ProxyError::UpstreamProtocol.because(error))?;
        self.tasks.spawn_local(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "upstream connection ended");
            }
        });
        entry.spoken.set(Some(Version::HTTP_11));
        Ok(Link::Alone(Sender { request, forwarding, heard, counted: Counted::new(&self.active) }))
    }

    fn entry(&self, dialer: &Dialer, destination: &Destination) -> Rc<Entry> {
        let key = destination.key(dialer);
        let mut entries = self.entries.borrow_mut();
        if let Some(entry) = entries.get(&key) {
            return entry.clone();
        }
        let entry = Rc::new(Entry::new(&key, &self.gates, &self.idle));
        entries.insert(key, entry.clone());
        entry
    }

    /// Closes what has been idle for too long and forgets origins without connections.
    pub fn sweep(&self, keep_alive: Duration) {
        let now = Instant::now();
        self.entries.borrow_mut().retain(|_, entry| {
            entry.idle.borrow_mut().retain(|idle| !idle.is_over(now, keep_alive));
            entry.shared.borrow_mut().retain(|shared| !shared.is_over(now, keep_alive));
            let holds = !entry.idle.borrow().is_empty() || !entry.shared.borrow().is_empty();
            holds || Rc::strong_count(entry) > 1
        });
        self.gates.sweep();
    }
}

impl Lease {
    /// In which a request must be put.
    pub fn version(&self) -> Version {
        match self.link {
            Link::Alone(_) => Version::HTTP_11,
            Link::Among(_) => Version::HTTP_2,
        }
    }

    /// A WebSocket may be asked for on it.
    pub fn takes_websocket(&self) -> bool {
        match &self.link {
            Link::Alone(_) => true,
            Link::Among(stream) => stream.takes_websocket(),
        }
    }

    /// Where it leads to a proxy, a request is put in absolute form.
    pub fn forwarding(&self) -> Option<&Forwarding> {
        match &self.link {
            Link::Alone(sender) => sender.forwarding.as_ref(),
            Link::Among(_) => None,
        }
    }

    pub async fn send(&mut self, request: Request<RequestBody>) -> Result<Response<Incoming>, SendError> {
        let heard = self.link.heard().clone();
        let before = heard.bytes();
        let sent = match &mut self.link {
            Link::Alone(sender) => sender.request.try_send_request(request).await,
            Link::Among(stream) => stream.sender().try_send_request(request).await,
        };
        sent.map_err(|mut error| {
            let unsent = error.take_message().is_some();
            SendError { error: error.into_error(), unsent, heard: heard.bytes() > before }
        })
    }

    /// The answer was read to its end: a connection of our own goes back once it is ready again.
    pub fn give_back(self) {
        if let Link::Alone(sender) = self.link
            && !sender.request.is_closed()
        {
            sender.counted.move_to(&self.entry.idle_gauge);
            self.entry.idle.borrow_mut().push(Idle { sender, since: Instant::now() });
        }
    }
}

/// An open stream to `origin`, without TLS.
pub async fn reach(snapshot: &Snapshot, origin: &Origin) -> Result<Conduit, Fault> {
    match timeout(snapshot.timeouts.connect, snapshot.dialer.connect(origin)).await {
        Ok(result) => result.map_err(dial_fault),
        Err(_) => Err(ProxyError::UpstreamUnreachable(Unreachable::Timeout).because("timeouts.connect has passed")),
    }
}

/// TLS to a destination, or what became of the handshake.
async fn secure(
    dialer: &Dialer,
    destination: &Destination,
    config: &Arc<ClientConfig>,
) -> Result<io::Result<TlsStream<Conduit>>, Fault> {
    let name = server_name(destination.server_name.as_ref().unwrap_or(&destination.origin.host))?;
    let stream = dialer.connect(&destination.origin).await.map_err(dial_fault)?;
    Ok(TlsConnector::from(config.clone()).connect(name, stream).await)
}

fn server_name(host: &Host) -> Result<ServerName<'static>, Fault> {
    match host {
        Host::Ip(address) => Ok(ServerName::from(*address)),
        Host::Name(name) => ServerName::try_from(name.to_string())
            .map_err(|error| ProxyError::UpstreamTls(TlsFault::Certificate).because(error)),
    }
}
