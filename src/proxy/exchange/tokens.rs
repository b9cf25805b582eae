//! The tokens of one request: one per injection point of its route, and their replacements when the upstream rejects
//! them.
//!
//! Invariants: a request without a token never causes a refresh; an upstream does not report which of several tokens it
//! rejected, so all of them count as rejected.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::{HeaderMap, Response, header};
use tokio::time::Instant;

use super::forward::Forward;
use super::{Exchange, Served};
use crate::model::connection::WithoutToken;
use crate::model::secret::Secret;
use crate::model::token::Subject;
use crate::proxy::body::{RequestSource, UpstreamBody, is_rejection};
use crate::proxy::error::{Fault, ProxyError};
use crate::proxy::inject::{self, Injection, Tokens};
use crate::proxy::upstream::Checkout;
use crate::proxy::{caller, headers};
use crate::router::CallerId;
use crate::snapshot::{BoundRoute, BoundToken};
use crate::token::Slots;
use crate::token::slot::{Consent, InjectedToken, NoToken, TokenSlot};

/// Selects the token where a connection has one per subject or per caller token.
#[derive(Default)]
pub struct TokenOwner {
    subject: Option<Subject>,
    /// The caller's own token, which is exchanged.
    caller_token: Option<Secret>,
}

impl TokenOwner {
    /// The slot that serves this request.
    fn slot<'s>(&self, slots: &'s Slots) -> Option<Cow<'s, Arc<TokenSlot>>> {
        match slots {
            Slots::Shared(slot) => Some(Cow::Borrowed(slot)),
            Slots::PerSubject(slots) => self.subject.as_ref().map(|subject| Cow::Owned(slots.slot(subject))),
            Slots::PerCallerToken(slots) => {
                self.caller_token.as_ref().map(|token| Cow::Owned(slots.slot_of_token(token)))
            }
        }
    }
}

