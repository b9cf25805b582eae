//! One request and its answer: target, caller, route, token, inject, send, at most one replay.
//!
//! Not here: the deciders it calls (`target`, `caller`, `headers`, `inject`) and the words of errors (`error`).
//! Holds: one snapshot serves the whole request; a request that carried no token never causes a refresh; a request is
//! sent twice only if the upstream refused its token, or closed a used connection before answering what is safe to repeat.
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
use super::upgrade::{self, Switch, WebSocketRequest};
use super::upstream::{Checkout, CheckoutContext, Destination, Protocol};
use super::worker::Worker;
use crate::dial::OwnListener;
use crate::gate::{Permit, Turn};
use crate::router::{CallerId, Found};
use crate::snapshot::Snapshot;
use forward::{AMBIGUOUS_PATH, Forward, inside};
use tokens::Whose;

/// Serves one request. Whatever happens, there is an answer.
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
        whose: Whose::default(),
        upgrade: None,
    };
    match exchange.run(head, incoming, upload).await {
        Ok(Served::Upstream(response, checkout)) => report.upstream_answer(response, checkout, snapshot.timeouts.idle),
        Ok(Served::Switched(head, switch)) => {
            let drain = worker.shared.tasks.watch();
            worker.shared.tasks.spawn_local(switch.relay(peer, snapshot.timeouts.idle, drain));
            report.switched(head)
        }
        Ok(Served::Here(status)) => report.own_answer(status),
        Err(fault) => report.error(fault),
    }
}

enum Served {
    Upstream(Response<UpstreamBody>, Checkout),
    /// The upstream has agreed to another protocol.
    Switched(Response<()>, Switch),
    /// Answered by the proxy as the last hop that the request allows.
    Here(StatusCode),
}

struct Exchange<'a> {
    worker: &'a Worker,
    snapshot: &'a Snapshot,
    peer: &'a Peer,
    report: &'a mut Report,
    /// In which the request waits for an upstream.
    turn: Turn,
    /// Whose tokens are wanted, of connections that have one for each.
    whose: Whose,
    /// The caller asks for WebSocket; with a place among the tunnels.
    upgrade: Option<(WebSocketRequest, Permit)>,
}

impl<'a> Exchange<'a> {
    async fn run(&mut self, mut head: Parts, incoming: Received, upload: Option<Upload>) -> Result<Served, Fault> {
        let (target, caller) = self.admit(&head)?;
        self.turn = self.peer.arrival.from.turn(caller.and_then(|id| self.snapshot.callers.name(id)));
        let mut forward = self.route(target, &head, caller)?;
        if headers::max_forwards_spent(&head.method, &mut head.headers) {
            return Ok(Served::Here(StatusCode::OK));
        }
        self.whose(&forward, &mut head.headers, caller)?;
        self.strip(&mut forward, &mut head.headers);
        let tokens = self.tokens(&mut forward, &mut head.headers).await?;
        let injected = tokens.iter().any(Option::is_some);
        self.report.injected(injected);
        let host = HeaderValue::try_from(forward.destination.origin.authority())
            .map_err(|_| ProxyError::BadRequestTarget("the host is not valid"))?;
        let upgrade = upgrade::asked(&mut head);
        forward.trailers = headers::takes_trailers(&head.headers);
        forward.destination.protocol = match &upgrade {
            Some(_) => Protocol::WebSocket,
            None if headers::is_grpc(&head.headers) => Protocol::Http2,
            None => Protocol::Any,
        };
        headers::request(&mut head.headers, host, self.worker.shared.via.of(head.version));
        if let Some(asked) = upgrade {
            let shared = &self.worker.shared;
            let place = shared.tunnel(&self.snapshot.limits, &self.turn)?;
            upgrade::ask(&mut head.headers);
            self.upgrade = Some((asked, place));
        }
        let replay = if injected { self.snapshot.limits.replay_body_bytes } else { 0 };
        let source = RequestSource::new(incoming, replay, forward.reserved(), upload);
        if matches!(head.method, Method::GET | Method::HEAD) {
            source.notice_empty();
        }
        let mut first = self.send(&forward, &head, &tokens, &source).await?;
        match forward.bound {
            Some(bound) if injected && self.is_rejected(bound, &tokens, &mut first.0).await => {
                Box::pin(self.replay(first, tokens, bound, &forward, &head, &source)).await
            }
            Some(bound) if injected => {
                self.accept(bound, &tokens);
                self.answered(first.0, first.1)
            }
            _ => self.answered(first.0, first.1),
        }
    }

    fn checkout_context<'w>(&'w self, destination: &'w Destination) -> CheckoutContext<'w> {
        let caller = self.peer.activity.presence();
        CheckoutContext { snapshot: self.snapshot, destination, turn: &self.turn, caller }
    }

    fn answered(&mut self, mut response: Response<UpstreamBody>, checkout: Checkout) -> Result<Served, Fault> {
        let status = response.status();
        if status != StatusCode::SWITCHING_PROTOCOLS {
            if status.is_success() && self.upgrade.as_ref().is_some_and(|(asked, _)| asked.by_connect) {
                let why = format!(
                    "status {} in place of 101, which the caller would take for an open WebSocket",
                    status.as_u16()
                );
                return Err(ProxyError::UpstreamProtocol.because(why));
            }
            return Ok(Served::Upstream(response, checkout));
        }
        let upstream = response.extensions_mut().remove::<OnUpgrade>();
        Ok(match (self.upgrade.take(), upstream) {
            (Some((asked, place)), Some(upstream)) => {
                let switch = Switch { downstream: asked.downstream, upstream, place, checkout };
                Served::Switched(response.map(|_| ()), switch)
            }
            _ => Served::Upstream(response, checkout),
        })
    }

