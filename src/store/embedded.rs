//! The store in one file (redb), every record sealed; one thread reads and writes it.
//!
//! Not here: the seal (`seal`), what a record says (`record`), the thread (`engine`), the file (`file`), moving
//! records between stores (`transfer`), what leaves by itself (`sweep`).
//! Holds: whoever asks waits at most [`WAIT`]; what is not sealed never leaves memory. The version of a record grows
//! with each save and follows the wall clock, so that of two copies the later one is known.

mod engine;
mod file;
mod notes;
mod page;
mod probe;
mod records;
mod sweep;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc as std_mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use redb::{ReadTransaction, ReadableTable as _, Table, WriteTransaction};
use tokio::sync::{mpsc, oneshot};
use zeroize::Zeroizing;

use super::lease::Leases;
use super::open::OpenError;
use super::record;
use super::seal::{Keyring, Place};
use super::sealed::{Sealed, check_secret, secret_record};
use super::{Lease, Note, Page, Store, StoreError, StoreFuture, StoredToken};
use crate::clock::Clock;
use crate::model::Name;
use crate::model::secret::Secret;
use crate::model::time::WallTime;
use crate::model::token::TokenKey;
use crate::tasks::Tasks;
use engine::{Ask, Engine, Failure, Opener, Outcome, Reply, Request};
use file::Missing;
pub use file::{FORMAT, NOTES, SECRETS, TOKENS, Table as TableName, put_check, unsealed};

/// How long anybody waits for the store.
pub const WAIT: Duration = Duration::from_secs(10);
/// Requests that may wait for the thread.
const QUEUE_MAX: usize = 1024;
/// Between two looks for a place in the queue.
const LOOK: Duration = Duration::from_millis(5);

const BUSY: &str = "it did not answer in time";
const ENDED: &str = "its thread has ended";
const DAMAGED: &str = "it lies in a damaged part of the store's file";

pub type Records<'txn> = Table<'txn, &'static [u8], &'static [u8]>;

pub struct EmbeddedStore {
    path: PathBuf,
    requests: Option<mpsc::Sender<Request>>,
    thread: JoinHandle<()>,
    sealed: Sealed,
    leases: Leases,
}

impl EmbeddedStore {
    /// Opens the file, which is made where there is none. Blocks.
    pub fn open(path: &Path, keyring: Keyring, clock: Clock, tasks: &Tasks) -> Result<EmbeddedStore, OpenError> {
        let keyring = Arc::new(keyring);
        let database = file::open(path, &keyring, Missing::Make)?;
        let (again, keys) = (path.to_owned(), keyring.clone());
        let opener = Box::new(move || file::open(&again, &keys, Missing::Refuse));
        EmbeddedStore::over(path, Engine::new(database, opener as Opener), keyring, clock, tasks)
    }

    /// Opens a file that is there to read it alone; what is written does not outlast the process. Blocks.
    pub fn open_unchanged(
        path: &Path,
        keyring: Keyring,
        clock: Clock,
        tasks: &Tasks,
    ) -> Result<EmbeddedStore, OpenError> {
        let keyring = Arc::new(keyring);
        let database = file::open_unchanged(path, &keyring)?;
        let (again, keys) = (path.to_owned(), keyring.clone());
        let opener = Box::new(move || file::open_unchanged(&again, &keys));
        EmbeddedStore::over(path, Engine::new(database, opener as Opener), keyring, clock, tasks)
    }

