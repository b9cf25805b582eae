//! Loads the seal keys from the configuration, or from a file that is created on first use.
//!
//! Not here: sealing (`seal`).
//! Invariant: no key is created for a store that is already sealed.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use aws_lc_rs::rand;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use zeroize::Zeroizing;

use super::error::OpenError;
use super::seal::Keyring;
use crate::model::secret::SealKey;
use crate::model::{Model, StoreKind, StoreSettings};
use crate::private_file;

const KEY_FILE: &str = "seal-key";
/// Limit of the key file: a key in base64 and a newline, with room for spaces.
const KEY_FILE_BYTES_MAX: usize = 128;

/// Seals links and cookies, under the store's keys so that every replica can open them. With a memory store: under a
/// key of this process.
pub fn sealer(model: &Model) -> Result<Keyring, OpenError> {
    if !model.store.kind.is_durable() && model.store.seal_keys.is_empty() {
        return process_key();
    }
    match Keyring::from_settings(&model.store, &model.state_dir) {
        Err(OpenError::Unwritable { .. }) => process_key(),
        keyring => keyring,
    }
}

fn process_key() -> Result<Keyring, OpenError> {
    let failed = |why: &str| OpenError::Key { path: PathBuf::from("(in memory)"), why: why.to_owned() };
    let mut bytes = Zeroizing::new([0; 32]);
    rand::fill(&mut *bytes).map_err(|_| failed("no random bytes"))?;
    Keyring::new(&SealKey::new(*bytes), &[]).map_err(|error| failed(&error.to_string()))
}

impl Keyring {
    /// The configured keys, or else the key in the state directory, which is created for a new store.
    pub fn from_settings(settings: &StoreSettings, state_dir: &Path) -> Result<Keyring, OpenError> {
        let file = state_dir.join(KEY_FILE);
        let stored;
        let (first, others) = match (settings.seal_keys.split_first(), &settings.kind) {
            (Some(keys), _) => keys,
            (None, kind) => {
                let store = match kind {
                    StoreKind::Embedded { path, .. } => Some(path.as_path()),
                    StoreKind::Memory | StoreKind::Redis(_) => None,
                };
                stored = own_key(&file, store)?;
                (&stored, &[][..])
            }
        };
        Keyring::new(first, others).map_err(|error| OpenError::Key { path: file, why: error.to_string() })
    }
}

fn own_key(file: &Path, store: Option<&Path>) -> Result<SealKey, OpenError> {
    let failed = |error: io::Error| match OpenError::from_io(file, error) {
        OpenError::Io { path, source } => OpenError::Key { path, why: source.to_string() },
        unwritable => unwritable,
    };
    let parse = |text: &str| {
        let why = "it holds no key (32 bytes in base64); restore it from a backup".to_owned();
        SealKey::parse(text).ok_or(OpenError::Key { path: file.to_owned(), why })
    };
    match private_file::read(file, KEY_FILE_BYTES_MAX, "seal key") {
        Ok(text) => return parse(&text),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    if let Some(store) = store
        && store.symlink_metadata().is_ok_and(|store| store.len() > 0)
    {
        let why = format!(
            "it is missing, and {} is already sealed; restore it from a backup, set `store.seal_key`, or move the store \
             away to start with an empty one",
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
            tracing::warn!(%path, "seal key created; back it up, because tokens are lost without it, and set `store.seal_key`");
            Ok(SealKey::new(*bytes))
        }
        // Another instance created it first.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            parse(&private_file::read(file, KEY_FILE_BYTES_MAX, "seal key").map_err(failed)?)
        }
        Err(error) => Err(failed(error)),
    }
}
