//! The lease of one token in Redis.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::{Shared, ms};
use crate::model::token::TokenKey;
use crate::store::{Fence, Lease, LeaseEnd, PutOff, StoreError, StoreFuture};

/// How long it is known that somebody was about to spend a refresh token: longer than access tokens live.
const SPENDING_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Between two tries to give a lease back: more than a connection takes to be made anew.
const RELEASE_PAUSE: Duration = Duration::from_millis(600);

pub struct Held {
    shared: Arc<Shared>,
    key: TokenKey,
    holder: String,
    /// Of the next write.
    version: AtomicU64,
    /// Of what lay there, or was removed.
    replaces: u64,
    term: Duration,
    in_doubt: bool,
    put_off: Option<PutOff>,
    /// Within this process.
    _own: Arc<Box<dyn Lease>>,
    released: AtomicBool,
}

impl Held {
    /// The lease of `key`, unless somebody has it.
    pub async fn take(
        shared: &Arc<Shared>,
        key: &TokenKey,
        term: Duration,
        own: Arc<Box<dyn Lease>>,
    ) -> Result<Option<Held>, StoreError> {
        let mut call = shared.scripts.take.prepare_invoke();
        for name in shared.names.keys_of(key) {
            call.key(name);
        }
        call.arg(&shared.instance).arg(ms(term));
        let taken: Vec<String> = shared.link.run(&call).await?;
        let [holder, version, replaces, spending, wait_ms, age_ms, told] = taken.as_slice() else { return Ok(None) };
        let number = |text: &str| {
            text.parse().map_err(|_| StoreError::Unavailable("Redis: its clock cannot be read".to_owned()))
        };
        let (version, replaces) = (number(version)?, number(replaces)?);
        Ok(Some(Held {
            shared: shared.clone(),
            key: key.clone(),
            holder: holder.clone(),
            version: AtomicU64::new(version),
            replaces,
            term,
            in_doubt: spending == "1",
            put_off: read_put_off(wait_ms, age_ms, told),
            _own: own,
            released: AtomicBool::new(false),
        }))
    }

    fn give_back(&self, settled: bool) -> LeaseEnd {
        self.released.store(true, Ordering::SeqCst);
        let (shared, key, holder) = (self.shared.clone(), self.key.clone(), self.holder.clone());
        Box::pin(async move {
            if shared.give_back(&key, &holder, settled).await {
                return;
            }
            // The lease ends with its term; a mark that stays behind holds everybody up for as long as the present token lasts.
            let own = shared.clone();
            shared.link.spawn("lease", async move {
                while !own.give_back(&key, &holder, settled).await {
                    tokio::time::sleep(RELEASE_PAUSE).await;
                }
            });
        })
    }
}

impl Shared {
    /// True if Redis has done it.
    async fn give_back(&self, key: &TokenKey, holder: &str, settled: bool) -> bool {
        let mut call = self.scripts.release.prepare_invoke();
        call.key(self.names.lease(key)).key(self.names.spending(key));
        call.arg(holder).arg(u8::from(settled));
        let done = self.link.run::<()>(&call).await;
        done.inspect_err(|error| tracing::debug!(%key, %error, "a lease is not given back")).is_ok()
    }
}

impl Lease for Held {
    fn renew(&self, spends: Option<u64>) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            let names = &self.shared.names;
            let mut call = self.shared.scripts.renew.prepare_invoke();
            call.key(names.lease(&self.key)).key(names.spending(&self.key));
            call.key(names.token(&self.key)).key(names.removed(&self.key));
            let version = spends.map_or(String::new(), |version| version.to_string());
            call.arg(&self.holder).arg(ms(self.term)).arg(version).arg(ms(SPENDING_LIFE));
            match self.shared.link.run(&call).await? {
                true => Ok(()),
                false => Err(StoreError::LeaseLost { key: self.key.clone() }),
            }
        })
    }

    fn is_in_doubt(&self) -> bool {
        self.in_doubt
    }

    fn put_off(&self) -> Option<&PutOff> {
        self.put_off.as_ref()
    }

    fn put_off_others<'a>(&'a self, put_off: &'a PutOff) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let (names, PutOff { permanent, failures, error, .. }) = (&self.shared.names, put_off);
            let mut call = self.shared.scripts.put_off.prepare_invoke();
            call.key(names.lease(&self.key)).key(names.put_off(&self.key));
            call.arg(&self.holder).arg(format!("{failures} {permanent} {error}")).arg(ms(put_off.wait));
            self.shared.link.run(&call).await
        })
    }

    fn replaces(&self) -> u64 {
        self.replaces
    }

    fn fence(&self) -> Option<Fence> {
        let version = self.version.fetch_add(1, Ordering::SeqCst);
        Some(Fence { holder: self.holder.clone(), version })
    }

    fn release(self: Box<Self>, settled: bool) -> LeaseEnd {
        self.give_back(settled)
    }
}

/// As [`Lease::put_off_others`] wrote it.
fn read_put_off(wait_ms: &str, age_ms: &str, told: &str) -> Option<PutOff> {
    let [wait, age] = [wait_ms.parse().ok()?, age_ms.parse().ok()?].map(Duration::from_millis);
    let [failures, permanent, error] = told.split(' ').collect::<Vec<_>>().try_into().ok()?;
    let (failures, permanent) = (failures.parse().ok()?, permanent.parse().ok()?);
    Some(PutOff { wait, age, permanent, failures, error: error.to_owned() })
}

impl Drop for Held {
    /// Whoever held it was cut off: what became of a refresh token is not known.
    fn drop(&mut self) {
        if !self.released.load(Ordering::SeqCst) {
            self.shared.link.spawn("lease", self.give_back(false));
        }
    }
}
