//! One request and its response: target, caller, route, token, inject, send, at most one replay.
//!
//! Invariants: one snapshot serves the whole request; a request without a token never causes a refresh; a request is
//! sent twice only if the upstream rejected its token, or closed a reused connection without a response to a request
//! that is safe to retry.
//! Not here: the deciders it calls (`target`, `caller`, `headers`, `inject`) and the error responses (`error`).
//! Metrics: `keybearer_request_overhead_seconds`, `keybearer_token_wait_seconds`, `keybearer_injections_total`,
//! `keybearer_replays_total`, `keybearer_stripped_total`.

mod send;
mod tokens;
mod forward;

use std::rc::Rc;

use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::{Body, Incoming};
use hyper::upgrade::OnUpgrade;

use super::arrival::Addressee;
use super::body::{Received, RequestSource, ResponseBody, UpstreamBody};
use super::caller;
use super::error::{Fault, ProxyError};
use super::headers;
use super::io::Upload;
use super::peer::Peer;
use super::report::{Report, ResponseReport};
use super::target::{self, Target};
use super::upgrade::{self, WebSocketRequest, WebSocketTunnel};
use super::upstream::{Checkout, CheckoutContext, Destination, Protocol};
use super::worker::Worker;
use crate::dial::OwnListener;
use crate::gate::{Permit, Turn};
use crate::router::{CallerId, Found};
use crate::snapshot::Snapshot;
use forward::{AMBIGUOUS_PATH, Forward, target_inside};
use tokens::TokenOwner;

/// Serves one request. Every outcome is a response.
pub async fn serve(
    worker: Rc<Worker>,
    peer: Rc<Peer>,
    request: Request<Incoming>,
) -> Response<ResponseBody<ResponseReport>> {
    let mut report = Report::begin(&worker, &peer, &request);
    let (head, incoming) = request.into_parts();
    let incoming = Received::new(incoming, head.version);
    let upload = (!incoming.is_end_stream()).then(|| peer.activity.upload());
    let snapshot = worker.snapshot();
    let mut exchange = Exchange {
        worker: &worker,
        snapshot: &snapshot,
        peer: &peer,
        report: &mut report,
        turn: peer.arrival.from.turn(None),
        owner: TokenOwner::default(),
        upgrade: None,
    };
    match exchange.run(head, incoming, upload).await {
        Ok(Served::Upstream(response, checkout)) => {
            report.upstream_response(response, checkout, snapshot.timeouts.idle)
        }
        Ok(Served::Upgraded(head, tunnel)) => {
            let drain = worker.state.tasks.watch();
            worker.state.tasks.spawn_local(tunnel.relay(peer, snapshot.timeouts.idle, drain));
            report.upgraded(head)
        }
        Ok(Served::Local(status)) => report.own_response(status),
        Err(fault) => report.error(fault),
    }
}

enum Served {
    Upstream(Response<UpstreamBody>, Checkout),
    /// The upstream has switched to WebSocket.
    Upgraded(Response<()>, WebSocketTunnel),
    /// Max-Forwards is exhausted; the proxy itself responds.
    Local(StatusCode),
}

struct Exchange<'a> {
    worker: &'a Worker,
    snapshot: &'a Snapshot,
    peer: &'a Peer,
    report: &'a mut Report,
    /// The queue in which the request waits for its upstream.
    turn: Turn,
    /// Selects the token of connections that have more than one.
    owner: TokenOwner,
    /// The request for WebSocket, with its tunnel permit.
    upgrade: Option<(WebSocketRequest, Permit)>,
}

