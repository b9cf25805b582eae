//! Entry point of every request, over any version of HTTP, inside a tunnel or not: CONNECT goes to `tunnel`, all others
//! to `exchange`.
//!
//! Invariant: a head over its limits is refused before any of it is interpreted.

use std::rc::Rc;

use http::{Method, Request, Response};
use hyper::body::Incoming;

use super::body::ResponseBody;
use super::error::{LONG_TARGET, ProxyError};
use super::peer::Peer;
use super::report::{Report, ResponseReport};
use super::worker::Worker;
use super::{exchange, headers, tunnel};

/// Serves one request.
pub async fn serve(
    worker: Rc<Worker>,
    peer: Rc<Peer>,
    request: Request<Incoming>,
) -> Response<ResponseBody<ResponseReport>> {
    if let Some(error) = head_size_error(&request, &peer, worker.snapshot().limits.head_bytes) {
        return Report::begin(&worker, &peer, &request).error(error.into());
    }
    match *request.method() {
        Method::CONNECT => Box::pin(tunnel::open(worker, peer, request)).await,
        _ => exchange::serve(worker, peer, request).await,
    }
}

/// Checks the request line and the head against their limits.
fn head_size_error(request: &Request<Incoming>, peer: &Peer, head_bytes_max: usize) -> Option<ProxyError> {
    if request.headers().len() > headers::FIELDS_MAX {
        return Some(ProxyError::HeadTooLarge);
    }
    // The bytes read so far usually prove the head small without measuring it.
    if !peer.activity.may_exceed(head_bytes_max) {
        return None;
    }
    let (line, head) = headers::head_bytes(request.method(), request.uri(), request.headers());
    match () {
        () if line > head_bytes_max => Some(ProxyError::TargetTooLong(LONG_TARGET)),
        () if head > head_bytes_max => Some(ProxyError::HeadTooLarge),
        () => None,
    }
}
