//! All records in Redis, page by page: for exports, imports and a new key.
//!
//! Holds: replicas may go on meanwhile; what they have written since is not written over.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::runtime::Handle;

use super::{RedisStore, Shared, UNKNOWN_LIFE, Value, ms, names};
use crate::model::Name;
use crate::model::token::TokenKey;
use crate::store::seal::{Header, Keyring};
use crate::store::transfer::{Done, Opened, PAGE, Records, Sealed, Table};
use crate::store::{StoreError, StoredToken, record};

/// A record that others write so often while it is sealed anew is left to another run.
const RESEAL_TRIES: usize = 5;

/// What becomes of a mark that something was removed on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    Undone,
    Respected,
}

/// A store in Redis for whoever can wait.
pub struct RedisRecords {
    shared: Arc<Shared>,
    runtime: Handle,
}

impl RedisStore {
    /// `runtime`: where its calls are driven; nobody may be on it who makes them.
    pub fn records(&self, runtime: Handle) -> RedisRecords {
        RedisRecords { shared: self.shared.clone(), runtime }
    }

    /// Saves many tokens at once, without leases, where there are none: for a store that nobody else uses yet.
    pub async fn fill(&self, tokens: &[(TokenKey, StoredToken)]) -> Result<(), StoreError> {
        let own = &self.shared;
        let version = own.sealed.wall_ms();
        let imports = tokens.iter().map(async |(key, token)| {
            let sealed = own.sealed.seal_token(key, token, version)?;
            own.import(key, version, sealed, own.life(token), Removed::Undone).await
        });
        for written in join_all(imports).await {
            written?;
        }
        for (key, token) in tokens.first().into_iter().chain(tokens.last()) {
            own.note_connection(&key.connection, own.life(token)).await;
        }
        Ok(())
    }
}

impl Shared {
    /// Of all tokens, by connection and then by member.
    async fn page_of_tokens(&self, after: Option<&[u8]>) -> Result<Vec<Sealed>, StoreError> {
        let mut connections: Vec<String> =
            self.link.query(redis::cmd("SMEMBERS").arg(self.names.connections())).await?;
        connections.sort_unstable();
        let after = after.and_then(record::key_of);
        let mut page = Vec::new();
        for connection in connections.iter().filter_map(|text| Name::parse(text)) {
            let mut from = match &after {
                Some(key) if key.connection > connection => continue,
                Some(key) if key.connection == connection => Some(names::member(key)),
                _ => None,
            };
            while page.len() < PAGE {
                let members = self.members(&connection, from.as_deref(), PAGE - page.len()).await?;
                let Some(last) = members.last() else { break };
                from = Some(last.clone());
                let values = self.values(&connection, &members).await?;
                page.extend(values.into_iter().filter_map(|(key, value)| match value {
                    Value::Bytes(sealed) => Some((record::name_of(&key), sealed)),
                    Value::None | Value::Foreign | Value::Large => None,
                }));
            }
        }
        Ok(page)
    }

    async fn page_of_secrets(&self, after: Option<&[u8]>) -> Result<Vec<Sealed>, StoreError> {
        let mut page = Vec::new();
        let rest =
            self.secret_names().await?.into_iter().filter(|name| after.is_none_or(|after| name.as_bytes() > after));
        for name in rest.take(PAGE) {
            if let Value::Bytes(sealed) = self.scripts.field(&self.link, &self.names.secrets(), &name).await? {
                page.push((name.into_bytes(), sealed));
            }
        }
        Ok(page)
    }

    pub(super) async fn page(&self, table: Table, after: Option<&[u8]>) -> Result<Vec<Sealed>, StoreError> {
        match table {
            Table::Tokens => self.page_of_tokens(after).await,
            Table::Secrets => self.page_of_secrets(after).await,
        }
    }

    /// True if it was written.
    async fn put(&self, record: &Opened, overwrite: bool) -> Result<bool, StoreError> {
        match (record.table, record::key_of(&record.name)) {
            (Table::Tokens, Some(key)) => self.put_token(&key, record, overwrite).await,
            (Table::Tokens, None) => Ok(false),
            (Table::Secrets, _) => {
                let mut call = self.scripts.import_secret.prepare_invoke();
                call.key(self.names.secrets()).key(self.names.removed_secrets()).arg(&record.name);
                call.arg(record.version).arg(self.anew(record, record.version)?).arg(u8::from(overwrite));
                self.link.run(&call).await
            }
        }
    }

    async fn put_token(&self, key: &TokenKey, record: &Opened, overwrite: bool) -> Result<bool, StoreError> {
        let there = self.scripts.get(&self.link, &self.names.token(key)).await?;
        let version = match version_of(&there) {
            // Replicas take for newer what has a higher version.
            Some(version) if overwrite => record.version.max(version + 1),
            _ => record.version,
        };
        let token = record::decode(&record.text, self.sealed.boot, self.sealed.clock.now());
        let life = token.map_or(UNKNOWN_LIFE, |token| self.life(&token));
        let written = self.import(key, version, self.anew(record, version)?, life, Removed::Undone).await?;
        self.note_connection(&key.connection, life).await;
        Ok(written)
    }

