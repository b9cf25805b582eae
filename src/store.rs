//! Where tokens are kept between requests, restarts and replicas.
//!
//! The order that every caller keeps: take the lease, read again, ask the server, save, publish.
//! Not here: when to ask (`token`), which store a configuration means (`config`).
//! Holds: what leaves memory is sealed; a record that cannot be opened is the problem of its key alone.

mod counted;
mod embedded;
mod keeper;
mod lease;
mod memory;
mod open;
mod record;
mod redis;
mod seal;
mod sealed;
pub mod transfer;
mod unkept;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast;
use tokio::time::Instant;

use crate::clock::Now;
use crate::model::Name;
use crate::model::connection::{Connection, Identity, OriginSet};
use crate::model::secret::Secret;
use crate::model::time::WallTime;
use crate::model::token::{AccessToken, RefreshToken, TokenKey};
pub use counted::Counted;
pub use embedded::EmbeddedStore;
pub use keeper::Keeper;
pub use memory::MemoryStore;
pub use open::{OpenError, open, sealer};
pub use redis::{Lent, RedisStore};
pub use seal::{KeyId, Keyring, Place as SealedIn};
pub use unkept::Unkept;

pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// What is kept of one token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredToken {
    /// What it was granted for; under another identity it is nobody's.
    pub identity: Identity,
    /// Where it may go.
    pub origins: Arc<OriginSet>,
    pub access_token: AccessToken,
    /// When the request that obtained it left.
    pub obtained: Now,
    pub lifetime: Duration,
    /// Scopes as granted; `None`: as requested.
    pub scopes: Option<Vec<String>>,
    pub refresh: Refresh,
    pub refresh_life: RefreshLife,
    /// Which save it came from: later ones have higher numbers. Of a token that was not saved: that of the record, or of the
    /// removal, which it is to replace, 0 for neither.
    pub version: u64,
}

impl StoredToken {
    /// Was it granted for this definition of the connection?
    pub fn is_of(&self, connection: &Connection) -> bool {
        self.identity == connection.identity() && self.origins.covers(&connection.origins())
    }

    /// A refresh has left its refresh token as it was, so the server does not rotate.
    pub fn outlasts_refreshes(&self) -> bool {
        self.refresh_life.since.is_some_and(|since| since < self.obtained.wall)
    }

    /// Is it an access token alone, which is over by both clocks? A refresh token ends with the server's refusal, whatever
    /// was said of its life.
    pub fn has_ended(&self, now: Now) -> bool {
        let end = self.obtained.plus(self.lifetime);
        self.refresh == Refresh::None && now.boot >= end.boot && now.wall >= end.wall
    }
}

/// How long the refresh token is good for, as far as anybody has said: a forecast, on which nothing is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RefreshLife {
    /// When the request that brought it left; `None`: unknown. A response that repeats the token changes nothing.
    pub since: Option<WallTime>,
    /// As the answer stated it.
    pub stated: Option<Duration>,
}

/// How the next token is obtained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refresh {
    /// The server gave no refresh token.
    None,
    Token(RefreshToken),
    /// The server refused the refresh token with this code: it is never sent again.
    Refused {
        error: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    #[error("another holder kept the lease of {key} for too long")]
    LeaseTimeout { key: TokenKey },
    /// It has lapsed, and another holder may have come.
    #[error("the lease of {key} was held for too long, and is lost")]
    LeaseLost { key: TokenKey },
    /// The store as a whole: a full disk, a file that went away. It may pass.
    #[error("the store cannot be used: {0}")]
    Unavailable(String),
    /// One record: torn, tampered with, or sealed under a key that is not at hand.
    #[error("the record {record} cannot be opened: {why}")]
    Damaged { record: String, why: &'static str },
    #[error("{0}")]
    Unsupported(&'static str),
}

/// The right to ask the server for one token; it ends when released or dropped, or with its term.
pub trait Lease: Send + Sync {
    /// To be called before each token request: begins the term anew, and notes that the refresh token of a record's version
    /// is about to be spent.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`] if it has ended, or the record is of another version meanwhile.
    fn renew(&self, spends: Option<u64>) -> StoreFuture<'_, ()> {
        let _ = spends;
        Box::pin(async { Ok(()) })
    }

    /// An earlier holder was about to spend a refresh token, and has not saved what came of it.
    fn is_in_doubt(&self) -> bool {
        false
    }

    /// The version of the record that lay there, or of its removal, when the lease was taken; 0: neither.
    fn replaces(&self) -> u64 {
        0
    }

    /// What an earlier holder was told by the server, if nobody is to ask it yet.
    fn put_off(&self) -> Option<&PutOff> {
        None
    }

    /// Tells those who take the lease next, until a token is saved or `put_off.wait` is over.
    fn put_off_others<'a>(&'a self, put_off: &'a PutOff) -> StoreFuture<'a, ()> {
        let _ = put_off;
        Box::pin(async { Ok(()) })
    }

    /// What distinguishes this holder, and the version that its next save gets: in a store that several processes share.
    fn fence(&self) -> Option<Fence> {
        None
    }

    /// Gives it back. `settled`: what became of the refresh token that was spent is known.
    fn release(self: Box<Self>, settled: bool) -> LeaseEnd {
        let _ = settled;
        Box::pin(async {})
    }
}

pub type LeaseEnd = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The server gives no token, which holds for all who would ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PutOff {
    /// From now on.
    pub wait: Duration,
    /// How long ago it said so.
    pub age: Duration,
    /// Asking again is of no use before somebody has changed something.
    pub permanent: bool,
    /// In a row.
    pub failures: u32,
    /// The server's code, or our word for what went wrong; one word.
    pub error: String,
}

/// What a write shows, so that nobody writes who has lost the lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    pub holder: String,
    pub version: u64,
}

