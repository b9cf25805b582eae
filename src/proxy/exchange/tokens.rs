//! The tokens of one request: one for each place that its route names, and others where the upstream refuses them.
//!
//! Holds: a request that carried no token never causes a refresh; the upstream does not say which of several tokens it
//! refused, so each of them is doubted.

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

/// Whose tokens a request wants, where there is one for each.
#[derive(Default)]
pub struct Whose {
    subject: Option<Subject>,
    /// What the caller's own token is exchanged for.
    caller: Option<Secret>,
}

impl Whose {
    /// The slot that serves this request.
    fn slot<'s>(&self, slots: &'s Slots) -> Option<Cow<'s, Arc<TokenSlot>>> {
        match slots {
            Slots::Shared(slot) => Some(Cow::Borrowed(slot)),
            Slots::PerSubject(slots) => self.subject.as_ref().map(|subject| Cow::Owned(slots.slot(subject))),
            Slots::PerCallerToken(slots) => self.caller.as_ref().map(|token| Cow::Owned(slots.slot_of_token(token))),
        }
    }
}

impl Exchange<'_> {
    /// Reads from the request whose tokens it wants.
    pub(super) fn whose(
        &mut self,
        forward: &Forward<'_>,
        headers: &mut HeaderMap,
        caller: Option<CallerId>,
    ) -> Result<(), Fault> {
        for slots in forward.bound.into_iter().flat_map(|bound| &bound.tokens).filter_map(|token| token.slots.as_ref())
        {
            match slots {
                Slots::PerSubject(_) if self.whose.subject.is_none() => {
                    let subject = caller::subject(&self.snapshot.callers, caller, headers)?;
                    self.report.subject(&subject);
                    self.whose.subject = Some(subject);
                }
                Slots::PerCallerToken(_) if self.whose.caller.is_none() => {
                    self.whose.caller = Some(caller::own_token(headers)?);
                    // It is exchanged, and goes no further.
                    headers::remove_with_twins(headers, &header::AUTHORIZATION);
                }
                Slots::PerSubject(_) | Slots::PerCallerToken(_) | Slots::Shared(_) => {}
            }
        }
        Ok(())
    }

    /// Removes the credentials of the caller's that the route strips.
    pub(super) fn strip(&self, forward: &mut Forward<'_>, headers: &mut HeaderMap) {
        if let Some(stripping) = forward.bound.and_then(|bound| bound.stripping.as_ref()) {
            let removed = inject::strip(headers, &mut forward.path, &stripping.stripped);
            stripping.removed.inc_by(removed as u64);
        }
    }

    /// What the route injects.
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
        match inject::look(headers, &forward.path, (&token.inject, token.other_bearer), bound.route.existing) {
            Injection::Free => {
                token.other_bearer.into_iter().for_each(|other| inject::clear_other(headers, &mut forward.path, other));
            }
            Injection::Kept => {
                token.injections.kept.inc();
                return Ok(None);
            }
            Injection::Refused => {
                token.injections.refused.inc();
                let why = "the request carries a credential of its own, which the route refuses";
                return Err(ProxyError::BadRequestTarget(why).into());
            }
        }
        match self.usable(slots).await {
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
                self.report.connection(&token.connection);
                let link = self.link(slots, &why);
                Err(no_token(why, link))
            }
        }
    }

    /// The link where a person can resolve what blocks the token, if one can.
    fn link(&self, slots: &Slots, why: &NoToken) -> Option<String> {
        let NoToken::Person { .. } = why else { return None };
        let slot = self.whose.slot(slots)?;
        self.snapshot.links.connect(&slot.key, self.worker.shared.clock.now().wall)
    }

    async fn usable(&mut self, slots: &Slots) -> Result<Arc<InjectedToken>, NoToken> {
        let clock = &self.worker.shared.clock;
        let Some(slot) = self.whose.slot(slots) else { return Err(NoToken::Forgotten) };
        if let Some(token) = slot.fresh(clock.now()) {
            return Ok(token);
        }
        let started = Instant::now();
        let deadline = started + self.snapshot.timeouts.token_wait;
        let mut result = slot.token(clock, deadline).await;
        // It left memory at this very moment: it is taken in again.
        if matches!(result, Err(NoToken::Forgotten))
            && let Some(Cow::Owned(slot)) = self.whose.slot(slots)
        {
            result = slot.token(clock, deadline).await;
        }
        let waited = started.elapsed();
        self.worker.shared.metrics.token_wait.observe(waited.as_secs_f64());
        self.report.waited(waited);
        result
    }

    /// The upstream refused a token: once more with others, if there are any and the body can be sent again.
    pub(super) async fn replay(
        &mut self,
        first: (Response<UpstreamBody>, Checkout),
        mut tokens: Tokens,
        bound: &BoundRoute,
        forward: &Forward<'_>,
        head: &Parts,
        source: &RequestSource,
    ) -> Result<Served, Fault> {
        let clock = &self.worker.shared.clock;
        let replays = |outcome| {
            let connection = bound.connection.name.as_str();
            self.worker.shared.metrics.replays.with_label_values(&[connection, outcome]).inc();
        };
        let deadline = Instant::now() + self.snapshot.timeouts.token_wait;
        let mut renewed = false;
        for (place, token) in bound.tokens.iter().zip(&mut tokens) {
            let slot = place.slots.as_ref().and_then(|slots| self.whose.slot(slots));
            let (Some(slot), Some(token)) = (slot, token) else { continue };
            if let Some(another) = slot.reject(token.generation, clock, deadline).await {
                *token = another;
                renewed = true;
            }
        }
        if !renewed || !source.reclaim() {
            replays("skipped");
            return self.answered(first.0, first.1);
        }
        drop(first);
        let (mut response, checkout) = self.send(forward, head, &tokens, source).await?;
        let rejected = self.is_rejected(bound, &tokens, &mut response).await;
        if !rejected {
            self.accept(bound, &tokens);
        }
        replays(if rejected { "rejected" } else { "accepted" });
        self.answered(response, checkout)
    }

    /// The upstream did not reject these tokens. In the ordinary case that costs a look at a flag of each.
    pub(super) fn accept(&self, bound: &BoundRoute, tokens: &Tokens) {
        for (place, token) in bound.tokens.iter().zip(tokens) {
            let Some(token) = token.as_ref().filter(|token| token.is_on_trial()) else { continue };
            if let Some(slot) = place.slots.as_ref().and_then(|slots| self.whose.slot(slots)) {
                slot.accept(token);
            }
        }
    }

    /// Is this what an expired token looks like, to one of the connections whose tokens were sent?
    pub(super) async fn is_rejected(
        &self,
        bound: &BoundRoute,
        tokens: &Tokens,
        response: &mut Response<UpstreamBody>,
    ) -> bool {
        for (place, _) in bound.tokens.iter().zip(tokens).filter(|(_, token)| token.is_some()) {
            if is_rejection(response, &place.connection.token_rejected, self.snapshot.timeouts.idle).await {
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
                .because("timeouts.token_wait has passed")
        }
    }
}
