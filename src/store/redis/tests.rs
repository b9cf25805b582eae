//! Tests against a real Redis: conformance, and behaviour specific to this store.
//!
//! Not here: fleets of replicas (`tests/it/fleet`).

mod definitions;
mod ttl;

use tokio::time::{sleep, timeout};

use super::*;
use crate::model::connection::{Identity, OriginSet};
use crate::model::secret::SealKey;
use crate::model::token::{AccessToken, RefreshToken, Subject};
use crate::model::{RedisAt, RedisKind};
use crate::store::{Notification, Refresh, conformance};
use rig::Redis;

#[path = "../../../tests/it/rig/redis.rs"]
#[allow(dead_code, reason = "the integration tests use the rest")]
mod rig;

const SECOND: Duration = Duration::from_secs(1);

fn open(redis: &Redis, key: u8) -> (RedisStore, Tasks) {
    open_with(redis, Keyring::new(&SealKey::new([key; 32]), &[]).expect("a key"))
}

fn open_with(redis: &Redis, keyring: Keyring) -> (RedisStore, Tasks) {
    open_as(redis.port, RedisKind::Server, keyring)
}

fn open_as(port: u16, kind: RedisKind, keyring: Keyring) -> (RedisStore, Tasks) {
    let settings = RedisSettings {
        servers: vec![RedisAt::Tcp { host: "127.0.0.1".to_owned(), port }],
        kind,
        tls: false,
        trust: None,
        database: 0,
        username: None,
        password: None,
        key_prefix: "keybearer:".to_owned(),
    };
    let tasks = Tasks::default();
    (RedisStore::new(settings, keyring, Clock::system(), &tasks, SecretsInUse::default()), tasks)
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

#[tokio::test]
async fn the_redis_store_conforms_as_a_shared_store() {
    let redis = Redis::start().await;
    let ((one, _t), (other, tasks)) = (open(&redis, 1), open(&redis, 1));
    other.follow(&tasks);
    conformance::every_store(&one, conformance::SecretsAndDefinitions::Kept).await;
    conformance::shared_store(&one, &other).await;
    let named = one.catalog().await.expect("a catalog").entries.len();
    assert_eq!(redis.cli(&["HLEN", "keybearer:{definitions}:definitions"]).await, named.to_string());
    assert_eq!(redis.cli(&["EXISTS", "keybearer:{definitions}:pending"]).await, "0", "lost changes left nothing");
}

#[tokio::test]
async fn a_lease_is_a_key_with_a_ttl() {
    let redis = Redis::start().await;
    let (store, _tasks) = open(&redis, 1);
    let lease = store.lease(&key("crm", None), SECOND / 2, SECOND).await.expect("a lease");
    let holder = redis.cli(&["GET", "keybearer:{crm}:lease:default"]).await;
    let ttl_ms: u64 = redis.cli(&["PTTL", "keybearer:{crm}:lease:default"]).await.parse().unwrap_or(0);
    assert!(holder.contains(':') && ttl_ms <= 500, "{holder} for {ttl_ms} ms");
    lease.release(true).await;
    assert_eq!(redis.cli(&["EXISTS", "keybearer:{crm}:lease:default"]).await, "0");
}

#[tokio::test]
async fn a_backoff_that_keybearer_did_not_write_is_ignored() {
    let redis = Redis::start().await;
    let (store, _tasks) = open(&redis, 1);
    let key = key("crm", None);
    for foreign in ["x", "1 1 true a b", "1 1 true \u{1f600}", "1 -1 maybe x", "1 1 maybe x"] {
        redis.cli(&["SET", "keybearer:{crm}:put-off:default", foreign]).await;
        let lease = store.lease(&key, SECOND, SECOND).await.expect("a lease");
        assert_eq!(lease.backoff(), None, "{foreign}");
        lease.release(true).await;
    }
}

#[tokio::test]
async fn records_are_sealed_and_expire_with_their_tokens() {
    let redis = Redis::start().await;
    let (store, _tasks) = open(&redis, 1);
    let crm = key("crm", None);
    for key in [&crm, &key("crm", Some("a")), &key("crm", Some("b"))] {
        save(&store, key, rotating("t")).await.expect("save succeeds");
    }
    redis.cli(&["DEL", "keybearer:{crm}:token:default/a"]).await;
    assert_eq!(store.list(&crm.connection, None, 10).await.expect("a page").len(), 2);
    assert_eq!(redis.cli(&["ZCARD", "keybearer:{crm}:tokens"]).await, "2", "an expired record leaves the index");

    let ttl = async |key: &str| redis.cli(&["PTTL", key]).await.parse::<u64>().expect("a TTL") / 1000;
    let day = 24 * 3600;
    assert!((399 * day..=401 * day).contains(&ttl("keybearer:{crm}:token:default").await));
    save(&store, &crm, token("t", Refresh::None)).await.expect("save succeeds");
    assert!((600..=661).contains(&ttl("keybearer:{crm}:token:default").await));
    let refused = Refresh::Refused { error: "invalid_grant".to_owned() };
    save(&store, &crm, token("t", refused)).await.expect("save succeeds");
    assert!((29 * day..=31 * day).contains(&ttl("keybearer:{crm}:token:default").await));

    let (wrong, _tasks) = open(&redis, 2);
    let refused = wrong.load(&crm).await;
    assert!(matches!(&refused, Err(StoreError::Unavailable(why)) if why.contains("add that key")), "{refused:?}");
    assert!(wrong.lease(&crm, SECOND, SECOND).await.is_err(), "and nothing is written");
}

#[tokio::test]
async fn the_index_does_not_keep_expired_records() {
    let redis = Redis::start().await;
    let (store, _tasks) = open(&redis, 1);
    let subjects: Vec<String> = (0..60).map(|number| format!("s{number}")).collect();
    for subject in &subjects {
        save(&store, &key("crm", Some(subject)), rotating("t")).await.expect("save succeeds");
        redis.cli(&["DEL", &format!("keybearer:{{crm}}:token:default/{subject}")]).await;
    }
    let count = async || redis.cli(&["ZCARD", "keybearer:{crm}:tokens"]).await.parse::<usize>().expect("a number");
    let end = Instant::now() + 15 * SECOND;
    loop {
        save(&store, &key("crm", None), rotating("t")).await.expect("save succeeds");
        if count().await == 1 {
            break;
        }
        assert!(Instant::now() < end, "{}", count().await);
    }
    assert_eq!(store.list(&key("crm", None).connection, None, 10).await.map(|page| page.len()), Ok(1));
}

#[tokio::test]
async fn secrets_are_sealed_and_a_note_has_a_ttl() {
    let redis = Redis::start().await;
    let ((store, _t), (other, _u)) = (open(&redis, 1), open(&redis, 1));
    store.put_secret("vault", Secret::new("s3cr3t")).await.expect("save succeeds");
    assert_eq!(other.secret("vault").await, Ok(Some(Secret::new("s3cr3t"))));
    assert!(!redis.cli(&["HGETALL", "keybearer:{secrets}:secrets"]).await.contains("s3cr3t"));
    let ends = Clock::system().now().wall + 60 * SECOND;
    assert_eq!(store.put_note("flow/1", Secret::new("n0te"), ends, None).await, Ok(true));
    assert_eq!(other.put_note("flow/1", Secret::new("late"), ends, None).await, Ok(false));
    assert!(!redis.cli(&["GET", "keybearer:{notes}:note:flow/1"]).await.contains("n0te"));
    assert!(redis.cli(&["PTTL", "keybearer:{notes}:note:flow/1"]).await.parse::<u64>().expect("a TTL") <= 60_000);
}

/// The stores keep secrets in use, as the configuration of a running process does.
#[tokio::test]
async fn a_lost_secret_is_written_back_unless_it_was_removed_or_replaced() {
    let mut redis = Redis::start().await;
    let ((early, _t), (late, _u), (admin, _v)) = (open(&redis, 1), open(&redis, 1), open(&redis, 1));
    let put = async |name: &str, text: &str| admin.put_secret(name, Secret::new(text)).await.expect("save succeeds");
    let read = async |store: &RedisStore, name: &str| store.secret(name).await.expect("Redis replies");
    put("kept", "one").await;
    put("removed", "r").await;
    for name in ["kept", "removed"] {
        assert!(read(&early, name).await.is_some());
    }
    sleep(SECOND / 100).await;
    put("kept", "two").await;
    assert_eq!(read(&late, "kept").await, Some(Secret::new("two")));
    put("unread", "u").await;
    assert_eq!(admin.remove_secret("removed").await, Ok(true));
    early.backend.restore_secrets().await.expect("Redis replies");
    assert_eq!(read(&admin, "removed").await, None, "it was removed on purpose");
    assert_eq!(read(&admin, "kept").await, Some(Secret::new("two")), "it is newer");

    redis.stop().await;
    redis.start_again().await;
    for store in [&late, &early, &admin] {
        // The first calls fail on the broken connection.
        let end = Instant::now() + 10 * SECOND;
        while store.backend.restore_secrets().await.is_err() || store.backend.check_reachable().await.is_err() {
            assert!(Instant::now() < end, "Redis is not reachable again");
            sleep(SECOND / 20).await;
        }
    }
    assert_eq!(read(&early, "kept").await, Some(Secret::new("two")));
    assert_eq!(read(&early, "unread").await, None);
    put("removed", "again").await;
    assert_eq!(read(&early, "removed").await, Some(Secret::new("again")));
}

#[tokio::test]
async fn replicas_are_notified_of_changes_and_interruptions() {
    let mut redis = Redis::start().await;
    let ((one, _t), (other, tasks)) = (open(&redis, 1), open(&redis, 1));
    let mut notifications = other.backend.subscribe();
    other.follow(&tasks);
    assert_eq!(timeout(5 * SECOND, notifications.recv()).await.expect("no timeout"), Ok(Notification::Missed));
    let key = key("crm", Some("ann"));
    // A replica is not notified of its own changes.
    save(&other, &key, rotating("own")).await.expect("save succeeds");
    save(&one, &key, rotating("t")).await.expect("save succeeds");
    assert_eq!(timeout(SECOND, notifications.recv()).await.expect("no timeout"), Ok(Notification::Changed(key)));
    redis.stop().await;
    redis.start_again().await;
    assert_eq!(timeout(5 * SECOND, notifications.recv()).await.expect("no timeout"), Ok(Notification::Missed));
}
