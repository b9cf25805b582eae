//! Messages are rebuilt, never relayed: what a proxy must remove and add (RFC 9110 §7.6). Pure.
//!
//! Holds: framing fields are never copied; hyper writes them from the body that is really sent. What is removed is removed in
//! every spelling: names compare without case and with `_` as `-`, as servers behind CGI read them.

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

/// Fields that end at each hop, beside those that Connection names (RFC 9110 §7.6.1, RFC 9113 §8.2.2).
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

/// Fields that mean something only in a head, and must not come in through a trailer (RFC 9110 §6.5.1).
const NOT_IN_TRAILERS: [HeaderName; 6] =
    [HOST, http::header::AUTHORIZATION, http::header::SET_COOKIE, http::header::COOKIE, TRAILER, VIA];

/// How many fields a head may hold, in either direction. The contract promises 256; the rest is for Host, Connection and
/// others that a sender does not count.
pub const FIELDS_MAX: usize = 300;

/// Our own fields: read by the proxy, then removed.
const OURS: &str = "keybearer-";

/// What this proxy calls itself in Via, behind the version in which a message came to it (RFC 9110 §7.6.3).
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

/// What goes upstream of a request's fields: end-to-end fields, Via, and the Host of the place that is dialled.
pub fn request(headers: &mut HeaderMap, host: HeaderValue, via: &HeaderValue) {
    remove_hop_by_hop_and(headers, |name| name.starts_with(OURS));
    headers.insert(HOST, host);
    headers.append(VIA, via.clone());
}

/// Sets the framing of an HTTP/1.1 request where hyper would choose another. `Content-Length: 0` where the method expects a body
/// and there is none (RFC 9110 §8.6): hyper leaves it out, and some servers (IIS, Azure) answer 411 without it. Chunks for a body
/// of unknown length: hyper drops it from a GET or HEAD.
pub fn frame_body<B: Body>(request: &mut Request<B>) {
    let (is_empty, length) = (request.body().is_end_stream(), request.body().size_hint().exact());
    let expects_body = matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH);
    if is_empty && expects_body {
        request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(0));
    } else if !is_empty && length.is_none() {
        request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

/// What goes downstream of an answer's fields. Only the proxy itself may send `Keybearer-Error`.
pub fn response(headers: &mut HeaderMap, via: &HeaderValue) {
    // The length of an answer without a body (HEAD, 304) is information, not framing.
    let length = content_length(headers).filter(|_| !headers.contains_key(TRANSFER_ENCODING));
    remove_hop_by_hop_and(headers, |name| name == "keybearer-error");
    headers.extend(length.map(|length| (CONTENT_LENGTH, length)));
    headers.append(VIA, via.clone());
}

/// The one length that all Content-Length fields agree on: `2, 2` is 2 (RFC 9110 §8.6).
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

/// Does the caller take trailers (RFC 9110 §10.1.4)?
pub fn takes_trailers(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TE).iter().flat_map(|value| value.as_bytes().split(|b| *b == b','));
    codings.any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
}

/// gRPC needs HTTP/2 and trailers, and reads the outcome there.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let rest = headers.get(CONTENT_TYPE).and_then(|value| value.as_bytes().strip_prefix(b"application/grpc"));
    rest.is_some_and(|rest| rest.is_empty() || matches!(rest[0], b'+' | b';'))
}

/// What differs in HTTP/2: the host stands in the target, and `te` is the one field of the connection (RFC 9113 §8.2.2).
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
    absolute(origin, path)
}

/// The target as a proxy and HTTP/2 have it, with the host in it.
pub fn absolute(origin: &Origin, path: PathAndQuery) -> Result<Uri, ProxyError> {
    let scheme = match origin.scheme {
        Scheme::Http => UriScheme::HTTP,
        Scheme::Https => UriScheme::HTTPS,
    };
    let uri = Uri::builder().scheme(scheme).authority(origin.authority()).path_and_query(path).build();
    uri.map_err(|_| ProxyError::BadRequestTarget("the host is not valid"))
}

/// A request's fields as HTTP/1.1 has them: a client may have sent its cookies in several (RFC 9113 §8.2.3).
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

/// Trailers without what only a head may say, what only the proxy may say, and the fields that are `reserved` for it.
pub fn trailers(mut trailers: HeaderMap, reserved: &[HeaderName]) -> HeaderMap {
    remove_hop_by_hop_and(&mut trailers, |name| name.starts_with(OURS));
    for name in NOT_IN_TRAILERS.iter().chain(reserved) {
        remove_with_twins(&mut trailers, name);
    }
    trailers
}

