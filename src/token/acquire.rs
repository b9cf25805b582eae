//! One way to the next token: stored? leased? then ask the server, save, and hand it over.
//!
//! Holds: the store is read again after the lease is taken, because another holder may have won; what the server gave is
//! saved before anybody uses it; a refresh token that was refused is never sent again, which is saved too; what the store
//! could not take stays here, is what the next refresh spends, and is offered to the store again. Where several processes
//! share the store, a refresh token that another holder may have spent is left alone while the present token lasts.
//! Not here: the request itself (`request`), what is kept of a token (`kept`), what replicas tell of failures (`put_off`),
//! how tokens end (`revoke`).

mod error;
mod kept;
mod put_off;
mod request;
mod revoke;
mod source;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::former::Former;
use super::gate::{Gate, Place};
use super::slot::{Consent, Handed, TokenSlot};
use crate::clock::{Clock, Now};
use crate::model::connection::Connection;
use crate::model::time::BootTime;
use crate::model::token::{AccessToken, RefreshToken};
use crate::oauth::{Consented, Failure};
use crate::store::{Lease, Refresh, Store, StoreError, StoredToken};
use crate::telemetry::audit::{Audit, Cause};
use crate::telemetry::metrics::Metrics;
pub(super) use error::{AcquireError, STORE_UNAVAILABLE};
pub(super) use kept::Seen;
use kept::{Kept, Recovers};
pub use source::{Answer, Ending, TokenSource};

/// What a lease lasts beyond the longest call that its holder may make, within which it has to be on its way.
const LEASE_SLACK: Duration = Duration::from_secs(5);
/// Between two tries to get a lease that another process has: at first, then twice as long each time.
const LEASE_PAUSE: Duration = Duration::from_millis(20);
const LEASE_PAUSE_MAX: Duration = Duration::from_secs(1);
/// Another holder may win again while we find that it has won; more often than this it is a fault.
const ROUNDS_MAX: u32 = 3;

pub(super) struct Acquirer {
    pub slot: Arc<TokenSlot>,
    /// As of the last reload.
    pub definition: Arc<ArcSwap<Definition>>,
    /// Before it.
    pub former: Former,
    pub store: Arc<dyn Store>,
    /// Requests under way to this authorization server.
    pub gate: Arc<Gate>,
    /// Looks into the store under way, of all slots.
    pub looks: Arc<Semaphore>,
    pub clock: Clock,
    pub metrics: Metrics,
    pub audit: Audit,
    /// Other processes use the store too.
    pub shared: bool,
    pub kept: Mutex<Kept>,
}

/// How the token of one slot is obtained.
pub(super) struct Definition {
    pub connection: Arc<Connection>,
    pub source: Box<dyn TokenSource>,
    /// When it came into force here.
    pub since: Instant,
}

