//! The shared store as one replica sees it.

use super::*;
use crate::model::secret::Secret;
use crate::model::time::WallTime;
use crate::store::{
    AnnouncedBackoff, Fence, KeepsNoDefinitions, Lease, LeaseEnd, Note, NoteStore, Page, SecretStore, SharedStore,
    StoreError, StoreFuture, TokenStore,
};

/// A replica's store, reached through its handle.
pub struct SimulatedStore(pub Arc<Handle>);

struct SimulatedLease {
    handle: Arc<Handle>,
    key: TokenKey,
    fence: Fence,
    replaces: u64,
    term: Duration,
    in_doubt: bool,
}

impl Lease for SimulatedLease {
    fn renew(&self, spends: Option<u64>) -> StoreFuture<'_, ()> {
        Box::pin(async move {
            let (holder, term) = (self.fence.holder.clone(), self.term);
            let renewed = self.handle.step(move |world| {
                let moved = spends.is_some_and(|version| version != world.latest());
                let ours = world.holder() == Some(&holder) && !moved;
                if ours {
                    let state = world.change();
                    state.lease = Some((holder.clone(), Instant::now() + term));
                    state.spending = if spends.is_some() { Some(holder) } else { state.spending.take() };
                }
                ours
            });
            let lost = Err(StoreError::LeaseLost { key: self.key.clone() });
            let renewed = renewed.await?;
            self.handle.maybe_pause();
            if renewed { Ok(()) } else { lost }
        })
    }

    fn is_in_doubt(&self) -> bool {
        self.in_doubt
    }

    fn backoff(&self) -> Option<&AnnouncedBackoff> {
        None
    }

    fn announce_backoff<'a>(&'a self, _: &'a AnnouncedBackoff) -> StoreFuture<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn replaces(&self) -> u64 {
        self.replaces
    }

    fn fence(&self) -> Option<Fence> {
        Some(self.fence.clone())
    }

    fn release(self: Box<Self>, settled: bool) -> LeaseEnd {
        Box::pin(async move {
            let (handle, holder) = (self.handle, self.fence.holder);
            // Like the Redis store, retries in the background.
            if !handle.release(&holder, settled).await {
                let tasks = lock(&handle.world).tasks.clone();
                tasks.spawn("lease", async move {
                    while !handle.release(&holder, settled).await {
                        sleep(Duration::from_millis(600)).await;
                    }
                });
            }
        })
    }
}

impl SharedStore for Handle {
    fn restore<'a>(&'a self, key: &'a TokenKey, token: StoredToken) -> StoreFuture<'a, ()> {
        Box::pin(self.step(move |world| {
            if world.latest() < token.version {
                world.change().record = Some(token);
                world.notify(&self.name, key);
            }
        }))
    }

    fn is_in_doubt<'a>(&'a self, _: &'a TokenKey) -> StoreFuture<'a, bool> {
        Box::pin(self.step(|world| world.is_in_doubt()))
    }

    fn was_removed<'a>(&'a self, _: &'a TokenKey, after: u64) -> StoreFuture<'a, bool> {
        Box::pin(self.step(move |world| world.state.removed > after))
    }

    fn reconnected_at(&self) -> Option<Instant> {
        *lock(&self.reconnected_at)
    }

    fn check_reachable(&self) -> StoreFuture<'_, ()> {
        Box::pin(self.step(|_| ()))
    }

    fn subscribe(&self) -> broadcast::Receiver<Notification> {
        self.notifications.subscribe()
    }
}

impl TokenStore for SimulatedStore {
    fn load<'a>(&'a self, _: &'a TokenKey) -> StoreFuture<'a, Option<StoredToken>> {
        Box::pin(self.0.step(|world| world.state.record.clone()))
    }

