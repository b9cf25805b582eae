//! Acquires the next token of one slot: read the record, take the lease, read again, send a token request, save,
//! return.
//!
//! Invariants: the record is read again under the lease, because another replica may have been faster. A token is saved
//! before it is used. A refused refresh token is marked in the store and never sent again. A token that could not be
//! saved stays in memory: the next refresh spends its refresh token, and the save is retried.
//! Not here: what to do next (`plan`), one request (`request`), reads and writes (`record`), notices to other replicas
//! (`notice`), revocation (`revoke`), when to try again (`schedule`).

mod error;
mod notice;
mod plan;
mod record;
mod request;
mod revoke;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::definition::Definition;
use super::request_limiter::{RequestLimiter, RequestPermit};
use super::slot::{Consent, Credential, TokenSlot};
use super::superseded::SupersededDefinitions;
use crate::clock::Clock;
use crate::model::connection::Connection;
use crate::model::token::AccessToken;
use crate::oauth::Failure;
use crate::store::{Lease, StoreError, StoredToken, TokenStore};
use crate::telemetry::audit::{Audit, Cause};
use crate::telemetry::metrics::Metrics;
pub(super) use error::AcquireError;
use plan::{
    LEASE_MARGIN, LEASE_RETRY_MAX, LeaseDecision, LeaseState, Offline, Plan, PlanInput, Refresh, Request, lease_term,
};
use record::Saving;
pub(super) use record::{Poll, RecordCache};
use request::TokenRequest;
pub(super) use revoke::{FORGET_LEASE_TERM, FORGET_LEASE_WAIT};

/// First backoff while another replica holds the lease; doubles up to [`LEASE_RETRY_MAX`].
const LEASE_RETRY_MIN: Duration = Duration::from_millis(20);
/// Rounds per attempt; another replica may win any of them.
const ROUNDS_MAX: u32 = 3;

pub(super) struct Acquirer {
    pub slot: Arc<TokenSlot>,
    /// The current definition; each reload replaces it.
    pub definition: Arc<ArcSwap<Definition>>,
    pub superseded: SupersededDefinitions,
    pub store: Arc<dyn TokenStore>,
    /// Limits concurrent requests to this authorization server.
    pub limiter: Arc<RequestLimiter>,
    /// Limits concurrent polls of the store, all slots together.
    pub polls: Arc<Semaphore>,
    pub clock: Clock,
    pub metrics: Metrics,
    pub audit: Audit,
    /// Other replicas use the same store.
    pub shared: bool,
    pub record_cache: Mutex<RecordCache>,
}

/// One attempt to acquire the next token.
#[derive(Clone, Copy)]
pub(super) struct Attempt<'a> {
    pub definition: &'a Definition,
    /// The access token in use.
    pub in_use: Option<&'a AccessToken>,
    pub cause: &'a Cause,
}

/// The next token and its origin.
pub(super) enum Acquired {
    /// Issued by the authorization server just now.
    Issued(StoredToken),
    /// Stored by another replica or an earlier process.
    Stored(StoredToken),
}

/// Outcome of one refresh.
enum RefreshOutcome {
    Issued(Box<StoredToken>),
    /// The server refused the refresh token. It is marked as refused, unless another replica has replaced it.
    Refused,
}

impl Acquirer {
    pub async fn acquire(&self, attempt: Attempt<'_>) -> Result<Acquired, AcquireError> {
        for _ in 0..ROUNDS_MAX {
            match self.acquire_once(attempt).await {
                Err(AcquireError::Store(StoreError::LeaseLost { .. })) => {}
                Err(AcquireError::Store(StoreError::Unavailable(why))) if self.shared => {
                    return self.acquire_offline(attempt, why).await;
                }
                Err(AcquireError::ConsentNeeded { consent: Consent::First, .. })
                    if self.has_outdated(&attempt.definition.connection).await =>
                {
                    return Err(AcquireError::Outdated(self.slot.key.clone()));
                }
                outcome => return outcome,
            }
        }
        Err(StoreError::LeaseLost { key: self.slot.key.clone() }.into())
    }

