//! Collects what is known of one request and, when its response ends, reports it: metrics, spans, log line, audit
//! record.
//!
//! Invariants: labels are names from the configuration; a query string is never reported; with `audit: {to: log}` a
//! request has one log line, and a denial is logged whatever `log` is set to.
//! Metrics: `keybearer_requests_total`, `keybearer_requests_in_flight`, `keybearer_request_duration_seconds`,
//! `keybearer_request_overhead_seconds`, `keybearer_errors_total`.

mod spans;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH};
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use tokio::time::Instant;
use tracing::Level;

use super::arrival::PeerAddress;
use super::body::{EndObserver, Ending, ResponseBody, UpstreamBody};
use super::error::{ErrorContext, Fault, grpc};
use super::headers;
use super::io::Serving;
use super::peer::Peer;
use super::upgrade;
use super::upstream::Checkout;
use super::worker::Worker;
use crate::model::connection::Connection;
use crate::model::origin::Origin;
use crate::model::token::Subject;
use crate::model::{LogRequests, Name};
use crate::telemetry::Clean;
use crate::telemetry::audit::{self, Kind};
use spans::{Spans, Summary};

/// What is known of one request.
pub struct Report {
    worker: Rc<Worker>,
    serving: Serving,
    started: Instant,
    /// Time spent waiting for a token or for the upstream.
    waited: Duration,
    /// Our request ID, in the response, the log and the audit.
    id: u64,
    /// The caller's X-Request-Id, if it is safe to log; never used as our own ID.
    caller_request_id: Option<HeaderValue>,
    from: PeerAddress,
    method: Method,
    uri: Uri,
    destination: Option<Origin>,
    /// The connection of the route, by profile.
    connection: Option<Arc<Connection>>,
    caller: Option<Name>,
    subject: Option<Subject>,
    pub spans: Spans,
    injected: bool,
    grpc: bool,
    /// True once the outcome has been reported.
    is_finished: bool,
}

impl Report {
    pub fn begin(worker: &Rc<Worker>, peer: &Peer, request: &Request<Incoming>) -> Report {
        worker.state.metrics.in_flight.inc();
        Report {
            worker: worker.clone(),
            serving: peer.activity.begin_request(request.version()),
            started: Instant::now(),
            waited: Duration::ZERO,
            id: fastrand::u64(..),
            caller_request_id: headers::caller_request_id(request.headers()).cloned(),
            from: peer.arrival.from,
            method: request.method().clone(),
            uri: request.uri().clone(),
            destination: None,
            connection: None,
            caller: None,
            subject: None,
            spans: Spans::begin(worker, request),
            injected: false,
            grpc: headers::is_grpc(request.headers()) && !upgrade::opens_tunnel(request),
            is_finished: false,
        }
    }

    pub fn set_caller(&mut self, caller: Option<&Name>) {
        self.caller = caller.cloned();
    }

    pub fn set_subject(&mut self, subject: &Subject) {
        self.subject = Some(subject.clone());
    }

    pub fn set_connection(&mut self, connection: &Arc<Connection>) {
        self.connection = Some(connection.clone());
    }

    pub fn set_destination(&mut self, origin: Option<&Origin>) {
        self.destination = origin.cloned();
    }

    /// Marks the request as one for a mount, so that its authority is not reported as its host.
    pub fn set_mount(&mut self, path: &PathAndQuery) {
        self.uri = Uri::from(path.clone());
    }

    pub fn set_injected(&mut self, injected: bool) {
        self.injected = injected;
    }

    pub fn add_wait(&mut self, span: Duration) {
        self.waited += span;
    }

    /// Connection and profile.
    fn names(&self) -> (Option<&str>, Option<&str>) {
        self.connection.as_ref().map(|connection| (connection.name.as_str(), connection.profile.as_str())).unzip()
    }

    fn id(&self) -> String {
        format!("{:016x}", self.id)
    }

    /// The host that the request was sent to, or was meant for; `None` for a mount.
    fn host(&self) -> Option<String> {
        let requested = || self.uri.authority()?.as_str().rsplit('@').next().map(str::to_owned);
        self.destination.as_ref().map(Origin::authority).or_else(requested)
    }

