//! A store in one file (redb), for one process. Every record is sealed; one thread reads and writes the file.
//!
//! Not here: the thread (`engine`) and its queue (`queue`), opening the file (`file`), removing expired tokens
//! (`sweep`), notes (`notes`), definitions (`definitions`), export and import (`records`).
//! Invariants: no caller waits longer than `queue::OPERATION_TIMEOUT`; nothing leaves memory unsealed. The version of a
//! record grows with each save and follows the wall clock, so that the newer of two copies can be identified.

mod definitions;
mod engine;
mod file;
mod notes;
mod page;
mod probe;
mod queue;
mod records;
mod sweep;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use redb::{ReadTransaction, ReadableTable as _, WriteTransaction};
use zeroize::Zeroizing;

use super::codec::{RecordCodec, check_secret, secret_record};
use super::error::OpenError;
use super::lease::ProcessLeases;
use super::record;
use super::seal::Keyring;
use super::{Lease, Note, NoteStore, Page, SecretStore, SharedStore, StoreError, StoreFuture, StoredToken, TokenStore};
use crate::clock::Clock;
use crate::model::Name;
use crate::model::secret::Secret;
use crate::model::time::WallTime;
use crate::model::token::TokenKey;
use crate::tasks::Tasks;
use engine::{Engine, Failure, Outcome, Reopen, Request, ValueJob};
use file::{IfMissing, RecordTable, SECRETS, TOKENS, Table, seal_failed, sealed_in};
use queue::Queue;

const DAMAGED: &str = "it is in a damaged part of the store's file";

/// A store in one sealed file, which one process at a time has open.
pub struct EmbeddedStore {
    path: PathBuf,
    queue: Queue,
    codec: RecordCodec,
    leases: ProcessLeases,
}

impl EmbeddedStore {
    /// Opens the file, creating it if it does not exist. Blocks.
    pub fn open(path: &Path, keyring: Keyring, clock: Clock, tasks: &Tasks) -> Result<EmbeddedStore, OpenError> {
        let keyring = Arc::new(keyring);
        let database = file::open(path, &keyring, IfMissing::Create)?;
        let (again, keys) = (path.to_owned(), keyring.clone());
        let reopen = Box::new(move || file::open(&again, &keys, IfMissing::Fail));
        EmbeddedStore::with_engine(path, Engine::new(database, reopen as Reopen), keyring, clock, tasks)
    }

    /// Opens an existing file without changing it; writes are lost with the process. Blocks.
    pub fn open_unchanged(
        path: &Path,
        keyring: Keyring,
        clock: Clock,
        tasks: &Tasks,
    ) -> Result<EmbeddedStore, OpenError> {
        let keyring = Arc::new(keyring);
        let database = file::open_unchanged(path, &keyring)?;
        let (again, keys) = (path.to_owned(), keyring.clone());
        let reopen = Box::new(move || file::open_unchanged(&again, &keys));
        EmbeddedStore::with_engine(path, Engine::new(database, reopen as Reopen), keyring, clock, tasks)
    }

