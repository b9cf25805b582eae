//! Request bodies of the API.
//!
//! Invariants: a body has a media type that its operation accepts, a size limit and a deadline; no response repeats it.

use std::time::Duration;

use axum::extract::Request;
use axum::http::{StatusCode, header};
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::problem::{Problem, bad_request};

const BODY_BYTES_MAX: usize = 64 * 1024;
/// Timeout of a whole body, before the allowance for its size limit.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Minimum transfer rate: the size limit extends the timeout at this rate.
const BYTES_PER_SECOND: usize = 1 << 20;

/// Media types, the first of which an error names.
pub type MediaTypes = &'static [&'static str];
pub const JSON: MediaTypes = &["application/json"];
pub const YAML: MediaTypes = &["application/yaml", "application/x-yaml", "text/yaml"];
/// RFC 7396.
pub const MERGE_PATCH: MediaTypes = &["application/merge-patch+json"];

/// Reads a JSON body; an empty one gives the default.
pub async fn body<T: DeserializeOwned + Default>(request: Request) -> Result<T, Problem> {
    body_within(BODY_BYTES_MAX, request).await
}

/// Reads a JSON body of at most `max` bytes.
pub async fn body_within<T: DeserializeOwned + Default>(max: usize, request: Request) -> Result<T, Problem> {
    let text = text(request, max, &[JSON]).await?;
    if text.is_empty() {
        return Ok(T::default());
    }
    object(&text)
}

/// Reads a JSON object.
pub fn object<T: DeserializeOwned>(text: &str) -> Result<T, Problem> {
    // serde would also read the members from an array.
    if !text.trim_start().starts_with('{') {
        return Err(bad_request("the body must be a JSON object"));
    }
    serde_json::from_str(text).map_err(|error| {
        // The position only: the body may hold secrets.
        bad_request(format!(
            "the body is not valid for this operation (line {}, column {})",
            error.line(),
            error.column()
        ))
    })
}

/// Reads a body of at most `max` bytes in one of the media types; an empty one may have none.
pub async fn text(request: Request, max: usize, accepted: &[MediaTypes]) -> Result<Zeroizing<String>, Problem> {
    let (parts, body) = request.into_parts();
    let timeout = BODY_TIMEOUT + Duration::from_secs((max / BYTES_PER_SECOND) as u64);
    let bytes = match tokio::time::timeout(timeout, axum::body::to_bytes(body, max)).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) => return Err(read_failed(&error, max)),
        Err(_) => {
            let detail = "timed out waiting for the rest of the body; retry";
            return Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", detail));
        }
    };
    if bytes.is_empty() {
        return Ok(Zeroizing::default());
    }
    let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !accepted.iter().copied().flatten().any(|accepted| kind.eq_ignore_ascii_case(accepted)) {
        let names: Vec<_> = accepted.iter().map(|types| types[0]).collect();
        let code = if names == ["application/json"] { "not_json" } else { "media_type_refused" };
        let detail = format!("the body must be {}", names.join(" or "));
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, code, detail));
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| bad_request("the body is not UTF-8"))?;
    Ok(Zeroizing::new(text.to_owned()))
}

fn read_failed(error: &axum::Error, max: usize) -> Problem {
    let inner = std::error::Error::source(error);
    if inner.is_some_and(|inner| inner.is::<http_body_util::LengthLimitError>()) {
        let detail = format!("the body is larger than {max} bytes");
        return Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail);
    }
    bad_request("the body is incomplete")
}
