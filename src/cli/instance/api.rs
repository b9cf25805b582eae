//! Calls of the API of a running instance.
//!
//! Not here: how the instance is found (`instance`), one request and its response (`endpoint`).
//! Invariant: the body of a request, which may hold secrets, is wiped from memory once it was sent.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, header};
use serde_json::Value;
use zeroize::Zeroizing;

use super::CallError;
use super::endpoint::{Endpoint, Response};
use crate::model::secret::Secret;

/// Timeout of most calls; longer than any operation of the instance on one connection.
const CALL_TIMEOUT: Duration = Duration::from_secs(45);

/// A running instance, and the token to present to it.
pub struct Instance {
    endpoint: Endpoint,
    token: Secret,
}

/// One request.
pub struct Call<'a> {
    pub method: Method,
    /// Segments below `/api/v1`.
    pub path: &'a [&'a str],
    pub query: &'a [(&'a str, &'a str)],
    /// JSON.
    pub body: Option<Zeroizing<String>>,
    pub timeout: Duration,
}

impl Instance {
    pub fn new(endpoint: Endpoint, token: Secret) -> Instance {
        Instance { endpoint, token }
    }

    /// Calls the API; `Err` also if the instance refuses.
    pub fn call(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<Value>,
    ) -> Result<Value, CallError> {
        let body = body.map(|body| Zeroizing::new(body.to_string()));
        self.json(Call { method, path, query, body, timeout: CALL_TIMEOUT })
    }

    /// Sends a call whose response is JSON.
    pub fn json(&self, call: Call<'_>) -> Result<Value, CallError> {
        let response = self.accepted(call)?;
        let object = serde_json::from_slice(&response.body).ok().filter(Value::is_object);
        object.ok_or_else(|| self.unknown(&response))
    }

    /// Sends a call whose response is YAML.
    pub fn yaml(&self, call: Call<'_>) -> Result<String, CallError> {
        let response = self.accepted(call)?;
        if !response.content_type.contains("yaml") {
            let text =
                format!("the instance at {} does not export YAML; it may run another version", self.endpoint.base());
            return Err(CallError::Local(text));
        }
        // YAML has escapes for other control characters, which could change the terminal.
        let is_printable = |text: &String| !text.contains(|c: char| c.is_control() && !matches!(c, '\n' | '\t'));
        let text = String::from_utf8(response.body).ok().filter(is_printable);
        text.ok_or_else(|| CallError::Local(format!("the response of {} is not YAML", self.endpoint.base())))
    }

    /// The response, if the instance accepts the call.
    fn accepted(&self, call: Call<'_>) -> Result<Response, CallError> {
        let response = self.send(call)?;
        if (200..300).contains(&response.status) {
            return Ok(response);
        }
        let problem: Value = serde_json::from_slice(&response.body).unwrap_or_default();
        match problem["code"].is_string() {
            true => Err(CallError::Refused(problem)),
            false => Err(self.unknown(&response)),
        }
    }

    fn send(&self, Call { method, path, query, body, timeout }: Call<'_>) -> Result<Response, CallError> {
        let Instance { endpoint, token } = self;
        let mut url = endpoint.url(&[&["api", "v1"], path].concat())?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = reqwest::Request::new(method, url);
        let value = HeaderValue::try_from(format!("Bearer {}", token.expose()));
        let invalid = "the admin token contains characters that are not allowed in a header";
        let mut value = value.map_err(|_| CallError::Local(invalid.to_owned()))?;
        value.set_sensitive(true);
        request.headers_mut().insert(header::AUTHORIZATION, value);
        if let Some(body) = body {
            request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            *request.body_mut() = Some(Bytes::from_owner(body).into());
        }
        endpoint.send(request, timeout)
    }

    fn unknown(&self, response: &Response) -> CallError {
        CallError::Local(format!(
            "{} is not a Keybearer instance (status {}); set another --admin",
            self.endpoint.base(),
            response.status
        ))
    }
}
