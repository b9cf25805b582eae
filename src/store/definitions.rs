//! Definitions of connections that were made over the API: the trait, the catalog, and their bounds.
//!
//! A definition is one connection as its administrator wrote it. Each change of it is a *revision*, which never changes.
//! The *catalog* is one record that names the revision in force of each connection. A change writes new revisions first,
//! then replaces the catalog in one write, so a crash leaves the old or the new catalog with all its revisions.
//! Not here: what a definition contains (`config`), writing (`embedded::definitions`, `redis::definitions`).
//! Invariants: a catalog names only revisions that are in the store; the generation grows by one with each change.

use std::collections::{BTreeMap, BTreeSet};

use zeroize::Zeroizing;

use super::transfer::{OpenedRecord, Table, Tally};
use super::{StoreError, StoreFuture};
use crate::model::Name;
use crate::model::connection::Revision;
use crate::model::secret::Secret;

/// Bound of one definition's text.
pub const DEFINITION_BYTES_MAX: usize = 256 * 1024;
/// Bound of the texts of one change.
pub const CHANGE_BYTES_MAX: usize = 32 << 20;
/// Bound of the definitions in a catalog, and so of those in a change.
pub const DEFINITIONS_MAX: usize = 20_000;

const LONG_DEFINITION: StoreError = StoreError::Unsupported("a definition has at most 256 KiB");
const LONG_CHANGE: StoreError = StoreError::Unsupported("the definitions of one change have at most 32 MiB together");
const FULL: StoreError = StoreError::Unsupported("a store keeps at most 20,000 definitions");
const REUSED: StoreError = StoreError::Unsupported("a changed definition needs a new revision");
const NO_DEFINITIONS: StoreError =
    StoreError::Unsupported("this store keeps no definitions; configure `store: {embedded: {}}`");

/// Definitions made over the API.
pub trait DefinitionStore: Send + Sync {
    /// The catalog in force; empty, with generation 0, if there never was one.
    ///
    /// If a shared store has lost data, the catalog that this process has read before is written back first: within a
    /// process, the generation never decreases. Compare whole catalogs to detect a change, not generations: after a
    /// failover, another catalog may have the same generation.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]: keep what is in force. [`StoreError::Damaged`]: the catalog does not open.
    fn catalog(&self) -> StoreFuture<'_, Catalog>;

    /// The text of each revision, in the order of `revisions`; `Ok(None)`: the store no longer has it, so another
    /// writer has replaced the catalog. A text that does not open fails alone. [`Definitions::update`] does all this.
    fn definitions<'a>(&'a self, revisions: &'a [(Name, Revision)]) -> StoreFuture<'a, Vec<StoredText>>;

    /// Replaces the catalog `over` by its successor, all or nothing, removes the superseded revisions, and notifies
    /// other replicas ([`super::Notification::Definitions`]). Returns the new catalog. `None`: the catalog in the store is not
    /// `over`, and nothing has changed; read it again and check the change against it.
    ///
    /// # Errors
    /// [`StoreError::Unsupported`]: this store keeps no definitions, or the change exceeds a bound; nothing has
    /// changed. Any other error: the change is in force as a whole or not at all; read the catalog to know.
    fn change_definitions<'a>(&'a self, over: &'a Catalog, change: CatalogChange) -> StoreFuture<'a, Option<Catalog>>;
}

/// The text of a revision; `None`: the store does not have it.
pub type StoredText = Result<Option<Secret>, StoreError>;

/// Names the revision in force of each connection.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Catalog {
    /// Number of changes so far; 0: there never was a catalog.
    pub generation: u64,
    /// The revision in force of each connection.
    pub entries: BTreeMap<Name, Revision>,
}

/// A change of the catalog. A name in both is put.
#[derive(Debug, Default)]
pub struct CatalogChange {
    /// New texts, each under a new revision ([`Revision::random`]).
    pub put: BTreeMap<Name, (Revision, Secret)>,
    /// Names that are not in the catalog are ignored.
    pub remove: BTreeSet<Name>,
}

