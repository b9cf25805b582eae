//! Serves a router on a listener of the control plane, over HTTP/1.1, with TLS if the listener has `tls`.
//!
//! Invariants: a TLS handshake and each request head have a timeout; the number of connections is bounded, handshakes
//! included; a handshake uses the certificate in force when it starts.
//! Not here: the routers (`admin`), binding the listeners (`app`).

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::model::Name;
use crate::snapshot::Snapshot;
use crate::tasks::Tasks;

const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Backoff after a failed accept (out of file descriptors), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound listener of the control plane.
pub struct BoundListener {
    pub socket: TcpListener,
    /// `None`: plain HTTP.
    pub tls: Option<TlsInForce>,
}

/// The TLS configuration of a listener; a reload replaces it.
#[derive(Clone)]
pub struct TlsInForce {
    pub listener: Name,
    pub snapshot: Arc<ArcSwap<Snapshot>>,
}

/// Both addresses of a connection to the control plane, and whether it uses TLS.
#[derive(Debug, Clone, Copy)]
pub struct ConnAddrs {
    pub local: SocketAddr,
    pub peer: SocketAddr,
    pub secure: bool,
}

impl ConnAddrs {
    /// Those of the connection that carries `request`.
    pub fn of(request: &axum::extract::Request) -> ConnAddrs {
        let unspecified = SocketAddr::new(IpAddr::from([0, 0, 0, 0]), 0);
        let unknown = ConnAddrs { local: unspecified, peer: unspecified, secure: false };
        request.extensions().get().copied().unwrap_or(unknown)
    }
}

/// Serves `router` on `listener` until shutdown, over at most `connections_max` connections at once.
pub fn serve(tasks: &Tasks, listener: BoundListener, router: Router, connections_max: usize) -> io::Result<()> {
    let BoundListener { socket, tls } = listener;
    socket.set_nonblocking(true)?;
    let socket = tokio::net::TcpListener::from_std(socket)?;
    let permits = Arc::new(Semaphore::new(connections_max));
    let connection_tasks = tasks.clone();
    tasks.spawn("admin", async move {
        loop {
            let Ok(permit) = permits.clone().acquire_owned().await else { return };
            let accepted = socket.accept().await.and_then(|(stream, peer)| Ok((stream.local_addr()?, peer, stream)));
            let Ok((local, peer, stream)) = accepted else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let addrs = ConnAddrs { local, peer, secure: tls.is_some() };
            let (tls, router) = (tls.clone(), router.clone());
            connection_tasks.spawn("admin connection", async move {
                serve_connection(stream, tls, router, addrs).await;
                drop(permit);
            });
        }
    });
    Ok(())
}

async fn serve_connection(stream: TcpStream, tls: Option<TlsInForce>, router: Router, addrs: ConnAddrs) {
    let Some(tls) = tls else { return serve_http(stream, router, addrs).await };
    match tls.handshake(stream).await {
        Ok(stream) => serve_http(stream, router, addrs).await,
        Err(error) => {
            tracing::info!(%error, from = %addrs.peer, listener = %tls.listener, "downstream TLS handshake failed");
        }
    }
}

impl TlsInForce {
    async fn handshake(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let config = self.snapshot.load().listener_tls.get(&self.listener).cloned();
        let config = config.ok_or_else(|| io::Error::other("the listener has no certificate"))?;
        // The control plane speaks HTTP/1.1 alone. The clone shares certificates and session cache.
        let mut config = ServerConfig::clone(&config);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(Arc::new(config)).accept(stream)).await?
    }
}

async fn serve_http(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, router: Router, addrs: ConnAddrs) {
    let service = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(addrs);
        service.call(request)
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "admin connection ended");
    }
}
