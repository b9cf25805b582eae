//! Sockets that callers reach, and the thread that hands each connection to the worker with the fewest.
//!
//! Holds: a connection beyond `limits.downstream_connections` waits for at most [`SEAT_WAIT`] until an idle one has made way,
//! then it is refused; the socket of a program that runs is never taken away from it.

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

use super::arrival::From;
use super::seats::{Admission, Seat};
use super::worker::ProxyState;
use super::{downstream, error};
use crate::gate::{Bounds, Full, Sharing};
use crate::model::{ListenAt, Name, ProxyListener};
use crate::tasks::Phase;

/// A pause after a failed accept (out of file descriptors), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a connection waits for its seat.
const SEAT_WAIT: Duration = Duration::from_secs(1);
/// What is read of a refused connection, so that its caller reads the answer and no reset.
const REFUSED_READ_BYTES_MAX: usize = 256 * 1024;

/// A listener of the proxy, bound.
pub struct Socket {
    pub name: Name,
    secure: bool,
    bound: Bound,
}

enum Bound {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

/// Removed when the listener is closed.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl Socket {
    pub fn bind(listener: &ProxyListener) -> io::Result<Socket> {
        let bound = match &listener.at {
            ListenAt::Address(address) => {
                let socket = TcpListener::bind(address)?;
                socket.set_nonblocking(true)?;
                Bound::Tcp(socket)
            }
            ListenAt::Unix { path, mode } => {
                let socket = bind_unix(path, *mode)?;
                socket.set_nonblocking(true)?;
                Bound::Unix(socket, SocketFile(path.clone()))
            }
        };
        Ok(Socket { name: listener.name.clone(), secure: listener.secure, bound })
    }

    /// Where it really listens.
    pub fn at(&self) -> io::Result<ListenAt> {
        Ok(match &self.bound {
            Bound::Tcp(socket) => ListenAt::Address(socket.local_addr()?),
            Bound::Unix(_, SocketFile(path)) => ListenAt::Unix { path: path.clone(), mode: 0 },
        })
    }
}

/// Bound under another name, given its mode, and moved into its place: nobody meets it before, and what a program that
/// has ended left there is replaced.
fn bind_unix(path: &Path, mode: u32) -> io::Result<UnixListener> {
    if UnixStream::connect(path).is_ok() {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    if fs::symlink_metadata(path).is_ok_and(|found| !std::os::unix::fs::FileTypeExt::is_socket(&found.file_type())) {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "something that is no socket stands there"));
    }
    let name = format!(".{:x}", fastrand::u32(..));
    let aside = path.with_file_name(name);
    let socket = UnixListener::bind(&aside)?;
    let placed = fs::set_permissions(&aside, Permissions::from_mode(mode)).and_then(|()| fs::rename(&aside, path));
    if let Err(error) = placed {
        let _ = fs::remove_file(&aside);
        return Err(error);
    }
    Ok(socket)
}

pub struct Accepted {
    pub stream: Stream,
    pub from: From,
    pub listener: Name,
    /// TLS comes first.
    pub secure: bool,
    pub seat: Seat,
}

/// A stream on its way from one runtime to another.
pub enum Stream {
    Tcp(std::net::TcpStream),
    Unix(UnixStream),
}

impl Stream {
    /// Our own address; `None`: it has none.
    pub fn local(&self) -> Option<SocketAddr> {
        match self {
            Stream::Tcp(stream) => stream.local_addr().ok(),
            Stream::Unix(_) => None,
        }
    }
}

/// The handle of one worker, for the accept thread.
pub struct Inbox {
    pub sender: mpsc::Sender<Accepted>,
    pub open: Arc<AtomicUsize>,
}

pub fn accept_all(shared: Arc<ProxyState>, sockets: Vec<Socket>, inboxes: Vec<Inbox>) {
    let runtime = match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
        Ok(runtime) => runtime,
        Err(error) => return tracing::error!(%error, "the accept thread could not start"),
    };
    runtime.block_on(async move {
        let inboxes = Rc::new(inboxes);
        let refused = Arc::default();
        let mut drain = shared.tasks.watch();
        for socket in sockets {
            let door = Door {
                shared: shared.clone(),
                inboxes: inboxes.clone(),
                refused: Arc::clone(&refused),
                listener: socket.name,
                secure: socket.secure,
            };
            shared.tasks.spawn_local(Rc::new(door).keep(socket.bound));
        }
        drain.reached(Phase::Drain).await;
    });
}

/// One listener, while it accepts.
struct Door {
    shared: Arc<ProxyState>,
    inboxes: Rc<Vec<Inbox>>,
    refused: Arc<AtomicUsize>,
    listener: Name,
    secure: bool,
}

/// No worker is left.
#[derive(Debug)]
struct Closed;

/// A stream that was just accepted.
trait Fresh: AsyncRead + AsyncWrite + Unpin + 'static {
    /// Ready for another runtime.
    fn detach(self) -> io::Result<Stream>;
}

impl Fresh for tokio::net::TcpStream {
    fn detach(self) -> io::Result<Stream> {
        self.set_nodelay(true)?;
        self.into_std().map(Stream::Tcp)
    }
}

