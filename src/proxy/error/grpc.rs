//! Errors as gRPC has them: a head that is also the trailers (gRPC over HTTP/2, "Trailers-Only").

use std::fmt::Write;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName};
use http::{HeaderValue, Response, StatusCode};

use super::{ProxyError, Row};

/// gRPC's codes, as its specification numbers them.
const FAILED_PRECONDITION: u16 = 9;
const UNAVAILABLE: u16 = 14;
const UNAUTHENTICATED: u16 = 16;

/// `response` is the answer that HTTP would have; what it says beside its body stays.
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

/// Visible ASCII and the space stand for themselves, but for `%`.
fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut encoded, byte| {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(char::from(byte)),
            // Writing to a String does not fail.
            _ => drop(write!(encoded, "%{byte:02X}")),
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::super::{About, Unreachable};
    use super::*;

    #[test]
    fn each_action_has_its_code() {
        #[track_caller]
        fn check(error: ProxyError, expected: &str) {
            let response = trailers_only(&error, error.response(About::default()));
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
    fn a_message_is_ascii() {
        assert_eq!(percent_encoded("100 % ü\n"), "100 %25 %C3%BC%0A");
    }
}
