//! The store behind the slots: changes by other replicas, and tokens that have no slot in memory.
//!
//! Invariant: a record is removed under its lease only.
//! Not here: revocation of a token that has a slot (`slot`), the requests to the server (`acquire`).

use std::sync::Arc;

use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;

use super::acquire::{FORGET_LEASE_TERM, FORGET_LEASE_WAIT};
use super::definition::Definition;
use super::slot::{AtServer, Revoked, TokenSlot};
use super::{TokenCache, TokenSource};
use crate::model::connection::Connection;
use crate::model::token::TokenKey;
use crate::store::{Notification, StoreError};

impl TokenCache {
    /// Revokes and forgets a token that has no slot in memory, without starting a refresher for it. `connection` is the
    /// current definition of the token, which may be inactive, and `source` its token endpoint.
    pub async fn revoke_stored(
        &self,
        key: &TokenKey,
        (connection, source): (&Arc<Connection>, Box<dyn TokenSource>),
        at_server: &AtServer,
    ) -> Result<Revoked, StoreError> {
        let definition = Arc::new(Definition { connection: connection.clone(), source, since: Instant::now() });
        let slot = Arc::new(TokenSlot::new(key.clone(), None));
        let acquirer = self.factory(definition.clone()).acquirer(slot, self.services.store.clone());
        acquirer.revoke(&definition, at_server).await
    }

    /// Forgets a token that has no slot in memory, even if its record cannot be opened.
    pub async fn forget_stored(&self, key: &TokenKey) -> Result<(), StoreError> {
        let store = &self.services.store;
        let lease = store.lease(key, FORGET_LEASE_TERM, FORGET_LEASE_WAIT).await?;
        let forgotten = store.forget(key, &*lease).await;
        lease.release(forgotten.is_ok()).await;
        forgotten
    }

    /// Wakes slots whose record another replica changed, until the store closes the notification channel.
    pub async fn follow_store_changes(self: Arc<Self>) {
        let Some(mut notifications) = self.services.store.shared().map(|shared| shared.subscribe()) else { return };
        loop {
            match notifications.recv().await {
                Ok(Notification::Changed(key)) => self.get(&key).iter().for_each(|slot| slot.record_store_change()),
                // A reload applies them.
                Ok(Notification::Definitions) => {}
                Ok(Notification::Missed) | Err(RecvError::Lagged(_)) => {
                    self.list().iter().for_each(|slot| slot.record_store_change())
                }
                Err(RecvError::Closed) => return,
            }
        }
    }
}
