//! Tests of TTLs, and of resealing while replicas write.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::store::transfer::{self, OpenedRecord, Records as _, Table, Tally};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Seals under the first key and opens both.
fn open_both(redis: &Redis, keys: [u8; 2]) -> (RedisStore, Tasks) {
    let keys = keys.map(|byte| SealKey::new([byte; 32]));
    open_with(redis, Keyring::new(&keys[0], &keys[1..]).expect("keys"))
}

fn with_stated_lifetime(text: &str, life: Duration) -> StoredToken {
    let mut token = rotating(text);
    token.refresh_life.since = Some(Clock::system().now().wall);
    token.refresh_life.stated = Some(life);
    token
}

#[tokio::test]
async fn a_stated_lifetime_lengthens_the_ttl_and_never_shortens_it() {
    let redis = Redis::start().await;
    let (store, _tasks) = open(&redis, 1);
    let crm = key("crm", None);
    let days = async |key: &str| redis.cli(&["PTTL", key]).await.parse::<u64>().expect("a TTL") / 1000 / 86_400;
    let keys = ["keybearer:{crm}:token:default", "keybearer:{crm}:tokens", "keybearer:connections"];
    save(&store, &crm, with_stated_lifetime("t", DAY)).await.expect("save succeeds");
    for key in keys {
        assert_eq!(days(key).await, 400, "{key}");
    }
    save(&store, &crm, with_stated_lifetime("t", 1000 * DAY)).await.expect("save succeeds");
    for key in keys {
        assert_eq!(days(key).await, 1000, "{key}");
    }
    // A later save with a shorter TTL shortens the TTL of neither the index nor the set of connections.
    save(&store, &key("crm", Some("ann")), rotating("t")).await.expect("save succeeds");
    assert_eq!(days(keys[0]).await, 1000);
    assert_eq!((days(keys[1]).await, days(keys[2]).await), (1000, 1000));
}

#[tokio::test]
async fn resealing_keeps_concurrent_changes() {
    let redis = Redis::start().await;
    let ((old, _t), (new, tasks)) = (open_both(&redis, [1, 2]), open_both(&redis, [2, 1]));
    let (changed, gone, same) = (key("crm", None), key("crm", Some("gone")), key("crm", Some("same")));
    for key in [&changed, &gone, &same] {
        save(&old, key, rotating("before")).await.expect("save succeeds");
    }
    for name in ["changed", "gone", "same"] {
        old.put_secret(name, Secret::new("before")).await.expect("save succeeds");
    }
    let mut read = Vec::new();
    for table in [Table::Tokens, Table::Secrets] {
        let page = new.backend.page(table, None).await.expect("a page");
        read.extend(page.into_iter().map(|(name, sealed)| (table, name, sealed)));
    }
    save(&old, &changed, rotating("after")).await.expect("save succeeds");
    let lease = old.lease(&gone, SECOND, SECOND).await.expect("a lease");
    old.forget(&gone, &*lease).await.expect("forget succeeds");
    lease.release(true).await;
    old.put_secret("changed", Secret::new("after")).await.expect("save succeeds");
    assert_eq!(old.remove_secret("gone").await, Ok(true));
    let mut tally = Tally::default();
    for (table, name, sealed) in read {
        tally += new.backend.reseal(table, &name, sealed).await.expect("Redis replies");
    }
    assert_eq!(tally, Tally { written: 4, kept: 2, unopened: 0 });

    // A third replica has the new key only.
    let records = new.records(tokio::runtime::Handle::current());
    tasks.blocking(move || records.finish_reseal()).await.expect("the task completes").expect("Redis replies");
    let (store, _v) = open(&redis, 2);
    let text = async |key: &TokenKey| {
        store.load(key).await.expect("load succeeds").map(|held| held.access_token.expose().to_owned())
    };
    assert_eq!(text(&changed).await.as_deref(), Some("after"));
    assert_eq!((text(&gone).await, text(&same).await.as_deref()), (None, Some("before")));
    let secret = async |name: &str| store.secret(name).await.expect("load succeeds");
    assert_eq!(secret("changed").await, Some(Secret::new("after")));
    assert_eq!((secret("gone").await, secret("same").await), (None, Some(Secret::new("before"))));
}

/// The same while a replica keeps writing.
#[tokio::test]
async fn no_write_is_lost_while_records_are_resealed() {
    let redis = Redis::start().await;
    let ((old, _t), (new, tasks)) = (open_both(&redis, [1, 2]), open_both(&redis, [2, 1]));
    let names: Vec<String> = (0..200).map(|number| format!("s{number:03}")).collect();
    let mut last = std::collections::BTreeMap::new();
    for name in &names {
        old.put_secret(name, Secret::new("0")).await.expect("save succeeds");
    }
    let (records, ended) = (new.records(tokio::runtime::Handle::current()), AtomicBool::new(false));
    let resealing = async {
        let resealed = tasks.blocking(move || transfer::reseal(&records, &mut |_, _| {})).await;
        ended.store(true, Ordering::SeqCst);
        resealed.expect("the task completes").expect("everything is resealed")
    };
    let writing = async {
        let mut written = 0;
        while !ended.load(Ordering::SeqCst) {
            written += 1;
            let name = &names[fastrand::usize(..names.len())];
            old.put_secret(name, Secret::new(written.to_string())).await.expect("save succeeds");
            last.insert(name, written.to_string());
        }
        written
    };
    let (_, written) = tokio::join!(resealing, writing);
    assert!(written > 20, "only {written} concurrent writes: the test proves nothing");
    for (name, text) in last {
        assert_eq!(old.secret(name).await, Ok(Some(Secret::new(&text))), "{name}");
    }
}

#[tokio::test]
async fn an_import_overwrites_a_newer_secret_only_if_overwrite_is_set() {
    let redis = Redis::start().await;
    let (store, tasks) = open(&redis, 1);
    store.put_secret("a", Secret::new("present")).await.expect("save succeeds");
    let early =
        || OpenedRecord { table: Table::Secrets, name: b"a".to_vec(), version: 5, text: b"early".to_vec().into() };
    let handle = tokio::runtime::Handle::current();
    for (overwrite, counts, text) in [
        (false, Tally { kept: 1, ..Tally::default() }, "present"),
        (true, Tally { written: 1, ..Tally::default() }, "early"),
    ] {
        let (records, page) = (store.records(handle.clone()), vec![early()]);
        let put = tasks.blocking(move || records.put(page, overwrite)).await.expect("the task completes");
        assert_eq!(put, Ok(counts));
        assert_eq!(store.secret("a").await, Ok(Some(Secret::new(text))));
    }
}
