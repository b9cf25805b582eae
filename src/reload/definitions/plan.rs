//! What a change does to the definitions in the store: pure, from the definitions that were read.

use std::collections::{BTreeMap, BTreeSet};

use crate::admin::{Change, Changed, NotChanged, Precondition};
use crate::config::{Edited, Editor, Loaded, Problem, StoredDefinition};
use crate::model::Name;
use crate::model::connection::{DefinedIn, Revision};
use crate::model::secret::Secret;
use crate::snapshot::Snapshot;
use crate::store::{Catalog, CatalogChange, Definitions};

/// Keys that an audit record lists.
const AUDITED_FIELDS_MAX: usize = 1000;

/// The definitions in validation order; of two that collide, the first wins. Those `in_force` now come first, then the
/// others, both by name, so that no definition displaces one in force.
pub fn stored(definitions: &Definitions, in_force: &BTreeSet<Name>) -> Vec<StoredDefinition> {
    let stored = |(name, revision): (&Name, &Revision)| {
        let text = match definitions.texts.get(name) {
            Some(Ok(text)) => Ok(text.clone()),
            Some(Err(error)) => Err(error.to_string()),
            None => Err("it has no text".to_owned()),
        };
        StoredDefinition { name: name.clone(), revision: *revision, text }
    };
    let mut all: Vec<_> = definitions.catalog.entries.iter().map(stored).collect();
    all.sort_by_key(|definition| !in_force.contains(&definition.name));
    all
}

/// The definitions made over the API that `snapshot` has in force.
pub fn in_force(snapshot: &Snapshot) -> BTreeSet<Name> {
    let connections = snapshot.connections.iter().map(|bound| &bound.connection);
    let made_over_api = connections.filter(|connection| matches!(connection.written.defined_in, DefinedIn::Api(_)));
    made_over_api.map(|connection| connection.name.clone()).collect()
}

/// What a change does to the definitions in the store.
#[derive(Default)]
pub struct Plan {
    put: BTreeMap<Name, (Revision, Edited)>,
    /// Definitions whose text stays as it is.
    unchanged: BTreeMap<Name, (Revision, Edited)>,
    remove: BTreeSet<Name>,
    /// Problems of bodies that lead to no definition.
    refused: Vec<(Name, Problem)>,
}

impl Plan {
    pub fn new(change: &Change, present: &Definitions, editor: &Editor) -> Result<Plan, NotChanged> {
        let mut plan = Plan::default();
        let entries = &present.catalog.entries;
        match change {
            Change::Put { name, body, precondition } => {
                check(precondition, entries.get(name).copied())?;
                plan.edit(name, present, |text| editor.replace(name, body, text));
            }
            Change::Merge { name, patch, precondition } => {
                check(precondition, Some(*entries.get(name).ok_or(NotChanged::Unknown)?))?;
                let unreadable =
                    || NotChanged::Failed("the definition in the store cannot be read; replace it".to_owned());
                let text = text(present, name).ok_or_else(unreadable)?;
                plan.edit(name, present, |_| editor.merge(name, patch, text));
            }
            Change::Remove { name, precondition } => {
                check(precondition, Some(*entries.get(name).ok_or(NotChanged::Unknown)?))?;
                plan.remove.insert(name.clone());
            }
            Change::Apply { definitions, prune } => {
                for (name, body) in definitions {
                    plan.edit(name, present, |text| editor.replace(name, body, text));
                }
                if *prune {
                    plan.remove = entries.keys().filter(|name| !definitions.contains_key(*name)).cloned().collect();
                }
            }
        }
        Ok(plan)
    }

    fn edit(
        &mut self,
        name: &Name,
        present: &Definitions,
        edit: impl FnOnce(Option<&str>) -> Result<Edited, Vec<Problem>>,
    ) {
        let edited = match edit(text(present, name)) {
            Ok(edited) => edited,
            Err(problems) => {
                return self.refused.extend(problems.into_iter().map(|problem| (name.clone(), problem)));
            }
        };
        match present.catalog.entries.get(name).filter(|_| edited.is_unchanged) {
            Some(revision) => self.unchanged.insert(name.clone(), (*revision, edited)),
            None => self.put.insert(name.clone(), (Revision::random(), edited)),
        };
    }

    /// The definitions after the change; those that it puts are last, so that they, not others, are refused.
    pub fn after(&self, present: &Definitions, in_force: &BTreeSet<Name>) -> Vec<StoredDefinition> {
        let mut after = stored(present, in_force);
        after.retain(|definition| !self.put.contains_key(&definition.name) && !self.remove.contains(&definition.name));
        let put = self.put.iter().map(|(name, (revision, edited))| {
            let (name, text) = (name.clone(), Ok(edited.text.clone()));
            StoredDefinition { name, revision: *revision, text }
        });
        after.extend(put);
        after
    }

