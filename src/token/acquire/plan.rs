//! Decides how to acquire the next token: pure functions of the stored record, the store's state and the cause.
//!
//! Invariants: a usable token of another replica is adopted before any token request. If the grant needs a person's
//! consent, a refresh token that may be spent is not sent while the current token is usable, unless a person requests
//! it; other connections use their own grant instead.
//! Not here: reads, leases and requests (`acquire`), when to try again (`schedule`).

use std::time::Duration;

use super::AcquireError;
use crate::clock::Now;
use crate::model::connection::Connection;
use crate::model::time::BootTime;
use crate::model::token::{AccessToken, RefreshToken};
use crate::store::{self, StoredToken};
use crate::telemetry::audit::Cause;
use crate::token::deadlines;
use crate::token::slot::{Consent, RejectionBackoff};

/// Margin of a lease's term over its holder's longest call; that call must be sent within this time.
pub const LEASE_MARGIN: Duration = Duration::from_secs(5);
/// Maximum backoff while another replica holds the lease.
pub const LEASE_RETRY_MAX: Duration = Duration::from_secs(1);
/// Minimum time between the store's last fault and a refresh, even if the current token has expired.
const RECOVERY_MIN: Duration = Duration::from_secs(3);

/// Term of a lease; exceeds its holder's longest call.
pub fn lease_term(connection: &Connection) -> Duration {
    connection.authorization_server.timeout + LEASE_MARGIN
}

/// When a stored token stops being usable.
pub fn usable_until(record: &StoredToken, connection: &Connection) -> Now {
    deadlines::usable_until(record.obtained, record.lifetime, &connection.lifetimes)
}

/// Input of every decision.
#[derive(Debug, Clone, Copy)]
pub struct PlanInput<'a> {
    pub connection: &'a Connection,
    pub cause: &'a Cause,
    /// The access token in use; a record with the same token is not newer.
    pub in_use: Option<&'a AccessToken>,
    /// The record as last read; `None` if there is none for the current definition.
    pub record: Option<&'a StoredToken>,
    /// Time since the store was last unreachable, or was found to have lost this record.
    pub store_fault_age: Option<Duration>,
    /// Other replicas use the same store.
    pub shared: bool,
}

/// Additional input under the lease.
#[derive(Debug, Clone, Copy)]
pub struct LeaseState {
    /// An earlier holder marked the refresh token as being spent and has not saved the outcome.
    pub in_doubt: bool,
    /// A rejection forced another replica to refresh, as it does this one.
    pub rejected_elsewhere: Option<RejectionBackoff>,
    /// Requests and pauses left to this attempt.
    pub rounds_left: u32,
}

/// What to do before the lease is taken.
#[derive(Debug, PartialEq, Eq)]
pub enum LeaseDecision<'a> {
    Adopt(&'a StoredToken),
    TakeLease,
    /// Take the lease unless the refresh token is marked in the store as being spent.
    TakeLeaseUnlessInDoubt,
    Stop(AcquireError),
}

/// What to do under the lease.
#[derive(Debug, PartialEq, Eq)]
pub enum Plan<'a> {
    Adopt(&'a StoredToken),
    Request(Request<'a>),
    /// Wait, then read the record again.
    Pause(Duration),
    Stop(AcquireError),
}

/// What to do while the store is unreachable.
#[derive(Debug, PartialEq, Eq)]
pub enum Offline<'a> {
    Adopt(&'a StoredToken),
    Request(Request<'a>),
    Stop,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Request<'a> {
    Refresh(Refresh<'a>),
    /// The connection's own grant.
    Grant,
}

/// A refresh token to spend.
#[derive(Debug, PartialEq, Eq)]
pub struct Refresh<'a> {
    pub record: &'a StoredToken,
    pub token: &'a RefreshToken,
    /// Deadline for sending.
    pub sent_before: Option<BootTime>,
}

/// Decides before the lease is taken. A replica with a usable token does not queue for the lease during a recovery or
/// while the refresh token is in doubt, so that it never delays a replica that has a token to save.
pub fn decide_lease<'a>(input: &PlanInput<'a>, now: Now) -> LeaseDecision<'a> {
    if let Some(record) = input.newer_token(now) {
        return LeaseDecision::Adopt(record);
    }
    if let Some(stop) = input.consent_needed() {
        return LeaseDecision::Stop(stop);
    }
    let Some(record) = input.record.filter(|record| input.shared && input.is_usable(record, now)) else {
        return LeaseDecision::TakeLease;
    };
    if !input.needs_person() {
        return LeaseDecision::TakeLease;
    }
    let recovery = input.recovery(record, now);
    match input.cause.person() {
        _ if !recovery.is_zero() => LeaseDecision::Stop(AcquireError::Recovering(recovery)),
        Some(_) => LeaseDecision::TakeLease,
        None => LeaseDecision::TakeLeaseUnlessInDoubt,
    }
}

