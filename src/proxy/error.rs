//! The proxy's own error responses (RFC 9457, RFC 9209). Errors become responses here and nowhere else.
//!
//! Invariants: a response names the connection, the code and the remedy; it contains no address, path, token or server
//! text beyond a sanitized OAuth error code.
//! Metrics: `report` counts `keybearer_errors_total` by [`ProxyError::code`].

pub mod grpc;
mod tls;

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, PROXY_AUTHENTICATE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode};
use serde_json::json;

use crate::token::slot::NEEDS_CONSENT_AGAIN;
pub use tls::TlsFault;

/// Why the proxy responds in place of the upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProxyError {
    BadRequestTarget(&'static str),
    SubjectRequired(&'static str),
    RequestTimeout,
    TargetTooLong(&'static str),
    HeadTooLarge,
    NoMount,
    MethodRefused,
    AuthorityMismatch,
    CallerUnknown { mount: bool },
    CallerNotAllowed,
    SubjectNotAllowed,
    NoRoute,
    ConnectionInactive,
    EgressDenied(&'static str),
    LoopDetected,
    ConsentRequired { again: bool, link: Option<String> },
    RefreshTokenExpired { error: String, link: Option<String> },
    TokenRefused { error: String },
    ScriptFailed { message: String },
    TokenUnavailable { error: String, retry_after: Duration },
    Overloaded,
    UpstreamTls(TlsFault),
    UpstreamUnreachable(Unreachable),
    UpstreamProtocol,
    UpstreamTimeout,
}

/// The detail of [`ProxyError::TargetTooLong`] for a target as the caller sent it.
pub const LONG_TARGET: &str = "the request line is longer than limits.head; shorten the URL, or raise the limit";

/// An error, and its cause, which only the log shows.
#[derive(Debug)]
pub struct Fault {
    pub error: ProxyError,
    pub cause: Option<String>,
}

impl From<ProxyError> for Fault {
    fn from(error: ProxyError) -> Fault {
        Fault { error, cause: None }
    }
}

impl ProxyError {
    pub fn because(self, cause: impl ToString) -> Fault {
        Fault { error: self, cause: Some(cause.to_string()) }
    }
}

/// The step at which an upstream turned out to be unreachable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreachable {
    Name,
    Connect,
    Timeout,
    /// Closed during the TLS handshake.
    Handshake,
    /// Closed before the request was sent.
    ClosedUnsent,
    /// Closed after at least part of the request was sent.
    Closed,
}

/// Identifies the connection and the request in an error response.
#[derive(Debug, Clone, Copy, Default)]
pub struct ErrorContext<'a> {
    pub connection: Option<&'a str>,
    pub profile: Option<&'a str>,
    pub request_id: &'a str,
}

/// Code, status, RFC 9209 error type and action of one error: a row of the contract's table.
struct Row(&'static str, u16, &'static str, &'static str);

impl ProxyError {
    fn row(&self) -> Row {
        use ProxyError::*;
        match self {
            BadRequestTarget(_) => Row("bad_request_target", 400, "http_request_error", "fix_request"),
            SubjectRequired(_) => Row("subject_required", 400, "http_request_error", "fix_request"),
            RequestTimeout => Row("request_timeout", 408, "http_request_error", "fix_request"),
            TargetTooLong(_) => Row("target_too_long", 414, "http_request_error", "fix_request"),
            HeadTooLarge => Row("head_too_large", 431, "http_request_error", "fix_request"),
            NoMount => Row("no_mount", 404, "destination_not_found", "fix_request"),
            MethodRefused => Row("method_refused", 405, "http_request_denied", "fix_request"),
            AuthorityMismatch => Row("authority_mismatch", 421, "http_request_error", "fix_request"),
            CallerUnknown { mount: false } => Row("caller_unknown", 407, "http_request_denied", "authenticate"),
            CallerUnknown { mount: true } => Row("caller_unknown", 401, "http_request_denied", "authenticate"),
            CallerNotAllowed => Row("caller_not_allowed", 403, "http_request_denied", "fix_configuration"),
            SubjectNotAllowed => Row("subject_not_allowed", 403, "http_request_denied", "fix_configuration"),
            NoRoute => Row("no_route", 403, "http_request_denied", "fix_configuration"),
            ConnectionInactive => Row("connection_inactive", 403, "http_request_denied", "fix_configuration"),
            EgressDenied(_) => Row("egress_denied", 403, "destination_ip_prohibited", "fix_configuration"),
            LoopDetected => Row("loop_detected", 508, "proxy_loop_detected", "fix_configuration"),
            ConsentRequired { .. } => Row("consent_required", 424, "proxy_configuration_error", "reauthorize"),
            RefreshTokenExpired { .. } => Row("refresh_token_expired", 424, "proxy_configuration_error", "reauthorize"),
            ScriptFailed { .. } => Row("script_failed", 424, "proxy_configuration_error", "fix_configuration"),
            TokenRefused { .. } => Row("token_refused", 424, "proxy_configuration_error", "fix_configuration"),
            TokenUnavailable { .. } => Row("token_unavailable", 503, "proxy_internal_error", "retry_later"),
            Overloaded => Row("overloaded", 503, "connection_limit_reached", "retry_later"),
            UpstreamTls(fault) => Row("upstream_tls", 502, fault.proxy_status(), "fix_configuration"),
            UpstreamUnreachable(step) => Row("upstream_unreachable", 502, step.proxy_status(), "retry_later"),
            UpstreamProtocol => Row("upstream_protocol", 502, "http_protocol_error", "retry_later"),
            UpstreamTimeout => Row("upstream_timeout", 504, "http_response_timeout", "retry_later"),
        }
    }

    pub fn code(&self) -> &'static str {
        self.row().0
    }

    /// True for an audit denial: a request that is not permitted, as opposed to one that failed.
    pub fn is_denial(&self) -> bool {
        use ProxyError::*;
        match self {
            CallerUnknown { .. } | CallerNotAllowed | SubjectNotAllowed | NoRoute | ConnectionInactive => true,
            EgressDenied(_) | MethodRefused | AuthorityMismatch | LoopDetected => true,
            BadRequestTarget(_) | SubjectRequired(_) | TargetTooLong(_) | RequestTimeout | HeadTooLarge | NoMount => {
                false
            }
            ConsentRequired { .. }
            | RefreshTokenExpired { .. }
            | TokenRefused { .. }
            | ScriptFailed { .. }
            | TokenUnavailable { .. }
            | Overloaded => false,
            UpstreamTls(_) | UpstreamUnreachable(_) | UpstreamProtocol | UpstreamTimeout => false,
        }
    }

    /// What happened and what to do next, for the caller.
    pub fn detail(&self) -> String {
        use ProxyError::*;
        match self {
            BadRequestTarget(why) | SubjectRequired(why) | TargetTooLong(why) => (*why).to_owned(),
            RequestTimeout => "timed out waiting for the rest of the request; resend it, or raise the limit under `timeouts`".to_owned(),
            HeadTooLarge => "the request head is larger than limits.head; send fewer or shorter headers, or raise the limit".to_owned(),
            NoMount => "no connection has a mount for this path; request the full URL through the proxy, or add a mount".to_owned(),
            MethodRefused => "TRACE would reveal the token to the caller; use another method".to_owned(),
            AuthorityMismatch => "the request is for a different host than its tunnel; open one tunnel per host".to_owned(),
            CallerUnknown { mount: false } => {
                "send Proxy-Authorization with the name and secret of a configured caller (http://name:secret@proxy)".to_owned()
            }
            CallerUnknown { mount: true } => {
                "send Keybearer-Authorization with the name and secret of a configured caller".to_owned()
            }
            CallerNotAllowed => "the connection is not accessible_from this caller; add the caller there".to_owned(),
            SubjectNotAllowed => "this caller may not act for that subject; add it to the caller's `subjects`".to_owned(),
            NoRoute => "no route of this host matches the path and method, or the name in Keybearer-Connection; add one, or change the request".to_owned(),
            ConnectionInactive => "the connection is inactive; remove its `active: false`".to_owned(),
            EgressDenied(why) => (*why).to_owned(),
            LoopDetected => "the request has looped back to this proxy; do not point a route at it".to_owned(),
            ConsentRequired { again, link } => {
                let why = if *again { NEEDS_CONSENT_AGAIN } else { "the connection has not been connected with its current settings" };
                format!("{why}; {}", connect_hint(link.as_deref()))
            }
            RefreshTokenExpired { error, link } => format!(
                "the authorization server refused the refresh token with `{error}`; {}",
                connect_hint(link.as_deref())
            ),
            TokenRefused { error } => format!(
                "the authorization server refused the token request with `{error}`; correct the connection's client, secret or scopes"
            ),
            ScriptFailed { message } => format!("the connection's script failed: {message}; correct the script"),
            TokenUnavailable { error, .. } => {
                format!("no usable token, and the authorization server issued no new one ({error}); the proxy keeps trying, so retry later")
            }
            Overloaded => "a limit of the proxy has been reached; retry later, or raise it under `limits`".to_owned(),
            UpstreamTls(fault) => fault.detail(),
            UpstreamUnreachable(step) => step.detail().to_owned(),
            UpstreamProtocol => "the upstream's response is not valid HTTP; check the scheme and port, and see the proxy's log for the cause".to_owned(),
            UpstreamTimeout => "the upstream did not respond in time; retry later, or raise the limit under `timeouts`".to_owned(),
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            ProxyError::TokenUnavailable { retry_after, .. } => Some(*retry_after),
            ProxyError::Overloaded => Some(Duration::from_secs(1)),
            _ => None,
        }
    }

    /// The link where a person can resolve the error.
    fn link(&self) -> Option<&str> {
        match self {
            ProxyError::ConsentRequired { link, .. } | ProxyError::RefreshTokenExpired { link, .. } => link.as_deref(),
            _ => None,
        }
    }

    pub fn response(&self, about: ErrorContext<'_>) -> Response<Bytes> {
        let Row(code, status, proxy_status, action) = self.row();
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let problem = json!({
            "type": format!("urn:keybearer:error:{code}"),
            "title": code.replace('_', " "),
            "status": status.as_u16(),
            "detail": self.detail(),
            "code": code,
            "connection": about.connection,
            "profile": about.profile,
            "action": action,
            "link": self.link(),
            "request_id": about.request_id,
        });
        let mut response = Response::new(Bytes::from(format!("{problem}\n")));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert("keybearer-error", HeaderValue::from_static(code));
        let parameters = match self {
            ProxyError::UpstreamTls(fault) => fault.proxy_status_parameters(),
            _ => String::new(),
        };
        if let Ok(value) = HeaderValue::try_from(format!("keybearer; error={proxy_status}{parameters}")) {
            headers.insert("proxy-status", value);
        }
        if let Some(wait) = self.retry_after() {
            headers.insert(RETRY_AFTER, HeaderValue::from(wait.as_secs_f64().ceil().max(1.0) as u64));
        }
        match self {
            ProxyError::CallerUnknown { mount: false } => {
                headers.insert(PROXY_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"keybearer\""));
            }
            ProxyError::CallerUnknown { mount: true } => {
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Keybearer realm=\"keybearer\""));
            }
            // After a malformed request, the rest of the connection cannot be parsed safely.
            ProxyError::BadRequestTarget(_) => {
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
            }
            ProxyError::MethodRefused => {
                headers.insert(
                    http::header::ALLOW,
                    HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
                );
            }
            _ => {}
        }
        response
    }
}

