//! The spans of one request: a server span, and a client span per attempt upstream.
//!
//! Names follow OpenTelemetry's semantic conventions for HTTP.
//! Invariant: spans reveal of a request only its method (from a closed list), host, port and path.
//! Not here: sampling (`telemetry::traces`).

use http::{Method, Request, StatusCode};
use hyper::body::Incoming;

use crate::model::Name;
use crate::model::connection::Connection;
use crate::model::origin::Origin;
use crate::proxy::worker::Worker;
use crate::telemetry::traces::{Propagation, Sampling, Span};

/// `error.type` of a request whose caller disconnected before the response.
const CALLER_GONE: &str = "caller_gone";

pub struct Spans {
    server: Sampling,
    attempt: Option<Attempt>,
}

/// The latest attempt upstream.
struct Attempt {
    span: Span,
    has_result: bool,
}

/// What is known of a request at its end.
pub struct Summary<'a> {
    pub path: &'a str,
    pub origin: Option<&'a Origin>,
    pub connection: Option<&'a Connection>,
    pub caller: Option<&'a Name>,
    /// `None`: the caller disconnected.
    pub status: Option<StatusCode>,
    /// The code of the proxy's own error response.
    pub code: Option<&'static str>,
}

impl Spans {
    pub fn begin(worker: &Worker, request: &Request<Incoming>) -> Spans {
        let wall = || worker.state.clock.now().wall;
        Spans { server: worker.snapshot().tracer.join(request.headers(), request.method(), wall), attempt: None }
    }

    /// Starts the span of an attempt upstream. Returns the trace context to send; `None`: the caller's own context is
    /// forwarded.
    pub fn send(
        &mut self,
        method: &Method,
        origin: &Origin,
        path: &str,
        connection: Option<&Connection>,
    ) -> Option<Propagation> {
        let server = match &self.server {
            Sampling::PassThrough => return None,
            Sampling::Unsampled(propagation) => return Some(propagation.clone()),
            Sampling::Recorded(server) => server,
        };
        let mut span = server.child(method);
        describe(&mut span, path, Some(origin), connection);
        if let Some(previous) = self.attempt.take() {
            span.set("http.request.resend_count", 1);
            previous.span.end();
        }
        let propagation = span.propagation(server.is_root());
        self.attempt = Some(Attempt { span, has_result: false });
        Some(propagation)
    }

    /// Records the status of the upstream's response, or the error code of the attempt.
    pub fn set_result(&mut self, result: Result<StatusCode, &'static str>) {
        let Some(Attempt { span, has_result }) = &mut self.attempt else { return };
        *has_result = true;
        match result {
            Ok(status) => {
                span.set("http.response.status_code", i64::from(status.as_u16()));
                if status.is_client_error() || status.is_server_error() {
                    span.fail(status.as_str().to_owned());
                }
            }
            Err(code) => span.fail(code),
        }
    }

    pub fn end(&mut self, summary: &Summary<'_>) {
        let Sampling::Recorded(mut server) = std::mem::take(&mut self.server) else { return };
        if let Some(Attempt { mut span, has_result }) = self.attempt.take() {
            if !has_result {
                span.fail(CALLER_GONE);
            }
            span.end();
        }
        describe(&mut server, summary.path, summary.origin, summary.connection);
        if let Some(caller) = summary.caller {
            server.set("keybearer.caller", caller.to_string());
        }
        if let Some(status) = summary.status {
            server.set("http.response.status_code", i64::from(status.as_u16()));
        }
        match (summary.status, summary.code) {
            (None, _) => server.fail(CALLER_GONE),
            (Some(status), Some(code)) if status.is_server_error() => server.fail(code),
            // A 4xx is the caller's error: the server span does not fail, but names the code.
            (Some(_), Some(code)) => server.set("error.type", code),
            (Some(status), None) if status.is_server_error() => server.fail(status.as_str().to_owned()),
            (Some(_), None) => {}
        }
        server.end();
    }
}

fn describe(span: &mut Span, path: &str, origin: Option<&Origin>, connection: Option<&Connection>) {
    span.set("url.path", path.to_owned());
    if let Some(origin) = origin {
        span.set("url.scheme", origin.scheme.as_str());
        span.set("server.address", origin.host.to_string());
        span.set("server.port", i64::from(origin.port));
    }
    if let Some(connection) = connection {
        span.set("keybearer.connection", connection.name.to_string());
        span.set("keybearer.profile", connection.profile.to_string());
    }
}
