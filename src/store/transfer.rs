//! All records of a store at once: to a file, from a file, and under another key.
//!
//! An export is JSON lines: a header with format, key ids and count, then a record a line, sealed as it lies in the store.
//! Not here: the seal (`seal`), how a store reads and writes many records (its `records`), arguments and what is printed
//! (`cli`).
//! Holds: page by page, in constant memory; nothing is ever written in the clear; an import is of a whole export, or is
//! refused before anything is written.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Read as _, Write};
use std::ops::AddAssign;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::StoreError;
use super::embedded::FORMAT;
use super::seal::{Header, KeyId, Keyring, Place};
use crate::private_file;

/// Records that are held in memory and committed together.
pub const PAGE: usize = 256;
/// Longest line of an export, in bytes.
const LINE_BYTES_MAX: u64 = 1 << 20;
const TABLES: [Table; 2] = [Table::Tokens, Table::Secrets];

/// What outlasts an export; notes do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    Tokens,
    Secrets,
}

impl Table {
    pub fn name(self) -> &'static str {
        match self {
            Table::Tokens => "tokens",
            Table::Secrets => "secrets",
        }
    }

    /// Where the seal says that a record lies.
    pub fn place(self, name: &[u8]) -> Place<'_> {
        Place { table: self.name(), name }
    }
}

/// A store whose records may all be visited. Its calls block.
pub trait Records {
    fn keyring(&self) -> &Keyring;

    /// How many there are, as far as is known.
    fn count(&self) -> Result<u64, StoreError>;

    /// At most [`PAGE`] records in the order of their names, from the first after `after`; none: there are no others.
    fn page(&self, table: Table, after: Option<&[u8]>) -> Result<Vec<Sealed>, StoreError>;

    /// Seals records under the first key and writes them, but for those that are there and as new, unless `overwrite`: how
    /// many were written, and how many left as they were.
    fn put(&self, page: Vec<Opened>, overwrite: bool) -> Result<(u64, u64), StoreError>;

    /// Seals the records that [`Records::page`] would return under the first key, but for what is written meanwhile: the last
    /// name, and what became of them.
    fn reseal(&self, table: Table, after: Option<&[u8]>) -> Result<(Option<Vec<u8>>, Done), StoreError>;

    /// Every record is sealed under the first key.
    fn resealed(&self) -> Result<(), StoreError>;
}

/// A record out of its seal.
pub struct Opened {
    pub table: Table,
    pub name: Vec<u8>,
    pub version: u64,
    pub text: Zeroizing<Vec<u8>>,
}

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

impl AddAssign for Done {
    fn add_assign(&mut self, other: Done) {
        self.written += other.written;
        self.kept += other.kept;
        self.unopened += other.unopened;
    }
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
pub type Sealed = (Vec<u8>, Vec<u8>);
/// The same with its table.
type Placed = (Table, Vec<u8>, Vec<u8>);

/// Writes every record to a new file, which takes the place of one that is there. Each is written as it is met, so that
/// others may go on using the store; the header, which says how many there are, is put before them at the end.
pub fn export(store: &dyn Records, to: &Path, progress: Progress<'_>) -> Result<u64, TransferError> {
    let failed = |source| TransferError::File { path: to.to_owned(), source };
    let (records, whole) = (beside(to), beside(to));
    let written = (|| {
        let mut head = Head { keybearer_store: FORMAT, key_ids: BTreeSet::new(), count: 0 };
        let total = store.count()?;
        let mut out = BufWriter::new(private_file::create_empty(&records).map_err(failed)?);
        every(store, |table, (name, record)| {
            head.count += 1;
            head.key_ids.extend(Header::of(&record).map(|header| header.key.to_string()));
            let [name, record] = [name, record].map(|bytes| BASE64_STANDARD.encode(bytes));
            line(&mut out, &Line { table: table.name().to_owned(), name, record }).map_err(failed)?;
            if head.count.is_multiple_of(PAGE as u64) {
                progress(head.count, total.max(head.count));
            }
            Ok(())
        })?;
        out.flush().map_err(failed)?;
        let mut out = BufWriter::new(private_file::create_empty(&whole).map_err(failed)?);
        line(&mut out, &head).map_err(failed)?;
        io::copy(&mut File::open(&records).map_err(failed)?, &mut out).map_err(failed)?;
        out.into_inner().map_err(|error| failed(error.into_error()))?.sync_all().map_err(failed)?;
        std::fs::rename(&whole, to).and_then(|()| private_file::sync_directory_of(to)).map_err(failed)?;
        progress(head.count, head.count);
        Ok(head.count)
    })();
    let _ = std::fs::remove_file(&records);
    if written.is_err() {
        let _ = std::fs::remove_file(&whole);
    }
    written
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
    store: &dyn Records,
    mut visit: impl FnMut(Table, Sealed) -> Result<(), TransferError>,
) -> Result<(), TransferError> {
    for table in TABLES {
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page = store.page(table, after.as_deref())?;
            let Some((last, _)) = page.last() else { break };
            after = Some(last.clone());
            page.into_iter().try_for_each(|record| visit(table, record))?;
        }
    }
    Ok(())
}

/// Takes the records of an export over, sealed under the store's first key. One that is there stays, unless the export's
/// is newer, or `overwrite`.
pub fn import(
    store: &dyn Records,
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
            match store.keyring().open(table.place(&name), &sealed) {
                Ok((version, text)) => page.push(Opened { table, name, version, text }),
                Err(_) => done.unopened += 1,
            }
        }
        if page.is_empty() {
            break;
        }
        let (written, kept) = store.put(page, overwrite)?;
        done = Done { written: done.written + written, kept: done.kept + kept, ..done };
        progress(read, total);
    }
    if done.unopened > 0 { Err(TransferError::Unopened(done)) } else { Ok(done) }
}

/// How many records an export has, if it is whole and some key of it is at hand.
fn survey(store: &dyn Records, from: &Path) -> Result<u64, TransferError> {
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

/// Seals every record under the first key: the others may go when this is done.
pub fn reseal(store: &dyn Records, progress: Progress<'_>) -> Result<Done, TransferError> {
    let total = store.count()?;
    let mut done = Done::default();
    for table in TABLES {
        let mut after: Option<Vec<u8>> = None;
        loop {
            let (next, page) = store.reseal(table, after.as_deref())?;
            if next.is_none() {
                break;
            }
            after = next;
            done += page;
            progress(done.written + done.kept + done.unopened, total);
        }
    }
    store.resealed()?;
    if done.unopened > 0 { Err(TransferError::Unopened(done)) } else { Ok(done) }
}
