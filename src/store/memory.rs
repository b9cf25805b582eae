//! A store that lasts as long as the process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Lease, Store, StoreError, StoreFuture, StoredToken};
use crate::model::token::TokenKey;

#[derive(Debug, Default)]
pub struct MemoryStore {
    records: Mutex<HashMap<TokenKey, Record>>,
}

#[derive(Debug)]
struct Record {
    token: Option<StoredToken>,
    lease: Arc<Semaphore>,
}

impl Default for Record {
    fn default() -> Self {
        Record { token: None, lease: Arc::new(Semaphore::new(1)) }
    }
}

struct MemoryLease {
    _permit: OwnedSemaphorePermit,
}

impl Lease for MemoryLease {}

impl MemoryStore {
    fn records(&self) -> MutexGuard<'_, HashMap<TokenKey, Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for MemoryStore {
    fn load<'a>(&'a self, key: &'a TokenKey) -> StoreFuture<'a, Option<StoredToken>> {
        let token = self.records().get(key).and_then(|record| record.token.clone());
        Box::pin(async move { Ok(token) })
    }

    fn lease<'a>(&'a self, key: &'a TokenKey, patience: Duration) -> StoreFuture<'a, Box<dyn Lease>> {
        let lease = self.records().entry(key.clone()).or_default().lease.clone();
        Box::pin(async move {
            match tokio::time::timeout(patience, lease.acquire_owned()).await {
                Ok(Ok(permit)) => Ok(Box::new(MemoryLease { _permit: permit }) as Box<dyn Lease>),
                _ => Err(StoreError::LeaseTimeout { key: key.clone() }),
            }
        })
    }

    fn save<'a>(&'a self, key: &'a TokenKey, token: StoredToken, _lease: &'a dyn Lease) -> StoreFuture<'a, ()> {
        self.records().entry(key.clone()).or_default().token = Some(token);
        Box::pin(async move { Ok(()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::model::Name;
    use crate::model::connection::Connection;
    use crate::model::token::AccessToken;

    #[tokio::test(start_paused = true)]
    async fn a_lease_has_one_holder_at_a_time() {
        let store = MemoryStore::default();
        let key = TokenKey::of_connection(Name::parse("crm").unwrap());
        let lease = store.lease(&key, Duration::from_secs(1)).await.unwrap();
        let token = StoredToken {
            identity: Connection::sample("crm").identity(),
            origins: Arc::new(Connection::sample("crm").origins()),
            access_token: AccessToken::parse("a").unwrap(),
            obtained: Clock::simulated().now(),
            lifetime: Duration::from_secs(60),
            scopes: None,
        };
        store.save(&key, token.clone(), &*lease).await.unwrap();
        assert_eq!(store.load(&key).await, Ok(Some(token)));
        assert!(store.lease(&key, Duration::from_secs(1)).await.is_err());
        drop(lease);
        assert!(store.lease(&key, Duration::from_secs(1)).await.is_ok());
    }
}
