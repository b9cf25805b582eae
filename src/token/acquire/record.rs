//! The record of a slot's token: in the store and, where other replicas use that, as last seen in memory.
//!
//! Invariants: a failed save loses no token. A record that was seen before and is missing or older now was lost by the
//! store, unless it was removed on purpose, and is written back. What another replica has stored since is never overwritten.

use std::sync::MutexGuard;
use std::time::Duration;

use tokio::time::Instant;

use super::Acquirer;
use super::plan::LEASE_SLACK;
use crate::model::connection::Connection;
use crate::store::{Lease, Refresh, StoreError, StoredToken};
use crate::sync::lock;

/// Timeout of one write; after it the token is used unsaved.
const SAVE_TIMEOUT: Duration = Duration::from_secs(3);
/// Attempts to save under one lease, and the pause between them: longer than a reconnection takes.
const SAVE_ATTEMPTS: u32 = 3;
const SAVE_RETRY_INTERVAL: Duration = Duration::from_millis(600);
/// A loss of the same record within this time is the same loss.
const LOSS_WINDOW: Duration = Duration::from_secs(60);
/// Term of a lease that is taken for a save alone.
const SAVE_LEASE_TERM: Duration = Duration::from_secs(10);

/// What memory has of the record.
#[derive(Default)]
pub struct Held {
    /// A token that the store could not take; its version is the one that it is to replace.
    unsaved: Option<StoredToken>,
    /// As last seen in the store; only if other replicas use it.
    last_seen: Option<StoredToken>,
    /// When the store was last found to have lost the record.
    lost_at: Option<Instant>,
}

/// What a poll of a shared store finds.
pub enum Poll {
    Unchanged,
    /// A newer record with a usable token.
    Token(Box<StoredToken>),
    /// A newer record without one.
    Record,
    /// The record was removed on purpose.
    Removed,
}

