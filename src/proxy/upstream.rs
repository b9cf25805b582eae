//! The worker's pool of upstream connections, keyed by origin, TLS profile and protocol, over `hyper::client::conn`.
//!
//! Holds: the origin of the key is the origin that is dialled, named in SNI and checked in the certificate; a connection
//! is used again only when it is ready again; requests in flight to one origin are bounded over all workers.
//! Metrics: `keybearer_upstream_connections`.

mod failure;
mod gate;
mod shared;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use prometheus::IntGauge;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use super::body::RequestBody;
use super::error::{Fault, ProxyError, Unreachable};
use crate::dial::Dialer;
use crate::model::origin::{Host, Origin, Scheme};
use crate::snapshot::{Snapshot, TlsProfile};
use crate::tasks::Tasks;
use crate::telemetry::metrics::Metrics;
pub use failure::SendError;
use failure::{dial_fault, is_tls};
pub use gate::Gates;
use gate::{Full, Permit};
use shared::{Shared, Stream};

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
    /// HTTP/1.1: WebSocket.
    Http1,
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
            (Scheme::Https, Protocol::Http2) | (Scheme::Http, Protocol::Http1) => Protocol::Any,
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

struct Entry {
    gate: Arc<gate::Gate>,
    idle: RefCell<Vec<Idle>>,
    shared: RefCell<Vec<Rc<Shared>>>,
    /// What the last connection spoke; `None`: nobody knows yet, or the last attempt failed.
    spoken: Cell<Option<Version>>,
    dialing: Cell<bool>,
    dialed: Notify,
    idle_gauge: IntGauge,
}

struct Idle {
    sender: Sender,
    since: Instant,
}

/// A connection over HTTP/1.1.
struct Sender {
    request: SendRequest<RequestBody>,
    counted: Counted,
}

/// Counts a connection while it is open.
struct Counted(RefCell<IntGauge>);

impl Counted {
    fn new(state: &IntGauge) -> Counted {
        state.inc();
        Counted(RefCell::new(state.clone()))
    }

    fn move_to(&self, state: &IntGauge) {
        state.inc();
        self.0.replace(state.clone()).dec();
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.borrow().dec();
    }
}

/// What one exchange has of a connection.
enum Link {
    Alone(Sender),
    Among(Stream),
}

