//! WebSocket upgrades (RFC 6455): the request goes upstream with its token; after 101, bytes are relayed in both
//! directions.
//!
//! Invariants: no other protocol is requested or accepted; a 101 is forwarded only when a relay follows it.

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
use super::tunnel::{IdleTimeouts, relay};
use super::upstream::Checkout;
use crate::gate::Permit;
use crate::tasks::PhaseWatch;

/// Appended to the key to compute Sec-WebSocket-Accept (RFC 6455 §1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");

/// Marks a request that arrived as extended CONNECT over HTTP/2 (RFC 8441).
#[derive(Clone)]
struct ExtendedConnect;

/// A caller's request for WebSocket.
pub struct WebSocketRequest {
    /// The caller's stream after the upgrade.
    pub downstream: OnUpgrade,
    /// Sent over HTTP/2, where any 2xx means that the WebSocket is open (RFC 8441 §5).
    pub is_extended_connect: bool,
}

/// Takes the upgrade out of a request, for WebSocket only.
pub fn take_websocket_request(head: &mut Parts) -> Option<WebSocketRequest> {
    let is_extended_connect = head.extensions.remove::<ExtendedConnect>().is_some();
    let can_upgrade = head.method == Method::GET && (head.version == Version::HTTP_11 || is_extended_connect);
    let is_websocket =
        can_upgrade && head.headers.contains_key(SEC_WEBSOCKET_KEY) && names_websocket_alone(&head.headers);
    let downstream = head.extensions.remove::<OnUpgrade>().filter(|_| is_websocket)?;
    Some(WebSocketRequest { downstream, is_extended_connect })
}

/// True if the caller treats any 2xx as an open tunnel.
pub fn opens_tunnel<B>(request: &Request<B>) -> bool {
    request.method() == Method::CONNECT || request.extensions().get::<ExtendedConnect>().is_some()
}

/// True if these fields, of a request or of a 101, name WebSocket and no other protocol.
pub fn names_websocket_alone(headers: &HeaderMap) -> bool {
    let mut protocols = headers.get_all(UPGRADE).iter();
    let is_websocket = protocols.next().is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
    let options = headers.get_all(CONNECTION).iter().flat_map(|value| value.as_bytes().split(|b| *b == b','));
    is_websocket
        && protocols.next().is_none()
        && options.map(<[u8]>::trim_ascii).any(|option| option.eq_ignore_ascii_case(b"upgrade"))
}

/// Sets the hop-by-hop fields of an upgrade to WebSocket.
pub fn set_upgrade_fields(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, WEBSOCKET);
}

/// True if the 101 accepts the WebSocket: its Sec-WebSocket-Accept matches the request's key (RFC 6455 §4.2.2).
pub fn is_accepted(request: &HeaderMap, response: &HeaderMap) -> bool {
    let accept = accept_value(request);
    names_websocket_alone(response) && accept.is_some() && accept.as_ref() == response.get(SEC_WEBSOCKET_ACCEPT)
}

/// The Sec-WebSocket-Accept value for a request's key.
fn accept_value(request: &HeaderMap) -> Option<HeaderValue> {
    let key = request.get(SEC_WEBSOCKET_KEY)?;
    let digest = digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key.as_bytes(), GUID].concat());
    HeaderValue::try_from(BASE64_STANDARD.encode(digest.as_ref())).ok()
}

/// Translates an extended CONNECT for WebSocket (RFC 8441) to the HTTP/1.1 upgrade request. Returns false, and changes
/// nothing else, if the request is not one.
pub fn from_extended_connect<B>(request: &mut Request<B>) -> bool {
    let protocol = request.extensions_mut().remove::<Protocol>();
    if protocol.is_none_or(|protocol| protocol.as_str() != "websocket") {
        return false;
    }
    *request.method_mut() = Method::GET;
    request.extensions_mut().insert(ExtendedConnect);
    set_upgrade_fields(request.headers_mut());
    let key: [u8; 16] = std::array::from_fn(|_| fastrand::u8(..));
    if let Ok(key) = HeaderValue::try_from(BASE64_STANDARD.encode(key)) {
        request.headers_mut().insert(SEC_WEBSOCKET_KEY, key);
    }
    true
}

/// Translates the response to such a request to HTTP/2.
pub fn to_extended_connect<B>(response: &mut Response<B>) {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        *response.status_mut() = StatusCode::OK;
        response.headers_mut().remove(SEC_WEBSOCKET_ACCEPT);
    }
    response.headers_mut().remove(UPGRADE);
}

/// Translates a request for WebSocket to extended CONNECT, for an HTTP/2 upstream.
pub fn as_extended_connect<B>(request: &mut Request<B>) {
    *request.method_mut() = Method::CONNECT;
    request.extensions_mut().insert(Protocol::from_static("websocket"));
    for name in [CONNECTION, UPGRADE, SEC_WEBSOCKET_KEY] {
        request.headers_mut().remove(name);
    }
}

/// Translates the upstream's acceptance of an extended CONNECT to a 101.
pub fn from_accepted_connect<B>(request: &HeaderMap, response: &mut Response<B>) {
    if response.extensions().get::<OnUpgrade>().is_none() {
        return;
    }
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    set_upgrade_fields(response.headers_mut());
    if let Some(accept) = accept_value(request) {
        response.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
}

/// An upgrade that both sides have accepted.
pub struct WebSocketTunnel {
    pub downstream: OnUpgrade,
    pub upstream: OnUpgrade,
    pub permit: Permit,
    /// The WebSocket counts as a request in flight to its upstream.
    pub checkout: Checkout,
}

impl WebSocketTunnel {
    /// Relays until both sides have ended, the tunnel is idle for `idle`, or a drain begins, because a WebSocket may
    /// never end on its own. `peer` holds the connection's permit; all permits are released before either side sees the
    /// close.
    pub async fn relay(self, peer: Rc<Peer>, idle: Duration, drain: PhaseWatch) {
        if let (Ok(downstream), Ok(upstream)) = tokio::join!(self.downstream, self.upstream) {
            let serving = peer.activity.begin();
            let (mut downstream, mut upstream) = (TokioIo::new(downstream), TokioIo::new(upstream));
            let timeouts = IdleTimeouts { idle, draining: Duration::ZERO };
            let relayed = relay(&mut downstream, &mut upstream, timeouts, drain).await;
            drop((self.permit, self.checkout, serving, peer));
            let (up_bytes, down_bytes) = (relayed.up_bytes(), relayed.down_bytes());
            tracing::debug!(up_bytes, down_bytes, "WebSocket closed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_upgrade_to_websocket_alone_is_recognized() {
        #[track_caller]
        fn check(fields: &[(&'static str, &'static str)], expected: bool) {
            let field = |(name, value): &(&'static str, &'static str)| {
                (http::HeaderName::from_static(name), HeaderValue::from_static(value))
            };
            assert_eq!(names_websocket_alone(&fields.iter().map(field).collect()), expected, "{fields:?}");
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
