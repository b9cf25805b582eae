//! A store that keeps nothing: for tokens that nobody could use later.

use std::time::Duration;

use super::{Lease, Note, Page, Store, StoreError, StoreFuture, StoredToken};
use crate::model::Name;
use crate::model::secret::Secret;
use crate::model::time::WallTime;
use crate::model::token::TokenKey;

/// There is one refresher for each of its keys, so a lease stands against nobody.
pub struct Unkept;

struct Granted;

impl Lease for Granted {}

const NO_SECRETS: StoreError = StoreError::Unsupported("no secret is kept here");

impl Store for Unkept {
    fn load<'a>(&'a self, _: &'a TokenKey) -> StoreFuture<'a, Option<StoredToken>> {
        Box::pin(async { Ok(None) })
    }

    fn lease<'a>(&'a self, _: &'a TokenKey, _: Duration, _: Duration) -> StoreFuture<'a, Box<dyn Lease>> {
        Box::pin(async { Ok(Box::new(Granted) as Box<dyn Lease>) })
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

    fn secret<'a>(&'a self, _: &'a str) -> StoreFuture<'a, Option<Secret>> {
        Box::pin(async { Ok(None) })
    }

    fn put_secret<'a>(&'a self, _: &'a str, _: Secret) -> StoreFuture<'a, ()> {
        Box::pin(async { Err(NO_SECRETS) })
    }

    fn remove_secret<'a>(&'a self, _: &'a str) -> StoreFuture<'a, bool> {
        Box::pin(async { Ok(false) })
    }

    fn secret_names(&self) -> StoreFuture<'_, Vec<String>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn note<'a>(&'a self, _: &'a str) -> StoreFuture<'a, Option<Note>> {
        Box::pin(async { Ok(None) })
    }

    fn put_note<'a>(&'a self, _: &'a str, _: Secret, _: WallTime, _: Option<u64>) -> StoreFuture<'a, bool> {
        Box::pin(async { Ok(false) })
    }

    fn note_names<'a>(&'a self, _: &'a str) -> StoreFuture<'a, Vec<String>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}