impl<'a> Exchange<'a> {
    async fn run(&mut self, mut head: Parts, incoming: Received, upload: Option<Upload>) -> Result<Served, Fault> {
        let (target, caller) = self.admit(&head)?;
        self.turn = self.peer.arrival.from.turn(caller.and_then(|id| self.snapshot.callers.name(id)));
        let mut forward = self.route(target, &head, caller)?;
        if headers::decrement_max_forwards(&head.method, &mut head.headers) {
            return Ok(Served::Local(StatusCode::OK));
        }
        self.resolve_owner(&forward, &mut head.headers, caller)?;
        self.strip(&mut forward, &mut head.headers);
        let tokens = self.tokens(&mut forward, &mut head.headers).await?;
        let injected = tokens.iter().any(Option::is_some);
        self.report.set_injected(injected);
        let host = HeaderValue::try_from(forward.destination.origin.authority())
            .map_err(|_| ProxyError::BadRequestTarget("the host is not valid"))?;
        let upgrade = upgrade::take_websocket_request(&mut head);
        forward.trailers = headers::accepts_trailers(&head.headers);
        forward.destination.protocol = match &upgrade {
            Some(_) => Protocol::WebSocket,
            None if headers::is_grpc(&head.headers) => Protocol::Http2,
            None => Protocol::Any,
        };
        headers::rewrite_request(&mut head.headers, host, self.worker.state.via.of(head.version));
        if let Some(websocket) = upgrade {
            let permit = self.worker.state.tunnel_permit(&self.snapshot.limits, &self.turn)?;
            upgrade::set_upgrade_fields(&mut head.headers);
            self.upgrade = Some((websocket, permit));
        }
        let replay = if injected { self.snapshot.limits.replay_body_bytes } else { 0 };
        let source = RequestSource::new(incoming, replay, forward.reserved(), upload);
        if matches!(head.method, Method::GET | Method::HEAD) {
            source.detect_empty();
        }
        let mut first = self.send(&forward, &head, &tokens, &source).await?;
        match forward.bound {
            Some(bound) if injected && self.is_rejected(bound, &tokens, &mut first.0).await => {
                Box::pin(self.replay(first, tokens, bound, &forward, &head, &source)).await
            }
            Some(bound) if injected => {
                self.accept(bound, &tokens);
                self.finish(first.0, first.1)
            }
            _ => self.finish(first.0, first.1),
        }
    }

    fn checkout_context<'w>(&'w self, destination: &'w Destination) -> CheckoutContext<'w> {
        let caller = self.peer.activity.presence();
        CheckoutContext { snapshot: self.snapshot, destination, turn: &self.turn, caller }
    }

    /// Turns the upstream's response into the outcome: a response or an upgrade.
    fn finish(&mut self, mut response: Response<UpstreamBody>, checkout: Checkout) -> Result<Served, Fault> {
        let status = response.status();
        if status != StatusCode::SWITCHING_PROTOCOLS {
            if status.is_success() && self.upgrade.as_ref().is_some_and(|(websocket, _)| websocket.is_extended_connect)
            {
                let why = format!(
                    "status {} instead of 101, which the caller would mistake for an open WebSocket",
                    status.as_u16()
                );
                return Err(ProxyError::UpstreamProtocol.because(why));
            }
            return Ok(Served::Upstream(response, checkout));
        }
        let upstream = response.extensions_mut().remove::<OnUpgrade>();
        Ok(match (self.upgrade.take(), upstream) {
            (Some((websocket, permit)), Some(upstream)) => {
                let tunnel = WebSocketTunnel { downstream: websocket.downstream, upstream, permit, checkout };
                Served::Upgraded(response.map(|_| ()), tunnel)
            }
            _ => Served::Upstream(response, checkout),
        })
    }

    /// Parses the target and identifies the caller.
    fn admit(&mut self, head: &Parts) -> Result<(Target, Option<CallerId>), Fault> {
        if !headers::is_framing_plain(&head.headers) {
            return Err(ProxyError::BadRequestTarget("the only supported Transfer-Encoding is `chunked`").into());
        }
        let target = target::parse(head).map_err(ProxyError::BadRequestTarget)?;
        let callers = &self.snapshot.callers;
        let looped = headers::is_loop(&head.headers, &self.worker.state.via);
        if let Some(tunnel) = &self.peer.tunnel {
            let caller = caller::identify_again(callers, &self.peer.arrival, tunnel.caller.as_ref()).map_err(|_| {
                // Closes the tunnel; the caller must authenticate for the next one.
                tunnel.caller_removed.notify_one();
                let why = "the caller that opened the tunnel has been changed or removed in the configuration";
                ProxyError::CallerUnknown { mount: false }.because(why)
            })?;
            self.report.set_caller(caller.and_then(|id| callers.name(id)));
            if looped {
                return Err(ProxyError::LoopDetected.into());
            }
            return Ok((target_inside(tunnel, target)?, caller));
        }
        let target = self.resolve_addressee(target, head)?;
        let mount = matches!(target, Target::Origin(..));
        let field = if mount { "keybearer-authorization" } else { "proxy-authorization" };
        let caller = caller::identify(callers, &self.peer.arrival, &head.headers, field)
            .map_err(|_| ProxyError::CallerUnknown { mount })?;
        self.report.set_caller(caller.and_then(|id| callers.name(id)));
        if looped {
            return Err(ProxyError::LoopDetected.into());
        }
        Ok((target, caller))
    }

