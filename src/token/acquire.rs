//! One way to the next token: stored? leased? then ask the server, save, and hand it over.
//!
//! Holds: the store is read again after the lease is taken, because another holder may have won; what the server gave is
//! saved before anybody uses it; a refresh token that was refused is never sent again, which is saved too; what the store
//! could not take stays here, is what the next refresh spends, and is offered to the store again.
//! Metrics: `keybearer_token_requests_total`, `keybearer_token_request_duration_seconds`.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Semaphore;

use super::slot::{Consent, Fate, Handed, Revoked, TokenSlot};
use crate::clock::{Clock, Now};
use crate::model::Name;
use crate::model::connection::Connection;
use crate::model::token::{AccessToken, RefreshToken, TokenKey, TokenSet};
use crate::oauth::{Consented, Failure, TokenEndpoint, Whose};
use crate::store::{Lease, Refresh, RefreshLife, Store, StoreError, StoredToken};
use crate::telemetry::audit::{self, Audit, Cause};
use crate::telemetry::metrics::Metrics;

/// What a lease is waited for beyond the longest call that its holder may make.
const LEASE_SLACK: Duration = Duration::from_secs(5);
/// A store that takes longer is out of order: the token is used before it is saved.
const SAVE_WAIT: Duration = Duration::from_secs(3);
/// Another holder may win again while we find that it has won; more often than this it is a fault.
const ROUNDS_MAX: u32 = 3;

pub type Answer<'a> = Pin<Box<dyn Future<Output = Result<TokenSet, Failure>> + Send + 'a>>;

pub type Ending<'a> = Pin<Box<dyn Future<Output = Result<bool, Failure>> + Send + 'a>>;

/// Whoever answers token requests: a token endpoint, or a test.
pub trait TokenSource: Send + Sync {
    fn first_grant<'a>(&'a self, whose: Whose<'a>) -> Answer<'a>;

    fn refresh<'a>(&'a self, token: &'a RefreshToken, whose: Whose<'a>) -> Answer<'a>;

    /// Revokes one token; `false`: the server has no endpoint for that.
    fn revoke<'a>(&'a self, token: &'a str, hint: &'static str) -> Ending<'a>;
}

impl TokenSource for Arc<TokenEndpoint> {
    fn first_grant<'a>(&'a self, whose: Whose<'a>) -> Answer<'a> {
        Box::pin(TokenEndpoint::first_grant(self, whose))
    }

    fn refresh<'a>(&'a self, token: &'a RefreshToken, whose: Whose<'a>) -> Answer<'a> {
        Box::pin(TokenEndpoint::refresh(self, token, whose))
    }

    fn revoke<'a>(&'a self, token: &'a str, hint: &'static str) -> Ending<'a> {
        Box::pin(TokenEndpoint::revoke(self, token, hint))
    }
}

pub(super) struct Acquirer {
    pub slot: Arc<TokenSlot>,
    /// As of the last reload.
    pub definition: Arc<ArcSwap<Definition>>,
    pub store: Arc<dyn Store>,
    /// Requests under way to this authorization server.
    pub gate: Arc<Semaphore>,
    pub clock: Clock,
    pub metrics: Metrics,
    pub audit: Audit,
    /// What the store could not take yet.
    pub unsaved: Mutex<Option<StoredToken>>,
}

/// How the token of one slot is obtained.
pub(super) struct Definition {
    pub connection: Arc<Connection>,
    pub source: Box<dyn TokenSource>,
}

