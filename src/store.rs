//! Where tokens, secrets and notes outlive a request, a restart or a replica.
//!
//! A refresh calls a store in this order: `lease`, `load` again (another holder may have won), `Lease::renew`, the
//! token request, `save`, and only then is the token published; `Lease::release` ends it.
//!
//! To add a store, implement for one type:
//! - [`TokenStore`]: records of tokens, and the leases under which they are written. A store that one process uses at a
//!   time takes its leases from `lease::ProcessLeases`; a shared one implements [`Lease`] itself.
//! - [`SecretStore`] and [`NoteStore`]. The three together are a [`Store`].
//! - [`SharedStore`], if several processes use it at once; [`TokenStore::shared`] returns it.
//! - `transfer::Records`, for `keybearer store export`, `import` and `reseal`, if it outlasts the process.
//!
//! What leaves the process is sealed by `codec`. `opener` maps the configuration to a store. Then call
//! `conformance::every_store` from the new store's tests, and `conformance::shared_store` too if it is shared.
//!
//! No method has a default: whatever a store leaves out does not compile.
//! Not here: when to refresh (`token`), which store a configuration means (`config`).
//! Invariants: what leaves memory is sealed; a record that cannot be opened affects its own key alone.

mod codec;
#[cfg(test)]
mod conformance;
mod counted;
mod embedded;
mod error;
mod keys;
mod lease;
mod memory;
mod no_store;
mod opener;
mod record;
mod redis;
mod seal;
mod stored;
pub mod transfer;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast;
use tokio::time::Instant;

use crate::model::Name;
use crate::model::secret::Secret;
use crate::model::time::WallTime;
use crate::model::token::TokenKey;
pub use embedded::EmbeddedStore;
pub use error::{OpenError, StoreError};
pub use keys::sealer;
pub use memory::MemoryStore;
pub use no_store::NoStore;
pub use opener::{StoreOpener, open};
pub use redis::{RedisStore, SecretsInUse};
pub use seal::{KeyId, Keyring, SealedIn};
pub use stored::{Refresh, RefreshLife, StoredToken};

pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// What every store does.
pub trait Store: TokenStore + SecretStore + NoteStore {}
impl<T: TokenStore + SecretStore + NoteStore> Store for T {}

/// Records of tokens, and the leases under which they are written.
pub trait TokenStore: Send + Sync {
    fn load<'a>(&'a self, key: &'a TokenKey) -> StoreFuture<'a, Option<StoredToken>>;

    /// Waits at most `wait` for the lease of `key`. In a shared store it expires after `term` unless renewed.
    ///
    /// # Errors
    /// [`StoreError::LeaseTimeout`] if another holder kept it.
    fn lease<'a>(&'a self, key: &'a TokenKey, term: Duration, wait: Duration) -> StoreFuture<'a, Box<dyn Lease>>;

    /// Replaces the record of `key` and returns its new version, which is higher than every earlier one. Once it
    /// returns, the record survives a crash if this store survives any. `lease` is the lease of `key`.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`] if a shared store has given the lease, or a newer record, to another holder.
    fn save<'a>(&'a self, key: &'a TokenKey, token: StoredToken, lease: &'a dyn Lease) -> StoreFuture<'a, u64>;

    /// Removes the record of `key`, under the same terms as [`TokenStore::save`].
    fn forget<'a>(&'a self, key: &'a TokenKey, lease: &'a dyn Lease) -> StoreFuture<'a, ()>;

    /// At most `limit` records of a connection, in the order of their keys, starting after `after`.
    fn list<'a>(&'a self, connection: &'a Name, after: Option<&'a TokenKey>, limit: usize) -> StoreFuture<'a, Page>;

    /// `None`: one process at a time uses this store, so a record that is missing was removed on purpose.
    fn shared(&self) -> Option<Arc<dyn SharedStore>>;
}

/// Secrets that the configuration refers to as `{store: NAME}`.
pub trait SecretStore: Send + Sync {
    fn secret<'a>(&'a self, name: &'a str) -> StoreFuture<'a, Option<Secret>>;

    fn put_secret<'a>(&'a self, name: &'a str, secret: Secret) -> StoreFuture<'a, ()>;

    /// True if there was one.
    fn remove_secret<'a>(&'a self, name: &'a str) -> StoreFuture<'a, bool>;

    /// The names of all secrets, sorted.
    fn secret_names(&self) -> StoreFuture<'_, Vec<String>>;
}