    /// Makes one attempt: waits for the lease if needed, and releases it afterwards.
    async fn acquire_once(&self, attempt: Attempt<'_>) -> Result<Acquired, AcquireError> {
        let definition = attempt.definition;
        let record = self.record(&definition.connection).await?;
        match plan::decide_lease(&self.plan_input(attempt, record.as_ref()), self.clock.now()) {
            LeaseDecision::Adopt(token) => return Ok(Acquired::Stored(self.remember(token))),
            LeaseDecision::Stop(error) => return Err(error),
            LeaseDecision::TakeLeaseUnlessInDoubt if self.is_in_doubt().await? => {
                return Err(AcquireError::InDoubt);
            }
            LeaseDecision::TakeLeaseUnlessInDoubt | LeaseDecision::TakeLease => {}
        }
        let (_permit, lease) = tokio::select! {
            taken = self.permit_and_lease(&definition.connection) => taken?,
            () = self.slot.interrupted(), if self.shared => return Err(AcquireError::Interrupted),
            () = self.slot.abandoned(&self.clock) => return Err(AcquireError::Interrupted),
        };
        let outcome = match notice::applicable(lease.backoff(), definition.since.elapsed(), attempt.cause) {
            Some(put_off) => Err(AcquireError::Deferred(put_off)),
            None => self.acquire_leased(attempt, &*lease).await,
        };
        self.publish_notice(&outcome, attempt, &*lease).await;
        let in_doubt = matches!(outcome, Err(AcquireError::Server { in_doubt: true, .. }));
        lease.release(!in_doubt && !self.has_unsaved()).await;
        outcome
    }

    async fn acquire_leased(&self, attempt: Attempt<'_>, lease: &dyn Lease) -> Result<Acquired, AcquireError> {
        let mut state = LeaseState {
            in_doubt: lease.is_in_doubt(),
            rejected_elsewhere: notice::rejected_elsewhere(lease.backoff(), attempt.cause),
            rounds_left: ROUNDS_MAX,
        };
        loop {
            let record = self.record(&attempt.definition.connection).await?;
            match plan::decide(&self.plan_input(attempt, record.as_ref()), &state, self.clock.now()) {
                Plan::Adopt(token) => return Ok(Acquired::Stored(self.remember(token))),
                Plan::Stop(error) => return Err(error),
                Plan::Pause(span) => tokio::time::sleep(span).await,
                Plan::Request(Request::Refresh(refresh)) => {
                    lease.renew(Some(refresh.record.version)).await?;
                    if let RefreshOutcome::Issued(token) = self.spend(attempt, refresh, Saving::Leased(lease)).await? {
                        return Ok(Acquired::Issued(*token));
                    }
                }
                Plan::Request(Request::Grant) => {
                    lease.renew(None).await?;
                    let version = record.as_ref().map_or(lease.replaces(), |record| record.version);
                    return self.grant(attempt, version, Saving::Leased(lease)).await;
                }
            }
            state.rounds_left = state.rounds_left.saturating_sub(1);
        }
    }

    /// Acquires the next token while the store is unreachable because of `why`.
    async fn acquire_offline(&self, attempt: Attempt<'_>, why: String) -> Result<Acquired, AcquireError> {
        let connection = &attempt.definition.connection;
        let record = self.record_in_memory(connection);
        let request = match plan::decide_offline(&self.plan_input(attempt, record.as_ref()), self.clock.now()) {
            Offline::Adopt(token) => return Ok(Acquired::Stored(token.clone())),
            Offline::Stop => return Err(StoreError::Unavailable(why).into()),
            Offline::Request(request) => request,
        };
        let _permit = tokio::select! {
            permit = self.limiter.acquire(&connection.name) => permit,
            () = self.slot.abandoned(&self.clock) => return Err(AcquireError::Interrupted),
        };
        if let Request::Refresh(refresh) = request {
            if let RefreshOutcome::Issued(token) = self.spend(attempt, refresh, Saving::Offline(&why)).await? {
                return Ok(Acquired::Issued(*token));
            }
            if let Some(error) = plan::consent_needed(connection, self.record_in_memory(connection).as_ref()) {
                return Err(error);
            }
        }
        let version = record.as_ref().map_or(0, |record| record.version);
        self.grant(attempt, version, Saving::Offline(&why)).await
    }