/// A catalog with its definitions.
#[derive(Debug, Clone, Default)]
pub struct Definitions {
    /// The catalog that was read last.
    pub catalog: Catalog,
    /// For each entry of the catalog, its text, or why it does not open.
    pub texts: BTreeMap<Name, Result<Secret, StoreError>>,
}

impl Definitions {
    /// Attempts to read the definitions of a catalog that other writers keep replacing.
    const READ_ATTEMPTS: usize = 5;

    /// Reads the catalog, and the texts whose revisions have changed. Returns true if the catalog has changed.
    ///
    /// # Errors
    /// [`StoreError`] as [`DefinitionStore::catalog`]; nothing has changed here.
    pub async fn update(&mut self, store: &dyn DefinitionStore) -> Result<bool, StoreError> {
        for _ in 0..Self::READ_ATTEMPTS {
            let catalog = store.catalog().await?;
            if catalog == self.catalog {
                return Ok(false);
            }
            let is_known = |(name, revision): &(&Name, &Revision)| self.catalog.entries.get(*name) == Some(*revision);
            let changed = catalog.entries.iter().filter(|entry| !is_known(entry));
            let changed: Vec<_> = changed.map(|(name, revision)| (name.clone(), *revision)).collect();
            let texts = store.definitions(&changed).await?;
            let texts: Option<Vec<_>> = texts.into_iter().map(Result::transpose).collect();
            // A text that is gone belongs to a catalog that is no longer in force.
            let Some(texts) = texts else { continue };
            self.texts.retain(|name, _| catalog.entries.contains_key(name));
            self.texts.extend(changed.into_iter().map(|(name, _)| name).zip(texts));
            self.catalog = catalog;
            return Ok(true);
        }
        Err(StoreError::Unavailable("the definitions change too often to be read; try again".to_owned()))
    }

    /// Follows a change that this process has made.
    pub fn replace(&mut self, catalog: Catalog, change: CatalogChange) {
        self.texts.extend(change.put.into_iter().map(|(name, (_, text))| (name, Ok(text))));
        self.texts.retain(|name, _| catalog.entries.contains_key(name));
        self.catalog = catalog;
    }
}

/// A store without definitions.
pub trait KeepsNoDefinitions: Send + Sync {}

impl<T: KeepsNoDefinitions> DefinitionStore for T {
    fn catalog(&self) -> StoreFuture<'_, Catalog> {
        Box::pin(async { Ok(Catalog::default()) })
    }

    fn definitions<'a>(&'a self, revisions: &'a [(Name, Revision)]) -> StoreFuture<'a, Vec<StoredText>> {
        Box::pin(async { Ok(revisions.iter().map(|_| Ok(None)).collect()) })
    }

    fn change_definitions<'a>(&'a self, _: &'a Catalog, _: CatalogChange) -> StoreFuture<'a, Option<Catalog>> {
        Box::pin(async { Err(NO_DEFINITIONS) })
    }
}

/// The steps of a change: put records, replace the catalog by `next`, remove records.
pub struct Swap {
    pub next: Catalog,
    pub put: Vec<OpenedRecord>,
    /// Names of the records that `next` no longer needs.
    pub superseded: Vec<String>,
}

impl Swap {
    /// `version`: of the new records.
    pub fn of_change(over: &Catalog, change: CatalogChange, version: u64) -> Result<Swap, StoreError> {
        let mut next = Catalog { generation: over.generation + 1, entries: over.entries.clone() };
        for name in &change.remove {
            next.entries.remove(name);
        }
        let (mut put, mut bytes) = (Vec::with_capacity(change.put.len()), 0);
        for (name, (revision, text)) in change.put {
            let text = text.expose().as_bytes();
            bytes += text.len();
            if text.len() > DEFINITION_BYTES_MAX {
                return Err(LONG_DEFINITION);
            }
            if over.entries.get(&name) == Some(&revision) {
                return Err(REUSED);
            }
            let record = record_name(&name, revision).into_bytes();
            put.push(OpenedRecord { table: Table::Definitions, name: record, version, text: copy_of(text) });
            next.entries.insert(name, revision);
        }
        if bytes > CHANGE_BYTES_MAX {
            return Err(LONG_CHANGE);
        }
        Swap::new(over, next, put)
    }

