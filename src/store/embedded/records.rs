//! Pages through all records of the file, for export, import and reseal.

use redb::{ReadableTable as _, ReadableTableMetadata as _};

use super::file::{self, CATALOG, DEFINITIONS, SECRETS, TOKENS, existing, put_check, seal_failed};
use super::{EmbeddedStore, page};
use crate::store::StoreError;
use crate::store::seal::{Header, Keyring};
use crate::store::transfer::{OpenedRecord, Records, SealedRecord, Table, Tally};

/// The tables that are counted.
const TABLES: [file::Table; 3] = [TOKENS, SECRETS, DEFINITIONS];

fn redb_table(table: Table) -> file::Table {
    match table {
        Table::Tokens => TOKENS,
        Table::Secrets => SECRETS,
        Table::Definitions => DEFINITIONS,
        Table::Catalog => CATALOG,
    }
}

impl Records for EmbeddedStore {
    fn keyring(&self) -> &Keyring {
        self.keyring()
    }

    fn count(&self) -> Result<u64, StoreError> {
        self.read_blocking(|tx| {
            TABLES.into_iter().try_fold(0, |sum, table| match existing(tx, table)? {
                Some(table) => Ok::<_, redb::Error>(sum + table.len()?),
                None => Ok(sum),
            })
        })
    }

    fn page(&self, table: Table, after: Option<&[u8]>) -> Result<Vec<SealedRecord>, StoreError> {
        let from = after.map(<[u8]>::to_vec);
        self.read_blocking(move |tx| match existing(tx, redb_table(table))? {
            Some(table) => page::records(&table, from.as_deref()),
            None => Ok(Vec::new()),
        })
    }

    fn put(&self, records: Vec<OpenedRecord>, overwrite: bool) -> Result<Tally, StoreError> {
        let (definitions, records): (Vec<_>, Vec<_>) =
            records.into_iter().partition(|record| record.table == Table::Definitions);
        let mut tally = Tally::default();
        if !definitions.is_empty() {
            tally += self.import_definitions(&definitions, overwrite)?;
        }
        let keyring = self.keyring().clone();
        tally += self.write_blocking(move |tx| {
            let mut tally = Tally::default();
            for record in &records {
                let (sealed_in, name) = (record.table.sealed_in(&record.name), record.name.as_slice());
                let mut table = tx.open_table(redb_table(record.table))?;
                let is_kept = match table.get(name)? {
                    Some(stored) => {
                        keyring.open(sealed_in, stored.value()).map_or(true, |(version, _)| version >= record.version)
                    }
                    None => false,
                };
                if is_kept && !overwrite {
                    tally.kept += 1;
                    continue;
                }
                let sealed = keyring.seal(sealed_in, record.version, &record.text).map_err(seal_failed)?;
                table.insert(name, sealed.as_slice())?;
                tally.written += 1;
            }
            Ok(tally)
        })?;
        Ok(tally)
    }

    fn reseal(&self, table: Table, after: Option<&[u8]>) -> Result<(Option<Vec<u8>>, Tally), StoreError> {
        let (from, keyring) = (after.map(<[u8]>::to_vec), self.keyring().clone());
        self.write_blocking(move |tx| {
            let mut stored = tx.open_table(redb_table(table))?;
            let records = page::records(&stored, from.as_deref())?;
            let mut tally = Tally::default();
            for (name, sealed) in &records {
                let sealed_in = table.sealed_in(name);
                match keyring.open(sealed_in, sealed) {
                    Err(_) => tally.unopened += 1,
                    Ok(_) if Header::parse(sealed).is_some_and(|header| header.key == keyring.sealing()) => {
                        tally.kept += 1;
                    }
                    Ok((version, text)) => {
                        let resealed = keyring.seal(sealed_in, version, &text).map_err(seal_failed)?;
                        stored.insert(name.as_slice(), resealed.as_slice())?;
                        tally.written += 1;
                    }
                }
            }
            Ok((records.last().map(|(name, _)| name.clone()), tally))
        })
    }

    /// Seals the check record under the first key, which is then required to open the file.
    fn finish_reseal(&self) -> Result<(), StoreError> {
        let keyring = self.keyring().clone();
        self.write_blocking(move |tx| put_check(tx, &keyring))
    }
}
