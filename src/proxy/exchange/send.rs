//! Sends one request upstream: checks out a connection, sends the request, waits for the response head.
//!
//! Invariant: a request that may have been processed is not retried.

use std::rc::Rc;

use bytes::Bytes;
use http::request::Parts;
use http::{Response, StatusCode, Version};
use hyper::body::{Body, Incoming};
use tokio::time::{Instant, sleep_until};

use super::Exchange;
use super::forward::Forward;
use crate::proxy::body::{Progress, Received, RequestSource, SilentPeer, UpstreamBody};
use crate::proxy::error::{Fault, ProxyError, Unreachable};
use crate::proxy::headers;
use crate::proxy::inject::Tokens;
use crate::proxy::io::InterimHeads;
use crate::proxy::upgrade;
use crate::proxy::upstream::Checkout;
use crate::telemetry::traces::Propagation;

impl Exchange<'_> {
    /// Sends the request and returns the head of the response.
    pub(super) async fn send(
        &mut self,
        forward: &Forward<'_>,
        head: &Parts,
        tokens: &Tokens,
        source: &RequestSource,
    ) -> Result<(Response<UpstreamBody>, Checkout), Fault> {
        let started = Instant::now();
        let connection = forward.bound.map(|bound| &*bound.connection);
        let trace = self.report.spans.send(&head.method, &forward.destination.origin, forward.path.path(), connection);
        let result = self.send_with_retry(forward, head, tokens, source, trace.as_ref()).await;
        self.report.add_wait(started.elapsed());
        let status = result.as_ref().map(|(response, _)| response.status());
        self.report.spans.set_result(status.map_err(|fault| fault.error.code()));
        let (mut response, checkout) = result?;
        if self.upgrade.is_some() && checkout.version() == Version::HTTP_2 {
            upgrade::from_accepted_connect(&head.headers, &mut response);
        }
        if response.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED && checkout.forwarding().is_some() {
            let fault = ProxyError::UpstreamUnreachable(Unreachable::Connect);
            return Err(fault.because("the egress proxy responded with status 407"));
        }
        if response.status() == StatusCode::SWITCHING_PROTOCOLS
            && !(self.upgrade.is_some() && upgrade::is_accepted(&head.headers, response.headers()))
        {
            return Err(ProxyError::UpstreamProtocol.because("status 101 for a protocol that was not requested"));
        }
        Ok((response, checkout))
    }

    /// Sends the request; retries on another connection if a reused one turns out to be closed.
    async fn send_with_retry(
        &self,
        forward: &Forward<'_>,
        head: &Parts,
        tokens: &Tokens,
        source: &RequestSource,
        trace: Option<&Propagation>,
    ) -> Result<(Response<UpstreamBody>, Checkout), Fault> {
        let pool = &self.worker.pool;
        let mut checkout = pool.checkout(self.checkout_context(&forward.destination)).await?;
        loop {
            let progress = Progress::new();
            let mut request = forward.request(head, &checkout, tokens, source, progress.clone(), trace)?;
            let via = self.worker.state.via.of(checkout.version()).clone();
            let mut interim = InterimHeads::subscribe(&mut request, via);
            let sent = {
                let presence = self.peer.activity.presence();
                presence.mark_sent();
                let sending = checkout.send(request);
                let probing = presence.probe_stalled(|| progress.stalled_since());
                tokio::pin!(sending, probing);
                loop {
                    let (deadline, _) = self.deadline(&progress);
                    tokio::select! {
                        biased;
                        sent = &mut sending => break sent,
                        Some(interim_head) = interim.next() => self.forward_interim(interim_head, head.version).await,
                        () = sleep_until(deadline) => {}
                        () = progress.done(), if !progress.is_done() => {}
                        () = &mut probing, if !progress.is_done() => {}
                    }
                    interim.check()?;
                    match self.deadline(&progress) {
                        (deadline, _) if deadline > Instant::now() => {}
                        (_, SilentPeer::Caller) => return Err(ProxyError::RequestTimeout.into()),
                        (_, SilentPeer::Upstream) => return Err(ProxyError::UpstreamTimeout.into()),
                    }
                }
            };
            interim.check()?;
            while let Some(interim_head) = interim.try_next() {
                self.forward_interim(interim_head, head.version).await;
            }
            let error = match sent {
                Ok(response) => return Ok((self.check_response(response, progress)?, checkout)),
                Err(error) => error,
            };
            if source.is_broken() {
                let detail = "the request body is cut off, or its chunks are not valid";
                return Err(Fault { error: ProxyError::BadRequestTarget(detail), ..error.fault() });
            }
            // The upstream may close a reused connection just as the request is sent (RFC 9110 §9.2.2).
            let is_safe = head.method.is_idempotent() && error.is_lost();
            if !checkout.reused || !(error.unsent || (is_safe || error.is_refused()) && source.rewind()) {
                return Err(error.fault());
            }
            checkout = pool.replace_dead(self.checkout_context(&forward.destination), checkout).await?;
        }
    }

    /// Checks that the response head is within its limits and its body can be forwarded.
    fn check_response(
        &self,
        response: Response<Incoming>,
        progress: Rc<Progress>,
    ) -> Result<Response<UpstreamBody>, Fault> {
        let fields = response.headers();
        if fields.len() > headers::FIELDS_MAX || headers::fields_bytes(fields) > self.snapshot.limits.head_bytes {
            return Err(ProxyError::UpstreamProtocol.because("the response head is larger than limits.head"));
        }
        // hyper decodes only `chunked`.
        if !headers::is_framing_plain(fields) && !response.body().is_end_stream() {
            return Err(ProxyError::UpstreamProtocol.because("the only supported Transfer-Encoding is `chunked`"));
        }
        let version = response.version();
        let mut response = response.map(|incoming| UpstreamBody::new(Received::new(incoming, version), progress));
        let first_frame = response.body_mut().peek_first_frame();
        first_frame.map_err(|error| ProxyError::UpstreamUnreachable(Unreachable::Closed).because(error))?;
        Ok(response)
    }

    /// Forwards an interim response. HTTP/1.0 has none.
    async fn forward_interim(&self, head: Bytes, version: Version) {
        if version == Version::HTTP_11 && !head.is_empty() {
            self.peer.activity.write_interim(head).await;
        }
    }

    /// The deadline of the current silence, and the peer that is silent.
    fn deadline(&self, progress: &Progress) -> (Instant, SilentPeer) {
        let timeouts = &self.snapshot.timeouts;
        progress.deadline(timeouts.idle, timeouts.response_head)
    }
}
