//! What is kept of a slot's token, in the store and, where others use that too, beside it.
//!
//! Holds: the store's refusal is no reason to lose a token; what was once kept and is missing there, or older there, has
//! been lost by the store unless somebody has removed it, and is offered again; what another process has kept since is
//! never written over.

use std::sync::MutexGuard;
use std::time::Duration;

use tokio::time::Instant;

use super::{Acquirer, LEASE_SLACK};
use crate::model::connection::Connection;
use crate::store::{Lease, Refresh, StoreError, StoredToken};
use crate::sync::lock;

/// A store that takes longer is out of order: the token is used before it is saved.
const SAVE_WAIT: Duration = Duration::from_secs(3);
/// Tries to save under one lease, and what lies between them: more than a connection takes to be made anew.
const SAVE_TRIES: u32 = 3;
const SAVE_PAUSE: Duration = Duration::from_millis(600);
/// However soon the present token ends.
const RECOVERY_MIN: Duration = Duration::from_secs(3);
/// Within which the store is found to have lost the same record again.
const LOSS_LASTS: Duration = Duration::from_secs(60);
/// How long a lease is for that is taken to save alone.
const SAVE_TERM: Duration = Duration::from_secs(10);

#[derive(Default)]
pub struct Kept {
    /// What the store could not take yet; it names the version that it is to replace.
    unsaved: Option<StoredToken>,
    /// As the store had it when it was last seen; only where several processes share the store.
    last: Option<StoredToken>,
    /// When the store was last found to have lost it.
    lost: Option<Instant>,
}

/// No refresh token is to be spent before, as far as the store's last trouble goes.
pub enum Recovers {
    /// The present token will do until then.
    Later(Duration),
    /// There is none; it is not long.
    Shortly(Duration),
}

/// What a look into a shared store finds.
pub enum Seen {
    /// Nothing that is not known here.
    Nothing,
    /// A newer token, which may be used.
    Token(Box<StoredToken>),
    /// A newer record, of no use as it is.
    Record,
    /// It was removed on purpose.
    Removed,
}

impl Acquirer {
    /// What is kept for this token under its present definition.
    pub(super) async fn held(&self, connection: &Connection) -> Result<Option<StoredToken>, StoreError> {
        Ok(self.any_held(connection).await?.filter(|held| held.is_of(connection)))
    }

    /// The same under whichever definition.
    pub(super) async fn any_held(&self, connection: &Connection) -> Result<Option<StoredToken>, StoreError> {
        let unsaved = self.kept().unsaved.clone();
        match unsaved {
            Some(unsaved) => Ok(Some(unsaved)),
            None => self.newest(connection).await,
        }
    }

    /// Is there a token of this key that was granted for another definition?
    pub(super) async fn has_outdated(&self, connection: &Connection) -> bool {
        matches!(self.newest(connection).await, Ok(Some(held)) if !held.is_of(connection))
    }

    async fn load(&self) -> Result<Option<StoredToken>, StoreError> {
        match self.store.load(&self.slot.key).await {
            Err(StoreError::Damaged { record, why }) => {
                tracing::error!(record, why, "a stored token cannot be opened; it is as if there were none");
                Ok(None)
            }
            loaded => loaded,
        }
    }

    /// What is known of the token without the store.
    pub(super) fn last_of(&self, connection: &Connection) -> Option<StoredToken> {
        let kept = self.kept();
        let last = kept.unsaved.as_ref().or(kept.last.as_ref());
        last.filter(|last| last.is_of(connection)).cloned()
    }

    /// What the store has, or what it has lost: a record that is not there, or is older than when it was last seen. That is
    /// written back, unless somebody has removed it.
    async fn newest(&self, connection: &Connection) -> Result<Option<StoredToken>, StoreError> {
        let stored = self.load().await?;
        let Some(last) = self.kept().last.clone() else { return Ok(stored) };
        match stored {
            Some(stored) if stored.version >= last.version => return Ok(Some(stored)),
            Some(_) => {}
            None => {
                let of_worth = matches!(last.refresh, Refresh::Token(_)) || self.is_usable(&last, connection);
                if !of_worth || self.store.was_removed(&self.slot.key, last.version).await? {
                    self.kept().last = None;
                    return Ok(None);
                }
            }
        }
        let subject = self.slot.key.subject.as_ref().map(|subject| subject.as_str());
        tracing::warn!(connection = %self.slot.key.connection, profile = %self.slot.key.profile, subject,
            "the store has lost a token that is held here; it is written back");
        {
            // One loss may be found more than once.
            let mut kept = self.kept();
            kept.lost = kept.lost.filter(|at| at.elapsed() < LOSS_LASTS).or_else(|| Some(Instant::now()));
        }
        self.store.restore(&self.slot.key, last.clone()).await?;
        Ok(Some(last))
    }

    /// Leases and the last writes may have been lost with the store's last trouble. For so long no refresh token is to be
    /// spent, so that whoever was spending it, or has seen more of the store, can say so: for the term of a lease that came
    /// back with an older state, and as long again to take one; beyond the present token's end only for a moment.
    pub(super) fn recovers(&self, held: &StoredToken, connection: &Connection, term: Duration) -> Option<Recovers> {
        let since = self.store.shaken().max(self.kept().lost)?;
        let (now, clock) = (Instant::now(), self.clock.now());
        let whole = (since + 2 * term).saturating_duration_since(now);
        let least = (since + RECOVERY_MIN).saturating_duration_since(now);
        match self.is_usable(held, connection) {
            true => {
                let usable = clock.until(self.usable_until(held, connection));
                Some(Recovers::Later(whole.min(usable))).filter(|_| !whole.is_zero())
            }
            false => Some(Recovers::Shortly(least)).filter(|_| !least.is_zero()),
        }
    }

