//! Tests of the embedded store on real files.

mod damage;
mod definitions;
mod failure;
mod transfer;
mod sweep;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use tempfile::TempDir;

use super::*;
use crate::model::connection::Connection;
use crate::model::secret::SealKey;
use crate::model::token::{AccessToken, RefreshToken, Subject};
use crate::store::transfer::Records;
use crate::store::{Refresh, conformance};

const SECOND: Duration = Duration::from_secs(1);

fn ring(first: u8, others: &[u8]) -> Keyring {
    let key = |byte: &u8| SealKey::new([*byte; 32]);
    Keyring::new(&key(&first), &others.iter().map(key).collect::<Vec<_>>()).unwrap()
}

fn open_at(path: &Path, keyring: Keyring) -> Result<EmbeddedStore, OpenError> {
    EmbeddedStore::open(path, keyring, Clock::system(), &Tasks::default())
}

/// A store, its file, and the directory that holds the file.
fn store() -> (TempDir, PathBuf, EmbeddedStore) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state/tokens.redb");
    let store = open_at(&path, ring(1, &[])).unwrap();
    (dir, path, store)
}

fn token(text: &str) -> StoredToken {
    let connection = Connection::sample("crm");
    StoredToken {
        identity: connection.identity(),
        origins: Arc::new(connection.origins()),
        access_token: AccessToken::parse(&format!("access-{text}")).unwrap(),
        obtained: Clock::system().now(),
        lifetime: Duration::from_secs(60),
        scopes: Some(vec!["read".to_owned()]),
        refresh: Refresh::Token(RefreshToken::parse(&format!("refresh-{text}")).unwrap()),
        refresh_life: crate::store::RefreshLife::default(),
        version: 0,
    }
}

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

fn key(connection: &str, subject: &str) -> TokenKey {
    TokenKey::of_subject(name(connection), Subject::parse(subject).unwrap())
}

async fn save(store: &EmbeddedStore, key: &TokenKey, token: StoredToken) -> Result<(), StoreError> {
    let lease = store.lease(key, SECOND, SECOND).await?;
    store.save(key, token, &*lease).await.map(|_| ())
}

#[tokio::test]
async fn the_embedded_store_conforms() {
    let (_dir, _path, store) = store();
    conformance::every_store(&store, conformance::SecretsAndDefinitions::Kept).await;
}

#[tokio::test]
async fn saves_and_removals_persist_across_restarts() {
    let (_dir, path, store) = store();
    let every: String =
        (0u8..128).map(char::from).filter(|c| c.is_ascii_alphanumeric() || "._@:+-".contains(*c)).collect();
    let keys =
        [TokenKey::of_connection(name("crm")), key("crm", &every), key("crm", &"x".repeat(128)), key("erp", "a")];
    for (number, key) in keys.iter().enumerate() {
        save(&store, key, token("old")).await.unwrap();
        save(&store, key, token(&number.to_string())).await.unwrap();
    }
    save(&store, &key("crm", "gone"), token("gone")).await.unwrap();
    let lease = store.lease(&key("crm", "gone"), SECOND, SECOND).await.unwrap();
    store.forget(&key("crm", "gone"), &*lease).await.unwrap();
    store.put_secret("connections/crm/client_secret", Secret::new("s3cr3t")).await.unwrap();
    store.put_secret("other", Secret::new("x")).await.unwrap();
    assert_eq!(store.remove_secret("other").await, Ok(true));
    assert_eq!(store.remove_secret("other").await, Ok(false));
    drop(store);
    let store = open_at(&path, ring(1, &[])).unwrap();
    for (number, key) in keys.iter().enumerate() {
        let found = store.load(key).await.unwrap().unwrap();
        let expected = StoredToken { obtained: found.obtained, version: found.version, ..token(&number.to_string()) };
        assert_eq!(found, expected);
    }
    assert_eq!(store.load(&key("crm", "gone")).await, Ok(None));
    assert_eq!(store.secret_names().await.unwrap(), ["connections/crm/client_secret"]);
    let secret = Some(Secret::new("s3cr3t"));
    assert_eq!(store.secret("connections/crm/client_secret").await, Ok(secret.clone()));
    assert_eq!(store.secret_blocking("connections/crm/client_secret"), Ok(secret));
    assert_eq!(store.secret_blocking("other"), Ok(None));
}

#[tokio::test]
async fn concurrent_saves_all_succeed() {
    let (_dir, _path, store) = store();
    let keys: Vec<_> = (0..600).map(|number| key("crm", &number.to_string())).collect();
    let saves = keys.iter().map(|key| save(&store, key, token("a")));
    for saved in futures_util::future::join_all(saves).await {
        saved.unwrap();
    }
    assert_eq!(store.list(&name("crm"), None, 1000).await.unwrap().len(), keys.len());
}