/// A connection that is ours for one exchange, or our stream on one.
pub struct Lease {
    link: Link,
    entry: Rc<Entry>,
    _permit: Permit,
    /// It has served before, so the upstream may have closed it meanwhile.
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
            None => entry.wait_for_place(snapshot).await?,
        };
        let mut waited = false;
        loop {
            if let Some(link) = self.take(&entry, snapshot.timeouts.keep_alive) {
                return Ok(Lease { link, entry, _permit: permit, reused: true });
            }
            // Many who want an upstream that may share one connection wait for the one who opens it, not each for its own.
            let shares = entry.spoken.get() == Some(Version::HTTP_2) || entry.spoken.get().is_none() && !waited;
            if shares && entry.dialing.get() {
                entry.dialed.notified().await;
                waited = true;
                continue;
            }
            let link = self.open(snapshot, destination, &entry).await?;
            return Ok(Lease { link, entry, _permit: permit, reused: false });
        }
    }

    /// A connection that is there already.
    fn take(&self, entry: &Entry, keep_alive: Duration) -> Option<Link> {
        if let Some(sender) = entry.take_idle(keep_alive) {
            sender.counted.move_to(&self.active);
            return Some(Link::Alone(sender));
        }
        entry.shared.borrow().iter().find_map(Shared::stream).map(Link::Among)
    }

    /// The same place with a connection that was never used: for one that turned out to be dead.
    pub async fn renew(&self, snapshot: &Snapshot, destination: &Destination, dead: Lease) -> Result<Lease, Fault> {
        let link = self.open(snapshot, destination, &dead.entry).await?;
        Ok(Lease { link, reused: false, ..dead })
    }

    async fn open(&self, snapshot: &Snapshot, destination: &Destination, entry: &Entry) -> Result<Link, Fault> {
        let _dialing = Dialing::begin(entry);
        let unreachable = ProxyError::UpstreamUnreachable;
        let link = match timeout(snapshot.timeouts.connect, self.connect(snapshot, destination, entry)).await {
            Ok(result) => result,
            Err(_) => Err(unreachable(Unreachable::Timeout).because("timeouts.connect has passed")),
        };
        if link.is_err() && entry.spoken.get() == Some(Version::HTTP_2) {
            entry.spoken.set(None);
        }
        link
    }

    async fn connect(&self, snapshot: &Snapshot, destination: &Destination, entry: &Entry) -> Result<Link, Fault> {
        let stream = snapshot.dialer.connect(&destination.origin).await.map_err(dial_fault)?;
        if destination.origin.scheme == Scheme::Http {
            let shared = destination.protocol == Protocol::Http2;
            return self.handshake(stream, snapshot, shared, entry).await;
        }
        let name = server_name(destination.server_name.as_ref().unwrap_or(&destination.origin.host))?;
        let config = match destination.protocol {
            Protocol::Http1 => &destination.tls.http1,
            Protocol::Any | Protocol::Http2 => &destination.tls.any,
        };
        let connector = TlsConnector::from(config.clone());
        let stream = connector.connect(name, stream).await.map_err(|error| match is_tls(&error) {
            true => ProxyError::UpstreamTls.because(error),
            false => ProxyError::UpstreamUnreachable(Unreachable::Closed).because(error),
        })?;
        let shared = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        self.handshake(stream, snapshot, shared, entry).await
    }

    async fn handshake<T>(&self, stream: T, snapshot: &Snapshot, shared: bool, entry: &Entry) -> Result<Link, Fault>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let failed = |error: hyper::Error| ProxyError::UpstreamProtocol.because(error);
        let head_bytes = snapshot.limits.head_bytes;
        if shared {
            let gauges = (&self.idle, &self.active);
            let shared = Shared::open(stream, head_bytes, &self.tasks, gauges).await.map_err(failed)?;
            let closed = || ProxyError::UpstreamUnreachable(Unreachable::Closed).because("closed at once");
            let shared = shared.ok_or_else(closed)?;
            let stream = shared.stream().ok_or_else(closed)?;
            entry.spoken.set(Some(Version::HTTP_2));
            entry.shared.borrow_mut().push(shared);
            return Ok(Link::Among(stream));
        }
        let mut builder = http1::Builder::new();
        builder.max_buf_size(head_bytes);
        let (request, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(failed)?;
        self.tasks.spawn_local(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "upstream connection ended");
            }
        });
        entry.spoken.set(Some(Version::HTTP_11));
        Ok(Link::Alone(Sender { request, counted: Counted::new(&self.active) }))
    }

    fn entry(&self, dialer: &Dialer, destination: &Destination) -> Rc<Entry> {
        let key = destination.key(dialer);
        let mut entries = self.entries.borrow_mut();
        if let Some(entry) = entries.get(&key) {
            return entry.clone();
        }
        let entry = Rc::new(Entry {
            // One bound for the origin, whatever is spoken.
            gate: self.gates.get(&Key { protocol: Protocol::Any, ..key.clone() }),
            idle: RefCell::default(),
            shared: RefCell::default(),
            spoken: Cell::new(match (key.origin.scheme, key.protocol) {
                (Scheme::Http, Protocol::Any) | (_, Protocol::Http1) => Some(Version::HTTP_11),
                _ => None,
            }),
            dialing: Cell::new(false),
            dialed: Notify::new(),
            idle_gauge: self.idle.clone(),
        });
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

impl Entry {
    async fn wait_for_place(&self, snapshot: &Snapshot) -> Result<Permit, Fault> {
        let limits = &snapshot.limits;
        let place = self.gate.enter(limits.per_upstream, limits.queued_per_upstream);
        match timeout(snapshot.timeouts.connect, place).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(Full)) => Err(ProxyError::Overloaded.because("limits.queued_per_upstream is reached")),
            Err(_) => Err(ProxyError::Overloaded.because("no place below limits.per_upstream became free")),
        }
    }

    /// The connection that was used last and is ready for another request. Older ones are left to `sweep`, so that a
    /// checkout costs the same however many are idle.
    fn take_idle(&self, keep_alive: Duration) -> Option<Sender> {
        let mut idle = self.idle.borrow_mut();
        let now = Instant::now();
        for at in (0..idle.len()).rev() {
            if idle[at].is_over(now, keep_alive) {
                idle.remove(at);
            } else if idle[at].sender.request.is_ready() {
                return Some(idle.remove(at).sender);
            }
        }
        None
    }
}

/// One who opens a connection; at its end the others look again.
struct Dialing<'a>(&'a Entry);

impl<'a> Dialing<'a> {
    fn begin(entry: &'a Entry) -> Dialing<'a> {
        entry.dialing.set(true);
        Dialing(entry)
    }
}

impl Drop for Dialing<'_> {
    fn drop(&mut self) {
        self.0.dialing.set(false);
        self.0.dialed.notify_waiters();
    }
}

impl Idle {
    fn is_over(&self, now: Instant, keep_alive: Duration) -> bool {
        self.sender.request.is_closed() || now.duration_since(self.since) >= keep_alive
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

    pub async fn send(&mut self, request: Request<RequestBody>) -> Result<Response<Incoming>, SendError> {
        let sent = match &mut self.link {
            Link::Alone(sender) => sender.request.try_send_request(request).await,
            Link::Among(stream) => stream.sender().try_send_request(request).await,
        };
        sent.map_err(|mut error| {
            let unsent = error.take_message().is_some();
            SendError { error: error.into_error(), unsent }
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
pub async fn reach(snapshot: &Snapshot, origin: &Origin) -> Result<TcpStream, Fault> {
    match timeout(snapshot.timeouts.connect, snapshot.dialer.connect(origin)).await {
        Ok(result) => result.map_err(dial_fault),
        Err(_) => Err(ProxyError::UpstreamUnreachable(Unreachable::Timeout).because("timeouts.connect has passed")),
    }
}

fn server_name(host: &Host) -> Result<ServerName<'static>, Fault> {
    match host {
        Host::Ip(address) => Ok(ServerName::from(*address)),
        Host::Name(name) => {
            ServerName::try_from(name.to_string()).map_err(|error| ProxyError::UpstreamTls.because(error))
        }
    }
}
