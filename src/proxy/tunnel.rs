//! CONNECT: fixes the authority for the life of the tunnel, and detects the protocol inside.
//!
//! Cleartext HTTP inside is served like any other request (Node's fetch tunnels http:// URLs). TLS is intercepted where
//! a CA is configured and the route asks for it (`intercept`), and the requests inside are served. Other TLS is relayed
//! untouched, and so is any protocol to an authority that no route names.
//!
//! Invariants: no byte inside a tunnel reaches another authority; the upstream connection of a relay is established
//! before CONNECT gets its 200; a tunnel holds a permit under `limits.tunnels`, which one caller cannot exhaust. A
//! refused CONNECT closes its connection (over HTTP/2 its stream), and no byte sent after it is parsed as a request
//! (RFC 9931 §5).

mod intercept;
mod relay;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncReadExt;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::body::ResponseBody;
use super::caller::AuthenticatedCaller;
use super::downstream;
use super::error::{Fault, ProxyError};
use super::io::{Activity, Stream, Watched};
use super::peer::{Peer, TunnelContext};
use super::report::{Report, ResponseReport};
use super::target::{self, Target};
use super::upstream::{Destination, Dialled, Protocol};
use super::worker::Worker;
use super::{caller, exchange};
use crate::gate::Permit;
use crate::model::connection::Connection;
use crate::model::origin::{Origin, Scheme};
use crate::router::CallerId;
use crate::snapshot::Snapshot;
use crate::tasks::{Phase, PhaseWatch};
use crate::tls::authority::Authority;
pub use relay::{IdleTimeouts, relay};

/// The first byte of a TLS record that holds a ClientHello (RFC 8446 §5.1).
const TLS_HANDSHAKE: u8 = 0x16;
/// Bytes read and discarded that a caller sent into a tunnel before its refusal.
const EARLY_BYTES_MAX: usize = 256 * 1024;
/// Idle timeout of a relayed tunnel during a drain, when an idle keep-alive connection cannot be told from an exchange
/// in progress.
const DRAIN_IDLE_TIMEOUT: Duration = Duration::from_secs(2);

/// Opens a tunnel for a CONNECT, or refuses it.
pub async fn open(
    worker: Rc<Worker>,
    peer: Rc<Peer>,
    mut request: Request<Incoming>,
) -> Response<ResponseBody<ResponseReport>> {
    let (tasks, upgrade) = (worker.state.tasks.clone(), hyper::upgrade::on(&mut request));
    if peer.tunnel.is_some() {
        tasks.spawn_local(close_refused(upgrade, peer.clone()));
        return exchange::serve(worker, peer, request).await;
    }
    let mut report = Report::begin(&worker, &peer, &request);
    match Box::pin(admit(&worker, &peer, request, &mut report)).await {
        Err(fault) => {
            tasks.spawn_local(close_refused(upgrade, peer));
            report.error(fault)
        }
        Ok(admitted) => {
            peer.activity.presence().mark_proven();
            tasks.spawn_local(serve(worker, peer, upgrade, admitted));
            report.own_response(StatusCode::OK)
        }
    }
}

/// Closes the connection of a refused CONNECT, with a lingering close, once its response is written. No effect over
/// HTTP/2, where the stream has ended.
async fn close_refused(upgrade: OnUpgrade, peer: Rc<Peer>) {
    if let Ok(upgraded) = upgrade.await {
        downstream::close_lingering(&mut TokioIo::new(upgraded), &[], EARLY_BYTES_MAX).await;
    }
    drop(peer);
}

/// A tunnel that may be opened.
struct Admitted {
    context: TunnelContext,
    /// A route names the authority: bytes that are not TLS are served as HTTP.
    matched: bool,
    tls: TlsAction,
    permit: Permit,
}

/// What to do with TLS inside a tunnel.
enum TlsAction {
    Intercept(Arc<Authority>),
    /// Relays to this connection; if no route names the authority, any other protocol as well.
    Relay(Dialled),
    /// Routes name the authority, but the caller may use none for https.
    Refuse,
}

impl TlsAction {
    /// The upstream of a tunnel that may be relayed whatever the protocol inside.
    fn blind_upstream(&self, matched: bool) -> Option<&Dialled> {
        match self {
            TlsAction::Relay(upstream) if !matched => Some(upstream),
            _ => None,
        }
    }
}

