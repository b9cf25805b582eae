//! One request and its answer: target, caller, route, token, inject, send, at most one replay.
//!
//! Not here: the deciders it calls (`target`, `caller`, `headers`, `inject`) and the words of errors (`error`).
//! Holds: one snapshot serves the whole request; a request that carried no token never causes a refresh; a request is
//! sent twice only if the upstream refused its token, or closed a used connection before answering what is safe to repeat.
//! Metrics: `keybearer_request_overhead_seconds`, `keybearer_token_wait_seconds`, `keybearer_injections_total`,
//! `keybearer_replays_total`.

mod send;
mod way;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::{Body, Incoming};
use hyper::upgrade::OnUpgrade;
use tokio::time::Instant;

use super::Peer;
use super::answered::{UpstreamBody, is_rejection};
use super::body::{RequestSource, ResponseBody};
use super::caller;
use super::error::{Fault, ProxyError};
use super::headers;
use super::inject::{self, Place};
use super::report::{Answer, Report};
use super::target::{self, Target};
use super::upgrade::{self, Switch};
use super::upstream::{Destination, Lease, Protocol};
use super::watched::Upload;
use super::worker::{Place as Seat, Worker};
use crate::model::Unmatched;
use crate::model::connection::{Inject, WithoutToken};
use crate::model::secret::Secret;
use crate::model::token::Subject;
use crate::router::{CallerId, Found};
use crate::snapshot::{BoundRoute, Snapshot};
use crate::token::Slots;
use crate::token::slot::{Consent, InjectedToken, NoToken, TokenSlot};
use way::{Way, inside};

/// Serves one request. Whatever happens, there is an answer.
pub async fn serve(worker: Rc<Worker>, peer: Rc<Peer>, request: Request<Incoming>) -> Response<ResponseBody<Answer>> {
    let mut report = Report::begin(&worker, &peer, &request);
    let (head, incoming) = request.into_parts();
    let upload = (!incoming.is_end_stream()).then(|| peer.activity.upload());
    let snapshot = worker.snapshot();
    let mut exchange = Exchange {
        worker: &worker,
        snapshot: &snapshot,
        peer: &peer,
        report: &mut report,
        whose: Whose::Everybody,
        upgrade: None,
    };
    match exchange.run(head, incoming, upload).await {
        Ok(Served::Upstream(response, lease)) => report.upstream_answer(response, lease, snapshot.timeouts.idle),
        Ok(Served::Switched(head, switch)) => {
            worker.shared.tasks.spawn_local(switch.relay(peer, snapshot.timeouts.idle));
            report.switched(head)
        }
        Ok(Served::Here(status)) => report.own_answer(status),
        Err(fault) => report.error(fault),
    }
}

/// Whose token a request wants.
enum Whose {
    Everybody,
    Subject(Subject),
    /// What this token of the caller's own is exchanged for.
    Caller(Secret),
}

impl Whose {
    /// The slot that is this one's alone.
    fn slot(&self, slots: &Slots) -> Option<Arc<TokenSlot>> {
        match (self, slots) {
            (Whose::Subject(subject), Slots::PerSubject(slots)) => Some(slots.slot(subject)),
            (Whose::Caller(token), Slots::PerCallerToken(slots)) => Some(slots.slot_of_token(token)),
            _ => None,
        }
    }
}

enum Served {
    Upstream(Response<UpstreamBody>, Lease),
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
    /// Whose token is wanted, of a connection that has one for each.
    whose: Whose,
    /// The caller asks for WebSocket: its side of the stream, and a place among the tunnels.
    upgrade: Option<(OnUpgrade, Seat)>,
}

