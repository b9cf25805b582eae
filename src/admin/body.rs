//! Request bodies of the API.
//!
//! Invariants: a body is a JSON object, with a size limit and a deadline; no response repeats it.

use std::time::Duration;

use axum::extract::Request;
use axum::http::{StatusCode, header};
use serde::de::DeserializeOwned;

use super::problem::{Problem, bad_request};

const BODY_BYTES_MAX: usize = 64 * 1024;
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Reads a JSON body; an empty one gives the default.
pub async fn body<T: DeserializeOwned + Default>(request: Request) -> Result<T, Problem> {
    let (parts, body) = request.into_parts();
    let read = tokio::time::timeout(BODY_TIMEOUT, axum::body::to_bytes(body, BODY_BYTES_MAX)).await;
    let bytes = match read {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) => return Err(read_failed(&error)),
        Err(_) => {
            return Err(Problem::new(
                StatusCode::REQUEST_TIMEOUT,
                "request_timeout",
                "timed out waiting for the rest of the body; retry",
            ));
        }
    };
    if bytes.is_empty() {
        return Ok(T::default());
    }
    let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/json") {
        let detail = "the body must be application/json";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not_json", detail));
    }
    // serde would also read the members from an array.
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(bad_request("the body must be a JSON object"));
    }
    serde_json::from_slice(&bytes).map_err(|error| {
        // The position only: the body may hold secrets.
        let detail =
            format!("the body is not valid for this operation (line {}, column {})", error.line(), error.column());
        bad_request(detail)
    })
}

fn read_failed(error: &axum::Error) -> Problem {
    let inner = std::error::Error::source(error);
    if inner.is_some_and(|inner| inner.is::<http_body_util::LengthLimitError>()) {
        let detail = format!("the body is larger than {BODY_BYTES_MAX} bytes");
        return Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail);
    }
    bad_request("the body is incomplete")
}
