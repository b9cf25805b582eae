//! A store that keeps nothing, for tokens that only the current request can use.

use std::sync::Arc;
use std::time::Duration;

use super::lease::ProcessLease;
use super::{KeepsNoDefinitions, Lease, Page, SharedStore, StoreFuture, StoredToken, TokenStore};
use crate::model::Name;
use crate::model::token::TokenKey;

/// Each key has one refresher, so leases are uncontended.
pub struct NoStore;

impl KeepsNoDefinitions for NoStore {}

impl TokenStore for NoStore {
    fn load<'a>(&'a self, _: &'a TokenKey) -> StoreFuture<'a, Option<StoredToken>> {
        Box::pin(async { Ok(None) })
    }

    fn lease<'a>(&'a self, _: &'a TokenKey, _: Duration, _: Duration) -> StoreFuture<'a, Box<dyn Lease>> {
        Box::pin(async { Ok(Box::new(ProcessLease::uncontended()) as Box<dyn Lease>) })
    }

    fn save<'a>(&'a self, _: &'a TokenKey, _: StoredToken, _: &'a dyn Lease) -> StoreFuture<'a, u64> {
        Box::pin(async { Ok(0) })
    }

    fn forget<'a>(&'a self, _: &'a TokenKey, _: &'a dyn Lease) -> StoreFuture<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn list<'a>(&'a self, _: &'a Name, _: Option<&'a TokenKey>, _: usize) -> StoreFuture<'a, Page> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn shared(&self) -> Option<Arc<dyn SharedStore>> {
        None
    }
}
