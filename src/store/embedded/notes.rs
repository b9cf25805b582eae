//! Notes: what is kept for a while, each with its end before its seal.
//!
//! Holds: a version is written over once; whoever writes takes away what is over; a file of before gets its table then.

use std::time::Duration;

use redb::{ReadableTable as _, ReadableTableMetadata as _, TableError};

use super::{EmbeddedStore, NOTES, place};
use crate::model::secret::Secret;
use crate::store::embedded::{Failure, unsealed};
use crate::store::seal::Header;
use crate::store::{LONG_NOTE, NOTE_BYTES_MAX, NOTES_MAX, Note, StoreError, TOO_MANY_NOTES};

/// Seconds since the Unix epoch at which a note ends, before what is sealed.
const ENDS_BYTES: usize = 8;

enum Written {
    Done,
    Late,
    Full,
}

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
        ends: Duration,
        over: Option<u64>,
    ) -> Result<bool, StoreError> {
        if text.expose().len() > NOTE_BYTES_MAX {
            return Err(LONG_NOTE);
        }
        let (keyring, wall, name_bytes) = (self.keyring().clone(), self.sealed.wall(), name.as_bytes().to_vec());
        let written = self.write(move |transaction| {
            let mut table = transaction.open_table(NOTES)?;
            table.retain(|_, record: &[u8]| is_live(record, wall))?;
            let version_of = |record: &[u8]| Header::of(record.get(ENDS_BYTES..)?).map(|header| header.version);
            let present = table.get(name_bytes.as_slice())?.and_then(|record| version_of(record.value()));
            if present != over {
                return Ok(Written::Late);
            }
            if present.is_none() && table.len()? >= NOTES_MAX as u64 {
                return Ok(Written::Full);
            }
            let version = over.unwrap_or(0) + 1;
            let sealed =
                keyring.seal(place(&NOTES, &name_bytes), version, text.expose().as_bytes()).map_err(unsealed)?;
            let record = [ends.as_secs().to_be_bytes().as_slice(), &sealed].concat();
            table.insert(name_bytes.as_slice(), record.as_slice())?;
            Ok(Written::Done)
        });
        match self.of(|| format!("note {name}"), written.await)? {
            Written::Done => Ok(true),
            Written::Late => Ok(false),
            Written::Full => self.whole(Err(Failure::Unavailable(TOO_MANY_NOTES.to_owned()))),
        }
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
            for item in table.iter()? {
                let (name, record) = item?;
                let live = name.value().starts_with(prefix.as_bytes()) && is_live(record.value(), wall);
                names.extend(live.then(|| String::from_utf8_lossy(name.value()).into_owned()));
            }
            Ok(names)
        });
        self.whole(names.await)
    }
}

fn is_live(record: &[u8], wall: Duration) -> bool {
    let ends = record.get(..ENDS_BYTES).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
    ends.is_some_and(|ends| Duration::from_secs(ends) > wall)
}
