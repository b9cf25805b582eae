//! Leases between replicas: a key with a TTL, and a marker for the refresh token that is about to be spent.
//!
//! Invariant: dropping a lease releases it but leaves the marker, because the outcome of a refresh may be unknown.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::backend::Backend;
use super::ttl::ms;
use crate::model::token::TokenKey;
use crate::store::{AnnouncedBackoff, Fence, Lease, LeaseEnd, StoreError, StoreFuture};

/// TTL of the marker; longer than the lifetime of access tokens.
const SPENDING_TTL: Duration = Duration::from_secs(7 * 24 * 3600);

/// Retry interval of a release; longer than a reconnect takes.
const RELEASE_RETRY_INTERVAL: Duration = Duration::from_millis(600);

pub struct RedisLease {
    backend: Arc<Backend>,
    key: TokenKey,
    holder: String,
    /// Version of the next write.
    next_version: AtomicU64,
    /// Version of the record, or of its removal, when the lease was acquired.
    replaces: u64,
    term: Duration,
    in_doubt: bool,
    backoff: Option<AnnouncedBackoff>,
    /// Excludes other callers in this process.
    _local: Arc<Box<dyn Lease>>,
    released: AtomicBool,
}

impl RedisLease {
    /// Acquires the lease of `key`; `None`: another replica holds it.
    pub async fn acquire(
        backend: &Arc<Backend>,
        key: &TokenKey,
        term: Duration,
        local: Arc<Box<dyn Lease>>,
    ) -> Result<Option<RedisLease>, StoreError> {
        let mut call = backend.scripts.acquire.prepare_invoke();
        for name in backend.names.keys_of(key) {
            call.key(name);
        }
        call.arg(&backend.instance).arg(ms(term));
        let taken: Vec<String> = backend.link.run(&call).await?;
        let [holder, version, replaces, doubt, wait_ms, age_ms, backoff] = taken.as_slice() else { return Ok(None) };
        let number = |text: &str| {
            text.parse().map_err(|_| StoreError::Unavailable("Redis: unexpected reply to the lease script".to_owned()))
        };
        let (version, replaces) = (number(version)?, number(replaces)?);
        Ok(Some(RedisLease {
            backend: backend.clone(),
            key: key.clone(),
            holder: holder.clone(),
            next_version: AtomicU64::new(version),
            replaces,
            term,
            in_doubt: doubt == "1",
            backoff: parse_backoff(wait_ms, age_ms, backoff),
            _local: local,
            released: AtomicBool::new(false),
        }))
    }

    fn end(&self, settled: bool) -> LeaseEnd {
        self.released.store(true, Ordering::SeqCst);
        let (backend, key, holder) = (self.backend.clone(), self.key.clone(), self.holder.clone());
        Box::pin(async move {
            if backend.release(&key, &holder, settled).await {
                return;
            }
            // The lease would expire on its own, but a leftover marker delays all replicas until the current token
            // expires.
            let retrying = backend.clone();
            backend.link.spawn("lease", async move {
                while !retrying.release(&key, &holder, settled).await {
                    tokio::time::sleep(RELEASE_RETRY_INTERVAL).await;
                }
            });
        })
    }
}

impl Backend {
    /// Returns true if Redis has released the lease.
    async fn release(&self, key: &TokenKey, holder: &str, settled: bool) -> bool {
        let mut call = self.scripts.release.prepare_invoke();
        call.key(self.names.lease(key)).key(self.names.spending(key));
        call.arg(holder).arg(u8::from(settled));
        let done = self.link.run::<()>(&call).await;
        done.inspect_err(|error| tracing::debug!(%key, %error, "lease not released")).is_ok()
    }
}

impl Lease for RedisLease {
    fn renew(&self, spends: Option<u64>) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            let names = &self.backend.names;
            let mut call = self.backend.scripts.renew.prepare_invoke();
            call.key(names.lease(&self.key)).key(names.spending(&self.key));
            call.key(names.token(&self.key)).key(names.removed(&self.key));
            let version = spends.map_or(String::new(), |version| version.to_string());
            call.arg(&self.holder).arg(ms(self.term)).arg(version).arg(ms(SPENDING_TTL));
            match self.backend.link.run(&call).await? {
                true => Ok(()),
                false => Err(StoreError::LeaseLost { key: self.key.clone() }),
            }
        })
    }

    fn is_in_doubt(&self) -> bool {
        self.in_doubt
    }

    fn backoff(&self) -> Option<&AnnouncedBackoff> {
        self.backoff.as_ref()
    }

    fn announce_backoff<'a>(&'a self, backoff: &'a AnnouncedBackoff) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let (names, AnnouncedBackoff { permanent, failures, error, .. }) = (&self.backend.names, backoff);
            let mut call = self.backend.scripts.backoff.prepare_invoke();
            call.key(names.lease(&self.key)).key(names.backoff(&self.key));
            call.arg(&self.holder).arg(format!("{failures} {permanent} {error}")).arg(ms(backoff.wait));
            self.backend.link.run(&call).await
        })
    }

    fn replaces(&self) -> u64 {
        self.replaces
    }

    fn fence(&self) -> Option<Fence> {
        let version = self.next_version.fetch_add(1, Ordering::SeqCst);
        Some(Fence { holder: self.holder.clone(), version })
    }

    fn release(self: Box<Self>, settled: bool) -> LeaseEnd {
        self.end(settled)
    }
}

/// Parses what [`Lease::announce_backoff`] wrote.
fn parse_backoff(wait_ms: &str, age_ms: &str, text: &str) -> Option<AnnouncedBackoff> {
    let [wait, age] = [wait_ms.parse().ok()?, age_ms.parse().ok()?].map(Duration::from_millis);
    let [failures, permanent, error] = text.split(' ').collect::<Vec<_>>().try_into().ok()?;
    let (failures, permanent) = (failures.parse().ok()?, permanent.parse().ok()?);
    Some(AnnouncedBackoff { wait, age, permanent, failures, error: error.to_owned() })
}

impl Drop for RedisLease {
    /// The holder was cancelled, so the outcome of its refresh is unknown.
    fn drop(&mut self) {
        if !self.released.load(Ordering::SeqCst) {
            self.backend.link.spawn("lease", self.end(false));
        }
    }
}
