//! Access tokens that have ended and came without a refresh token leave the file.
//!
//! Holds: a record with a refresh token stays, whatever was said of its end, and so does the memory of a refused one; a
//! record that was saved meanwhile stays too.

use std::sync::{Arc, Weak};
use std::time::Duration;

use redb::ReadableTable as _;

use super::{EmbeddedStore, TOKENS, records};
use crate::store::{StoreError, record};
use crate::tasks::Tasks;

/// Between two walks over all records; the first begins with the program.
const WALK_INTERVAL: Duration = Duration::from_secs(3600);
/// Between two pages of a walk: a million records take a quarter of an hour.
const PAGE_INTERVAL: Duration = Duration::from_millis(200);

impl EmbeddedStore {
    /// Removes what has ended, until the program ends.
    pub fn sweep(self: &Arc<Self>, tasks: &Tasks) {
        tasks.spawn("store sweep", sweep(Arc::downgrade(self)));
    }

    /// Removes what has ended of one page of records: the last name of the page, and how many were removed.
    pub(super) async fn sweep_page(&self, after: Option<Vec<u8>>) -> Result<(Option<Vec<u8>>, usize), StoreError> {
        let page = self.read(move |transaction| records::page(&transaction.open_table(TOKENS)?, after.as_deref()));
        let mut page = self.whole(page.await)?;
        let last = page.last().map(|(name, _)| name.clone());
        let now = self.sealed.clock.now();
        page.retain(|(name, sealed)| {
            let token = record::key_of(name).and_then(|key| self.sealed.token(&key, sealed).ok());
            token.is_some_and(|token| token.has_ended(now))
        });
        if page.is_empty() {
            return Ok((last, 0));
        }
        let removed = self.write(move |transaction| {
            let (mut table, mut removed) = (transaction.open_table(TOKENS)?, 0);
            for (name, sealed) in &page {
                let name = name.as_slice();
                if table.get(name)?.is_some_and(|present| present.value() == sealed.as_slice()) {
                    table.remove(name)?;
                    removed += 1;
                }
            }
            Ok(removed)
        });
        Ok((last, self.whole(removed.await)?))
    }
}

async fn sweep(store: Weak<EmbeddedStore>) {
    loop {
        let (mut after, mut removed) = (None, 0);
        loop {
            let Some(store) = store.upgrade() else { return };
            match store.sweep_page(after).await {
                Ok((Some(last), of_page)) => (after, removed) = (Some(last), removed + of_page),
                Ok((None, _)) => break,
                Err(error) => {
                    tracing::debug!(%error, "ended access tokens stay in the store until the next look");
                    break;
                }
            }
            drop(store);
            tokio::time::sleep(PAGE_INTERVAL).await;
        }
        if removed > 0 {
            tracing::debug!(removed, "ended access tokens removed from the store");
        }
        tokio::time::sleep(WALK_INTERVAL).await;
    }
}