impl<'a> Exchange<'a> {
    async fn run(&mut self, mut head: Parts, incoming: Incoming, upload: Option<Upload>) -> Result<Served, Fault> {
        let (target, caller) = self.admit(&head)?;
        let mut way = self.route(target, &head, caller)?;
        if headers::max_forwards_spent(&head.method, &mut head.headers) {
            return Ok(Served::Here(StatusCode::OK));
        }
        match way.bound.and_then(|bound| bound.slots.as_ref()) {
            Some(Slots::PerSubject(_)) => {
                let subject = caller::subject(&self.snapshot.callers, caller, &head.headers)?;
                self.report.subject(&subject);
                self.whose = Whose::Subject(subject);
            }
            Some(Slots::PerCallerToken(_)) => {
                self.whose = Whose::Caller(caller::own_token(&head.headers)?);
                // It is exchanged, and goes no further.
                headers::remove_with_twins(&mut head.headers, &header::AUTHORIZATION);
            }
            Some(Slots::Shared(_)) | None => {}
        }
        let token = self.token(&mut way, &mut head.headers).await?;
        self.report.injected(token.is_some());
        let host = HeaderValue::try_from(way.destination.origin.authority())
            .map_err(|_| ProxyError::BadRequestTarget("the host is not valid"))?;
        let upgrade = upgrade::asked(&mut head);
        way.trailers = headers::takes_trailers(&head.headers);
        way.destination.protocol = match &upgrade {
            Some(_) => Protocol::Http1,
            None if headers::is_grpc(&head.headers) => Protocol::Http2,
            None => Protocol::Any,
        };
        headers::request(&mut head.headers, host, &self.worker.shared.via);
        if let Some(downstream) = upgrade {
            let place = Seat::take(&self.worker.shared.tunnels, self.snapshot.limits.tunnels);
            let place = place.ok_or_else(|| ProxyError::Overloaded.because("limits.tunnels is reached"))?;
            upgrade::ask(&mut head.headers);
            self.upgrade = Some((downstream, place));
        }
        let replay = if token.is_some() { self.snapshot.limits.replay_body_bytes } else { 0 };
        let source = RequestSource::new(incoming, replay, upload);
        let mut first = self.send(&way, &head, token.as_deref(), &source).await?;
        match (token, way.bound) {
            (Some(token), Some(bound)) if self.is_rejected(bound, &mut first.0).await => {
                self.replay(first, &token, bound, &way, &head, &source).await
            }
            _ => Ok(self.answered(first.0, first.1)),
        }
    }