/// How a save reaches the store.
#[derive(Clone, Copy)]
pub(super) enum Saving<'a> {
    Leased(&'a dyn Lease),
    /// Not now: the store is unreachable for this reason.
    Offline(&'a str),
}

impl Acquirer {
    /// The record of this token, if it was granted for the present definition.
    pub(super) async fn record(&self, connection: &Connection) -> Result<Option<StoredToken>, StoreError> {
        Ok(self.record_of_any_definition(connection).await?.filter(|record| record.matches(connection)))
    }

    pub(super) async fn record_of_any_definition(
        &self,
        connection: &Connection,
    ) -> Result<Option<StoredToken>, StoreError> {
        let unsaved = self.held().unsaved.clone();
        match unsaved {
            Some(unsaved) => Ok(Some(unsaved)),
            None => self.load_or_restore(connection).await,
        }
    }

    /// The record as far as it is known without the store.
    pub(super) fn record_in_memory(&self, connection: &Connection) -> Option<StoredToken> {
        let held = self.held();
        let record = held.unsaved.as_ref().or(held.last_seen.as_ref());
        record.filter(|record| record.matches(connection)).cloned()
    }

    /// True if the stored token was granted for another definition.
    pub(super) async fn has_outdated(&self, connection: &Connection) -> bool {
        matches!(self.load_or_restore(connection).await, Ok(Some(record)) if !record.matches(connection))
    }

    async fn load(&self) -> Result<Option<StoredToken>, StoreError> {
        match self.store.load(&self.slot.key).await {
            Err(StoreError::Damaged { record, why }) => {
                tracing::error!(record, why, "stored token cannot be opened; continuing without it");
                Ok(None)
            }
            loaded => loaded,
        }
    }

    /// The stored record. One that the store has lost, or has an older version of, is written back.
    async fn load_or_restore(&self, connection: &Connection) -> Result<Option<StoredToken>, StoreError> {
        let stored = self.load().await?;
        let (Some(last_seen), Some(shared)) = (self.held().last_seen.clone(), self.store.shared()) else {
            return Ok(stored);
        };
        match stored {
            Some(stored) if stored.version >= last_seen.version => return Ok(Some(stored)),
            Some(_) => {}
            None => {
                let has_refresh_token = matches!(last_seen.refresh, Refresh::Token(_));
                let is_useless = !has_refresh_token && !self.is_usable(&last_seen, connection);
                if is_useless || shared.was_removed(&self.slot.key, last_seen.version).await? {
                    self.held().last_seen = None;
                    return Ok(None);
                }
            }
        }
        tracing::warn!(connection = %self.slot.key.connection, profile = %self.slot.key.profile,
            subject = self.slot.key.subject_str(), "the store has lost a token that is held here; writing it back");
        {
            let mut held = self.held();
            held.lost_at = held.lost_at.filter(|at| at.elapsed() < LOSS_WINDOW).or_else(|| Some(Instant::now()));
        }
        shared.restore(&self.slot.key, last_seen.clone()).await?;
        Ok(Some(last_seen))
    }

    /// Time since the store was last unreachable, or lost this record; `None`: never.
    pub(super) fn store_trouble_age(&self) -> Option<Duration> {
        let reconnected_at = self.store.shared().and_then(|shared| shared.reconnected_at());
        reconnected_at.max(self.held().lost_at).map(|at| at.elapsed())
    }

    /// May another replica have spent the refresh token?
    pub(super) async fn is_in_doubt(&self) -> Result<bool, StoreError> {
        match self.store.shared() {
            Some(shared) => shared.is_in_doubt(&self.slot.key).await,
            None => Ok(false),
        }
    }

    /// Notes what the store has.
    pub(super) fn remember(&self, record: &StoredToken) -> StoredToken {
        if self.shared {
            self.held().last_seen = Some(record.clone());
        }
        record.clone()
    }

    /// Reads what other replicas have done to the record.
    pub async fn poll(&self, connection: &Connection) -> Result<Poll, StoreError> {
        let Some(shared) = self.store.shared().filter(|_| !self.has_unsaved()) else { return Ok(Poll::Unchanged) };
        // The semaphore is never closed.
        let _permit = self.polls.acquire().await;
        let known = self.held().last_seen.as_ref().map_or(0, |record| record.version);
        let Some(stored) = self.load_or_restore(connection).await? else {
            let removed = shared.was_removed(&self.slot.key, known).await?;
            return Ok(if removed { Poll::Removed } else { Poll::Unchanged });
        };
        if stored.version <= known || !stored.matches(connection) {
            return Ok(Poll::Unchanged);
        }
        self.remember(&stored);
        Ok(if self.is_usable(&stored, connection) { Poll::Token(Box::new(stored)) } else { Poll::Record })
    }

    /// Saves `token`, or holds it in memory if the store does not take it; returns it as saved.
    pub(super) async fn save_or_hold(&self, token: StoredToken, saving: Saving<'_>) -> StoredToken {
        if self.slot.is_closed() && self.is_superseded(&token).await {
            self.forget_held();
            return token;
        }
        let saved = match saving {
            Saving::Leased(lease) => self.save(&token, lease).await,
            Saving::Offline(why) => Err(StoreError::Unavailable(why.to_owned())),
        };
        match saved {
            Ok(version) => {
                let token = StoredToken { version, ..token };
                *self.held() = Held { last_seen: self.shared.then(|| token.clone()), ..Held::default() };
                token
            }
            Err(error) => {
                tracing::error!(connection = %self.slot.key.connection, profile = %self.slot.key.profile,
                    subject = self.slot.key.subject_str(), %error,
                    "the token could not be saved; using it from memory and retrying the save");
                self.held().unsaved = Some(token.clone());
                token
            }
        }
    }

    /// Saves that the server refused the refresh token of `record`, so that it is never sent again.
    pub(super) async fn mark_refused(&self, record: &StoredToken, error: String, saving: Saving<'_>) {
        tracing::warn!(connection = %self.slot.key.connection, profile = %self.slot.key.profile,
            subject = self.slot.key.subject_str(), error, "the authorization server refused the refresh token");
        self.save_or_hold(StoredToken { refresh: Refresh::Refused { error }, ..record.clone() }, saving).await;
    }

    /// Retries while the lease is ours, if another replica could take it next.
    async fn save(&self, token: &StoredToken, lease: &dyn Lease) -> Result<u64, StoreError> {
        let mut attempts = if self.shared { SAVE_ATTEMPTS } else { 1 };
        loop {
            let saving = self.store.save(&self.slot.key, token.clone(), lease);
            let timed_out = || StoreError::Unavailable("it does not answer in time".to_owned());
            let saved = tokio::time::timeout(SAVE_TIMEOUT, saving).await.unwrap_or_else(|_| Err(timed_out()));
            attempts -= 1;
            if attempts == 0 || !matches!(saved, Err(StoreError::Unavailable(_))) {
                return saved;
            }
            tokio::time::sleep(SAVE_RETRY_INTERVAL).await;
        }
    }

    /// Offers the store what it could not take; true if nothing is left unsaved.
    pub async fn retry_save(&self) -> bool {
        let Some(unsaved) = self.held().unsaved.clone() else { return true };
        let lease = self.store.lease(&self.slot.key, SAVE_LEASE_TERM, LEASE_SLACK).await;
        let Ok(lease) = lease else { return false };
        let saved = self.offer(unsaved, &*lease).await;
        lease.release(saved).await;
        saved
    }

    async fn offer(&self, unsaved: StoredToken, lease: &dyn Lease) -> bool {
        if let Some(shared) = self.store.shared() {
            let is_overtaken = match self.store.load(&self.slot.key).await {
                // The save succeeded, and its response was lost.
                Ok(Some(stored))
                    if (&stored.access_token, &stored.refresh) == (&unsaved.access_token, &unsaved.refresh) =>
                {
                    *self.held() = Held { last_seen: Some(stored), ..Held::default() };
                    return true;
                }
                // A refused record is not ahead: the refresh token that it refuses was spent for `unsaved`.
                Ok(Some(stored)) => {
                    stored.version > unsaved.version && !matches!(stored.refresh, Refresh::Refused { .. })
                }
                Ok(None) => match shared.was_removed(&self.slot.key, unsaved.version).await {
                    Ok(removed) => removed,
                    Err(_) => return false,
                },
                Err(StoreError::Damaged { .. }) => false,
                Err(_) => return false,
            };
            if is_overtaken {
                tracing::warn!(connection = %self.slot.key.connection, profile = %self.slot.key.profile,
                    subject = self.slot.key.subject_str(),
                    "another process has stored a newer token or removed it; dropping the unsaved one");
                self.forget_held();
                self.slot.note_store_change();
                return true;
            }
        }
        self.save_or_hold(unsaved, Saving::Leased(lease)).await;
        !self.has_unsaved()
    }

    pub fn has_unsaved(&self) -> bool {
        self.held().unsaved.is_some()
    }

    /// True if the definition that replaced ours has stored a token already.
    async fn is_superseded(&self, token: &StoredToken) -> bool {
        matches!(self.store.load(&self.slot.key).await, Ok(Some(stored)) if stored.identity != token.identity)
    }

    /// Forgets what memory has of the record.
    pub(super) fn forget_held(&self) {
        *self.held() = Held::default();
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        lock(&self.held)
    }
}
