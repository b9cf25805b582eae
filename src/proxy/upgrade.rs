//! WebSocket: a request that asks for it goes upstream as it is, token and all, and then bytes go both ways (RFC 6455).
//!
//! Holds: no other protocol is asked for or agreed to; there is no 101 without a tunnel behind it.

use std::rc::Rc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::prelude::{BASE64_STANDARD, Engine};
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::ext::Protocol;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::peer::Peer;
use super::tunnel::{Silence, relay};
use super::upstream::Checkout;
use crate::gate::Permit;
use crate::tasks::PhaseWatch;

/// Joined to the key that is proven to have been read (RFC 6455 §1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");

/// Marks a request that came as extended CONNECT over HTTP/2 (RFC 8441).
#[derive(Clone)]
struct ExtendedConnect;

/// A caller that asks for WebSocket.
pub struct WebSocketRequest {
    /// Its stream after the request.
    pub downstream: OnUpgrade,
    /// It asks over HTTP/2, where any 2xx says that the WebSocket is open (RFC 8441 §5).
    pub by_connect: bool,
}

/// Does the caller ask for WebSocket, and for nothing else?
pub fn asked(head: &mut Parts) -> Option<WebSocketRequest> {
    let by_connect = head.extensions.remove::<ExtendedConnect>().is_some();
    let fits = head.method == Method::GET && (head.version == Version::HTTP_11 || by_connect);
    let asks = fits && head.headers.contains_key(SEC_WEBSOCKET_KEY) && is_to_websocket(&head.headers);
    let downstream = head.extensions.remove::<OnUpgrade>().filter(|_| asks)?;
    Some(WebSocketRequest { downstream, by_connect })
}

/// Would its caller take any 2xx for an open tunnel?
pub fn opens_a_tunnel<B>(request: &Request<B>) -> bool {
    request.method() == Method::CONNECT || request.extensions().get::<ExtendedConnect>().is_some()
}

/// Do these fields, of a request or of a 101, name WebSocket alone?
pub fn is_to_websocket(headers: &HeaderMap) -> bool {
    let mut protocols = headers.get_all(UPGRADE).iter();
    let alone = protocols.next().is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
    let named = headers.get_all(CONNECTION).iter().flat_map(|value| value.as_bytes().split(|b| *b == b','));
    alone
        && protocols.next().is_none()
        && named.map(<[u8]>::trim_ascii).any(|name| name.eq_ignore_ascii_case(b"upgrade"))
}

/// Writes the fields that end at each hop anew.
pub fn ask(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, WEBSOCKET);
}

/// Does the upstream's 101 prove that it has read the key (RFC 6455 §4.2.2)?
pub fn is_agreed(request: &HeaderMap, answer: &HeaderMap) -> bool {
    let proof = proof_of(request);
    is_to_websocket(answer) && proof.is_some() && proof.as_ref() == answer.get(SEC_WEBSOCKET_ACCEPT)
}

/// What proves that a request's key was read.
fn proof_of(request: &HeaderMap) -> Option<HeaderValue> {
    let key = request.get(SEC_WEBSOCKET_KEY)?;
    let digest = digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key.as_bytes(), GUID].concat());
    HeaderValue::try_from(BASE64_STANDARD.encode(digest.as_ref())).ok()
}

/// WebSocket as HTTP/2 asks for it (RFC 8441), put as HTTP/1.1 does. False: the request is something else.
pub fn from_extended_connect<B>(request: &mut Request<B>) -> bool {
    let protocol = request.extensions_mut().remove::<Protocol>();
    if protocol.is_none_or(|protocol| protocol.as_str() != "websocket") {
        return false;
    }
    *request.method_mut() = Method::GET;
    request.extensions_mut().insert(ExtendedConnect);
    ask(request.headers_mut());
    let key: [u8; 16] = std::array::from_fn(|_| fastrand::u8(..));
    if let Ok(key) = HeaderValue::try_from(BASE64_STANDARD.encode(key)) {
        request.headers_mut().insert(SEC_WEBSOCKET_KEY, key);
    }
    true
}

/// The answer to such a request, as HTTP/2 has it.
pub fn to_extended_connect<B>(response: &mut Response<B>) {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        *response.status_mut() = StatusCode::OK;
        response.headers_mut().remove(SEC_WEBSOCKET_ACCEPT);
    }
    response.headers_mut().remove(UPGRADE);
}

/// A request for WebSocket as HTTP/2 puts it to an upstream.
pub fn as_extended_connect<B>(request: &mut Request<B>) {
    *request.method_mut() = Method::CONNECT;
    request.extensions_mut().insert(Protocol::from_static("websocket"));
    for name in [CONNECTION, UPGRADE, SEC_WEBSOCKET_KEY] {
        request.headers_mut().remove(name);
    }
}

/// The upstream's consent to that, as HTTP/1.1 has it.
pub fn from_accepted_connect<B>(request: &HeaderMap, response: &mut Response<B>) {
    if response.extensions().get::<OnUpgrade>().is_none() {
        return;
    }
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    ask(response.headers_mut());
    if let Some(proof) = proof_of(request) {
        response.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, proof);
    }
}

/// Both sides have agreed to leave HTTP.
pub struct Switch {
    pub downstream: OnUpgrade,
    pub upstream: OnUpgrade,
    pub place: Permit,
    /// It counts as a request in flight to its upstream.
    pub checkout: Checkout,
}

impl Switch {
    /// Until both sides have ended, nothing has moved for `idle`, or a drain begins, whose end it would only delay: it has
    /// none of its own. `peer` keeps its seat meanwhile; all places are free again before either side sees the end.
    pub async fn relay(self, peer: Rc<Peer>, idle: Duration, drain: PhaseWatch) {
        if let (Ok(downstream), Ok(upstream)) = tokio::join!(self.downstream, self.upstream) {
            let serving = peer.activity.begin();
            let (mut downstream, mut upstream) = (TokioIo::new(downstream), TokioIo::new(upstream));
            let silence = Silence { idle, draining: Duration::ZERO };
            let moved = relay(&mut downstream, &mut upstream, silence, drain).await;
            drop((self.place, self.checkout, serving, peer));
            let (up_bytes, down_bytes) = (moved.up_bytes(), moved.down_bytes());
            tracing::debug!(up_bytes, down_bytes, "a WebSocket ended");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn websocket_is_asked_for_alone() {
        #[track_caller]
        fn check(fields: &[(&'static str, &'static str)], expected: bool) {
            let field = |(name, value): &(&'static str, &'static str)| {
                (http::HeaderName::from_static(name), HeaderValue::from_static(value))
            };
            assert_eq!(is_to_websocket(&fields.iter().map(field).collect()), expected, "{fields:?}");
        }
        check(&[("connection", "Upgrade"), ("upgrade", "websocket")], true);
        check(&[("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")], true);
        check(&[("connection", "keep-alive"), ("upgrade", "websocket")], false);
        check(&[("upgrade", "websocket")], false);
        check(&[("connection", "upgrade, http2-settings"), ("upgrade", "h2c")], false);
        check(&[("connection", "upgrade"), ("upgrade", "websocket, h2c")], false);
        check(&[("connection", "upgrade"), ("upgrade", "websocket"), ("upgrade", "h2c")], false);
    }
}
