//! Seals and opens tokens, secrets, notes and definitions for any store, with its keys and clock.
//!
//! Not here: the bytes of a token's record (`record`), the cipher (`seal`).
//! Invariant: a record is sealed for the same table and name in every store, so that it can move between them.

use std::sync::Arc;

use super::record::{self, Boot};
use super::seal::{Header, Keyring, SealedIn, UnsealError};
use super::transfer::{OpenedRecord, Table};
use super::{Catalog, Note, StoreError, StoredToken, definitions};
use crate::clock::Clock;
use crate::model::secret::Secret;
use crate::model::time::WallTime;
use crate::model::token::TokenKey;

const TOKENS: &str = "tokens";
const SECRETS: &str = "secrets";
const NOTES: &str = "notes";

const SECRET_BYTES_MAX: usize = 64 * 1024;
const SECRET_NAME_BYTES_MAX: usize = 512;

pub struct RecordCodec {
    pub keyring: Arc<Keyring>,
    pub clock: Clock,
    pub boot: Boot,
}

impl RecordCodec {
    pub fn new(keyring: Arc<Keyring>, clock: Clock) -> RecordCodec {
        RecordCodec { keyring, clock, boot: Boot::present() }
    }

    pub fn wall(&self) -> WallTime {
        self.clock.now().wall
    }

    /// Milliseconds since the Unix epoch.
    pub fn wall_ms(&self) -> u64 {
        self.wall().as_millis()
    }

    pub fn token(&self, key: &TokenKey, sealed: &[u8]) -> Result<StoredToken, StoreError> {
        let damaged = |why| StoreError::Damaged { record: key.to_string(), why };
        let sealed_in = SealedIn { table: TOKENS, name: &record::name_of(key) };
        let (version, text) = self.keyring.open(sealed_in, sealed).map_err(|error| damaged(error.why()))?;
        let token = record::decode(&text, self.boot, self.clock.now());
        token.map(|token| StoredToken { version, ..token }).ok_or_else(|| damaged(UnsealError::Changed.why()))
    }

    pub fn seal_token(&self, key: &TokenKey, token: &StoredToken, version: u64) -> Result<Vec<u8>, StoreError> {
        let sealed_in = SealedIn { table: TOKENS, name: &record::name_of(key) };
        self.seal(sealed_in, version, &record::encode(token, self.boot))
    }

    pub fn secret(&self, name: &str, sealed: &[u8]) -> Result<Secret, StoreError> {
        let record = || secret_record(name);
        Ok(self.text(SealedIn { table: SECRETS, name: name.as_bytes() }, record, sealed)?.1)
    }

    pub fn seal_secret(&self, name: &str, version: u64, secret: &Secret) -> Result<Vec<u8>, StoreError> {
        self.seal(SealedIn { table: SECRETS, name: name.as_bytes() }, version, secret.expose().as_bytes())
    }

    pub fn note(&self, name: &str, sealed: &[u8]) -> Result<Note, StoreError> {
        let record = || format!("note {name}");
        let (version, text) = self.text(SealedIn { table: NOTES, name: name.as_bytes() }, record, sealed)?;
        Ok(Note { text, version })
    }

    pub fn seal_note(&self, name: &str, version: u64, text: &Secret) -> Result<Vec<u8>, StoreError> {
        self.seal(SealedIn { table: NOTES, name: name.as_bytes() }, version, text.expose().as_bytes())
    }

    /// `None`: there never was a catalog.
    pub fn catalog(&self, sealed: Option<&[u8]>) -> Result<Catalog, StoreError> {
        let Some(sealed) = sealed else { return Ok(Catalog::default()) };
        let damaged = |why| StoreError::Damaged { record: definitions::CATALOG.to_owned(), why };
        let sealed_in = Table::Catalog.sealed_in(definitions::CATALOG.as_bytes());
        let (generation, text) = self.keyring.open(sealed_in, sealed).map_err(|error| damaged(error.why()))?;
        definitions::decode(generation, &text).ok_or_else(|| damaged(UnsealError::Changed.why()))
    }

    pub fn seal_catalog(&self, catalog: &Catalog) -> Result<Vec<u8>, StoreError> {
        let sealed_in = Table::Catalog.sealed_in(definitions::CATALOG.as_bytes());
        self.seal(sealed_in, catalog.generation, &definitions::encode(catalog))
    }

    /// The text of the definition whose record is called `name`.
    pub fn definition(&self, name: &str, sealed: &[u8]) -> Result<Secret, StoreError> {
        let record = || definition_record(name);
        Ok(self.text(Table::Definitions.sealed_in(name.as_bytes()), record, sealed)?.1)
    }

    pub fn seal_record(&self, record: &OpenedRecord) -> Result<Vec<u8>, StoreError> {
        self.seal(record.table.sealed_in(&record.name), record.version, &record.text)
    }

    /// The record sealed under the first key; `None`: it is already, or it does not open.
    pub fn resealed(&self, table: Table, name: &[u8], sealed: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let sealed_in = table.sealed_in(name);
        if Header::parse(sealed).is_some_and(|header| header.key == self.keyring.sealing()) {
            return Ok(None);
        }
        let Ok((version, text)) = self.keyring.open(sealed_in, sealed) else { return Ok(None) };
        self.seal(sealed_in, version, &text).map(Some)
    }

    fn seal(&self, sealed_in: SealedIn<'_>, version: u64, text: &[u8]) -> Result<Vec<u8>, StoreError> {
        self.keyring.seal(sealed_in, version, text).map_err(|error| StoreError::Unavailable(error.to_string()))
    }

    fn text(
        &self,
        sealed_in: SealedIn<'_>,
        record: impl Fn() -> String,
        sealed: &[u8],
    ) -> Result<(u64, Secret), StoreError> {
        let damaged = |why| StoreError::Damaged { record: record(), why };
        let (version, text) = self.keyring.open(sealed_in, sealed).map_err(|error| damaged(error.why()))?;
        let text = std::str::from_utf8(&text).map_err(|_| damaged(UnsealError::Changed.why()))?;
        Ok((version, Secret::new(text)))
    }
}

/// Names a secret's record in errors and logs.
pub fn secret_record(name: &str) -> String {
    format!("secret {name}")
}

/// Names a definition's record in errors and logs.
pub fn definition_record(name: &str) -> String {
    format!("definition {name}")
}

/// # Errors
/// [`StoreError::Unsupported`] if the name or the secret is too long.
pub fn check_secret(name: &str, secret: &Secret) -> Result<(), StoreError> {
    if name.is_empty() || name.len() > SECRET_NAME_BYTES_MAX || secret.expose().len() > SECRET_BYTES_MAX {
        return Err(StoreError::Unsupported("a secret has at most 64 KiB, and its name 1 to 512 bytes"));
    }
    Ok(())
}
