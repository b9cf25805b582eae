//! Tests of definitions in a real Redis: kills, lost data, lost notifications, a cluster, export, import and reseal.

use std::collections::BTreeSet;

use super::*;
use crate::store::conformance::{self, change, crash, in_force, long_run, many_definitions, name, put};
use crate::store::definitions::{self, Definitions};
use crate::store::transfer::{self, Table, Tally};

const CATALOG: &str = "keybearer:{definitions}:catalog";
const REVISIONS: &str = "keybearer:{definitions}:definitions";
const PENDING: &str = "keybearer:{definitions}:pending";

async fn count(redis: &Redis, command: &str, key: &str) -> usize {
    redis.cli(&[command, key]).await.parse().expect("a number")
}

/// Reads all definitions, as a running process does, and returns the catalog; `None`: Redis is unreachable.
async fn read(store: &RedisStore) -> Option<Catalog> {
    let mut read = Definitions::default();
    read.update(store).await.ok()?;
    Some(read.catalog)
}

async fn used(store: &RedisStore) -> Catalog {
    read(store).await.expect("Redis replies")
}

#[tokio::test]
async fn many_definitions_are_changed_at_once() {
    let redis = Redis::start().await;
    let (store, _tasks) = open(&redis, 1);
    let many = if long_run() { 10_000 } else { 2_000 };
    let took = many_definitions(&store, many).await;
    println!("{many} definitions changed in {took:?}");
    assert!(took < 10 * SECOND, "{took:?}");
    assert_eq!(count(&redis, "HLEN", REVISIONS).await, many);
    assert_eq!(count(&redis, "ZCARD", PENDING).await, 0);
}

#[tokio::test]
async fn a_kill_leaves_the_old_or_the_new_definitions_and_never_both() {
    const TEST: &str = "store::redis::tests::definitions::a_kill_leaves_the_old_or_the_new_definitions_and_never_both";
    if let Some(port) = crash::store_to_change() {
        let (port, key) = (port.parse().expect("a port"), Keyring::new(&SealKey::new([1; 32]), &[]).expect("a key"));
        let (store, _tasks) = open_as(port, RedisKind::Server, key);
        crash::change_until_killed(&store).await;
    }
    let redis = Redis::start().await;
    let (mut unacknowledged, mut left) = (0, 0);
    for _ in 0..crash::rounds() {
        let acknowledged = crash::kill_while_changing(TEST, &redis.port.to_string()).await;
        let (store, _tasks) = open(&redis, 1);
        unacknowledged += u32::from(crash::assert_one_change_in_force(&store, acknowledged).await);
        let pending = count(&redis, "ZCARD", PENDING).await;
        let named = store.catalog().await.expect("a catalog").entries.len();
        assert_eq!(count(&redis, "HLEN", REVISIONS).await, named + pending, "each revision is in force or pending");
        left = left.max(pending);
    }
    println!(
        "{} kills, {unacknowledged} of them just before a change was acknowledged, {left} pending revisions",
        crash::rounds()
    );
    // Long after.
    redis.cli(&["ZUNIONSTORE", PENDING, "1", PENDING, "WEIGHTS", "0"]).await;
    let (store, _tasks) = open(&redis, 1);
    while count(&redis, "ZCARD", PENDING).await > 0 {
        change(&store, CatalogChange::default()).await;
    }
    let named = store.catalog().await.expect("a catalog").entries.len();
    assert_eq!(count(&redis, "HLEN", REVISIONS).await, named, "the next writers have removed what was abandoned");
}

#[tokio::test]
async fn a_change_that_loses_leaves_no_revision_in_redis() {
    let redis = Redis::start().await;
    let ((one, _t), (other, _u)) = (open(&redis, 1), open(&redis, 1));
    change(&one, put(&[("crm", "1"), ("erp", "1")])).await;
    for staged in [false, true] {
        let present = other.backend.present_catalog().await.expect("a catalog");
        let late = put(&[("crm", "late"), ("late", "late")]);
        let late = definitions::Swap::of_change(&present.catalog, late, 7).expect("within bounds");
        if staged {
            for record in &late.put {
                let record = String::from_utf8_lossy(&record.name);
                redis.cli(&["HSET", REVISIONS, &record, "staged before the other change"]).await;
                redis.cli(&["ZADD", PENDING, "9999999999", &record]).await;
            }
        }
        let next = change(&one, put(&[("crm", "2")])).await;
        assert_eq!(other.backend.put_swap(&present, late).await, Ok(None));
        assert_eq!(count(&redis, "HLEN", REVISIONS).await, 2, "staged: {staged}");
        assert_eq!(count(&redis, "EXISTS", PENDING).await, 0, "staged: {staged}");
        assert_eq!(other.catalog().await, Ok(next));
    }
    assert!(!redis.cli(&["HKEYS", REVISIONS]).await.contains("late"));
}