impl Fresh for tokio::net::UnixStream {
    fn detach(self) -> io::Result<Stream> {
        self.into_std().map(Stream::Unix)
    }
}

impl Door {
    async fn keep(self: Rc<Self>, bound: Bound) {
        let result = match bound {
            Bound::Tcp(socket) => self.accept_tcp(socket).await,
            Bound::Unix(socket, _file) => self.accept_unix(socket).await,
        };
        if let Err(error) = result {
            tracing::error!(%error, listener = %self.listener, "a listener could not be used");
        }
    }

    async fn accept_tcp(self: &Rc<Self>, socket: TcpListener) -> io::Result<()> {
        let socket = tokio::net::TcpListener::from_std(socket)?;
        loop {
            let Some((stream, address)) = self.next(socket.accept()).await else { continue };
            if self.receive(stream, From::Address(address)).await.is_err() {
                return Ok(());
            }
        }
    }

    async fn accept_unix(self: &Rc<Self>, socket: UnixListener) -> io::Result<()> {
        let socket = tokio::net::UnixListener::from_std(socket)?;
        loop {
            let Some((stream, _)) = self.next(socket.accept()).await else { continue };
            let Ok(user) = stream.peer_cred().map(|peer| peer.uid()) else { continue };
            if self.receive(stream, From::User(user)).await.is_err() {
                return Ok(());
            }
        }
    }

    async fn next<T>(&self, accepting: impl Future<Output = io::Result<T>>) -> Option<T> {
        match accepting.await {
            Ok(accepted) => Some(accepted),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                None
            }
        }
    }

    /// Hands a connection over with a seat. One that finds none waits aside for it.
    async fn receive<T: Fresh>(self: &Rc<Self>, stream: T, from: From) -> Result<(), Closed> {
        let (turn, descriptors) = (from.turn(None), &self.shared.descriptors);
        let bounds = Bounds {
            permits: descriptors.downstream_max(&self.shared.snapshot.load().limits),
            queued: descriptors.refused_max(),
            sharing: Sharing::Fair,
        };
        match self.shared.seats.ask(bounds, &turn) {
            Ok(Admission::Seated(seat)) => return self.pass_on(stream, from, seat).await,
            Ok(Admission::Queued(waiting)) => {
                let door = self.clone();
                self.shared.tasks.spawn_local(async move {
                    match timeout(SEAT_WAIT, door.shared.seats.wait(waiting, &turn)).await {
                        Ok(Ok(permit)) => {
                            let seat = door.shared.seats.seat(permit, &turn);
                            // Without workers the program ends.
                            let _ = door.pass_on(stream, from, seat).await;
                        }
                        Ok(Err(Full)) | Err(_) => door.refuse(stream),
                    }
                });
            }
            Err(Full) => self.refuse(stream),
        }
        Ok(())
    }

    async fn pass_on<T: Fresh>(&self, stream: T, from: From, seat: Seat) -> Result<(), Closed> {
        // Else the caller has closed it already.
        let Ok(stream) = stream.detach() else { return Ok(()) };
        let accepted = Accepted { stream, from, listener: self.listener.clone(), secure: self.secure, seat };
        hand_over(&self.inboxes, accepted).await
    }

    /// Sends 503 to a caller without a seat. The number of such responses is bounded; beyond it connections are just closed.
    fn refuse<T: Fresh>(&self, mut stream: T) {
        let error = error::ProxyError::Overloaded;
        self.shared.metrics.errors.with_label_values(&["", error.code()]).inc();
        // In clear it would be no answer to a TLS client.
        if let Some(place) =
            Refusing::begin(&self.refused, self.shared.descriptors.refused_max()).filter(|_| !self.secure)
        {
            let answer = error::to_wire(&error.response(error::About::default()));
            self.shared.tasks.spawn_local(async move {
                downstream::say_last(&mut stream, &answer, REFUSED_READ_BYTES_MAX).await;
                drop(place);
            });
        }
    }
}

/// To the worker with the fewest connections, of those that run: one that could not start, or has ended, is passed over.
async fn hand_over(inboxes: &[Inbox], mut accepted: Accepted) -> Result<(), Closed> {
    loop {
        let running = inboxes.iter().filter(|inbox| !inbox.sender.is_closed());
        let inbox = running.min_by_key(|inbox| inbox.open.load(Ordering::Relaxed)).ok_or(Closed)?;
        inbox.open.fetch_add(1, Ordering::Relaxed);
        match inbox.sender.send(accepted).await {
            Ok(()) => return Ok(()),
            Err(returned) => accepted = returned.0,
        }
    }
}

/// A refusal under way; their number is bounded.
struct Refusing(Arc<AtomicUsize>);

impl Refusing {
    fn begin(count: &Arc<AtomicUsize>, max: usize) -> Option<Refusing> {
        let more = |n: usize| (n < max).then_some(n + 1);
        count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).ok().map(|_| Refusing(count.clone()))
    }
}

impl Drop for Refusing {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests;