    /// Checks that the definitions of the change are valid, and that it invalidates no other. `before` loads the
    /// configuration without the change.
    pub fn check(
        &self,
        loaded: &Loaded,
        before: impl FnOnce() -> Result<Loaded, NotChanged>,
    ) -> Result<(), NotChanged> {
        let (mut refused, mut others) = (self.refused.clone(), Vec::new());
        for set_aside in &loaded.set_aside {
            let name = &set_aside.name;
            let own = self.put.get(name).or_else(|| self.unchanged.get(name));
            let problems = set_aside.problems.iter().cloned();
            match own {
                Some((_, edited)) => refused.extend(problems.map(|problem| (name.clone(), edited.locate(problem)))),
                None => others.extend(problems.map(|problem| (name.clone(), problem))),
            }
        }
        if !refused.is_empty() {
            return Err(NotChanged::Refused(refused));
        }
        if others.is_empty() {
            return Ok(());
        }
        let before: BTreeSet<_> = before()?.set_aside.into_iter().map(|aside| aside.name).collect();
        others.retain(|(name, _)| !before.contains(name));
        if others.is_empty() { Ok(()) } else { Err(NotChanged::InUse(others)) }
    }

    pub fn catalog_change(&self) -> CatalogChange {
        let put =
            |(name, (revision, edited)): (&Name, &(Revision, Edited))| (name.clone(), (*revision, edited.text.clone()));
        CatalogChange { put: self.put.iter().map(put).collect(), remove: self.remove.clone() }
    }

    /// True if the change has been made in this catalog.
    pub fn is_in(&self, catalog: &Catalog) -> bool {
        let is_put = |(name, (revision, _)): (&Name, &(Revision, Edited))| catalog.entries.get(name) == Some(revision);
        self.put.iter().all(is_put) && !self.remove.iter().any(|name| catalog.entries.contains_key(name))
    }

    /// The keys that differ, for the audit: of several definitions, each with the name of its connection.
    pub fn audited_fields(&self) -> Vec<String> {
        let fields =
            self.put.iter().flat_map(|(name, (_, edited))| edited.fields.iter().map(move |field| (name, field)));
        let fields = fields.take(AUDITED_FIELDS_MAX);
        match self.put.len() {
            1 => fields.map(|(_, field)| field.clone()).collect(),
            _ => fields.map(|(name, field)| format!("{name}.{field}")).collect(),
        }
    }

    pub fn changes_nothing(&self) -> bool {
        self.put.is_empty() && self.remove.is_empty()
    }

    /// `before`: the catalog that the change replaces.
    pub fn changed(&self, change: &Change, before: &Catalog, loaded: &Loaded) -> Changed {
        let (changed, created) = self.put.keys().cloned().partition(|name| before.entries.contains_key(name));
        let unchanged = self.unchanged.keys().cloned().collect();
        let removed = self.remove.iter().cloned().collect();
        let one = match change {
            Change::Put { name, .. } | Change::Merge { name, .. } => {
                self.put.get(name).or_else(|| self.unchanged.get(name)).map(|own| (name, own))
            }
            Change::Remove { .. } | Change::Apply { .. } => None,
        };
        let (revision, fields) = one.map(|(_, (revision, edited))| (*revision, edited.fields.clone())).unzip();
        let connection = one.and_then(|(name, _)| loaded.model.connections.iter().find(|own| own.name == *name));
        let (fields, connection) = (fields.unwrap_or_default(), connection.cloned());
        Changed { created, changed, unchanged, removed, fields, revision, connection }
    }
}

/// The present text of a definition; `None`: there is none, or it cannot be read.
fn text<'a>(present: &'a Definitions, name: &Name) -> Option<&'a str> {
    present.texts.get(name)?.as_ref().ok().map(Secret::expose)
}

/// Checks the precondition against the revision in the store.
fn check(precondition: &Precondition, present: Option<Revision>) -> Result<(), NotChanged> {
    const EXISTS: NotChanged =
        NotChanged::PreconditionFailed("the connection exists; omit `If-None-Match` to change it");
    const ABSENT: NotChanged =
        NotChanged::PreconditionFailed("no connection of this name was made over the API; omit `If-Match`");
    const CHANGED: NotChanged =
        NotChanged::PreconditionFailed("the connection has changed since it was read; read it again");
    match (precondition, present) {
        (Precondition::Unconditional, _)
        | (Precondition::Absent | Precondition::New, None)
        | (Precondition::Existing, Some(_)) => Ok(()),
        (Precondition::Absent, Some(_)) => Err(NotChanged::PreconditionRequired),
        (Precondition::New, Some(_)) => Err(EXISTS),
        (Precondition::Existing | Precondition::Revisions(_), None) => Err(ABSENT),
        (Precondition::Revisions(revisions), Some(present)) if revisions.contains(&present) => Ok(()),
        (Precondition::Revisions(_), Some(_)) => Err(CHANGED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_in_force_precede_others() {
        let name = |text: &str| Name::parse(text).unwrap();
        let mut definitions = Definitions::default();
        for text in ["a", "b", "c", "d"] {
            definitions.catalog.entries.insert(name(text), Revision::random());
        }
        let order = |in_force: BTreeSet<Name>| {
            stored(&definitions, &in_force).iter().map(|definition| definition.name.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(order(BTreeSet::new()), ["a", "b", "c", "d"]);
        assert_eq!(order([name("d"), name("b")].into()), ["b", "d", "a", "c"]);
    }
}
