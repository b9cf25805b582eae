//! From settings to a store: which one, under which keys; and why it cannot be opened.
//!
//! Not here: the file itself (`embedded`).
//! Holds: a key of our own is made once, in a file that is nobody else's, and never for a store that has one already.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::rand;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use zeroize::Zeroizing;

use super::counted::Counted;
use super::seal::{KeyId, Keyring};
use super::{Keeper, MemoryStore, Store};
use crate::model::secret::SealKey;
use crate::model::{Model, StoreKind, StoreSettings};
use crate::private_file;
use crate::telemetry::metrics::Metrics;

const KEY_FILE: &str = "seal-key";
/// A key in base64 and a line's end, with room for blanks.
const KEY_FILE_BYTES_MAX: usize = 128;

/// Why a store cannot be opened, and the way out.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "the store {} is in use by another process; stop that one, or give this one a `state_dir` of its own",
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
        "the store {} is sealed under the key {sealed_under}, and `store.seal_key` has {}; add that key to the list \
         (after a new one, until `keybearer store reseal` is done), or move the file away to begin anew",
        path.display(), names(at_hand)
    )]
    WrongKey { path: PathBuf, sealed_under: KeyId, at_hand: Vec<KeyId> },
    #[error(
        "{} has the format {found}, which a newer keybearer wrote; use that version, or another file",
        path.display()
    )]
    NewerFormat { path: PathBuf, found: u32 },
    #[error(
        "the store {} is damaged or no store of keybearer ({why}); restore a backup, or move it away to begin anew",
        path.display()
    )]
    Damaged { path: PathBuf, why: String },
    #[error("the seal key {} cannot be used: {why}", path.display())]
    Key { path: PathBuf, why: String },
    #[error("the store {} cannot be opened ({source}); see to its disk, or give another path", path.display())]
    Io { path: PathBuf, source: io::Error },
}

fn names(keys: &[KeyId]) -> String {
    keys.iter().map(KeyId::to_string).collect::<Vec<_>>().join(", ")
}

impl OpenError {
    pub fn of_io(path: &Path, source: io::Error) -> OpenError {
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

/// Opens the store that a configuration means; its operations are counted. A file gives way to memory, with a warning, where
/// nothing can be written and no connection needs a person.
pub fn open(model: &Model, keeper: &Keeper, metrics: &Metrics) -> Result<Arc<dyn Store>, OpenError> {
    let person = model.connections.iter().any(|connection| connection.needs_person());
    let store: Arc<dyn Store> = match &model.store.kind {
        StoreKind::Memory => Arc::new(MemoryStore::default()),
        StoreKind::Embedded { path } => match keeper.open(path, &model.store, &model.state_dir) {
            Ok(store) => {
                store.sweep(keeper.tasks());
                store
            }
            Err(error @ OpenError::Unwritable { .. }) if !person => {
                tracing::warn!(%error, "tokens are kept in memory only and will not outlast this process");
                Arc::new(MemoryStore::default())
            }
            Err(error) => return Err(error),
        },
        StoreKind::Redis(redis) => {
            let store = keeper.redis(redis, &model.store, &model.state_dir)?;
            store.follow(keeper.tasks());
            store
        }
    };
    Ok(Arc::new(Counted::new(store, metrics)))
}

/// What is handed out and comes back is sealed with the store's keys, so that every replica opens it; where there are
/// none, with a key that lasts as long as the process.
pub fn sealer(model: &Model) -> Result<Keyring, OpenError> {
    if !model.store.kind.is_durable() && model.store.seal_keys.is_empty() {
        return passing_key();
    }
    match Keyring::of(&model.store, &model.state_dir) {
        Err(OpenError::Unwritable { .. }) => passing_key(),
        keyring => keyring,
    }
}

fn passing_key() -> Result<Keyring, OpenError> {
    let failed = |why: &str| OpenError::Key { path: PathBuf::from("(in memory)"), why: why.to_owned() };
    let mut bytes = Zeroizing::new([0; 32]);
    rand::fill(&mut *bytes).map_err(|_| failed("no random bytes"))?;
    Keyring::new(&SealKey::new(*bytes), &[]).map_err(|error| failed(&error.to_string()))
}

impl Keyring {
    /// The configured keys; where there are none, the one in the state directory, which is made for a store that is new.
    pub fn of(settings: &StoreSettings, state_dir: &Path) -> Result<Keyring, OpenError> {
        let file = state_dir.join(KEY_FILE);
        let made;
        let (first, others) = match (settings.seal_keys.split_first(), &settings.kind) {
            (Some(keys), _) => keys,
            (None, kind) => {
                let store = match kind {
                    StoreKind::Embedded { path, .. } => Some(path.as_path()),
                    StoreKind::Memory | StoreKind::Redis(_) => None,
                };
                made = own_key(&file, store)?;
                (&made, &[][..])
            }
        };
        Keyring::new(first, others).map_err(|error| OpenError::Key { path: file, why: error.to_string() })
    }
}

fn own_key(file: &Path, store: Option<&Path>) -> Result<SealKey, OpenError> {
    let failed = |error: io::Error| match OpenError::of_io(file, error) {
        OpenError::Io { path, source } => OpenError::Key { path, why: source.to_string() },
        unwritable => unwritable,
    };
    let is_key = |text: &str| {
        let why = "it holds no key (32 bytes in base64); restore it from your backup".to_owned();
        SealKey::parse(text).ok_or(OpenError::Key { path: file.to_owned(), why })
    };
    match private_file::read(file, KEY_FILE_BYTES_MAX, "seal key") {
        Ok(text) => return is_key(&text),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    if let Some(store) = store
        && store.symlink_metadata().is_ok_and(|store| store.len() > 0)
    {
        let why = format!(
            "it is missing, and {} is sealed already; restore it from your backup, set `store.seal_key`, or move the \
             store away to begin anew",
            store.display()
        );
        return Err(OpenError::Key { path: file.to_owned(), why });
    }
    private_file::make_directory_of(file).map_err(failed)?;
    let mut bytes = Zeroizing::new([0; 32]);
    rand::fill(&mut *bytes).map_err(|_| failed(io::Error::other("no random bytes")))?;
    let text = Zeroizing::new(BASE64_STANDARD.encode(*bytes));
    match private_file::create(file, &text) {
        Ok(()) => {
            let path = file.display();
            tracing::warn!(%path, "a seal key was made; back it up, for tokens are lost without it, and configure `store.seal_key`");
            Ok(SealKey::new(*bytes))
        }
        // Another instance was quicker.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            is_key(&private_file::read(file, KEY_FILE_BYTES_MAX, "seal key").map_err(failed)?)
        }
        Err(error) => Err(failed(error)),
    }
}
