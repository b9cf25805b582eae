//! Proxy listeners, and the accept thread that assigns each connection to the worker with the fewest.
//!
//! Invariants: a connection beyond `limits.downstream_connections` waits at most [`ADMISSION_TIMEOUT`] for an idle one
//! to be evicted, then it is refused; the Unix socket of a running process is never replaced.

use std::fs::{self, Permissions};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::arrival::PeerAddress;
use super::connection_limit::{Admission, ConnectionPermit};
use super::worker::ProxyState;
use super::{downstream, error};
use crate::gate::{Bounds, Full, Sharing};
use crate::model::{ListenAt, Name, ProxyListener};
use crate::tasks::Phase;

/// Backoff after a failed accept (out of file descriptors), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a connection over the limit waits for a permit.
const ADMISSION_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes read and discarded from a refused connection, so that its caller receives the response instead of a reset.
const REFUSED_READ_BYTES_MAX: usize = 256 * 1024;

/// A proxy listener, bound to its address.
pub struct BoundListener {
    pub name: Name,
    secure: bool,
    socket: ListenSocket,
}

enum ListenSocket {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

/// Unlinks the socket file on drop.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl BoundListener {
    pub fn bind(listener: &ProxyListener) -> io::Result<BoundListener> {
        let bound = match &listener.at {
            ListenAt::Address(address) => {
                let socket = TcpListener::bind(address)?;
                socket.set_nonblocking(true)?;
                ListenSocket::Tcp(socket)
            }
            ListenAt::Unix { path, mode } => {
                let socket = bind_unix(path, *mode)?;
                socket.set_nonblocking(true)?;
                ListenSocket::Unix(socket, SocketFile(path.clone()))
            }
        };
        Ok(BoundListener { name: listener.name.clone(), secure: listener.secure, socket: bound })
    }

    /// The address it is bound to; resolves port 0.
    pub fn local_address(&self) -> io::Result<ListenAt> {
        Ok(match &self.socket {
            ListenSocket::Tcp(socket) => ListenAt::Address(socket.local_addr()?),
            ListenSocket::Unix(_, SocketFile(path)) => ListenAt::Unix { path: path.clone(), mode: 0 },
        })
    }
}

/// Binds under a temporary name, sets the mode, then renames into place: no caller can connect before the mode is set,
/// and a stale socket of a process that has exited is replaced.
fn bind_unix(path: &Path, mode: u32) -> io::Result<UnixListener> {
    if UnixStream::connect(path).is_ok() {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    if fs::symlink_metadata(path).is_ok_and(|found| !std::os::unix::fs::FileTypeExt::is_socket(&found.file_type())) {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the path exists and is not a socket"));
    }
    let name = format!(".{:x}", fastrand::u32(..));
    let temporary = path.with_file_name(name);
    let socket = UnixListener::bind(&temporary)?;
    let renamed =
        fs::set_permissions(&temporary, Permissions::from_mode(mode)).and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = renamed {
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    Ok(socket)
}

/// An accepted connection, on its way to a worker.
pub struct Accepted {
    pub stream: Stream,
    pub from: PeerAddress,
    pub listener: Name,
    /// The listener terminates TLS.
    pub secure: bool,
    pub permit: ConnectionPermit,
}

/// A stream detached from the accept thread's runtime.
pub enum Stream {
    Tcp(std::net::TcpStream),
    Unix(UnixStream),
}

impl Stream {
    /// Our own address; `None` for a Unix socket.
    pub fn local(&self) -> Option<SocketAddr> {
        match self {
            Stream::Tcp(stream) => stream.local_addr().ok(),
            Stream::Unix(_) => None,
        }
    }
}

/// The accept thread's handle to one worker.
pub struct Inbox {
    pub sender: mpsc::Sender<Accepted>,
    pub open: Arc<AtomicUsize>,
}

pub fn accept_all(state: Arc<ProxyState>, listeners: Vec<BoundListener>, inboxes: Vec<Inbox>) {
    let runtime = match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
        Ok(runtime) => runtime,
        Err(error) => return tracing::error!(%error, "accept thread failed to start"),
    };
    runtime.block_on(async move {
        let inboxes = Rc::new(inboxes);
        let refused = Arc::default();
        let mut drain = state.tasks.watch();
        for listener in listeners {
            let acceptor = Acceptor {
                state: state.clone(),
                inboxes: inboxes.clone(),
                refused: Arc::clone(&refused),
                listener: listener.name,
                secure: listener.secure,
            };
            state.tasks.spawn_local(Rc::new(acceptor).run(listener.socket));
        }
        drain.reached(Phase::Drain).await;
    });
}

/// Accepts connections on one listener.
struct Acceptor {
    state: Arc<ProxyState>,
    inboxes: Rc<Vec<Inbox>>,
    refused: Arc<AtomicUsize>,
    listener: Name,
    secure: bool,
}

/// All workers have exited.
#[derive(Debug)]
struct NoWorkers;

/// A stream that can move to another runtime.
trait Detach: AsyncRead + AsyncWrite + Unpin + 'static {
    /// Deregisters the stream from the current runtime.
    fn detach(self) -> io::Result<Stream>;
}

impl Detach for tokio::net::TcpStream {
    fn detach(self) -> io::Result<Stream> {
        self.set_nodelay(true)?;
        self.into_std().map(Stream::Tcp)
    }
}

