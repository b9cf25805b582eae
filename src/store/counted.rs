//! Wraps a store and counts its operations.
//!
//! Leases are not counted: they read and write no record.
//! Metrics: `keybearer_store_operations_total`.

use std::sync::Arc;
use std::time::Duration;

use prometheus::IntCounter;
use tokio::sync::broadcast;
use tokio::time::Instant;

use super::{
    Catalog, CatalogChange, DefinitionStore, Lease, Note, NoteStore, Notification, Page, SecretStore, SharedStore,
    Store, StoreError, StoreFuture, StoredText, StoredToken, TokenStore,
};
use crate::model::Name;
use crate::model::connection::Revision;
use crate::model::secret::Secret;
use crate::model::time::WallTime;
use crate::model::token::TokenKey;
use crate::telemetry::metrics::Metrics;

#[derive(Clone)]
struct Operation {
    ok: IntCounter,
    failed: IntCounter,
}

impl Operation {
    fn new(metrics: &Metrics, name: &str) -> Operation {
        let outcome = |outcome| metrics.store_operations.with_label_values(&[name, outcome]);
        Operation { ok: outcome("ok"), failed: outcome("failed") }
    }

    async fn count<T>(&self, work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let outcome = work.await;
        let counter = if outcome.is_ok() { &self.ok } else { &self.failed };
        counter.inc();
        outcome
    }
}

pub struct Counted {
    store: Arc<dyn Store>,
    load: Operation,
    save: Operation,
    forget: Operation,
    list: Operation,
    secret: Operation,
    note: Operation,
    definition: Operation,
    shared: Option<Arc<CountedShared>>,
}

struct CountedShared {
    store: Arc<dyn SharedStore>,
    load: Operation,
    save: Operation,
}

impl Counted {
    pub fn new(store: Arc<dyn Store>, metrics: &Metrics) -> Counted {
        let operation = |name| Operation::new(metrics, name);
        let (load, save) = (operation("load"), operation("save"));
        let counted = |store| Arc::new(CountedShared { store, load: load.clone(), save: save.clone() });
        Counted {
            shared: store.shared().map(counted),
            store,
            load,
            save,
            forget: operation("forget"),
            list: operation("list"),
            secret: operation("secret"),
            note: operation("note"),
            definition: operation("definition"),
        }
    }
}

impl TokenStore for Counted {
    fn load<'a>(&'a self, key: &'a TokenKey) -> StoreFuture<'a, Option<StoredToken>> {
        Box::pin(self.load.count(self.store.load(key)))
    }

    fn lease<'a>(&'a self, key: &'a TokenKey, term: Duration, wait: Duration) -> StoreFuture<'a, Box<dyn Lease>> {
        self.store.lease(key, term, wait)
    }

    fn save<'a>(&'a self, key: &'a TokenKey, token: StoredToken, lease: &'a dyn Lease) -> StoreFuture<'a, u64> {
        Box::pin(self.save.count(self.store.save(key, token, lease)))
    }

    fn forget<'a>(&'a self, key: &'a TokenKey, lease: &'a dyn Lease) -> StoreFuture<'a, ()> {
        Box::pin(self.forget.count(self.store.forget(key, lease)))
    }

    fn list<'a>(&'a self, connection: &'a Name, after: Option<&'a TokenKey>, limit: usize) -> StoreFuture<'a, Page> {
        Box::pin(self.list.count(self.store.list(connection, after, limit)))
    }

    fn shared(&self) -> Option<Arc<dyn SharedStore>> {
        self.shared.clone().map(|shared| shared as Arc<dyn SharedStore>)
    }
}

impl SecretStore for Counted {
    fn secret<'a>(&'a self, name: &'a str) -> StoreFuture<'a, Option<Secret>> {
        Box::pin(self.secret.count(self.store.secret(name)))
    }

    fn put_secret<'a>(&'a self, name: &'a str, secret: Secret) -> StoreFuture<'a, ()> {
        Box::pin(self.secret.count(self.store.put_secret(name, secret)))
    }