async fn admit(
    worker: &Worker,
    peer: &Peer,
    request: Request<Incoming>,
    report: &mut Report,
) -> Result<Admitted, Fault> {
    let snapshot = worker.snapshot();
    let (head, _) = request.into_parts();
    if head.headers.contains_key(CONTENT_LENGTH) || head.headers.contains_key(TRANSFER_ENCODING) {
        let why = "CONNECT has no body; send it without Content-Length and Transfer-Encoding";
        return Err(ProxyError::BadRequestTarget(why).into());
    }
    let Target::Connect(host, port) = target::parse(&head).map_err(ProxyError::BadRequestTarget)? else {
        return Err(ProxyError::BadRequestTarget("the target of CONNECT must be host:port").into());
    };
    let caller = caller::identify(&snapshot.callers, &peer.arrival, &head.headers, "proxy-authorization")
        .map_err(|_| ProxyError::CallerUnknown { mount: false })?;
    report.set_caller(caller.and_then(|id| snapshot.callers.name(id)));
    let origin = |scheme| Origin { scheme, host: host.clone(), port };
    let named = |scheme| snapshot.router.best_route(&origin(scheme), caller);
    let (secure, plain) = (named(Scheme::Https), named(Scheme::Http));
    let matched = secure.or(plain).is_some();
    if !matched {
        if snapshot.is_refused(&origin(Scheme::Https)) {
            return Err(ProxyError::NoRoute.into());
        }
        snapshot.egress.permit_unmatched(port).map_err(ProxyError::EgressDenied)?;
    }
    let turn = peer.arrival.from.turn(caller.and_then(|id| snapshot.callers.name(id)));
    let permit = worker.state.tunnel_permit(&snapshot.limits, &turn)?;
    let requested = origin(Scheme::Https);
    report.set_destination(Some(&requested));
    let intercepted = secure.is_some_and(|bound| bound.route.intercept);
    let tls = match &snapshot.authority {
        Some(authority) if intercepted => TlsAction::Intercept(authority.clone()),
        _ if matched && secure.is_none() => TlsAction::Refuse,
        _ => match check_access(&snapshot, &requested, caller) {
            Ok(()) => {
                let started = Instant::now();
                let dialer = secure.map_or(&snapshot.dialer, |bound| &bound.dialer).clone();
                let (origin, tls, protocol) = (requested.clone(), snapshot.plain.clone(), Protocol::Any);
                let destination = Destination { origin, tls, server_name: None, protocol, dialer };
                let dialled = worker.pool.dial_tunnel(&snapshot, &destination, &turn).await;
                report.add_wait(started.elapsed());
                TlsAction::Relay(dialled?)
            }
            Err(_) if may_carry_http(&snapshot, &origin(Scheme::Http), caller) => TlsAction::Refuse,
            Err((error, connection)) => {
                report.set_connection(connection);
                return Err(error.into());
            }
        },
    };
    let caller = caller.and_then(|id| snapshot.callers.get(id)).map(AuthenticatedCaller::of);
    let caller_removed = Notify::new();
    let context = TunnelContext { scheme: Scheme::Http, host, port, caller, sni_mismatch: false, caller_removed };
    Ok(Admitted { context, matched, tls, permit })
}

/// Checks that the caller may use one of the routes of this origin, if it has any. A relay is not inspected, so the
/// tunnel is refused for the reason that each request would be.
fn check_access<'s>(
    snapshot: &'s Snapshot,
    origin: &Origin,
    caller: Option<CallerId>,
) -> Result<(), (ProxyError, &'s Arc<Connection>)> {
    let mut refused = Ok(());
    for (bound, permitted) in snapshot.router.routes_for(origin, caller) {
        match bound.inactive() {
            None if permitted => return Ok(()),
            Some(inactive) if permitted => refused = Err((ProxyError::ConnectionInactive, inactive)),
            _ if refused.is_ok() => refused = Err((ProxyError::CallerNotAllowed, &bound.connection)),
            _ => {}
        }
    }
    refused
}

/// True if the tunnel may carry cleartext HTTP. Then it is opened, and each request inside gets its own error response,
/// which the caller can read.
fn may_carry_http(snapshot: &Snapshot, origin: &Origin, caller: Option<CallerId>) -> bool {
    let mut routes = snapshot.router.routes_for(origin, caller);
    routes.any(|(bound, permitted)| !bound.route.tls.upgrade || permitted && bound.inactive().is_none())
}