    fn lease<'a>(&'a self, key: &'a TokenKey, term: Duration, _: Duration) -> StoreFuture<'a, Box<dyn Lease>> {
        Box::pin(async move {
            let handle = &self.0;
            let taken = handle.step(|world| {
                let own_name = |holder: &str| holder.rsplit_once(':').is_some_and(|(name, _)| name == handle.name);
                if world.holder().is_some_and(|holder| !own_name(holder)) {
                    return None;
                }
                let replaces = world.latest();
                let version = world.time().max(replaces + 1);
                let fence = Fence { holder: format!("{}:{version}", handle.name), version };
                let in_doubt = world.is_in_doubt();
                world.change().lease = Some((fence.holder.clone(), Instant::now() + term));
                Some((fence, replaces, in_doubt))
            });
            let (fence, replaces, in_doubt) =
                taken.await?.ok_or_else(|| StoreError::LeaseTimeout { key: key.clone() })?;
            handle.maybe_pause();
            Ok(Box::new(SimulatedLease { handle: handle.clone(), key: key.clone(), fence, replaces, term, in_doubt })
                as Box<dyn Lease>)
        })
    }

    fn save<'a>(&'a self, key: &'a TokenKey, token: StoredToken, lease: &'a dyn Lease) -> StoreFuture<'a, u64> {
        Box::pin(async move {
            let fence = lease.fence().expect("a lease of this store");
            let handle = &self.0;
            handle.maybe_pause();
            let version = fence.version.max(token.version + 1);
            let saved = handle.step(|world| {
                let spent = world.state.spending.as_ref() == Some(&fence.holder);
                let taken = !spent && world.holder().is_some_and(|holder| holder != fence.holder);
                if taken || world.latest() >= version {
                    return false;
                }
                let state = world.change();
                (state.record, state.spending, state.removed) = (Some(StoredToken { version, ..token }), None, 0);
                world.notify(&handle.name, key);
                true
            });
            let lost = Err(StoreError::LeaseLost { key: key.clone() });
            if saved.await? { Ok(version) } else { lost }
        })
    }

    fn forget<'a>(&'a self, key: &'a TokenKey, lease: &'a dyn Lease) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let fence = lease.fence().expect("a lease of this store");
            let handle = &self.0;
            let forgotten = handle.step(|world| {
                let ours = world.holder() == Some(&fence.holder);
                if ours {
                    let state = world.change();
                    (state.record, state.spending, state.removed) = (None, None, fence.version);
                    world.notify(&handle.name, key);
                }
                ours
            });
            let lost = Err(StoreError::LeaseLost { key: key.clone() });
            if forgotten.await? { Ok(()) } else { lost }
        })
    }

    fn list<'a>(&'a self, _: &'a Name, _: Option<&'a TokenKey>, _: usize) -> StoreFuture<'a, Page> {
        Box::pin(async { Ok(Page::new()) })
    }

    fn shared(&self) -> Option<Arc<dyn SharedStore>> {
        Some(self.0.clone())
    }
}

impl SecretStore for SimulatedStore {
    fn secret<'a>(&'a self, _: &'a str) -> StoreFuture<'a, Option<Secret>> {
        Box::pin(async { Ok(None) })
    }

    fn put_secret<'a>(&'a self, _: &'a str, _: Secret) -> StoreFuture<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn remove_secret<'a>(&'a self, _: &'a str) -> StoreFuture<'a, bool> {
        Box::pin(async { Ok(false) })
    }

    fn secret_names(&self) -> StoreFuture<'_, Vec<String>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}

impl KeepsNoDefinitions for SimulatedStore {}

impl NoteStore for SimulatedStore {
    fn note<'a>(&'a self, _: &'a str) -> StoreFuture<'a, Option<Note>> {
        Box::pin(async { Ok(None) })
    }

    fn put_note<'a>(&'a self, _: &'a str, _: Secret, _: WallTime, _: Option<u64>) -> StoreFuture<'a, bool> {
        Box::pin(async { Ok(true) })
    }

    fn note_names<'a>(&'a self, _: &'a str) -> StoreFuture<'a, Vec<String>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}
