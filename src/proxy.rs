//! The data plane: accepts connections, assigns each to a worker and serves it.
//!
//! A request passes through accept → `downstream` → `dispatch` → (CONNECT: `tunnel`; requests inside it re-enter at
//! `downstream` with authority and caller fixed) → `exchange`: `target` → `caller` → one snapshot → route → token from
//! its slot → `headers` → `upstream` → `inject` → send. A rejected token causes one replay. The response body streams;
//! its end records the metrics (`report`).
//!
//! Invariants: the accept thread assigns each connection to the worker with the fewest; workers share no lock; `limits`
//! bound connections and queues. Not here: the control plane.

mod accept;
pub mod arrival;
mod body;
mod caller;
mod connection_limit;
mod dispatch;
mod downstream;
mod error;
mod exchange;
mod headers;
pub mod inject;
mod io;
mod peer;
mod report;
mod target;
mod tunnel;
mod upgrade;
mod upstream;
pub mod worker;

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::model::origin::Host;
use crate::tasks::Phase;
use crate::tls;
pub use accept::BoundListener;
use accept::{Accepted, Inbox, accept_all};
use arrival::Arrival;
pub use headers::Via;
use io::{Activity, Stream, Watched};
use peer::{ConnectionGuard, Peer};
pub use upstream::Descriptors;
use worker::{ProxyState, Worker};

/// Accepted connections queued per worker.
const INBOX_MAX: usize = 1024;

/// Starts `workers` worker threads and one accept thread for `listeners`. The threads exit when the process drains or
/// stops.
pub fn start(
    state: Arc<ProxyState>,
    workers: usize,
    listeners: Vec<BoundListener>,
) -> std::io::Result<Vec<JoinHandle<()>>> {
    let tasks = state.tasks.clone();
    let mut threads = Vec::new();
    let mut inboxes = Vec::new();
    for number in 0..workers {
        let (sender, receiver) = mpsc::channel(INBOX_MAX);
        let open = Arc::new(AtomicUsize::new(0));
        inboxes.push(Inbox { sender, open: open.clone() });
        let state = state.clone();
        threads.push(tasks.thread(format!("worker-{number}"), move || run_worker(state, number, receiver, open))?);
    }
    threads.push(tasks.thread("accept".to_owned(), move || accept_all(state, listeners, inboxes))?);
    Ok(threads)
}

/// Runs one worker: a single-threaded runtime that serves its connections until a drain has closed the last one.
fn run_worker(state: Arc<ProxyState>, number: usize, mut inbox: mpsc::Receiver<Accepted>, open: Arc<AtomicUsize>) {
    let runtime = match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
        Ok(runtime) => runtime,
        Err(error) => {
            return tracing::error!(%error, worker = number, "worker failed to start; the other workers serve its share");
        }
    };
    runtime.block_on(async move {
        let worker = Rc::new(Worker::new(state.clone(), number));
        state.tasks.spawn_local(sweep_idle(worker.clone()));
        let closing = worker.clone();
        state.tasks.spawn_local(async move { closing.pool.close_on_demand().await });
        let mut stop = state.tasks.watch();
        let serve = async {
            while let Some(accepted) = inbox.recv().await {
                state.tasks.spawn_local(serve_connection(worker.clone(), accepted, open.clone()));
            }
            while open.load(Ordering::Relaxed) > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            () = serve => {}
            () = stop.reached(Phase::Stop) => {}
        }
    });
}

/// Serves one connection until it ends or is evicted.
async fn serve_connection(worker: Rc<Worker>, accepted: Accepted, open: Arc<AtomicUsize>) {
    let guard = Rc::new(ConnectionGuard::new(open, accepted.permit));
    let local = accepted.stream.local();
    let stream = match accepted.stream {
        accept::Stream::Tcp(stream) => TcpStream::from_std(stream).map(Stream::from),
        accept::Stream::Unix(stream) => UnixStream::from_std(stream).map(Stream::from),
    };
    let io = match stream {
        Ok(stream) => Watched::new(stream),
        Err(error) => {
            return tracing::warn!(%error, "accepted connection could not be registered with the worker's runtime");
        }
    };
    guard.permit.set_watch(&io.watch);
    let (from, listener) = (accepted.from, accepted.listener);
    let arrival = Arrival { from, listener, local, server_name: None, certificate: None };
    tokio::select! {
        () = secure_and_serve(worker, io, arrival, accepted.secure, guard.clone()) => {}
        () = guard.permit.evicted() => tracing::debug!(%from, "idle connection evicted"),
    }
}

async fn secure_and_serve(
    worker: Rc<Worker>,
    mut io: Watched,
    mut arrival: Arrival,
    secure: bool,
    guard: Rc<ConnectionGuard>,
) {
    if secure {
        let snapshot = worker.snapshot();
        let Some(config) = snapshot.listener_tls.get(&arrival.listener) else { return };
        match Box::pin(handshake(&worker, config.clone(), io, snapshot.timeouts.client_head)).await {
            Ok(secured) => {
                io = secured.io;
                arrival.certificate = secured.certificate.as_ref().map(tls::names);
                arrival.server_name = secured.server_name;
            }
            Err(error) => {
                return tracing::info!(%error, from = %arrival.from, listener = %arrival.listener, "downstream TLS handshake failed");
            }
        }
    }
    guard.permit.set_watch(&io.watch);
    let activity = Activity::new(io.watch.clone());
    let peer = Peer { arrival: Rc::new(arrival), activity, tunnel: None, guard };
    downstream::serve(worker, io, Rc::new(peer)).await;
}

/// A TLS stream and what the caller presented in the handshake.
struct Secured {
    io: Watched,
    /// The caller's end-entity certificate.
    certificate: Option<CertificateDer<'static>>,
    /// SNI.
    server_name: Option<Host>,
}

/// Performs the TLS handshake with a caller within `handshake_timeout`.
async fn handshake(
    worker: &Worker,
    config: Arc<ServerConfig>,
    io: Watched,
    handshake_timeout: Duration,
) -> std::io::Result<Secured> {
    let mut drain = worker.state.tasks.watch();
    let accepted = tokio::select! {
        accepted = timeout(handshake_timeout, TlsAcceptor::from(config).accept(io)) => accepted?,
        () = drain.reached(Phase::Drain) => return Err(std::io::ErrorKind::ConnectionAborted.into()),
    };
    let stream = accepted?;
    let session = stream.get_ref().1;
    let certificate = session.peer_certificates().and_then(|chain| chain.first()).cloned();
    let server_name = session.server_name().and_then(|name| Host::parse(name).ok());
    let io = Watched::new(Stream::Tls(Box::new(stream)));
    Ok(Secured { io, certificate: certificate.map(CertificateDer::into_owned), server_name })
}

/// Closes pooled upstream connections that have been idle for `timeouts.keep_alive`.
async fn sweep_idle(worker: Rc<Worker>) {
    loop {
        let keep_alive = worker.snapshot().timeouts.keep_alive;
        tokio::time::sleep((keep_alive / 2).clamp(Duration::from_millis(10), Duration::from_secs(30))).await;
        worker.pool.sweep(keep_alive);
    }
}