    fn remove_secret<'a>(&'a self, name: &'a str) -> StoreFuture<'a, bool> {
        Box::pin(self.secret.count(self.store.remove_secret(name)))
    }

    fn secret_names(&self) -> StoreFuture<'_, Vec<String>> {
        Box::pin(self.secret.count(self.store.secret_names()))
    }
}

impl NoteStore for Counted {
    fn note<'a>(&'a self, name: &'a str) -> StoreFuture<'a, Option<Note>> {
        Box::pin(self.note.count(self.store.note(name)))
    }

    fn put_note<'a>(
        &'a self,
        name: &'a str,
        text: Secret,
        expires_at: WallTime,
        replaces: Option<u64>,
    ) -> StoreFuture<'a, bool> {
        Box::pin(self.note.count(self.store.put_note(name, text, expires_at, replaces)))
    }

    fn note_names<'a>(&'a self, prefix: &'a str) -> StoreFuture<'a, Vec<String>> {
        Box::pin(self.note.count(self.store.note_names(prefix)))
    }
}

impl DefinitionStore for Counted {
    fn catalog(&self) -> StoreFuture<'_, Catalog> {
        Box::pin(self.definition.count(self.store.catalog()))
    }

    fn definitions<'a>(&'a self, revisions: &'a [(Name, Revision)]) -> StoreFuture<'a, Vec<StoredText>> {
        Box::pin(self.definition.count(self.store.definitions(revisions)))
    }

    fn change_definitions<'a>(&'a self, over: &'a Catalog, change: CatalogChange) -> StoreFuture<'a, Option<Catalog>> {
        Box::pin(self.definition.count(self.store.change_definitions(over, change)))
    }
}

impl SharedStore for CountedShared {
    fn was_removed<'a>(&'a self, key: &'a TokenKey, after: u64) -> StoreFuture<'a, bool> {
        Box::pin(self.load.count(self.store.was_removed(key, after)))
    }

    fn is_in_doubt<'a>(&'a self, key: &'a TokenKey) -> StoreFuture<'a, bool> {
        Box::pin(self.load.count(self.store.is_in_doubt(key)))
    }

    fn restore<'a>(&'a self, key: &'a TokenKey, token: StoredToken) -> StoreFuture<'a, ()> {
        Box::pin(self.save.count(self.store.restore(key, token)))
    }

    fn check_reachable(&self) -> StoreFuture<'_, ()> {
        self.store.check_reachable()
    }

    fn reconnected_at(&self) -> Option<Instant> {
        self.store.reconnected_at()
    }

    fn subscribe(&self) -> broadcast::Receiver<Notification> {
        self.store.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    #[tokio::test]
    async fn operations_are_counted_by_outcome_starting_at_zero() {
        let metrics = Metrics::new().unwrap();
        let store = Counted::new(Arc::new(MemoryStore::default()), &metrics);
        let value = |operation: &str, outcome: &str| {
            let text = String::from_utf8(metrics.render().unwrap()).unwrap();
            let line = format!("keybearer_store_operations_total{{operation=\"{operation}\",outcome=\"{outcome}\"}} ");
            text.lines().find_map(|found| found.strip_prefix(&line).map(str::to_owned)).unwrap_or_default()
        };
        for operation in ["load", "save", "forget", "list", "secret", "note", "definition"] {
            assert_eq!((value(operation, "ok"), value(operation, "failed")), ("0".to_owned(), "0".to_owned()));
        }
        store.load(&TokenKey::of_connection(Name::parse("crm").unwrap())).await.unwrap();
        assert!(store.put_secret("a", Secret::new("b")).await.is_err());
        assert_eq!((value("load", "ok"), value("secret", "failed")), ("1".to_owned(), "1".to_owned()));
        let catalog = store.catalog().await.unwrap();
        assert!(store.change_definitions(&catalog, CatalogChange::default()).await.is_err());
        assert_eq!((value("definition", "ok"), value("definition", "failed")), ("1".to_owned(), "1".to_owned()));
    }
}
