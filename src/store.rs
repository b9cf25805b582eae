//! Persistent storage of tokens, secrets, notes and definitions, private to a process or shared by replicas.
//!
//! A refresh calls a store in this order: `lease`, `load` again (another holder may have refreshed the token),
//! `Lease::renew`, the token request, `save`, publish the token, `Lease::release`.
//!
//! To add a store, implement for one type:
//! - [`TokenStore`]: records of tokens, and the leases under which they are written. A store that one process uses at a
//!   time uses the leases of `lease::ProcessLeases`; a shared one implements [`Lease`] itself.
//! - [`SecretStore`], [`NoteStore`] and [`DefinitionStore`]. The four together are a [`Store`]. A store that keeps no
//!   definitions implements `definitions::KeepsNoDefinitions`.
//! - [`SharedStore`], if several processes use it at once; [`TokenStore::shared`] returns it.
//! - `transfer::Records`, for `keybearer store export`, `import` and `reseal`, if it persists records.
//!
//! `codec` seals every record that leaves the process. `opener` maps the configuration to a store. Call
//! `conformance::every_store` from the new store's tests, and `conformance::shared_store` too if it is shared.
//!
//! No trait method has a default, so an incomplete store does not compile.
//! Not here: when to refresh (`token`), which store the configuration selects (`config`).
//! Invariants: every record is sealed before it leaves memory; a record that cannot be opened affects its own key only.

mod codec;
#[cfg(test)]
mod conformance;
mod counted;
mod definitions;
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
pub use definitions::{
    Catalog, CatalogChange, DEFINITION_BYTES_MAX, DefinitionStore, KeepsNoDefinitions, Revision, StoredText,
};
pub use embedded::EmbeddedStore;
pub use error::{OpenError, StoreError};
pub use keys::sealer;
pub use memory::MemoryStore;
pub use no_store::NoStore;
pub use opener::{StoreOpener, open};
pub use redis::{RedisStore, SecretsInUse};
pub use seal::{Keyring, SealedIn};
pub use stored::{Refresh, RefreshLife, StoredToken};

pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// A complete store.
pub trait Store: TokenStore + SecretStore + NoteStore + DefinitionStore {}
impl<T: TokenStore + SecretStore + NoteStore + DefinitionStore> Store for T {}

/// Records of tokens, and the leases under which they are written.
pub trait TokenStore: Send + Sync {
    /// The record of `key`; `None` if there is none.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if this record cannot be opened; others are unaffected.
    fn load<'a>(&'a self, key: &'a TokenKey) -> StoreFuture<'a, Option<StoredToken>>;

    /// Waits at most `wait` for the lease of `key`. In a shared store it expires after `term` unless renewed.
    ///
    /// # Errors
    /// [`StoreError::LeaseTimeout`] if another holder kept the lease.
    fn lease<'a>(&'a self, key: &'a TokenKey, term: Duration, wait: Duration) -> StoreFuture<'a, Box<dyn Lease>>;

    /// Replaces the record of `key` and returns its new version, which is higher than every earlier one. Once it
    /// returns, the record survives a crash if this store survives any. `lease` is the lease of `key`.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`] if a shared store has given the lease, or a newer record, to another holder.
    fn save<'a>(&'a self, key: &'a TokenKey, token: StoredToken, lease: &'a dyn Lease) -> StoreFuture<'a, u64>;

    /// Removes the record of `key`; fails as [`TokenStore::save`] does.
    fn forget<'a>(&'a self, key: &'a TokenKey, lease: &'a dyn Lease) -> StoreFuture<'a, ()>;

    /// At most `limit` records of a connection in key order, starting after `after`.
    fn list<'a>(&'a self, connection: &'a Name, after: Option<&'a TokenKey>, limit: usize) -> StoreFuture<'a, Page>;

    /// `None`: one process at a time uses this store, so a missing record was removed on purpose.
    fn shared(&self) -> Option<Arc<dyn SharedStore>>;
}

/// Secrets that the configuration refers to as `{store: NAME}`.
pub trait SecretStore: Send + Sync {
    fn secret<'a>(&'a self, name: &'a str) -> StoreFuture<'a, Option<Secret>>;

    fn put_secret<'a>(&'a self, name: &'a str, secret: Secret) -> StoreFuture<'a, ()>;

    /// True if the secret existed.
    fn remove_secret<'a>(&'a self, name: &'a str) -> StoreFuture<'a, bool>;

    /// The names of all secrets, sorted.
    fn secret_names(&self) -> StoreFuture<'_, Vec<String>>;
}

/// Short-lived state: pending authorizations.
pub trait NoteStore: Send + Sync {
    /// The note `name`, unless it has expired.
    fn note<'a>(&'a self, name: &'a str) -> StoreFuture<'a, Option<Note>>;

