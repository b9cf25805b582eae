//! Leases within one process: one holder for each key at a time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Lease, StoreError};
use crate::model::token::TokenKey;
use crate::sync::lock;

/// The keys that are held or waited for.
#[derive(Debug, Clone, Default)]
pub struct Leases {
    places: Arc<Mutex<HashMap<TokenKey, Arc<Semaphore>>>>,
}

struct Held {
    key: TokenKey,
    leases: Leases,
    permit: Option<OwnedSemaphorePermit>,
}

impl Lease for Held {}

impl Leases {
    /// Waits at most `patience` for the lease of `key`.
    pub async fn take(&self, key: &TokenKey, patience: Duration) -> Result<Box<dyn Lease>, StoreError> {
        let place = self.places().entry(key.clone()).or_insert_with(|| Arc::new(Semaphore::new(1))).clone();
        let mut held = Held { key: key.clone(), leases: self.clone(), permit: None };
        match tokio::time::timeout(patience, place.acquire_owned()).await {
            Ok(Ok(permit)) => {
                held.permit = Some(permit);
                Ok(Box::new(held))
            }
            _ => Err(StoreError::LeaseTimeout { key: key.clone() }),
        }
    }

    fn places(&self) -> MutexGuard<'_, HashMap<TokenKey, Arc<Semaphore>>> {
        lock(&self.places)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.permit.take());
        let mut places = self.leases.places();
        // Whoever waits holds the place too, and joins it only under this lock.
        if places.get(&self.key).is_some_and(|place| Arc::strong_count(place) == 1) {
            places.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Name;

    #[tokio::test(start_paused = true)]
    async fn a_lease_has_one_holder_at_a_time_and_leaves_nothing_behind() {
        let (leases, second) = (Leases::default(), Duration::from_secs(1));
        let key = TokenKey::of_connection(Name::parse("crm").unwrap());
        let other = TokenKey::of_connection(Name::parse("erp").unwrap());
        let held = leases.take(&key, second).await.unwrap();
        assert_eq!(leases.take(&key, second).await.err(), Some(StoreError::LeaseTimeout { key: key.clone() }));
        assert!(leases.take(&other, second).await.is_ok());
        let waiting = leases.take(&key, 10 * second);
        let (waiting, ()) = tokio::join!(waiting, async { drop(held) });
        assert!(waiting.is_ok());
        drop(waiting);
        assert!(leases.places().is_empty());
    }
}