fn connect_hint(link: Option<&str>) -> &'static str {
    match link {
        Some(_) => "open the link in a browser, or run `keybearer connect NAME`",
        None => "run `keybearer connect NAME`, or set `public_url` to get a link",
    }
}

impl Unreachable {
    fn proxy_status(self) -> &'static str {
        match self {
            Unreachable::Name => "dns_error",
            Unreachable::Connect => "connection_refused",
            Unreachable::Timeout => "connection_timeout",
            Unreachable::Handshake | Unreachable::ClosedUnsent | Unreachable::Closed => "connection_terminated",
        }
    }

    fn detail(self) -> &'static str {
        match self {
            Unreachable::Name => "the host name cannot be resolved; correct it, or add its address under `hosts`",
            Unreachable::Connect => "the upstream refuses connections; retry later, or correct the host and port",
            Unreachable::Timeout => {
                "the upstream did not accept the connection in time; retry later, or correct the host and port"
            }
            Unreachable::Handshake => {
                "the upstream closed the connection during the TLS handshake, so the request was not sent; correct the scheme or port, or see the upstream's log"
            }
            Unreachable::ClosedUnsent => {
                "the upstream closed the connection before the request was sent; retry the request"
            }
            Unreachable::Closed => {
                "the upstream closed the connection without a complete response; the request may have been processed, so check before you retry it"
            }
        }
    }
}

/// Serializes a response, for a connection that hyper no longer serves.
pub fn to_wire(response: &Response<Bytes>) -> Vec<u8> {
    let status = response.status();
    let reason = status.canonical_reason().unwrap_or("Error");
    let mut wire = format!("HTTP/1.1 {} {reason}\r\n", status.as_u16()).into_bytes();
    for (name, value) in response.headers().iter().filter(|(name, _)| *name != CONNECTION) {
        wire.extend_from_slice(name.as_str().as_bytes());
        wire.extend_from_slice(b": ");
        wire.extend_from_slice(value.as_bytes());
        wire.extend_from_slice(b"\r\n");
    }
    wire.extend_from_slice(
        format!("content-length: {}\r\nconnection: close\r\n\r\n", response.body().len()).as_bytes(),
    );
    wire.extend_from_slice(response.body());
    wire
}

#[cfg(test)]
mod tests;
