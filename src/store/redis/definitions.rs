//! Definitions in Redis: a hash of revisions, and the catalog. Both are in one slot, so a script can replace the catalog.
//!
//! A change stages its revisions in chunks, as pending, then swaps the catalog. What a killed writer has staged is
//! removed by a later writer.
//! Not here: the scripts (`scripts::definitions`), paging through all records (`records::definitions`).
//! Invariant: a catalog that Redis has lost, with its revisions, is written back by a process that has read it, before
//! that process reads an older one.

use std::sync::Arc;
use std::time::Duration;

use redis::ScriptInvocation;

use super::backend::Backend;
use super::definitions_in_use::{InUse, head};
use super::value::Value;
use crate::model::Name;
use crate::model::connection::Revision;
use crate::store::codec::definition_record;
use crate::store::definitions::{
    self, CATALOG_BYTES_MAX, Catalog, CatalogChange, DEFINITION_BYTES_MAX, StoredText, Swap, record_name, superseded,
};
use crate::store::seal::NONCE_END;
use crate::store::transfer::Table;
use crate::store::{Notification, StoreError};

/// Bound of a sealed record, with room for the seal.
const RECORD_BYTES_MAX: usize = DEFINITION_BYTES_MAX + 1024;
const SEALED_CATALOG_BYTES_MAX: usize = CATALOG_BYTES_MAX + 1024;
/// Bytes of records written or read in one call; one record may be larger.
const CHUNK_BYTES: usize = 1 << 20;
/// Most records read in one call.
const READ_MAX: usize = 256;
/// Attempts to write back a catalog while replicas write back older ones.
const WRITE_BACK_ATTEMPTS: usize = 5;
/// Age of a pending revision whose writer has given up, or was killed.
const ABANDONED_AGE: Duration = Duration::from_secs(3600);
/// Interval between comparisons of the catalog in Redis with the one in use; catches lost notifications and lost data.
pub const POLL_INTERVAL: Duration = Duration::from_secs(10);

/// The catalog in Redis.
pub struct Present {
    pub catalog: Catalog,
    /// `None`: there never was one.
    pub sealed: Option<Vec<u8>>,
}

/// A record's name and sealed text.
type Record = (String, Arc<[u8]>);

impl Backend {
    pub async fn catalog(&self) -> Result<Catalog, StoreError> {
        let present = self.present_catalog().await?;
        self.definitions_in_use.note_catalog(&present.catalog, present.sealed.as_deref());
        Ok(present.catalog)
    }

    /// Reads the catalog; writes the one in use back first if Redis has lost it.
    pub async fn present_catalog(&self) -> Result<Present, StoreError> {
        for _ in 0..WRITE_BACK_ATTEMPTS {
            let present = self.read_catalog().await?;
            let Some(in_use) = self.definitions_in_use.newer_than(present.catalog.generation) else {
                return Ok(present);
            };
            if self.write_back(&present, &in_use).await? {
                let (generation, definitions) = (in_use.catalog.generation, in_use.records.len());
                tracing::warn!(generation, definitions, "definitions in use missing from the store; written back");
            }
        }
        let why = "Redis: it has lost definitions, which replicas are writing back; try again".to_owned();
        Err(StoreError::Unavailable(why))
    }

    async fn read_catalog(&self) -> Result<Present, StoreError> {
        let name = self.names.catalog();
        let value = self.link.run::<Value>(self.scripts.get.key(name).arg(SEALED_CATALOG_BYTES_MAX)).await?;
        let sealed = value.bytes(|| definitions::CATALOG.to_owned())?;
        Ok(Present { catalog: self.codec.catalog(sealed.as_deref())?, sealed })
    }

    /// Returns true if this process has written the definitions, and not another one at the same time.
    async fn write_back(&self, present: &Present, in_use: &InUse) -> Result<bool, StoreError> {
        let sealed = self.codec.seal_catalog(&in_use.catalog)?;
        let gone = superseded(&present.catalog, &in_use.catalog);
        let records = in_use.records.iter().map(|(name, record)| {
            let resealed = self.codec.resealed(Table::Definitions, name.as_bytes(), record)?;
            Ok((name.clone(), resealed.map_or_else(|| record.clone(), Arc::from)))
        });
        self.swap(present, &sealed, records, &gone).await
    }

    /// The text of each revision, in order.
    pub async fn definition_texts(&self, revisions: &[(Name, Revision)]) -> Result<Vec<StoredText>, StoreError> {
        let names: Vec<String> = revisions.iter().map(|(name, revision)| record_name(name, *revision)).collect();
        let (mut texts, mut records) = (Vec::with_capacity(names.len()), Vec::with_capacity(names.len()));
        for (name, value) in self.definition_values(&names).await? {
            let sealed = value.bytes(|| definition_record(name));
            texts.push(match sealed {
                Ok(Some(sealed)) => {
                    let text = self.codec.definition(name, &sealed).map(Some);
                    records.push((name.clone(), Arc::from(sealed)));
                    text
                }
                Ok(None) => Ok(None),
                Err(damaged) => Err(damaged),
            });
        }
        self.definitions_in_use.note_records(records);
        Ok(texts)
    }