    fn with_engine(
        path: &Path,
        engine: Engine,
        keyring: Arc<Keyring>,
        clock: Clock,
        tasks: &Tasks,
    ) -> Result<EmbeddedStore, OpenError> {
        let queue = Queue::start(engine, tasks).map_err(|error| OpenError::from_io(path, error))?;
        let (path, codec) = (path.to_owned(), RecordCodec::new(keyring, clock));
        Ok(EmbeddedStore { path, queue, codec, leases: ProcessLeases::default() })
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn keyring(&self) -> &Arc<Keyring> {
        &self.codec.keyring
    }

    /// For the configuration loader, which is synchronous. Blocks.
    pub fn secret_blocking(&self, name: &str) -> Result<Option<Secret>, StoreError> {
        let key = name.as_bytes().to_vec();
        let sealed = self.read_blocking(move |transaction| get(transaction, SECRETS, &key));
        sealed?.map(|sealed| self.codec.secret(name, &sealed)).transpose()
    }

    /// Saves many tokens in one commit, without leases, into a store that is not in use yet. Blocks.
    pub fn fill(&self, tokens: &[(TokenKey, StoredToken)]) -> Result<(), StoreError> {
        let records: Vec<_> =
            tokens.iter().map(|(key, token)| (record::name_of(key), record::encode(token, self.codec.boot))).collect();
        let (keyring, wall) = (self.keyring().clone(), self.codec.wall_ms());
        self.write_blocking(move |transaction| {
            let mut table = transaction.open_table(TOKENS)?;
            records
                .iter()
                .try_for_each(|(name, text)| put(&mut table, &keyring, (TOKENS, name), wall, text).map(|_| ()))
        })
    }

    pub(super) fn read_blocking<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnMut(&ReadTransaction) -> Result<T, redb::Error> + Send + 'static,
    {
        self.or_unavailable(self.queue.send_blocking(|reply| Request::Read(ValueJob::new(work, reply))))
    }

    pub(super) fn write_blocking<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnMut(&WriteTransaction) -> Result<T, redb::Error> + Send + 'static,
    {
        self.or_unavailable(self.queue.send_blocking(|reply| Request::Write(ValueJob::new(work, reply))))
    }

    async fn read<T, F>(&self, work: F) -> Outcome<T>
    where
        T: Send + 'static,
        F: FnMut(&ReadTransaction) -> Result<T, redb::Error> + Send + 'static,
    {
        self.queue.send(|reply| Request::Read(ValueJob::new(work, reply))).await
    }

    async fn write<T, F>(&self, work: F) -> Outcome<T>
    where
        T: Send + 'static,
        F: FnMut(&WriteTransaction) -> Result<T, redb::Error> + Send + 'static,
    {
        self.queue.send(|reply| Request::Write(ValueJob::new(work, reply))).await
    }

    fn unavailable(&self, why: &str) -> StoreError {
        StoreError::Unavailable(format!("{}: {why}", self.path.display()))
    }

    /// Maps the failure of an operation that concerns no single record.
    fn or_unavailable<T>(&self, outcome: Outcome<T>) -> Result<T, StoreError> {
        outcome.map_err(|failure| match failure {
            Failure::Unavailable(why) => self.unavailable(&why),
            Failure::Damaged => self.unavailable("its file is damaged; restore a backup"),
        })
    }

    /// Maps the failure of an operation on `record`.
    fn or_damaged<T>(&self, record: impl Fn() -> String, outcome: Outcome<T>) -> Result<T, StoreError> {
        match outcome {
            Err(Failure::Damaged) => Err(StoreError::Damaged { record: record(), why: DAMAGED }),
            other => self.or_unavailable(other),
        }
    }

    async fn put(&self, table: Table, name: Vec<u8>, text: Zeroizing<Vec<u8>>) -> Outcome<u64> {
        let (keyring, wall) = (self.keyring().clone(), self.codec.wall_ms());
        self.write(move |transaction| put(&mut transaction.open_table(table)?, &keyring, (table, &name), wall, &text))
            .await
    }
}

fn get(transaction: &ReadTransaction, table: Table, name: &[u8]) -> Result<Option<Vec<u8>>, redb::Error> {
    Ok(transaction.open_table(table)?.get(name)?.map(|value| value.value().to_vec()))
}

/// Seals `text` as the next version of its record; a version is at least `wall`.
fn put(
    table: &mut RecordTable<'_>,
    keyring: &Keyring,
    (kind, name): (Table, &[u8]),
    wall: u64,
    text: &[u8],
) -> Result<u64, redb::Error> {
    let sealed_in = sealed_in(&kind, name);
    // The version of a record that does not open is not trusted.
    let before = table.get(name)?.and_then(|sealed| Some(keyring.open(sealed_in, sealed.value()).ok()?.0));
    let version = before.map_or(wall, |before| before.saturating_add(1).max(wall));
    let sealed = keyring.seal(sealed_in, version, text).map_err(seal_failed)?;
    table.insert(name, sealed.as_slice())?;
    Ok(version)
}

impl TokenStore for EmbeddedStore {
    fn load<'a>(&'a self, key: &'a TokenKey) -> StoreFuture<'a, Option<StoredToken>> {
        Box::pin(async move {
            let name = record::name_of(key);
            let sealed = self.read(move |transaction| get(transaction, TOKENS, &name)).await;
            let sealed = self.or_damaged(|| key.to_string(), sealed)?;
            sealed.map(|sealed| self.codec.token(key, &sealed)).transpose()
        })
    }

