//! What is kept of a slot's token, in the store and, where others use that too, beside it.
//!
//! Holds: the store's refusal is no reason to lose a token; what was once kept and is missing there, or older there, has
//! been lost by the store unless somebody has removed it, and is offered again; what another process has kept since is
//! never written over.

use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use super::{Acquirer, LEASE_SLACK};
use crate::model::connection::Connection;
use crate::store::{Lease, Refresh, StoreError, StoredToken};

/// A store that takes longer is out of order: the token is used before it is saved.
const SAVE_WAIT: Duration = Duration::from_secs(3);
/// How long a lease is for that is taken to save alone.
const SAVE_TERM: Duration = Duration::from_secs(10);

#[derive(Default)]
pub struct Kept {
    /// What the store could not take yet, or has lost.
    unsaved: Option<Unsaved>,
    /// As the store had it when it was last seen; only where several processes share the store.
    last: Option<StoredToken>,
}

#[derive(Clone)]
struct Unsaved {
    token: StoredToken,
    /// The server gave it after the version of the store that it names; else it is that version.
    fresh: bool,
}

/// What a look into a shared store finds.
pub enum Seen {
    /// Nothing that is not known here.
    Nothing,
    /// A newer token, which may be used.
    Token(StoredToken),
    /// A newer record, of no use as it is.
    Record,
    /// It was removed on purpose.
    Removed,
}

impl Acquirer {
    /// What is kept for this token under its present definition.
    pub(super) async fn held(&self, connection: &Connection) -> Result<Option<StoredToken>, StoreError> {
        let unsaved = self.kept().unsaved.clone();
        let held = match unsaved {
            Some(unsaved) => Some(unsaved.token),
            None => self.newest(connection).await?,
        };
        Ok(held.filter(|held| is_of(held, connection)))
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
        let last = kept.unsaved.as_ref().map(|unsaved| &unsaved.token).or(kept.last.as_ref());
        last.filter(|last| is_of(last, connection)).cloned()
    }

    /// What the store has, or what it has lost: a record that is not there, or is older than when it was last seen. That is
    /// offered to it again, unless somebody has removed it.
    async fn newest(&self, connection: &Connection) -> Result<Option<StoredToken>, StoreError> {
        let stored = self.load().await?;
        let Some(last) = self.kept().last.clone() else { return Ok(stored) };
        match stored {
            Some(stored) if stored.version >= last.version => return Ok(Some(stored)),
            Some(_) => {}
            None => {
                let of_worth = matches!(last.refresh, Refresh::Token(_)) || self.is_usable(&last, connection);
                if !of_worth || self.store.was_removed(&self.slot.key).await? {
                    self.kept().last = None;
                    return Ok(None);
                }
            }
        }
        self.write_back(last.clone());
        Ok(Some(last))
    }

    fn write_back(&self, last: StoredToken) {
        let subject = self.slot.key.subject.as_ref().map(|subject| subject.as_str());
        tracing::warn!(connection = %self.slot.key.connection, profile = %self.slot.key.profile, subject,
            "the store has lost a token that is held here; it is written back");
        self.kept().unsaved = Some(Unsaved { token: last, fresh: false });
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
        let known = self.kept().last.as_ref().map_or(0, |last| last.version);
        let Some(stored) = self.newest(connection).await? else {
            let removed = self.store.was_removed(&self.slot.key).await?;
            return Ok(if removed { Seen::Removed } else { Seen::Nothing });
        };
        if stored.version <= known || !is_of(&stored, connection) {
            return Ok(Seen::Nothing);
        }
        self.remember(&stored);
        Ok(if self.is_usable(&stored, connection) { Seen::Token(stored) } else { Seen::Record })
    }

    /// Saves `token` and hands it back. The store's refusal is no reason to lose it. `None`: nobody has a lease, since the
    /// store is out of reach.
    pub(super) async fn keep(&self, token: StoredToken, lease: Option<&dyn Lease>) -> StoredToken {
        if self.slot.is_closed() && self.is_replaced(&token).await {
            return token;
        }
        let saved = match lease {
            Some(lease) => {
                let saving = self.store.save(&self.slot.key, token.clone(), lease);
                let late = || StoreError::Unavailable("it does not answer in time".to_owned());
                tokio::time::timeout(SAVE_WAIT, saving).await.unwrap_or_else(|_| Err(late()))
            }
            None => Err(StoreError::Unavailable("it is out of reach".to_owned())),
        };
        let subject = self.slot.key.subject.as_ref().map(|subject| subject.as_str());
        match saved {
            Ok(version) => {
                let token = StoredToken { version, ..token };
                *self.kept() = Kept { unsaved: None, last: self.shared.then(|| token.clone()) };
                token
            }
            Err(error) => {
                tracing::error!(connection = %self.slot.key.connection, profile = %self.slot.key.profile, subject, %error,
                    "the token could not be saved; it is used all the same, and offered to the store again");
                self.kept().unsaved = Some(Unsaved { token: token.clone(), fresh: true });
                token
            }
        }
    }

    /// Offers the store again what it could not take or has lost; true if nothing is left.
    pub async fn save_again(&self) -> bool {
        let Some(unsaved) = self.kept().unsaved.clone() else { return true };
        let Ok(lease) = self.store.lease(&self.slot.key, SAVE_TERM, LEASE_SLACK).await else { return false };
        let saved = self.offer(unsaved, &*lease).await;
        lease.release(saved).await;
        saved
    }

    async fn offer(&self, Unsaved { token, fresh }: Unsaved, lease: &dyn Lease) -> bool {
        if self.shared {
            let overtaken = match self.store.load(&self.slot.key).await {
                // The answer to the write was lost.
                Ok(Some(stored))
                    if (&stored.access_token, &stored.refresh) == (&token.access_token, &token.refresh) =>
                {
                    *self.kept() = Kept { unsaved: None, last: Some(stored) };
                    return true;
                }
                // Who was refused has spent what this one came of.
                Ok(Some(stored)) => {
                    stored.version > token.version && !(fresh && matches!(stored.refresh, Refresh::Refused { .. }))
                }
                Ok(None) => match self.store.was_removed(&self.slot.key).await {
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
        self.keep(token, Some(lease)).await;
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
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Was it granted for the connection as it is now?
fn is_of(held: &StoredToken, connection: &Connection) -> bool {
    held.identity == connection.identity() && held.origins.covers(&connection.origins())
}
