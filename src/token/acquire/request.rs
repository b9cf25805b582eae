//! Sends one token request, measures and audits it, and converts the token response to a record.
//!
//! Metrics: `keybearer_token_requests_total`, `keybearer_token_request_duration_seconds`.

use std::sync::Arc;

use super::{AcquireError, Acquirer, Attempt};
use crate::clock::Now;
use crate::model::Name;
use crate::model::time::BootTime;
use crate::model::token::{RefreshToken, TokenSet};
use crate::oauth::{ConsentGrant, Failure, TokenRequestContext};
use crate::store::{Refresh, RefreshLife, StoredToken};
use crate::telemetry::audit::{self, Cause};
use crate::token::slot::FailureKind;

#[derive(Clone, Copy)]
pub(super) enum TokenRequest<'a> {
    /// RFC 6749 §6, with a deadline for sending.
    Refresh(&'a RefreshToken, Option<BootTime>),
    /// The connection's own grant.
    Grant,
    /// The connection's own grant, with the result of a person's consent.
    Consented(&'a ConsentGrant),
}

impl Acquirer {
    /// Refreshes; the request is sent before the deadline or not at all. If the response has no refresh token, keeps
    /// the old one.
    pub(super) async fn refresh(
        &self,
        attempt: Attempt<'_>,
        (token, sent_before): (&RefreshToken, Option<BootTime>),
        life: Option<RefreshLife>,
    ) -> Result<StoredToken, AcquireError> {
        let mut issued = self.send(attempt, TokenRequest::Refresh(token, sent_before)).await?;
        let sent = Refresh::Token(token.clone());
        if issued.refresh == Refresh::None || issued.refresh == sent {
            // A repeated refresh token keeps its age, regardless of the lifetime in the response.
            issued.refresh_life = life.unwrap_or(issued.refresh_life);
            issued.refresh = sent;
        }
        Ok(issued)
    }

    pub(super) async fn send(
        &self,
        attempt: Attempt<'_>,
        request: TokenRequest<'_>,
    ) -> Result<StoredToken, AcquireError> {
        // Lifetimes count from the sending of the request, because the response may be slow.
        let sent_at = self.clock.now();
        let source = &attempt.definition.source;
        let response = match request {
            TokenRequest::Refresh(token, send_deadline) => {
                let after_empty_400 = self.is_after_empty_400();
                source
                    .refresh(token, TokenRequestContext { send_deadline, after_empty_400, ..self.request_context() })
                    .await
            }
            TokenRequest::Grant => source.first_grant(self.request_context()).await,
            TokenRequest::Consented(consent_grant) => {
                source
                    .first_grant(TokenRequestContext { consent_grant: Some(consent_grant), ..self.request_context() })
                    .await
            }
        };
        self.read_response(attempt, request, response, sent_at)
    }

    /// Converts the response to a record; measures and audits it.
    pub(super) fn read_response(
        &self,
        attempt: Attempt<'_>,
        request: TokenRequest<'_>,
        response: Result<TokenSet, Failure>,
        sent_at: Now,
    ) -> Result<StoredToken, AcquireError> {
        let definition = &attempt.definition.connection;
        let is_refresh = matches!(request, TokenRequest::Refresh(..));
        let grant = if is_refresh { "refresh_token" } else { definition.grant.as_str() };
        let (connection, profile) = (self.slot.key.connection.as_str(), self.slot.key.profile.as_str());
        let outcome = response.as_ref().map_or_else(|failure| failure.outcome().as_str(), |_| "ok");
        let took = self.clock.now().boot.since(sent_at.boot);
        self.metrics.token_requests.with_label_values(&[connection, profile, grant, outcome]).inc();
        self.metrics.token_request_duration.with_label_values(&[connection]).observe(took.as_secs_f64());
        self.audit(grant, outcome, response.as_ref().err(), attempt.cause);
        let set = response.map_err(|failure| {
            let in_doubt = is_refresh && failure.may_have_been_granted();
            AcquireError::Server { failure, in_doubt }
        })?;
        Ok(StoredToken {
            identity: definition.identity(),
            origins: Arc::new(definition.origins()),
            access_token: set.access_token,
            obtained: sent_at,
            lifetime: set.expires_in.unwrap_or(definition.lifetimes.default_token_lifetime),
            scopes: set.scopes,
            refresh: set.refresh_token.map_or(Refresh::None, Refresh::Token),
            refresh_life: RefreshLife { since: Some(sent_at.wall), stated: set.refresh_token_expires_in },
            version: 0,
        })
    }

    /// True if the previous request, of this or another replica, got a 400 without a body.
    fn is_after_empty_400(&self) -> bool {
        self.slot.state().last_failure.as_ref().is_some_and(|failure| failure.kind == FailureKind::Empty400)
    }

    fn request_context(&self) -> TokenRequestContext<'_> {
        match self.slot.caller_token() {
            Some(token) => TokenRequestContext { caller_token: Some(token), ..TokenRequestContext::default() },
            None => TokenRequestContext { subject: self.slot.key.subject.as_ref(), ..TokenRequestContext::default() },
        }
    }

    fn audit(&self, grant: &str, outcome: &str, failure: Option<&Failure>, cause: &Cause) {
        let error = failure.map(|failure| match failure {
            Failure::Retryable { reason, .. } => reason.to_string(),
            Failure::Permanent(refusal) => refusal.error.clone(),
            Failure::Script { .. } => "script_failed".to_owned(),
        });
        let person = cause.person();
        let record = audit::Refresh {
            connection: self.slot.key.connection.as_str(),
            profile: self.slot.key.profile.as_str(),
            subject: self.slot.key.subject_str(),
            grant,
            outcome,
            error: error.as_deref(),
            cause: cause.as_str(),
            user: person.and_then(|person| person.user.as_ref()).map(Name::as_str),
            from: person.and_then(|person| person.from),
        };
        self.audit.now().refresh(self.clock.now().wall, &record);
    }
}
