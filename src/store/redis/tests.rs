//! The store against a real Redis: leases, fences, pages, notes, secrets, news.
//!
//! Not here: what replicas make of it (`tests/it/fleet`).

mod kept;

use tokio::time::{sleep, timeout};

use super::*;
use crate::model::connection::{Identity, OriginSet};
use crate::model::secret::SealKey;
use crate::model::token::{AccessToken, RefreshToken, Subject};
use crate::model::{RedisAt, RedisKind};
use crate::store::PutOff;
use rig::Redis;

#[path = "../../../tests/it/rig/redis.rs"]
#[allow(dead_code, reason = "the integration tests use the rest")]
mod rig;

const SECOND: Duration = Duration::from_secs(1);

fn open(redis: &Redis, key: u8) -> (RedisStore, Tasks) {
    open_with(redis, Keyring::new(&SealKey::new([key; 32]), &[]).expect("a key"))
}

fn open_with(redis: &Redis, keyring: Keyring) -> (RedisStore, Tasks) {
    let settings = RedisSettings {
        servers: vec![RedisAt::Tcp { host: "127.0.0.1".to_owned(), port: redis.port }],
        kind: RedisKind::Server,
        tls: false,
        trust: None,
        database: 0,
        username: None,
        password: None,
        key_prefix: "keybearer:".to_owned(),
    };
    let tasks = Tasks::default();
    (RedisStore::new(settings, keyring, Clock::system(), &tasks, Lent::default()), tasks)
}

fn key(connection: &str, subject: Option<&str>) -> TokenKey {
    let key = TokenKey::of_connection(Name::parse(connection).expect("a name"));
    TokenKey { subject: subject.map(|text| Subject::parse(text).expect("a subject")), ..key }
}

fn token(text: &str, refresh: Refresh) -> StoredToken {
    StoredToken {
        identity: Identity::new([7; 32]),
        origins: Arc::new(OriginSet::from_lines(["tls api.test"]).expect("origins")),
        access_token: AccessToken::parse(text).expect("a token"),
        obtained: Clock::system().now(),
        lifetime: 60 * SECOND,
        scopes: None,
        refresh,
        refresh_life: Default::default(),
        version: 0,
    }
}

fn rotating(text: &str) -> StoredToken {
    token(text, Refresh::Token(RefreshToken::parse(&format!("r-{text}")).expect("a token")))
}

async fn save(store: &RedisStore, key: &TokenKey, token: StoredToken) -> Result<u64, StoreError> {
    let lease = store.lease(key, 5 * SECOND, SECOND).await?;
    let saved = store.save(key, token, &*lease).await;
    lease.release(true).await;
    saved
}

