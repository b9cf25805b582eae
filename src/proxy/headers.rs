//! Rebuilds header fields for the next hop: what a proxy must remove and add (RFC 9110 §7.6). Pure.
//!
//! Invariants: framing fields are never copied; hyper writes them from the body that is actually sent. A field is
//! removed in all its spellings: names compare case-insensitively and with `_` as `-`, as CGI-style servers read them.

use std::collections::HashSet;

use http::header::InvalidHeaderValue;
use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HOST, HeaderMap, HeaderName, HeaderValue, MAX_FORWARDS, TE,
    TRAILER, TRANSFER_ENCODING, VIA,
};
use http::uri::{PathAndQuery, Scheme as UriScheme};
use http::{Method, Request, Uri, Version};
use hyper::body::Body;

use super::error::ProxyError;
use crate::model::connection::canonical_header;
use crate::model::origin::{Origin, Scheme};

/// Hop-by-hop fields, in addition to those that Connection names (RFC 9110 §7.6.1, RFC 9113 §8.2.2).
fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authorization"
            | "proxy-authenticate"
            | "http2-settings"
            | "te"
            | "transfer-encoding"
            | "content-length"
            | "upgrade"
            | "expect"
    )
}

/// Fields that are not allowed in trailers (RFC 9110 §6.5.1).
const NOT_IN_TRAILERS: [HeaderName; 6] =
    [HOST, http::header::AUTHORIZATION, http::header::SET_COOKIE, http::header::COOKIE, TRAILER, VIA];

/// Maximum number of fields in a head, in either direction. The contract promises 256; the rest leaves room for Host,
/// Connection and others that a sender does not count.
pub const FIELDS_MAX: usize = 300;

/// Prefix of our own fields: the proxy reads and removes them.
const OWN_PREFIX: &str = "keybearer-";

/// The Via values of this proxy, one per HTTP version in which it received a message (RFC 9110 §7.6.3).
pub struct Via([HeaderValue; 3]);

impl Via {
    pub fn new(name: &str) -> Result<Via, InvalidHeaderValue> {
        let value = |version: &str| HeaderValue::try_from(format!("{version} {name}"));
        Ok(Via([value("1.0")?, value("1.1")?, value("2.0")?]))
    }

    pub fn of(&self, version: Version) -> &HeaderValue {
        let Via([http10, http11, http2]) = self;
        match version {
            Version::HTTP_10 => http10,
            Version::HTTP_2 => http2,
            _ => http11,
        }
    }
}

/// Rewrites request fields for the upstream: keeps end-to-end fields, sets Host to the dialled authority, appends Via.
pub fn rewrite_request(headers: &mut HeaderMap, host: HeaderValue, via: &HeaderValue) {
    remove_hop_by_hop_and(headers, |name| name.starts_with(OWN_PREFIX));
    headers.insert(HOST, host);
    headers.append(VIA, via.clone());
}

/// Sets the framing of an HTTP/1.1 request where hyper would choose another: `Content-Length: 0` if the method expects
/// a body and there is none (RFC 9110 §8.6), because hyper omits it and some servers (IIS, Azure) then respond 411;
/// `chunked` for a body of unknown length, because hyper drops such a body from GET and HEAD.
pub fn frame_body<B: Body>(request: &mut Request<B>) {
    let (is_empty, length) = (request.body().is_end_stream(), request.body().size_hint().exact());
    let expects_body = matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH);
    if is_empty && expects_body {
        request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(0));
    } else if !is_empty && length.is_none() {
        request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

/// Rewrites response fields for downstream. Only the proxy itself may send `Keybearer-Error`.
pub fn rewrite_response(headers: &mut HeaderMap, via: &HeaderValue) {
    // Content-Length of a response without a body (HEAD, 304) is metadata, not framing.
    let length = content_length(headers).filter(|_| !headers.contains_key(TRANSFER_ENCODING));
    remove_hop_by_hop_and(headers, |name| name == "keybearer-error");
    headers.extend(length.map(|length| (CONTENT_LENGTH, length)));
    headers.append(VIA, via.clone());
}

/// The length that all Content-Length values agree on; `2, 2` is 2 (RFC 9110 §8.6).
fn content_length(headers: &HeaderMap) -> Option<HeaderValue> {
    let is_length = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let mut fields = headers.get_all(CONTENT_LENGTH).iter();
    let first = fields.next()?;
    if is_length(first.as_bytes()) && fields.next().is_none() {
        return Some(first.clone());
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter().flat_map(|value| value.as_bytes().split(|b| *b == b','));
    let length = lengths.next()?.trim_ascii();
    let agree = is_length(length) && lengths.all(|other| other.trim_ascii() == length);
    HeaderValue::from_bytes(length).ok().filter(|_| agree)
}

/// True if the caller accepts trailers (RFC 9110 §10.1.4).
pub fn accepts_trailers(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TE).iter().flat_map(|value| value.as_bytes().split(|b| *b == b','));
    codings.any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
}

/// True for a gRPC message. gRPC needs HTTP/2, and carries its status in trailers.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let rest = headers.get(CONTENT_TYPE).and_then(|value| value.as_bytes().strip_prefix(b"application/grpc"));
    rest.is_some_and(|rest| rest.is_empty() || matches!(rest[0], b'+' | b';'))
}

/// Rewrites request fields for HTTP/2 and returns the target: the authority moves into it, and `te: trailers` is the
/// only connection-specific field allowed (RFC 9113 §8.2.2).
pub fn for_http2(
    headers: &mut HeaderMap,
    origin: &Origin,
    path: PathAndQuery,
    trailers: bool,
) -> Result<Uri, ProxyError> {
    headers.remove(HOST);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    absolute_uri(origin, path)
}