/// Counts Max-Forwards down (RFC 9110 §7.6.2). True: this proxy is the last hop, and answers itself.
pub fn max_forwards_spent(method: &Method, headers: &mut HeaderMap) -> bool {
    if !matches!(*method, Method::OPTIONS | Method::TRACE) {
        return false;
    }
    let left = headers.get(MAX_FORWARDS).and_then(|value| value.to_str().ok()?.parse::<u32>().ok());
    if let Some(left) = left.filter(|left| *left > 0) {
        headers.insert(MAX_FORWARDS, HeaderValue::from(left - 1));
    }
    left == Some(0)
}

/// The bytes of a request line and of the whole head, as they were sent or a little less.
pub fn head_bytes(method: &Method, uri: &Uri, headers: &HeaderMap) -> (usize, usize) {
    let scheme = uri.scheme_str().map_or(0, |scheme| scheme.len() + "://".len());
    let authority = uri.authority().map_or(0, |authority| authority.as_str().len());
    let path = uri.path_and_query().map_or(0, |path| path.as_str().len());
    let line = method.as_str().len() + scheme + authority + path + "  HTTP/1.1\r\n".len();
    (line, line + fields_bytes(headers))
}

/// The same of what follows the first line.
pub fn fields_bytes(headers: &HeaderMap) -> usize {
    let field = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + ": \r\n".len();
    headers.iter().map(field).sum::<usize>() + "\r\n".len()
}

/// Is the body framed in the one way that all readers understand (RFC 9112 §6.1)? The parser takes more than that.
pub fn is_framing_plain(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let first = codings.next();
    first.is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked")) && codings.next().is_none()
}

/// The caller's own name for its request, where there is one that can stand in a log: a single field, 1 to 128 characters
/// of a strict set.
pub fn caller_request_id(headers: &HeaderMap) -> Option<&HeaderValue> {
    let mut ids = headers.get_all(HeaderName::from_static("x-request-id")).iter();
    let id = ids.next().filter(|id| (1..=128).contains(&id.len()))?;
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"-._~:/+=@,".contains(b);
    (ids.next().is_none() && id.as_bytes().iter().all(plain)).then_some(id)
}

/// Has this very proxy seen the message before, in whatever version?
pub fn is_loop(headers: &HeaderMap, via: &Via) -> bool {
    let own = via.of(Version::HTTP_11).as_bytes();
    let mut hops = headers.get_all(VIA).iter().flat_map(|value| value.as_bytes().split(|b| *b == b','));
    hops.any(|hop| hop.trim_ascii().get(4..) == own.get(4..))
}

/// Removes `name` and every spelling of it with underscores, which some servers read as the same field.
pub fn remove_with_twins(headers: &mut HeaderMap, name: &HeaderName) {
    let wanted = canonical_header(name.as_str());
    remove_if(headers, |name| name == wanted);
}

/// The values of `name` and of those spellings.
pub fn values_with_twins<'a>(headers: &'a HeaderMap, name: &'a HeaderName) -> impl Iterator<Item = &'a [u8]> {
    let is_twin = |key: &HeaderName| canonical_header(key.as_str()) == canonical_header(name.as_str());
    headers.iter().filter(move |(key, _)| is_twin(key)).map(|(_, value)| value.as_bytes())
}

/// Removes the fields that end at this hop, and those whose plain name is unwanted.
fn remove_hop_by_hop_and(headers: &mut HeaderMap, is_unwanted: impl Fn(&str) -> bool) {
    let listed = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let listed = listed.flat_map(|value| value.split(',')).map(|name| name.trim().to_ascii_lowercase());
    let named: HashSet<String> = listed.map(|name| canonical_header(&name).into_owned()).collect();
    remove_if(headers, |name| is_hop_by_hop(name) || is_unwanted(name) || named.contains(name));
}

/// Most messages hold one or two such fields: looking at each name once costs less than asking for each that may be there.
fn remove_if(headers: &mut HeaderMap, is_unwanted: impl Fn(&str) -> bool) {
    let unwanted = |name: &&HeaderName| is_unwanted(&canonical_header(name.as_str()));
    let unwanted: Vec<HeaderName> = headers.keys().filter(unwanted).cloned().collect();
    for name in unwanted {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests;