/// ST-12.
#[tokio::test]
async fn a_lease_has_one_holder_and_a_late_write_is_refused() {
    let redis = Redis::start().await;
    let ((one, _t), (other, _u)) = (open(&redis, 1), open(&redis, 1));
    let key = key("crm", None);
    let late = one.lease(&key, SECOND / 2, SECOND).await.expect("a lease");
    let busy = other.lease(&key, SECOND, SECOND / 10).await.err();
    assert_eq!(busy, Some(StoreError::LeaseTimeout { key: key.clone() }));
    late.renew(Some(0)).await.expect("it is ours");
    let text = redis.cli(&["GET", "keybearer:{crm}:lease:default"]).await;
    assert!(
        text.contains(':') && redis.cli(&["PTTL", "keybearer:{crm}:lease:default"]).await.parse().unwrap_or(0) <= 500
    );

    // It stands still past its term, and another comes.
    let next = other.lease(&key, 5 * SECOND, 2 * SECOND).await.expect("its term is over");
    assert!(next.is_in_doubt(), "the one before may have spent the refresh token");
    let lost = StoreError::LeaseLost { key: key.clone() };
    next.renew(Some(0)).await.expect("it is ours");
    assert_eq!(late.renew(Some(0)).await, Err(lost.clone()));
    assert_eq!(one.save(&key, rotating("late"), &*late).await, Err(lost.clone()));
    let version = other.save(&key, rotating("next"), &*next).await.expect("it is saved");
    next.release(true).await;
    assert_eq!(one.save(&key, rotating("late"), &*late).await, Err(lost.clone()), "nor when nobody holds it any more");
    assert_eq!(one.forget(&key, &*late).await, Err(lost));
    let loaded = one.load(&key).await.expect("it opens").expect("it is there");
    assert_eq!((loaded.access_token.expose(), loaded.version), ("next", version));
    drop(late);
    assert!(!one.lease(&key, SECOND, SECOND).await.expect("a lease").is_in_doubt(), "the doubt ended with the save");

    // Nobody came meanwhile: what was spent for it is not lost.
    sleep(SECOND).await;
    let late = one.lease(&key, SECOND / 10, SECOND).await.expect("a lease");
    sleep(SECOND / 5).await;
    assert!(one.save(&key, rotating("rescued"), &*late).await.expect("it is saved") > version);

    drop(late);
    // Nor while somebody has it who has spent nothing.
    let late = one.lease(&key, SECOND / 10, SECOND).await.expect("a lease");
    let held = one.load(&key).await.expect("it opens").map_or(0, |held| held.version);
    assert_eq!(late.renew(Some(held - 1)).await, Err(StoreError::LeaseLost { key: key.clone() }), "it has moved");
    late.renew(Some(held)).await.expect("it is ours");
    sleep(SECOND / 5).await;
    let next = other.lease(&key, SECOND, SECOND).await.expect("its term is over");
    assert!(next.is_in_doubt() && other.is_in_doubt(&key).await.expect("an answer"));
    one.save(&key, rotating("settled"), &*late).await.expect("it is saved");
    assert!(!other.is_in_doubt(&key).await.expect("an answer"));
    next.release(true).await;

    drop(late);
    // Whoever is cut off gives it back, and the doubt stays.
    let dropped = one.lease(&key, 30 * SECOND, SECOND).await.expect("a lease");
    let held = one.load(&key).await.expect("it opens").map_or(0, |held| held.version);
    dropped.renew(Some(held)).await.expect("it is ours");
    drop(dropped);
    assert!(other.lease(&key, SECOND, SECOND).await.expect("it was given back").is_in_doubt());
}

/// A holder that stood still brings back nothing that was removed meanwhile.
#[tokio::test]
async fn what_was_removed_is_not_written_back_by_who_is_late() {
    let redis = Redis::start().await;
    let ((one, _t), (other, _u)) = (open(&redis, 1), open(&redis, 1));
    let key = key("crm", None);
    let version = save(&one, &key, rotating("first")).await.expect("it is saved");
    let late = one.lease(&key, SECOND / 10, SECOND).await.expect("a lease");
    late.renew(Some(version)).await.expect("it is ours");
    sleep(SECOND / 5).await;
    let lease = other.lease(&key, SECOND, SECOND).await.expect("its term is over");
    other.forget(&key, &*lease).await.expect("it is forgotten");
    lease.release(true).await;
    let lost = Err(StoreError::LeaseLost { key: key.clone() });
    assert_eq!(one.save(&key, rotating("late"), &*late).await, lost);
    let first = StoredToken { version, ..rotating("first") };
    one.restore(&key, first).await.expect("an answer");
    assert_eq!(other.load(&key).await, Ok(None));
    // What is newer than the removal, and was lost, comes back.
    let newer = StoredToken { version: lease_version(&other, &key).await, ..rotating("newer") };
    one.restore(&key, newer.clone()).await.expect("an answer");
    assert_eq!(other.load(&key).await.expect("it opens").map(|held| held.access_token), Some(newer.access_token));
}

