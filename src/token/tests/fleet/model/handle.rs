//! One replica in the model: its way to the store and to the server, and what it does there.

use tokio::time::sleep_until;

use super::*;
use crate::model::secret::Secret;
use crate::model::time::WallTime;
use crate::store::{Fence, Lease, LeaseEnd, Note, Page, Store, StoreError, StoreFuture};

/// After which a call to the store is given up.
const ANSWER: Duration = Duration::from_secs(1);
/// After which a token request is given up; that of `Connection::sample`.
const CALL: Duration = Duration::from_secs(10);

/// One replica's way to the store and to the server.
pub struct Handle {
    pub(super) name: String,
    world: Arc<Mutex<World>>,
    pub(super) news: broadcast::Sender<News>,
    paused_until: Mutex<Instant>,
    cut_until: Mutex<Instant>,
    /// No other pause before.
    rested_at: Mutex<Instant>,
    breaks: Mutex<u64>,
    shaken: Mutex<Option<Instant>>,
    /// Since when it has reached the store without a break, and stood still no more.
    pub well_since: Mutex<Instant>,
}

impl Handle {
    pub fn join(world: &Arc<Mutex<World>>, name: String) -> Arc<Handle> {
        let (now, breaks) = (Instant::now(), lock(world).breaks);
        let handle = Arc::new(Handle {
            name,
            world: world.clone(),
            news: broadcast::Sender::new(64),
            paused_until: Mutex::new(now),
            cut_until: Mutex::new(now),
            rested_at: Mutex::new(now),
            breaks: Mutex::new(breaks),
            shaken: Mutex::default(),
            well_since: Mutex::new(now),
        });
        lock(world).handles.push(handle.clone());
        handle
    }

    /// Stands still, unless it did so not long ago.
    pub fn pause(&self, span: Duration) {
        let now = Instant::now();
        let mut rested_at = lock(&self.rested_at);
        if now >= *rested_at {
            *rested_at = now + span + 2 * lock(&self.world).pause_max;
            *lock(&self.paused_until) = now + span;
            *lock(&self.well_since) = now + span;
        }
    }

    pub fn cut(&self, span: Duration) {
        let end = Instant::now() + span;
        *lock(&self.cut_until) = end;
        *lock(&self.well_since) = end;
        *lock(&self.breaks) = u64::MAX;
    }

    pub(super) fn is_cut(&self) -> bool {
        Instant::now() < *lock(&self.cut_until) || lock(&self.world).is_down()
    }

    async fn awake(&self) {
        loop {
            let until = *lock(&self.paused_until);
            if Instant::now() >= until {
                return;
            }
            sleep_until(until).await;
        }
    }

    /// A new connection after a break, if the store can be reached; so does the program by itself, once a second.
    pub async fn mend(&self) {
        self.awake().await;
        let breaks = lock(&self.world).breaks;
        if !self.is_cut() && *lock(&self.breaks) != breaks {
            *lock(&self.breaks) = breaks;
            *lock(&self.shaken) = Some(Instant::now());
            let _ = self.news.send(News::Missed);
        }
    }

    async fn step<T>(&self, work: impl FnOnce(&mut World) -> T) -> Result<T, StoreError> {
        let out = || StoreError::Unavailable("out of reach".to_owned());
        self.awake().await;
        if self.is_cut() || *lock(&self.breaks) != lock(&self.world).breaks {
            return Err(out());
        }
        let (there, lost, delay) = {
            let mut world = lock(&self.world);
            let odds = world.odds.store;
            (world.happens(odds), world.happens(odds), world.millis(3))
        };
        if there {
            sleep(ANSWER).await;
            self.awake().await;
            return Err(out());
        }
        sleep(delay).await;
        if self.is_cut() {
            return Err(out());
        }
        let done = {
            let mut world = lock(&self.world);
            world.steps += 1;
            work(&mut world)
        };
        if lost {
            sleep(ANSWER).await;
        }
        self.awake().await;
        if lost { Err(out()) } else { Ok(done) }
    }

