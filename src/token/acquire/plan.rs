//! What to do for the next token: pure decisions over the stored record, the store's state and the cause.
//!
//! Invariants: a usable token from elsewhere is adopted before anything is requested. Where a person's consent is at
//! stake, a refresh token that may be spent is not sent while the present token lasts, unless a person asks; a connection
//! that needs no person acquires by its own grant instead.
//! Not here: reads, leases and requests (`acquire`), when to try again (`schedule`).

use std::time::Duration;

use super::AcquireError;
use crate::clock::Now;
use crate::model::connection::Connection;
use crate::model::time::BootTime;
use crate::model::token::{AccessToken, RefreshToken};
use crate::store::{self, StoredToken};
use crate::telemetry::audit::Cause;
use crate::token::moments;
use crate::token::slot::{Consent, RejectionPause};

/// What a lease lasts beyond the longest call of its holder, and the time within which that call has to leave.
pub const LEASE_SLACK: Duration = Duration::from_secs(5);
/// Longest pause between two attempts to take a lease that another replica holds.
pub const LEASE_RETRY_MAX: Duration = Duration::from_secs(1);
/// After the store's last trouble a refresh token waits this long even if the present token has ended.
const RECOVERY_MIN: Duration = Duration::from_secs(3);

/// Term of a lease: longer than the longest call of its holder.
pub fn lease_term(connection: &Connection) -> Duration {
    connection.authorization_server.timeout + LEASE_SLACK
}

/// Until when a stored token is usable.
pub fn usable_until(record: &StoredToken, connection: &Connection) -> Now {
    moments::usable_until(record.obtained, record.lifetime, &connection.lifetimes)
}

/// What is known when a decision is made.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    pub connection: &'a Connection,
    pub cause: &'a Cause,
    /// The access token in use: a record that has the same one is no news.
    pub in_use: Option<&'a AccessToken>,
    /// The record as last read; `None` if there is none, or only one of another definition.
    pub record: Option<&'a StoredToken>,
    /// Time since the store was last unreachable, or was found to have lost this record.
    pub store_trouble_age: Option<Duration>,
    /// Other replicas use the store.
    pub shared: bool,
}

/// What the lease adds.
#[derive(Debug, Clone, Copy)]
pub struct LeaseFacts {
    /// An earlier holder was about to spend the refresh token and has not saved the outcome.
    pub in_doubt: bool,
    /// Another replica was forced to refresh by a rejection, as we are.
    pub rejected_elsewhere: Option<RejectionPause>,
    /// Requests and pauses that are left to this attempt.
    pub rounds_left: u32,
}

/// Whether to wait for the lease.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn<'a> {
    Adopt(&'a StoredToken),
    TakeLease,
    /// Take it unless the store has a refresh token marked as being spent.
    TakeLeaseUnlessInDoubt,
    Stop(AcquireError),
}

/// What the holder of the lease does.
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

/// Decides before the lease is taken. A replica with a usable token does not queue for the lease during a recovery or a
/// doubt, so that it never delays one that has a token to save.
pub fn decide_turn<'a>(facts: &Facts<'a>, now: Now) -> Turn<'a> {
    if let Some(record) = facts.news(now) {
        return Turn::Adopt(record);
    }
    if let Some(stop) = facts.consent_needed() {
        return Turn::Stop(stop);
    }
    let Some(record) = facts.record.filter(|record| facts.shared && facts.is_usable(record, now)) else {
        return Turn::TakeLease;
    };
    if !facts.needs_person() {
        return Turn::TakeLease;
    }
    let recovery = facts.recovery(record, now);
    match facts.cause.person() {
        _ if !recovery.is_zero() => Turn::Stop(AcquireError::Recovering(recovery)),
        Some(_) => Turn::TakeLease,
        None => Turn::TakeLeaseUnlessInDoubt,
    }
}