/// What another process has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    Changed(TokenKey),
    /// Something may have been missed.
    Missed,
}

pub trait Store: Send + Sync {
    fn load<'a>(&'a self, key: &'a TokenKey) -> StoreFuture<'a, Option<StoredToken>>;

    /// Waits at most `patience` for the lease of `key`, which then lasts for `term` at most where several processes share
    /// the store.
    fn lease<'a>(&'a self, key: &'a TokenKey, term: Duration, patience: Duration) -> StoreFuture<'a, Box<dyn Lease>>;

    /// Replaces what is kept under `key` and tells the new version; on success it outlasts a crash, as far as this store
    /// outlasts any. Only a holder of its lease may save.
    fn save<'a>(&'a self, key: &'a TokenKey, token: StoredToken, lease: &'a dyn Lease) -> StoreFuture<'a, u64>;

    /// Removes what is kept under `key`. Only a holder of its lease may.
    fn forget<'a>(&'a self, key: &'a TokenKey, lease: &'a dyn Lease) -> StoreFuture<'a, ()>;

    /// At most `limit` records of a connection in the order of their keys, from the first after `after`.
    fn list<'a>(&'a self, connection: &'a Name, after: Option<&'a TokenKey>, limit: usize) -> StoreFuture<'a, Page>;

    /// The secret that `{store: NAME}` means.
    fn secret<'a>(&'a self, name: &'a str) -> StoreFuture<'a, Option<Secret>>;

    fn put_secret<'a>(&'a self, name: &'a str, secret: Secret) -> StoreFuture<'a, ()>;

    /// True if there was one.
    fn remove_secret<'a>(&'a self, name: &'a str) -> StoreFuture<'a, bool>;

    /// The names of all secrets, in order.
    fn secret_names(&self) -> StoreFuture<'_, Vec<String>>;

    /// What was noted under `name`, unless its time is over.
    fn note<'a>(&'a self, name: &'a str) -> StoreFuture<'a, Option<Note>>;

    /// Notes something until `ends` in place of the version `over`, or where nothing is noted;
    /// false: another writer was quicker. In a full share ([`share_of`]) the note that ends first is dropped for a new one.
    fn put_note<'a>(&'a self, name: &'a str, text: Secret, ends: WallTime, over: Option<u64>) -> StoreFuture<'a, bool>;

    /// Was the record of version `after`, or a later one, removed on purpose, rather than lost?
    fn was_removed<'a>(&'a self, key: &'a TokenKey, after: u64) -> StoreFuture<'a, bool> {
        let _ = (key, after);
        Box::pin(async { Ok(true) })
    }

    /// Was somebody about to spend the refresh token, who has not saved what came of it?
    fn is_in_doubt<'a>(&'a self, key: &'a TokenKey) -> StoreFuture<'a, bool> {
        let _ = key;
        Box::pin(async { Ok(false) })
    }

    /// Writes back, under its own version, what the store has lost, unless something as new is there or it was removed.
    fn restore<'a>(&'a self, key: &'a TokenKey, token: StoredToken) -> StoreFuture<'a, ()> {
        let _ = (key, token);
        Box::pin(async { Ok(()) })
    }

    /// Can it be used?
    fn stands(&self) -> StoreFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    /// When it was last found again after it had been out of reach: leases and the last writes may have been lost before.
    fn shaken(&self) -> Option<Instant> {
        None
    }

    /// What other processes change from here on; `None`: there are no others.
    fn news(&self) -> Option<broadcast::Receiver<News>> {
        None
    }

    /// The names of all notes that begin so, in order.
    fn note_names<'a>(&'a self, prefix: &'a str) -> StoreFuture<'a, Vec<String>>;
}

/// What is kept for a while: an authorization that waits for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub text: Secret,
    /// Of several that wrote over one version, one alone succeeds.
    pub version: u64,
}

/// Notes in one share.
pub const NOTES_PER_SHARE_MAX: usize = 1000;
/// Longest note, in bytes.
pub const NOTE_BYTES_MAX: usize = 64 * 1024;
const LONG_NOTE: StoreError = StoreError::Unsupported("a note has at most 64 KiB");

/// The part of a note's name that bounds it: up to its last `/`, inclusive. A full share never affects another one.
fn share_of(name: &str) -> &str {
    name.rfind('/').map_or("", |at| &name[..=at])
}

/// Records with their keys.
pub type Page = Vec<(TokenKey, Result<StoredToken, StoreError>)>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    /// What each kind of store has to do when more notes are made in one share than it may hold.
    pub async fn fill_a_share(store: &dyn Store) {
        let ends = Clock::system().now().wall + Duration::from_secs(600);
        let put = async |name: String, at: usize| {
            let ends = ends + Duration::from_secs(at as u64);
            store.put_note(&name, Secret::new("text"), ends, None).await
        };
        for name in ["flow/other/1", "flow/2"] {
            assert_eq!(put(name.to_owned(), 0).await, Ok(true));
        }
        for at in 0..NOTES_PER_SHARE_MAX + 2 {
            assert_eq!(put(format!("flow/full/{at}"), at).await, Ok(true), "{at}");
        }
        let names = store.note_names("flow/").await.unwrap();
        assert_eq!(names.len(), NOTES_PER_SHARE_MAX + 2);
        for (name, kept) in [("full/0", false), ("full/1", false), ("full/2", true), ("other/1", true), ("2", true)] {
            let name = format!("flow/{name}");
            assert_eq!((names.contains(&name), store.note(&name).await.unwrap().is_some()), (kept, kept), "{name}");
        }
        assert_eq!(store.note_names("flow/o").await.unwrap(), ["flow/other/1"]);
    }
}