#[tokio::test]
async fn who_takes_the_lease_is_told_that_the_server_gives_no_token() {
    let redis = Redis::start().await;
    let ((one, _t), (other, _u)) = (open(&redis, 1), open(&redis, 1));
    let key = key("crm", None);
    let told = PutOff {
        wait: 30 * SECOND,
        age: Duration::ZERO,
        permanent: true,
        failures: 3,
        error: "invalid_client".to_owned(),
    };
    let lease = one.lease(&key, SECOND, SECOND).await.expect("a lease");
    assert_eq!(lease.put_off(), None);
    lease.put_off_others(&told).await.expect("they are told");
    lease.release(true).await;
    let lease = other.lease(&key, SECOND, SECOND).await.expect("a lease");
    let heard = lease.put_off().expect("it is told").clone();
    assert!((29 * SECOND..=30 * SECOND).contains(&heard.wait), "{heard:?}");
    assert!(heard.age < SECOND, "{heard:?}");
    assert_eq!(PutOff { wait: told.wait, age: told.age, ..heard }, told);
    other.save(&key, rotating("t"), &*lease).await.expect("it is saved");
    lease.release(true).await;
    let lease = one.lease(&key, SECOND, SECOND).await.expect("a lease");
    assert_eq!(lease.put_off(), None, "a token ends it");
    lease.release(true).await;
    for foreign in ["x", "1 1 true a b", "1 1 true \u{1f600}", "1 -1 maybe x", "1 1 maybe x"] {
        redis.cli(&["SET", "keybearer:{crm}:put-off:default", foreign]).await;
        assert_eq!(one.lease(&key, SECOND, SECOND).await.expect("a lease").put_off(), None, "{foreign}");
        sleep(SECOND / 10).await;
    }
}

/// A version that is newer than all before.
async fn lease_version(store: &RedisStore, key: &TokenKey) -> u64 {
    let lease = store.lease(key, SECOND, SECOND).await.expect("a lease");
    let version = lease.fence().expect("a fence").version;
    lease.release(true).await;
    version
}

#[tokio::test]
async fn records_are_sealed_listed_in_pages_and_end_with_what_they_hold() {
    let redis = Redis::start().await;
    let (store, _tasks) = open(&redis, 1);
    let mut keys = vec![key("crm", None)];
    keys.extend(["-", "a", "b", "c", "z@x"].map(|subject| key("crm", Some(subject))));
    for key in keys.iter().chain(&[key("cr", None), key("crm2", Some("a"))]) {
        save(&store, key, rotating("t")).await.expect("it is saved");
    }
    let listed = async |after: Option<&TokenKey>, limit| {
        let page = store.list(&keys[0].connection, after, limit).await.expect("a page");
        page.into_iter().map(|(key, token)| token.map(|_| key).expect("it opens")).collect::<Vec<_>>()
    };
    assert_eq!(listed(None, 10).await, keys);
    assert_eq!(listed(Some(&keys[0]), 2).await, keys[1..3]);
    assert_eq!(listed(Some(&key("cq", None)), 2).await, keys[..2]);
    assert_eq!(listed(Some(&key("crn", None)), 2).await, []);
    // One that has ended leaves the index.
    redis.cli(&["DEL", "keybearer:{crm}:token:default/a"]).await;
    assert_eq!(listed(Some(&keys[0]), 2).await, [keys[1].clone(), keys[3].clone()]);
    assert_eq!(redis.cli(&["ZCARD", "keybearer:{crm}:tokens"]).await, "5");

    let removed = async |key, after| store.was_removed(key, after).await.expect("an answer");
    assert!(!removed(&keys[0], 0).await);
    let lease = store.lease(&keys[0], SECOND, SECOND).await.expect("a lease");
    let before = lease.replaces();
    store.forget(&keys[0], &*lease).await.expect("it is forgotten");
    lease.release(true).await;
    assert_eq!((store.load(&keys[0]).await, removed(&keys[0], before).await), (Ok(None), true));
    let lease = store.lease(&keys[0], SECOND, SECOND).await.expect("a lease");
    assert!(lease.replaces() > before && !removed(&keys[0], lease.replaces()).await, "what comes now is newer");
    lease.release(true).await;
    save(&store, &keys[0], rotating("again")).await.expect("it is saved");
    assert!(!removed(&keys[0], 0).await);

    let life = async |key: &str| redis.cli(&["PTTL", key]).await.parse::<u64>().expect("it ends") / 1000;
    let day = 24 * 3600;
    assert!((399 * day..=401 * day).contains(&life("keybearer:{crm}:token:default").await));
    save(&store, &keys[0], token("t", Refresh::None)).await.expect("it is saved");
    assert!((600..=661).contains(&life("keybearer:{crm}:token:default").await));
    let refused = Refresh::Refused { error: "invalid_grant".to_owned() };
    save(&store, &keys[0], token("t", refused)).await.expect("it is saved");
    assert!((29 * day..=31 * day).contains(&life("keybearer:{crm}:token:default").await));

    let (wrong, _tasks) = open(&redis, 2);
    let refused = wrong.load(&keys[0]).await;
    assert!(matches!(&refused, Err(StoreError::Unavailable(why)) if why.contains("add that key")), "{refused:?}");
    assert!(wrong.lease(&keys[0], SECOND, SECOND).await.is_err(), "nor is anything written");
}