    pub fn upstream_response(
        self,
        response: Response<UpstreamBody>,
        checkout: Checkout,
        idle: Duration,
    ) -> Response<ResponseBody<ResponseReport>> {
        let overhead = self.started.elapsed().saturating_sub(self.waited);
        self.worker.state.metrics.overhead.observe(overhead.as_secs_f64());
        let (mut head, incoming) = response.into_parts();
        headers::rewrite_response(&mut head.headers, self.worker.state.via.of(head.version));
        head.version = Version::HTTP_11;
        let report = ResponseReport { checkout: Some(checkout), ..ResponseReport::upstream(self, head.status) };
        Response::from_parts(head, ResponseBody::upstream(incoming, idle, report))
    }

    /// Ends the spans; only the first call has an effect. `status` is `None` if there was no response.
    fn end_spans(&mut self, status: Option<StatusCode>, code: Option<&'static str>) {
        let (path, origin) = (self.uri.path(), self.destination.as_ref());
        let (connection, caller) = (self.connection.as_deref(), self.caller.as_ref());
        self.spans.end(&Summary { path, origin, connection, caller, status, code });
    }

    /// The upstream's 101, with its fields for the new protocol.
    pub fn upgraded(self, response: Response<()>) -> Response<ResponseBody<ResponseReport>> {
        let (mut head, ()) = response.into_parts();
        headers::rewrite_response(&mut head.headers, self.worker.state.via.of(head.version));
        upgrade::set_upgrade_fields(&mut head.headers);
        let report = ResponseReport::upstream(self, head.status);
        Response::from_parts(head, ResponseBody::generated(Bytes::new(), report))
    }

    /// A response of the proxy itself without a body that is not an error.
    pub fn own_response(self, status: StatusCode) -> Response<ResponseBody<ResponseReport>> {
        let via = self.worker.state.via.of(Version::HTTP_11).clone();
        let report = ResponseReport::generated(self, status);
        let mut response = Response::new(ResponseBody::generated(Bytes::new(), report));
        *response.status_mut() = status;
        response.headers_mut().insert(http::header::VIA, via);
        response
    }

    pub fn error(self, fault: Fault) -> Response<ResponseBody<ResponseReport>> {
        let code = fault.error.code();
        let (connection, profile) = self.names();
        self.worker.state.metrics.errors.with_label_values(&[connection.unwrap_or(""), code]).inc();
        let about = ErrorContext { connection, profile, request_id: &self.id() };
        let mut response = fault.error.response(about);
        let status = response.status();
        if self.grpc {
            response = grpc::trailers_only(&fault.error, response);
        }
        if self.method == Method::HEAD {
            response = without_content(response);
        }
        if self.method == Method::CONNECT {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let refusal = Refusal { code, denial: fault.error.is_denial(), cause: fault.cause };
        let report = ResponseReport::new(self, Outcome { status, refusal: Some(refusal), from_upstream: false });
        response.map(|text| ResponseBody::generated(text, report))
    }

    fn finish(&mut self, outcome: &Outcome, ending: Ending) {
        self.is_finished = true;
        self.end_spans(Some(outcome.status), outcome.refusal.as_ref().map(|refusal| refusal.code));
        let took = self.started.elapsed();
        let counters = self.worker.counters(self.connection.as_deref(), self.caller.as_ref());
        counters.requests.count(outcome.from_upstream, outcome.status);
        counters.duration.observe(took.as_secs_f64());
        self.log_and_audit(outcome, ending, took);
    }
}

/// The response to HEAD: no content, but the Content-Length of the response to GET (RFC 9110 §9.3.2).
fn without_content(response: Response<Bytes>) -> Response<Bytes> {
    let (mut head, content) = response.into_parts();
    head.headers.insert(CONTENT_LENGTH, HeaderValue::from(content.len()));
    Response::from_parts(head, Bytes::new())
}

/// The status recorded, never sent, for a request whose caller disconnected before its response began.
const CALLER_GONE: u16 = 499;

/// An error response of the proxy itself.
struct Refusal {
    code: &'static str,
    denial: bool,
    cause: Option<String>,
}

/// The outcome of a request.
struct Outcome {
    status: StatusCode,
    refusal: Option<Refusal>,
    /// True if the response is the upstream's, not the proxy's own.
    from_upstream: bool,
}

/// Observes the response body, and finishes the report at its end.
pub struct ResponseReport {
    report: Report,
    outcome: Outcome,
    checkout: Option<Checkout>,
}

impl ResponseReport {
    fn new(report: Report, outcome: Outcome) -> ResponseReport {
        report.serving.respond();
        ResponseReport { report, outcome, checkout: None }
    }

    fn generated(report: Report, status: StatusCode) -> ResponseReport {
        ResponseReport::new(report, Outcome { status, refusal: None, from_upstream: false })
    }

