//! Sends one request to an authorization server and reads the response, under a size limit.
//!
//! Invariants: an oversized response, as received or decoded, is not read to its end; no error shows a URL's query.
//! Not here: HTTP clients (`clients`), timeouts (`oauth`), the meaning of the response (`response`).

use std::error::Error;
use std::io::Read as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::SystemTime;

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use hyper::body::{Body, Frame, SizeHint};
use url::Url;
use zeroize::Zeroizing;

use super::failure::Reason;
use super::redact::printable;
use crate::clock::Clock;
use crate::model::time::BootTime;
use crate::tls;

/// Size limit of a response, which applies again to its decoded body.
const RESPONSE_BYTES_MAX: usize = 1024 * 1024;
const DETAIL_CHARS_MAX: usize = 300;

/// The complete response of any endpoint of an authorization server.
pub struct TokenResponse {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Zeroizing<Vec<u8>>,
    /// Wall time, for a `Retry-After` date in a response without `Date`.
    pub received: SystemTime,
}

/// Why there is no complete response.
pub struct TransportError {
    pub reason: Reason,
    /// The library's error text, sanitized for the log.
    pub detail: String,
}

impl From<Reason> for TransportError {
    fn from(reason: Reason) -> TransportError {
        TransportError { reason, detail: String::new() }
    }
}

impl From<reqwest::Error> for TransportError {
    fn from(error: reqwest::Error) -> TransportError {
        // The URL's query may hold anything.
        let error = error.without_url();
        let reason = if causes(&error).any(|cause| cause.is::<TooLate>()) {
            Reason::NotSent
        } else if tls::cause(&error).is_some() {
            Reason::Tls
        } else if error.is_connect() {
            Reason::Unreachable
        } else if causes(&error).filter_map(|cause| cause.downcast_ref()).any(hyper::Error::is_parse) {
            Reason::NotHttp
        } else {
            Reason::ConnectionLost
        };
        let detail = causes(&error).map(|cause| cause.to_string()).collect::<Vec<_>>().join(": ");
        TransportError { reason, detail: detail.chars().map(printable).take(DETAIL_CHARS_MAX).collect() }
    }
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |cause: &&'a (dyn Error + 'static)| (*cause).source())
}

/// A request body that is sent before a deadline or not at all: the process may be suspended between the decision to
/// send it and the connection to send it on.
pub struct Timely {
    form: Option<Bytes>,
    before: BootTime,
}

#[derive(Debug, thiserror::Error)]
#[error("the send deadline has passed")]
pub struct TooLate;

impl Timely {
    pub fn new(form: String, before: BootTime) -> Timely {
        Timely { form: Some(form.into()), before }
    }
}

impl Body for Timely {
    type Data = Bytes;
    type Error = TooLate;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, TooLate>>> {
        let this = self.get_mut();
        if Clock::system().now().boot >= this.before {
            return Poll::Ready(Some(Err(TooLate)));
        }
        Poll::Ready(this.form.take().map(|form| Ok(Frame::data(form))))
    }

    fn is_end_stream(&self) -> bool {
        self.form.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.form.as_ref().map_or(0, |form| form.len() as u64))
    }
}

/// Sends one request and reads its complete response. Sets no timeout itself.
pub async fn send(client: &reqwest::Client, mut request: reqwest::Request) -> Result<TokenResponse, TransportError> {
    request.headers_mut().entry(header::ACCEPT_ENCODING).or_insert(HeaderValue::from_static("identity"));
    let mut response = client.execute(request).await?;
    let received = wall_time();
    let mut body = Zeroizing::new(Vec::new());
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > RESPONSE_BYTES_MAX {
            return Err(Reason::TooLarge.into());
        }
        body.extend_from_slice(&chunk);
    }
    let mut headers = std::mem::take(response.headers_mut());
    // Some servers compress the body in spite of `Accept-Encoding: identity`.
    if is_gzip(&headers)
        && let Some(decoded) = decode_gzip(&body)?
    {
        headers.remove(header::CONTENT_ENCODING);
        body = decoded;
    }
    Ok(TokenResponse { status: response.status(), headers, body, received })
}

/// RFC 9110 §8.4.1.3
fn is_gzip(headers: &HeaderMap) -> bool {
    let coding = headers.get(header::CONTENT_ENCODING).map(|value| value.as_bytes().trim_ascii());
    coding.is_some_and(|coding| coding.eq_ignore_ascii_case(b"gzip") || coding.eq_ignore_ascii_case(b"x-gzip"))
}

/// `None`: the body is not complete gzip and is used as received.
fn decode_gzip(bytes: &[u8]) -> Result<Option<Zeroizing<Vec<u8>>>, Reason> {
    let mut decoded = Zeroizing::new(Vec::new());
    match MultiGzDecoder::new(bytes).take(RESPONSE_BYTES_MAX as u64 + 1).read_to_end(&mut decoded) {
        Ok(_) if decoded.len() > RESPONSE_BYTES_MAX => Err(Reason::TooLarge),
        Ok(_) => Ok(Some(decoded)),
        Err(_) => Ok(None),
    }
}

#[expect(clippy::disallowed_methods, reason = "a Retry-After date is wall time on the wire (RFC 9110 §10.2.3)")]
fn wall_time() -> SystemTime {
    SystemTime::now()
}

/// Removes user name and password, which would become a second client authentication method, and the fragment.
pub fn without_userinfo(url: &Url) -> Url {
    let mut url = url.clone();
    // Both fail only for a URL that cannot have them.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_fragment(None);
    url
}
