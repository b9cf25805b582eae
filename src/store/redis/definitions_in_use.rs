//! Cache of the definitions that this process uses, still sealed, to write them back if Redis loses them.
//!
//! Invariant: only a catalog whose revisions this process has all read or written is written back.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::model::connection::Revision;
use crate::store::definitions::{Catalog, parse_record_name};
use crate::store::seal::NONCE_END;
use crate::sync::lock;

/// A catalog with the sealed record of each of its revisions, by record name.
#[derive(Clone, Default)]
pub struct InUse {
    pub catalog: Catalog,
    pub records: BTreeMap<String, Arc<[u8]>>,
}

#[derive(Default)]
struct State {
    /// Head of the catalog that a caller has read or written last; `None`: none has.
    head: Option<Vec<u8>>,
    /// That catalog, with the records read so far.
    latest: InUse,
    /// The last catalog whose records were all read.
    complete: Arc<InUse>,
}

#[derive(Default)]
pub struct DefinitionsInUse(Mutex<State>);

/// Identifies a sealed record by its header, with version and nonce; the scripts compare it. Empty: there is no record.
pub fn head(sealed: Option<&[u8]>) -> &[u8] {
    sealed.map_or(&[], |sealed| &sealed[..sealed.len().min(NONCE_END)])
}

impl DefinitionsInUse {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }

    /// Head of the catalog in use; `None`: this process uses no definitions.
    pub fn head(&self) -> Option<Vec<u8>> {
        self.state().head.clone()
    }

    /// What to write back if the store has a catalog of `generation`; `None`: nothing is lost.
    pub fn newer_than(&self, generation: u64) -> Option<Arc<InUse>> {
        let state = self.state();
        (state.complete.catalog.generation > generation).then(|| state.complete.clone())
    }

    /// The caller has read or written this catalog.
    pub fn note_catalog(&self, catalog: &Catalog, sealed: Option<&[u8]>) {
        let mut state = self.state();
        state.head = Some(head(sealed).to_vec());
        state.latest.catalog = catalog.clone();
        state.settle();
    }

    /// The caller has read or written these records.
    pub fn note_records(&self, records: impl IntoIterator<Item = (String, Arc<[u8]>)>) {
        let mut state = self.state();
        state.latest.records.extend(records);
        state.settle();
    }
}

impl State {
    /// Takes over the latest catalog once it is complete.
    fn settle(&mut self) {
        let InUse { catalog, records } = &mut self.latest;
        let is_named = |name: &str| {
            let entry: Option<(_, Revision)> = parse_record_name(name);
            entry.is_some_and(|(name, revision)| catalog.entries.get(&name) == Some(&revision))
        };
        records.retain(|name, _| is_named(name));
        if records.len() == catalog.entries.len() && *catalog != self.complete.catalog {
            self.complete = Arc::new(self.latest.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Name;
    use crate::store::definitions::record_name;

    #[test]
    fn only_a_catalog_with_all_its_records_is_written_back() {
        let in_use = DefinitionsInUse::default();
        let [crm, erp] = ["crm", "erp"].map(|text| (Name::parse(text).unwrap(), Revision::random()));
        let catalog = |generation, entries: &[&(Name, Revision)]| {
            let entries = entries.iter().map(|(name, revision)| (name.clone(), *revision)).collect();
            Catalog { generation, entries }
        };
        let read = |(name, revision): &(Name, Revision)| {
            in_use.note_records([(record_name(name, *revision), Arc::from(*b"sealed"))]);
        };
        let complete = || in_use.newer_than(0).map_or(0, |in_use| in_use.catalog.generation);
        assert_eq!((in_use.head(), complete()), (None, 0));
        in_use.note_catalog(&catalog(1, &[&crm]), Some(&[7; 100]));
        assert_eq!((in_use.head(), complete()), (Some(vec![7; 29]), 0));
        read(&crm);
        assert_eq!(complete(), 1);
        in_use.note_catalog(&catalog(2, &[&crm, &erp]), Some(&[8; 100]));
        assert_eq!(complete(), 1, "erp was not read yet");
        read(&erp);
        assert_eq!(complete(), 2);
        in_use.note_catalog(&catalog(3, &[&erp]), Some(&[9; 100]));
        let three = in_use.newer_than(2).unwrap();
        assert_eq!(three.records.keys().cloned().collect::<Vec<_>>(), [record_name(&erp.0, erp.1)]);
        assert!(in_use.newer_than(3).is_none());
        in_use.note_catalog(&catalog(4, &[]), Some(&[9; 100]));
        assert_eq!(complete(), 4, "a catalog without entries is complete");
    }
}