    async fn give_back(&self, holder: &String, settled: bool) -> bool {
        let done = self.step(|world| {
            if world.holder() == Some(holder) {
                world.change().lease = None;
            }
            if settled && world.state.spending.as_ref() == Some(holder) {
                world.change().spending = None;
            }
        });
        done.await.is_ok()
    }

    /// Near a token request the store likes to lose things.
    fn may_lose(&self) {
        let world = self.world.clone();
        let mut now = lock(&self.world);
        let odds = now.odds.loss;
        if now.happens(odds) {
            let (wait, back) = (now.millis(600), now.millis(ROLLBACK_MAX.as_millis() as u64));
            let back = now.random.bool().then_some(back);
            now.tasks.spawn("loss", async move {
                sleep(wait).await;
                let mut world = lock(&world);
                world.loses(back);
                world.mend();
            });
        }
    }

    /// Near a token request a replica likes to stand still.
    fn may_pause(&self) {
        let span = {
            let mut world = lock(&self.world);
            let (odds, most) = (world.odds.pause, world.pause_max.as_millis() as u64);
            world.happens(odds).then(|| world.millis(most))
        };
        span.into_iter().for_each(|span| self.pause(span));
    }
}

/// A replica's store, which is one with its handle.
pub struct Shared(pub Arc<Handle>);

struct Held {
    handle: Arc<Handle>,
    key: TokenKey,
    fence: Fence,
    replaces: u64,
    term: Duration,
    in_doubt: bool,
}

impl Lease for Held {
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
            self.handle.may_pause();
            if renewed { Ok(()) } else { lost }
        })
    }

    fn is_in_doubt(&self) -> bool {
        self.in_doubt
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
            // As the store in Redis does.
            if !handle.give_back(&holder, settled).await {
                let tasks = lock(&handle.world).tasks.clone();
                tasks.spawn("lease", async move {
                    while !handle.give_back(&holder, settled).await {
                        sleep(Duration::from_millis(600)).await;
                    }
                });
            }
        })
    }
}

impl Store for Shared {
    fn load<'a>(&'a self, _: &'a TokenKey) -> StoreFuture<'a, Option<StoredToken>> {
        Box::pin(self.0.step(|world| world.state.record.clone()))
    }

    fn lease<'a>(&'a self, key: &'a TokenKey, term: Duration, _: Duration) -> StoreFuture<'a, Box<dyn Lease>> {
        Box::pin(async move {
            let own = &self.0;
            let taken = own.step(|world| {
                let own_name = |holder: &str| holder.rsplit_once(':').is_some_and(|(name, _)| name == own.name);
                if world.holder().is_some_and(|holder| !own_name(holder)) {
                    return None;
                }
                let replaces = world.latest();
                let version = world.time().max(replaces + 1);
                let fence = Fence { holder: format!("{}:{version}", own.name), version };
                let in_doubt = world.is_in_doubt();
                world.change().lease = Some((fence.holder.clone(), Instant::now() + term));
                Some((fence, replaces, in_doubt))
            });
            let (fence, replaces, in_doubt) =
                taken.await?.ok_or_else(|| StoreError::LeaseTimeout { key: key.clone() })?;
            own.may_pause();
            Ok(Box::new(Held { handle: own.clone(), key: key.clone(), fence, replaces, term, in_doubt })
                as Box<dyn Lease>)
        })
    }

