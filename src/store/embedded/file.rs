//! Opens the database file and checks that Keybearer wrote it, in a known format, under a configured key.
//!
//! Tables: `tokens`, `secrets`, `notes`, `definitions` and `catalog` (name → sealed record), `meta` (`format`; `check`, a record sealed under the
//! sealing key, so that a wrong key is detected before anything is written).
//! Invariant: an existing file is not written before it has passed the check.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use redb::backends::FileBackend;
use redb::{
    Builder, Database, DatabaseError, ReadOnlyTable, ReadTransaction, ReadableDatabase as _, StorageBackend,
    StorageError, TableDefinition, TableError, TableHandle as _, WriteTransaction,
};

use super::probe::Probe;
use crate::private_file;
use crate::store::error::OpenError;
use crate::store::record::FORMAT;
use crate::store::seal::{Keyring, SealError, SealedIn, UnsealError};

pub type RecordTable<'txn> = redb::Table<'txn, &'static [u8], &'static [u8]>;
pub type Table = TableDefinition<'static, &'static [u8], &'static [u8]>;
/// A [`Table`] as a read transaction sees it.
pub type OpenTable = ReadOnlyTable<&'static [u8], &'static [u8]>;

pub const TOKENS: Table = TableDefinition::new("tokens");
pub const SECRETS: Table = TableDefinition::new("secrets");
pub const NOTES: Table = TableDefinition::new("notes");
pub const DEFINITIONS: Table = TableDefinition::new("definitions");
pub const CATALOG: Table = TableDefinition::new("catalog");
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");

const FORMAT_KEY: &str = "format";
const CHECK_KEY: &str = "check";
const CHECK: SealedIn<'static> = SealedIn { table: "meta", name: b"check" };
const CHECK_TEXT: &[u8] = b"keybearer";

/// Size of the page cache.
const CACHE_BYTES: usize = 4 << 20;

/// Action if the file does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfMissing {
    Create,
    Fail,
}

/// Opens and checks the file at `path`.
pub fn open(path: &Path, keyring: &Keyring, missing: IfMissing) -> Result<Database, OpenError> {
    if missing == IfMissing::Create {
        private_file::make_directory_of(path).map_err(|error| OpenError::from_io(path, error))?;
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(missing == IfMissing::Create);
    let file = private_file::open(&mut options, path, "store").map_err(|error| OpenError::from_io(path, error))?;
    let fresh = file.metadata().map_err(|error| OpenError::from_io(path, error))?.len() == 0;
    if fresh && missing == IfMissing::Fail {
        return Err(OpenError::damaged(path, "it is empty"));
    }
    let unread = |error| OpenError::from_io(path, error);
    let backend = |file| FileBackend::new(file).map_err(|error| OpenError::damaged(path, error.to_string()));
    if !fresh {
        let probe = Probe::new(backend(file.try_clone().map_err(unread)?)?).map_err(unread)?;
        close(open_backend(path, probe, keyring, missing)?);
    }
    let database = open_backend(path, backend(file)?, keyring, missing)?;
    if fresh {
        private_file::sync_directory_of(path).map_err(|error| OpenError::from_io(path, error))?;
    }
    Ok(database)
}

/// Opens and checks an existing file without changing it: writes stay in memory.
pub fn open_unchanged(path: &Path, keyring: &Keyring) -> Result<Database, OpenError> {
    // The exclusive lock needs write access.
    let file = private_file::open(OpenOptions::new().read(true).write(true), path, "store");
    let file = file.map_err(|error| OpenError::from_io(path, error))?;
    let file = FileBackend::new(file).map_err(|error| OpenError::damaged(path, error.to_string()))?;
    let probe = Probe::new(file).map_err(|error| OpenError::from_io(path, error))?;
    open_backend(path, probe, keyring, IfMissing::Fail)
}

/// Opens and checks any backend; errors call it `path`.
pub fn open_backend(
    path: &Path,
    backend: impl StorageBackend,
    keyring: &Keyring,
    missing: IfMissing,
) -> Result<Database, OpenError> {
    let database = guarded(path, || Builder::new().set_cache_size(CACHE_BYTES).create_with_backend(backend))?;
    checked(path, database, keyring, missing)
}

fn checked(path: &Path, database: Database, keyring: &Keyring, missing: IfMissing) -> Result<Database, OpenError> {
    let checked = catch_unwind(AssertUnwindSafe(|| check(path, &database, keyring, missing)));
    match checked {
        Ok(Ok(())) => Ok(database),
        Ok(Err(error)) => {
            close(database);
            Err(error)
        }
        Err(_) => {
            close(database);
            Err(OpenError::damaged(path, "its pages contradict each other"))
        }
    }
}

fn close(database: Database) {
    // Closing a damaged file may panic too.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(database)));
}

fn guarded(path: &Path, open: impl FnOnce() -> Result<Database, DatabaseError>) -> Result<Database, OpenError> {
    let failed = |error| match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
            OpenError::InUse { path: path.to_owned() }
        }
        DatabaseError::Storage(StorageError::Io(error)) => match error.kind() {
            ErrorKind::InvalidData | ErrorKind::UnexpectedEof => OpenError::damaged(path, error.to_string()),
            _ => OpenError::from_io(path, error),
        },
        other => OpenError::damaged(path, other.to_string()),
    };
    match catch_unwind(AssertUnwindSafe(open)) {
        Ok(opened) => opened.map_err(failed),
        Err(_) => Err(OpenError::damaged(path, "its pages contradict each other")),
    }
}