impl Detach for tokio::net::UnixStream {
    fn detach(self) -> io::Result<Stream> {
        self.into_std().map(Stream::Unix)
    }
}

impl Acceptor {
    async fn run(self: Rc<Self>, socket: ListenSocket) {
        let result = match socket {
            ListenSocket::Tcp(socket) => self.accept_tcp(socket).await,
            ListenSocket::Unix(socket, _file) => self.accept_unix(socket).await,
        };
        if let Err(error) = result {
            tracing::error!(%error, listener = %self.listener, "listener failed");
        }
    }

    async fn accept_tcp(self: &Rc<Self>, socket: TcpListener) -> io::Result<()> {
        let socket = tokio::net::TcpListener::from_std(socket)?;
        loop {
            let Some((stream, address)) = self.next(socket.accept()).await else { continue };
            if self.receive(stream, PeerAddress::Tcp(address)).await.is_err() {
                return Ok(());
            }
        }
    }

    async fn accept_unix(self: &Rc<Self>, socket: UnixListener) -> io::Result<()> {
        let socket = tokio::net::UnixListener::from_std(socket)?;
        loop {
            let Some((stream, _)) = self.next(socket.accept()).await else { continue };
            let Ok(user) = stream.peer_cred().map(|peer| peer.uid()) else { continue };
            if self.receive(stream, PeerAddress::Unix(user)).await.is_err() {
                return Ok(());
            }
        }
    }

    async fn next<T>(&self, accepting: impl Future<Output = io::Result<T>>) -> Option<T> {
        match accepting.await {
            Ok(accepted) => Some(accepted),
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                None
            }
        }
    }

    /// Admits a connection and hands it to a worker. A connection over the limit waits in its own task, so it does not
    /// delay the accept loop.
    async fn receive<T: Detach>(self: &Rc<Self>, stream: T, from: PeerAddress) -> Result<(), NoWorkers> {
        let (turn, descriptors) = (from.turn(None), &self.state.descriptors);
        let bounds = Bounds {
            permits: descriptors.downstream_max(&self.state.snapshot.load().limits),
            queued: descriptors.refused_max(),
            sharing: Sharing::Fair,
        };
        match self.state.connection_limiter.admit(bounds, &turn) {
            Ok(Admission::Admitted(permit)) => return self.pass_on(stream, from, permit).await,
            Ok(Admission::Queued(waiting)) => {
                let acceptor = self.clone();
                self.state.tasks.spawn_local(async move {
                    match timeout(ADMISSION_TIMEOUT, acceptor.state.connection_limiter.wait(waiting, &turn)).await {
                        Ok(Ok(permit)) => {
                            let permit = acceptor.state.connection_limiter.track(permit, &turn);
                            // Without workers the process is exiting.
                            let _ = acceptor.pass_on(stream, from, permit).await;
                        }
                        Ok(Err(Full)) | Err(_) => acceptor.refuse(stream),
                    }
                });
            }
            Err(Full) => self.refuse(stream),
        }
        Ok(())
    }

    async fn pass_on<T: Detach>(
        &self,
        stream: T,
        from: PeerAddress,
        permit: ConnectionPermit,
    ) -> Result<(), NoWorkers> {
        // Detaching fails only if the caller has closed the connection.
        let Ok(stream) = stream.detach() else { return Ok(()) };
        let accepted = Accepted { stream, from, listener: self.listener.clone(), secure: self.secure, permit };
        hand_over(&self.inboxes, accepted).await
    }

    /// Sends 503 on a connection that got no permit. The number of concurrent refusals is bounded; beyond it
    /// connections are closed without a response.
    fn refuse<T: Detach>(&self, mut stream: T) {
        let error = error::ProxyError::Overloaded;
        self.state.metrics.errors.with_label_values(&["", error.code()]).inc();
        // A cleartext response means nothing to a caller that expects TLS.
        if let Some(refusal) =
            Refusal::begin(&self.refused, self.state.descriptors.refused_max()).filter(|_| !self.secure)
        {
            let response = error::to_wire(&error.response(error::ErrorContext::default()));
            self.state.tasks.spawn_local(async move {
                downstream::close_lingering(&mut stream, &response, REFUSED_READ_BYTES_MAX).await;
                drop(refusal);
            });
        }
    }
}

/// Sends a connection to the running worker with the fewest open ones. Workers that failed to start or have exited are
/// skipped.
async fn hand_over(inboxes: &[Inbox], mut accepted: Accepted) -> Result<(), NoWorkers> {
    loop {
        let running = inboxes.iter().filter(|inbox| !inbox.sender.is_closed());
        let inbox = running.min_by_key(|inbox| inbox.open.load(Ordering::Relaxed)).ok_or(NoWorkers)?;
        inbox.open.fetch_add(1, Ordering::Relaxed);
        match inbox.sender.send(accepted).await {
            Ok(()) => return Ok(()),
            Err(returned) => accepted = returned.0,
        }
    }
}

/// Counts a refusal in progress; released on drop.
struct Refusal(Arc<AtomicUsize>);

impl Refusal {
    fn begin(count: &Arc<AtomicUsize>, max: usize) -> Option<Refusal> {
        let increment = |n: usize| (n < max).then_some(n + 1);
        count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, increment).ok().map(|_| Refusal(count.clone()))
    }
}

impl Drop for Refusal {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests;
