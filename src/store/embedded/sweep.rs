//! Removes expired access tokens that have no refresh token.
//!
//! Invariants: a record with a refresh token stays, whatever lifetime was stated, and so does one whose refresh token
//! was refused; a record saved during the sweep stays.

use std::sync::{Arc, Weak};
use std::time::Duration;

use redb::ReadableTable as _;

use super::EmbeddedStore;
use super::file::TOKENS;
use super::page;
use crate::store::{StoreError, record};
use crate::tasks::Tasks;

/// Interval between sweeps; the first runs at startup.
const SWEEP_INTERVAL: Duration = Duration::from_secs(3600);
/// Pause between pages of a sweep: a million records take 15 minutes.
const PAGE_INTERVAL: Duration = Duration::from_millis(200);

impl EmbeddedStore {
    /// Sweeps until the program exits.
    pub fn sweep(self: &Arc<Self>, tasks: &Tasks) {
        tasks.spawn("store sweep", sweep(Arc::downgrade(self)));
    }

    /// Sweeps one page. Returns its last name and the number of records removed.
    pub(super) async fn sweep_page(&self, after: Option<Vec<u8>>) -> Result<(Option<Vec<u8>>, usize), StoreError> {
        let page = self.read(move |transaction| page::records(&transaction.open_table(TOKENS)?, after.as_deref()));
        let mut page = self.or_unavailable(page.await)?;
        let last = page.last().map(|(name, _)| name.clone());
        let now = self.codec.clock.now();
        page.retain(|(name, sealed)| {
            let token = record::key_of(name).and_then(|key| self.codec.token(&key, sealed).ok());
            token.is_some_and(|token| token.is_disposable(now))
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
        Ok((last, self.or_unavailable(removed.await)?))
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
                    tracing::debug!(%error, "sweep failed; expired access tokens stay in the store until the next sweep");
                    break;
                }
            }
            drop(store);
            tokio::time::sleep(PAGE_INTERVAL).await;
        }
        if removed > 0 {
            tracing::debug!(removed, "expired access tokens removed from the store");
        }
        tokio::time::sleep(SWEEP_INTERVAL).await;
    }
}
