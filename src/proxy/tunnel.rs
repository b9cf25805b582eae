//! CONNECT: the authority is fixed for the life of the tunnel, and what is inside is looked at.
//!
//! Plain HTTP inside is served like any other request (Node's fetch does this for http:// URLs); a first byte of TLS closes
//! the tunnel, because nothing could be injected there. Holds: no byte inside a tunnel reaches another authority.

use std::convert::Infallible;
use std::rc::Rc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use super::body::ResponseBody;
use super::downstream;
use super::error::{Fault, ProxyError};
use super::headers;
use super::report::{Answer, Report};
use super::target::{self, Target};
use super::watched::{Activity, Watched};
use super::worker::{Place, Worker};
use super::{Peer, Tunnelled, caller, exchange};
use crate::tasks::Phase;

/// The first byte of a TLS record that holds a ClientHello (RFC 8446 §5.1).
const TLS_HANDSHAKE: u8 = 0x16;

/// Serves a request; a CONNECT opens a tunnel.
pub async fn or_exchange(
    worker: Rc<Worker>,
    peer: Rc<Peer>,
    mut request: Request<Incoming>,
) -> Result<Response<ResponseBody<Answer>>, Infallible> {
    let head_bytes_max = worker.snapshot().limits.head_bytes;
    // What was read so far is at least the head; only where that is too much is the head measured.
    if peer.activity.read_bytes() > head_bytes_max {
        let (line, head) = headers::head_bytes(request.method(), request.uri(), request.headers());
        let error = match () {
            () if line > head_bytes_max => Some(ProxyError::TargetTooLong),
            () if head > head_bytes_max => Some(ProxyError::HeadTooLarge),
            () => None,
        };
        if let Some(error) = error {
            return Ok(Report::begin(&worker, &peer, &request).error(error.into()));
        }
    }
    if request.method() != Method::CONNECT || peer.tunnel.is_some() {
        return Ok(exchange::serve(worker, peer, request).await);
    }
    let mut report = Report::begin(&worker, &peer, &request);
    let upgrade = hyper::upgrade::on(&mut request);
    Ok(match admit(&worker, &peer, request, &mut report) {
        Err(fault) => report.error(fault),
        Ok((tunnelled, place)) => {
            let tasks = worker.shared.tasks.clone();
            tasks.spawn_local(serve(worker, peer, upgrade, tunnelled, place));
            report.own_answer(StatusCode::OK)
        }
    })
}

fn admit(
    worker: &Worker,
    peer: &Peer,
    request: Request<Incoming>,
    report: &mut Report,
) -> Result<(Tunnelled, Place), Fault> {
    let snapshot = worker.snapshot();
    let (head, _) = request.into_parts();
    let Target::Connect(host, port) = target::parse(&head).map_err(ProxyError::BadRequestTarget)? else {
        return Err(ProxyError::BadRequestTarget("CONNECT takes host:port").into());
    };
    let caller = caller::identify(&snapshot.callers, peer.address.ip(), &head.headers, "proxy-authorization")
        .map_err(|_| ProxyError::CallerUnknown { mount: false })?;
    report.caller(caller.and_then(|id| snapshot.callers.name(id)));
    let place = Place::take(&worker.shared.tunnels, snapshot.limits.tunnels)
        .ok_or_else(|| ProxyError::Overloaded.because("limits.tunnels is reached"))?;
    Ok((Tunnelled { host, port, caller }, place))
}

async fn serve(worker: Rc<Worker>, peer: Rc<Peer>, upgrade: OnUpgrade, tunnelled: Tunnelled, place: Place) {
    let Ok(upgraded) = upgrade.await else { return };
    let Ok(parts) = upgraded.downcast::<TokioIo<Watched>>() else { return };
    let mut io = parts.io.into_inner();
    let mut first = parts.read_buf;
    if first.is_empty() {
        let mut byte = [0];
        let patience = worker.snapshot().timeouts.client_head;
        let mut drain = worker.shared.tasks.watch();
        let read = tokio::select! {
            read = timeout(patience, io.read(&mut byte)) => read,
            () = drain.reached(Phase::Drain) => return,
        };
        match read {
            Ok(Ok(1)) => first = Bytes::copy_from_slice(&byte),
            _ => return,
        }
    }
    if first.first() == Some(&TLS_HANDSHAKE) {
        tracing::warn!(host = %tunnelled.host, port = tunnelled.port,
            "a tunnel was closed: TLS inside CONNECT is not served yet; let the client call http://, or use a mount");
        return;
    }
    let io = io.again(first);
    let inside = Peer {
        address: peer.address,
        activity: Activity::new(io.watch.clone()),
        tunnel: Some(tunnelled),
        seat: peer.seat.clone(),
    };
    Box::pin(downstream::serve(worker, io, Rc::new(inside))).await;
    drop(place);
}
