//! Errors as gRPC responses: "Trailers-Only", a head that is also the trailers (gRPC over HTTP/2).

use std::fmt::Write;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName};
use http::{HeaderValue, Response, StatusCode};

use super::{ProxyError, Row};

/// gRPC status codes.
const FAILED_PRECONDITION: u16 = 9;
const UNAVAILABLE: u16 = 14;
const UNAUTHENTICATED: u16 = 16;

/// Converts the HTTP error `response` to a gRPC one. Keeps its fields, drops its body.
pub fn trailers_only(error: &ProxyError, response: Response<Bytes>) -> Response<Bytes> {
    let Row(_, _, _, action) = error.row();
    let status = match (error, action) {
        (ProxyError::CallerUnknown { .. }, _) => UNAUTHENTICATED,
        (_, "retry_later") => UNAVAILABLE,
        _ => FAILED_PRECONDITION,
    };
    let (mut head, _) = response.into_parts();
    head.status = StatusCode::OK;
    head.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    head.headers.insert(HeaderName::from_static("grpc-status"), HeaderValue::from(status));
    if let Ok(message) = HeaderValue::try_from(percent_encoded(&error.detail())) {
        head.headers.insert(HeaderName::from_static("grpc-message"), message);
    }
    Response::from_parts(head, Bytes::new())
}

/// Percent-encodes everything but visible ASCII and space; `%` as well.
fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut encoded, byte| {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(char::from(byte)),
            // Writing to a String is infallible.
            _ => drop(write!(encoded, "%{byte:02X}")),
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::super::{ErrorContext, Unreachable};
    use super::*;

    #[test]
    fn each_action_has_its_status_code() {
        #[track_caller]
        fn check(error: ProxyError, expected: &str) {
            let response = trailers_only(&error, error.response(ErrorContext::default()));
            assert_eq!(response.status(), 200);
            assert_eq!(response.headers()["grpc-status"], expected);
            assert_eq!(response.headers()["keybearer-error"], error.code());
            assert!(response.body().is_empty());
        }
        check(ProxyError::CallerUnknown { mount: true }, "16");
        check(ProxyError::Overloaded, "14");
        check(ProxyError::UpstreamUnreachable(Unreachable::Connect), "14");
        check(ProxyError::NoRoute, "9");
        check(ProxyError::ConsentRequired { again: false, link: None }, "9");
    }

    #[test]
    fn a_message_is_encoded_as_ascii() {
        assert_eq!(percent_encoded("100 % ü\n"), "100 %25 %C3%BC%0A");
    }
}
