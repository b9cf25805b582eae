//! Pages through all records in Redis, for export, import and reseal.
//!
//! Invariant: concurrent writes of replicas are never overwritten.

mod definitions;

use std::sync::Arc;

use futures_util::future::join_all;
use tokio::runtime::Handle;

use super::RedisStore;
use super::backend::{Backend, Removal};
use super::check_record::IfExists;
use super::names;
use super::ttl::{self, REFRESH_TOKEN_TTL_MIN};
use super::value::Value;
use crate::model::Name;
use crate::model::token::TokenKey;
use crate::store::seal::{Header, Keyring};
use crate::store::transfer::{OpenedRecord, PAGE, Records, SealedRecord, Table, Tally};
use crate::store::{StoreError, StoredToken, record};

/// Attempts to reseal a record that replicas keep changing.
const RESEAL_ATTEMPTS: usize = 5;

/// Blocking access to the records in Redis.
pub struct RedisRecords {
    backend: Arc<Backend>,
    runtime: Handle,
}

impl RedisStore {
    /// Calls run on `runtime` and must be made from another thread.
    pub fn records(&self, runtime: Handle) -> RedisRecords {
        RedisRecords { backend: self.backend.clone(), runtime }
    }

    /// Saves many tokens without leases, into a store that no other process uses yet.
    pub async fn fill(&self, tokens: &[(TokenKey, StoredToken)]) -> Result<(), StoreError> {
        let backend = &self.backend;
        let version = backend.codec.wall_ms();
        let imports = tokens.iter().map(async |(key, token)| {
            let sealed = backend.codec.seal_token(key, token, version)?;
            backend.import(key, version, sealed, ttl::of(token, backend.codec.clock.now()), Removal::Undone).await
        });
        for written in join_all(imports).await {
            written?;
        }
        for (key, token) in tokens.first().into_iter().chain(tokens.last()) {
            backend.note_connection(&key.connection, ttl::of(token, backend.codec.clock.now())).await;
        }
        Ok(())
    }
}

impl Backend {
    /// A page of tokens, by connection and then by member.
    async fn page_of_tokens(&self, after: Option<&[u8]>) -> Result<Vec<SealedRecord>, StoreError> {
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

    async fn page_of_secrets(&self, after: Option<&[u8]>) -> Result<Vec<SealedRecord>, StoreError> {
        let mut page = Vec::new();
        let rest =
            self.secret_names().await?.into_iter().filter(|name| after.is_none_or(|after| name.as_bytes() > after));
        for name in rest.take(PAGE) {
            if let Value::Bytes(sealed) = self.field(&self.names.secrets(), &name).await? {
                page.push((name.into_bytes(), sealed));
            }
        }
        Ok(page)
    }

    pub(super) async fn page(&self, table: Table, after: Option<&[u8]>) -> Result<Vec<SealedRecord>, StoreError> {
        match table {
            Table::Tokens => self.page_of_tokens(after).await,
            Table::Secrets => self.page_of_secrets(after).await,
            Table::Definitions => self.page_of_definitions(after).await,
            Table::Catalog => self.page_of_catalog(after).await,
        }
    }

    /// Returns true if the record was written.
    async fn put(&self, record: &OpenedRecord, overwrite: bool) -> Result<bool, StoreError> {
        match (record.table, record::key_of(&record.name)) {
            (Table::Tokens, Some(key)) => self.put_token(&key, record, overwrite).await,
            (Table::Tokens, None) => Ok(false),
            // `import_definitions` puts them.
            (Table::Definitions | Table::Catalog, _) => Ok(false),
            (Table::Secrets, _) => {
                let mut call = self.scripts.import_secret.prepare_invoke();
                call.key(self.names.secrets()).key(self.names.removed_secrets()).arg(&record.name);
                call.arg(record.version).arg(self.sealed_as(record, record.version)?).arg(u8::from(overwrite));
                self.link.run(&call).await
            }
        }
    }

    async fn put_token(&self, key: &TokenKey, record: &OpenedRecord, overwrite: bool) -> Result<bool, StoreError> {
        let present = self.get(&self.names.token(key)).await?;
        let version = match version_of(&present) {
            // Replicas ignore a record whose version is not higher.
            Some(version) if overwrite => record.version.max(version + 1),
            _ => record.version,
        };
        let token = record::decode(&record.text, self.codec.boot, self.codec.clock.now());
        let ttl = token.map_or(REFRESH_TOKEN_TTL_MIN, |token| ttl::of(&token, self.codec.clock.now()));
        let written = self.import(key, version, self.sealed_as(record, version)?, ttl, Removal::Undone).await?;
        self.note_connection(&key.connection, ttl).await;
        Ok(written)
    }

    fn sealed_as(&self, record: &OpenedRecord, version: u64) -> Result<Vec<u8>, StoreError> {
        let sealed = self.codec.keyring.seal(record.table.sealed_in(&record.name), version, &record.text);
        sealed.map_err(|error| StoreError::Unavailable(error.to_string()))
    }

    /// Reseals one record under the first key by compare and swap; retries if the record changes concurrently.
    pub(super) async fn reseal(&self, table: Table, name: &[u8], mut sealed: Vec<u8>) -> Result<Tally, StoreError> {
        let keyring = &self.codec.keyring;
        for _ in 0..RESEAL_ATTEMPTS {
            let (version, text) = match keyring.open(table.sealed_in(name), &sealed) {
                Ok(_) if Header::parse(&sealed).is_some_and(|header| header.key == keyring.sealing()) => {
                    return Ok(Tally { kept: 1, ..Tally::default() });
                }
                Ok(opened) => opened,
                Err(_) => return Ok(Tally { unopened: 1, ..Tally::default() }),
            };
            let resealed = self.sealed_as(&OpenedRecord { table, name: name.to_vec(), version, text }, version)?;
            if self.replace(table, name, &sealed, resealed).await? {
                return Ok(Tally { written: 1, ..Tally::default() });
            }
            match self.present(table, name).await? {
                Some(present) => sealed = present,
                // Removed concurrently.
                None => return Ok(Tally { kept: 1, ..Tally::default() }),
            }
        }
        let record = String::from_utf8_lossy(name).replace('\0', "/");
        Err(StoreError::Unavailable(format!(
            "Redis: {record} changes too often to be resealed; run `keybearer store reseal` again"
        )))
    }

    /// Writes `resealed` if `current` has not changed.
    async fn replace(&self, table: Table, name: &[u8], present: &[u8], resealed: Vec<u8>) -> Result<bool, StoreError> {
        let mut call = match (table, record::key_of(name)) {
            (Table::Tokens, Some(key)) => self.scripts.replace.key(self.names.token(&key)),
            (Table::Tokens, None) => return Ok(false),
            (Table::Secrets, _) => self.scripts.replace_field.key(self.names.secrets()),
            (Table::Definitions, _) => self.scripts.replace_field.key(self.names.definitions()),
            (Table::Catalog, _) => self.scripts.replace.key(self.names.catalog()),
        };
        self.link.run(call.arg(present).arg(resealed).arg(name)).await
    }

    async fn present(&self, table: Table, name: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let value = match (table, record::key_of(name)) {
            (Table::Tokens, Some(key)) => self.get(&self.names.token(&key)).await?,
            (Table::Tokens, None) => Value::None,
            (Table::Secrets, _) => self.field(&self.names.secrets(), &String::from_utf8_lossy(name)).await?,
            (Table::Definitions | Table::Catalog, _) => return self.present_definition(table, name).await,
        };
        Ok(if let Value::Bytes(sealed) = value { Some(sealed) } else { None })
    }
}

pub fn version_of(value: &Value) -> Option<u64> {
    match value {
        Value::Bytes(sealed) => Header::parse(sealed).map(|header| header.version),
        Value::None | Value::Foreign | Value::Large => None,
    }
}

impl Records for RedisRecords {
    fn keyring(&self) -> &Keyring {
        &self.backend.codec.keyring
    }

