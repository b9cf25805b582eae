//! Pages of records, in name order.

use std::ops::Bound;

use redb::{ReadTransaction, ReadableTable};

use super::file::TOKENS;
use crate::model::token::TokenKey;
use crate::store::record;
use crate::store::transfer::{PAGE, SealedRecord};

pub type SealedPage = Vec<(TokenKey, Vec<u8>)>;

/// At most `limit` tokens whose names start with `prefix`, starting after `after`.
pub fn of_connection(
    transaction: &ReadTransaction,
    prefix: &[u8],
    after: Option<&[u8]>,
    limit: usize,
) -> Result<SealedPage, redb::Error> {
    let end = record::end_of(prefix);
    let start = match after {
        Some(after) if after >= end.as_slice() => return Ok(Vec::new()),
        Some(after) if after >= prefix => Bound::Excluded(after),
        _ => Bound::Included(prefix),
    };
    let mut page = Vec::new();
    for item in transaction.open_table(TOKENS)?.range::<&[u8]>((start, Bound::Excluded(end.as_slice())))? {
        if page.len() == limit {
            break;
        }
        let (name, sealed) = item?;
        match record::key_of(name.value()) {
            Some(key) => page.push((key, sealed.value().to_vec())),
            None => tracing::warn!("record with a damaged name skipped"),
        }
    }
    Ok(page)
}

/// At most [`PAGE`] records, starting after `after`.
pub fn records(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    after: Option<&[u8]>,
) -> Result<Vec<SealedRecord>, redb::Error> {
    let from = after.map_or(Bound::Unbounded, Bound::Excluded);
    let records = table.range::<&[u8]>((from, Bound::Unbounded))?.take(PAGE);
    records
        .map(|record| {
            let (name, sealed) = record?;
            Ok((name.value().to_vec(), sealed.value().to_vec()))
        })
        .collect()
}
