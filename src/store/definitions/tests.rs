//! Tests of the catalog's encoding, of bounds, and of stores that keep no definitions.

use super::*;
use crate::store::NoStore;
use crate::store::conformance::{self, SecretsAndDefinitions};

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

fn put(name: Name, text: String) -> CatalogChange {
    CatalogChange { put: BTreeMap::from([(name, (Revision::random(), Secret::new(text)))]), ..CatalogChange::default() }
}

#[test]
fn a_catalog_round_trips_and_a_truncated_one_does_not_decode() {
    let names = ["a".to_owned(), "crm".to_owned(), "x".repeat(63)].map(|text| name(&text));
    let entries = names.into_iter().map(|name| (name, Revision::random())).collect();
    let catalog = Catalog { generation: 7, entries };
    let bytes = encode(&catalog);
    assert_eq!(decode(7, &bytes), Some(catalog));
    for length in 0..bytes.len() {
        let whole = [0, 18, 38].contains(&length);
        assert_eq!(decode(7, &bytes[..length]).is_some(), whole, "{length} bytes");
    }
    assert_eq!(decode(7, b"\x01A0123456789abcdef"), None, "not a name");
}

#[test]
fn a_revision_is_32_hexadecimal_digits() {
    let revision = Revision::random();
    assert_eq!(Revision::parse(&revision.to_string()), Some(revision));
    for text in ["", "0", &"g".repeat(32), &"A".repeat(32), &"0".repeat(33), "+0000000000000000000000000000000"] {
        assert_eq!(Revision::parse(text), None, "{text}");
    }
    let record = record_name(&name("crm"), revision);
    assert_eq!(parse_record_name(&record), Some((name("crm"), revision)));
    assert_eq!(parse_record_name("crm"), None);
}

#[test]
fn a_change_beyond_a_bound_is_refused() {
    #[track_caller]
    fn check(over: &Catalog, change: CatalogChange, expected: Option<StoreError>) {
        assert_eq!(Swap::of_change(over, change, 1).err(), expected);
    }
    let empty = Catalog::default();
    check(&empty, put(name("a"), "x".repeat(DEFINITION_BYTES_MAX)), None);
    check(&empty, put(name("a"), "x".repeat(DEFINITION_BYTES_MAX + 1)), Some(LONG_DEFINITION));
    let many = |count: usize| {
        let text = Secret::new("x".repeat(DEFINITION_BYTES_MAX));
        let put = (0..count).map(|number| (name(&format!("n{number}")), (Revision::random(), text.clone())));
        CatalogChange { put: put.collect(), ..CatalogChange::default() }
    };
    check(&empty, many(128), None);
    check(&empty, many(129), Some(LONG_CHANGE));
    let entries: BTreeMap<_, _> =
        (0..DEFINITIONS_MAX).map(|number| (name(&format!("n{number}")), Revision::random())).collect();
    let full = Catalog { generation: 1, entries };
    assert!(encode(&full).len() <= CATALOG_BYTES_MAX);
    check(&full, put(name("n7"), "x".to_owned()), None);
    check(&full, put(name("another"), "x".to_owned()), Some(FULL));
    let mut reused = put(name("n7"), "x".to_owned());
    reused.put.values_mut().for_each(|(revision, _)| *revision = full.entries[&name("n7")]);
    check(&full, reused, Some(REUSED));
}

#[tokio::test]
async fn a_store_that_keeps_nothing_refuses_definitions() {
    conformance::definitions(&NoStore, SecretsAndDefinitions::Refused).await;
}
