//! What the API answers when it does not do what was asked: RFC 9457. The only place that makes such answers.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

/// A refusal with a stable code and a sentence that says the way out.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
    retry_after: Option<Duration>,
    more: Map<String, Value>,
}

impl Problem {
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Problem {
        Problem { status, code, detail: detail.into(), retry_after: None, more: Map::new() }
    }

    pub fn retry_after(self, span: Duration) -> Problem {
        Problem { retry_after: Some(span), ..self }
    }

    /// The same with another member.
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Problem {
        self.more.insert(name.to_owned(), value.into());
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut members = self.more;
        members.insert("type".to_owned(), format!("urn:keybearer:error:{}", self.code).into());
        members.insert("title".to_owned(), self.status.canonical_reason().unwrap_or_default().into());
        members.insert("status".to_owned(), json!(self.status.as_u16()));
        members.insert("code".to_owned(), self.code.into());
        members.insert("detail".to_owned(), self.detail.into());
        let mut response = (self.status, Value::Object(members).to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"keybearer\""));
        }
        if let Some(span) = self.retry_after {
            // Rounded up: a moment too early would be refused again.
            headers.insert(header::RETRY_AFTER, (span.as_secs() + u64::from(span.subsec_nanos() > 0)).into());
        }
        response
    }
}