/// Decides under the lease, after each read of the record.
pub fn decide<'a>(input: &PlanInput<'a>, lease: &LeaseState, now: Now) -> Plan<'a> {
    if let Some(record) = input.newer_token(now) {
        return Plan::Adopt(record);
    }
    if let Some(pause) = lease.rejected_elsewhere {
        return Plan::Stop(AcquireError::RejectedElsewhere(pause));
    }
    if let Some(stop) = input.consent_needed() {
        return Plan::Stop(stop);
    }
    let Some((record, store::Refresh::Token(token))) = input.record.map(|record| (record, &record.refresh)) else {
        return Plan::Request(Request::Grant);
    };
    let (recovery, is_usable) = (input.recovery(record, now), input.is_usable(record, now));
    let is_last = lease.rounds_left == 0;
    if !input.needs_person() && (is_last || lease.in_doubt || !recovery.is_zero()) {
        return Plan::Request(Request::Grant);
    }
    if is_last {
        // The record changes faster than this replica can spend it.
        return Plan::Stop(AcquireError::Recovering(LEASE_RETRY_MAX));
    }
    if !recovery.is_zero() {
        return if is_usable { Plan::Stop(AcquireError::Recovering(recovery)) } else { Plan::Pause(recovery) };
    }
    if lease.in_doubt && is_usable && input.cause.person().is_none() {
        return Plan::Stop(AcquireError::InDoubt);
    }
    let sent_before = input.shared.then(|| input.send_deadline(record, now));
    Plan::Request(Request::Refresh(Refresh { record, token, sent_before }))
}

/// Decides while the store is unreachable, when several replicas may act at once: only requests that spend no refresh
/// token, or one that is known not to rotate, are safe.
pub fn decide_offline<'a>(input: &PlanInput<'a>, now: Now) -> Offline<'a> {
    if let Some(record) = input.newer_token(now) {
        return Offline::Adopt(record);
    }
    match input.record.map(|record| (record, &record.refresh)) {
        Some((record, store::Refresh::Token(token))) if record.has_reusable_refresh_token() => {
            Offline::Request(Request::Refresh(Refresh { record, token, sent_before: None }))
        }
        _ if input.needs_person() => Offline::Stop,
        _ => Offline::Request(Request::Grant),
    }
}

/// Why the next token needs a person's consent; `None` if a token request can get it.
pub fn consent_needed(connection: &Connection, record: Option<&StoredToken>) -> Option<AcquireError> {
    if !connection.grant.needs_person() {
        return None;
    }
    match record.map(|record| &record.refresh) {
        Some(store::Refresh::Token(_)) => None,
        Some(store::Refresh::Refused { error }) => {
            Some(AcquireError::ConsentNeeded { consent: Consent::Again, error: error.clone() })
        }
        Some(store::Refresh::None) | None => {
            let consent = Consent::First;
            Some(AcquireError::ConsentNeeded { consent, error: consent.code().to_owned() })
        }
    }
}

impl<'a> PlanInput<'a> {
    fn needs_person(&self) -> bool {
        self.connection.grant.needs_person()
    }

    fn consent_needed(&self) -> Option<AcquireError> {
        consent_needed(self.connection, self.record)
    }

    fn is_usable(&self, record: &StoredToken, now: Now) -> bool {
        !now.reached(usable_until(record, self.connection))
    }

    /// The record, if its token is usable and differs from the one in use.
    fn newer_token(&self, now: Now) -> Option<&'a StoredToken> {
        self.record.filter(|record| self.is_usable(record, now) && Some(&record.access_token) != self.in_use)
    }

    /// How long to hold back the refresh token after the store's last fault, which may have lost leases and recent
    /// writes. A replica that was spending the token, or has seen a newer record, needs this time to write it back: the
    /// term of one lease that reappeared with an older state, and one more to take the lease. Only [`RECOVERY_MIN`]
    /// once the current token has expired.
    fn recovery(&self, record: &StoredToken, now: Now) -> Duration {
        let Some(age) = self.store_fault_age else { return Duration::ZERO };
        let usable_for = now.until(usable_until(record, self.connection));
        if usable_for.is_zero() {
            return RECOVERY_MIN.saturating_sub(age);
        }
        (2 * lease_term(self.connection)).saturating_sub(age).min(usable_for)
    }

    /// Deadline for sending the refresh. The response to a later request could arrive after the lease and the current
    /// token have expired, when the mark in the store no longer holds other replicas back.
    fn send_deadline(&self, record: &StoredToken, now: Now) -> BootTime {
        let usable_for = now.until(usable_until(record, self.connection));
        now.boot + usable_for.saturating_sub(self.connection.authorization_server.timeout).max(LEASE_MARGIN)
    }
}

#[cfg(test)]
mod tests;