    /// Spends a refresh token and saves the outcome.
    async fn spend(
        &self,
        attempt: Attempt<'_>,
        refresh: Refresh<'_>,
        saving: Saving<'_>,
    ) -> Result<RefreshOutcome, AcquireError> {
        let Refresh { record, token, sent_before } = refresh;
        match self.refresh(attempt, (token, sent_before), Some(record.refresh_life)).await {
            Ok(issued) => {
                let token = StoredToken { origins: record.origins.clone(), version: record.version, ..issued };
                Ok(RefreshOutcome::Issued(Box::new(self.save_or_hold(token, saving).await)))
            }
            Err(AcquireError::Server { failure: Failure::Permanent(refusal), .. }) if refusal.refuses_refresh_token => {
                let current = match saving {
                    Saving::Leased(_) => self.record(&attempt.definition.connection).await?,
                    Saving::Offline(_) => None,
                };
                if current.is_none_or(|current| current.refresh == record.refresh) {
                    self.mark_refused(record, refusal.error, saving).await;
                }
                Ok(RefreshOutcome::Refused)
            }
            Err(error) => Err(error),
        }
    }

    /// Sends one request with the connection's own grant; the token replaces the record of `version`.
    async fn grant(&self, attempt: Attempt<'_>, version: u64, saving: Saving<'_>) -> Result<Acquired, AcquireError> {
        let token = self.send(attempt, TokenRequest::Grant).await?;
        Ok(Acquired::Issued(self.save_or_hold(StoredToken { version, ..token }, saving).await))
    }

    /// Proves an imported credential. Only if the server accepts it does the resulting token replace the record.
    pub async fn import(
        &self,
        definition: &Definition,
        credential: Credential,
        cause: &Cause,
    ) -> Result<StoredToken, AcquireError> {
        let attempt = Attempt { definition, in_use: None, cause };
        let (_permit, lease) = self.permit_and_lease(&definition.connection).await?;
        let token = match credential {
            Credential::RefreshToken(token) => self.refresh(attempt, (&token, None), None).await,
            Credential::Consented(consented) => self.send(attempt, TokenRequest::Consented(&consented)).await,
            Credential::Tokens { set, requested_at } => {
                self.read_response(attempt, TokenRequest::Grant, Ok(set), requested_at)
            }
        };
        let token = match token {
            Ok(token) => {
                let token = StoredToken { version: lease.replaces(), ..token };
                Ok(self.save_or_hold(token, Saving::Leased(&*lease)).await)
            }
            Err(error) => Err(error),
        };
        lease.release(!self.has_unsaved()).await;
        token
    }

    /// Takes a permit to send to this server, and the lease of this token. While another replica holds the lease, the
    /// permit is returned for other slots.
    async fn permit_and_lease(&self, connection: &Connection) -> Result<(RequestPermit, Box<dyn Lease>), StoreError> {
        let term = lease_term(connection);
        let (deadline, mut backoff) = (Instant::now() + term + LEASE_MARGIN, LEASE_RETRY_MIN);
        loop {
            let permit = self.limiter.acquire(&connection.name).await;
            let wait = if self.shared { Duration::ZERO } else { term };
            match self.store.lease(&self.slot.key, term, wait).await {
                Err(StoreError::LeaseTimeout { .. }) if self.shared && Instant::now() < deadline => drop(permit),
                lease => return Ok((permit, lease?)),
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(LEASE_RETRY_MAX);
        }
    }

    fn plan_input<'a>(&self, attempt: Attempt<'a>, record: Option<&'a StoredToken>) -> PlanInput<'a> {
        PlanInput {
            connection: &attempt.definition.connection,
            cause: attempt.cause,
            in_use: attempt.in_use,
            record,
            store_fault_age: self.store_fault_age(),
            shared: self.shared,
        }
    }

    fn is_usable(&self, record: &StoredToken, connection: &Connection) -> bool {
        !self.clock.now().reached(plan::usable_until(record, connection))
    }
}
