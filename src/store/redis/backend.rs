//! State shared by the Redis store, its leases and its background tasks: the connection, the scripts, the key names,
//! the codec.
//!
//! Also here: reading values, the index of each connection's records, and [`SharedStore`].

use std::time::Duration;

use tokio::sync::broadcast;
use tokio::time::Instant;

use super::definitions_in_use::DefinitionsInUse;
use super::link::Link;
use super::names::{self, Names};
use super::scripts::Scripts;
use super::secrets_in_use::SecretsInUse;
use super::ttl::{self, EXPIRY_SLACK, REFRESH_TOKEN_TTL_MIN, ms};
use super::value::{VALUE_BYTES_MAX, Value};
use crate::model::Name;
use crate::model::token::TokenKey;
use crate::store::codec::RecordCodec;
use crate::store::{Notification, SharedStore, StoreError, StoreFuture, StoredToken};

pub struct Backend {
    pub link: Link,
    pub names: Names,
    pub scripts: Scripts,
    pub codec: RecordCodec,
    pub secrets_in_use: SecretsInUse,
    pub definitions_in_use: DefinitionsInUse,
    pub notifications: broadcast::Sender<Notification>,
    /// Identifies this process to other replicas.
    pub instance: String,
}

/// How an import treats the tombstone of a record that was removed on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    Undone,
    Respected,
}

impl Backend {
    pub async fn get(&self, key: &str) -> Result<Value, StoreError> {
        self.link.run(self.scripts.get.key(key).arg(VALUE_BYTES_MAX)).await
    }

    /// A field of a hash.
    pub async fn field(&self, key: &str, field: &str) -> Result<Value, StoreError> {
        self.link.run(self.scripts.field.key(key).arg(field).arg(VALUE_BYTES_MAX)).await
    }

    /// Members of a connection's index, in order, starting after `after`.
    pub async fn members(
        &self,
        connection: &Name,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        let from = after.map_or(b"-".to_vec(), |after| [b"(", after].concat());
        let mut call = redis::cmd("ZRANGEBYLEX");
        call.arg(self.names.index(connection)).arg(from).arg("+").arg("LIMIT").arg(0).arg(limit);
        self.link.query(&call).await
    }

    /// The records of `members`. Removes members whose record has expired from the index.
    pub async fn values(&self, connection: &Name, members: &[Vec<u8>]) -> Result<Vec<(TokenKey, Value)>, StoreError> {
        let keys: Vec<TokenKey> = members.iter().filter_map(|member| names::key_of(connection, member)).collect();
        let mut call = self.scripts.get_many.prepare_invoke();
        call.key(self.names.index(connection)).arg(VALUE_BYTES_MAX);
        for key in &keys {
            call.key(self.names.token(key)).arg(names::member(key));
        }
        let values: Vec<Value> = self.link.run(&call).await?;
        Ok(keys.into_iter().zip(values).collect())
    }

    /// Removes the expired members of a random sample of the index, so that it does not grow without bound.
    pub async fn prune_index(&self, connection: &Name, sample: usize) {
        let pruning = async {
            let call = redis::cmd("ZRANDMEMBER").arg(self.names.index(connection)).arg(sample).to_owned();
            let members: Vec<Vec<u8>> = self.link.query(&call).await?;
            self.values(connection, &members).await.map(drop)
        };
        if let Err(error) = pruning.await {
            tracing::debug!(%connection, %error, "expired records not removed from the index");
        }
    }

    /// Adds a connection to the set of connections with records, for at least `ttl`. If that fails, the next save
    /// repeats it.
    pub async fn note_connection(&self, connection: &Name, ttl: Duration) {
        let mut call = self.scripts.note_connection.key(self.names.connections());
        let ttl = ttl.max(REFRESH_TOKEN_TTL_MIN + EXPIRY_SLACK);
        if let Err(error) = self.link.run::<()>(call.arg(connection.as_str()).arg(ms(ttl))).await {
            tracing::debug!(%connection, %error, "connection not added to the set of connections");
        }
    }

    /// Returns true if the record was written: Redis had no record of that version or a newer one.
    pub async fn import(
        &self,
        key: &TokenKey,
        version: u64,
        sealed: Vec<u8>,
        ttl: Duration,
        removal: Removal,
    ) -> Result<bool, StoreError> {
        let mut call = self.scripts.import.prepare_invoke();
        call.key(self.names.token(key)).key(self.names.index(&key.connection)).key(self.names.removed(key));
        call.arg(version).arg(sealed).arg(ms(ttl)).arg(names::member(key));
        call.arg(self.names.notifications())
            .arg(self.notification_for(key))
            .arg(u8::from(removal == Removal::Respected));
        self.link.run(&call).await
    }

    /// The change notification sent to other replicas.
    pub fn notification_for(&self, key: &TokenKey) -> String {
        format!("{} {key}", self.instance)
    }
}

impl SharedStore for Backend {
    fn was_removed<'a>(&'a self, key: &'a TokenKey, after: u64) -> StoreFuture<'a, bool> {
        Box::pin(async move { self.link.run(self.scripts.removed.key(self.names.removed(key)).arg(after)).await })
    }

    fn is_in_doubt<'a>(&'a self, key: &'a TokenKey) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            self.link.run(self.scripts.doubt.key(self.names.spending(key)).key(self.names.token(key))).await
        })
    }

    fn restore<'a>(&'a self, key: &'a TokenKey, token: StoredToken) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let sealed = self.codec.seal_token(key, &token, token.version)?;
            let ttl = ttl::of(&token, self.codec.clock.now());
            self.import(key, token.version, sealed, ttl, Removal::Respected).await?;
            self.note_connection(&key.connection, ttl).await;
            Ok(())
        })
    }

    fn check_reachable(&self) -> StoreFuture<'_, ()> {
        Box::pin(self.link.check_reachable())
    }

    fn reconnected_at(&self) -> Option<Instant> {
        self.link.reconnected_at()
    }

    fn subscribe(&self) -> broadcast::Receiver<Notification> {
        self.notifications.subscribe()
    }
}