/// What a token request is made with.
#[derive(Clone, Copy)]
enum Way<'a> {
    /// Not sent from a moment on.
    Refresh(&'a RefreshToken, Option<BootTime>),
    /// The connection's own grant.
    Grant,
    /// The same, with what a person has brought.
    Consented(&'a Consented),
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
        for _ in 0..ROUNDS_MAX {
            match self.acquire_leased(definition, current, cause).await {
                Err(AcquireError::Store(StoreError::LeaseLost { .. })) => {}
                Err(AcquireError::Store(StoreError::Unavailable(why))) if self.shared => {
                    return self.acquire_alone(definition, current, cause, why).await;
                }
                Err(AcquireError::Person { consent: Consent::First, .. })
                    if self.has_outdated(&definition.connection).await =>
                {
                    return Err(AcquireError::Outdated(self.slot.key.clone()));
                }
                other => return other,
            }
        }
        Err(StoreError::LeaseLost { key: self.slot.key.clone() }.into())
    }

    async fn acquire_leased(
        &self,
        definition: &Definition,
        current: Option<&AccessToken>,
        cause: &Cause,
    ) -> Result<(StoredToken, bool), AcquireError> {
        let connection = &definition.connection;
        let held = self.held(connection).await?;
        if let Some(token) = held.as_ref().filter(|held| self.is_news(held, connection, current)) {
            return Ok((self.remember(token), false));
        }
        person_needed(connection, held.as_ref())?;
        if let Some(held) = held.filter(|held| self.shared && self.is_usable(held, connection))
            && connection.grant.needs_person()
        {
            // Who may have something to save is not held up by others who would only wait.
            if let Some(Recovers::Later(wait)) = self.recovers(&held, connection, term(connection)) {
                return Err(AcquireError::Recovering(wait));
            }
            if cause.person().is_none() && self.store.is_in_doubt(&self.slot.key).await? {
                return Err(AcquireError::InDoubt);
            }
        }
        let (_place, lease) = tokio::select! {
            right = self.right_to_ask(connection) => right?,
            () = self.slot.told(), if self.shared => return Err(AcquireError::Interrupted),
            () = self.slot.given_up(&self.clock) => return Err(AcquireError::Interrupted),
        };
        let outcome = match put_off::holds(definition, &*lease, cause) {
            Some(put_off) => Err(AcquireError::PutOff(put_off)),
            None => self.next(definition, current, cause, &*lease).await,
        };
        match &outcome {
            Err(AcquireError::Server { failure, .. }) => self.put_off_others(failure, &*lease).await,
            Ok((_, true)) if *cause == Cause::Rejected => self.note_rejection(&*lease).await,
            _ => {}
        }
        let in_doubt = matches!(outcome, Err(AcquireError::Server { in_doubt: true, .. }));
        lease.release(!in_doubt && !self.has_unsaved()).await;
        outcome
    }

    /// The same for whoever holds the lease.
    async fn next(
        &self,
        definition: &Definition,
        current: Option<&AccessToken>,
        cause: &Cause,
        lease: &dyn Lease,
    ) -> Result<(StoredToken, bool), AcquireError> {
        let connection = &definition.connection;
        let mut version = lease.replaces();
        for _ in 0..ROUNDS_MAX {
            let held = self.held(connection).await?;
            if let Some(token) = held.as_ref().filter(|held| self.is_news(held, connection, current)) {
                return Ok((self.remember(token), false));
            }
            if let Some(told) = put_off::rejected_lately(lease, cause) {
                return Err(AcquireError::RejectedLately(told));
            }
            person_needed(connection, held.as_ref())?;
            version = held.as_ref().map_or(version, |held| held.version);
            let Some((held, Refresh::Token(token))) = held.as_ref().map(|held| (held, &held.refresh)) else { break };
            match self.recovers(held, connection, term(connection)) {
                Some(_) if !connection.grant.needs_person() => break,
                Some(Recovers::Later(wait)) => return Err(AcquireError::Recovering(wait)),
                Some(Recovers::Shortly(wait)) => {
                    tokio::time::sleep(wait).await;
                    continue;
                }
                None => {}
            }
            if lease.is_in_doubt() {
                match connection.grant.needs_person() {
                    true if cause.person().is_none() && self.is_usable(held, connection) => {
                        return Err(AcquireError::InDoubt);
                    }
                    true => {}
                    false => break,
                }
            }
            // What leaves later might be answered when others may ask: the lease is over, and the present token, for whose
            // life the mark holds them back.
            let sent_before = self.shared.then(|| {
                let now = self.clock.now();
                let usable = now.until(self.usable_until(held, connection));
                now.boot + usable.saturating_sub(connection.authorization_server.timeout).max(LEASE_SLACK)
            });
            lease.renew(Some(version)).await?;
            match self.refresh(definition, (token, sent_before), Some(held.refresh_life), cause).await {
                Ok(answer) => {
                    let next = StoredToken { origins: held.origins.clone(), version, ..answer };
                    return Ok((self.keep(next, Ok(lease)).await, true));
                }
                Err(AcquireError::Server { failure: Failure::Permanent(refusal), .. })
                    if refusal.is_of_refresh_token =>
                {
                    let now_held = self.held(connection).await?;
                    if now_held.is_none_or(|now_held| now_held.refresh == held.refresh) {
                        self.mark_refused(held, refusal.error, Ok(lease)).await;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        if connection.grant.needs_person() {
            // What the store has changes faster than it can be spent.
            return Err(AcquireError::Recovering(LEASE_PAUSE_MAX));
        }
        lease.renew(None).await?;
        let token = self.ask(definition, Way::Grant, cause).await?;
        Ok((self.keep(StoredToken { version, ..token }, Ok(lease)).await, true))
    }

    /// The next token while the store is out of reach because of `why`: what spends no refresh token, or one that is known
    /// to stay the same, may be asked for by several processes at once.
    async fn acquire_alone(
        &self,
        definition: &Definition,
        current: Option<&AccessToken>,
        cause: &Cause,
        why: String,
    ) -> Result<(StoredToken, bool), AcquireError> {
        let connection = &definition.connection;
        let last = self.last_of(connection);
        if let Some(token) = last.as_ref().filter(|last| self.is_news(last, connection, current)) {
            return Ok((token.clone(), false));
        }
        let _place = tokio::select! {
            place = self.gate.enter(&connection.name) => place,
            () = self.slot.given_up(&self.clock) => return Err(AcquireError::Interrupted),
        };
        let version = last.as_ref().map_or(0, |last| last.version);
        let token = match last.as_ref().map(|last| (last, &last.refresh)) {
            Some((last, Refresh::Token(token))) if last.outlasts_refreshes() => {
                match self.refresh(definition, (token, None), Some(last.refresh_life), cause).await {
                    Ok(answer) => StoredToken { origins: last.origins.clone(), ..answer },
                    Err(AcquireError::Server { failure: Failure::Permanent(refusal), .. })
                        if refusal.is_of_refresh_token =>
                    {
                        let refused = self.mark_refused(last, refusal.error, Err(why.clone())).await;
                        person_needed(connection, Some(&refused))?;
                        self.ask(definition, Way::Grant, cause).await?
                    }
                    Err(error) => return Err(error),
                }
            }
            _ if !connection.grant.needs_person() => self.ask(definition, Way::Grant, cause).await?,
            _ => return Err(StoreError::Unavailable(why).into()),
        };
        Ok((self.keep(StoredToken { version, ..token }, Err(why)).await, true))
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
            Handed::RefreshToken(token) => self.refresh(definition, (&token, None), None, cause).await,
            Handed::Consented(consented) => self.ask(definition, Way::Consented(&consented), cause).await,
            Handed::Tokens(set, asked) => self.answered(definition, Way::Grant, (Ok(set), asked), cause),
        };
        let token = match token {
            // It takes the place of whatever was there.
            Ok(token) => Ok(self.keep(StoredToken { version: lease.replaces(), ..token }, Ok(&*lease)).await),
            Err(error) => Err(error),
        };
        lease.release(!self.has_unsaved()).await;
        token
    }

    /// A place among the requests to this server, and the lease of this token. While another process has that, the place
    /// is left to others.
    async fn right_to_ask(&self, connection: &Connection) -> Result<(Place, Box<dyn Lease>), StoreError> {
        let term = term(connection);
        let (end, mut pause) = (Instant::now() + term + LEASE_SLACK, LEASE_PAUSE);
        loop {
            let place = self.gate.enter(&connection.name).await;
            let patience = if self.shared { Duration::ZERO } else { term };
            match self.store.lease(&self.slot.key, term, patience).await {
                Err(StoreError::LeaseTimeout { .. }) if self.shared && Instant::now() < end => drop(place),
                lease => return Ok((place, lease?)),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LEASE_PAUSE_MAX);
        }
    }

    /// Is it usable, and another one than `current`?
    fn is_news(&self, held: &StoredToken, connection: &Connection, current: Option<&AccessToken>) -> bool {
        self.is_usable(held, connection) && Some(&held.access_token) != current
    }

    fn is_usable(&self, held: &StoredToken, connection: &Connection) -> bool {
        !self.clock.now().reached(self.usable_until(held, connection))
    }

    fn usable_until(&self, held: &StoredToken, connection: &Connection) -> Now {
        let margin = connection.lifetimes.usable_margin.min(held.lifetime / 4);
        held.obtained.plus(held.lifetime - margin)
    }
}

/// How long a lease lasts: longer than the longest call that its holder may make.
fn term(connection: &Connection) -> Duration {
    connection.authorization_server.timeout + LEASE_SLACK
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
