//! Leases within one process: one holder per key. They never expire.
//!
//! Not here: leases between replicas (`redis::lease`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{AnnouncedBackoff, Fence, Lease, LeaseEnd, StoreError, StoreFuture};
use crate::model::token::TokenKey;
use crate::sync::lock;

/// One lock per key that is held or awaited.
#[derive(Debug, Clone, Default)]
pub struct ProcessLeases {
    locks: Arc<Mutex<HashMap<TokenKey, Arc<Semaphore>>>>,
}

pub struct ProcessLease {
    /// Dropping it wakes the next waiter. `None`: an uncontended key.
    _held: Option<Held>,
}

struct Held {
    key: TokenKey,
    leases: ProcessLeases,
    permit: Option<OwnedSemaphorePermit>,
}

impl ProcessLease {
    /// The lease of a key with a single caller.
    pub fn uncontended() -> ProcessLease {
        ProcessLease { _held: None }
    }
}

impl ProcessLeases {
    /// Waits at most `wait` for the lease of `key`.
    pub async fn acquire(&self, key: &TokenKey, wait: Duration) -> Result<Box<dyn Lease>, StoreError> {
        let lock = self.locks().entry(key.clone()).or_insert_with(|| Arc::new(Semaphore::new(1))).clone();
        let mut held = Held { key: key.clone(), leases: self.clone(), permit: None };
        match tokio::time::timeout(wait, lock.acquire_owned()).await {
            Ok(Ok(permit)) => {
                held.permit = Some(permit);
                Ok(Box::new(ProcessLease { _held: Some(held) }))
            }
            _ => Err(StoreError::LeaseTimeout { key: key.clone() }),
        }
    }

    fn locks(&self) -> MutexGuard<'_, HashMap<TokenKey, Arc<Semaphore>>> {
        lock(&self.locks)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.permit.take());
        let mut locks = self.leases.locks();
        // A waiter holds a reference too, and clones it only under this mutex.
        if locks.get(&self.key).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            locks.remove(&self.key);
        }
    }
}

impl Lease for ProcessLease {
    fn renew(&self, _: Option<u64>) -> StoreFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn is_in_doubt(&self) -> bool {
        false
    }

    fn replaces(&self) -> u64 {
        0
    }

    fn backoff(&self) -> Option<&AnnouncedBackoff> {
        None
    }

    fn announce_backoff<'a>(&'a self, _: &'a AnnouncedBackoff) -> StoreFuture<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn fence(&self) -> Option<Fence> {
        None
    }

    fn release(self: Box<Self>, _: bool) -> LeaseEnd {
        Box::pin(async {})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Name;

    #[tokio::test(start_paused = true)]
    async fn a_lease_has_one_holder_at_a_time_and_its_lock_is_removed_after_use() {
        let (leases, second) = (ProcessLeases::default(), Duration::from_secs(1));
        let key = TokenKey::of_connection(Name::parse("crm").unwrap());
        let other = TokenKey::of_connection(Name::parse("erp").unwrap());
        let held = leases.acquire(&key, second).await.unwrap();
        assert_eq!(leases.acquire(&key, second).await.err(), Some(StoreError::LeaseTimeout { key: key.clone() }));
        assert!(leases.acquire(&other, second).await.is_ok());
        let waiting = leases.acquire(&key, 10 * second);
        let (waiting, ()) = tokio::join!(waiting, async { drop(held) });
        assert!(waiting.is_ok());
        drop(waiting);
        assert!(leases.locks().is_empty());
    }
}