/// The target in absolute form, for HTTP/2 and for an egress proxy.
pub fn absolute_uri(origin: &Origin, path: PathAndQuery) -> Result<Uri, ProxyError> {
    let scheme = match origin.scheme {
        Scheme::Http => UriScheme::HTTP,
        Scheme::Https => UriScheme::HTTPS,
    };
    let uri = Uri::builder().scheme(scheme).authority(origin.authority()).path_and_query(path).build();
    uri.map_err(|_| ProxyError::BadRequestTarget("the host is not valid"))
}

/// Joins Cookie fields into one, as HTTP/1.1 requires; HTTP/2 allows several (RFC 9113 §8.2.3).
pub fn join_cookies(headers: &mut HeaderMap) {
    let mut cookies = headers.get_all(COOKIE).iter();
    if cookies.next().is_none() || cookies.next().is_none() {
        return;
    }
    let crumbs: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

/// Removes from trailers the fields not allowed there, our own fields, and the `reserved` ones.
pub fn sanitize_trailers(mut trailers: HeaderMap, reserved: &[HeaderName]) -> HeaderMap {
    remove_hop_by_hop_and(&mut trailers, |name| name.starts_with(OWN_PREFIX));
    for name in NOT_IN_TRAILERS.iter().chain(reserved) {
        remove_all_spellings(&mut trailers, name);
    }
    trailers
}

/// Decrements Max-Forwards (RFC 9110 §7.6.2). Returns true if it was 0: this proxy is the last hop and must respond
/// itself.
pub fn decrement_max_forwards(method: &Method, headers: &mut HeaderMap) -> bool {
    if !matches!(*method, Method::OPTIONS | Method::TRACE) {
        return false;
    }
    let left = headers.get(MAX_FORWARDS).and_then(|value| value.to_str().ok()?.parse::<u32>().ok());
    if let Some(left) = left.filter(|left| *left > 0) {
        headers.insert(MAX_FORWARDS, HeaderValue::from(left - 1));
    }
    left == Some(0)
}

/// Sizes of the request line and of the whole head in bytes; at most the size that was sent.
pub fn head_bytes(method: &Method, uri: &Uri, headers: &HeaderMap) -> (usize, usize) {
    let scheme = uri.scheme_str().map_or(0, |scheme| scheme.len() + "://".len());
    let authority = uri.authority().map_or(0, |authority| authority.as_str().len());
    let path = uri.path_and_query().map_or(0, |path| path.as_str().len());
    let line = method.as_str().len() + scheme + authority + path + "  HTTP/1.1\r\n".len();
    (line, line + fields_bytes(headers))
}

/// Size of the fields in bytes, with the empty line that ends them.
pub fn fields_bytes(headers: &HeaderMap) -> usize {
    let field = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + ": \r\n".len();
    headers.iter().map(field).sum::<usize>() + "\r\n".len()
}

/// True if Transfer-Encoding is absent or exactly `chunked` (RFC 9112 §6.1). The parser accepts more, which other
/// servers may read differently.
pub fn is_framing_plain(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let first = codings.next();
    first.is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked")) && codings.next().is_none()
}

/// The caller's X-Request-Id, if it is safe to log: a single field, 1 to 128 characters of a strict set.
pub fn caller_request_id(headers: &HeaderMap) -> Option<&HeaderValue> {
    let mut ids = headers.get_all(HeaderName::from_static("x-request-id")).iter();
    let id = ids.next().filter(|id| (1..=128).contains(&id.len()))?;
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"-._~:/+=@,".contains(b);
    (ids.next().is_none() && id.as_bytes().iter().all(plain)).then_some(id)
}

/// True if the message has already passed through this proxy instance, in any HTTP version.
pub fn is_loop(headers: &HeaderMap, via: &Via) -> bool {
    let ours = via.of(Version::HTTP_11).as_bytes();
    let mut hops = headers.get_all(VIA).iter().flat_map(|value| value.as_bytes().split(|b| *b == b','));
    hops.any(|hop| hop.trim_ascii().get(4..) == ours.get(4..))
}

/// Removes `name` and its spellings with underscores, which some servers read as the same field.
pub fn remove_all_spellings(headers: &mut HeaderMap, name: &HeaderName) {
    let wanted = canonical_header(name.as_str());
    remove_if(headers, |name| name == wanted);
}

/// The values of `name` and of those spellings.
pub fn values_of_all_spellings<'a>(headers: &'a HeaderMap, name: &'a HeaderName) -> impl Iterator<Item = &'a [u8]> {
    let is_spelling = |key: &HeaderName| canonical_header(key.as_str()) == canonical_header(name.as_str());
    headers.iter().filter(move |(key, _)| is_spelling(key)).map(|(_, value)| value.as_bytes())
}

/// Removes hop-by-hop fields, and those whose canonical name is unwanted.
fn remove_hop_by_hop_and(headers: &mut HeaderMap, is_unwanted: impl Fn(&str) -> bool) {
    let listed = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let listed = listed.flat_map(|value| value.split(',')).map(|name| name.trim().to_ascii_lowercase());
    let named: HashSet<String> = listed.map(|name| canonical_header(&name).into_owned()).collect();
    remove_if(headers, |name| is_hop_by_hop(name) || is_unwanted(name) || named.contains(name));
}

/// Most messages contain one or two such fields: one pass over the names costs less than a lookup of each candidate.
fn remove_if(headers: &mut HeaderMap, is_unwanted: impl Fn(&str) -> bool) {
    let unwanted = |name: &&HeaderName| is_unwanted(&canonical_header(name.as_str()));
    let unwanted: Vec<HeaderName> = headers.keys().filter(unwanted).cloned().collect();
    for name in unwanted {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests;