fn check(path: &Path, database: &Database, keyring: &Keyring, missing: IfMissing) -> Result<(), OpenError> {
    let failed = |error: redb::Error| match error {
        redb::Error::Io(error) if error.kind() != ErrorKind::UnexpectedEof => OpenError::from_io(path, error),
        other => OpenError::damaged(path, other.to_string()),
    };
    let Meta { tables, format, check } = read_meta(database).map_err(failed)?;
    if tables == 0 && missing == IfMissing::Create {
        return initialise(database, keyring).map_err(failed);
    }
    let format = format.and_then(|format| Some(u32::from_be_bytes(format.as_slice().try_into().ok()?)));
    match format {
        None => return Err(OpenError::damaged(path, "it has no Keybearer tables")),
        Some(found) if found > FORMAT => return Err(OpenError::NewerFormat { path: path.to_owned(), found }),
        Some(_) => {}
    }
    let check = check.ok_or_else(|| OpenError::damaged(path, "its check record is missing"))?;
    match keyring.open(CHECK, &check) {
        Ok((_, text)) if *text == CHECK_TEXT => Ok(()),
        Err(UnsealError::Key(sealed_under)) => {
            Err(OpenError::WrongKey { path: path.to_owned(), sealed_under, configured: keyring.ids().collect() })
        }
        Ok(_) => Err(OpenError::damaged(path, "its check record has unexpected content")),
        Err(error) => Err(OpenError::damaged(path, format!("its check record cannot be opened: {error}"))),
    }
}

struct Meta {
    tables: usize,
    format: Option<Vec<u8>>,
    check: Option<Vec<u8>>,
}

fn read_meta(database: &Database) -> Result<Meta, redb::Error> {
    let transaction = database.begin_read()?;
    let names: Vec<String> = transaction.list_tables()?.map(|table| table.name().to_owned()).collect();
    if !names.iter().any(|name| name == META.name()) {
        return Ok(Meta { tables: names.len(), format: None, check: None });
    }
    let meta = transaction.open_table(META)?;
    let text = |key| Ok::<_, redb::Error>(meta.get(key)?.map(|value| value.value().to_vec()));
    Ok(Meta { tables: names.len(), format: text(FORMAT_KEY)?, check: text(CHECK_KEY)? })
}

fn initialise(database: &Database, keyring: &Keyring) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_quick_repair(true);
    transaction.open_table(TOKENS)?;
    transaction.open_table(SECRETS)?;
    transaction.open_table(NOTES)?;
    transaction.open_table(DEFINITIONS)?;
    transaction.open_table(CATALOG)?;
    transaction.open_table(META)?.insert(FORMAT_KEY, FORMAT.to_be_bytes().as_slice())?;
    put_check(&transaction, keyring)?;
    Ok(transaction.commit()?)
}

/// A table that a file of an older version does not have.
pub fn existing(transaction: &ReadTransaction, table: Table) -> Result<Option<OpenTable>, redb::Error> {
    match transaction.open_table(table) {
        Ok(table) => Ok(Some(table)),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Writes the check record, so that the file does not open without the sealing key.
pub fn put_check(transaction: &WriteTransaction, keyring: &Keyring) -> Result<(), redb::Error> {
    let sealed = keyring.seal(CHECK, 1, CHECK_TEXT).map_err(seal_failed)?;
    transaction.open_table(META)?.insert(CHECK_KEY, sealed.as_slice())?;
    Ok(())
}

/// The seal context of a record.
pub fn sealed_in<'a>(table: &'a Table, name: &'a [u8]) -> SealedIn<'a> {
    SealedIn { table: table.name(), name }
}

/// Wraps the error to abort the transaction.
pub fn seal_failed(error: SealError) -> redb::Error {
    redb::Error::Io(std::io::Error::other(error))
}
