//! The data plane: accept, hand to a worker, serve.
//!
//! The life of a request: accept → `downstream` → (CONNECT: `tunnel`, and the inside starts again with authority and caller
//! fixed) → `exchange`: `target` → `caller` → one snapshot → route → token from its slot → `inject` → `headers` →
//! `upstream` → rejected? once more with another token → the body streams; its end records the metrics (`report`).
//!
//! Holds: an accept thread hands each connection to the worker with the fewest; workers share no lock; `limits` bound
//! connections and queues. Never here: the control plane.

mod answered;
mod body;
mod caller;
mod downstream;
mod error;
mod exchange;
mod headers;
pub mod inject;
mod relay;
mod report;
mod spans;
mod stream;
mod target;
mod tunnel;
mod upgrade;
mod upstream;
mod watched;
pub mod worker;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc;

use crate::model::origin::Host;
use crate::router::CallerId;
use crate::tasks::Phase;
use stream::Stream;
pub use upstream::Gates;
use watched::{Activity, Watched};
use worker::{Place, Shared, Worker};

/// Connections that wait for their worker to look at them.
const HANDOVER_MAX: usize = 1024;
/// A pause after a failed accept (out of file descriptors), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections that are being told that there is no place for them.
const REFUSED_MAX: usize = 256;
/// What is read of such a connection, so that its caller reads the answer and no reset.
const REFUSED_READ_BYTES_MAX: usize = 256 * 1024;

/// Who is at the other end of a connection.
pub struct Peer {
    address: SocketAddr,
    activity: Activity,
    tunnel: Option<Tunnelled>,
    /// Held by the connection and by the tunnel that it may become.
    seat: Rc<Seat>,
}

/// Counts a connection as open, for its worker and against `limits.downstream_connections`.
struct Seat {
    open: Arc<AtomicUsize>,
    _place: Place,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a CONNECT fixed for everything inside its tunnel.
struct Tunnelled {
    host: Host,
    port: u16,
    caller: Option<CallerId>,
}

struct Accepted {
    stream: std::net::TcpStream,
    address: SocketAddr,
    place: Place,
}

/// The handle of one worker, for the accept thread.
struct Inbox {
    sender: mpsc::Sender<Accepted>,
    open: Arc<AtomicUsize>,
}

/// Starts `workers` threads and one that accepts for `listeners`. They end with the phases; join them to wait.
pub fn start(shared: Arc<Shared>, workers: usize, listeners: Vec<TcpListener>) -> io::Result<Vec<JoinHandle<()>>> {
    let tasks = shared.tasks.clone();
    let mut threads = Vec::new();
    let mut inboxes = Vec::new();
    for number in 0..workers {
        let (sender, receiver) = mpsc::channel(HANDOVER_MAX);
        let open = Arc::new(AtomicUsize::new(0));
        inboxes.push(Inbox { sender, open: open.clone() });
        let shared = shared.clone();
        threads.push(tasks.thread(format!("worker-{number}"), move || work(shared, receiver, open))?);
    }
    threads.push(tasks.thread("accept".to_owned(), move || accept_all(shared, listeners, inboxes))?);
    Ok(threads)
}

/// One worker: a single-threaded runtime that serves the connections it is handed, until none is left after a drain.
fn work(shared: Arc<Shared>, mut inbox: mpsc::Receiver<Accepted>, open: Arc<AtomicUsize>) {
    let runtime = match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
        Ok(runtime) => runtime,
        Err(error) => return tracing::error!(%error, "a worker could not start"),
    };
    runtime.block_on(async move {
        let worker = Rc::new(Worker::new(shared.clone()));
        shared.tasks.spawn_local(sweep(worker.clone()));
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

async fn serve_one(worker: Rc<Worker>, accepted: Accepted, open: Arc<AtomicUsize>) {
    let seat = Rc::new(Seat { open, _place: accepted.place });
    let stream = match TcpStream::from_std(accepted.stream) {
        Ok(stream) => stream,
        Err(error) => return tracing::warn!(%error, "a connection could not be taken over"),
    };
    let io = Watched::new(Stream::Tcp(stream));
    let activity = Activity::new(io.watch.clone());
    downstream::serve(worker, io, Rc::new(Peer { address: accepted.address, activity, tunnel: None, seat })).await;
}

/// Closes idle upstream connections in time.
async fn sweep(worker: Rc<Worker>) {
    loop {
        let keep_alive = worker.snapshot().timeouts.keep_alive;
        tokio::time::sleep((keep_alive / 2).clamp(Duration::from_millis(10), Duration::from_secs(30))).await;
        worker.pool.sweep(keep_alive);
    }
}

fn accept_all(shared: Arc<Shared>, listeners: Vec<TcpListener>, inboxes: Vec<Inbox>) {
    let runtime = match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
        Ok(runtime) => runtime,
        Err(error) => return tracing::error!(%error, "the accept thread could not start"),
    };
    runtime.block_on(async move {
        let inboxes = Rc::new(inboxes);
        let taken = Arc::new(AtomicUsize::new(0));
        let mut drain = shared.tasks.watch();
        for listener in listeners {
            let accept = accept(shared.clone(), listener, inboxes.clone(), taken.clone());
            shared.tasks.spawn_local(accept);
        }
        drain.reached(Phase::Drain).await;
    });
}

async fn accept(shared: Arc<Shared>, listener: TcpListener, inboxes: Rc<Vec<Inbox>>, taken: Arc<AtomicUsize>) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "a listener could not be used"),
    };
    let refused = Arc::new(AtomicUsize::new(0));
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let places = shared.snapshot.load().limits.downstream_connections;
        let Some(place) = Place::take(&taken, places) else {
            refuse(&shared, stream, &refused);
            continue;
        };
        let Some(inbox) = inboxes.iter().min_by_key(|inbox| inbox.open.load(Ordering::Relaxed)) else { return };
        let Ok(stream) = stream.set_nodelay(true).and_then(|()| stream.into_std()) else { continue };
        inbox.open.fetch_add(1, Ordering::Relaxed);
        if inbox.sender.send(Accepted { stream, address, place }).await.is_err() {
            return;
        }
    }
}

/// Tells a caller that there is no place for it. Few of those who are told hold up nobody; the others are just closed.
fn refuse(shared: &Shared, mut stream: TcpStream, refused: &Arc<AtomicUsize>) {
    let error = error::ProxyError::Overloaded;
    shared.metrics.errors.with_label_values(&["", error.code()]).inc();
    let Some(place) = Place::take(refused, REFUSED_MAX) else { return };
    let answer = error::to_wire(&error.response(error::About::default()));
    shared.tasks.spawn_local(async move {
        downstream::say_last(&mut stream, &answer, REFUSED_READ_BYTES_MAX).await;
        drop(place);
    });
}
