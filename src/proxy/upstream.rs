//! The worker's pool of upstream connections, keyed by origin and TLS profile, over `hyper::client::conn`.
//!
//! Holds: the origin of the key is the origin that is dialled, named in SNI and checked in the certificate; a connection
//! is used again only when it is ready again; requests in flight to one origin are bounded over all workers.
//! Metrics: `keybearer_upstream_connections`.

mod gate;

use std::cell::RefCell;
use std::collections::HashMap;
use std::error::Error;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use prometheus::IntGauge;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use super::body::RequestBody;
use super::error::{Fault, ProxyError, Unreachable};
use crate::dial::{Denied, DialError, Dialer};
use crate::model::origin::{Host, Origin, Scheme};
use crate::snapshot::{Snapshot, TlsProfile};
use crate::tasks::Tasks;
use crate::telemetry::metrics::Metrics;
pub use gate::Gates;
use gate::{Full, Permit};

/// Where a request goes, and how TLS is verified there.
#[derive(Debug, Clone)]
pub struct Destination {
    pub origin: Origin,
    pub tls: Arc<TlsProfile>,
    /// In SNI and in the certificate, in place of the host.
    pub server_name: Option<Host>,
}

/// Connections of one key are interchangeable.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    origin: Origin,
    dialer: usize,
    tls: usize,
    server_name: Option<Host>,
}

impl Destination {
    fn key(&self, dialer: &Dialer) -> Key {
        let tls = if self.origin.scheme == Scheme::Https { self.tls.id } else { 0 };
        Key { origin: self.origin.clone(), dialer: dialer.number, tls, server_name: self.server_name.clone() }
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
    idle_gauge: IntGauge,
}

struct Idle {
    sender: Sender,
    since: Instant,
}

/// A connection, counted while it is open.
struct Sender {
    request: SendRequest<RequestBody>,
    state: IntGauge,
}

impl Sender {
    fn move_to(&mut self, state: &IntGauge) {
        self.state.dec();
        state.inc();
        self.state = state.clone();
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.state.dec();
    }
}

/// A connection that is ours for one exchange.
pub struct Lease {
    sender: Sender,
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
        if let Some(mut sender) = entry.take_idle(snapshot.timeouts.keep_alive) {
            sender.move_to(&self.active);
            return Ok(Lease { sender, entry, _permit: permit, reused: true });
        }
        let sender = self.open(snapshot, destination).await?;
        Ok(Lease { sender, entry, _permit: permit, reused: false })
    }

    /// The same place with a connection that was never used: for one that turned out to be dead.
    pub async fn renew(&self, snapshot: &Snapshot, destination: &Destination, dead: Lease) -> Result<Lease, Fault> {
        let sender = self.open(snapshot, destination).await?;
        Ok(Lease { sender, reused: false, ..dead })
    }

    async fn open(&self, snapshot: &Snapshot, destination: &Destination) -> Result<Sender, Fault> {
        let unreachable = ProxyError::UpstreamUnreachable;
        match timeout(snapshot.timeouts.connect, self.connect(snapshot, destination)).await {
            Ok(result) => result,
            Err(_) => Err(unreachable(Unreachable::Timeout).because("timeouts.connect has passed")),
        }
    }

    async fn connect(&self, snapshot: &Snapshot, destination: &Destination) -> Result<Sender, Fault> {
        let stream = snapshot.dialer.connect(&destination.origin).await.map_err(dial_fault)?;
        if destination.origin.scheme == Scheme::Http {
            return self.handshake(stream, snapshot).await;
        }
        let name = server_name(destination.server_name.as_ref().unwrap_or(&destination.origin.host))?;
        let connector = TlsConnector::from(destination.tls.config.clone());
        let stream = connector.connect(name, stream).await.map_err(|error| match is_tls(&error) {
            true => ProxyError::UpstreamTls.because(error),
            false => ProxyError::UpstreamUnreachable(Unreachable::Closed).because(error),
        })?;
        self.handshake(stream, snapshot).await
    }