    /// Compare and swap: writes the note if its current version is `replaces` (`None`: there is no note). Returns false
    /// if another writer won. In a full namespace (`namespace_of`) a new note evicts the one that expires first.
    fn put_note<'a>(
        &'a self,
        name: &'a str,
        text: Secret,
        expires_at: WallTime,
        replaces: Option<u64>,
    ) -> StoreFuture<'a, bool>;

    /// The names of all notes that start with `prefix`, sorted.
    fn note_names<'a>(&'a self, prefix: &'a str) -> StoreFuture<'a, Vec<String>>;
}

/// Operations of a store that several processes use at once, and that may lose data while they run.
pub trait SharedStore: Send + Sync {
    /// True if the record of version `after`, or a later one, was removed on purpose rather than lost.
    fn was_removed<'a>(&'a self, key: &'a TokenKey, after: u64) -> StoreFuture<'a, bool>;

    /// True if a holder announced that it would spend the refresh token ([`Lease::renew`]) and has not saved the
    /// outcome.
    fn is_in_doubt<'a>(&'a self, key: &'a TokenKey) -> StoreFuture<'a, bool>;

    /// Writes back a record that the store has lost, under its own version, unless the store has that version or a
    /// newer one, or the record was removed.
    fn restore<'a>(&'a self, key: &'a TokenKey, token: StoredToken) -> StoreFuture<'a, ()>;

    /// Succeeds if the store is reachable.
    fn check_reachable(&self) -> StoreFuture<'_, ()>;

    /// End of the last outage, in which leases and recent writes may have been lost.
    fn reconnected_at(&self) -> Option<Instant>;

    /// Subscribes to changes made by other processes.
    fn subscribe(&self) -> broadcast::Receiver<Notification>;
}

/// A change notification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notification {
    /// Another process has changed the record of this key.
    Changed(TokenKey),
    /// Another process has changed the definitions, or their store has lost some: read the catalog again.
    Definitions,
    /// Notifications may have been lost; any record, or the catalog, may have changed.
    Missed,
}

/// The exclusive right to request the token of one key. It ends when released or dropped, or when its term expires.
pub trait Lease: Send + Sync {
    /// Restarts the term; call it before each token request. `spends` announces that the refresh token in that version
    /// of the record is about to be spent.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`] if the lease has ended, or the record has changed.
    fn renew(&self, spends: Option<u64>) -> StoreFuture<'_, ()>;

    /// True if an earlier holder announced that it would spend a refresh token and has not saved the outcome.
    fn is_in_doubt(&self) -> bool;

    /// Version of the record, or of its removal, when the lease was acquired; 0: there was neither.
    fn replaces(&self) -> u64;

    /// Backoff announced by an earlier holder with [`Lease::announce_backoff`].
    fn backoff(&self) -> Option<&AnnouncedBackoff>;

    /// Announces a backoff to later holders. It ends after `backoff.wait`, or when a token is saved.
    fn announce_backoff<'a>(&'a self, backoff: &'a AnnouncedBackoff) -> StoreFuture<'a, ()>;

    /// The fencing token of the next write; `None`: no other process can hold this lease.
    fn fence(&self) -> Option<Fence>;

    /// Ends the lease. `settled`: the caller knows whether the refresh token was spent.
    fn release(self: Box<Self>, settled: bool) -> LeaseEnd;
}

pub type LeaseEnd = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A backoff that all replicas observe, because the authorization server issues no token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnnouncedBackoff {
    /// Remaining time.
    pub wait: Duration,
    /// Time since the failure.
    pub age: Duration,
    /// A permanent failure: a retry is useless until the operator changes something.
    pub permanent: bool,
    /// Consecutive failures.
    pub failures: u32,
    /// The server's error code, or our name for the failure; without spaces.
    pub error: String,
}

/// A fencing token: fails the write of a holder that has lost its lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    pub holder: String,
    pub version: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub text: Secret,
    /// Only one of several writers that replace the same version succeeds.
    pub version: u64,
}

pub const NOTES_PER_NAMESPACE_MAX: usize = 1000;
pub const NOTE_BYTES_MAX: usize = 64 * 1024;
const LONG_NOTE: StoreError = StoreError::Unsupported("a note has at most 64 KiB");

/// The namespace that the note `name` counts towards: its name up to and including the last `/`. Each namespace has its
/// own limit and evicts only its own notes.
fn namespace_of(name: &str) -> &str {
    name.rfind('/').map_or("", |at| &name[..=at])
}

/// Records with their keys.
pub type Page = Vec<(TokenKey, Result<StoredToken, StoreError>)>;
