//! All records of a store at once: to a file, from a file, and under another key.
//!
//! An export is JSON lines: a header with format, key ids and count, then a record a line, sealed as it lies in the store.
//! Not here: the seal (`seal`), arguments and what is printed (`cli`).
//! Holds: page by page, in constant memory; nothing is ever written in the clear; an export is whole or is refused before
//! anything is written.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Read as _, Write};
use std::ops::Bound;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use redb::{ReadableTable, ReadableTableMetadata as _, TableHandle as _};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::StoreError;
use super::embedded::{EmbeddedStore, FORMAT, SECRETS, TOKENS, TableName, place, put_check, unsealed};
use super::seal::{Header, KeyId};
use crate::private_file;

/// Records that are held in memory and committed together.
const PAGE: usize = 256;
/// Longest line of an export, in bytes.
const LINE_BYTES_MAX: u64 = 1 << 20;
const TABLES: [TableName; 2] = [TOKENS, SECRETS];

/// Called with how many are done, of how many.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// What became of the records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Done {
    pub written: u64,
    /// Left as they were, since there was nothing to do.
    pub kept: u64,
    /// Left as they were, since they do not open.
    pub unopened: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{} cannot be read or written: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{}, line {line}: {why}", path.display())]
    Line { path: PathBuf, line: u64, why: &'static str },
    #[error("{} has the format {found}, which a newer keybearer wrote; use that version", path.display())]
    NewerFormat { path: PathBuf, found: u32 },
    #[error(
        "{} is sealed under {sealed_under}, and the store has {at_hand}; add a key of the export behind the first in \
         `store.seal_key`",
        path.display()
    )]
    WrongKey { path: PathBuf, sealed_under: String, at_hand: String },
    #[error("{} has {found} of {expected} records; it was cut off or changed", path.display())]
    Incomplete { path: PathBuf, expected: u64, found: u64 },
    #[error(
        "{} records do not open and were left out; {} were written and {} left as they were",
        .0.unopened, .0.written, .0.kept
    )]
    Unopened(Done),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    keybearer_store: u32,
    key_ids: BTreeSet<String>,
    count: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    table: String,
    name: String,
    record: String,
}

/// A name and a sealed record.
type Sealed = (Vec<u8>, Vec<u8>);
/// The same with its table.
type Placed = (TableName, Vec<u8>, Vec<u8>);