    /// True if nothing as new was there.
    pub async fn import(
        &self,
        key: &TokenKey,
        version: u64,
        sealed: Vec<u8>,
        life: Duration,
        removed: Removed,
    ) -> Result<bool, StoreError> {
        let mut call = self.scripts.import.prepare_invoke();
        call.key(self.names.token(key)).key(self.names.index(&key.connection)).key(self.names.removed(key));
        call.arg(version).arg(sealed).arg(ms(life)).arg(names::member(key));
        call.arg(self.names.news()).arg(self.news_of(key)).arg(u8::from(removed == Removed::Respected));
        self.link.run(&call).await
    }

    fn anew(&self, record: &Opened, version: u64) -> Result<Vec<u8>, StoreError> {
        let sealed = self.sealed.keyring.seal(record.table.place(&record.name), version, &record.text);
        sealed.map_err(|error| StoreError::Unavailable(error.to_string()))
    }

    /// Seals one record under the first key, in place of exactly what was read: what is written meanwhile stays, and is
    /// sealed in its turn.
    pub(super) async fn reseal(&self, table: Table, name: &[u8], mut sealed: Vec<u8>) -> Result<Done, StoreError> {
        let keyring = &self.sealed.keyring;
        for _ in 0..RESEAL_TRIES {
            let (version, text) = match keyring.open(table.place(name), &sealed) {
                Ok(_) if Header::of(&sealed).is_some_and(|header| header.key == keyring.sealing()) => {
                    return Ok(Done { kept: 1, ..Done::default() });
                }
                Ok(opened) => opened,
                Err(_) => return Ok(Done { unopened: 1, ..Done::default() }),
            };
            let anew = self.anew(&Opened { table, name: name.to_vec(), version, text }, version)?;
            if self.replace(table, name, &sealed, anew).await? {
                return Ok(Done { written: 1, ..Done::default() });
            }
            match self.sealed_now(table, name).await? {
                Some(present) => sealed = present,
                // It was removed.
                None => return Ok(Done { kept: 1, ..Done::default() }),
            }
        }
        let record = String::from_utf8_lossy(name).replace('\0', "/");
        Err(StoreError::Unavailable(format!("Redis: {record} changes too often to be sealed; run reseal again")))
    }

    /// Writes `anew` if `present` is still there.
    async fn replace(&self, table: Table, name: &[u8], present: &[u8], anew: Vec<u8>) -> Result<bool, StoreError> {
        let mut call = match (table, record::key_of(name)) {
            (Table::Tokens, Some(key)) => self.scripts.replace.key(self.names.token(&key)),
            (Table::Tokens, None) => return Ok(false),
            (Table::Secrets, _) => self.scripts.replace_secret.key(self.names.secrets()),
        };
        self.link.run(call.arg(present).arg(anew).arg(name)).await
    }

    async fn sealed_now(&self, table: Table, name: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let value = match (table, record::key_of(name)) {
            (Table::Tokens, Some(key)) => self.scripts.get(&self.link, &self.names.token(&key)).await?,
            (Table::Tokens, None) => Value::None,
            (Table::Secrets, _) => {
                self.scripts.field(&self.link, &self.names.secrets(), &String::from_utf8_lossy(name)).await?
            }
        };
        Ok(if let Value::Bytes(sealed) = value { Some(sealed) } else { None })
    }
}

fn version_of(value: &Value) -> Option<u64> {
    match value {
        Value::Bytes(sealed) => Header::of(sealed).map(|header| header.version),
        Value::None | Value::Foreign | Value::Large => None,
    }
}

impl Records for RedisRecords {
    fn keyring(&self) -> &Keyring {
        &self.shared.sealed.keyring
    }

    fn count(&self) -> Result<u64, StoreError> {
        let own = &self.shared;
        self.runtime.block_on(async {
            let connections: Vec<String> = own.link.query(redis::cmd("SMEMBERS").arg(own.names.connections())).await?;
            let mut count: u64 = own.link.query(redis::cmd("HLEN").arg(own.names.secrets())).await?;
            for connection in connections.iter().filter_map(|text| Name::parse(text)) {
                count += own.link.query::<u64>(redis::cmd("ZCARD").arg(own.names.index(&connection))).await?;
            }
            Ok(count)
        })
    }

    fn page(&self, table: Table, after: Option<&[u8]>) -> Result<Vec<Sealed>, StoreError> {
        self.runtime.block_on(self.shared.page(table, after))
    }

    fn put(&self, page: Vec<Opened>, overwrite: bool) -> Result<(u64, u64), StoreError> {
        self.runtime.block_on(async {
            let (mut written, mut kept) = (0, 0);
            for record in &page {
                match self.shared.put(record, overwrite).await? {
                    true => written += 1,
                    false => kept += 1,
                }
            }
            Ok((written, kept))
        })
    }

    fn reseal(&self, table: Table, after: Option<&[u8]>) -> Result<(Option<Vec<u8>>, Done), StoreError> {
        self.runtime.block_on(async {
            let page = self.shared.page(table, after).await?;
            let last = page.last().map(|(name, _)| name.clone());
            let mut done = Done::default();
            for (name, sealed) in page {
                done += self.shared.reseal(table, &name, sealed).await?;
            }
            Ok((last, done))
        })
    }

    fn resealed(&self) -> Result<(), StoreError> {
        let link = &self.shared.link;
        self.runtime.block_on(async { link.run::<Value>(&link.mark.put(true)?).await }).map(drop)
    }
}
