//! CONNECT: the authority is fixed for the life of the tunnel, and what is inside is looked at.
//!
//! Plain HTTP inside is served like any other request (Node's fetch does this for http:// URLs). TLS is opened where a CA
//! and the place's route say so (`intercept`), and its inside is served; else it is relayed untouched, and so is whatever
//! else goes to a place that no route names. Holds: no byte inside a tunnel reaches another authority; a relay begins on a
//! connection that stood before CONNECT was answered; a tunnel has a place below `limits.tunnels`, of which one
//! caller leaves some to others. A refused CONNECT ends its
//! connection (over HTTP/2 its stream), and nothing that was sent after it is read as a request (RFC 9931 §5).

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
use super::caller::Proven;
use super::downstream;
use super::error::{Fault, ProxyError};
use super::io::{Activity, Stream, Watched};
use super::peer::{Peer, Tunnelled};
use super::report::{Report, ResponseReport};
use super::target::{self, Target};
use super::upstream::Dialed;
use super::worker::Worker;
use super::{caller, exchange};
use crate::gate::Permit;
use crate::model::connection::Connection;
use crate::model::origin::{Origin, Scheme};
use crate::router::CallerId;
use crate::snapshot::Snapshot;
use crate::tasks::{Phase, PhaseWatch};
use crate::tls::authority::Authority;
pub use relay::{Silence, relay};

/// The first byte of a TLS record that holds a ClientHello (RFC 8446 §5.1).
const TLS_HANDSHAKE: u8 = 0x16;
/// What is discarded of that which was sent early into a tunnel that is refused.
const EARLY_BYTES_MAX: usize = 256 * 1024;
/// For how long nothing may move in a relayed tunnel once a drain has begun: it may be a kept connection, or an exchange.
const DRAIN_SILENCE_MAX: Duration = Duration::from_secs(2);

/// Opens a tunnel for a CONNECT, or refuses it.
pub async fn open(
    worker: Rc<Worker>,
    peer: Rc<Peer>,
    mut request: Request<Incoming>,
) -> Response<ResponseBody<ResponseReport>> {
    let (tasks, upgrade) = (worker.shared.tasks.clone(), hyper::upgrade::on(&mut request));
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
            peer.activity.presence().prove();
            tasks.spawn_local(serve(worker, peer, upgrade, admitted));
            report.own_answer(StatusCode::OK)
        }
    }
}

/// Closes the connection of a refused CONNECT once its response is written, in a way that lets the caller read it. Over
/// HTTP/2 there is nothing to do: the stream has ended.
async fn close_refused(upgrade: OnUpgrade, peer: Rc<Peer>) {
    if let Ok(upgraded) = upgrade.await {
        downstream::say_last(&mut TokioIo::new(upgraded), &[], EARLY_BYTES_MAX).await;
    }
    drop(peer);
}

/// A tunnel that may be opened.
struct Admitted {
    tunnelled: Tunnelled,
    /// Some route names host and port: what is not TLS is served.
    matched: bool,
    tls: Tls,
    place: Permit,
}

/// What becomes of TLS inside a tunnel.
enum Tls {
    Open(Arc<Authority>),
    /// To whom bytes are relayed, others too where no route names the place.
    Relay(Dialed),
    /// Routes name the place, but the caller has none for https.
    Refuse,
}