/// Writes every record to a new file, which takes the place of one that is there.
pub fn export(store: &EmbeddedStore, to: &Path, progress: Progress<'_>) -> Result<u64, TransferError> {
    let failed = |source| TransferError::File { path: to.to_owned(), source };
    let mut head = Head { keybearer_store: FORMAT, key_ids: BTreeSet::new(), count: 0 };
    every(store, |_, (_, record)| {
        head.count += 1;
        head.key_ids.extend(Header::of(&record).map(|header| header.key.to_string()));
        Ok(())
    })?;
    let beside = beside(to);
    let written = (|| {
        let mut out = BufWriter::new(private_file::create_empty(&beside).map_err(failed)?);
        line(&mut out, &head).map_err(failed)?;
        let mut done = 0;
        every(store, |table, (name, record)| {
            let [name, record] = [name, record].map(|bytes| BASE64_STANDARD.encode(bytes));
            line(&mut out, &Line { table: table.name().to_owned(), name, record }).map_err(failed)?;
            done += 1;
            if done % PAGE as u64 == 0 || done == head.count {
                progress(done, head.count);
            }
            Ok(())
        })?;
        if done != head.count {
            return Err(TransferError::Incomplete { path: to.to_owned(), expected: head.count, found: done });
        }
        out.into_inner().map_err(|error| failed(error.into_error()))?.sync_all().map_err(failed)?;
        std::fs::rename(&beside, to).and_then(|()| private_file::sync_directory_of(to)).map_err(failed)
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    written.map(|()| head.count)
}

/// A name in the same directory that nobody has.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{:016x}", fastrand::u64(..)));
    path.with_file_name(name)
}

fn line(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    out.write_all(b"\n")
}

/// Visits every record of the store, in the order of tables and names.
fn every(
    store: &EmbeddedStore,
    mut visit: impl FnMut(&TableName, Sealed) -> Result<(), TransferError>,
) -> Result<(), TransferError> {
    for table in TABLES {
        let mut after: Option<Vec<u8>> = None;
        loop {
            let from = after.clone();
            let page = store.read_blocking(move |tx| page(&tx.open_table(table)?, from.as_deref()))?;
            let Some((last, _)) = page.last() else { break };
            after = Some(last.clone());
            page.into_iter().try_for_each(|record| visit(&table, record))?;
        }
    }
    Ok(())
}

fn page(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    after: Option<&[u8]>,
) -> Result<Vec<Sealed>, redb::Error> {
    let from = after.map_or(Bound::Unbounded, Bound::Excluded);
    let records = table.range::<&[u8]>((from, Bound::Unbounded))?.take(PAGE);
    records
        .map(|record| {
            let (name, sealed) = record?;
            Ok((name.value().to_vec(), sealed.value().to_vec()))
        })
        .collect()
}

/// Takes the records of an export over, sealed under the store's first key. One that is there stays, unless the export's
/// is newer, or `overwrite`.
pub fn import(
    store: &EmbeddedStore,
    from: &Path,
    overwrite: bool,
    progress: Progress<'_>,
) -> Result<Done, TransferError> {
    let total = survey(store, from)?;
    let (_, mut lines) = Lines::open(from)?;
    let (mut done, mut read) = (Done::default(), 0);
    loop {
        let mut page: Vec<Opened> = Vec::new();
        while page.len() < PAGE
            && let Some((table, name, sealed)) = lines.next()?
        {
            read += 1;
            match store.keyring().open(place(&table, &name), &sealed) {
                Ok((version, text)) => page.push(Opened { table, name, version, text }),
                Err(_) => done.unopened += 1,
            }
        }
        if page.is_empty() {
            break;
        }
        let (written, kept) = put(store, page, overwrite)?;
        done = Done { written: done.written + written, kept: done.kept + kept, ..done };
        progress(read, total);
    }
    if done.unopened > 0 { Err(TransferError::Unopened(done)) } else { Ok(done) }
}

/// How many records an export has, if it is whole and some key of it is at hand.
fn survey(store: &EmbeddedStore, from: &Path) -> Result<u64, TransferError> {
    let (head, mut lines) = Lines::open(from)?;
    let mut found = 0;
    while lines.next()?.is_some() {
        found += 1;
    }
    if found != head.count {
        return Err(TransferError::Incomplete { path: from.to_owned(), expected: head.count, found });
    }
    let at_hand: Vec<String> = store.keyring().ids().map(|id: KeyId| id.to_string()).collect();
    if found > 0 && !at_hand.iter().any(|id| head.key_ids.contains(id)) {
        let sealed_under = head.key_ids.into_iter().collect::<Vec<_>>().join(", ");
        return Err(TransferError::WrongKey { path: from.to_owned(), sealed_under, at_hand: at_hand.join(", ") });
    }
    Ok(found)
}

struct Opened {
    table: TableName,
    name: Vec<u8>,
    version: u64,
    text: Zeroizing<Vec<u8>>,
}

/// How many were written, and how many left as they were.
fn put(store: &EmbeddedStore, page: Vec<Opened>, overwrite: bool) -> Result<(u64, u64), StoreError> {
    let keyring = store.keyring().clone();
    store.write_blocking(move |tx| {
        let (mut written, mut kept) = (0, 0);
        for record in &page {
            let (place, name) = (place(&record.table, &record.name), record.name.as_slice());
            let mut table = tx.open_table(record.table)?;
            let stays = match table.get(name)? {
                Some(own) => keyring.open(place, own.value()).map_or(true, |(version, _)| version >= record.version),
                None => false,
            };
            if stays && !overwrite {
                kept += 1;
                continue;
            }
            let sealed = keyring.seal(place, record.version, &record.text).map_err(unsealed)?;
            table.insert(name, sealed.as_slice())?;
            written += 1;
        }
        Ok((written, kept))
    })
}

/// The records of an export.
struct Lines<'a> {
    path: &'a Path,
    input: BufReader<File>,
    number: u64,
}