/// Decides under the lease, each time the record has been read.
pub fn decide<'a>(facts: &Facts<'a>, lease: &LeaseFacts, now: Now) -> Plan<'a> {
    if let Some(record) = facts.news(now) {
        return Plan::Adopt(record);
    }
    if let Some(pause) = lease.rejected_elsewhere {
        return Plan::Stop(AcquireError::RejectedElsewhere(pause));
    }
    if let Some(stop) = facts.consent_needed() {
        return Plan::Stop(stop);
    }
    let Some((record, store::Refresh::Token(token))) = facts.record.map(|record| (record, &record.refresh)) else {
        return Plan::Request(Request::Grant);
    };
    let (recovery, is_usable) = (facts.recovery(record, now), facts.is_usable(record, now));
    let is_last = lease.rounds_left == 0;
    if !facts.needs_person() && (is_last || lease.in_doubt || !recovery.is_zero()) {
        return Plan::Request(Request::Grant);
    }
    if is_last {
        // The record changes faster than it can be spent.
        return Plan::Stop(AcquireError::Recovering(LEASE_RETRY_MAX));
    }
    if !recovery.is_zero() {
        return if is_usable { Plan::Stop(AcquireError::Recovering(recovery)) } else { Plan::Pause(recovery) };
    }
    if lease.in_doubt && is_usable && facts.cause.person().is_none() {
        return Plan::Stop(AcquireError::InDoubt);
    }
    let sent_before = facts.shared.then(|| facts.send_deadline(record, now));
    Plan::Request(Request::Refresh(Refresh { record, token, sent_before }))
}

/// Decides while the store is unreachable: several replicas may send what spends no refresh token, or one that is known to
/// stay the same.
pub fn decide_offline<'a>(facts: &Facts<'a>, now: Now) -> Offline<'a> {
    if let Some(record) = facts.news(now) {
        return Offline::Adopt(record);
    }
    match facts.record.map(|record| (record, &record.refresh)) {
        Some((record, store::Refresh::Token(token))) if record.has_reusable_refresh_token() => {
            Offline::Request(Request::Refresh(Refresh { record, token, sent_before: None }))
        }
        _ if facts.needs_person() => Offline::Stop,
        _ => Offline::Request(Request::Grant),
    }
}

/// Why only a person can get the next token; `None` if a request can.
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

impl<'a> Facts<'a> {
    fn needs_person(&self) -> bool {
        self.connection.grant.needs_person()
    }

    fn consent_needed(&self) -> Option<AcquireError> {
        consent_needed(self.connection, self.record)
    }

    fn is_usable(&self, record: &StoredToken, now: Now) -> bool {
        !now.reached(usable_until(record, self.connection))
    }

    /// The record, if its token is usable and not the one in use.
    fn news(&self, now: Now) -> Option<&'a StoredToken> {
        self.record.filter(|record| self.is_usable(record, now) && Some(&record.access_token) != self.in_use)
    }

    /// How long the refresh token waits because of the store's last trouble, in which leases and the last writes may have
    /// been lost: long enough for a replica that was spending it, or has seen a newer record, to write that back. That is
    /// one term of a lease that came back with an older state and one to take the lease, but only [`RECOVERY_MIN`] once
    /// the present token has ended.
    fn recovery(&self, record: &StoredToken, now: Now) -> Duration {
        let Some(age) = self.store_trouble_age else { return Duration::ZERO };
        let usable_for = now.until(usable_until(record, self.connection));
        if usable_for.is_zero() {
            return RECOVERY_MIN.saturating_sub(age);
        }
        (2 * lease_term(self.connection)).saturating_sub(age).min(usable_for)
    }

    /// A request that leaves later could be answered after the lease and the present token have ended, when the mark in
    /// the store holds other replicas back no longer.
    fn send_deadline(&self, record: &StoredToken, now: Now) -> BootTime {
        let usable_for = now.until(usable_until(record, self.connection));
        now.boot + usable_for.saturating_sub(self.connection.authorization_server.timeout).max(LEASE_SLACK)
    }
}

#[cfg(test)]
mod tests;
