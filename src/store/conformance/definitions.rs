//! Conformance tests of definitions, for a store that keeps them and for one that refuses them.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::model::connection::Revision;
use crate::store::definitions::{DEFINITION_BYTES_MAX, Definitions};
use crate::store::{Catalog, CatalogChange};

/// Runs against any empty store.
pub async fn definitions(store: &dyn DefinitionStore, kept: SecretsAndDefinitions) {
    assert_eq!(store.catalog().await, Ok(Catalog::default()));
    if kept == SecretsAndDefinitions::Refused {
        let refused = store.change_definitions(&Catalog::default(), put(&[("crm", "text")])).await;
        assert!(matches!(refused, Err(StoreError::Unsupported(_))), "{refused:?}");
        assert_eq!(store.definitions(&[(name("crm"), Revision::random())]).await, Ok(vec![Ok(None)]));
        return;
    }
    a_change_puts_and_removes_definitions(store).await;
    a_lost_change_leaves_nothing_behind(store).await;
    a_change_beyond_a_bound_changes_nothing(store).await;
    only_one_of_many_concurrent_writers_replaces_a_catalog(store).await;
    definitions_as_large_as_allowed_are_read_back(store).await;
}

pub fn name(text: &str) -> Name {
    Name::parse(text).expect("a name")
}

/// A change that puts these texts.
pub fn put(texts: &[(&str, &str)]) -> CatalogChange {
    let put = texts.iter().map(|(of, text)| (name(of), (Revision::random(), Secret::new(*text))));
    CatalogChange { put: put.collect(), ..CatalogChange::default() }
}

pub async fn change(store: &dyn DefinitionStore, change: CatalogChange) -> Catalog {
    let over = store.catalog().await.expect("a catalog");
    store.change_definitions(&over, change).await.expect("the store replies").expect("there is no other writer")
}

/// The definitions in force, by name.
pub async fn in_force(store: &dyn DefinitionStore) -> BTreeMap<String, String> {
    let mut read = Definitions::default();
    read.update(store).await.expect("the store replies");
    assert!(read.texts.keys().eq(read.catalog.entries.keys()));
    let text = |(name, text): (Name, Result<Secret, StoreError>)| {
        (name.to_string(), text.expect("it opens").expose().to_owned())
    };
    read.texts.into_iter().map(text).collect()
}