    fn over(
        path: &Path,
        engine: Engine,
        keyring: Arc<Keyring>,
        clock: Clock,
        tasks: &Tasks,
    ) -> Result<EmbeddedStore, OpenError> {
        let (requests, waiting) = mpsc::channel(QUEUE_MAX);
        let thread = tasks.thread("store".to_owned(), move || engine.run(waiting));
        let thread = thread.map_err(|error| OpenError::of_io(path, error))?;
        let (path, sealed) = (path.to_owned(), Sealed::new(keyring, clock));
        Ok(EmbeddedStore { path, requests: Some(requests), thread, sealed, leases: Leases::default() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn keyring(&self) -> &Arc<Keyring> {
        &self.sealed.keyring
    }

    /// The secret of a name, for configuration, which is read where nothing can be awaited. Waits at most [`WAIT`].
    pub fn secret_blocking(&self, name: &str) -> Result<Option<Secret>, StoreError> {
        let place = name.as_bytes().to_vec();
        let sealed = self.read_blocking(move |transaction| get(transaction, SECRETS, &place));
        sealed?.map(|sealed| self.sealed.secret(name, &sealed)).transpose()
    }

    /// Saves many tokens in one commit, without leases: for a store that nobody else uses yet. Blocks.
    pub fn fill(&self, tokens: &[(TokenKey, StoredToken)]) -> Result<(), StoreError> {
        let records: Vec<_> =
            tokens.iter().map(|(key, token)| (record::name_of(key), record::encode(token, self.sealed.boot))).collect();
        let (keyring, wall) = (self.keyring().clone(), self.sealed.wall_ms());
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
        self.ask_blocking(|reply| Request::Read(Ask::new(work, reply)))
    }

    pub(super) fn write_blocking<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnMut(&WriteTransaction) -> Result<T, redb::Error> + Send + 'static,
    {
        self.ask_blocking(|reply| Request::Write(Ask::new(work, reply)))
    }

    fn ask_blocking<T: Send + 'static>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, StoreError> {
        let deadline = Instant::now() + WAIT;
        let (reply, answer) = std_mpsc::sync_channel(1);
        let mut request = request(Reply::Thread(reply));
        loop {
            let Some(requests) = &self.requests else { return Err(self.unavailable(ENDED)) };
            match requests.try_send(request) {
                Ok(()) => break,
                Err(mpsc::error::TrySendError::Closed(_)) => return Err(self.unavailable(ENDED)),
                Err(mpsc::error::TrySendError::Full(_)) if Instant::now() > deadline => {
                    return Err(self.unavailable(BUSY));
                }
                Err(mpsc::error::TrySendError::Full(returned)) => {
                    request = returned;
                    std::thread::sleep(LOOK);
                }
            }
        }
        let outcome = answer.recv_timeout(deadline.saturating_duration_since(Instant::now()));
        self.whole(outcome.map_err(|_| Failure::Unavailable(BUSY.to_owned())).and_then(|outcome| outcome))
    }

    async fn read<T, F>(&self, work: F) -> Outcome<T>
    where
        T: Send + 'static,
        F: FnMut(&ReadTransaction) -> Result<T, redb::Error> + Send + 'static,
    {
        self.ask(|reply| Request::Read(Ask::new(work, reply))).await
    }

    async fn write<T, F>(&self, work: F) -> Outcome<T>
    where
        T: Send + 'static,
        F: FnMut(&WriteTransaction) -> Result<T, redb::Error> + Send + 'static,
    {
        self.ask(|reply| Request::Write(Ask::new(work, reply))).await
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Outcome<T> {
        let (reply, answer) = oneshot::channel();
        let request = request(Reply::Task(reply));
        let asked = async {
            self.requests.as_ref()?.send(request).await.ok()?;
            answer.await.ok()
        };
        match tokio::time::timeout(WAIT, asked).await {
            Ok(Some(outcome)) => outcome,
            Ok(None) => Err(Failure::Unavailable(ENDED.to_owned())),
            Err(_) => Err(Failure::Unavailable(BUSY.to_owned())),
        }
    }

    fn unavailable(&self, why: &str) -> StoreError {
        StoreError::Unavailable(format!("{}: {why}", self.path.display()))
    }

    /// A failure that is nobody's in particular.
    fn whole<T>(&self, outcome: Outcome<T>) -> Result<T, StoreError> {
        outcome.map_err(|failure| match failure {
            Failure::Unavailable(why) => self.unavailable(&why),
            Failure::Damaged => self.unavailable("its file is damaged; restore a backup"),
        })
    }

    /// A failure of the record `record`.
    fn of<T>(&self, record: impl Fn() -> String, outcome: Outcome<T>) -> Result<T, StoreError> {
        match outcome {
            Err(Failure::Damaged) => Err(StoreError::Damaged { record: record(), why: DAMAGED }),
            other => self.whole(other),
        }
    }

    async fn put(&self, table: TableName, name: Vec<u8>, text: Zeroizing<Vec<u8>>) -> Outcome<u64> {
        let (keyring, wall) = (self.keyring().clone(), self.sealed.wall_ms());
        self.write(move |transaction| put(&mut transaction.open_table(table)?, &keyring, (table, &name), wall, &text))
            .await
    }
}

impl Drop for EmbeddedStore {
    /// Waits, for a while, until the file is closed.
    fn drop(&mut self) {
        self.requests = None;
        let deadline = Instant::now() + WAIT;
        while !self.thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(LOOK);
        }
    }
}

fn get(transaction: &ReadTransaction, table: TableName, name: &[u8]) -> Result<Option<Vec<u8>>, redb::Error> {
    Ok(transaction.open_table(table)?.get(name)?.map(|value| value.value().to_vec()))
}

/// Seals `text` under the next version of its record, which is at least `wall`.
fn put(
    table: &mut Records<'_>,
    keyring: &Keyring,
    (own, name): (TableName, &[u8]),
    wall: u64,
    text: &[u8],
) -> Result<u64, redb::Error> {
    let place = place(&own, name);
    // A record that does not open says nothing about its version either.
    let before = table.get(name)?.and_then(|sealed| Some(keyring.open(place, sealed.value()).ok()?.0));
    let version = before.map_or(wall, |before| before.saturating_add(1).max(wall));
    let sealed = keyring.seal(place, version, text).map_err(unsealed)?;
    table.insert(name, sealed.as_slice())?;
    Ok(version)
}

/// Where the seal says that a record lies.
pub(super) fn place<'a>(table: &'a TableName, name: &'a [u8]) -> Place<'a> {
    Place { table: redb::TableHandle::name(table), name }
}

impl Store for EmbeddedStore {
    fn load<'a>(&'a self, key: &'a TokenKey) -> StoreFuture<'a, Option<StoredToken>> {
        Box::pin(async move {
            let name = record::name_of(key);
            let sealed = self.read(move |transaction| get(transaction, TOKENS, &name)).await;
            let sealed = self.of(|| key.to_string(), sealed)?;
            sealed.map(|sealed| self.sealed.token(key, &sealed)).transpose()
        })
    }

    fn lease<'a>(&'a self, key: &'a TokenKey, _: Duration, patience: Duration) -> StoreFuture<'a, Box<dyn Lease>> {
        Box::pin(self.leases.take(key, patience))
    }

    fn save<'a>(&'a self, key: &'a TokenKey, token: StoredToken, _lease: &'a dyn Lease) -> StoreFuture<'a, u64> {
        Box::pin(async move {
            let saved = self.put(TOKENS, record::name_of(key), record::encode(&token, self.sealed.boot)).await;
            self.of(|| key.to_string(), saved)
        })
    }