    /// The parsed target and who asks for it.
    fn admit(&mut self, head: &Parts) -> Result<(Target, Option<CallerId>), Fault> {
        if !headers::is_framing_plain(&head.headers) {
            return Err(ProxyError::BadRequestTarget("the Transfer-Encoding is not `chunked` alone").into());
        }
        let target = target::parse(head).map_err(ProxyError::BadRequestTarget)?;
        let callers = &self.snapshot.callers;
        let looped = headers::is_loop(&head.headers, &self.worker.shared.via);
        if let Some(tunnel) = &self.peer.tunnel {
            let caller = caller::identify_again(callers, &self.peer.arrival, tunnel.caller.as_ref()).map_err(|_| {
                // Who opens the next tunnel proves itself anew.
                tunnel.over.notify_one();
                let why = "the caller that opened the tunnel is not configured any more as it was";
                ProxyError::CallerUnknown { mount: false }.because(why)
            })?;
            self.report.caller(caller.and_then(|id| callers.name(id)));
            if looped {
                return Err(ProxyError::LoopDetected.into());
            }
            return Ok((inside(tunnel, target)?, caller));
        }
        let target = self.addressed(target, head)?;
        let mount = matches!(target, Target::Origin(..));
        let field = if mount { "keybearer-authorization" } else { "proxy-authorization" };
        let caller = caller::identify(callers, &self.peer.arrival, &head.headers, field)
            .map_err(|_| ProxyError::CallerUnknown { mount })?;
        self.report.caller(caller.and_then(|id| callers.name(id)));
        if looped {
            return Err(ProxyError::LoopDetected.into());
        }
        Ok((target, caller))
    }

    /// Over HTTP/2 a request to a mount has scheme and authority like one for a host. It is for the host if a route names
    /// that; else for the listener, if the authority is one of the very listener that the request came in by.
    fn addressed(&mut self, target: Target, head: &Parts) -> Result<Target, ProxyError> {
        let (origin, path) = match target {
            Target::Absolute(origin, path) if head.version == Version::HTTP_2 => (origin, path),
            other => return Ok(other),
        };
        let Snapshot { router, dialer, .. } = self.snapshot;
        if router.best_route(&origin, None).is_some() {
            return Ok(Target::Absolute(origin, path));
        }
        // No mount takes `*`.
        let server_wide = path.as_str() == "*";
        let own = match dialer.own_listener(&origin, self.peer.arrival.local) {
            OwnListener::Another => false,
            _ if head.headers.contains_key("keybearer-authorization") => true,
            OwnListener::This => true,
            OwnListener::No => false,
            OwnListener::Unknown => match self.peer.arrival.addressee(&origin) {
                Addressee::Listener => true,
                Addressee::PerhapsListener => {
                    let found = || router.find_mount(path.path(), &head.method, None, None).0;
                    !server_wide && !matches!(found(), Found::Unmatched)
                }
                Addressee::Other => false,
            },
        };
        match own {
            false => Ok(Target::Absolute(origin, path)),
            true if server_wide => Err(ProxyError::BadRequestTarget(target::SERVER_WIDE)),
            true => {
                self.report.mount(&path);
                Ok(Target::Origin(None, path))
            }
        }
    }

    fn route(&mut self, target: Target, head: &Parts, caller: Option<CallerId>) -> Result<Forward<'a>, Fault> {
        let (router, method) = (&self.snapshot.router, &head.method);
        let named = caller::named(&head.headers)?;
        let (found, asked, rest) = match &target {
            Target::Absolute(origin, path) => {
                (router.find(origin, path.path(), method, caller, named), Some(origin), path.path())
            }
            Target::Origin(_, path) => {
                let (found, rest) = router.find_mount(path.path(), method, caller, named);
                (found, None, rest)
            }
            Target::Connect(..) => return Err(ProxyError::BadRequestTarget("a tunnel inside a tunnel").into()),
        };
        self.report.destination(asked);
        if *method == Method::TRACE && !matches!(found, Found::Unmatched) {
            return Err(ProxyError::MethodRefused.into());
        }
        let bound = match found {
            Found::Route(bound) => bound,
            Found::NotAllowed(bound) => {
                self.report.connection(&bound.connection);
                return Err(ProxyError::CallerNotAllowed.into());
            }
            Found::NoRoute => return Err(ProxyError::NoRoute.into()),
            Found::AmbiguousPath => {
                return Err(ProxyError::BadRequestTarget(AMBIGUOUS_PATH).into());
            }
            Found::Unmatched => return self.unmatched(target),
        };
        self.report.connection(&bound.connection);
        if let Some(inactive) = bound.inactive() {
            self.report.connection(inactive);
            return Err(ProxyError::ConnectionInactive.into());
        }
        Forward::by_route(bound, &target, rest)
    }

    /// A host that no route names.
    fn unmatched(&self, target: Target) -> Result<Forward<'a>, Fault> {
        let Target::Absolute(origin, path) = target else { return Err(ProxyError::NoMount.into()) };
        self.snapshot.egress.permit_unmatched(origin.port).map_err(ProxyError::EgressDenied)?;
        let (tls, protocol) = (self.snapshot.plain.clone(), Protocol::Any);
        let destination = Destination { origin, tls, server_name: None, protocol };
        Ok(Forward { bound: None, destination, path, trailers: false })
    }
}