    fn save<'a>(&'a self, key: &'a TokenKey, token: StoredToken, lease: &'a dyn Lease) -> StoreFuture<'a, u64> {
        Box::pin(async move {
            let fence = lease.fence().expect("a lease of this store");
            let own = &self.0;
            own.may_pause();
            let version = fence.version.max(token.version + 1);
            let saved = own.step(|world| {
                let spent = world.state.spending.as_ref() == Some(&fence.holder);
                let taken = !spent && world.holder().is_some_and(|holder| holder != fence.holder);
                if taken || world.latest() >= version {
                    return false;
                }
                let state = world.change();
                (state.record, state.spending, state.removed) = (Some(StoredToken { version, ..token }), None, 0);
                world.tell(&own.name, key);
                true
            });
            let lost = Err(StoreError::LeaseLost { key: key.clone() });
            if saved.await? { Ok(version) } else { lost }
        })
    }

    fn restore<'a>(&'a self, key: &'a TokenKey, token: StoredToken) -> StoreFuture<'a, ()> {
        Box::pin(self.0.step(move |world| {
            if world.latest() < token.version {
                world.change().record = Some(token);
                world.tell(&self.0.name, key);
            }
        }))
    }

    fn is_in_doubt<'a>(&'a self, _: &'a TokenKey) -> StoreFuture<'a, bool> {
        Box::pin(self.0.step(|world| world.is_in_doubt()))
    }

    fn was_removed<'a>(&'a self, _: &'a TokenKey, after: u64) -> StoreFuture<'a, bool> {
        Box::pin(self.0.step(move |world| world.state.removed > after))
    }

    fn shaken(&self) -> Option<Instant> {
        *lock(&self.0.shaken)
    }

    fn news(&self) -> Option<broadcast::Receiver<News>> {
        Some(self.0.news.subscribe())
    }

    fn forget<'a>(&'a self, key: &'a TokenKey, lease: &'a dyn Lease) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let fence = lease.fence().expect("a lease of this store");
            let own = &self.0;
            let forgotten = own.step(|world| {
                let ours = world.holder() == Some(&fence.holder);
                if ours {
                    let state = world.change();
                    (state.record, state.spending, state.removed) = (None, None, fence.version);
                    world.tell(&own.name, key);
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

/// A replica's token endpoint.
pub struct Client(pub Arc<Handle>, pub Clock);

impl TokenSource for Client {
    fn first_grant<'a>(&'a self, _: Whose<'a>) -> crate::token::Answer<'a> {
        lock(&self.0.world).server.begun_anew += 1;
        Box::pin(async { Err(Failure::Permanent(Refusal::of_code("consent_required"))) })
    }

    fn refresh<'a>(&'a self, token: &'a RefreshToken, whose: Whose<'a>) -> crate::token::Answer<'a> {
        Box::pin(async move {
            let own = &self.0;
            own.may_pause();
            own.awake().await;
            if whose.sent_before.is_some_and(|before| self.1.now().boot >= before) {
                return Err(Failure::Retryable { reason: Reason::NotSent, retry_after: None, detail: None });
            }
            let (lost, refused, there, back) = {
                let mut world = lock(&own.world);
                world.server.requests += 1;
                let Odds { lost, refused, .. } = world.odds;
                let (lost, refused) = (world.happens(lost), world.happens(refused));
                world.server.lost += u64::from(lost || refused);
                (lost, refused, world.millis(100), world.millis(400))
            };
            let failed = |reason| Err(Failure::Retryable { reason, retry_after: None, detail: None });
            if lost {
                sleep(CALL).await;
                own.awake().await;
                return failed(Reason::Timeout);
            }
            if refused {
                return failed(Reason::Unreachable);
            }
            own.may_pause();
            own.may_lose();
            sleep(there).await;
            let number = token.expose()[1..].parse().expect("a number");
            let answer = lock(&own.world).server.spend(number);
            sleep(back).await;
            // It waits in the socket.
            own.awake().await;
            let mut world = lock(&own.world);
            let odds = world.odds.gateway;
            if world.happens(odds) { failed(Reason::HttpStatus(504)) } else { answer }
        })
    }

    fn revoke<'a>(&'a self, _: &'a str, _: &'static str) -> Ending<'a> {
        Box::pin(async { Ok(true) })
    }
}