    fn forget<'a>(&'a self, key: &'a TokenKey, _lease: &'a dyn Lease) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let name = record::name_of(key);
            let forgotten = self.write(move |transaction| {
                transaction.open_table(TOKENS)?.remove(name.as_slice())?;
                Ok(())
            });
            self.of(|| key.to_string(), forgotten.await)
        })
    }

    fn list<'a>(&'a self, connection: &'a Name, after: Option<&'a TokenKey>, limit: usize) -> StoreFuture<'a, Page> {
        Box::pin(async move {
            let (prefix, after) = (record::prefix_of(connection), after.map(record::name_of));
            let sealed = self.read(move |transaction| page::read(transaction, &prefix, after.as_deref(), limit)).await;
            let opened = |(key, sealed): (TokenKey, Vec<u8>)| {
                let token = self.sealed.token(&key, &sealed);
                (key, token)
            };
            Ok(self.whole(sealed)?.into_iter().map(opened).collect())
        })
    }

    fn secret<'a>(&'a self, name: &'a str) -> StoreFuture<'a, Option<Secret>> {
        Box::pin(async move {
            let place = name.as_bytes().to_vec();
            let sealed = self.read(move |transaction| get(transaction, SECRETS, &place)).await;
            let sealed = self.of(|| secret_record(name), sealed)?;
            sealed.map(|sealed| self.sealed.secret(name, &sealed)).transpose()
        })
    }

    fn put_secret<'a>(&'a self, name: &'a str, secret: Secret) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            check_secret(name, &secret)?;
            let text = Zeroizing::new(secret.expose().as_bytes().to_vec());
            let put = self.put(SECRETS, name.as_bytes().to_vec(), text).await;
            self.of(|| secret_record(name), put).map(|_| ())
        })
    }

    fn remove_secret<'a>(&'a self, name: &'a str) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            let place = name.as_bytes().to_vec();
            let removed =
                self.write(move |transaction| Ok(transaction.open_table(SECRETS)?.remove(place.as_slice())?.is_some()));
            self.of(|| secret_record(name), removed.await)
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
            self.whole(names.await)
        })
    }

    fn note<'a>(&'a self, name: &'a str) -> StoreFuture<'a, Option<Note>> {
        Box::pin(self.load_note(name))
    }

    fn put_note<'a>(&'a self, name: &'a str, text: Secret, ends: WallTime, over: Option<u64>) -> StoreFuture<'a, bool> {
        Box::pin(self.save_note(name, text, ends, over))
    }

    fn note_names<'a>(&'a self, prefix: &'a str) -> StoreFuture<'a, Vec<String>> {
        Box::pin(self.names_of_notes(prefix))
    }
}
