//! The data plane: accept, hand to a worker, serve.
//!
//! The life of a request: accept → `downstream` → `dispatch` → (CONNECT: `tunnel`, and the inside starts again with authority
//! and caller fixed) → `exchange`: `target` → `caller` → one snapshot → route → token from its slot → `inject` → `headers` →
//! `upstream` → rejected? once more with another token → the body streams; its end records the metrics (`report`).
//!
//! Holds: an accept thread hands each connection to the worker with the fewest; workers share no lock; `limits` bound
//! connections and queues. Never here: the control plane.

mod accept;
pub mod arrival;
mod body;
mod caller;
mod dispatch;
mod downstream;
mod error;
mod exchange;
mod headers;
pub mod inject;
mod io;
mod peer;
mod report;
mod seats;
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
pub use accept::Socket;
use accept::{Accepted, Inbox, accept_all};
use arrival::Arrival;
pub use headers::Via;
use io::{Activity, Stream, Watched};
use peer::{Occupancy, Peer};
pub use seats::Seats;
pub use upstream::{Descriptors, Gates};
use worker::{ProxyState, Worker};

/// Connections that wait for their worker to look at them.
const HANDOVER_MAX: usize = 1024;

/// Starts `workers` threads and one that accepts at `sockets`. They end with the phases; join them to wait.
pub fn start(shared: Arc<ProxyState>, workers: usize, sockets: Vec<Socket>) -> std::io::Result<Vec<JoinHandle<()>>> {
    let tasks = shared.tasks.clone();
    let mut threads = Vec::new();
    let mut inboxes = Vec::new();
    for number in 0..workers {
        let (sender, receiver) = mpsc::channel(HANDOVER_MAX);
        let open = Arc::new(AtomicUsize::new(0));
        inboxes.push(Inbox { sender, open: open.clone() });
        let shared = shared.clone();
        threads.push(tasks.thread(format!("worker-{number}"), move || work(shared, number, receiver, open))?);
    }
    threads.push(tasks.thread("accept".to_owned(), move || accept_all(shared, sockets, inboxes))?);
    Ok(threads)
}

/// One worker: a single-threaded runtime that serves the connections it is handed, until none is left after a drain.
fn work(shared: Arc<ProxyState>, number: usize, mut inbox: mpsc::Receiver<Accepted>, open: Arc<AtomicUsize>) {
    let runtime = match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
        Ok(runtime) => runtime,
        Err(error) => {
            return tracing::error!(%error, worker = number, "worker not started; the others serve in its place");
        }
    };
    runtime.block_on(async move {
        let worker = Rc::new(Worker::new(shared.clone(), number));
        shared.tasks.spawn_local(sweep(worker.clone()));
        let closing = worker.clone();
        shared.tasks.spawn_local(async move { closing.pool.close_on_demand().await });
        let mut stop = shared.tasks.watch();
        let serve = async {
            while let Some(accepted) = inbox.recv().await {
                shared.tasks.spawn_local(serve_one(worker.clone(), accepted, open.clone()));
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

/// Serves one connection, until it ends or makes way for another.
async fn serve_one(worker: Rc<Worker>, accepted: Accepted, open: Arc<AtomicUsize>) {
    let occupancy = Rc::new(Occupancy::new(open, accepted.seat));
    let local = accepted.stream.local();
    let stream = match accepted.stream {
        accept::Stream::Tcp(stream) => TcpStream::from_std(stream).map(Stream::from),
        accept::Stream::Unix(stream) => UnixStream::from_std(stream).map(Stream::from),
    };
    let io = match stream {
        Ok(stream) => Watched::new(stream),
        Err(error) => return tracing::warn!(%error, "a connection could not be taken over"),
    };
    occupancy.seat.occupied_by(&io.watch);
    let (from, listener) = (accepted.from, accepted.listener);
    let arrival = Arrival { from, listener, local, server_name: None, certificate: None };
    tokio::select! {
        () = secure_and_serve(worker, io, arrival, accepted.secure, occupancy.clone()) => {}
        () = occupancy.seat.is_wanted() => tracing::debug!(%from, "idle connection closed to make way for another"),
    }
}

async fn secure_and_serve(
    worker: Rc<Worker>,
    mut io: Watched,
    mut arrival: Arrival,
    secure: bool,
    occupancy: Rc<Occupancy>,
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
                return tracing::info!(%error, from = %arrival.from, listener = %arrival.listener, "no TLS with a caller");
            }
        }
    }
    occupancy.seat.occupied_by(&io.watch);
    let activity = Activity::new(io.watch.clone());
    let peer = Peer { arrival: Rc::new(arrival), activity, tunnel: None, occupancy };
    downstream::serve(worker, io, Rc::new(peer)).await;
}

/// A stream inside TLS, with what the caller has said in the handshake.
struct Secured {
    io: Watched,
    /// The certificate that it has shown.
    certificate: Option<CertificateDer<'static>>,
    server_name: Option<Host>,
}

/// TLS with a caller, in time.
async fn handshake(
    worker: &Worker,
    config: Arc<ServerConfig>,
    io: Watched,
    patience: Duration,
) -> std::io::Result<Secured> {
    let mut drain = worker.shared.tasks.watch();
    let accepted = tokio::select! {
        accepted = timeout(patience, TlsAcceptor::from(config).accept(io)) => accepted?,
        () = drain.reached(Phase::Drain) => return Err(std::io::ErrorKind::ConnectionAborted.into()),
    };
    let stream = accepted?;
    let session = stream.get_ref().1;
    let certificate = session.peer_certificates().and_then(|chain| chain.first()).cloned();
    let server_name = session.server_name().and_then(|name| Host::parse(name).ok());
    let io = Watched::new(Stream::Tls(Box::new(stream)));
    Ok(Secured { io, certificate: certificate.map(CertificateDer::into_owned), server_name })
}

/// Closes idle upstream connections in time.
async fn sweep(worker: Rc<Worker>) {
    loop {
        let keep_alive = worker.snapshot().timeouts.keep_alive;
        tokio::time::sleep((keep_alive / 2).clamp(Duration::from_millis(10), Duration::from_secs(30))).await;
        worker.pool.sweep(keep_alive);
    }
}