async fn serve(worker: Rc<Worker>, peer: Rc<Peer>, upgrade: OnUpgrade, admitted: Admitted) {
    let Ok(upgraded) = upgrade.await else { return };
    // Inside HTTP/2 the connection stays open, and must not count as idle.
    let serving = peer.activity.begin();
    let (mut io, mut first) = match upgraded.downcast::<TokioIo<Watched>>() {
        Ok(parts) => (parts.io.into_inner(), BytesMut::from(&parts.read_buf[..])),
        Err(upgraded) => (Watched::inside(Stream::Tunnel(TokioIo::new(upgraded)), &peer.activity), BytesMut::new()),
    };
    let Admitted { context, matched, tls, permit } = admitted;
    let timeouts = worker.snapshot().timeouts.clone();
    let detection = detect_protocol(&mut io, &mut first, tls.blind_upstream(matched));
    let mut drain = worker.state.tasks.watch();
    let protocol = tokio::select! {
        detected = timeout(timeouts.client_head, detection) => detected.unwrap_or(InnerProtocol::Other),
        () = drain.reached(Phase::Drain) => return,
    };
    let io = io.rewatched(first.freeze());
    match (protocol, tls) {
        (InnerProtocol::Http, tls) => {
            // Requests use the pool; closes the connection that was dialled for a relay.
            drop(tls);
            serve_inside(worker, &peer, io, context).await;
        }
        (InnerProtocol::Tls, TlsAction::Intercept(authority)) => {
            let accepted = tokio::select! {
                accepted = intercept::accept(&worker, &authority, io, &context.host) => accepted,
                () = drain.reached(Phase::Drain) => return,
            };
            let Some((io, sni_mismatch)) = accepted else { return };
            serve_inside(worker, &peer, io, TunnelContext { scheme: Scheme::Https, sni_mismatch, ..context }).await;
        }
        (InnerProtocol::Tls, TlsAction::Relay(upstream)) => {
            relay_inside(io, upstream, &context, timeouts.idle, drain).await;
        }
        (InnerProtocol::Other, TlsAction::Relay(upstream)) if !matched => {
            relay_inside(io, upstream, &context, timeouts.idle, drain).await;
        }
        (InnerProtocol::Tls, TlsAction::Refuse) => {
            tracing::warn!(host = %context.host, port = context.port,
                "tunnel closed: TLS inside, but the caller may use only http routes of this host and port");
        }
        (InnerProtocol::Other, _) => {}
    }
    drop((permit, serving));
}

/// Serves the requests inside a tunnel as on any other connection.
async fn serve_inside(worker: Rc<Worker>, peer: &Peer, io: Watched, context: TunnelContext) {
    let (activity, guard) = (Activity::new(io.watch.clone()), peer.guard.clone());
    let inside = Peer { arrival: peer.arrival.clone(), activity, tunnel: Some(context), guard };
    Box::pin(downstream::serve(worker, io, Rc::new(inside))).await;
}

async fn relay_inside(
    mut downstream: Watched,
    mut upstream: Dialled,
    context: &TunnelContext,
    idle: Duration,
    drain: PhaseWatch,
) {
    let timeouts = IdleTimeouts { idle, draining: DRAIN_IDLE_TIMEOUT };
    let relayed = relay(&mut downstream, &mut upstream, timeouts, drain).await;
    if relayed.up_is_broken() {
        upstream.set_resets();
    }
    if relayed.down_is_broken()
        && let Some(socket) = downstream.own_socket()
    {
        socket.set_resets(true);
    }
    let (up_bytes, down_bytes) = (relayed.up_bytes(), relayed.down_bytes());
    tracing::debug!(host = %context.host, port = context.port, up_bytes, down_bytes, "tunnel closed");
}

/// The protocol inside a tunnel, by the caller's first bytes.
#[derive(Debug, PartialEq, Eq)]
enum InnerProtocol {
    Tls,
    Http,
    /// Neither, or the server speaks first.
    Other,
}

/// Reads until the protocol inside is known. `blind_upstream` is set where no route names the authority: then only
/// bytes that start with an HTTP method are HTTP, and a server that speaks first ends the detection.
async fn detect_protocol(io: &mut Watched, first: &mut BytesMut, blind_upstream: Option<&Dialled>) -> InnerProtocol {
    loop {
        let detected = match first.first() {
            None => None,
            Some(&TLS_HANDSHAKE) => Some(InnerProtocol::Tls),
            Some(_) if blind_upstream.is_none() => Some(InnerProtocol::Http),
            Some(_) => {
                starts_with_method(first).map(|yes| if yes { InnerProtocol::Http } else { InnerProtocol::Other })
            }
        };
        if let Some(detected) = detected {
            return detected;
        }
        let server_speaks = async {
            match blind_upstream {
                Some(upstream) => upstream.readable().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            read = io.read_buf(first) => if !matches!(read, Ok(1..)) {
                return InnerProtocol::Other;
            },
            () = server_speaks => return InnerProtocol::Other,
        }
    }
}

/// `None`: more bytes are needed to decide.
fn starts_with_method(bytes: &[u8]) -> Option<bool> {
    const METHODS: [&[u8]; 8] = [b"GET ", b"HEAD ", b"POST ", b"PUT ", b"PATCH ", b"DELETE ", b"OPTIONS ", b"TRACE "];
    let mut undecided = false;
    for method in METHODS {
        if bytes.starts_with(method) {
            return Some(true);
        }
        undecided |= method.starts_with(bytes);
    }
    (!undecided).then_some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_is_detected_by_its_method() {
        for (bytes, expected) in [
            ("GET / HTTP/1.1", Some(true)),
            ("OPTIONS *", Some(true)),
            ("PO", None),
            ("P", None),
            ("SSH-2.0-x", Some(false)),
            ("PING\r\n", Some(false)),
            ("get / HTTP/1.1", Some(false)),
        ] {
            assert_eq!(starts_with_method(bytes.as_bytes()), expected, "{bytes}");
        }
    }
}
