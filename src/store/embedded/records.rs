//! All records of the file, page by page: for exports, imports and a new key.

use std::ops::Bound;

use redb::{ReadableTable, ReadableTableMetadata as _};

use super::{EmbeddedStore, SECRETS, TOKENS, TableName, put_check, unsealed};
use crate::store::StoreError;
use crate::store::seal::{Header, Keyring};
use crate::store::transfer::{Done, Opened, PAGE, Records, Sealed, Table};

const TABLES: [TableName; 2] = [TOKENS, SECRETS];

fn of(table: Table) -> TableName {
    match table {
        Table::Tokens => TOKENS,
        Table::Secrets => SECRETS,
    }
}

pub(super) fn page(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    after: Option<&[u8]>,
) -> Result<Vec<Sealed>, redb::Error> {
    let from = after.map_or(Bound::Unbounded, Bound::Excluded);
    let records = table.range::<&[u8]>((from, Bound::Unbounded))?.take(PAGE);
    records
        .map(|record| {
            let (name, sealed) = record?;
            Ok((name.value().to_vec(), sealed.value().to_vec()))
        })
        .collect()
}

impl Records for EmbeddedStore {
    fn keyring(&self) -> &Keyring {
        self.keyring()
    }

    fn count(&self) -> Result<u64, StoreError> {
        self.read_blocking(|tx| {
            TABLES.into_iter().try_fold(0, |sum, table| Ok::<_, redb::Error>(sum + tx.open_table(table)?.len()?))
        })
    }

    fn page(&self, table: Table, after: Option<&[u8]>) -> Result<Vec<Sealed>, StoreError> {
        let from = after.map(<[u8]>::to_vec);
        self.read_blocking(move |tx| page(&tx.open_table(of(table))?, from.as_deref()))
    }

    fn put(&self, records: Vec<Opened>, overwrite: bool) -> Result<(u64, u64), StoreError> {
        let keyring = self.keyring().clone();
        self.write_blocking(move |tx| {
            let (mut written, mut kept) = (0, 0);
            for record in &records {
                let (place, name) = (record.table.place(&record.name), record.name.as_slice());
                let mut table = tx.open_table(of(record.table))?;
                let stays = match table.get(name)? {
                    Some(own) => {
                        keyring.open(place, own.value()).map_or(true, |(version, _)| version >= record.version)
                    }
                    None => false,
                };
                if stays && !overwrite {
                    kept += 1;
                    continue;
                }
                let sealed = keyring.seal(place, record.version, &record.text).map_err(unsealed)?;
                table.insert(name, sealed.as_slice())?;
                written += 1;
            }
            Ok((written, kept))
        })
    }

    fn reseal(&self, table: Table, after: Option<&[u8]>) -> Result<(Option<Vec<u8>>, Done), StoreError> {
        let (from, keyring) = (after.map(<[u8]>::to_vec), self.keyring().clone());
        self.write_blocking(move |tx| {
            let mut own = tx.open_table(of(table))?;
            let records = page(&own, from.as_deref())?;
            let mut done = Done::default();
            for (name, sealed) in &records {
                let place = table.place(name);
                match keyring.open(place, sealed) {
                    Err(_) => done.unopened += 1,
                    Ok(_) if Header::of(sealed).is_some_and(|header| header.key == keyring.sealing()) => {
                        done.kept += 1;
                    }
                    Ok((version, text)) => {
                        let anew = keyring.seal(place, version, &text).map_err(unsealed)?;
                        own.insert(name.as_slice(), anew.as_slice())?;
                        done.written += 1;
                    }
                }
            }
            Ok((records.last().map(|(name, _)| name.clone()), done))
        })
    }

    /// The check record says which key opens the file.
    fn resealed(&self) -> Result<(), StoreError> {
        let keyring = self.keyring().clone();
        self.write_blocking(move |tx| put_check(tx, &keyring))
    }
}
