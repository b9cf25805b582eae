//! One request and its answer: target, caller, route, token, inject, send, at most one replay.
//!
//! Not here: the deciders it calls (`target`, `caller`, `headers`, `inject`) and the words of errors (`error`).
//! Holds: one snapshot serves the whole request; a request that carried no token never causes a refresh; a request is
//! sent twice only if the upstream refused its token, or closed a used connection before answering what is safe to repeat.
//! Metrics: `keybearer_request_overhead_seconds`, `keybearer_token_wait_seconds`, `keybearer_injections_total`,
//! `keybearer_replays_total`.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::{Body, Incoming};
use tokio::time::{Instant, sleep_until};

use super::body::{Progress, RequestSource, ResponseBody, Silent};
use super::caller;
use super::error::{Fault, ProxyError};
use super::headers;
use super::inject::{self, Place};
use super::report::{Answer, Report};
use super::target::{self, Target};
use super::upstream::{Destination, Lease};
use super::watched::Upload;
use super::worker::Worker;
use super::{Peer, Tunnelled};
use crate::model::Unmatched;
use crate::model::connection::{Inject, Place as RoutePlace, WithoutToken};
use crate::model::origin::{Origin, Scheme};
use crate::router::{CallerId, Found};
use crate::snapshot::{BoundRoute, Snapshot};
use crate::telemetry::traces::Propagation;
use crate::token::slot::{InjectedToken, NoToken, TokenSlot};

/// Serves one request. Whatever happens, there is an answer.
pub async fn serve(worker: Rc<Worker>, peer: Rc<Peer>, request: Request<Incoming>) -> Response<ResponseBody<Answer>> {
    let mut report = Report::begin(&worker, &peer, &request);
    let (head, incoming) = request.into_parts();
    let upload = (!incoming.is_end_stream()).then(|| peer.activity.upload());
    let snapshot = worker.snapshot();
    let mut exchange = Exchange { worker: &worker, snapshot: &snapshot, peer: &peer, report: &mut report };
    match exchange.run(head, incoming, upload).await {
        Ok(Served::Upstream(response, lease)) => report.upstream_answer(response, lease, snapshot.timeouts.idle),
        Ok(Served::Here(status)) => report.own_answer(status),
        Err(fault) => report.error(fault),
    }
}

enum Served {
    Upstream(Response<Incoming>, Lease),
    /// Answered by the proxy as the last hop that the request allows.
    Here(StatusCode),
}

struct Exchange<'a> {
    worker: &'a Worker,
    snapshot: &'a Snapshot,
    peer: &'a Peer,
    report: &'a mut Report,
}

/// Where a request goes, by which route, and under which path.
struct Way<'a> {
    bound: Option<&'a BoundRoute>,
    destination: Destination,
    path: PathAndQuery,
}