impl Tls {
    /// Where a tunnel leads that nobody looks into.
    fn server(&self, matched: bool) -> Option<&Dialed> {
        match self {
            Tls::Relay(upstream) if !matched => Some(upstream),
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
        let why = "CONNECT has no body; send neither Content-Length nor Transfer-Encoding with it";
        return Err(ProxyError::BadRequestTarget(why).into());
    }
    let Target::Connect(host, port) = target::parse(&head).map_err(ProxyError::BadRequestTarget)? else {
        return Err(ProxyError::BadRequestTarget("CONNECT takes host:port").into());
    };
    let caller = caller::identify(&snapshot.callers, &peer.arrival, &head.headers, "proxy-authorization")
        .map_err(|_| ProxyError::CallerUnknown { mount: false })?;
    report.caller(caller.and_then(|id| snapshot.callers.name(id)));
    let origin = |scheme| Origin { scheme, host: host.clone(), port };
    let named = |scheme| snapshot.router.best_route(&origin(scheme), caller);
    let (secure, plain) = (named(Scheme::Https), named(Scheme::Http));
    let matched = secure.or(plain).is_some();
    if !matched {
        snapshot.egress.permit_unmatched(port).map_err(ProxyError::EgressDenied)?;
    }
    let turn = peer.arrival.from.turn(caller.and_then(|id| snapshot.callers.name(id)));
    let place = worker.shared.tunnel(&snapshot.limits, &turn)?;
    let asked = origin(Scheme::Https);
    report.destination(Some(&asked));
    let intercepted = secure.is_some_and(|bound| bound.route.intercept);
    let tls = match &snapshot.authority {
        Some(authority) if intercepted => Tls::Open(authority.clone()),
        _ if matched && secure.is_none() => Tls::Refuse,
        _ => match usable(&snapshot, &asked, caller) {
            Ok(()) => {
                let started = Instant::now();
                let reached = worker.pool.dial_tunnel(&snapshot, &asked, &turn).await;
                report.waited(started.elapsed());
                Tls::Relay(reached?)
            }
            Err(_) if expects_http(&snapshot, &origin(Scheme::Http), caller) => Tls::Refuse,
            Err((error, connection)) => {
                report.connection(connection);
                return Err(error.into());
            }
        },
    };
    let caller = caller.and_then(|id| snapshot.callers.get(id)).map(Proven::of);
    let tunnelled = Tunnelled { scheme: Scheme::Http, host, port, caller, misnamed: false, over: Notify::new() };
    Ok(Admitted { tunnelled, matched, tls, place })
}

/// May the caller use one of the routes of a place, if there are any? Nobody looks into what is relayed, so it is refused as
/// each request would be.
fn usable<'s>(
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

/// May plain HTTP be what comes? It is served, so whatever is refused is refused inside, in words that its client reads.
fn expects_http(snapshot: &Snapshot, origin: &Origin, caller: Option<CallerId>) -> bool {
    let mut routes = snapshot.router.routes_for(origin, caller);
    routes.any(|(bound, permitted)| !bound.route.tls.upgrade || permitted && bound.inactive().is_none())
}

async fn serve(worker: Rc<Worker>, peer: Rc<Peer>, upgrade: OnUpgrade, admitted: Admitted) {
    let Ok(upgraded) = upgrade.await else { return };
    // Inside HTTP/2 it is the connection that goes on, and must not look idle.
    let serving = peer.activity.begin();
    let (mut io, mut first) = match upgraded.downcast::<TokioIo<Watched>>() {
        Ok(parts) => (parts.io.into_inner(), BytesMut::from(&parts.read_buf[..])),
        Err(upgraded) => (Watched::inside(Stream::Tunnel(TokioIo::new(upgraded)), &peer.activity), BytesMut::new()),
    };
    let Admitted { tunnelled, matched, tls, place } = admitted;
    let timeouts = worker.snapshot().timeouts.clone();
    let look = look(&mut io, &mut first, tls.server(matched));
    let mut drain = worker.shared.tasks.watch();
    let inside = tokio::select! {
        inside = timeout(timeouts.client_head, look) => inside.unwrap_or(Inside::Other),
        () = drain.reached(Phase::Drain) => return,
    };
    let io = io.again(first.freeze());
    match (inside, tls) {
        (Inside::Http, tls) => {
            // The pool sends what is served; a server that was dialled for a relay is let go.
            drop(tls);
            served(worker, &peer, io, tunnelled).await;
        }
        (Inside::Tls, Tls::Open(authority)) => {
            let opened = tokio::select! {
                opened = intercept::open(&worker, &authority, io, &tunnelled.host) => opened,
                () = drain.reached(Phase::Drain) => return,
            };
            let Some((io, misnamed)) = opened else { return };
            served(worker, &peer, io, Tunnelled { scheme: Scheme::Https, misnamed, ..tunnelled }).await;
        }
        (Inside::Tls, Tls::Relay(upstream)) => relayed(io, upstream, &tunnelled, timeouts.idle, drain).await,
        (Inside::Other, Tls::Relay(upstream)) if !matched => {
            relayed(io, upstream, &tunnelled, timeouts.idle, drain).await;
        }
        (Inside::Tls, Tls::Refuse) => {
            tracing::warn!(host = %tunnelled.host, port = tunnelled.port,
                "a tunnel was closed: TLS inside, but what the caller may use of this host and port is for http");
        }
        (Inside::Other, _) => {}
    }
    drop((place, serving));
}

/// Requests inside a tunnel, as on any other connection.
async fn served(worker: Rc<Worker>, peer: &Peer, io: Watched, tunnelled: Tunnelled) {
    let (activity, occupancy) = (Activity::new(io.watch.clone()), peer.occupancy.clone());
    let inside = Peer { arrival: peer.arrival.clone(), activity, tunnel: Some(tunnelled), occupancy };
    Box::pin(downstream::serve(worker, io, Rc::new(inside))).await;
}

async fn relayed(
    mut downstream: Watched,
    mut upstream: Dialed,
    tunnelled: &Tunnelled,
    idle: Duration,
    drain: PhaseWatch,
) {
    let silence = Silence { idle, draining: DRAIN_SILENCE_MAX };
    let moved = relay(&mut downstream, &mut upstream, silence, drain).await;
    if moved.up_is_broken() {
        upstream.set_resets();
    }
    if moved.down_is_broken()
        && let Some(socket) = downstream.own_socket()
    {
        socket.set_resets(true);
    }
    let (up_bytes, down_bytes) = (moved.up_bytes(), moved.down_bytes());
    tracing::debug!(host = %tunnelled.host, port = tunnelled.port, up_bytes, down_bytes, "a tunnel ended");
}

/// What a caller sends first into its tunnel.
#[derive(Debug, PartialEq, Eq)]
enum Inside {
    Tls,
    Http,
    /// Neither, or nothing before the server speaks.
    Other,
}

/// Reads until it is known what is inside. With `server`, a tunnel to a place that no route names: only what begins like a
/// request is HTTP, and a server that speaks first is not made to wait.
async fn look(io: &mut Watched, first: &mut BytesMut, server: Option<&Dialed>) -> Inside {
    loop {
        let known = match first.first() {
            None => None,
            Some(&TLS_HANDSHAKE) => Some(Inside::Tls),
            Some(_) if server.is_none() => Some(Inside::Http),
            Some(_) => begins_a_request(first).map(|yes| if yes { Inside::Http } else { Inside::Other }),
        };
        if let Some(known) = known {
            return known;
        }
        let spoken = async {
            match server {
                Some(server) => server.readable().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            read = io.read_buf(first) => if !matches!(read, Ok(1..)) {
                return Inside::Other;
            },
            () = spoken => return Inside::Other,
        }
    }
}

/// `None`: too little of it is there.
fn begins_a_request(bytes: &[u8]) -> Option<bool> {
    const METHODS: [&[u8]; 8] = [b"GET ", b"HEAD ", b"POST ", b"PUT ", b"PATCH ", b"DELETE ", b"OPTIONS ", b"TRACE "];
    let mut open = false;
    for method in METHODS {
        if bytes.starts_with(method) {
            return Some(true);
        }
        open |= method.starts_with(bytes);
    }
    (!open).then_some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_told_from_other_bytes_by_its_method() {
        for (bytes, expected) in [
            ("GET / HTTP/1.1", Some(true)),
            ("OPTIONS *", Some(true)),
            ("PO", None),
            ("P", None),
            ("SSH-2.0-x", Some(false)),
            ("PING\r\n", Some(false)),
            ("get / HTTP/1.1", Some(false)),
        ] {
            assert_eq!(begins_a_request(bytes.as_bytes()), expected, "{bytes}");
        }
    }
}