#[tokio::test]
async fn the_index_does_not_grow_with_all_that_there_ever_were() {
    let redis = Redis::start().await;
    let (store, _tasks) = open(&redis, 1);
    let subjects: Vec<String> = (0..60).map(|number| format!("s{number}")).collect();
    for subject in &subjects {
        save(&store, &key("crm", Some(subject)), rotating("t")).await.expect("it is saved");
        redis.cli(&["DEL", &format!("keybearer:{{crm}}:token:default/{subject}")]).await;
    }
    let count = async || redis.cli(&["ZCARD", "keybearer:{crm}:tokens"]).await.parse::<usize>().expect("a number");
    let end = Instant::now() + 15 * SECOND;
    loop {
        save(&store, &key("crm", None), rotating("t")).await.expect("it is saved");
        if count().await == 1 {
            break;
        }
        assert!(Instant::now() < end, "{}", count().await);
    }
    assert_eq!(store.list(&key("crm", None).connection, None, 10).await.map(|page| page.len()), Ok(1));
}

#[tokio::test]
async fn secrets_and_notes_are_kept_and_a_version_is_written_over_once() {
    let redis = Redis::start().await;
    let ((store, _t), (other, _u)) = (open(&redis, 1), open(&redis, 1));
    store.put_secret("b/secret", Secret::new("s3cr3t")).await.expect("it is kept");
    store.put_secret("a", Secret::new("x")).await.expect("it is kept");
    assert_eq!(other.secret("b/secret").await, Ok(Some(Secret::new("s3cr3t"))));
    assert_eq!(other.secret_names().await.expect("names"), ["a", "b/secret"]);
    assert_eq!((other.remove_secret("a").await, other.remove_secret("a").await), (Ok(true), Ok(false)));
    assert_eq!(store.secret("a").await, Ok(None));
    assert!(!redis.cli(&["HGETALL", "keybearer:{secrets}:secrets"]).await.contains("s3cr3t"));

    let wall = Clock::system().now().wall;
    let text = |text: &str| Secret::new(text.to_owned());
    assert_eq!(store.put_note("flow/1", text("one"), wall + 60 * SECOND, None).await, Ok(true));
    assert_eq!(other.put_note("flow/1", text("late"), wall + 60 * SECOND, None).await, Ok(false));
    let note = other.note("flow/1").await.expect("it opens").expect("it is there");
    assert_eq!(note.text, text("one"));
    assert_eq!(other.put_note("flow/1", text("two"), wall + 60 * SECOND, Some(note.version)).await, Ok(true));
    assert_eq!(store.put_note("flow/1", text("late"), wall + 60 * SECOND, Some(note.version)).await, Ok(false));
    assert_eq!(store.put_note("flow/2", text("short"), wall + SECOND, None).await, Ok(true));
    assert_eq!(store.put_note("other", text("other"), wall + 60 * SECOND, None).await, Ok(true));
    assert_eq!(other.note_names("flow/").await.expect("names"), ["flow/1", "flow/2"]);
    sleep(SECOND + SECOND / 5).await;
    assert_eq!(store.note("flow/2").await, Ok(None));
    assert_eq!(other.note_names("flow/").await.expect("names"), ["flow/1"]);
    assert!(redis.cli(&["PTTL", "keybearer:{notes}:note:flow/1"]).await.parse::<u64>().expect("it ends") <= 60_000);
}