    /// Notes what the store has.
    pub(super) fn remember(&self, token: &StoredToken) -> StoredToken {
        if self.shared {
            self.kept().last = Some(token.clone());
        }
        token.clone()
    }

    /// What other processes have done to the record.
    pub async fn look(&self, connection: &Connection) -> Result<Seen, StoreError> {
        if self.has_unsaved() {
            return Ok(Seen::Nothing);
        }
        // It is never closed.
        let _place = self.looks.acquire().await;
        let known = self.kept().last.as_ref().map_or(0, |last| last.version);
        let Some(stored) = self.newest(connection).await? else {
            let removed = self.store.was_removed(&self.slot.key, known).await?;
            return Ok(if removed { Seen::Removed } else { Seen::Nothing });
        };
        if stored.version <= known || !stored.is_of(connection) {
            return Ok(Seen::Nothing);
        }
        self.remember(&stored);
        Ok(if self.is_usable(&stored, connection) { Seen::Token(Box::new(stored)) } else { Seen::Record })
    }

    /// Saves `token` and hands it back. The store's refusal is no reason to lose it; without a lease there is a reason why
    /// the store cannot be used.
    pub(super) async fn keep(&self, token: StoredToken, lease: Result<&dyn Lease, String>) -> StoredToken {
        if self.slot.is_closed() && self.is_replaced(&token).await {
            *self.kept() = Kept::default();
            return token;
        }
        let saved = match lease {
            Ok(lease) => self.save(&token, lease).await,
            Err(why) => Err(StoreError::Unavailable(why)),
        };
        let subject = self.slot.key.subject.as_ref().map(|subject| subject.as_str());
        match saved {
            Ok(version) => {
                let token = StoredToken { version, ..token };
                *self.kept() = Kept { last: self.shared.then(|| token.clone()), ..Kept::default() };
                token
            }
            Err(error) => {
                tracing::error!(connection = %self.slot.key.connection, profile = %self.slot.key.profile, subject, %error,
                    "the token could not be saved; it is used all the same, and offered to the store again");
                self.kept().unsaved = Some(token.clone());
                token
            }
        }
    }

    /// Keeps that the server has refused the refresh token of `held`, which is never sent again.
    pub(super) async fn mark_refused(
        &self,
        held: &StoredToken,
        error: String,
        lease: Result<&dyn Lease, String>,
    ) -> StoredToken {
        tracing::warn!(connection = %self.slot.key.connection, profile = %self.slot.key.profile,
            subject = self.slot.key.subject.as_ref().map(|subject| subject.as_str()), error,
            "the authorization server refused the refresh token");
        self.keep(StoredToken { refresh: Refresh::Refused { error }, ..held.clone() }, lease).await
    }

    /// Where others may take the lease, it is worth more than one try while it is ours.
    async fn save(&self, token: &StoredToken, lease: &dyn Lease) -> Result<u64, StoreError> {
        let mut tries = if self.shared { SAVE_TRIES } else { 1 };
        loop {
            let saving = self.store.save(&self.slot.key, token.clone(), lease);
            let late = || StoreError::Unavailable("it does not answer in time".to_owned());
            let saved = tokio::time::timeout(SAVE_WAIT, saving).await.unwrap_or_else(|_| Err(late()));
            tries -= 1;
            if tries == 0 || !matches!(saved, Err(StoreError::Unavailable(_))) {
                return saved;
            }
            tokio::time::sleep(SAVE_PAUSE).await;
        }
    }

    /// Offers the store again what it could not take; true if nothing is left.
    pub async fn save_again(&self) -> bool {
        let Some(unsaved) = self.kept().unsaved.clone() else { return true };
        let Ok(lease) = self.store.lease(&self.slot.key, SAVE_TERM, LEASE_SLACK).await else { return false };
        let saved = self.offer(unsaved, &*lease).await;
        lease.release(saved).await;
        saved
    }

    async fn offer(&self, token: StoredToken, lease: &dyn Lease) -> bool {
        if self.shared {
            let overtaken = match self.store.load(&self.slot.key).await {
                // The answer to the write was lost.
                Ok(Some(stored))
                    if (&stored.access_token, &stored.refresh) == (&token.access_token, &token.refresh) =>
                {
                    *self.kept() = Kept { last: Some(stored), ..Kept::default() };
                    return true;
                }
                // Who was refused has spent what this one came of.
                Ok(Some(stored)) => {
                    stored.version > token.version && !matches!(stored.refresh, Refresh::Refused { .. })
                }
                Ok(None) => match self.store.was_removed(&self.slot.key, token.version).await {
                    Ok(removed) => removed,
                    Err(_) => return false,
                },
                Err(StoreError::Damaged { .. }) => false,
                Err(_) => return false,
            };
            if overtaken {
                tracing::warn!(connection = %self.slot.key.connection, profile = %self.slot.key.profile,
                    "another process has kept a newer token meanwhile, or removed it; the one that was not saved is given up");
                *self.kept() = Kept::default();
                self.slot.look();
                return true;
            }
        }
        self.keep(token, Ok(lease)).await;
        !self.has_unsaved()
    }

    pub fn has_unsaved(&self) -> bool {
        self.kept().unsaved.is_some()
    }

    /// Has the definition that took the place of ours kept a token already?
    async fn is_replaced(&self, token: &StoredToken) -> bool {
        matches!(self.store.load(&self.slot.key).await, Ok(Some(held)) if held.identity != token.identity)
    }

    pub(super) fn kept(&self) -> MutexGuard<'_, Kept> {
        lock(&self.kept)
    }
}