fn texts(texts: &[(&str, &str)]) -> BTreeMap<String, String> {
    texts.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

async fn a_change_puts_and_removes_definitions(store: &dyn DefinitionStore) {
    let mut read = Definitions::default();
    assert_eq!(read.update(store).await, Ok(false));
    let first = change(store, put(&[("crm", "crm 1"), ("crm-2", "other"), ("erp", "erp 1")])).await;
    assert_eq!((first.generation, store.catalog().await), (1, Ok(first.clone())));
    assert_eq!((read.update(store).await, read.update(store).await), (Ok(true), Ok(false)));

    let remove = ["erp", "none", "crm"].map(name).into();
    let second = change(store, CatalogChange { remove, ..put(&[("crm", "crm 2"), ("new", "new 1")]) }).await;
    assert_eq!((second.generation, store.catalog().await), (2, Ok(second.clone())));
    assert_eq!(second.entries[&name("crm-2")], first.entries[&name("crm-2")], "an unchanged revision stays");
    assert_eq!(in_force(store).await, texts(&[("crm", "crm 2"), ("crm-2", "other"), ("new", "new 1")]));
    assert_eq!(read.update(store).await, Ok(true));
    assert!(read.texts.keys().eq(second.entries.keys()));
    assert_eq!(read.texts[&name("crm")], Ok(Secret::new("crm 2")));

    let mut of_both: Vec<_> = first.entries.into_iter().collect();
    of_both.push((name("crm-2"), second.entries[&name("crm")]));
    let found = store.definitions(&of_both).await.expect("the store replies");
    let other = Ok(Some(Secret::new("other")));
    assert_eq!(found, [Ok(None), other, Ok(None), Ok(None)], "superseded, in force, removed, of another name");

    let remove: BTreeSet<_> = second.entries.into_keys().collect();
    let third = change(store, CatalogChange { remove, ..CatalogChange::default() }).await;
    assert_eq!(third, Catalog { generation: 3, entries: BTreeMap::new() });
    assert_eq!(change(store, CatalogChange::default()).await.generation, 4);
}

async fn a_lost_change_leaves_nothing_behind(store: &dyn DefinitionStore) {
    let over = change(store, put(&[("crm", "1")])).await;
    let next = change(store, put(&[("crm", "2")])).await;
    let late = put(&[("crm", "late"), ("late", "late")]);
    let revisions: Vec<_> = late.put.iter().map(|(name, (revision, _))| (name.clone(), *revision)).collect();
    assert_eq!(store.change_definitions(&over, late).await, Ok(None));
    assert_eq!(store.definitions(&revisions).await, Ok(vec![Ok(None), Ok(None)]));
    assert_eq!(store.catalog().await, Ok(next.clone()));
    // A catalog of the same generation with other content, as after a failover.
    let other = Catalog { generation: next.generation, ..over };
    assert_eq!(store.change_definitions(&other, put(&[("crm", "late")])).await, Ok(None));
    assert_eq!(in_force(store).await, texts(&[("crm", "2")]));
}

async fn a_change_beyond_a_bound_changes_nothing(store: &dyn DefinitionStore) {
    let over = store.catalog().await.expect("a catalog");
    let long = "x".repeat(DEFINITION_BYTES_MAX + 1);
    let refused = store.change_definitions(&over, put(&[("crm", "fits"), ("long", &long)])).await;
    assert!(matches!(refused, Err(StoreError::Unsupported(_))), "{refused:?}");
    assert_eq!((store.catalog().await, in_force(store).await), (Ok(over), texts(&[("crm", "2")])));
}

async fn only_one_of_many_concurrent_writers_replaces_a_catalog(store: &dyn DefinitionStore) {
    let over = store.catalog().await.expect("a catalog");
    let writers = (0..20).map(|number| {
        let (text, over) = (number.to_string(), &over);
        async move { store.change_definitions(over, put(&[("crm", &text), ("erp", &text)])).await }
    });
    let outcomes = futures_util::future::join_all(writers).await;
    let won: Vec<_> =
        (0..20).filter(|number| outcomes[*number].as_ref().expect("the store replies").is_some()).collect();
    let [winner] = won[..] else { panic!("{won:?}") };
    let text = winner.to_string();
    assert_eq!(in_force(store).await, texts(&[("crm", &text), ("erp", &text)]));
}

async fn definitions_as_large_as_allowed_are_read_back(store: &dyn DefinitionStore) {
    let long = "x".repeat(DEFINITION_BYTES_MAX);
    let names: Vec<String> = (0..12).map(|number| format!("long-{number}")).collect();
    let all: Vec<_> = names.iter().map(|name| (name.as_str(), long.as_str())).collect();
    change(store, put(&all)).await;
    let mut found = in_force(store).await;
    found.retain(|name, _| name.starts_with("long-"));
    assert!(found == texts(&all), "{:?}", found.keys());
}

/// Puts many definitions in one change, then replaces them all. Returns the time that the slower change took.
pub async fn many_definitions(store: &dyn DefinitionStore, count: usize) -> Duration {
    let mut slower = Duration::ZERO;
    for round in 0..2 {
        let text = format!("{round}{}", "x".repeat(1000));
        let names: Vec<String> = (0..count).map(|number| format!("connection-{number:05}")).collect();
        let all: Vec<_> = names.iter().map(|name| (name.as_str(), text.as_str())).collect();
        let (over, all) = (store.catalog().await.expect("a catalog"), put(&all));
        let begun = std::time::Instant::now();
        let next = store.change_definitions(&over, all).await.expect("the store replies").expect("no other writer");
        slower = slower.max(begun.elapsed());
        assert!(next.entries.len() >= count);
        let found = in_force(store).await;
        assert!(names.iter().all(|name| found[name] == text));
    }
    slower
}
