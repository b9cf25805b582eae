//! A store whose disk can be full.

use std::sync::atomic::AtomicBool;

use super::*;
use crate::model::secret::Secret;
use crate::model::time::WallTime;
use crate::store::{
    KeepsNoDefinitions, Lease, Note, NoteStore, Page, SecretStore, SharedStore, StoreError, StoreFuture, StoredToken,
    TokenStore,
};

/// A memory store whose disk can be full.
#[derive(Default)]
pub(super) struct Disk {
    memory: MemoryStore,
    pub(super) full: AtomicBool,
    pub(super) saves: AtomicUsize,
}

impl TokenStore for Disk {
    fn load<'a>(&'a self, key: &'a TokenKey) -> StoreFuture<'a, Option<StoredToken>> {
        self.memory.load(key)
    }

    fn lease<'a>(&'a self, key: &'a TokenKey, term: Duration, wait: Duration) -> StoreFuture<'a, Box<dyn Lease>> {
        self.memory.lease(key, term, wait)
    }

    fn save<'a>(&'a self, key: &'a TokenKey, token: StoredToken, lease: &'a dyn Lease) -> StoreFuture<'a, u64> {
        self.saves.fetch_add(1, Ordering::SeqCst);
        match self.full.load(Ordering::SeqCst) {
            true => Box::pin(async { Err(StoreError::Unavailable("the disk is full".to_owned())) }),
            false => self.memory.save(key, token, lease),
        }
    }

    fn forget<'a>(&'a self, key: &'a TokenKey, lease: &'a dyn Lease) -> StoreFuture<'a, ()> {
        self.memory.forget(key, lease)
    }

    fn list<'a>(&'a self, connection: &'a Name, after: Option<&'a TokenKey>, limit: usize) -> StoreFuture<'a, Page> {
        self.memory.list(connection, after, limit)
    }

    fn shared(&self) -> Option<Arc<dyn SharedStore>> {
        None
    }
}

impl SecretStore for Disk {
    fn secret<'a>(&'a self, name: &'a str) -> StoreFuture<'a, Option<Secret>> {
        self.memory.secret(name)
    }

    fn put_secret<'a>(&'a self, name: &'a str, secret: Secret) -> StoreFuture<'a, ()> {
        self.memory.put_secret(name, secret)
    }

    fn remove_secret<'a>(&'a self, name: &'a str) -> StoreFuture<'a, bool> {
        self.memory.remove_secret(name)
    }

    fn secret_names(&self) -> StoreFuture<'_, Vec<String>> {
        self.memory.secret_names()
    }
}

impl KeepsNoDefinitions for Disk {}

impl NoteStore for Disk {
    fn note<'a>(&'a self, name: &'a str) -> StoreFuture<'a, Option<Note>> {
        self.memory.note(name)
    }

    fn put_note<'a>(&'a self, name: &'a str, text: Secret, ends: WallTime, over: Option<u64>) -> StoreFuture<'a, bool> {
        self.memory.put_note(name, text, ends, over)
    }

    fn note_names<'a>(&'a self, prefix: &'a str) -> StoreFuture<'a, Vec<String>> {
        self.memory.note_names(prefix)
    }
}