    fn answered(&mut self, mut response: Response<UpstreamBody>, lease: Lease) -> Served {
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Served::Upstream(response, lease);
        }
        let upstream = response.extensions_mut().remove::<OnUpgrade>();
        match (self.upgrade.take(), upstream) {
            (Some((downstream, place)), Some(upstream)) => {
                let switch = Switch { downstream, upstream, place, lease };
                Served::Switched(response.map(|_| ()), switch)
            }
            _ => Served::Upstream(response, lease),
        }
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
            self.report.caller(tunnel.caller.and_then(|id| callers.name(id)));
            if looped {
                return Err(ProxyError::LoopDetected.into());
            }
            return Ok((inside(tunnel, target)?, tunnel.caller));
        }
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

    fn route(&mut self, target: Target, head: &Parts, caller: Option<CallerId>) -> Result<Way<'a>, Fault> {
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
                return Err(ProxyError::BadRequestTarget("the path could be read in two ways; write it plainly").into());
            }
            Found::Unmatched => return self.unmatched(target),
        };
        self.report.connection(&bound.connection);
        if !bound.connection.active {
            return Err(ProxyError::ConnectionInactive.into());
        }
        Way::by_route(bound, &target, rest)
    }

    /// A host that no route names.
    fn unmatched(&self, target: Target) -> Result<Way<'a>, Fault> {
        match (target, self.snapshot.egress.unmatched) {
            (Target::Absolute(origin, path), Unmatched::Forward) => {
                let (tls, protocol) = (self.snapshot.plain.clone(), Protocol::Any);
                let destination = Destination { origin, tls, server_name: None, protocol };
                Ok(Way { bound: None, destination, path, trailers: false })
            }
            (Target::Absolute(..), Unmatched::Deny) => {
                Err(ProxyError::EgressDenied("no route names the host, and egress.unmatched is deny").into())
            }
            _ => Err(ProxyError::NoMount.into()),
        }
    }

    /// The token that the route injects, or `None` where the request goes without.
    async fn token(&mut self, way: &mut Way<'_>, headers: &mut HeaderMap) -> Result<Option<Arc<InjectedToken>>, Fault> {
        let Some(bound) = way.bound else { return Ok(None) };
        let Some(slots) = bound.slots.as_ref().filter(|_| bound.route.inject != Inject::Nothing) else {
            return Ok(None);
        };
        match inject::look(headers, &way.path, &bound.route.inject, bound.route.existing) {
            Place::Free => {}
            Place::Kept => {
                bound.injections.kept.inc();
                return Ok(None);
            }
            Place::Refused => {
                bound.injections.refused.inc();
                return Err(ProxyError::BadRequestTarget(
                    "the request carries a credential of its own, which the route refuses",
                )
                .into());
            }
        }
        match self.usable(slots).await {
            Ok(token) => {
                bound.injections.injected.inc();
                Ok(Some(token))
            }
            Err(_) if bound.route.without_token == WithoutToken::Forward => {
                bound.injections.forwarded.inc();
                inject::clear(headers, &mut way.path, &bound.route.inject);
                Ok(None)
            }
            Err(why) => {
                bound.injections.refused.inc();
                let link = self.link(slots, &why);
                Err(no_token(why, link))
            }
        }
    }

    /// Where a person ends what stands in the way, if a person can.
    fn link(&self, slots: &Slots, why: &NoToken) -> Option<String> {
        let NoToken::Person { .. } = why else { return None };
        let own = self.whose.slot(slots);
        let slot = slots.shared().or(own.as_ref())?;
        self.snapshot.links.connect(&slot.key, self.worker.shared.clock.now().wall)
    }

    async fn usable(&mut self, slots: &Slots) -> Result<Arc<InjectedToken>, NoToken> {
        let clock = &self.worker.shared.clock;
        let own = self.whose.slot(slots);
        let Some(slot) = slots.shared().or(own.as_ref()) else { return Err(NoToken::Forgotten) };
        if let Some(token) = slot.fresh(clock.now()) {
            return Ok(token);
        }
        let started = Instant::now();
        let deadline = started + self.snapshot.timeouts.token_wait;
        let mut result = slot.token(clock, deadline).await;
        // It left memory at this very moment: it is taken in again.
        if let (Err(NoToken::Forgotten), Some(slot)) = (&result, self.whose.slot(slots)) {
            result = slot.token(clock, deadline).await;
        }
        let waited = started.elapsed();
        self.worker.shared.metrics.token_wait.observe(waited.as_secs_f64());
        self.report.waited(waited);
        result
    }

    /// The upstream refused the token: once more with another one, if there is one and the body can be sent again.
    async fn replay(
        &mut self,
        first: (Response<UpstreamBody>, Lease),
        token: &InjectedToken,
        bound: &BoundRoute,
        way: &Way<'_>,
        head: &Parts,
        source: &RequestSource,
    ) -> Result<Served, Fault> {
        let clock = &self.worker.shared.clock;
        let replays = |outcome| {
            let connection = bound.connection.name.as_str();
            self.worker.shared.metrics.replays.with_label_values(&[connection, outcome]).inc();
        };
        let deadline = Instant::now() + self.snapshot.timeouts.token_wait;
        let own = bound.slots.as_ref().and_then(|slots| slots.shared().cloned().or_else(|| self.whose.slot(slots)));
        let another = match own {
            Some(slot) => slot.reject(token.generation, clock, deadline).await,
            None => None,
        };
        let Some(another) = another.filter(|_| source.reclaim()) else {
            replays("skipped");
            return Ok(Served::Upstream(first.0, first.1));
        };
        drop(first);
        let (mut response, lease) = self.send(way, head, Some(&another), source).await?;
        let rejected = self.is_rejected(bound, &mut response).await;
        replays(if rejected { "rejected" } else { "accepted" });
        Ok(self.answered(response, lease))
    }

    async fn is_rejected(&self, bound: &BoundRoute, response: &mut Response<UpstreamBody>) -> bool {
        is_rejection(response, &bound.connection.token_rejected, self.snapshot.timeouts.idle).await
    }
}

fn no_token(why: NoToken, link: Option<String>) -> Fault {
    match why {
        NoToken::Refused { error, description } => {
            Fault { error: ProxyError::TokenRefused { error }, cause: description }
        }
        NoToken::Script { message } => ProxyError::ScriptFailed { message }.into(),
        NoToken::Person { consent: Consent::First, .. } => ProxyError::ConsentRequired { link }.into(),
        NoToken::Person { consent: Consent::Again, error } => ProxyError::RefreshTokenExpired { error, link }.into(),
        NoToken::Unavailable { error, retry_after } => ProxyError::TokenUnavailable { error, retry_after }.into(),
        NoToken::Forgotten => {
            let retry_after = Duration::from_secs(1);
            ProxyError::TokenUnavailable { error: "configuration_changed".to_owned(), retry_after }.into()
        }
        NoToken::WaitTimeout => {
            let retry_after = Duration::from_secs(1);
            ProxyError::TokenUnavailable { error: "timeout".to_owned(), retry_after }
                .because("timeouts.token_wait has passed")
        }
    }
}
