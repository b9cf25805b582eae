//! One replica in the model: its links to the store and to the server, and its token endpoint.

use tokio::time::sleep_until;

use super::*;
use crate::store::StoreError;

/// Timeout of a call to the store.
const STORE_TIMEOUT: Duration = Duration::from_secs(1);
/// Timeout of a token request; that of `Connection::sample`.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// One replica's links to the store and to the server.
pub struct Handle {
    pub(super) name: String,
    pub(super) world: Arc<Mutex<World>>,
    pub(super) notifications: broadcast::Sender<Notification>,
    paused_until: Mutex<Instant>,
    cut_until: Mutex<Instant>,
    /// Earliest start of the next pause.
    next_pause_at: Mutex<Instant>,
    breaks: Mutex<u64>,
    pub(super) reconnected_at: Mutex<Option<Instant>>,
    /// When the last outage or pause of this replica ended.
    pub healthy_since: Mutex<Instant>,
}

impl Handle {
    pub fn join(world: &Arc<Mutex<World>>, name: String) -> Arc<Handle> {
        let (now, breaks) = (Instant::now(), lock(world).breaks);
        let handle = Arc::new(Handle {
            name,
            world: world.clone(),
            notifications: broadcast::Sender::new(64),
            paused_until: Mutex::new(now),
            cut_until: Mutex::new(now),
            next_pause_at: Mutex::new(now),
            breaks: Mutex::new(breaks),
            reconnected_at: Mutex::default(),
            healthy_since: Mutex::new(now),
        });
        lock(world).handles.push(handle.clone());
        handle
    }

    /// Pauses the replica, unless it has paused recently.
    pub fn pause(&self, span: Duration) {
        let now = Instant::now();
        let mut next_pause_at = lock(&self.next_pause_at);
        if now >= *next_pause_at {
            *next_pause_at = now + span + 2 * lock(&self.world).pause_max;
            *lock(&self.paused_until) = now + span;
            *lock(&self.healthy_since) = now + span;
        }
    }

    pub fn cut(&self, span: Duration) {
        let end = Instant::now() + span;
        *lock(&self.cut_until) = end;
        *lock(&self.healthy_since) = end;
        *lock(&self.breaks) = u64::MAX;
    }

    pub(super) fn is_cut(&self) -> bool {
        Instant::now() < *lock(&self.cut_until) || lock(&self.world).is_down()
    }

    async fn wait_while_paused(&self) {
        loop {
            let until = *lock(&self.paused_until);
            if Instant::now() >= until {
                return;
            }
            sleep_until(until).await;
        }
    }

    /// Reconnects after an outage if the store is reachable, like the Redis store's reconnection every second.
    pub async fn reconnect(&self) {
        self.wait_while_paused().await;
        let breaks = lock(&self.world).breaks;
        if !self.is_cut() && *lock(&self.breaks) != breaks {
            *lock(&self.breaks) = breaks;
            *lock(&self.reconnected_at) = Some(Instant::now());
            let _ = self.notifications.send(Notification::Missed);
        }
    }

    pub(super) async fn step<T>(&self, work: impl FnOnce(&mut World) -> T) -> Result<T, StoreError> {
        let unreachable = || StoreError::Unavailable("unreachable".to_owned());
        self.wait_while_paused().await;
        if self.is_cut() || *lock(&self.breaks) != lock(&self.world).breaks {
            return Err(unreachable());
        }
        let (request_lost, response_lost, delay) = {
            let mut world = lock(&self.world);
            let odds = world.odds.store;
            (world.chance(odds), world.chance(odds), world.millis(3))
        };
        if request_lost {
            sleep(STORE_TIMEOUT).await;
            self.wait_while_paused().await;
            return Err(unreachable());
        }
        sleep(delay).await;
        if self.is_cut() {
            return Err(unreachable());
        }
        let done = {
            let mut world = lock(&self.world);
            world.steps += 1;
            work(&mut world)
        };
        if response_lost {
            sleep(STORE_TIMEOUT).await;
        }
        self.wait_while_paused().await;
        if response_lost { Err(unreachable()) } else { Ok(done) }
    }

    pub(super) async fn release(&self, holder: &String, settled: bool) -> bool {
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

    /// Called around a token request: the store may lose all records or its last writes.
    fn maybe_lose_records(&self) {
        let world = self.world.clone();
        let mut now = lock(&self.world);
        let odds = now.odds.loss;
        if now.chance(odds) {
            let (wait, back) = (now.millis(600), now.millis(ROLLBACK_MAX.as_millis() as u64));
            let back = now.random.bool().then_some(back);
            now.tasks.spawn("loss", async move {
                sleep(wait).await;
                let mut world = lock(&world);
                world.lose_records(back);
                world.reconnect();
            });
        }
    }

    /// Called around a token request: the replica may pause.
    pub(super) fn maybe_pause(&self) {
        let span = {
            let mut world = lock(&self.world);
            let (odds, most) = (world.odds.pause, world.pause_max.as_millis() as u64);
            world.chance(odds).then(|| world.millis(most))
        };
        span.into_iter().for_each(|span| self.pause(span));
    }
}

/// A replica's token endpoint.
pub struct SimulatedEndpoint(pub Arc<Handle>, pub Clock);

impl TokenSource for SimulatedEndpoint {
    fn first_grant<'a>(&'a self, _: TokenRequestContext<'a>) -> crate::token::TokenFuture<'a> {
        lock(&self.0.world).server.first_grants += 1;
        Box::pin(async { Err(Failure::Permanent(Refusal::from_code("consent_required"))) })
    }

    fn refresh<'a>(
        &'a self,
        token: &'a RefreshToken,
        context: TokenRequestContext<'a>,
    ) -> crate::token::TokenFuture<'a> {
        Box::pin(async move {
            let handle = &self.0;
            handle.maybe_pause();
            handle.wait_while_paused().await;
            if context.send_deadline.is_some_and(|before| self.1.now().boot >= before) {
                return Err(Failure::Retryable { reason: Reason::NotSent, retry_after: None, detail: None });
            }
            let (lost, refused, request_delay, response_delay) = {
                let mut world = lock(&handle.world);
                world.server.requests += 1;
                let Odds { lost, refused, .. } = world.odds;
                let (lost, refused) = (world.chance(lost), world.chance(refused));
                world.server.lost += u64::from(lost || refused);
                (lost, refused, world.millis(100), world.millis(400))
            };
            let failed = |reason| Err(Failure::Retryable { reason, retry_after: None, detail: None });
            if lost {
                sleep(REQUEST_TIMEOUT).await;
                handle.wait_while_paused().await;
                return failed(Reason::Timeout);
            }
            if refused {
                return failed(Reason::Unreachable);
            }
            handle.maybe_pause();
            handle.maybe_lose_records();
            sleep(request_delay).await;
            let number = token.expose()[1..].parse().expect("a number");
            let response = lock(&handle.world).server.spend(number);
            sleep(response_delay).await;
            // A paused replica leaves the response in the socket.
            handle.wait_while_paused().await;
            let mut world = lock(&handle.world);
            let odds = world.odds.gateway;
            if world.chance(odds) { failed(Reason::HttpStatus(504)) } else { response }
        })
    }

    fn revoke<'a>(&'a self, _: &'a str, _: &'static str) -> RevocationFuture<'a> {
        Box::pin(async { Ok(Revocation::Revoked) })
    }
}