impl<'a> Exchange<'a> {
    async fn run(&mut self, mut head: Parts, incoming: Incoming, upload: Option<Upload>) -> Result<Served, Fault> {
        let (target, caller) = self.admit(&head)?;
        let way = self.route(target, &head.method, caller)?;
        if headers::max_forwards_spent(&head.method, &mut head.headers) {
            return Ok(Served::Here(StatusCode::OK));
        }
        let token = self.token(&way, &mut head.headers).await?;
        self.report.injected(token.is_some());
        let host = HeaderValue::try_from(way.destination.origin.authority())
            .map_err(|_| ProxyError::BadRequestTarget("the host is not valid"))?;
        headers::request(&mut head.headers, host, &self.worker.shared.via);
        let replay = if token.is_some() { self.snapshot.limits.replay_body_bytes } else { 0 };
        let source = RequestSource::new(incoming, replay, upload);
        let first = self.send(&way, &head, token.as_deref(), &source).await?;
        match (token, way.bound) {
            (Some(token), Some(bound)) if bound.connection.token_rejected.contains(&first.0.status()) => {
                self.replay(first, &token, bound, &way, &head, &source).await
            }
            _ => Ok(Served::Upstream(first.0, first.1)),
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
        let caller = caller::identify(callers, self.peer.address.ip(), &head.headers, field)
            .map_err(|_| ProxyError::CallerUnknown { mount })?;
        self.report.caller(caller.and_then(|id| callers.name(id)));
        if looped {
            return Err(ProxyError::LoopDetected.into());
        }
        Ok((target, caller))
    }

    fn route(&mut self, target: Target, method: &Method, caller: Option<CallerId>) -> Result<Way<'a>, Fault> {
        let router = &self.snapshot.router;
        let (found, asked, rest) = match &target {
            Target::Absolute(origin, path) => {
                (router.find(origin, path.path(), method, caller), Some(origin), path.path())
            }
            Target::Origin(_, path) => {
                let (found, rest) = router.find_mount(path.path(), method, caller);
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
        match (target, self.snapshot.unmatched) {
            (Target::Absolute(origin, path), Unmatched::Forward) => {
                let destination = Destination { origin, tls: self.snapshot.plain.clone(), server_name: None };
                Ok(Way { bound: None, destination, path })
            }
            (Target::Absolute(..), Unmatched::Deny) => {
                Err(ProxyError::EgressDenied("no route names the host, and egress.unmatched is deny").into())
            }
            _ => Err(ProxyError::NoMount.into()),
        }
    }

    /// The token that the route injects, or `None` where the request goes without.
    async fn token(&mut self, way: &Way<'_>, headers: &mut HeaderMap) -> Result<Option<Arc<InjectedToken>>, Fault> {
        let Some(bound) = way.bound else { return Ok(None) };
        let (Inject::Header { header, .. }, Some(slot)) = (&bound.route.inject, &bound.slot) else { return Ok(None) };
        match inject::look(headers, header, bound.route.existing) {
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
        match self.usable(slot).await {
            Ok(token) => {
                bound.injections.injected.inc();
                Ok(Some(token))
            }
            Err(_) if bound.route.without_token == WithoutToken::Forward => {
                bound.injections.forwarded.inc();
                inject::clear(headers, &bound.route.inject);
                Ok(None)
            }
            Err(why) => {
                bound.injections.refused.inc();
                Err(no_token(why))
            }
        }
    }

    async fn usable(&mut self, slot: &TokenSlot) -> Result<Arc<InjectedToken>, NoToken> {
        let clock = &self.worker.shared.clock;
        if let Some(token) = slot.fresh(clock.now()) {
            return Ok(token);
        }
        let started = Instant::now();
        let result = slot.token(clock, started + self.snapshot.timeouts.token_wait).await;
        let waited = started.elapsed();
        self.worker.shared.metrics.token_wait.observe(waited.as_secs_f64());
        self.report.waited(waited);
        result
    }

    /// The upstream refused the token: once more with another one, if there is one and the body can be sent again.
    async fn replay(
        &mut self,
        first: (Response<Incoming>, Lease),
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
        let another = match &bound.slot {
            Some(slot) => slot.reject(token.generation, clock, deadline).await,
            None => None,
        };
        let Some(another) = another.filter(|_| source.is_replayable()) else {
            replays("skipped");
            return Ok(Served::Upstream(first.0, first.1));
        };
        drop(first);
        let (response, lease) = self.send(way, head, Some(&another), source).await?;
        let rejected = bound.connection.token_rejected.contains(&response.status());
        replays(if rejected { "rejected" } else { "accepted" });
        Ok(Served::Upstream(response, lease))
    }

    /// One request upstream, and its answer's head.
    async fn send(
        &mut self,
        way: &Way<'_>,
        head: &Parts,
        token: Option<&InjectedToken>,
        source: &RequestSource,
    ) -> Result<(Response<Incoming>, Lease), Fault> {
        let started = Instant::now();
        let connection = way.bound.map(|bound| &bound.connection.name);
        let trace = self.report.spans.send(&head.method, &way.destination.origin, way.path.path(), connection);
        let result = self.send_once_or_renewed(way, head, token, source, trace.as_ref()).await;
        self.report.waited(started.elapsed());
        let answer = result.as_ref().map(|(response, _)| response.status());
        self.report.spans.answered(answer.map_err(|fault| fault.error.code()));
        let (response, lease) = result?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Err(ProxyError::UpstreamProtocol.because("101 to a request that asked for no upgrade"));
        }
        Ok((response, lease))
    }

    async fn send_once_or_renewed(
        &self,
        way: &Way<'_>,
        head: &Parts,
        token: Option<&InjectedToken>,
        source: &RequestSource,
        trace: Option<&Propagation>,
    ) -> Result<(Response<Incoming>, Lease), Fault> {
        let pool = &self.worker.pool;
        let mut lease = pool.checkout(self.snapshot, &way.destination).await?;
        loop {
            let progress = Progress::new();
            let request = way.request(head, token, source, progress.clone(), trace)?;
            let sent = {
                let sending = lease.send(request);
                tokio::pin!(sending);
                loop {
                    let (deadline, _) = self.patience(&progress);
                    tokio::select! {
                        biased;
                        sent = &mut sending => break sent,
                        () = sleep_until(deadline) => {}
                        () = progress.done(), if !progress.is_done() => {}
                    }
                    match self.patience(&progress) {
                        (deadline, _) if deadline > Instant::now() => {}
                        (_, Silent::Client) => return Err(ProxyError::RequestTimeout.into()),
                        (_, Silent::Upstream) => return Err(ProxyError::UpstreamTimeout.into()),
                    }
                }
            };
            let error = match sent {
                Ok(response) => return Ok((response, lease)),
                Err(error) => error,
            };
            // A connection that had served before may have been closed by the upstream just now (RFC 9110 §9.2.2).
            let safe = head.method.is_idempotent() && source.is_replayable() && error.is_closed();
            if !lease.reused || !(error.unsent || safe) {
                return Err(error.fault());
            }
            lease = pool.renew(self.snapshot, &way.destination, lease).await?;
        }
    }

    fn patience(&self, progress: &Progress) -> (Instant, Silent) {
        let timeouts = &self.snapshot.timeouts;
        progress.deadline(timeouts.idle, timeouts.response_head)
    }
}

impl<'a> Way<'a> {
    /// `rest` is what follows the mount.
    fn by_route(bound: &'a BoundRoute, target: &Target, rest: &str) -> Result<Way<'a>, Fault> {
        let (origin, path) = match (&bound.route.place, target) {
            (RoutePlace::Host { port, .. }, Target::Absolute(origin, path)) => {
                (bound.route.tls.leave_for(*port, origin), path.clone())
            }
            (RoutePlace::Mount { upstream, base, .. }, Target::Origin(_, path)) => {
                let slash = if rest.is_empty() && base.is_root() { "/" } else { "" };
                let (mark, query) = path.query().map_or(("", ""), |query| ("?", query));
                let mapped = PathAndQuery::try_from([base.as_str(), rest, slash, mark, query].concat());
                (upstream.clone(), mapped.map_err(|_| ProxyError::BadRequestTarget("the path is not valid"))?)
            }
            _ => return Err(ProxyError::NoRoute.into()),
        };
        let destination =
            Destination { origin, tls: bound.tls.clone(), server_name: bound.route.tls.server_name.clone() };
        Ok(Way { bound: Some(bound), destination, path })
    }

    /// The request as it goes upstream, the token last.
    fn request(
        &self,
        head: &Parts,
        token: Option<&InjectedToken>,
        source: &RequestSource,
        progress: Rc<Progress>,
        trace: Option<&Propagation>,
    ) -> Result<Request<super::body::RequestBody>, Fault> {
        let mut request = Request::new(source.body(progress));
        *request.method_mut() = head.method.clone();
        *request.version_mut() = Version::HTTP_11;
        *request.uri_mut() = Uri::from(self.path.clone());
        *request.headers_mut() = head.headers.clone();
        if let Some(trace) = trace {
            trace.apply(request.headers_mut());
        }
        if let (Some(token), Some(bound)) = (token, self.bound) {
            inject::inject(request.headers_mut(), &self.destination.origin, &bound.route.inject, token)
                .map_err(|_| ProxyError::EgressDenied("the token was not granted for this origin"))?;
        }
        Ok(request)
    }
}

/// A request inside a tunnel: it goes where the tunnel goes, or nowhere.
fn inside(tunnel: &Tunnelled, target: Target) -> Result<Target, Fault> {
    let origin = Origin { scheme: Scheme::Http, host: tunnel.host.clone(), port: tunnel.port };
    match target {
        Target::Origin(Some(host), path) if Origin::new(Scheme::Http, host.clone()) == origin => {
            Ok(Target::Absolute(origin, path))
        }
        Target::Absolute(asked, path) if asked == origin => Ok(Target::Absolute(origin, path)),
        Target::Connect(..) => Err(ProxyError::BadRequestTarget("a tunnel inside a tunnel").into()),
        _ => Err(ProxyError::AuthorityMismatch.into()),
    }
}

fn no_token(why: NoToken) -> Fault {
    match why {
        NoToken::Refused { error, description } => {
            Fault { error: ProxyError::TokenRefused { error }, cause: description }
        }
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