/// Short-lived state: authorizations that wait for a person.
pub trait NoteStore: Send + Sync {
    /// The note `name`, unless it has expired.
    fn note<'a>(&'a self, name: &'a str) -> StoreFuture<'a, Option<Note>>;

    /// Compare and swap: writes a note that expires at `ends` if the present version is `over` (`None`: there is none).
    /// Returns false if another writer was faster. In a full share (`share_of`) a new note evicts the one that
    /// expires first.
    fn put_note<'a>(&'a self, name: &'a str, text: Secret, ends: WallTime, over: Option<u64>) -> StoreFuture<'a, bool>;

    /// The names of all notes that start with `prefix`, sorted.
    fn note_names<'a>(&'a self, prefix: &'a str) -> StoreFuture<'a, Vec<String>>;
}

/// What only a store does that several processes use at once, and that may lose data while they run.
pub trait SharedStore: Send + Sync {
    /// Was the record of version `after`, or a later one, removed on purpose, rather than lost?
    fn was_removed<'a>(&'a self, key: &'a TokenKey, after: u64) -> StoreFuture<'a, bool>;

    /// Has a holder announced that it would spend the refresh token ([`Lease::renew`]) without saving the outcome?
    fn is_in_doubt<'a>(&'a self, key: &'a TokenKey) -> StoreFuture<'a, bool>;

    /// Writes back, under its own version, a record that the store has lost, unless the store has one as new or the
    /// record was removed.
    fn restore<'a>(&'a self, key: &'a TokenKey, token: StoredToken) -> StoreFuture<'a, ()>;

    /// Succeeds if the store is reachable.
    fn check_reachable(&self) -> StoreFuture<'_, ()>;

    /// When the store last became reachable again after an outage, in which leases and recent writes may have been
    /// lost.
    fn reconnected_at(&self) -> Option<Instant>;

    /// Changes made by other processes from now on.
    fn news(&self) -> broadcast::Receiver<News>;
}

/// A change notification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// Another process has changed the record of this key.
    Changed(TokenKey),
    /// Notifications may have been lost; any record may have changed.
    Missed,
}

/// The exclusive right to request the token of one key. It ends when it is released or dropped, or when its term ends.
pub trait Lease: Send + Sync {
    /// Call before each token request. Restarts the term; `spends` records that the refresh token of that version of
    /// the record is about to be spent.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`] if the lease has ended, or the record has another version by now.
    fn renew(&self, spends: Option<u64>) -> StoreFuture<'_, ()>;

    /// Has an earlier holder announced that it would spend a refresh token without saving the outcome?
    fn is_in_doubt(&self) -> bool;

    /// The version of the record, or of its removal, when the lease was taken; 0: there was neither.
    fn replaces(&self) -> u64;

    /// Back-off that an earlier holder has announced with [`Lease::put_off_others`].
    fn put_off(&self) -> Option<&PutOff>;

    /// Announces a back-off to later holders. It ends after `put_off.wait`, or when a token is saved.
    fn put_off_others<'a>(&'a self, put_off: &'a PutOff) -> StoreFuture<'a, ()>;

    /// The fencing token of the next write; `None`: no other process can hold this lease.
    fn fence(&self) -> Option<Fence>;

    /// Ends the lease. `settled`: it is known whether the refresh token was spent.
    fn release(self: Box<Self>, settled: bool) -> LeaseEnd;
}

pub type LeaseEnd = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A back-off that all replicas keep: the authorization server gives no token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PutOff {
    /// How much longer it lasts.
    pub wait: Duration,
    /// Time since the failure.
    pub age: Duration,
    /// A permanent failure: asking again is useless until the operator changes something.
    pub permanent: bool,
    /// Consecutive failures.
    pub failures: u32,
    /// The server's error code, or our word for the failure; without spaces.
    pub error: String,
}

/// A fencing token: makes the write of a holder fail that has lost its lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    pub holder: String,
    pub version: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub text: Secret,
    /// Of several writers that replace one version, one succeeds.
    pub version: u64,
}

pub const NOTES_PER_SHARE_MAX: usize = 1000;
pub const NOTE_BYTES_MAX: usize = 64 * 1024;
const LONG_NOTE: StoreError = StoreError::Unsupported("a note has at most 64 KiB");

/// The group of notes that `name` counts towards: its name up to the last `/`, inclusive. A full share never evicts
/// notes of another one.
fn share_of(name: &str) -> &str {
    name.rfind('/').map_or("", |at| &name[..=at])
}

/// Records with their keys.
pub type Page = Vec<(TokenKey, Result<StoredToken, StoreError>)>;