#[tokio::test]
async fn definitions_that_a_flush_has_lost_are_written_back() {
    let redis = Redis::start().await;
    let ((one, _t), (other, _u)) = (open(&redis, 1), open(&redis, 1));
    let texts = [("crm", "crm"), ("erp", "erp")];
    change(&one, put(&texts)).await;
    let catalog = used(&other).await;
    for replica in [&one, &other] {
        redis.cli(&["FLUSHALL"]).await;
        let mut notifications = replica.backend.subscribe();
        replica.backend.poll_definitions().await.expect("Redis replies");
        assert_eq!(notifications.try_recv(), Ok(Notification::Definitions));
        let (fresh, _tasks) = open(&redis, 1);
        assert_eq!(used(&fresh).await, catalog);
        assert_eq!(in_force(&fresh).await.len(), 2);
    }
    // Before a caller sees the older catalog.
    redis.cli(&["FLUSHALL"]).await;
    assert_eq!(other.catalog().await, Ok(catalog.clone()));
    redis.cli(&["FLUSHALL"]).await;
    let next = other.change_definitions(&catalog, put(&[("new", "new")])).await.expect("the store replies");
    assert_eq!(next.expect("there is no other writer").generation, 2);
    assert_eq!(in_force(&other).await.len(), 3);

    // All at once, one of them with an older catalog.
    for _ in 0..20 {
        redis.cli(&["FLUSHALL"]).await;
        let (first, second) = tokio::join!(one.backend.poll_definitions(), other.backend.poll_definitions());
        assert_eq!((first, second), (Ok(()), Ok(())));
        assert_eq!(one.catalog().await.map(|catalog| catalog.generation), Ok(2));
        assert_eq!(count(&redis, "HLEN", REVISIONS).await, 3);
        assert_eq!(count(&redis, "EXISTS", PENDING).await, 0);
    }
}

/// After a failover, Redis may be some seconds behind.
#[tokio::test]
async fn a_catalog_that_is_behind_is_replaced_by_the_one_in_use() {
    let redis = Redis::start().await;
    let (store, _tasks) = open(&redis, 1);
    change(&store, put(&[("crm", "1"), ("gone", "1")])).await;
    redis.cli(&["COPY", CATALOG, "keybearer:{definitions}:backup"]).await;
    redis.cli(&["COPY", REVISIONS, "keybearer:{definitions}:backup-of-revisions"]).await;
    let next = change(&store, CatalogChange { remove: [name("gone")].into(), ..put(&[("crm", "2")]) }).await;
    redis.cli(&["RENAME", "keybearer:{definitions}:backup", CATALOG]).await;
    redis.cli(&["RENAME", "keybearer:{definitions}:backup-of-revisions", REVISIONS]).await;
    let (fresh, _tasks) = open(&redis, 1);
    assert_eq!(used(&fresh).await.generation, 1);
    store.backend.restore_definitions().await.expect("Redis replies");
    assert_eq!(used(&fresh).await, next);
    assert_eq!(in_force(&fresh).await["crm"], "2");
    assert_eq!(count(&redis, "HLEN", REVISIONS).await, 1);
}

#[tokio::test]
async fn the_poll_reports_a_change_whose_notification_was_lost() {
    let redis = Redis::start().await;
    let ((one, _t), (other, _u)) = (open(&redis, 1), open(&redis, 1));
    change(&one, put(&[("crm", "1")])).await;
    let mut notifications = other.backend.subscribe();
    other.backend.poll_definitions().await.expect("Redis replies");
    assert!(notifications.try_recv().is_err(), "a process that uses no definitions is not notified");
    let seen = used(&other).await;
    other.backend.poll_definitions().await.expect("Redis replies");
    assert!(notifications.try_recv().is_err(), "nothing has changed");
    // `other` does not subscribe.
    let next = change(&one, put(&[("crm", "2")])).await;
    other.backend.poll_definitions().await.expect("Redis replies");
    assert_eq!(notifications.try_recv(), Ok(Notification::Definitions));
    assert_ne!(seen, next);
    assert_eq!(other.catalog().await, Ok(next));
    other.backend.poll_definitions().await.expect("Redis replies");
    assert!(notifications.try_recv().is_err(), "the catalog was read");
}

#[tokio::test]
async fn a_restart_of_redis_gets_the_definitions_back() {
    let mut redis = Redis::start().await;
    let (store, tasks) = open(&redis, 1);
    store.follow(&tasks);
    change(&store, put(&[("crm", "text")])).await;
    redis.stop().await;
    redis.start_again().await;
    let end = Instant::now() + 10 * SECOND;
    while redis.cli(&["EXISTS", CATALOG]).await != "1" {
        assert!(Instant::now() < end, "they are not written back");
        sleep(SECOND / 20).await;
    }
    let (fresh, _tasks) = open(&redis, 1);
    assert_eq!(in_force(&fresh).await["crm"], "text");
}