    async fn handshake<T>(&self, stream: T, snapshot: &Snapshot) -> Result<Sender, Fault>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut builder = http1::Builder::new();
        builder.max_buf_size(snapshot.limits.head_bytes);
        let handshake = builder.handshake(TokioIo::new(stream)).await;
        let (request, connection) = handshake.map_err(|error| ProxyError::UpstreamProtocol.because(error))?;
        self.tasks.spawn_local(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "upstream connection ended");
            }
        });
        self.active.inc();
        Ok(Sender { request, state: self.active.clone() })
    }

    fn entry(&self, dialer: &Dialer, destination: &Destination) -> Rc<Entry> {
        let key = destination.key(dialer);
        let mut entries = self.entries.borrow_mut();
        if let Some(entry) = entries.get(&key) {
            return entry.clone();
        }
        let gate = self.gates.get(&key);
        let entry = Rc::new(Entry { gate, idle: RefCell::default(), idle_gauge: self.idle.clone() });
        entries.insert(key, entry.clone());
        entry
    }

    /// Closes what has been idle for too long and forgets origins without connections.
    pub fn sweep(&self, keep_alive: Duration) {
        let now = Instant::now();
        self.entries.borrow_mut().retain(|_, entry| {
            entry.idle.borrow_mut().retain(|idle| !idle.is_over(now, keep_alive));
            Rc::strong_count(entry) > 1 || !entry.idle.borrow().is_empty()
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

impl Idle {
    fn is_over(&self, now: Instant, keep_alive: Duration) -> bool {
        self.sender.request.is_closed() || now.duration_since(self.since) >= keep_alive
    }
}

/// Why a request got no answer.
#[derive(Debug)]
pub struct SendError {
    pub error: hyper::Error,
    /// Not a byte of it was written.
    pub unsent: bool,
}

impl Lease {
    pub async fn send(&mut self, request: Request<RequestBody>) -> Result<Response<Incoming>, SendError> {
        self.sender.request.try_send_request(request).await.map_err(|mut error| {
            let unsent = error.take_message().is_some();
            SendError { error: error.into_error(), unsent }
        })
    }

    /// The answer was read to its end: the connection goes back once it is ready again.
    pub fn give_back(mut self) {
        if !self.sender.request.is_closed() {
            self.sender.move_to(&self.entry.idle_gauge);
            self.entry.idle.borrow_mut().push(Idle { sender: self.sender, since: Instant::now() });
        }
    }
}

impl SendError {
    /// The connection was closed before a byte of an answer came.
    pub fn is_closed(&self) -> bool {
        let error = &self.error;
        error.is_incomplete_message() || error.is_closed() || error.is_canceled() || io_error(error).is_some()
    }

    pub fn fault(&self) -> Fault {
        let error = &self.error;
        match () {
            () if io_error(error).is_some_and(is_tls) => ProxyError::UpstreamTls.because(describe(error)),
            () if self.is_closed() => ProxyError::UpstreamUnreachable(Unreachable::Closed).because(describe(error)),
            () => ProxyError::UpstreamProtocol.because(describe(error)),
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

fn dial_fault(error: DialError) -> Fault {
    let why = match &error {
        DialError::Denied { denied: Denied::Private, .. } => {
            "the host has a private address; name it exactly in a route or under hosts, or its network in egress.allow_private"
        }
        DialError::Denied { denied: Denied::Special, .. } => {
            "the host has a link-local, metadata, multicast or reserved address; only a route that names the address opens it"
        }
        DialError::Denied { denied: Denied::OwnListener, .. } => "the host is this proxy itself",
        DialError::Resolve { .. } => {
            return ProxyError::UpstreamUnreachable(Unreachable::Name).because(describe(&error));
        }
        DialError::Connect { .. } => {
            return ProxyError::UpstreamUnreachable(Unreachable::Connect).because(describe(&error));
        }
    };
    ProxyError::EgressDenied(why).because(error)
}

fn is_tls(error: &std::io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>())
}

fn io_error(error: &hyper::Error) -> Option<&std::io::Error> {
    error.source()?.downcast_ref()
}

/// An error with its causes, for the log.
fn describe(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
