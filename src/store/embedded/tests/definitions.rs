//! Tests of definitions in a file: kills, damage, files of an older version, export, import and reseal.

use super::*;
use crate::store::conformance::{change, crash, in_force, long_run, many_definitions, put};
use crate::store::definitions::Definitions;
use crate::store::transfer::{Tally, TransferError, export, import, reseal};
use crate::store::{Catalog, CatalogChange, DefinitionStore as _};
use file::{CATALOG, DEFINITIONS};

#[tokio::test]
async fn many_definitions_are_changed_at_once() {
    let (_dir, _path, store) = store();
    let count = if long_run() { 10_000 } else { 2_000 };
    let took = many_definitions(&store, count).await;
    println!("{count} definitions changed in {took:?}");
    assert!(took < 10 * SECOND, "{took:?}");
}

#[tokio::test]
async fn a_kill_leaves_the_old_or_the_new_definitions_and_never_both() {
    const TEST: &str =
        "store::embedded::tests::definitions::a_kill_leaves_the_old_or_the_new_definitions_and_never_both";
    if let Some(path) = crash::store_to_change() {
        crash::change_until_killed(&open_at(Path::new(&path), ring(1, &[])).unwrap()).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokens.redb");
    let mut unacknowledged = 0;
    for _ in 0..crash::rounds() {
        let acknowledged = crash::kill_while_changing(TEST, path.to_str().unwrap()).await;
        let store = open_at(&path, ring(1, &[])).unwrap();
        unacknowledged += u32::from(crash::assert_one_change_in_force(&store, acknowledged).await);
        assert_eq!(Records::count(&store).unwrap(), store.catalog().await.unwrap().entries.len() as u64);
    }
    println!("{} kills, {unacknowledged} of them just before a change was acknowledged", crash::rounds());
}

#[tokio::test]
async fn a_file_of_an_older_version_has_no_definitions_and_accepts_some() {
    let (_dir, path, store) = store();
    store
        .write_blocking(|transaction| {
            transaction.delete_table(DEFINITIONS)?;
            transaction.delete_table(CATALOG)?;
            Ok(())
        })
        .unwrap();
    drop(store);
    let store = open_at(&path, ring(1, &[])).unwrap();
    assert_eq!(store.catalog().await, Ok(Catalog::default()));
    assert_eq!(Records::count(&store), Ok(0));
    assert_eq!(reseal(&store, &mut |_, _| {}).unwrap(), Tally::default());
    change(&store, put(&[("crm", "text")])).await;
    drop(store);
    let store = open_at(&path, ring(1, &[])).unwrap();
    assert_eq!(in_force(&store).await["crm"], "text");
}

#[tokio::test]
async fn a_damaged_definition_fails_alone_and_is_replaced() {
    let (_dir, _path, store) = store();
    let catalog = change(&store, put(&[("crm", "crm"), ("erp", "erp")])).await;
    let damaged = crate::store::definitions::record_name(&name("crm"), catalog.entries[&name("crm")]);
    store
        .write_blocking(move |transaction| {
            transaction.open_table(DEFINITIONS)?.insert(damaged.as_bytes(), b"x".as_slice())?;
            Ok(())
        })
        .unwrap();
    let mut read = Definitions::default();
    assert_eq!(read.update(&store).await, Ok(true));
    assert!(matches!(&read.texts[&name("crm")], Err(StoreError::Damaged { .. })), "{:?}", read.texts);
    assert_eq!(read.texts[&name("erp")], Ok(Secret::new("erp")));
    change(&store, put(&[("crm", "again")])).await;
    assert_eq!(in_force(&store).await["crm"], "again");
}

#[tokio::test]
async fn definitions_are_exported_imported_and_resealed() {
    let (dir, path, store) = store();
    let first = change(&store, put(&[("crm", "canary crm"), ("erp", "canary erp")])).await;
    let (early, late) = (dir.path().join("early"), dir.path().join("late"));
    assert_eq!(export(&store, &early, &mut |_, _| {}).unwrap(), 2);
    tokio::time::sleep(SECOND / 100).await;
    change(&store, put(&[("crm", "canary crm 2"), ("new", "canary new")])).await;
    assert_eq!(export(&store, &late, &mut |_, _| {}).unwrap(), 3);

    let other = open_at(&dir.path().join("other.redb"), ring(2, &[1])).unwrap();
    let counts = |written, kept| Tally { written, kept, unopened: 0 };
    let imported = |file: &Path, overwrite| import(&other, file, overwrite, &mut |_, _| {}).unwrap();
    assert_eq!(imported(&early, false), counts(2, 0));
    assert_eq!(other.catalog().await.unwrap().entries, first.entries, "a revision stays the same");
    assert_eq!(imported(&early, false), counts(0, 2));
    assert_eq!(other.catalog().await.unwrap().generation, 1, "nothing was changed");
    assert_eq!(imported(&late, false), counts(2, 1));
    assert_eq!(in_force(&other).await, in_force(&store).await);
    assert_eq!(imported(&early, false), counts(0, 2), "the store's definition is newer");
    assert_eq!(imported(&early, true), counts(1, 1));
    assert_eq!(in_force(&other).await["crm"], "canary crm");
    drop(other);
    let other = open_at(&dir.path().join("other.redb"), ring(2, &[])).unwrap();
    assert_eq!(in_force(&other).await["new"], "canary new", "they were sealed under the first key");

    drop(store);
    let store = open_at(&path, ring(2, &[1])).unwrap();
    assert_eq!(reseal(&store, &mut |_, _| {}).unwrap(), counts(4, 0), "the catalog, too");
    drop(store);
    let store = open_at(&path, ring(2, &[])).unwrap();
    assert_eq!(in_force(&store).await["crm"], "canary crm 2");
    for file in [&path, &early, &late] {
        let bytes = std::fs::read(file).unwrap();
        assert!(!bytes.windows(6).any(|window| window == b"canary"), "{}", file.display());
    }

    let text = std::fs::read_to_string(&late).unwrap().replacen("\"definitions\"", "\"catalog\"", 1);
    std::fs::write(&late, text).unwrap();
    let refused = import(&store, &late, false, &mut |_, _| {});
    assert!(matches!(refused, Err(TransferError::Line { .. })), "a catalog is not imported");
}

#[tokio::test]
async fn a_full_disk_leaves_the_old_or_the_new_definitions() {
    use std::sync::atomic::Ordering;
    let disk = Arc::new(failure::Disk::default());
    let store = failure::open_on(&disk);
    change(&store, put(&[("crm", "0"), ("erp", "0")])).await;
    let mut failed = 0;
    for good in 0..40 {
        let over = store.catalog().await.unwrap();
        let text = (good + 1).to_string();
        disk.good_writes.store(good, Ordering::SeqCst);
        let changed = store.change_definitions(&over, put(&[("crm", &text), ("erp", &text)])).await;
        disk.good_writes.store(usize::MAX, Ordering::SeqCst);
        failed += usize::from(changed.is_err());
        let mut read = Definitions::default();
        let end = std::time::Instant::now() + 5 * SECOND;
        while let Err(error) = read.update(&store).await {
            assert!(std::time::Instant::now() < end, "{error}");
            tokio::time::sleep(SECOND / 50).await;
        }
        assert_eq!(read.texts[&name("crm")], read.texts[&name("erp")]);
        let is_new = read.texts[&name("crm")] == Ok(Secret::new(text));
        assert_eq!(read.catalog == over, !is_new);
        assert!(is_new || changed.is_err(), "after {good} writes");
    }
    assert!(failed > 3, "{failed}");
    assert_eq!(change(&store, CatalogChange::default()).await.entries.len(), 2);
}