impl<'a> Lines<'a> {
    fn open(path: &'a Path) -> Result<(Head, Lines<'a>), TransferError> {
        let file = File::open(path).map_err(|source| TransferError::File { path: path.to_owned(), source })?;
        let mut lines = Lines { path, input: BufReader::new(file), number: 0 };
        let head = lines.line()?;
        let format = |head: &[u8]| serde_json::from_slice::<serde_json::Value>(head).ok()?["keybearer_store"].as_u64();
        // Before the rest is looked at: a newer one may look otherwise.
        let found = head.as_deref().and_then(format).ok_or_else(|| lines.bad("is no export of keybearer"))?;
        if found > u64::from(FORMAT) {
            let found = u32::try_from(found).unwrap_or(u32::MAX);
            return Err(TransferError::NewerFormat { path: path.to_owned(), found });
        }
        let head = head.and_then(|head| serde_json::from_slice(&head).ok());
        Ok((head.ok_or_else(|| lines.bad("is no header of an export"))?, lines))
    }

    fn line(&mut self) -> Result<Option<Vec<u8>>, TransferError> {
        let mut line = Vec::new();
        let read = self.input.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line);
        read.map_err(|source| TransferError::File { path: self.path.to_owned(), source })?;
        self.number += 1;
        match line.last() {
            None => Ok(None),
            Some(b'\n') => Ok(Some(line)),
            Some(_) => Err(self.bad("has no end; the export was cut off")),
        }
    }

    fn next(&mut self) -> Result<Option<Placed>, TransferError> {
        let Some(line) = self.line()? else { return Ok(None) };
        let record = serde_json::from_slice(&line).ok().and_then(|line: Line| {
            let table = TABLES.into_iter().find(|table| table.name() == line.table)?;
            Some((table, BASE64_STANDARD.decode(line.name).ok()?, BASE64_STANDARD.decode(line.record).ok()?))
        });
        record.map(Some).ok_or_else(|| self.bad("is no record"))
    }

    fn bad(&self, why: &'static str) -> TransferError {
        TransferError::Line { path: self.path.to_owned(), line: self.number, why }
    }
}

/// Seals every record, and then the check record, under the first key: the others may go when this is done.
pub fn reseal(store: &EmbeddedStore, progress: Progress<'_>) -> Result<Done, TransferError> {
    let count = |tx: &redb::ReadTransaction| {
        TABLES.into_iter().try_fold(0, |sum, table| Ok::<_, redb::Error>(sum + tx.open_table(table)?.len()?))
    };
    let total = store.read_blocking(count)?;
    let mut done = Done::default();
    for table in TABLES {
        let mut after = None;
        loop {
            let (from, keyring) = (after.clone(), store.keyring().clone());
            let (next, counted) = store.write_blocking(move |tx| {
                let mut table_open = tx.open_table(table)?;
                let records = page(&table_open, from.as_deref())?;
                let mut counted = done;
                for (name, sealed) in &records {
                    let place = place(&table, name);
                    match keyring.open(place, sealed) {
                        Err(_) => counted.unopened += 1,
                        Ok(_) if Header::of(sealed).is_some_and(|header| header.key == keyring.sealing()) => {
                            counted.kept += 1;
                        }
                        Ok((version, text)) => {
                            let anew = keyring.seal(place, version, &text).map_err(unsealed)?;
                            table_open.insert(name.as_slice(), anew.as_slice())?;
                            counted.written += 1;
                        }
                    }
                }
                Ok((records.last().map(|(name, _)| name.clone()), counted))
            })?;
            if next.is_none() {
                break;
            }
            (after, done) = (next, counted);
            progress(done.written + done.kept + done.unopened, total);
        }
    }
    let keyring = store.keyring().clone();
    store.write_blocking(move |tx| put_check(tx, &keyring))?;
    if done.unopened > 0 { Err(TransferError::Unopened(done)) } else { Ok(done) }
}