/// What a token request is made with.
#[derive(Clone, Copy)]
enum Way<'a> {
    Refresh(&'a RefreshToken),
    /// The connection's own grant.
    Grant,
    /// The same, with what a person has brought.
    Consented(&'a Consented),
}

/// Why there is no next token.
#[derive(Debug)]
pub(super) enum AcquireError {
    Server {
        failure: Failure,
        /// A refresh token was sent, and whether it is spent is not known.
        in_doubt: bool,
    },
    Store(StoreError),
    Person {
        consent: Consent,
        error: String,
    },
}

impl From<StoreError> for AcquireError {
    fn from(error: StoreError) -> AcquireError {
        AcquireError::Store(error)
    }
}

impl Acquirer {
    /// The next token, asked for because of `cause`, and whether the server gave it just now. `current` is the one in use:
    /// finding only that in the store is no news.
    pub async fn acquire(
        &self,
        definition: &Definition,
        current: Option<&AccessToken>,
        cause: &Cause,
    ) -> Result<(StoredToken, bool), AcquireError> {
        let connection = &definition.connection;
        let held = self.held(connection).await?;
        if let Some(token) = held.as_ref().filter(|held| self.is_news(held, connection, current)) {
            return Ok((token.clone(), false));
        }
        person_needed(connection, held.as_ref())?;
        let (_place, lease) = self.right_to_ask(connection).await?;
        for _ in 0..ROUNDS_MAX {
            let held = self.held(connection).await?;
            if let Some(token) = held.as_ref().filter(|held| self.is_news(held, connection, current)) {
                return Ok((token.clone(), false));
            }
            person_needed(connection, held.as_ref())?;
            let Some((held, Refresh::Token(token))) = held.as_ref().map(|held| (held, &held.refresh)) else { break };
            match self.refresh(definition, token, Some(held.refresh_life), cause).await {
                Ok(answer) => {
                    let next = StoredToken { origins: held.origins.clone(), ..answer };
                    return Ok((self.keep(next, &*lease).await, true));
                }
                Err(AcquireError::Server { failure: Failure::Permanent(refusal), .. }) if refusal.is_of_the_grant() => {
                    let now_held = self.held(connection).await?;
                    if now_held.is_some_and(|now_held| now_held.refresh != held.refresh) {
                        continue;
                    }
                    tracing::warn!(connection = %self.slot.key.connection, profile = %self.slot.key.profile,
                        subject = self.slot.key.subject.as_ref().map(|subject| subject.as_str()), error = refusal.error,
                        "the authorization server refused the refresh token");
                    let refused = Refresh::Refused { error: refusal.error };
                    self.keep(StoredToken { refresh: refused, ..held.clone() }, &*lease).await;
                }
                Err(error) => return Err(error),
            }
        }
        let token = self.ask(definition, Way::Grant, cause).await?;
        Ok((self.keep(token, &*lease).await, true))
    }

    /// Spends a refresh token or a code from elsewhere; only if the server accepts it, what comes of it replaces what is
    /// kept.
    pub async fn import(
        &self,
        definition: &Definition,
        handed: Handed,
        cause: &Cause,
    ) -> Result<StoredToken, AcquireError> {
        let (_place, lease) = self.right_to_ask(&definition.connection).await?;
        let token = match handed {
            Handed::RefreshToken(token) => self.refresh(definition, &token, None, cause).await?,
            Handed::Consented(consented) => self.ask(definition, Way::Consented(&consented), cause).await?,
            Handed::Tokens(set, asked) => self.answered(definition, Way::Grant, (Ok(set), asked), cause)?,
        };
        Ok(self.keep(token, &*lease).await)
    }

    /// Offers the store again what it could not take; true if nothing is left.
    pub async fn save_again(&self) -> bool {
        let Some(token) = self.unsaved().clone() else { return true };
        let Ok(lease) = self.store.lease(&self.slot.key, LEASE_SLACK).await else { return false };
        self.keep(token, &*lease).await;
        self.unsaved().is_none()
    }

    pub fn has_unsaved(&self) -> bool {
        self.unsaved().is_some()
    }

    /// A place among the requests to this server, and the lease of this token.
    async fn right_to_ask(
        &self,
        connection: &Connection,
    ) -> Result<(tokio::sync::SemaphorePermit<'_>, Box<dyn Lease>), StoreError> {
        // The gate is never closed.
        let place = self.gate.acquire().await.map_err(|_| StoreError::LeaseTimeout { key: self.slot.key.clone() })?;
        let patience = connection.authorization_server.timeout + LEASE_SLACK;
        Ok((place, self.store.lease(&self.slot.key, patience).await?))
    }

    /// What is kept for this token under its present definition.
    async fn held(&self, connection: &Connection) -> Result<Option<StoredToken>, StoreError> {
        let unsaved = self.unsaved().clone();
        let held = match unsaved {
            Some(token) => Some(token),
            None => match self.store.load(&self.slot.key).await {
                Err(StoreError::Damaged { record, why }) => {
                    tracing::error!(record, why, "a stored token cannot be opened; it is as if there were none");
                    None
                }
                loaded => loaded?,
            },
        };
        let (identity, origins) = (connection.identity(), connection.origins());
        Ok(held.filter(|held| held.identity == identity && held.origins.covers(&origins)))
    }

    /// Is it usable, and another one than `current`?
    fn is_news(&self, held: &StoredToken, connection: &Connection, current: Option<&AccessToken>) -> bool {
        let margin = connection.lifetimes.usable_margin.min(held.lifetime / 4);
        let usable = !self.clock.now().reached(held.obtained.plus(held.lifetime - margin));
        usable && Some(&held.access_token) != current
    }

    /// Saves `token` and hands it back. The store's refusal is no reason to lose it.
    async fn keep(&self, token: StoredToken, lease: &dyn Lease) -> StoredToken {
        if self.slot.is_closed() && self.is_replaced(&token).await {
            return token;
        }
        let saving = self.store.save(&self.slot.key, token.clone(), lease);
        let saved = tokio::time::timeout(SAVE_WAIT, saving).await;
        let saved = saved.unwrap_or_else(|_| Err(StoreError::Unavailable("it does not answer in time".to_owned())));
        *self.unsaved() = saved.as_ref().is_err().then(|| token.clone());
        if let Err(error) = saved {
            let subject = self.slot.key.subject.as_ref().map(|subject| subject.as_str());
            tracing::error!(connection = %self.slot.key.connection, profile = %self.slot.key.profile, subject, %error,
                "the token could not be saved; it is used all the same, and offered to the store again");
        }
        token
    }

    /// Has the definition that took the place of ours kept a token already?
    async fn is_replaced(&self, token: &StoredToken) -> bool {
        matches!(self.store.load(&self.slot.key).await, Ok(Some(held)) if held.identity != token.identity)
    }

    /// Revokes what is kept, the refresh token first, then forgets it whatever the server said.
    ///
    /// With `shared` the tokens are not revoked: another connection or profile uses the same grant at the server.
    pub async fn revoke(&self, definition: &Definition, shared: Option<TokenKey>) -> Result<Revoked, StoreError> {
        let (_place, lease) = self.right_to_ask(&definition.connection).await?;
        let mut revoked = Revoked::default();
        if let Some(held) = self.held(&definition.connection).await? {
            let ended = |fate: Result<bool, Failure>| match fate {
                Ok(true) => Fate::Revoked,
                Ok(false) => Fate::NoEndpoint,
                Err(failure) => Fate::Failed(failure.to_string()),
            };
            if let Some(other) = shared {
                if let Refresh::Token(_) = held.refresh {
                    revoked.refresh_token = Fate::Shared(other.clone());
                }
                revoked.access_token = Fate::Shared(other);
            } else {
                if let Refresh::Token(token) = &held.refresh {
                    revoked.refresh_token = ended(definition.source.revoke(token.expose(), "refresh_token").await);
                }
                let token = held.access_token.expose();
                revoked.access_token = ended(definition.source.revoke(token, "access_token").await);
            }
        }
        *self.unsaved() = None;
        self.store.forget(&self.slot.key, &*lease).await?;
        Ok(revoked)
    }

    fn unsaved(&self) -> std::sync::MutexGuard<'_, Option<StoredToken>> {
        self.unsaved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One refresh (RFC 6749 §6): an answer without a refresh token leaves the old one in use.
    async fn refresh(
        &self,
        definition: &Definition,
        token: &RefreshToken,
        life: Option<RefreshLife>,
        cause: &Cause,
    ) -> Result<StoredToken, AcquireError> {
        let mut answer = self.ask(definition, Way::Refresh(token), cause).await?;
        let sent = Refresh::Token(token.clone());
        if answer.refresh == Refresh::None || answer.refresh == sent {
            // The same one is as old as before, whatever the answer says.
            answer.refresh_life = life.unwrap_or(answer.refresh_life);
            answer.refresh = sent;
        }
        Ok(answer)
    }

    /// One request to the token endpoint.
    async fn ask(&self, definition: &Definition, way: Way<'_>, cause: &Cause) -> Result<StoredToken, AcquireError> {
        // Lifetimes count from when the request leaves: the answer may have been long on its way.
        let obtained = self.clock.now();
        let answer = match way {
            Way::Refresh(token) => definition.source.refresh(token, self.whose()).await,
            Way::Grant => definition.source.first_grant(self.whose()).await,
            Way::Consented(consented) => {
                let whose = Whose { consented: Some(consented), ..self.whose() };
                definition.source.first_grant(whose).await
            }
        };
        self.answered(definition, way, (answer, obtained), cause)
    }

    /// What a token request has brought, counted and recorded.
    fn answered(
        &self,
        definition: &Definition,
        way: Way<'_>,
        (answer, obtained): (Result<TokenSet, Failure>, Now),
        cause: &Cause,
    ) -> Result<StoredToken, AcquireError> {
        let own = &definition.connection;
        let is_refresh = matches!(way, Way::Refresh(_));
        let grant = if is_refresh { "refresh_token" } else { own.grant.as_str() };
        let (connection, profile) = (self.slot.key.connection.as_str(), self.slot.key.profile.as_str());
        let outcome = answer.as_ref().map_or_else(|failure| failure.outcome().as_str(), |_| "ok");
        let took = self.clock.now().boot.saturating_sub(obtained.boot);
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
            refresh_life: RefreshLife { since: obtained.wall, stated: answer.refresh_token_expires_in },
        })
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

/// Is there no way to a token without a person?
fn person_needed(connection: &Connection, held: Option<&StoredToken>) -> Result<(), AcquireError> {
    if !connection.grant.needs_person() {
        return Ok(());
    }
    match held.map(|held| &held.refresh) {
        Some(Refresh::Token(_)) => Ok(()),
        Some(Refresh::Refused { error }) => Err(AcquireError::Person { consent: Consent::Again, error: error.clone() }),
        Some(Refresh::None) | None => {
            let consent = Consent::First;
            Err(AcquireError::Person { consent, error: consent.code().to_owned() })
        }
    }
}
