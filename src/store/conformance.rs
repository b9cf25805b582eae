//! Conformance tests: the contract of the store traits.
//!
//! Each store calls [`every_store`] from its own tests, on an empty store; a shared one also calls [`shared_store`]
//! with two handles on the same store, like two replicas.
//! Not here: tests of a single store (next to the store), fleets of replicas (`tests/it/fleet`).

pub mod crash;
mod definitions;
mod shared;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::*;
use crate::clock::Clock;
use crate::model::connection::Connection;
use crate::model::token::{AccessToken, RefreshToken, Subject};
pub use definitions::{change, definitions, in_force, many_definitions, name, put};
pub use shared::shared_store;

const SECOND: Duration = Duration::from_secs(1);

/// How the store treats secrets and definitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretsAndDefinitions {
    Kept,
    Refused,
}

/// Runs against any empty store.
pub async fn every_store(store: &dyn Store, kept: SecretsAndDefinitions) {
    a_save_replaces_the_record_with_a_newer_version(store).await;
    a_lease_has_one_holder_at_a_time(store).await;
    a_list_has_pages_of_one_connection(store).await;
    a_forgotten_record_is_gone(store).await;
    secrets_are_put_listed_and_removed(store, kept).await;
    definitions(store, kept).await;
    only_one_of_two_writers_replaces_a_note(store).await;
    an_expired_note_is_gone(store).await;
    a_full_namespace_evicts_its_note_that_expires_first(store).await;
}

/// True in a long run, which `.ci/long` starts.
#[allow(clippy::disallowed_methods, reason = "the duration of a test run is not configuration")]
pub fn long_run() -> bool {
    std::env::var_os("KEYBEARER_LONG").is_some()
}

fn key(connection: &str, subject: Option<&str>) -> TokenKey {
    let key = TokenKey::of_connection(Name::parse(connection).expect("a name"));
    TokenKey { subject: subject.map(|text| Subject::parse(text).expect("a subject")), ..key }
}

fn token(text: &str) -> StoredToken {
    let connection = Connection::sample("crm");
    StoredToken {
        identity: connection.identity(),
        origins: Arc::new(connection.origins()),
        access_token: AccessToken::parse(text).expect("a token"),
        obtained: Clock::system().now(),
        lifetime: 60 * SECOND,
        scopes: Some(vec!["read".to_owned()]),
        refresh: Refresh::Token(RefreshToken::parse(&format!("refresh-{text}")).expect("a token")),
        refresh_life: RefreshLife::default(),
        version: 0,
    }
}

async fn save(store: &dyn Store, key: &TokenKey, text: &str) -> u64 {
    let lease = store.lease(key, 5 * SECOND, SECOND).await.expect("a lease");
    let version = store.save(key, token(text), &*lease).await.expect("it is saved");
    lease.release(true).await;
    version
}

/// The access token of a record.
async fn saved(store: &dyn Store, key: &TokenKey) -> Option<String> {
    store.load(key).await.expect("it opens").map(|held| held.access_token.expose().to_owned())
}

async fn version(store: &dyn Store, key: &TokenKey) -> u64 {
    store.load(key).await.expect("it opens").map_or(0, |held| held.version)
}

async fn a_save_replaces_the_record_with_a_newer_version(store: &dyn Store) {
    let key = key("saved", None);
    assert_eq!(store.load(&key).await, Ok(None));
    let first = save(store, &key, "first").await;
    let second = save(store, &key, "second").await;
    assert!(second > first, "{second} after {first}");
    let found = store.load(&key).await.expect("it opens").expect("it exists");
    assert_eq!(found, StoredToken { obtained: found.obtained, version: second, ..token("second") });
}

async fn a_lease_has_one_holder_at_a_time(store: &dyn Store) {
    let (key, other) = (key("leased", None), key("leased", Some("ann")));
    let held = store.lease(&key, 5 * SECOND, SECOND).await.expect("a lease");
    let busy = store.lease(&key, 5 * SECOND, SECOND / 10).await.err();
    assert_eq!(busy, Some(StoreError::LeaseTimeout { key: key.clone() }));
    drop(store.lease(&other, SECOND, SECOND).await.expect("another key has another lease"));
    held.renew(None).await.expect("it is held");
    held.release(true).await;
    let lease = store.lease(&key, SECOND, SECOND).await.expect("it was released");
    drop(lease);
    store.lease(&key, SECOND, SECOND).await.expect("a dropped lease is released too").release(true).await;
}

async fn a_list_has_pages_of_one_connection(store: &dyn Store) {
    let mut keys = vec![key("list", None)];
    keys.extend(["-", "a", "b", "z@x"].map(|subject| key("list", Some(subject))));
    keys.push(TokenKey { profile: Name::parse("default-x").expect("a name"), ..keys[0].clone() });
    assert!(keys.is_sorted());
    for key in keys.iter().chain(&[key("lis", Some("z")), key("list-2", None), key("list2", Some("a"))]) {
        save(store, key, "listed").await;
    }
    let listed = async |after: Option<&TokenKey>, limit| {
        let page = store.list(&keys[0].connection, after, limit).await.expect("a page");
        page.into_iter().map(|(key, token)| token.map(|_| key).expect("it opens")).collect::<Vec<_>>()
    };
    assert_eq!(listed(None, 100).await, keys);
    assert_eq!(listed(None, 2).await, keys[..2]);
    assert_eq!(listed(Some(&keys[1]), 3).await, keys[2..5]);
    assert_eq!(listed(keys.last(), 3).await, []);
    assert_eq!(listed(Some(&key("a", None)), 1).await, keys[..1]);
    assert_eq!(listed(Some(&key("zz", None)), 3).await, []);
}

