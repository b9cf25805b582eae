//! One token request: sent, counted, recorded, and read as a token that may be kept.
//!
//! Metrics: `keybearer_token_requests_total`, `keybearer_token_request_duration_seconds`.

use std::sync::Arc;

use super::{AcquireError, Acquirer, Definition, Way};
use crate::clock::Now;
use crate::model::Name;
use crate::model::time::BootTime;
use crate::model::token::{RefreshToken, TokenSet};
use crate::oauth::{Failure, Reason, Whose};
use crate::store::{Refresh, RefreshLife, StoredToken};
use crate::telemetry::audit::{self, Cause};

impl Acquirer {
    /// One refresh (RFC 6749 §6), sent before the given moment or not at all: an answer without a refresh token leaves the old one in use.
    pub(super) async fn refresh(
        &self,
        definition: &Definition,
        (token, sent_before): (&RefreshToken, Option<BootTime>),
        life: Option<RefreshLife>,
        cause: &Cause,
    ) -> Result<StoredToken, AcquireError> {
        let mut answer = self.ask(definition, Way::Refresh(token, sent_before), cause).await?;
        let sent = Refresh::Token(token.clone());
        if answer.refresh == Refresh::None || answer.refresh == sent {
            // The same one is as old as before, whatever the answer says.
            answer.refresh_life = life.unwrap_or(answer.refresh_life);
            answer.refresh = sent;
        }
        Ok(answer)
    }

    /// One request to the token endpoint.
    pub(super) async fn ask(
        &self,
        definition: &Definition,
        way: Way<'_>,
        cause: &Cause,
    ) -> Result<StoredToken, AcquireError> {
        // Lifetimes count from when the request leaves: the answer may have been long on its way.
        let obtained = self.clock.now();
        let answer = match way {
            Way::Refresh(token, sent_before) => {
                let after_empty_400 = self.is_after_empty_400();
                definition.source.refresh(token, Whose { sent_before, after_empty_400, ..self.whose() }).await
            }
            Way::Grant => definition.source.first_grant(self.whose()).await,
            Way::Consented(consented) => {
                let whose = Whose { consented: Some(consented), ..self.whose() };
                definition.source.first_grant(whose).await
            }
        };
        self.answered(definition, way, (answer, obtained), cause)
    }

    /// What a token request has brought, counted and recorded.
    pub(super) fn answered(
        &self,
        definition: &Definition,
        way: Way<'_>,
        (answer, obtained): (Result<TokenSet, Failure>, Now),
        cause: &Cause,
    ) -> Result<StoredToken, AcquireError> {
        let own = &definition.connection;
        let is_refresh = matches!(way, Way::Refresh(..));
        let grant = if is_refresh { "refresh_token" } else { own.grant.as_str() };
        let (connection, profile) = (self.slot.key.connection.as_str(), self.slot.key.profile.as_str());
        let outcome = answer.as_ref().map_or_else(|failure| failure.outcome().as_str(), |_| "ok");
        let took = self.clock.now().boot.since(obtained.boot);
        self.metrics.token_requests.with_label_values(&[connection, profile, grant, outcome]).inc();
        self.metrics.token_request_duration.with_label_values(&[connection]).observe(took.as_secs_f64());
        self.record(grant, outcome, answer.as_ref().err(), cause);
        let answer = answer.map_err(|failure| {
            let in_doubt = is_refresh && failure.may_have_been_granted();
            AcquireError::Server { failure, in_doubt }
        })?;
        Ok(StoredToken {
            identity: own.identity(),
            origins: Arc::new(own.origins()),
            access_token: answer.access_token,
            obtained,
            lifetime: answer.expires_in.unwrap_or(own.lifetimes.default_token_lifetime),
            scopes: answer.scopes,
            refresh: answer.refresh_token.map_or(Refresh::None, Refresh::Token),
            refresh_life: RefreshLife { since: Some(obtained.wall), stated: answer.refresh_token_expires_in },
            version: 0,
        })
    }

    /// Has the attempt before this one got a 400 without a body, here or, as it was told, at another replica?
    fn is_after_empty_400(&self) -> bool {
        self.slot.state().trouble.as_ref().is_some_and(|trouble| trouble.error == Reason::Empty400.to_string())
    }

    fn whose(&self) -> Whose<'_> {
        match self.slot.caller_token() {
            Some(token) => Whose { token: Some(token), ..Whose::default() },
            None => Whose { subject: self.slot.key.subject.as_ref(), ..Whose::default() },
        }
    }

    fn record(&self, grant: &str, outcome: &str, failure: Option<&Failure>, cause: &Cause) {
        let error = failure.map(|failure| match failure {
            Failure::Retryable { reason, .. } => reason.to_string(),
            Failure::Permanent(refusal) => refusal.error.clone(),
            Failure::Script { .. } => "script_failed".to_owned(),
        });
        let person = cause.person();
        let record = audit::Refresh {
            connection: self.slot.key.connection.as_str(),
            profile: self.slot.key.profile.as_str(),
            subject: self.slot.key.subject.as_ref().map(|subject| subject.as_str()),
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
