//! Definitions in the file: a table of revisions, and one of a single record, the catalog.
//!
//! Invariant: one transaction writes a whole change. A file of an older version has neither table until the first change.

use std::collections::BTreeMap;

use redb::{ReadTransaction, ReadableTable as _, WriteTransaction};

use super::EmbeddedStore;
use super::engine::{Failure, Outcome};
use super::file::{CATALOG, DEFINITIONS, existing, seal_failed, sealed_in};
use crate::model::Name;
use crate::model::connection::Revision;
use crate::store::codec::definition_record;
use crate::store::definitions::{self, Catalog, CatalogChange, StoredText, Swap};
use crate::store::seal::{Header, Keyring};
use crate::store::transfer::{OpenedRecord, PAGE, Tally};
use crate::store::{DefinitionStore, StoreError, StoreFuture};

/// The sealed catalog; `None`: there never was one.
type SealedCatalog = Option<Vec<u8>>;

const CHANGED: &str = "the definitions were changed during the import; import again";

impl DefinitionStore for EmbeddedStore {
    fn catalog(&self) -> StoreFuture<'_, Catalog> {
        Box::pin(async { Ok(self.present_catalog().await?.0) })
    }

    fn definitions<'a>(&'a self, revisions: &'a [(Name, Revision)]) -> StoreFuture<'a, Vec<StoredText>> {
        Box::pin(async move {
            let mut texts = Vec::with_capacity(revisions.len());
            for page in revisions.chunks(PAGE) {
                let names = page.iter().map(|(name, revision)| definitions::record_name(name, *revision)).collect();
                texts.extend(self.definition_texts(names).await?);
            }
            Ok(texts)
        })
    }

    fn change_definitions<'a>(&'a self, over: &'a Catalog, change: CatalogChange) -> StoreFuture<'a, Option<Catalog>> {
        Box::pin(async move {
            let swap = Swap::of_change(over, change, self.codec.wall_ms())?;
            let (present, sealed) = self.present_catalog().await?;
            if present != *over {
                return Ok(None);
            }
            let (keyring, next, catalog) =
                (self.keyring().clone(), self.codec.seal_catalog(&swap.next)?, swap.next.clone());
            let swapped = self.write(move |transaction| write(transaction, &keyring, &sealed, &next, &swap));
            Ok(self.or_unavailable(swapped.await)?.then_some(catalog))
        })
    }
}

impl EmbeddedStore {
    async fn present_catalog(&self) -> Result<(Catalog, SealedCatalog), StoreError> {
        let sealed = self.or_damaged(|| definitions::CATALOG.to_owned(), self.read(sealed_catalog).await)?;
        Ok((self.codec.catalog(sealed.as_deref())?, sealed))
    }

    /// If a part of the file is damaged, only the records in it fail.
    async fn definition_texts(&self, names: Vec<String>) -> Result<Vec<StoredText>, StoreError> {
        let sealed = match self.sealed_definitions(names.clone()).await {
            Err(Failure::Damaged) => {
                let mut each = Vec::with_capacity(names.len());
                for name in &names {
                    let one = self.sealed_definitions(vec![name.clone()]).await;
                    each.push(one.map(|mut sealed| sealed.pop().flatten()));
                }
                each
            }
            whole => self.or_unavailable(whole)?.into_iter().map(Ok).collect(),
        };
        let opened = |(name, sealed): (&String, Outcome<Option<Vec<u8>>>)| -> StoredText {
            let sealed = self.or_damaged(|| definition_record(name), sealed)?;
            sealed.map(|sealed| self.codec.definition(name, &sealed)).transpose()
        };
        Ok(names.iter().zip(sealed).map(opened).collect())
    }

    async fn sealed_definitions(&self, names: Vec<String>) -> Outcome<Vec<Option<Vec<u8>>>> {
        self.read(move |transaction| {
            let Some(table) = existing(transaction, DEFINITIONS)? else { return Ok(vec![None; names.len()]) };
            let sealed = |name: &String| Ok(table.get(name.as_bytes())?.map(|sealed| sealed.value().to_vec()));
            names.iter().map(sealed).collect()
        })
        .await
    }

    /// For `transfer::Records`. Blocks.
    pub(super) fn import_definitions(&self, records: &[OpenedRecord], overwrite: bool) -> Result<Tally, StoreError> {
        let sealed = self.read_blocking(sealed_catalog)?;
        let over = self.codec.catalog(sealed.as_deref())?;
        let names = definitions::replaced_by(records, &over);
        let versions = self.read_blocking(move |transaction| {
            let mut versions = BTreeMap::new();
            let Some(table) = existing(transaction, DEFINITIONS)? else { return Ok(versions) };
            for name in &names {
                let header = table.get(name.as_bytes())?.and_then(|sealed| Header::parse(sealed.value()));
                versions.extend(header.map(|header| (name.clone(), header.version)));
            }
            Ok(versions)
        })?;
        let (swap, tally) = Swap::of_import(&over, &versions, records, overwrite)?;
        let Some(swap) = swap else { return Ok(tally) };
        let (keyring, next) = (self.keyring().clone(), self.codec.seal_catalog(&swap.next)?);
        match self.write_blocking(move |transaction| write(transaction, &keyring, &sealed, &next, &swap))? {
            true => Ok(tally),
            false => Err(self.unavailable(CHANGED)),
        }
    }
}

fn sealed_catalog(transaction: &ReadTransaction) -> Result<SealedCatalog, redb::Error> {
    let Some(table) = existing(transaction, CATALOG)? else { return Ok(None) };
    Ok(table.get(definitions::CATALOG.as_bytes())?.map(|sealed| sealed.value().to_vec()))
}

/// Writes a change unless the catalog is no longer `over`; returns true if it was written.
fn write(
    transaction: &WriteTransaction,
    keyring: &Keyring,
    over: &SealedCatalog,
    next: &[u8],
    swap: &Swap,
) -> Result<bool, redb::Error> {
    let mut catalog = transaction.open_table(CATALOG)?;
    let is_over = catalog.get(definitions::CATALOG.as_bytes())?.map(|sealed| sealed.value().to_vec()) == *over;
    if !is_over {
        return Ok(false);
    }
    let mut revisions = transaction.open_table(DEFINITIONS)?;
    for name in &swap.superseded {
        revisions.remove(name.as_bytes())?;
    }
    for OpenedRecord { name, version, text, .. } in &swap.put {
        let sealed = keyring.seal(sealed_in(&DEFINITIONS, name), *version, text).map_err(seal_failed)?;
        revisions.insert(name.as_slice(), sealed.as_slice())?;
    }
    catalog.insert(definitions::CATALOG.as_bytes(), next)?;
    Ok(true)
}
