//! Notes: what is kept for a while, each with its end before its seal.
//!
//! Holds: a version is written over once; a writer removes what is over in the same share; a file of before gets
//! its table then.

use redb::{ReadableTable as _, TableError};

use super::{EmbeddedStore, NOTES, Records, place};
use crate::model::secret::Secret;
use crate::model::time::WallTime;
use crate::store::embedded::unsealed;
use crate::store::seal::Header;
use crate::store::{LONG_NOTE, NOTE_BYTES_MAX, NOTES_PER_SHARE_MAX, Note, StoreError, share_of};

/// Seconds since the Unix epoch at which a note ends, before what is sealed.
const ENDS_BYTES: usize = 8;

impl EmbeddedStore {
    pub(super) async fn load_note(&self, name: &str) -> Result<Option<Note>, StoreError> {
        let (place_of, wall) = (name.as_bytes().to_vec(), self.sealed.wall());
        let read = self.read(move |transaction| match transaction.open_table(NOTES) {
            Ok(table) => Ok(table.get(place_of.as_slice())?.map(|value| value.value().to_vec())),
            Err(TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(error.into()),
        });
        let of_note = || format!("note {name}");
        let Some(record) = self.of(of_note, read.await)?.filter(|record| is_live(record, wall)) else {
            return Ok(None);
        };
        self.sealed.note(name, record.get(ENDS_BYTES..).unwrap_or_default()).map(Some)
    }

    pub(super) async fn save_note(
        &self,
        name: &str,
        text: Secret,
        ends: WallTime,
        over: Option<u64>,
    ) -> Result<bool, StoreError> {
        if text.expose().len() > NOTE_BYTES_MAX {
            return Err(LONG_NOTE);
        }
        let (keyring, wall, name_bytes) = (self.keyring().clone(), self.sealed.wall(), name.as_bytes().to_vec());
        let share = share_of(name).to_owned();
        let written = self.write(move |transaction| {
            let mut table = transaction.open_table(NOTES)?;
            let live = sweep(&mut table, &share, wall)?;
            let version_of = |record: &[u8]| Header::of(record.get(ENDS_BYTES..)?).map(|header| header.version);
            let present = table.get(name_bytes.as_slice())?.and_then(|record| version_of(record.value()));
            if present != over {
                return Ok(false);
            }
            if present.is_none() && live.len() >= NOTES_PER_SHARE_MAX {
                let first = live.into_iter().min();
                first.map(|(_, name)| table.remove(name.as_slice()).map(drop)).transpose()?;
            }
            let version = over.unwrap_or(0) + 1;
            let sealed =
                keyring.seal(place(&NOTES, &name_bytes), version, text.expose().as_bytes()).map_err(unsealed)?;
            let record = [ends.as_secs().to_be_bytes().as_slice(), &sealed].concat();
            table.insert(name_bytes.as_slice(), record.as_slice())?;
            Ok(true)
        });
        self.of(|| format!("note {name}"), written.await)
    }

    pub(super) async fn names_of_notes(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        let (prefix, wall) = (prefix.to_owned(), self.sealed.wall());
        let names = self.read(move |transaction| {
            let table = match transaction.open_table(NOTES) {
                Ok(table) => table,
                Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
                Err(error) => return Err(error.into()),
            };
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
        self.whole(names.await)
    }
}

/// Removes the notes of a share that are over; returns the others, each with its end.
fn sweep(table: &mut Records<'_>, share: &str, wall: WallTime) -> Result<Vec<(u64, Vec<u8>)>, redb::Error> {
    let (mut live, mut over) = (Vec::new(), Vec::new());
    for item in table.range(share.as_bytes()..)? {
        let (name, record) = item?;
        match std::str::from_utf8(name.value()) {
            Ok(name) if !name.starts_with(share) => break,
            Ok(name) if share_of(name) != share => {}
            _ if is_live(record.value(), wall) => live.push((ends_of(record.value()), name.value().to_vec())),
            _ => over.push(name.value().to_vec()),
        }
    }
    for name in over {
        table.remove(name.as_slice())?;
    }
    Ok(live)
}

fn is_live(record: &[u8], wall: WallTime) -> bool {
    WallTime::from_secs(ends_of(record)) > wall
}

/// Seconds since the Unix epoch; 0 of what is no record of ours.
fn ends_of(record: &[u8]) -> u64 {
    record.get(..ENDS_BYTES).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes)
}