    /// Decides whether an HTTP/2 request is for a host or for a mount, because both have a scheme and an authority. It
    /// is for the host if a route names it; otherwise for a mount if the authority is that of the listener that
    /// received the request.
    fn resolve_addressee(&mut self, target: Target, head: &Parts) -> Result<Target, ProxyError> {
        let (origin, path) = match target {
            Target::Absolute(origin, path) if head.version == Version::HTTP_2 => (origin, path),
            other => return Ok(other),
        };
        let Snapshot { router, dialer, .. } = self.snapshot;
        if router.best_route(&origin, None).is_some() {
            return Ok(Target::Absolute(origin, path));
        }
        // No mount matches `*`.
        let server_wide = path.as_str() == "*";
        let is_for_us = match dialer.own_listener(&origin, self.peer.arrival.local) {
            OwnListener::Another => false,
            _ if head.headers.contains_key("keybearer-authorization") => true,
            OwnListener::This => true,
            OwnListener::No => false,
            OwnListener::Unknown => match self.peer.arrival.addressee(&origin) {
                Addressee::Listener => true,
                Addressee::MaybeListener => {
                    let found = || router.find_mount(path.path(), &head.method, None, None).0;
                    !server_wide && !matches!(found(), Found::Unmatched)
                }
                Addressee::Other => false,
            },
        };
        match is_for_us {
            false => Ok(Target::Absolute(origin, path)),
            true if server_wide => Err(ProxyError::BadRequestTarget(target::SERVER_WIDE)),
            true => {
                self.report.set_mount(&path);
                Ok(Target::Origin(None, path))
            }
        }
    }

    fn route(&mut self, target: Target, head: &Parts, caller: Option<CallerId>) -> Result<Forward<'a>, Fault> {
        let (router, method) = (&self.snapshot.router, &head.method);
        let named = caller::named_connection(&head.headers)?;
        let (found, origin, rest) = match &target {
            Target::Absolute(origin, path) => {
                (router.find(origin, path.path(), method, caller, named), Some(origin), path.path())
            }
            Target::Origin(_, path) => {
                let (found, rest) = router.find_mount(path.path(), method, caller, named);
                (found, None, rest)
            }
            Target::Connect(..) => return Err(ProxyError::BadRequestTarget("a tunnel inside a tunnel").into()),
        };
        self.report.set_destination(origin);
        if *method == Method::TRACE && !matches!(found, Found::Unmatched) {
            return Err(ProxyError::MethodRefused.into());
        }
        let bound = match found {
            Found::Route(bound) => bound,
            Found::NotAllowed(bound) => {
                self.report.set_connection(&bound.connection);
                return Err(ProxyError::CallerNotAllowed.into());
            }
            Found::NoRoute => return Err(ProxyError::NoRoute.into()),
            Found::AmbiguousPath => {
                return Err(ProxyError::BadRequestTarget(AMBIGUOUS_PATH).into());
            }
            Found::Unmatched => return self.unmatched(target),
        };
        self.report.set_connection(&bound.connection);
        if let Some(inactive) = bound.inactive() {
            self.report.set_connection(inactive);
            return Err(ProxyError::ConnectionInactive.into());
        }
        Forward::by_route(bound, &target, rest)
    }

    /// Forwards to a host that no route names, if egress permits it.
    fn unmatched(&self, target: Target) -> Result<Forward<'a>, Fault> {
        let Target::Absolute(origin, path) = target else { return Err(ProxyError::NoMount.into()) };
        if self.snapshot.is_refused(&origin) {
            return Err(ProxyError::NoRoute.into());
        }
        self.snapshot.egress.permit_unmatched(origin.port).map_err(ProxyError::EgressDenied)?;
        let (tls, protocol) = (self.snapshot.plain.clone(), Protocol::Any);
        let dialer = self.snapshot.dialer.clone();
        let destination = Destination { origin, tls, server_name: None, protocol, dialer };
        Ok(Forward { bound: None, destination, path, trailers: false })
    }
}
