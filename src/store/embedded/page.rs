//! Some of a connection's records, in the order of their names.

use std::ops::Bound;

use redb::ReadTransaction;

use super::TOKENS;
use crate::model::token::TokenKey;
use crate::store::record;

pub type SealedPage = Vec<(TokenKey, Vec<u8>)>;

/// At most `limit` records whose names begin with `prefix`, from the first after `after`.
pub fn read(
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
            None => tracing::warn!("the store has a record whose name is damaged; it is left out"),
        }
    }
    Ok(page)
}
