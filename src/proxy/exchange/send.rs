//! One request upstream: a connection, the request on it, the wait for its answer.
//!
//! Holds: a request that may have been processed is not sent again.

use std::rc::Rc;

use bytes::Bytes;
use http::request::Parts;
use http::{Response, StatusCode, Version};
use hyper::body::{Body, Incoming};
use tokio::time::{Instant, sleep_until};

use super::Exchange;
use super::forward::Forward;
use crate::proxy::body::{Progress, Received, RequestSource, Silent, UpstreamBody};
use crate::proxy::error::{Fault, ProxyError, Unreachable};
use crate::proxy::headers;
use crate::proxy::inject::Tokens;
use crate::proxy::io::Heads;
use crate::proxy::upgrade;
use crate::proxy::upstream::Checkout;
use crate::telemetry::traces::Propagation;

impl Exchange<'_> {
    /// One request upstream, and its answer's head.
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
        let result = self.send_once_or_renewed(forward, head, tokens, source, trace.as_ref()).await;
        self.report.waited(started.elapsed());
        let answer = result.as_ref().map(|(response, _)| response.status());
        self.report.spans.answered(answer.map_err(|fault| fault.error.code()));
        let (mut response, checkout) = result?;
        if self.upgrade.is_some() && checkout.version() == Version::HTTP_2 {
            upgrade::from_accepted_connect(&head.headers, &mut response);
        }
        if response.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED && checkout.forwarding().is_some() {
            let fault = ProxyError::UpstreamUnreachable(Unreachable::Connect);
            return Err(fault.because("the egress proxy responded with status 407"));
        }
        if response.status() == StatusCode::SWITCHING_PROTOCOLS
            && !(self.upgrade.is_some() && upgrade::is_agreed(&head.headers, response.headers()))
        {
            return Err(ProxyError::UpstreamProtocol.because("101, but not to what was asked for"));
        }
        Ok((response, checkout))
    }

    async fn send_once_or_renewed(
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
            let via = self.worker.shared.via.of(checkout.version()).clone();
            let mut interim = Heads::of(&mut request, via);
            let sent = {
                let presence = self.peer.activity.presence();
                presence.mark_sent();
                let sending = checkout.send(request);
                let probing = presence.probe_stalled(|| progress.stalled_since());
                tokio::pin!(sending, probing);
                loop {
                    let (deadline, _) = self.patience(&progress);
                    tokio::select! {
                        biased;
                        sent = &mut sending => break sent,
                        Some(before) = interim.next() => self.pass_on(before, head.version).await,
                        () = sleep_until(deadline) => {}
                        () = progress.done(), if !progress.is_done() => {}
                        () = &mut probing, if !progress.is_done() => {}
                    }
                    interim.check()?;
                    match self.patience(&progress) {
                        (deadline, _) if deadline > Instant::now() => {}
                        (_, Silent::Client) => return Err(ProxyError::RequestTimeout.into()),
                        (_, Silent::Upstream) => return Err(ProxyError::UpstreamTimeout.into()),
                    }
                }
            };
            interim.check()?;
            while let Some(before) = interim.waiting() {
                self.pass_on(before, head.version).await;
            }
            let error = match sent {
                Ok(response) => return Ok((self.received(response, progress)?, checkout)),
                Err(error) => error,
            };
            if source.is_broken() {
                let detail = "the request body breaks off, or its chunks are not valid";
                return Err(Fault { error: ProxyError::BadRequestTarget(detail), ..error.fault() });
            }
            // A connection that had served before may have been closed by the upstream just now (RFC 9110 §9.2.2).
            let safe = head.method.is_idempotent() && error.is_lost();
            if !checkout.reused || !(error.unsent || (safe || error.is_refused()) && source.reclaim()) {
                return Err(error.fault());
            }
            checkout = pool.replace_dead(self.checkout_context(&forward.destination), checkout).await?;
        }
    }

    /// A response whose head is within its bounds and has a body that can be passed on.
    fn received(&self, response: Response<Incoming>, progress: Rc<Progress>) -> Result<Response<UpstreamBody>, Fault> {
        let fields = response.headers();
        if fields.len() > headers::FIELDS_MAX || headers::fields_bytes(fields) > self.snapshot.limits.head_bytes {
            return Err(ProxyError::UpstreamProtocol.because("the response head is too large"));
        }
        // hyper undoes `chunked` alone.
        if !headers::is_framing_plain(fields) && !response.body().is_end_stream() {
            return Err(ProxyError::UpstreamProtocol.because("the Transfer-Encoding is not `chunked` alone"));
        }
        let version = response.version();
        let mut response = response.map(|incoming| UpstreamBody::new(Received::new(incoming, version), progress));
        let begun = response.body_mut().begin();
        begun.map_err(|error| ProxyError::UpstreamUnreachable(Unreachable::Closed).because(error))?;
        Ok(response)
    }

    /// An interim answer, to a caller that knows of such; not one over HTTP/1.0.
    async fn pass_on(&self, before: Bytes, version: Version) {
        if version == Version::HTTP_11 && !before.is_empty() {
            self.peer.activity.say(before).await;
        }
    }

    fn patience(&self, progress: &Progress) -> (Instant, Silent) {
        let timeouts = &self.snapshot.timeouts;
        progress.deadline(timeouts.idle, timeouts.response_head)
    }
}
