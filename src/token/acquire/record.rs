//! The stored record of a slot's token, and a copy in memory if other replicas use the same store.
//!
//! Invariants: a failed save loses no token. If a record that was seen before is now missing or older, the store has
//! lost it, and it is written back, unless it was removed on purpose. A newer record of another replica is never
//! overwritten.

use std::sync::MutexGuard;
use std::time::Duration;

use tokio::time::Instant;

use super::Acquirer;
use super::plan::LEASE_MARGIN;
use crate::model::connection::Connection;
use crate::store::{Lease, Refresh, StoreError, StoredToken};
use crate::sync::lock;

/// Timeout per write, after which the token is used unsaved.
const SAVE_TIMEOUT: Duration = Duration::from_secs(3);
/// Save attempts under one lease. The retry interval exceeds the time that a reconnection takes.
const SAVE_ATTEMPTS: u32 = 3;
const SAVE_RETRY_INTERVAL: Duration = Duration::from_millis(600);
/// Repeated losses of a record within this time count as one.
const LOSS_WINDOW: Duration = Duration::from_secs(60);
/// Term of a lease taken only to save.
const SAVE_LEASE_TERM: Duration = Duration::from_secs(10);

/// In-memory state of the record.
#[derive(Default)]
pub struct RecordCache {
    /// A token that could not be saved; its version is that of the record it replaces.
    unsaved: Option<StoredToken>,
    /// The record as last seen in the store; only for a shared store.
    last_seen: Option<StoredToken>,
    /// When a loss of the record was last detected.
    lost_at: Option<Instant>,
}

/// Result of polling a shared store.
pub enum Poll {
    Unchanged,
    /// There is a newer record with a usable token.
    Token(Box<StoredToken>),
    /// There is a newer record without a usable token.
    Record,
    /// The record was removed on purpose.
    Removed,
}