    fn lease<'a>(&'a self, key: &'a TokenKey, _: Duration, wait: Duration) -> StoreFuture<'a, Box<dyn Lease>> {
        Box::pin(self.leases.acquire(key, wait))
    }

    fn save<'a>(&'a self, key: &'a TokenKey, token: StoredToken, _lease: &'a dyn Lease) -> StoreFuture<'a, u64> {
        Box::pin(async move {
            let saved = self.put(TOKENS, record::name_of(key), record::encode(&token, self.codec.boot)).await;
            self.or_damaged(|| key.to_string(), saved)
        })
    }

    fn forget<'a>(&'a self, key: &'a TokenKey, _lease: &'a dyn Lease) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let name = record::name_of(key);
            let forgotten = self.write(move |transaction| {
                transaction.open_table(TOKENS)?.remove(name.as_slice())?;
                Ok(())
            });
            self.or_damaged(|| key.to_string(), forgotten.await)
        })
    }

    fn list<'a>(&'a self, connection: &'a Name, after: Option<&'a TokenKey>, limit: usize) -> StoreFuture<'a, Page> {
        Box::pin(async move {
            let (prefix, after) = (record::prefix_of(connection), after.map(record::name_of));
            let sealed =
                self.read(move |transaction| page::of_connection(transaction, &prefix, after.as_deref(), limit)).await;
            let opened = |(key, sealed): (TokenKey, Vec<u8>)| {
                let token = self.codec.token(&key, &sealed);
                (key, token)
            };
            Ok(self.or_unavailable(sealed)?.into_iter().map(opened).collect())
        })
    }

    fn shared(&self) -> Option<Arc<dyn SharedStore>> {
        None
    }
}

impl SecretStore for EmbeddedStore {
    fn secret<'a>(&'a self, name: &'a str) -> StoreFuture<'a, Option<Secret>> {
        Box::pin(async move {
            let key = name.as_bytes().to_vec();
            let sealed = self.read(move |transaction| get(transaction, SECRETS, &key)).await;
            let sealed = self.or_damaged(|| secret_record(name), sealed)?;
            sealed.map(|sealed| self.codec.secret(name, &sealed)).transpose()
        })
    }

    fn put_secret<'a>(&'a self, name: &'a str, secret: Secret) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            check_secret(name, &secret)?;
            let text = Zeroizing::new(secret.expose().as_bytes().to_vec());
            let put = self.put(SECRETS, name.as_bytes().to_vec(), text).await;
            self.or_damaged(|| secret_record(name), put).map(|_| ())
        })
    }

    fn remove_secret<'a>(&'a self, name: &'a str) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            let key = name.as_bytes().to_vec();
            let removed =
                self.write(move |transaction| Ok(transaction.open_table(SECRETS)?.remove(key.as_slice())?.is_some()));
            self.or_damaged(|| secret_record(name), removed.await)
        })
    }

    fn secret_names(&self) -> StoreFuture<'_, Vec<String>> {
        Box::pin(async move {
            let names = self.read(|transaction| {
                let table = transaction.open_table(SECRETS)?;
                let mut names = Vec::new();
                for item in table.iter()? {
                    names.push(String::from_utf8_lossy(item?.0.value()).into_owned());
                }
                Ok(names)
            });
            self.or_unavailable(names.await)
        })
    }
}

impl NoteStore for EmbeddedStore {
    fn note<'a>(&'a self, name: &'a str) -> StoreFuture<'a, Option<Note>> {
        Box::pin(self.load_note(name))
    }

    fn put_note<'a>(
        &'a self,
        name: &'a str,
        text: Secret,
        expires_at: WallTime,
        replaces: Option<u64>,
    ) -> StoreFuture<'a, bool> {
        Box::pin(self.save_note(name, text, expires_at, replaces))
    }

    fn note_names<'a>(&'a self, prefix: &'a str) -> StoreFuture<'a, Vec<String>> {
        Box::pin(self.live_note_names(prefix))
    }
}
