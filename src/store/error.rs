//! Errors of store operations, and of opening a store.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::seal::KeyId;
use crate::model::token::TokenKey;

/// Why an operation failed. The caller retries, acquires the lease again, or gives up on one record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Another holder kept the lease for the whole wait. Retryable.
    #[error("timed out waiting for the lease of {key}")]
    LeaseTimeout {
        /// The token whose lease was requested.
        key: TokenKey,
    },
    /// The lease has expired, and there may be another holder.
    #[error("the lease of {key} was lost: it expired, or another replica changed the record")]
    LeaseLost {
        /// The token whose record was not written.
        key: TokenKey,
    },
    /// The whole store failed: a full disk, a missing file, no connection. Retryable.
    #[error("store unavailable: {0}")]
    Unavailable(String),
    /// One record is truncated, tampered with, or sealed under a key that is not configured.
    #[error("the record {record} cannot be opened: {why}")]
    Damaged {
        /// Its key, as text; for messages.
        record: String,
        /// Completes the sentence "the record cannot be opened: …", with the remedy if there is one.
        why: &'static str,
    },
    /// The store does not support the operation, or a value exceeds its limit. Permanent; the text is for people.
    #[error("{0}")]
    Unsupported(&'static str),
}

/// Why a store failed to open, with the remedy.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "the store {} is in use by another process; stop that process, or give this one its own `state_dir`",
        path.display()
    )]
    InUse { path: PathBuf },
    /// Permission, a read-only disk, or no directory.
    #[error(
        "the store {} cannot be written ({source}); make its directory writable for this user, or set `state_dir`",
        path.display()
    )]
    Unwritable { path: PathBuf, source: io::Error },
    #[error(
        "the store {} is sealed under the key {sealed_under}, and `store.seal_key` has {configured}; add that key to the \
         list (after a new one, until `keybearer store reseal` is done), or move the file away to start with an empty store",
        path.display(), configured = names(configured)
    )]
    WrongKey { path: PathBuf, sealed_under: KeyId, configured: Vec<KeyId> },
    #[error(
        "{} has format {found}, written by a newer version of Keybearer; use that version, or another file",
        path.display()
    )]
    NewerFormat { path: PathBuf, found: u32 },
    #[error(
        "the store {} is damaged or not a keybearer store ({why}); restore a backup, or move the file away to start with \
         an empty store",
        path.display()
    )]
    Damaged { path: PathBuf, why: String },
    #[error("the seal key {} cannot be used: {why}", path.display())]
    Key { path: PathBuf, why: String },
    #[error("the store {} cannot be opened ({source}); check its disk, or set another path", path.display())]
    Io { path: PathBuf, source: io::Error },
}

fn names(keys: &[KeyId]) -> String {
    keys.iter().map(KeyId::to_string).collect::<Vec<_>>().join(", ")
}

impl OpenError {
    pub fn from_io(path: &Path, source: io::Error) -> OpenError {
        let path = path.to_owned();
        match source.kind() {
            ErrorKind::PermissionDenied
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::NotFound
            | ErrorKind::NotADirectory => OpenError::Unwritable { path, source },
            _ => OpenError::Io { path, source },
        }
    }

    pub fn damaged(path: &Path, why: impl Into<String>) -> OpenError {
        OpenError::Damaged { path: path.to_owned(), why: why.into() }
    }
}