    fn count(&self) -> Result<u64, StoreError> {
        let backend = &self.backend;
        self.runtime.block_on(async {
            let connections: Vec<String> =
                backend.link.query(redis::cmd("SMEMBERS").arg(backend.names.connections())).await?;
            let mut count: u64 = backend.link.query(redis::cmd("HLEN").arg(backend.names.secrets())).await?;
            count += backend.present_catalog().await?.catalog.entries.len() as u64;
            for connection in connections.iter().filter_map(|text| Name::parse(text)) {
                count += backend.link.query::<u64>(redis::cmd("ZCARD").arg(backend.names.index(&connection))).await?;
            }
            Ok(count)
        })
    }

    fn page(&self, table: Table, after: Option<&[u8]>) -> Result<Vec<SealedRecord>, StoreError> {
        self.runtime.block_on(self.backend.page(table, after))
    }

    fn put(&self, page: Vec<OpenedRecord>, overwrite: bool) -> Result<Tally, StoreError> {
        self.runtime.block_on(async {
            let (definitions, page): (Vec<_>, Vec<_>) =
                page.into_iter().partition(|record| record.table == Table::Definitions);
            let mut tally = self.backend.import_definitions(definitions, overwrite).await?;
            for record in &page {
                match self.backend.put(record, overwrite).await? {
                    true => tally.written += 1,
                    false => tally.kept += 1,
                }
            }
            Ok(tally)
        })
    }

    fn reseal(&self, table: Table, after: Option<&[u8]>) -> Result<(Option<Vec<u8>>, Tally), StoreError> {
        self.runtime.block_on(async {
            let page = self.backend.page(table, after).await?;
            let last = page.last().map(|(name, _)| name.clone());
            let mut tally = Tally::default();
            for (name, sealed) in page {
                tally += self.backend.reseal(table, &name, sealed).await?;
            }
            Ok((last, tally))
        })
    }

    fn finish_reseal(&self) -> Result<(), StoreError> {
        let link = &self.backend.link;
        self.runtime.block_on(async { link.run::<Value>(&link.check_record.put(IfExists::Replace)?).await }).map(drop)
    }
}