impl Exchange<'_> {
    /// Reads subject and caller token from the request, where the route's connections need them.
    pub(super) fn resolve_owner(
        &mut self,
        forward: &Forward<'_>,
        headers: &mut HeaderMap,
        caller: Option<CallerId>,
    ) -> Result<(), Fault> {
        for slots in forward.bound.into_iter().flat_map(|bound| &bound.tokens).filter_map(|token| token.slots.as_ref())
        {
            match slots {
                Slots::PerSubject(_) if self.owner.subject.is_none() => {
                    let subject = caller::subject(&self.snapshot.callers, caller, headers)?;
                    self.report.set_subject(&subject);
                    self.owner.subject = Some(subject);
                }
                Slots::PerCallerToken(_) if self.owner.caller_token.is_none() => {
                    self.owner.caller_token = Some(caller::own_token(headers)?);
                    // The token is exchanged, never forwarded.
                    headers::remove_all_spellings(headers, &header::AUTHORIZATION);
                }
                Slots::PerSubject(_) | Slots::PerCallerToken(_) | Slots::Shared(_) => {}
            }
        }
        Ok(())
    }

    /// Removes the caller's credentials that the route strips.
    pub(super) fn strip(&self, forward: &mut Forward<'_>, headers: &mut HeaderMap) {
        if let Some(stripping) = forward.bound.and_then(|bound| bound.stripping.as_ref()) {
            let removed = inject::strip(headers, &mut forward.path, &stripping.stripped);
            stripping.removed.inc_by(removed as u64);
        }
    }

    /// Acquires the tokens for all injection points of the route.
    pub(super) async fn tokens(&mut self, forward: &mut Forward<'_>, headers: &mut HeaderMap) -> Result<Tokens, Fault> {
        let Some(bound) = forward.bound else { return Ok(Tokens::new()) };
        let mut tokens = Tokens::with_capacity(bound.tokens.len());
        for token in &bound.tokens {
            tokens.push(self.token(bound, token, forward, headers).await?);
        }
        Ok(tokens)
    }

    async fn token(
        &mut self,
        bound: &BoundRoute,
        token: &BoundToken,
        forward: &mut Forward<'_>,
        headers: &mut HeaderMap,
    ) -> Result<Option<Arc<InjectedToken>>, Fault> {
        let Some(slots) = &token.slots else { return Ok(None) };
        match inject::judge_existing(headers, &forward.path, (&token.inject, token.other_bearer), bound.route.existing)
        {
            Injection::Free => {
                token.other_bearer.into_iter().for_each(|other| inject::clear_other(headers, &mut forward.path, other));
            }
            Injection::Kept => {
                token.injections.kept.inc();
                return Ok(None);
            }
            Injection::Refused => {
                token.injections.refused.inc();
                let why = "the route refuses the caller's own credential; send the request without it";
                return Err(ProxyError::BadRequestTarget(why).into());
            }
        }
        match self.usable_token(slots).await {
            Ok(usable) => {
                token.injections.injected.inc();
                Ok(Some(usable))
            }
            Err(_) if bound.route.without_token == WithoutToken::Forward => {
                token.injections.forwarded.inc();
                inject::clear(headers, &mut forward.path, &token.inject);
                Ok(None)
            }
            Err(why) => {
                token.injections.refused.inc();
                self.report.set_connection(&token.connection);
                let link = self.link(slots, &why);
                Err(no_token(why, link))
            }
        }
    }

    /// The link for connecting the account again, where that is what the token needs.
    fn link(&self, slots: &Slots, why: &NoToken) -> Option<String> {
        let NoToken::Person { .. } = why else { return None };
        let slot = self.owner.slot(slots)?;
        self.snapshot.links.connect(&slot.key, self.worker.state.clock.now().wall)
    }

    /// Returns a usable token. Waits for one up to `timeouts.token_wait`.
    async fn usable_token(&mut self, slots: &Slots) -> Result<Arc<InjectedToken>, NoToken> {
        let clock = &self.worker.state.clock;
        let Some(slot) = self.owner.slot(slots) else { return Err(NoToken::Forgotten) };
        if let Some(token) = slot.fresh(clock.now()) {
            return Ok(token);
        }
        let started = Instant::now();
        let deadline = started + self.snapshot.timeouts.token_wait;
        let mut result = slot.token(clock, deadline).await;
        // The slot was evicted while we waited: look it up again, which recreates it.
        if matches!(result, Err(NoToken::Forgotten))
            && let Some(Cow::Owned(slot)) = self.owner.slot(slots)
        {
            result = slot.token(clock, deadline).await;
        }
        let waited = started.elapsed();
        self.worker.state.metrics.token_wait.observe(waited.as_secs_f64());
        self.report.add_wait(waited);
        result
    }

    /// Replays a request whose token was rejected, if there is a replacement token and the body can be sent again.
    pub(super) async fn replay(
        &mut self,
        first: (Response<UpstreamBody>, Checkout),
        mut tokens: Tokens,
        bound: &BoundRoute,
        forward: &Forward<'_>,
        head: &Parts,
        source: &RequestSource,
    ) -> Result<Served, Fault> {
        let clock = &self.worker.state.clock;
        let count = |outcome| {
            let connection = bound.connection.name.as_str();
            self.worker.state.metrics.replays.with_label_values(&[connection, outcome]).inc();
        };
        let deadline = Instant::now() + self.snapshot.timeouts.token_wait;
        let mut replaced = false;
        for (point, token) in bound.tokens.iter().zip(&mut tokens) {
            let slot = point.slots.as_ref().and_then(|slots| self.owner.slot(slots));
            let (Some(slot), Some(token)) = (slot, token) else { continue };
            if let Some(replacement) = slot.reject(token.generation, clock, deadline).await {
                *token = replacement;
                replaced = true;
            }
        }
        if !replaced || !source.rewind() {
            count("skipped");
            return self.finish(first.0, first.1);
        }
        drop(first);
        let (mut response, checkout) = self.send(forward, head, &tokens, source).await?;
        let rejected = self.is_rejected(bound, &tokens, &mut response).await;
        if !rejected {
            self.accept(bound, &tokens);
        }
        count(if rejected { "rejected" } else { "accepted" });
        self.finish(response, checkout)
    }

    /// Records that the upstream accepted these tokens. Usually costs one flag check per token.
    pub(super) fn accept(&self, bound: &BoundRoute, tokens: &Tokens) {
        for (point, token) in bound.tokens.iter().zip(tokens) {
            let Some(token) = token.as_ref().filter(|token| token.is_on_trial()) else { continue };
            if let Some(slot) = point.slots.as_ref().and_then(|slots| self.owner.slot(slots)) {
                slot.accept(token);
            }
        }
    }

    /// True if the response matches `token_rejected` of a connection whose token was sent.
    pub(super) async fn is_rejected(
        &self,
        bound: &BoundRoute,
        tokens: &Tokens,
        response: &mut Response<UpstreamBody>,
    ) -> bool {
        for (point, _) in bound.tokens.iter().zip(tokens).filter(|(_, token)| token.is_some()) {
            if is_rejection(response, &point.connection.token_rejected, self.snapshot.timeouts.idle).await {
                return true;
            }
        }
        false
    }
}

fn no_token(why: NoToken, link: Option<String>) -> Fault {
    match why {
        NoToken::Refused { error, description } => {
            Fault { error: ProxyError::TokenRefused { error }, cause: description }
        }
        NoToken::Script { message } => ProxyError::ScriptFailed { message }.into(),
        NoToken::Person { consent: consent @ (Consent::First | Consent::Changed), .. } => {
            ProxyError::ConsentRequired { again: consent == Consent::Changed, link }.into()
        }
        NoToken::Person { consent: Consent::Again, error } => ProxyError::RefreshTokenExpired { error, link }.into(),
        NoToken::Unavailable { error, description, retry_after } => {
            Fault { error: ProxyError::TokenUnavailable { error, retry_after }, cause: description }
        }
        NoToken::Forgotten => {
            let retry_after = Duration::from_secs(1);
            ProxyError::TokenUnavailable { error: "configuration_changed".to_owned(), retry_after }.into()
        }
        NoToken::WaitTimeout => {
            let retry_after = Duration::from_secs(1);
            ProxyError::TokenUnavailable { error: "timeout".to_owned(), retry_after }
                .because("timeouts.token_wait exceeded")
        }
    }
}
