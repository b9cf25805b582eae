//! In-memory store of tokens and notes. It holds no secrets and no definitions, and does not survive the process.
//!
//! Bounds: expired access tokens are swept as records accumulate; each namespace of notes is bounded.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::lease::ProcessLeases;
use super::{
    KeepsNoDefinitions, LONG_NOTE, Lease, NOTE_BYTES_MAX, NOTES_PER_NAMESPACE_MAX, Note, NoteStore, Page, SecretStore,
    SharedStore, StoreError, StoreFuture, StoredToken, TokenStore, namespace_of,
};
use crate::clock::Clock;
use crate::model::Name;
use crate::model::secret::Secret;
use crate::model::time::WallTime;
use crate::model::token::TokenKey;
use crate::sync::lock;

/// Number of records that starts the first sweep; the next one starts at twice as many records as a sweep leaves.
const SWEEP_AT_MIN: usize = 1024;

const NO_SECRETS: StoreError =
    StoreError::Unsupported("the memory store holds no secrets; configure `store: {embedded: {}}`");

/// A store that loses everything when the process ends. It holds tokens and notes, but no secrets.
#[derive(Debug, Default)]
pub struct MemoryStore {
    records: Mutex<BTreeMap<TokenKey, StoredToken>>,
    /// Number of records that starts the next sweep.
    sweep_at: AtomicUsize,
    /// Notes with their expiry.
    notes: Mutex<BTreeMap<String, (Note, WallTime)>>,
    leases: ProcessLeases,
    clock: Clock,
}

impl MemoryStore {
    fn records(&self) -> MutexGuard<'_, BTreeMap<TokenKey, StoredToken>> {
        lock(&self.records)
    }

    fn notes(&self) -> MutexGuard<'_, BTreeMap<String, (Note, WallTime)>> {
        lock(&self.notes)
    }

    fn swap_note(
        &self,
        name: &str,
        text: Secret,
        expires_at: WallTime,
        replaces: Option<u64>,
    ) -> Result<bool, StoreError> {
        if text.expose().len() > NOTE_BYTES_MAX {
            return Err(LONG_NOTE);
        }
        let (mut notes, wall) = (self.notes(), self.clock.now().wall);
        let namespace = namespace_of(name);
        let from = (Bound::Included(namespace), Bound::Unbounded);
        let siblings = notes.range::<str, _>(from).take_while(|(name, _)| name.starts_with(namespace));
        let siblings =
            siblings.filter(|(name, _)| namespace_of(name) == namespace).map(|(name, (_, expiry))| (*expiry, name));
        let (live, mut dropped): (Vec<_>, Vec<_>) = siblings.partition(|(expiry, _)| *expiry > wall);
        let present = notes.get(name).filter(|(_, expiry)| *expiry > wall).map(|(note, _)| note.version);
        if present != replaces {
            return Ok(false);
        }
        if present.is_none() && live.len() >= NOTES_PER_NAMESPACE_MAX {
            dropped.extend(live.into_iter().min());
        }
        for name in dropped.into_iter().map(|(_, name)| name.clone()).collect::<Vec<_>>() {
            notes.remove(&name);
        }
        notes.insert(name.to_owned(), (Note { text, version: replaces.unwrap_or(0) + 1 }, expires_at));
        Ok(true)
    }
}

impl TokenStore for MemoryStore {
    fn load<'a>(&'a self, key: &'a TokenKey) -> StoreFuture<'a, Option<StoredToken>> {
        let token = self.records().get(key).cloned();
        Box::pin(async move { Ok(token) })
    }

    fn lease<'a>(&'a self, key: &'a TokenKey, _: Duration, wait: Duration) -> StoreFuture<'a, Box<dyn Lease>> {
        Box::pin(self.leases.acquire(key, wait))
    }