    /// The values of the records `names`, in order.
    pub async fn definition_values<'a>(&self, names: &'a [String]) -> Result<Vec<(&'a String, Value)>, StoreError> {
        let mut values = Vec::with_capacity(names.len());
        while values.len() < names.len() {
            let mut call = self.scripts.definitions.fields.key(self.names.definitions());
            call.arg(RECORD_BYTES_MAX).arg(CHUNK_BYTES);
            let rest = &names[values.len()..];
            call.arg(&rest[..rest.len().min(READ_MAX)]);
            let read: Vec<Value> = self.link.run(&call).await?;
            if read.is_empty() {
                return Err(StoreError::Unavailable("Redis: the reply has no definitions".to_owned()));
            }
            values.extend(rest.iter().zip(read));
        }
        Ok(values)
    }

    pub async fn change_definitions(
        &self,
        over: &Catalog,
        change: CatalogChange,
    ) -> Result<Option<Catalog>, StoreError> {
        let swap = Swap::of_change(over, change, self.codec.wall_ms())?;
        let present = self.present_catalog().await?;
        if present.catalog != *over {
            return Ok(None);
        }
        self.put_swap(&present, swap).await
    }

    /// Returns the new catalog; `None`: another writer won.
    pub async fn put_swap(&self, present: &Present, swap: Swap) -> Result<Option<Catalog>, StoreError> {
        let sealed = self.codec.seal_catalog(&swap.next)?;
        let mut records = Vec::with_capacity(swap.put.len());
        for record in &swap.put {
            let name = String::from_utf8_lossy(&record.name).into_owned();
            records.push((name, Arc::<[u8]>::from(self.codec.seal_record(record)?)));
        }
        if !self.swap(present, &sealed, records.iter().cloned().map(Ok), &swap.superseded).await? {
            return Ok(None);
        }
        self.definitions_in_use.note_catalog(&swap.next, Some(&sealed));
        self.definitions_in_use.note_records(records);
        Ok(Some(swap.next))
    }

    /// Stages `records`, then replaces the catalog `over` by `next`. Returns true unless another writer won; then what
    /// was staged is removed.
    async fn swap(
        &self,
        over: &Present,
        next: &[u8],
        records: impl ExactSizeIterator<Item = Result<Record, StoreError>> + Send,
        superseded: &[String],
    ) -> Result<bool, StoreError> {
        let head = head(over.sealed.as_deref());
        let mut staged = Vec::with_capacity(records.len());
        let mut chunk = self.staging(head);
        let mut bytes = 0;
        for record in records {
            let (name, sealed) = record?;
            if bytes > 0 && bytes + sealed.len() > CHUNK_BYTES {
                if !self.link.run::<bool>(&chunk).await? {
                    break;
                }
                (chunk, bytes) = (self.staging(head), 0);
            }
            bytes += sealed.len();
            chunk.arg(&name).arg(&*sealed);
            staged.push(name);
        }
        if bytes > 0 {
            // If it fails, so does the swap, which also removes what was staged.
            self.link.run::<bool>(&chunk).await?;
        }
        let mut call = self.on_definitions(&self.scripts.definitions.swap);
        call.arg(head)
            .arg(next)
            .arg(ABANDONED_AGE.as_secs())
            .arg(self.names.notifications())
            .arg(self.definitions_notification());
        call.arg(staged.len()).arg(&staged).arg(superseded);
        self.link.run(&call).await
    }

    fn staging(&self, head: &[u8]) -> ScriptInvocation<'_> {
        let mut call = self.on_definitions(&self.scripts.definitions.stage);
        call.arg(head);
        call
    }

    fn on_definitions<'a>(&self, script: &'a redis::Script) -> ScriptInvocation<'a> {
        let mut call = script.prepare_invoke();
        call.key(self.names.catalog()).key(self.names.definitions()).key(self.names.pending_definitions());
        call
    }

    /// Writes back the definitions in use that Redis has lost.
    pub async fn restore_definitions(&self) -> Result<(), StoreError> {
        if self.definitions_in_use.head().is_some() {
            self.present_catalog().await?;
        }
        Ok(())
    }

    /// Sends [`Notification::Definitions`] if the catalog is no longer the one in use, and writes that back if Redis has lost it.
    pub async fn poll_definitions(&self) -> Result<(), StoreError> {
        let Some(in_use) = self.definitions_in_use.head() else { return Ok(()) };
        let mut call = redis::cmd("GETRANGE");
        call.arg(self.names.catalog()).arg(0).arg(NONCE_END - 1);
        if self.link.query::<Vec<u8>>(&call).await? != in_use {
            self.restore_definitions().await?;
            // There may be no receiver.
            let _ = self.notifications.send(Notification::Definitions);
        }
        Ok(())
    }
}

/// Polls until the program exits.
pub async fn poll(backend: Arc<Backend>) {
    loop {
        tokio::time::sleep(POLL_INTERVAL).await;
        if let Err(error) = backend.poll_definitions().await {
            tracing::debug!(%error, "catalog of definitions not compared with the one in use");
        }
    }
}
