//! Pages through the definitions in Redis, and imports them.
//!
//! Invariant: pages are in order of the connections' names, so a concurrent change hides no definition.

use std::collections::BTreeMap;

use super::version_of;
use crate::store::StoreError;
use crate::store::definitions::{CATALOG, Swap, parse_record_name, record_name, replaced_by};
use crate::store::redis::backend::Backend;
use crate::store::redis::value::Value;
use crate::store::transfer::{OpenedRecord, PAGE, SealedRecord, Table, Tally};

/// Attempts to import into, or to read, a catalog that replicas keep replacing.
const ATTEMPTS: usize = 5;

impl Backend {
    /// A page of the definitions in force, by connection.
    pub(super) async fn page_of_definitions(&self, after: Option<&[u8]>) -> Result<Vec<SealedRecord>, StoreError> {
        let after = after.and_then(|after| parse_record_name(std::str::from_utf8(after).ok()?));
        for _ in 0..ATTEMPTS {
            let entries = self.present_catalog().await?.catalog.entries;
            let rest = entries.iter().filter(|(name, _)| after.as_ref().is_none_or(|(after, _)| *name > after));
            let names: Vec<String> = rest.map(|(name, revision)| record_name(name, *revision)).collect();
            let mut page = Vec::new();
            let mut is_current = true;
            for names in names.chunks(PAGE) {
                for (name, value) in self.definition_values(names).await? {
                    match value {
                        Value::Bytes(sealed) => page.push((name.clone().into_bytes(), sealed)),
                        // Replaced since the catalog was read.
                        Value::None => is_current = false,
                        Value::Foreign | Value::Large => {}
                    }
                }
                // An empty page would end the export.
                if !is_current || !page.is_empty() {
                    break;
                }
            }
            if is_current {
                return Ok(page);
            }
        }
        Err(changes_too_often())
    }

    /// The catalog, on its only page.
    pub(super) async fn page_of_catalog(&self, after: Option<&[u8]>) -> Result<Vec<SealedRecord>, StoreError> {
        if after.is_some() {
            return Ok(Vec::new());
        }
        let sealed = self.present_catalog().await?.sealed;
        Ok(sealed.map(|sealed| (CATALOG.as_bytes().to_vec(), sealed)).into_iter().collect())
    }

    /// The sealed record of a definition, or of the catalog.
    pub(super) async fn present_definition(&self, table: Table, name: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        if table == Table::Catalog {
            return Ok(self.present_catalog().await?.sealed);
        }
        let names = [String::from_utf8_lossy(name).into_owned()];
        let value = self.definition_values(&names).await?.pop();
        Ok(if let Some((_, Value::Bytes(sealed))) = value { Some(sealed) } else { None })
    }

    pub(super) async fn import_definitions(
        &self,
        records: Vec<OpenedRecord>,
        overwrite: bool,
    ) -> Result<Tally, StoreError> {
        if records.is_empty() {
            return Ok(Tally::default());
        }
        for _ in 0..ATTEMPTS {
            let present = self.present_catalog().await?;
            let replaced = replaced_by(&records, &present.catalog);
            let values = self.definition_values(&replaced).await?;
            let versions: BTreeMap<String, u64> =
                values.into_iter().filter_map(|(name, value)| Some((name.clone(), version_of(&value)?))).collect();
            let (swap, tally) = Swap::of_import(&present.catalog, &versions, &records, overwrite)?;
            let Some(swap) = swap else { return Ok(tally) };
            if self.put_swap(&present, swap).await?.is_some() {
                return Ok(tally);
            }
        }
        Err(changes_too_often())
    }
}

fn changes_too_often() -> StoreError {
    StoreError::Unavailable("Redis: the definitions change too often; run the command again".to_owned())
}
