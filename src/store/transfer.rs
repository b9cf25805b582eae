//! Export, import and reseal of all records of a store.
//!
//! An export is JSON lines: a header with format, key ids and count, then one record per line, sealed as in the store.
//! Not here: the seal (`seal`), the stores' implementations of [`Records`], arguments and output (`cli`).
//! Invariants: memory use is constant; no record is written in the clear; an incomplete export is rejected before
//! anything is imported.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Read as _, Write};
use std::ops::AddAssign;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::error::StoreError;
use super::record::FORMAT;
use super::seal::{Header, KeyId, Keyring, SealedIn};
use crate::private_file;

/// Records read and committed together.
pub const PAGE: usize = 256;
const LINE_BYTES_MAX: u64 = 1 << 20;
/// The tables in an export. Notes are too short-lived to export; an import makes a catalog of its own.
const EXPORTED: [Table; 3] = [Table::Tokens, Table::Secrets, Table::Definitions];
const RESEALED: [Table; 4] = [Table::Tokens, Table::Secrets, Table::Definitions, Table::Catalog];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    Tokens,
    Secrets,
    Definitions,
    Catalog,
}

impl Table {
    pub fn name(self) -> &'static str {
        match self {
            Table::Tokens => "tokens",
            Table::Secrets => "secrets",
            Table::Definitions => "definitions",
            Table::Catalog => "catalog",
        }
    }

    pub fn sealed_in(self, name: &[u8]) -> SealedIn<'_> {
        SealedIn { table: self.name(), name }
    }
}

/// Access to all records of a store. Methods block.
pub trait Records {
    fn keyring(&self) -> &Keyring;

    /// Approximate number of records, without the catalog.
    fn count(&self) -> Result<u64, StoreError>;

    /// At most [`PAGE`] records in an order that concurrent changes keep, starting after `after`. Empty: there are no more.
    fn page(&self, table: Table, after: Option<&[u8]>) -> Result<Vec<SealedRecord>, StoreError>;

    /// Seals records under the first key and writes them; definitions are put into the catalog. Skips a record that is not newer than the store's, unless
    /// `overwrite`.
    fn put(&self, page: Vec<OpenedRecord>, overwrite: bool) -> Result<Tally, StoreError>;

    /// Seals the records that [`Records::page`] would return under the first key, without overwriting concurrent
    /// writes. Returns the last name; `None`: there were no more.
    fn reseal(&self, table: Table, after: Option<&[u8]>) -> Result<(Option<Vec<u8>>, Tally), StoreError>;

    /// Called when every record is sealed under the first key.
    fn finish_reseal(&self) -> Result<(), StoreError>;
}

/// A record in plaintext.
#[derive(Clone)]
pub struct OpenedRecord {
    pub table: Table,
    pub name: Vec<u8>,
    pub version: u64,
    pub text: Zeroizing<Vec<u8>>,
}

/// Called with the number of records processed and the total.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// Counts records by outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    pub written: u64,
    /// Unchanged: there was nothing to do.
    pub kept: u64,
    /// Unchanged: they do not open.
    pub unopened: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
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
    #[error("{} has format {found}, written by a newer version of Keybearer; use that version", path.display())]
    NewerFormat { path: PathBuf, found: u32 },
    #[error(
        "{} is sealed under {sealed_under}, and `store.seal_key` has {configured}; add the key of the export after the first",
        path.display()
    )]
    WrongKey { path: PathBuf, sealed_under: String, configured: String },
    #[error("{} has {found} of {expected} records; it was truncated or changed: export again", path.display())]
    Incomplete { path: PathBuf, expected: u64, found: u64 },
    #[error(
        "{} records cannot be opened and were skipped; {} were written and {} left unchanged",
        .0.unopened, .0.written, .0.kept
    )]
    Unopened(Tally),
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

/// Name and sealed bytes.
pub type SealedRecord = (Vec<u8>, Vec<u8>);