    fn upstream(report: Report, status: StatusCode) -> ResponseReport {
        ResponseReport::new(report, Outcome { status, refusal: None, from_upstream: true })
    }
}

impl EndObserver for ResponseReport {
    fn on_end(mut self, ending: Ending) {
        if let Some(checkout) = self.checkout.take().filter(|_| ending == Ending::Complete) {
            checkout.give_back();
        }
        self.report.finish(&self.outcome, ending);
    }
}

/// Writes one log line. A macro, because the target of a tracing event must be a constant.
macro_rules! log_line {
    ($report:ident, $outcome:ident, $target:expr, $level:expr, $audit:ident, $complete:ident, $took:ident, $message:literal) => {{
        let report = $report;
        let refusal = $outcome.refusal.as_ref();
        let (connection, profile) = report.names();
        let denial = refusal.is_some_and(|refusal| refusal.denial);
        let host = report.host();
        tracing::event!(target: $target, $level, audit = $audit, code = refusal.map(|refusal| refusal.code), connection,
            profile, subject = report.subject.as_ref().map(Subject::as_str), caller = report.caller.as_ref().map(Name::as_str), from = %report.from,
            status = $outcome.status.as_u16(), request_id = report.id(),
            client_request_id = report.caller_request_id.as_ref().and_then(|id| id.to_str().ok()),
            method = %Clean(report.method.as_str()), host = host.as_deref().map(Clean).map(tracing::field::display),
            path = %Clean(report.uri.path()), injected = connection.filter(|_| !denial).map(|_| report.injected),
            complete = (!denial).then_some($complete), duration_s = $took.as_secs_f64(),
            cause = refusal.and_then(|refusal| refusal.cause.as_deref()).map(|cause| Clean(cause).to_string()), $message)
    }};
}

impl Report {
    fn log_and_audit(&self, outcome: &Outcome, ending: Ending, took: Duration) {
        let complete = ending == Ending::Complete;
        let audit = self.worker.state.audit.now();
        let kind = match &outcome.refusal {
            Some(refusal) if refusal.denial => Some(Kind::Denial),
            _ => self.connection.is_some().then_some(Kind::Use),
        };
        if let Some(kind) = kind {
            self.record(&audit, kind, outcome, complete);
        }
        let audited = kind.and_then(|kind| audit.in_log(kind));
        let requests = self.worker.snapshot().log_requests;
        match (&outcome.refusal, requests) {
            (Some(refusal), _) if refusal.denial && audited.is_some() => {
                log_line!(self, outcome, audit::TARGET, Level::WARN, audited, complete, took, "request refused");
            }
            (Some(_), LogRequests::Errors | LogRequests::All) => {
                log_line!(self, outcome, module_path!(), Level::WARN, audited, complete, took, "request refused");
            }
            (None, LogRequests::Errors | LogRequests::All) if ending == Ending::CutOff => {
                log_line!(self, outcome, module_path!(), Level::WARN, audited, complete, took, "response incomplete");
            }
            (None, LogRequests::All) => {
                log_line!(self, outcome, module_path!(), Level::INFO, audited, complete, took, "request");
            }
            _ => {}
        }
    }

    fn record(&self, audit: &audit::Target, kind: Kind, outcome: &Outcome, complete: bool) {
        audit.request(|| {
            let (used, id, host) = (kind == Kind::Use, self.id(), self.host());
            let (connection, profile) = self.names();
            let record = audit::Request {
                request_id: Some(&id),
                client_request_id: self.caller_request_id.as_ref().and_then(|id| id.to_str().ok()),
                caller: self.caller.as_ref().map(Name::as_str),
                connection,
                profile,
                subject: self.subject.as_ref().map(Subject::as_str),
                host: host.as_deref().map(Clean),
                code: outcome.refusal.as_ref().map(|refusal| refusal.code),
                injected: used.then_some(self.injected),
                complete: used.then_some(complete),
                ..audit::Request::new(self.from, self.method.as_str(), self.uri.path(), outcome.status.as_u16())
            };
            let at = self.worker.state.clock.now().wall;
            (at, record.line(at, kind))
        });
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        if !self.is_finished
            && let Ok(status) = StatusCode::from_u16(CALLER_GONE)
        {
            self.end_spans(None, None);
            self.finish(&Outcome { status, refusal: None, from_upstream: false }, Ending::Abandoned);
        }
        self.worker.state.metrics.in_flight.dec();
    }
}
