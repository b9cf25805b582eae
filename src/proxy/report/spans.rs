//! The spans of one request: its own, and one for each time that it is sent upstream.
//!
//! Not here: which requests are recorded (`telemetry::traces`). Names are OpenTelemetry's conventions for HTTP.
//! Holds: of a request only method (of a closed list), host, port and path are told.

use http::{Method, Request, StatusCode};
use hyper::body::Incoming;

use crate::model::Name;
use crate::model::connection::Connection;
use crate::model::origin::Origin;
use crate::proxy::worker::Worker;
use crate::telemetry::traces::{Propagation, Sampling, Span};

/// What `error.type` says of a request whose caller went away before there was an answer.
const CALLER_GONE: &str = "caller_gone";

pub struct Spans {
    own: Sampling,
    leg: Option<Leg>,
}

struct Leg {
    span: Span,
    answered: bool,
}

/// What is known of a request at its end.
pub struct Summary<'a> {
    pub path: &'a str,
    pub origin: Option<&'a Origin>,
    pub connection: Option<&'a Connection>,
    pub caller: Option<&'a Name>,
    /// `None`: the caller went away.
    pub status: Option<StatusCode>,
    /// Of an error that the proxy itself answered.
    pub code: Option<&'static str>,
}

impl Spans {
    pub fn begin(worker: &Worker, request: &Request<Incoming>) -> Spans {
        let wall = || worker.shared.clock.now().wall;
        Spans { own: worker.snapshot().tracer.join(request.headers(), request.method(), wall), leg: None }
    }

    /// The request is sent upstream, perhaps once more; the context that goes with it, where it is not the caller's own.
    pub fn send(
        &mut self,
        method: &Method,
        origin: &Origin,
        path: &str,
        connection: Option<&Connection>,
    ) -> Option<Propagation> {
        let own = match &self.own {
            Sampling::PassThrough => return None,
            Sampling::Unsampled(propagation) => return Some(propagation.clone()),
            Sampling::Recorded(own) => own,
        };
        let mut span = own.child(method);
        describe(&mut span, path, Some(origin), connection);
        if let Some(before) = self.leg.take() {
            span.set("http.request.resend_count", 1);
            before.span.end();
        }
        let propagation = span.propagation(own.is_root());
        self.leg = Some(Leg { span, answered: false });
        Some(propagation)
    }

    /// The head of the upstream's answer, or the code of what went wrong.
    pub fn answered(&mut self, answer: Result<StatusCode, &'static str>) {
        let Some(Leg { span, answered }) = &mut self.leg else { return };
        *answered = true;
        match answer {
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
        let Sampling::Recorded(mut own) = std::mem::take(&mut self.own) else { return };
        if let Some(Leg { mut span, answered }) = self.leg.take() {
            if !answered {
                span.fail(CALLER_GONE);
            }
            span.end();
        }
        describe(&mut own, summary.path, summary.origin, summary.connection);
        if let Some(caller) = summary.caller {
            own.set("keybearer.caller", caller.to_string());
        }
        if let Some(status) = summary.status {
            own.set("http.response.status_code", i64::from(status.as_u16()));
        }
        match (summary.status, summary.code) {
            (None, _) => own.fail(CALLER_GONE),
            (Some(status), Some(code)) if status.is_server_error() => own.fail(code),
            // The caller's mistake is not the server's failure, but it has a name.
            (Some(_), Some(code)) => own.set("error.type", code),
            (Some(status), None) if status.is_server_error() => own.fail(status.as_str().to_owned()),
            (Some(_), None) => {}
        }
        own.end();
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