/// How a save reaches the store, if it does.
#[derive(Clone, Copy)]
pub(super) enum Saving<'a> {
    Leased(&'a dyn Lease),
    /// The store is unreachable for this reason.
    Offline(&'a str),
}

impl Acquirer {
    /// The record of this token, if it was granted under the current definition.
    pub(super) async fn record(&self, connection: &Connection) -> Result<Option<StoredToken>, StoreError> {
        Ok(self.record_of_any_definition(connection).await?.filter(|record| record.matches(connection)))
    }

    pub(super) async fn record_of_any_definition(
        &self,
        connection: &Connection,
    ) -> Result<Option<StoredToken>, StoreError> {
        let unsaved = self.cached().unsaved.clone();
        match unsaved {
            Some(unsaved) => Ok(Some(unsaved)),
            None => self.load_or_restore(connection).await,
        }
    }

    /// The record from memory, for use while the store is unreachable.
    pub(super) fn record_in_memory(&self, connection: &Connection) -> Option<StoredToken> {
        let cached = self.cached();
        let record = cached.unsaved.as_ref().or(cached.last_seen.as_ref());
        record.filter(|record| record.matches(connection)).cloned()
    }

    /// True if the stored token was granted under another definition.
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

    /// Loads the record. If the store has lost it or has an older version, writes it back.
    async fn load_or_restore(&self, connection: &Connection) -> Result<Option<StoredToken>, StoreError> {
        let stored = self.load().await?;
        let (Some(last_seen), Some(shared)) = (self.cached().last_seen.clone(), self.store.shared()) else {
            return Ok(stored);
        };
        match stored {
            Some(stored) if stored.version >= last_seen.version => return Ok(Some(stored)),
            Some(_) => {}
            None => {
                let has_refresh_token = matches!(last_seen.refresh, Refresh::Token(_));
                let is_useless = !has_refresh_token && !self.is_usable(&last_seen, connection);
                if is_useless || shared.was_removed(&self.slot.key, last_seen.version).await? {
                    self.cached().last_seen = None;
                    return Ok(None);
                }
            }
        }
        tracing::warn!(connection = %self.slot.key.connection, profile = %self.slot.key.profile,
            subject = self.slot.key.subject_str(), "store has lost the token; writing it back from memory");
        {
            let mut cached = self.cached();
            cached.lost_at = cached.lost_at.filter(|at| at.elapsed() < LOSS_WINDOW).or_else(|| Some(Instant::now()));
        }
        shared.restore(&self.slot.key, last_seen.clone()).await?;
        Ok(Some(last_seen))
    }

    /// Time since the store was last unreachable or lost this record; `None`: never.
    pub(super) fn store_fault_age(&self) -> Option<Duration> {
        let reconnected_at = self.store.shared().and_then(|shared| shared.reconnected_at());
        reconnected_at.max(self.cached().lost_at).map(|at| at.elapsed())
    }

    /// True if another replica may have spent the refresh token.
    pub(super) async fn is_in_doubt(&self) -> Result<bool, StoreError> {
        match self.store.shared() {
            Some(shared) => shared.is_in_doubt(&self.slot.key).await,
            None => Ok(false),
        }
    }

    /// Caches the stored record.
    pub(super) fn remember(&self, record: &StoredToken) -> StoredToken {
        if self.shared {
            self.cached().last_seen = Some(record.clone());
        }
        record.clone()
    }

    /// Polls for changes that other replicas made to the record.
    pub async fn poll(&self, connection: &Connection) -> Result<Poll, StoreError> {
        let Some(shared) = self.store.shared().filter(|_| !self.has_unsaved()) else { return Ok(Poll::Unchanged) };
        // The semaphore is never closed.
        let _permit = self.polls.acquire().await;
        let known = self.cached().last_seen.as_ref().map_or(0, |record| record.version);
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

    /// Saves `token`, or keeps it in memory if the save fails; returns it with its version.
    pub(super) async fn save_or_hold(&self, token: StoredToken, saving: Saving<'_>) -> StoredToken {
        if self.slot.is_closed() && self.is_superseded(&token).await {
            self.clear_record_cache();
            return token;
        }
        let saved = match saving {
            Saving::Leased(lease) => self.save(&token, lease).await,
            Saving::Offline(why) => Err(StoreError::Unavailable(why.to_owned())),
        };
        match saved {
            Ok(version) => {
                let token = StoredToken { version, ..token };
                *self.cached() =
                    RecordCache { last_seen: self.shared.then(|| token.clone()), ..RecordCache::default() };
                token
            }
            Err(error) => {
                tracing::error!(connection = %self.slot.key.connection, profile = %self.slot.key.profile,
                    subject = self.slot.key.subject_str(), %error,
                    "token could not be saved; serving it from memory and retrying the save");
                self.cached().unsaved = Some(token.clone());
                token
            }
        }
    }

    /// Marks the refresh token of `record` as refused by the server, so that it is never sent again.
    pub(super) async fn mark_refused(&self, record: &StoredToken, error: String, saving: Saving<'_>) {
        tracing::warn!(connection = %self.slot.key.connection, profile = %self.slot.key.profile,
            subject = self.slot.key.subject_str(), error, "authorization server refused the refresh token");
        self.save_or_hold(StoredToken { refresh: Refresh::Refused { error }, ..record.clone() }, saving).await;
    }

    /// Saves under the lease; retries in a shared store, because another replica may take the lease next.
    async fn save(&self, token: &StoredToken, lease: &dyn Lease) -> Result<u64, StoreError> {
        let mut attempts = if self.shared { SAVE_ATTEMPTS } else { 1 };
        loop {
            let saving = self.store.save(&self.slot.key, token.clone(), lease);
            let timed_out = || StoreError::Unavailable("no response in time".to_owned());
            let saved = tokio::time::timeout(SAVE_TIMEOUT, saving).await.unwrap_or_else(|_| Err(timed_out()));
            attempts -= 1;
            if attempts == 0 || !matches!(saved, Err(StoreError::Unavailable(_))) {
                return saved;
            }
            tokio::time::sleep(SAVE_RETRY_INTERVAL).await;
        }
    }

    /// Retries the save of an unsaved token; true if no token is left unsaved.
    pub async fn retry_save(&self) -> bool {
        let Some(unsaved) = self.cached().unsaved.clone() else { return true };
        let lease = self.store.lease(&self.slot.key, SAVE_LEASE_TERM, LEASE_MARGIN).await;
        let Ok(lease) = lease else { return false };
        let saved = self.save_again(unsaved, &*lease).await;
        lease.release(saved).await;
        saved
    }

    async fn save_again(&self, unsaved: StoredToken, lease: &dyn Lease) -> bool {
        if let Some(shared) = self.store.shared() {
            let is_superseded = match self.store.load(&self.slot.key).await {
                // The save had succeeded, but its response was lost.
                Ok(Some(stored))
                    if (&stored.access_token, &stored.refresh) == (&unsaved.access_token, &unsaved.refresh) =>
                {
                    *self.cached() = RecordCache { last_seen: Some(stored), ..RecordCache::default() };
                    return true;
                }
                // A record marked as refused is not newer: its refresh token was spent to get `unsaved`.
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
            if is_superseded {
                tracing::warn!(connection = %self.slot.key.connection, profile = %self.slot.key.profile,
                    subject = self.slot.key.subject_str(),
                    "unsaved token dropped; another replica has stored a newer token or removed it");
                self.clear_record_cache();
                self.slot.record_store_change();
                return true;
            }
        }
        self.save_or_hold(unsaved, Saving::Leased(lease)).await;
        !self.has_unsaved()
    }

    pub fn has_unsaved(&self) -> bool {
        self.cached().unsaved.is_some()
    }

    /// True if the definition that replaced this one has already stored a token.
    async fn is_superseded(&self, token: &StoredToken) -> bool {
        matches!(self.store.load(&self.slot.key).await, Ok(Some(stored)) if stored.identity != token.identity)
    }

    /// Clears the record cache.
    pub(super) fn clear_record_cache(&self) {
        *self.cached() = RecordCache::default();
    }

    fn cached(&self) -> MutexGuard<'_, RecordCache> {
        lock(&self.record_cache)
    }
}
