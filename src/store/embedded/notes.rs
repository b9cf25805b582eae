//! Notes in the file. Each has its expiry in front of the sealed record.
//!
//! Invariants: a version is replaced once; a writer removes the expired notes of its namespace. A file of an older
//! version has no notes table until the first note is written.

use redb::ReadableTable as _;

use super::EmbeddedStore;
use super::file::{NOTES, RecordTable, existing, seal_failed, sealed_in};
use crate::model::secret::Secret;
use crate::model::time::WallTime;
use crate::store::seal::Header;
use crate::store::{LONG_NOTE, NOTE_BYTES_MAX, NOTES_PER_NAMESPACE_MAX, Note, StoreError, namespace_of};

/// Seconds since the Unix epoch at which a note expires, in front of the seal.
const EXPIRY_BYTES: usize = 8;

impl EmbeddedStore {
    pub(super) async fn load_note(&self, name: &str) -> Result<Option<Note>, StoreError> {
        let (key, wall) = (name.as_bytes().to_vec(), self.codec.wall());
        let read = self.read(move |transaction| {
            let Some(table) = existing(transaction, NOTES)? else { return Ok(None) };
            Ok(table.get(key.as_slice())?.map(|value| value.value().to_vec()))
        });
        let of_note = || format!("note {name}");
        let Some(record) = self.or_damaged(of_note, read.await)?.filter(|record| is_live(record, wall)) else {
            return Ok(None);
        };
        self.codec.note(name, record.get(EXPIRY_BYTES..).unwrap_or_default()).map(Some)
    }

    pub(super) async fn save_note(
        &self,
        name: &str,
        text: Secret,
        expires_at: WallTime,
        replaces: Option<u64>,
    ) -> Result<bool, StoreError> {
        if text.expose().len() > NOTE_BYTES_MAX {
            return Err(LONG_NOTE);
        }
        let (keyring, wall, name_bytes) = (self.keyring().clone(), self.codec.wall(), name.as_bytes().to_vec());
        let namespace = namespace_of(name).to_owned();
        let written = self.write(move |transaction| {
            let mut table = transaction.open_table(NOTES)?;
            let live = sweep(&mut table, &namespace, wall)?;
            let version_of = |record: &[u8]| Header::parse(record.get(EXPIRY_BYTES..)?).map(|header| header.version);
            let present = table.get(name_bytes.as_slice())?.and_then(|record| version_of(record.value()));
            if present != replaces {
                return Ok(false);
            }
            if present.is_none() && live.len() >= NOTES_PER_NAMESPACE_MAX {
                let first = live.into_iter().min();
                first.map(|(_, name)| table.remove(name.as_slice()).map(drop)).transpose()?;
            }
            let version = replaces.unwrap_or(0) + 1;
            let sealed =
                keyring.seal(sealed_in(&NOTES, &name_bytes), version, text.expose().as_bytes()).map_err(seal_failed)?;
            let record = [expires_at.as_secs().to_be_bytes().as_slice(), &sealed].concat();
            table.insert(name_bytes.as_slice(), record.as_slice())?;
            Ok(true)
        });
        self.or_damaged(|| format!("note {name}"), written.await)
    }

    pub(super) async fn live_note_names(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let (prefix, wall) = (prefix.to_owned(), self.codec.wall());
        let names = self.read(move |transaction| {
            let Some(table) = existing(transaction, NOTES)? else { return Ok(Vec::new()) };
            let mut names = Vec::new();
            for item in table.range(prefix.as_bytes()..)? {
                let (name, record) = item?;
                if !name.value().starts_with(prefix.as_bytes()) {
                    break;
                }
                names.extend(is_live(record.value(), wall).then(|| String::from_utf8_lossy(name.value()).into_owned()));
            }
            Ok(names)
        });
        self.or_unavailable(names.await)
    }
}

/// Removes the expired notes of a namespace; returns the others, each with its expiry.
fn sweep(table: &mut RecordTable<'_>, namespace: &str, wall: WallTime) -> Result<Vec<(u64, Vec<u8>)>, redb::Error> {
    let (mut live, mut expired) = (Vec::new(), Vec::new());
    for item in table.range(namespace.as_bytes()..)? {
        let (name, record) = item?;
        match std::str::from_utf8(name.value()) {
            Ok(name) if !name.starts_with(namespace) => break,
            Ok(name) if namespace_of(name) != namespace => {}
            _ if is_live(record.value(), wall) => live.push((expiry_of(record.value()), name.value().to_vec())),
            _ => expired.push(name.value().to_vec()),
        }
    }
    for name in expired {
        table.remove(name.as_slice())?;
    }
    Ok(live)
}

fn is_live(record: &[u8], wall: WallTime) -> bool {
    WallTime::from_secs(expiry_of(record)) > wall
}

/// Seconds since the Unix epoch; 0: not a note.
fn expiry_of(record: &[u8]) -> u64 {
    record.get(..EXPIRY_BYTES).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes)
}