    fn save<'a>(&'a self, key: &'a TokenKey, token: StoredToken, _lease: &'a dyn Lease) -> StoreFuture<'a, u64> {
        let mut records = self.records();
        let version = records.get(key).map_or(0, |before| before.version) + 1;
        if records.len() >= self.sweep_at.load(Ordering::Relaxed).max(SWEEP_AT_MIN) {
            let now = self.clock.now();
            records.retain(|_, record| !record.is_disposable(now));
            self.sweep_at.store(2 * records.len(), Ordering::Relaxed);
        }
        records.insert(key.clone(), StoredToken { version, ..token });
        Box::pin(async move { Ok(version) })
    }

    fn forget<'a>(&'a self, key: &'a TokenKey, _lease: &'a dyn Lease) -> StoreFuture<'a, ()> {
        self.records().remove(key);
        Box::pin(async { Ok(()) })
    }

    fn list<'a>(&'a self, connection: &'a Name, after: Option<&'a TokenKey>, limit: usize) -> StoreFuture<'a, Page> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let records = self.records();
        let matching =
            records.range::<TokenKey, _>((from, Bound::Unbounded)).filter(|(key, _)| key.connection == *connection);
        let page = matching.take(limit).map(|(key, token)| (key.clone(), Ok(token.clone()))).collect();
        Box::pin(async move { Ok(page) })
    }

    fn shared(&self) -> Option<Arc<dyn SharedStore>> {
        None
    }
}

impl SecretStore for MemoryStore {
    fn secret<'a>(&'a self, _name: &'a str) -> StoreFuture<'a, Option<Secret>> {
        Box::pin(async { Ok(None) })
    }

    fn put_secret<'a>(&'a self, _name: &'a str, _secret: Secret) -> StoreFuture<'a, ()> {
        Box::pin(async { Err(NO_SECRETS) })
    }

    fn remove_secret<'a>(&'a self, _name: &'a str) -> StoreFuture<'a, bool> {
        Box::pin(async { Ok(false) })
    }

    fn secret_names(&self) -> StoreFuture<'_, Vec<String>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}

impl KeepsNoDefinitions for MemoryStore {}

impl NoteStore for MemoryStore {
    fn note<'a>(&'a self, name: &'a str) -> StoreFuture<'a, Option<Note>> {
        let wall = self.clock.now().wall;
        let note = self.notes().get(name).filter(|(_, expiry)| *expiry > wall).map(|(note, _)| note.clone());
        Box::pin(async move { Ok(note) })
    }

    fn put_note<'a>(
        &'a self,
        name: &'a str,
        text: Secret,
        expires_at: WallTime,
        replaces: Option<u64>,
    ) -> StoreFuture<'a, bool> {
        let put = self.swap_note(name, text, expires_at, replaces);
        Box::pin(async move { put })
    }

    fn note_names<'a>(&'a self, prefix: &'a str) -> StoreFuture<'a, Vec<String>> {
        let wall = self.clock.now().wall;
        let notes = self.notes();
        let live = notes.iter().filter(|(name, (_, expiry))| name.starts_with(prefix) && *expiry > wall);
        let names = live.map(|(name, _)| name.clone()).collect();
        Box::pin(async move { Ok(names) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::model::connection::Connection;
    use crate::model::token::{AccessToken, Subject};
    use crate::store::{Refresh, conformance};

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn the_memory_store_conforms() {
        conformance::every_store(&MemoryStore::default(), conformance::SecretsAndDefinitions::Refused).await;
    }

    fn token() -> StoredToken {
        StoredToken {
            identity: Connection::sample("crm").identity(),
            origins: Arc::new(Connection::sample("crm").origins()),
            access_token: AccessToken::parse("a").unwrap(),
            obtained: Clock::simulated().now(),
            lifetime: Duration::from_secs(60),
            scopes: None,
            refresh: Refresh::None,
            refresh_life: crate::store::RefreshLife::default(),
            version: 1,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn expired_tokens_do_not_accumulate() {
        let clock = Clock::simulated();
        let store = MemoryStore { clock: clock.clone(), ..MemoryStore::default() };
        let crm = Name::parse("crm").unwrap();
        let save = async |number: usize, refresh: Refresh| {
            let token = StoredToken { refresh, obtained: clock.now(), ..token() };
            let key = TokenKey::of_subject(crm.clone(), Subject::parse(&number.to_string()).unwrap());
            let lease = store.lease(&key, SECOND, SECOND).await.unwrap();
            store.save(&key, token, &*lease).await.unwrap();
        };
        let refresh = Refresh::Token(crate::model::token::RefreshToken::parse("r").unwrap());
        for number in 0..10 {
            save(number, refresh.clone()).await;
        }
        for number in 10..20_000 {
            save(number, Refresh::None).await;
            tokio::time::advance(SECOND).await;
        }
        let held = store.list(&crm, None, 20_000).await.unwrap();
        assert!(held.len() < 1100, "{} records, of which 60 are usable", held.len());
        assert_eq!(held.iter().filter(|(_, record)| record.as_ref().unwrap().refresh == refresh).count(), 10);
    }
}