#[test]
fn only_one_process_opens_the_file() {
    let (_dir, path, store) = store();
    let refused = open_at(&path, ring(1, &[])).err().unwrap();
    assert!(matches!(refused, OpenError::InUse { .. }), "{refused}");
    assert!(refused.to_string().contains("in use by another process"));
    drop(store);
    open_at(&path, ring(1, &[])).unwrap();
}

#[test]
fn the_file_is_private_and_symbolic_links_to_it_are_refused() {
    let (dir, path, store) = store();
    assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
    assert_eq!(path.parent().unwrap().metadata().unwrap().mode() & 0o777, 0o700);
    drop(store);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    drop(open_at(&path, ring(1, &[])).unwrap());
    assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
    let at = |name: &str| dir.path().join(name);
    symlink(&path, at("link")).unwrap();
    symlink(at("nowhere"), at("dangling")).unwrap();
    for name in ["link", "dangling", "state"] {
        let refused = open_at(&at(name), ring(1, &[])).err().unwrap();
        assert!(matches!(refused, OpenError::Io { .. }), "{name}: {refused}");
    }
    assert!(!at("nowhere").exists());
}

#[tokio::test]
async fn a_wrong_key_is_refused_and_changes_nothing() {
    let (_dir, path, store) = store();
    save(&store, &key("crm", "a"), token("a")).await.unwrap();
    drop(store);
    let before = std::fs::read(&path).unwrap();
    let (right, wrong) = (ring(1, &[]).sealing(), ring(2, &[3]));
    let wrong_ids: Vec<_> = wrong.ids().collect();
    let refused = open_at(&path, wrong).err().unwrap();
    let text = refused.to_string();
    assert!(matches!(refused, OpenError::WrongKey { .. }), "{text}");
    for id in wrong_ids.iter().chain([&right]) {
        assert!(text.contains(&id.to_string()), "{text}");
    }
    assert!(std::fs::read(&path).unwrap() == before);
    let store = open_at(&path, ring(1, &[])).unwrap();
    assert!(store.load(&key("crm", "a")).await.unwrap().is_some());
}

#[tokio::test]
async fn a_new_first_key_needs_the_old_one_until_every_record_is_resealed() {
    let (_dir, path, store) = store();
    save(&store, &key("crm", "old"), token("old")).await.unwrap();
    drop(store);
    let store = open_at(&path, ring(2, &[1])).unwrap();
    save(&store, &key("crm", "new"), token("new")).await.unwrap();
    assert!(store.load(&key("crm", "old")).await.unwrap().is_some());
    drop(store);
    assert!(matches!(open_at(&path, ring(2, &[])), Err(OpenError::WrongKey { .. })));
    // With only the old key, only the record sealed under the new one is affected.
    let store = open_at(&path, ring(1, &[])).unwrap();
    assert!(store.load(&key("crm", "old")).await.unwrap().is_some());
    let Err(StoreError::Damaged { record, .. }) = store.load(&key("crm", "new")).await else {
        panic!("the record opened")
    };
    assert_eq!(record, "crm/default/new");
}

#[test]
fn a_newer_format_is_refused_and_left_unchanged() {
    let (_dir, path, store) = store();
    store.fill(&[(key("crm", "a"), token("a"))]).unwrap();
    store
        .write_blocking(|tx| {
            let mut meta = tx.open_table(redb::TableDefinition::<&str, &[u8]>::new("meta"))?;
            meta.insert("format", (record::FORMAT + 1).to_be_bytes().as_slice())?;
            Ok(())
        })
        .unwrap();
    drop(store);
    let before = std::fs::read(&path).unwrap();
    for keys in [ring(1, &[]), ring(2, &[])] {
        let refused = open_at(&path, keys).err().unwrap();
        assert!(matches!(refused, OpenError::NewerFormat { found: 2, .. }), "{refused}");
    }
    assert!(std::fs::read(&path).unwrap() == before);
}

#[test]
fn a_seal_key_is_created_once_and_never_for_a_sealed_store() {
    use crate::model::{StoreKind, StoreSettings};
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let kind = StoreKind::Embedded { path: state.join("tokens.redb") };
    let settings = StoreSettings { kind, seal_keys: Vec::new() };
    let first = Keyring::from_settings(&settings, &state).unwrap();
    assert_eq!(Keyring::from_settings(&settings, &state).unwrap().sealing(), first.sealing());
    let file = state.join("seal-key");
    assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600);
    drop(open_at(&state.join("tokens.redb"), first).unwrap());
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::rename(&file, state.join("elsewhere")).unwrap();
    #[track_caller]
    fn refused(settings: &StoreSettings, state: &Path, reason: &str) {
        let error = Keyring::from_settings(settings, state).err().unwrap();
        let text = error.to_string();
        assert!(matches!(error, OpenError::Key { .. }) && text.contains(reason), "{text}");
    }
    refused(&settings, &state, "is missing");
    assert!(!file.exists(), "no other key is created");
    symlink(state.join("elsewhere"), &file).unwrap();
    refused(&settings, &state, "seal-key");
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, &text[..20]).unwrap();
    refused(&settings, &state, "holds no key");
}
