//! What is remembered of one request, and told when its answer ends: metrics, spans, a line in the log.
//!
//! Holds: labels are names from the configuration; a query string is never logged.
//! Metrics: `keybearer_requests_total`, `keybearer_requests_in_flight`, `keybearer_request_duration_seconds`,
//! `keybearer_request_overhead_seconds`, `keybearer_errors_total`.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::Peer;
use super::body::{Companion, ResponseBody};
use super::error::{About, Fault};
use super::headers;
use super::spans::{Spans, Summary};
use super::upstream::Lease;
use super::watched::Activity;
use super::worker::Worker;
use crate::model::connection::Connection;
use crate::model::origin::Origin;
use crate::model::{LogRequests, Name};
use crate::telemetry::Clean;

pub struct Report {
    worker: Rc<Worker>,
    activity: Activity,
    started: Instant,
    /// Spent waiting for a token or for the upstream.
    waited: Duration,
    /// Names the request in the answer and in the log.
    id: u64,
    method: Method,
    uri: Uri,
    destination: Option<Origin>,
    connection: Option<Name>,
    caller: Option<Name>,
    pub spans: Spans,
}

impl Report {
    pub fn begin(worker: &Rc<Worker>, peer: &Peer, request: &Request<Incoming>) -> Report {
        worker.shared.metrics.in_flight.inc();
        Report {
            worker: worker.clone(),
            activity: peer.activity.begin(),
            started: Instant::now(),
            waited: Duration::ZERO,
            id: fastrand::u64(..),
            method: request.method().clone(),
            uri: request.uri().clone(),
            destination: None,
            connection: None,
            caller: None,
            spans: Spans::begin(worker, request),
        }
    }

    pub fn caller(&mut self, caller: Option<&Name>) {
        self.caller = caller.cloned();
    }

    pub fn connection(&mut self, connection: &Connection) {
        self.connection = Some(connection.name.clone());
    }

    pub fn destination(&mut self, origin: Option<&Origin>) {
        self.destination = origin.cloned();
    }

    fn host(&self) -> String {
        self.destination.as_ref().map(Origin::authority).unwrap_or_default()
    }

    pub fn waited(&mut self, span: Duration) {
        self.waited += span;
    }

    pub fn upstream_answer(
        self,
        response: Response<Incoming>,
        lease: Lease,
        idle: Duration,
    ) -> Response<ResponseBody<Answer>> {
        let overhead = self.started.elapsed().saturating_sub(self.waited);
        self.worker.shared.metrics.overhead.observe(overhead.as_secs_f64());
        let (mut head, incoming) = response.into_parts();
        head.version = Version::HTTP_11;
        headers::response(&mut head.headers, &self.worker.shared.via);
        let answer = Answer { report: self, status: head.status, code: None, lease: Some(lease) };
        Response::from_parts(head, ResponseBody::upstream(incoming, idle, answer))
    }

    /// Ends the spans; only the first call counts. Without a status: there was no answer.
    fn traced(&mut self, status: Option<StatusCode>, code: Option<&'static str>) {
        let (path, origin) = (self.uri.path(), self.destination.as_ref());
        let (connection, caller) = (self.connection.as_ref(), self.caller.as_ref());
        self.spans.end(&Summary { path, origin, connection, caller, status, code });
    }

    /// An answer without a body that is neither an upstream's nor an error.
    pub fn own_answer(self, status: StatusCode) -> Response<ResponseBody<Answer>> {
        let via = self.worker.shared.via.clone();
        let answer = Answer { report: self, status, code: None, lease: None };
        let mut response = Response::new(ResponseBody::own(Bytes::new(), answer));
        *response.status_mut() = status;
        response.headers_mut().insert(http::header::VIA, via);
        response
    }

    pub fn error(self, fault: Fault) -> Response<ResponseBody<Answer>> {
        let code = fault.error.code();
        let connection = self.connection.as_ref().map(Name::as_str);
        self.worker.shared.metrics.errors.with_label_values(&[connection.unwrap_or(""), code]).inc();
        let id = format!("{:016x}", self.id);
        let about = About { connection, profile: connection.map(|_| "default"), request_id: &id };
        let (head, text) = fault.error.response(about).into_parts();
        if self.worker.snapshot().log_requests != LogRequests::Off {
            let cause = fault.cause.as_deref().map(|cause| tracing::field::display(Clean(cause)));
            tracing::warn!(code, connection, caller = self.caller.as_ref().map(Name::as_str), status = head.status.as_u16(),
                request_id = id, method = %Clean(self.method.as_str()), host = %Clean(&self.host()),
                path = %Clean(self.uri.path()), cause, "request refused");
        }
        let answer = Answer { report: self, status: head.status, code: Some(code), lease: None };
        Response::from_parts(head, ResponseBody::own(text, answer))
    }
}

/// Goes along with the answer's body.
pub struct Answer {
    report: Report,
    status: StatusCode,
    /// Of an error that the proxy itself answered.
    code: Option<&'static str>,
    lease: Option<Lease>,
}

impl Companion for Answer {
    fn end(self, complete: bool) {
        let from_upstream = self.lease.is_some();
        if let Some(lease) = self.lease.filter(|_| complete) {
            lease.give_back();
        }
        let mut report = self.report;
        report.traced(Some(self.status), self.code);
        let took = report.started.elapsed();
        let counters = report.worker.counters(report.connection.as_ref(), report.caller.as_ref());
        counters.requests.count(from_upstream, self.status);
        counters.duration.observe(took.as_secs_f64());
        if self.code.is_none() && report.worker.snapshot().log_requests == LogRequests::All {
            tracing::info!(connection = report.connection.as_ref().map(Name::as_str), caller = report.caller.as_ref().map(Name::as_str),
                status = self.status.as_u16(), request_id = format!("{:016x}", report.id), method = %Clean(report.method.as_str()),
                host = %Clean(&report.host()), path = %Clean(report.uri.path()), complete, duration_s = took.as_secs_f64(), "request");
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        self.traced(None, None);
        self.worker.shared.metrics.in_flight.dec();
        self.activity.end();
    }
}