/// Writes every record to a file, which is replaced atomically. The store stays in use during the export, so the number
/// of records is known only at the end: records go to a second file first, and are copied behind the header.
pub fn export(store: &dyn Records, to: &Path, progress: Progress<'_>) -> Result<u64, TransferError> {
    let failed = |source| TransferError::File { path: to.to_owned(), source };
    let (records, whole) = (temporary_sibling(to), temporary_sibling(to));
    let written = (|| {
        let mut head = Head { keybearer_store: FORMAT, key_ids: BTreeSet::new(), count: 0 };
        let total = store.count()?;
        let mut out = BufWriter::new(private_file::create_empty(&records).map_err(failed)?);
        for_each(store, |table, (name, record)| {
            head.count += 1;
            head.key_ids.extend(Header::parse(&record).map(|header| header.key.to_string()));
            let [name, record] = [name, record].map(|bytes| BASE64_STANDARD.encode(bytes));
            write_line(&mut out, &Line { table: table.name().to_owned(), name, record }).map_err(failed)?;
            if head.count.is_multiple_of(PAGE as u64) {
                progress(head.count, total.max(head.count));
            }
            Ok(())
        })?;
        out.flush().map_err(failed)?;
        let mut out = BufWriter::new(private_file::create_empty(&whole).map_err(failed)?);
        write_line(&mut out, &head).map_err(failed)?;
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

/// An unused name in the same directory.
fn temporary_sibling(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{:016x}", fastrand::u64(..)));
    path.with_file_name(name)
}

fn write_line(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    out.write_all(b"\n")
}

/// Visits every record of the store in order of table and name.
fn for_each(
    store: &dyn Records,
    mut visit: impl FnMut(Table, SealedRecord) -> Result<(), TransferError>,
) -> Result<(), TransferError> {
    for table in EXPORTED {
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

/// Imports the records of an export and seals them under the store's first key. Skips a record that is not newer than
/// the store's, unless `overwrite`.
pub fn import(
    store: &dyn Records,
    from: &Path,
    overwrite: bool,
    progress: Progress<'_>,
) -> Result<Tally, TransferError> {
    let total = check_export(store, from)?;
    let (_, mut lines) = Lines::open(from)?;
    let (mut tally, mut read) = (Tally::default(), 0);
    loop {
        let mut page: Vec<OpenedRecord> = Vec::new();
        while page.len() < PAGE
            && let Some((table, (name, sealed))) = lines.next()?
        {
            read += 1;
            match store.keyring().open(table.sealed_in(&name), &sealed) {
                Ok((version, text)) => page.push(OpenedRecord { table, name, version, text }),
                Err(_) => tally.unopened += 1,
            }
        }
        if page.is_empty() {
            break;
        }
        tally += store.put(page, overwrite)?;
        progress(read, total);
    }
    if tally.unopened > 0 { Err(TransferError::Unopened(tally)) } else { Ok(tally) }
}

/// Checks that an export is complete and that one of its keys is configured. Returns the number of records.
fn check_export(store: &dyn Records, from: &Path) -> Result<u64, TransferError> {
    let (head, mut lines) = Lines::open(from)?;
    let mut found = 0;
    while lines.next()?.is_some() {
        found += 1;
    }
    if found != head.count {
        return Err(TransferError::Incomplete { path: from.to_owned(), expected: head.count, found });
    }
    let configured: Vec<String> = store.keyring().ids().map(|id: KeyId| id.to_string()).collect();
    if found > 0 && !configured.iter().any(|id| head.key_ids.contains(id)) {
        let sealed_under = head.key_ids.into_iter().collect::<Vec<_>>().join(", ");
        return Err(TransferError::WrongKey { path: from.to_owned(), sealed_under, configured: configured.join(", ") });
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
        // Checked first, because a newer format may have other fields.
        let found = head.as_deref().and_then(format).ok_or_else(|| lines.invalid_line("is not a Keybearer export"))?;
        if found > u64::from(FORMAT) {
            let found = u32::try_from(found).unwrap_or(u32::MAX);
            return Err(TransferError::NewerFormat { path: path.to_owned(), found });
        }
        let head = head.and_then(|head| serde_json::from_slice(&head).ok());
        Ok((head.ok_or_else(|| lines.invalid_line("is not the header of a Keybearer export"))?, lines))
    }

    fn line(&mut self) -> Result<Option<Vec<u8>>, TransferError> {
        let mut line = Vec::new();
        let read = self.input.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line);
        read.map_err(|source| TransferError::File { path: self.path.to_owned(), source })?;
        self.number += 1;
        match line.last() {
            None => Ok(None),
            Some(b'\n') => Ok(Some(line)),
            Some(_) => Err(self.invalid_line("is incomplete; the export was truncated")),
        }
    }

    fn next(&mut self) -> Result<Option<(Table, SealedRecord)>, TransferError> {
        let Some(line) = self.line()? else { return Ok(None) };
        let record = serde_json::from_slice(&line).ok().and_then(|line: Line| {
            let table = EXPORTED.into_iter().find(|table| table.name() == line.table)?;
            Some((table, (BASE64_STANDARD.decode(line.name).ok()?, BASE64_STANDARD.decode(line.record).ok()?)))
        });
        record.map(Some).ok_or_else(|| self.invalid_line("is not a record"))
    }

    fn invalid_line(&self, why: &'static str) -> TransferError {
        TransferError::Line { path: self.path.to_owned(), line: self.number, why }
    }
}

/// Seals every record under the first key, after which the other keys are no longer needed.
pub fn reseal(store: &dyn Records, progress: Progress<'_>) -> Result<Tally, TransferError> {
    let total = store.count()?;
    let mut tally = Tally::default();
    for table in RESEALED {
        let mut after: Option<Vec<u8>> = None;
        loop {
            let (next, page) = store.reseal(table, after.as_deref())?;
            if next.is_none() {
                break;
            }
            after = next;
            tally += page;
            let done = tally.written + tally.kept + tally.unopened;
            progress(done, total.max(done));
        }
    }
    store.finish_reseal()?;
    if tally.unopened > 0 { Err(TransferError::Unopened(tally)) } else { Ok(tally) }
}
