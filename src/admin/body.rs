//! Request bodies of the API.
//!
//! Invariants: a body is JSON, with a size limit and a deadline; no response repeats it.

use std::time::Duration;

use axum::extract::Request;
use axum::http::{StatusCode, header};
use serde::de::DeserializeOwned;

use super::problem::Problem;

const BODY_BYTES_MAX: usize = 64 * 1024;
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Reads a JSON body; an empty one gives the default.
pub async fn body<T: DeserializeOwned + Default>(request: Request) -> Result<T, Problem> {
    body_within(BODY_BYTES_MAX, request).await
}

/// Like [`body`], of at most `bytes_max` bytes.
pub async fn body_within<T: DeserializeOwned + Default>(bytes_max: usize, request: Request) -> Result<T, Problem> {
    let (parts, body) = request.into_parts();
    let read = tokio::time::timeout(BODY_TIMEOUT, axum::body::to_bytes(body, bytes_max)).await;
    let bytes = match read {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) => return Err(read_failed(&error, bytes_max)),
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
    serde_json::from_slice(&bytes).map_err(|error| {
        // The position only: the body may hold secrets.
        let detail =
            format!("the body is not valid for this operation (line {}, column {})", error.line(), error.column());
        Problem::new(StatusCode::BAD_REQUEST, "bad_request", detail)
    })
}

fn read_failed(error: &axum::Error, bytes_max: usize) -> Problem {
    let inner = std::error::Error::source(error);
    if inner.is_some_and(|inner| inner.is::<http_body_util::LengthLimitError>()) {
        let detail = format!("the body is larger than {bytes_max} bytes");
        return Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail);
    }
    Problem::new(StatusCode::BAD_REQUEST, "bad_request", "the body is incomplete")
}