async fn a_forgotten_record_is_gone(store: &dyn Store) {
    let key = key("forgotten", None);
    save(store, &key, "first").await;
    let lease = store.lease(&key, SECOND, SECOND).await.expect("a lease");
    store.forget(&key, &*lease).await.expect("it is forgotten");
    lease.release(true).await;
    assert_eq!(store.load(&key).await, Ok(None));
    assert!(store.list(&key.connection, None, 10).await.expect("a page").is_empty());
    save(store, &key, "again").await;
    assert_eq!(saved(store, &key).await.as_deref(), Some("again"));
}

async fn secrets_are_put_listed_and_removed(store: &dyn Store, kept: SecretsAndDefinitions) {
    assert_eq!(store.secret("b/secret").await, Ok(None));
    let put = store.put_secret("b/secret", Secret::new("s3cr3t")).await;
    if kept == SecretsAndDefinitions::Refused {
        assert!(matches!(put, Err(StoreError::Unsupported(_))), "{put:?}");
        assert_eq!(store.secret_names().await, Ok(Vec::new()));
        assert_eq!(store.remove_secret("b/secret").await, Ok(false));
        return;
    }
    put.expect("it is kept");
    store.put_secret("a", Secret::new("old")).await.expect("it is kept");
    store.put_secret("a", Secret::new("new")).await.expect("it is kept");
    assert_eq!(store.secret("a").await, Ok(Some(Secret::new("new"))));
    assert_eq!(store.secret_names().await.expect("names"), ["a", "b/secret"]);
    assert_eq!((store.remove_secret("a").await, store.remove_secret("a").await), (Ok(true), Ok(false)));
    assert_eq!(store.secret("a").await, Ok(None));
    assert_eq!(store.secret("b/secret").await, Ok(Some(Secret::new("s3cr3t"))));
    for (name, length) in [("", 1), (&*"n".repeat(513), 1), ("long", 64 * 1024 + 1)] {
        let put = store.put_secret(name, Secret::new("x".repeat(length))).await;
        assert!(matches!(put, Err(StoreError::Unsupported(_))), "{put:?}");
    }
}

async fn only_one_of_two_writers_replaces_a_note(store: &dyn Store) {
    let ends = Clock::system().now().wall + 60 * SECOND;
    let put = async |text: &str, over| store.put_note("swap/1", Secret::new(text), ends, over).await;
    assert_eq!(store.note("swap/1").await, Ok(None));
    assert_eq!(put("none to replace", Some(1)).await, Ok(false));
    assert_eq!((put("one", None).await, put("late", None).await), (Ok(true), Ok(false)));
    let first = store.note("swap/1").await.expect("it opens").expect("it exists");
    assert_eq!(first.text, Secret::new("one"));
    assert_eq!((put("two", Some(first.version)).await, put("late", Some(first.version)).await), (Ok(true), Ok(false)));
    let second = store.note("swap/1").await.expect("it opens").expect("it exists");
    assert_eq!(second.text, Secret::new("two"));
    let long = store.put_note("swap/2", Secret::new("x".repeat(NOTE_BYTES_MAX + 1)), ends, None).await;
    assert_eq!(long, Err(LONG_NOTE));
}

async fn an_expired_note_is_gone(store: &dyn Store) {
    let put = async |name: &str, life| {
        store.put_note(name, Secret::new("text"), Clock::system().now().wall + life, None).await
    };
    assert_eq!((put("expiry/short", SECOND).await, put("expiry/long", 60 * SECOND).await), (Ok(true), Ok(true)));
    timeout(10 * SECOND, async {
        while store.note("expiry/short").await.expect("the store replies").is_some() {
            sleep(SECOND / 20).await;
        }
    })
    .await
    .expect("it expires");
    assert_eq!(store.note_names("expiry/").await.expect("names"), ["expiry/long"]);
    assert_eq!(put("expiry/short", 60 * SECOND).await, Ok(true), "the name can be used again");
}

async fn a_full_namespace_evicts_its_note_that_expires_first(store: &dyn Store) {
    let ends = Clock::system().now().wall + 600 * SECOND;
    let put = async |name: String, at: usize| {
        store.put_note(&name, Secret::new("text"), ends + Duration::from_secs(at as u64), None).await
    };
    for name in ["flow/other/1", "flow/2"] {
        assert_eq!(put(name.to_owned(), 0).await, Ok(true));
    }
    for at in 0..NOTES_PER_NAMESPACE_MAX + 2 {
        assert_eq!(put(format!("flow/full/{at}"), at).await, Ok(true), "{at}");
    }
    let names = store.note_names("flow/").await.expect("names");
    assert_eq!(names.len(), NOTES_PER_NAMESPACE_MAX + 2);
    for (name, kept) in [("full/0", false), ("full/1", false), ("full/2", true), ("other/1", true), ("2", true)] {
        let name = format!("flow/{name}");
        let found = store.note(&name).await.expect("the store replies").is_some();
        assert_eq!((names.contains(&name), found), (kept, kept), "{name}");
    }
    assert_eq!(store.note_names("flow/o").await.expect("names"), ["flow/other/1"]);
}