    /// Puts the records of an export, except those that are in the catalog, or, unless `overwrite`, not newer than the
    /// store's. `versions`: of the records in [`replaced_by`]. `None` instead of a swap: there is nothing to put.
    pub fn of_import(
        over: &Catalog,
        versions: &BTreeMap<String, u64>,
        records: &[OpenedRecord],
        overwrite: bool,
    ) -> Result<(Option<Swap>, Tally), StoreError> {
        let mut next = Catalog { generation: over.generation + 1, entries: over.entries.clone() };
        let (mut put, mut tally) = (Vec::new(), Tally::default());
        for record in records {
            let Some((name, revision)) = std::str::from_utf8(&record.name).ok().and_then(parse_record_name) else {
                tally.unopened += 1;
                continue;
            };
            let stays = match next.entries.get(&name) {
                Some(present) if *present == revision => true,
                Some(present) => {
                    let version = versions.get(&record_name(&name, *present));
                    !overwrite && version.is_some_and(|version| *version >= record.version)
                }
                None => false,
            };
            if stays {
                tally.kept += 1;
                continue;
            }
            tally.written += 1;
            next.entries.insert(name, revision);
            put.push(record.clone());
        }
        if put.is_empty() {
            return Ok((None, tally));
        }
        Ok((Some(Swap::new(over, next, put)?), tally))
    }

    fn new(over: &Catalog, next: Catalog, put: Vec<OpenedRecord>) -> Result<Swap, StoreError> {
        if next.entries.len() > DEFINITIONS_MAX {
            return Err(FULL);
        }
        let superseded = superseded(over, &next);
        Ok(Swap { next, put, superseded })
    }
}

/// Names of the records in `over` that an import of `records` may replace.
pub fn replaced_by(records: &[OpenedRecord], over: &Catalog) -> Vec<String> {
    let named = records.iter().filter_map(|record| parse_record_name(std::str::from_utf8(&record.name).ok()?));
    named.filter_map(|(name, _)| Some(record_name(&name, *over.entries.get(&name)?))).collect()
}

/// Names of the records that `over` has and `next` does not.
pub fn superseded(over: &Catalog, next: &Catalog) -> Vec<String> {
    let gone = over.entries.iter().filter(|(name, revision)| next.entries.get(*name) != Some(*revision));
    gone.map(|(name, revision)| record_name(name, *revision)).collect()
}

fn copy_of(text: &[u8]) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(text.to_vec())
}

/// The name of a revision's record; a connection's name contains no slash.
pub fn record_name(name: &Name, revision: Revision) -> String {
    format!("{name}/{revision}")
}

/// The inverse of [`record_name`]; `None` for anything else.
pub fn parse_record_name(text: &str) -> Option<(Name, Revision)> {
    let (name, revision) = text.split_once('/')?;
    Some((Name::parse(name)?, Revision::parse(revision)?))
}

/// The name of the catalog's record.
pub const CATALOG: &str = "catalog";

/// Bound of a catalog's record before it is sealed: each entry has a length, a name of at most 63 bytes and a revision.
pub const CATALOG_BYTES_MAX: usize = DEFINITIONS_MAX * (1 + 63 + Revision::BYTES);

/// The content of a catalog's record, without the generation, which is the record's version.
pub fn encode(catalog: &Catalog) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, revision) in &catalog.entries {
        let name = name.as_str().as_bytes();
        // A name has at most 63 bytes.
        out.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
        out.extend_from_slice(name);
        out.extend_from_slice(&revision.to_bytes());
    }
    out
}

/// The inverse of [`encode`]; `None` for anything else.
pub fn decode(generation: u64, mut bytes: &[u8]) -> Option<Catalog> {
    let mut entries = BTreeMap::new();
    while let Some((&length, rest)) = bytes.split_first() {
        let (name, rest) = rest.split_at_checked(usize::from(length))?;
        let (revision, rest) = rest.split_at_checked(Revision::BYTES)?;
        let revision = Revision::from_bytes(revision.try_into().ok()?);
        entries.insert(Name::parse(std::str::from_utf8(name).ok()?)?, revision);
        bytes = rest;
    }
    Some(Catalog { generation, entries })
}

#[cfg(test)]
mod tests;