#[tokio::test]
async fn a_full_share_of_notes_drops_its_own_first_note_and_no_other() {
    let redis = Redis::start().await;
    let (store, _tasks) = open(&redis, 1);
    crate::store::tests::fill_a_share(&store).await;
}

/// The configuration of a running process has it in use.
#[tokio::test]
async fn a_secret_that_redis_has_lost_is_written_back_unless_it_was_removed_or_replaced() {
    let mut redis = Redis::start().await;
    let ((early, _t), (late, _u), (nobody, _v)) = (open(&redis, 1), open(&redis, 1), open(&redis, 1));
    let put = async |name: &str, text: &str| nobody.put_secret(name, Secret::new(text)).await.expect("it is kept");
    let read = async |store: &RedisStore, name: &str| store.secret(name).await.expect("Redis answers");
    put("kept", "one").await;
    put("removed", "r").await;
    for name in ["kept", "removed"] {
        assert!(read(&early, name).await.is_some());
    }
    sleep(SECOND / 100).await;
    put("kept", "two").await;
    assert_eq!(read(&late, "kept").await, Some(Secret::new("two")));
    put("unread", "u").await;
    assert_eq!(nobody.remove_secret("removed").await, Ok(true));
    early.shared.restore_secrets().await.expect("Redis answers");
    assert_eq!(read(&nobody, "removed").await, None, "somebody has removed it");
    assert_eq!(read(&nobody, "kept").await, Some(Secret::new("two")), "it is newer");

    redis.stop().await;
    redis.start_again().await;
    for store in [&late, &early, &nobody] {
        // The first calls meet the connection of before.
        let end = Instant::now() + 10 * SECOND;
        while store.shared.restore_secrets().await.is_err() || store.stands().await.is_err() {
            assert!(Instant::now() < end, "it is not found again");
            sleep(SECOND / 20).await;
        }
    }
    assert_eq!(read(&early, "kept").await, Some(Secret::new("two")));
    assert_eq!(read(&early, "unread").await, None);
    put("removed", "again").await;
    assert_eq!(read(&early, "removed").await, Some(Secret::new("again")));
}

#[tokio::test]
async fn changes_are_told_to_the_others_and_a_break_is_told_too() {
    let mut redis = Redis::start().await;
    let ((one, _t), (other, tasks)) = (open(&redis, 1), open(&redis, 1));
    let mut news = other.news().expect("it is shared");
    other.follow(&tasks);
    assert_eq!(timeout(5 * SECOND, news.recv()).await.expect("in time"), Ok(News::Missed));
    let key = key("crm", Some("ann"));
    // Its own changes are no news.
    save(&other, &key, rotating("own")).await.expect("it is saved");
    save(&one, &key, rotating("t")).await.expect("it is saved");
    assert_eq!(timeout(SECOND, news.recv()).await.expect("in time"), Ok(News::Changed(key)));
    redis.stop().await;
    redis.start_again().await;
    assert_eq!(timeout(5 * SECOND, news.recv()).await.expect("in time"), Ok(News::Missed));
}