#[tokio::test]
async fn definitions_are_sealed_exported_imported_and_resealed() {
    let (redis, other) = (Redis::start().await, Redis::start().await);
    let (store, tasks) = open(&redis, 1);
    change(&store, put(&[("crm", "canary crm"), ("crm-2", "canary crm-2"), ("erp", "canary erp")])).await;
    for key in [REVISIONS, CATALOG] {
        let command = if key == CATALOG { "GET" } else { "HGETALL" };
        let sealed = redis.cli(&["--no-raw", command, key]).await;
        assert!(sealed.len() > 50 && !sealed.contains("canary"), "{sealed}");
    }
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("export");
    let handle = tokio::runtime::Handle::current();
    let (records, to) = (store.records(handle.clone()), file.clone());
    let exported = tasks.blocking(move || transfer::export(&records, &to, &mut |_, _| {})).await.expect("it ends");
    assert_eq!(exported.expect("an export"), 3);
    let (target, tasks) = open(&other, 1);
    let counts = |written, kept| Tally { written, kept, unopened: 0 };
    let import = async |overwrite| {
        let (records, from) = (target.records(handle.clone()), file.clone());
        let work = move || transfer::import(&records, &from, overwrite, &mut |_, _| {});
        tasks.blocking(work).await.expect("it ends").expect("an import")
    };
    assert_eq!((import(false).await, import(false).await), (counts(3, 0), counts(0, 3)));
    assert_eq!(in_force(&target).await, in_force(&store).await);
    sleep(SECOND / 100).await;
    change(&target, CatalogChange { remove: [name("erp")].into(), ..put(&[("crm", "newer")]) }).await;
    assert_eq!(import(false).await, counts(1, 2), "erp is new again");
    assert_eq!(in_force(&target).await["crm"], "newer");
    assert_eq!(import(true).await, counts(1, 2));
    assert_eq!(in_force(&target).await["crm"], "canary crm");

    let keys = [2, 1].map(|byte| SealKey::new([byte; 32]));
    let (new, tasks) = open_with(&other, Keyring::new(&keys[0], &keys[1..]).expect("keys"));
    let records = new.records(handle);
    let resealed = tasks.blocking(move || transfer::reseal(&records, &mut |_, _| {})).await.expect("it ends");
    assert_eq!(resealed.expect("all is sealed"), counts(4, 0));
    let (only_new, _tasks) = open(&other, 2);
    assert_eq!(in_force(&only_new).await, in_force(&store).await);
}

/// A page is read while a replica replaces the definitions on it.
#[tokio::test]
async fn an_export_has_every_definition_that_changes_during_it() {
    let redis = Redis::start().await;
    let (store, _tasks) = open(&redis, 1);
    let names: Vec<String> = (0..600).map(|number| format!("n{number:03}")).collect();
    let all = |text| names.iter().map(|name| (name.as_str(), text)).collect::<Vec<(&str, &str)>>();
    change(&store, put(&all("1"))).await;
    let (mut after, mut found) = (None, BTreeSet::new());
    loop {
        let page = store.backend.page(Table::Definitions, after.as_deref()).await.expect("a page");
        let Some((last, _)) = page.last() else { break };
        after = Some(last.clone());
        found.extend(page.into_iter().map(|(record, _)| String::from_utf8_lossy(&record)[..4].to_owned()));
        change(&store, put(&all("2"))).await;
    }
    assert!(found.iter().eq(&names), "{} of {}", found.len(), names.len());
}

#[tokio::test]
async fn a_cluster_keeps_definitions_through_a_failover() {
    let mut nodes = Redis::cluster(6, &[], (&[], &[]), &[]).await;
    let open = || open_as(nodes[5].port, RedisKind::Cluster, Keyring::new(&SealKey::new([1; 32]), &[]).expect("a key"));
    let ((one, tasks), (other, others)) = (open(), open());
    one.follow(&tasks);
    other.follow(&others);
    conformance::definitions(&one, conformance::SecretsAndDefinitions::Kept).await;
    many_definitions(&one, 200).await;
    // Before the failover, both replicas use the same definitions.
    let last = change(&one, put(&[("last", "before the failover")])).await;
    assert_eq!(used(&other).await, last);
    let failed = Redis::primary(&nodes, CATALOG).await.expect("one of the nodes is the primary");
    nodes[failed].stop().await;
    let end = Instant::now() + 30 * SECOND;
    // The first attempts fail; one of them may still have changed the catalog.
    while read(&other).await.is_none_or(|catalog| catalog == last) {
        assert!(Instant::now() < end, "the cluster does not recover");
        let _ = other.change_definitions(&last, put(&[("last", "after the failover")])).await;
        sleep(SECOND / 10).await;
    }
    let next = read(&other).await.expect("the cluster replies");
    assert_eq!((next.generation, next.entries.len()), (last.generation + 1, last.entries.len()));
    while read(&one).await.as_ref() != Some(&next) {
        assert!(Instant::now() < end, "the other replica does not read the change");
        sleep(SECOND / 10).await;
    }
    assert_eq!(in_force(&one).await["last"], "after the failover");
}
