//! A model of the shared store and of a server that rotates refresh tokens, with faults between them and each replica.
//!
//! Each call is one step, atomic like a Redis script (`store::redis::scripts`), with a delay in each direction. A
//! paused replica takes no step and reads no response, but its requests in flight proceed.

mod handle;
mod store;

use std::collections::{HashMap, HashSet, VecDeque};

use tokio::sync::broadcast;

use super::*;
use crate::store::{Notification, StoredToken};
pub use handle::{Handle, SimulatedEndpoint};
pub use store::SimulatedStore;

/// Age of the oldest writes that a failover may lose.
pub const ROLLBACK_MAX: Duration = Duration::from_secs(5);
const HISTORY: usize = 1024;

/// Probabilities of faults.
#[derive(Debug, Clone, Copy, Default)]
pub struct Odds {
    /// The request or the response of a store call is lost.
    pub store: f64,
    /// A change notification to one replica is lost.
    pub notification: f64,
    /// A token request cannot connect.
    pub refused: f64,
    /// A token request never arrives and times out.
    pub lost: f64,
    /// A gateway turns the response to a token request into a 504.
    pub gateway: f64,
    /// A replica pauses after a step around a token request.
    pub pause: f64,
    /// The store loses all records, or its last writes, around a token request.
    pub loss: f64,
}

#[derive(Clone, Default)]
struct State {
    record: Option<StoredToken>,
    lease: Option<(String, Instant)>,
    spending: Option<String>,
    /// Version of the last removal of the record.
    removed: u64,
}

pub struct World {
    pub tasks: Tasks,
    start: Instant,
    state: State,
    /// The state before each change.
    history: VecDeque<(Instant, State)>,
    handles: Vec<Arc<Handle>>,
    down_until: Instant,
    /// How many times all connections broke.
    breaks: u64,
    pub odds: Odds,
    pub pause_max: Duration,
    random: fastrand::Rng,
    pub steps: u64,
    pub messages: u64,
    pub server: Server,
}

/// The server's state of one grant. Refresh tokens are numbered; one of them is current.
#[derive(Default)]
pub struct Server {
    pub current: u64,
    spent: HashSet<u64>,
    alive: HashMap<String, Instant>,
    pub revoked: bool,
    pub spent_twice: u64,
    /// First grants, to which no person consented.
    pub first_grants: u64,
    pub requests: u64,
    pub rotations: u64,
    pub lost: u64,
    pub life: Duration,
}

impl Server {
    pub fn is_alive(&self, access: &str) -> bool {
        self.alive.get(access).is_some_and(|end| *end > Instant::now())
    }

    fn spend(&mut self, number: u64) -> TokenResult {
        if self.revoked || number != self.current {
            self.spent_twice += u64::from(self.spent.contains(&number));
            self.revoked = true;
            return Err(Failure::Permanent(Refusal {
                refuses_refresh_token: true,
                ..Refusal::from_code("invalid_grant")
            }));
        }
        self.spent.insert(number);
        self.current += 1;
        self.rotations += 1;
        let access = format!("a{}", self.current);
        self.alive.insert(access.clone(), Instant::now() + self.life);
        let refresh = RefreshToken::parse(&format!("r{}", self.current)).unwrap();
        let access_token = AccessToken::parse(&access).unwrap();
        let expires_in = Some(self.life);
        Ok(TokenSet {
            access_token,
            expires_in,
            refresh_token: Some(refresh),
            refresh_token_expires_in: None,
            scopes: None,
        })
    }
}

pub fn world(seed: u64, life: Duration) -> Arc<Mutex<World>> {
    Arc::new(Mutex::new(World {
        tasks: Tasks::default(),
        start: Instant::now(),
        state: State::default(),
        history: VecDeque::new(),
        handles: Vec::new(),
        down_until: Instant::now(),
        breaks: 0,
        odds: Odds::default(),
        pause_max: Duration::ZERO,
        random: fastrand::Rng::with_seed(seed),
        steps: 0,
        messages: 0,
        server: Server { life, ..Server::default() },
    }))
}

impl World {
    pub fn put(&mut self, token: StoredToken) {
        self.server.alive.insert(token.access_token.expose().to_owned(), Instant::now() + self.server.life);
        self.state.record = Some(token);
    }

    /// The store's clock, in microseconds.
    fn time(&self) -> u64 {
        1_800_000_000_000_000 + self.start.elapsed().as_micros() as u64
    }

    pub fn record(&self) -> Option<&StoredToken> {
        self.state.record.as_ref()
    }

    pub fn random(&mut self) -> &mut fastrand::Rng {
        &mut self.random
    }

    pub fn chance(&mut self, odds: f64) -> bool {
        odds > 0.0 && self.random.f64() < odds
    }

    fn millis(&mut self, most: u64) -> Duration {
        Duration::from_millis(self.random.u64(0..=most))
    }

    pub fn take_down(&mut self, span: Duration) {
        self.down_until = Instant::now() + span;
        self.breaks += 1;
    }

    /// Breaks all connections; the store comes back empty, or rolled back by `back`.
    pub fn lose_records(&mut self, back: Option<Duration>) {
        self.breaks += 1;
        let then = back.map(|back| Instant::now() - back);
        let state = then.map(|then| {
            let later = self.history.iter().find(|(at, _)| *at > then);
            later.map_or(self.state.clone(), |(_, state)| state.clone())
        });
        self.state = state.unwrap_or_default();
        self.history.clear();
    }

    /// Lets every replica reconnect within 1.5 s.
    pub fn reconnect(&mut self) {
        for handle in self.handles.clone() {
            let delay = self.millis(1_500);
            self.tasks.spawn("reconnect", async move {
                sleep(delay).await;
                handle.reconnect().await;
            });
        }
    }

    fn is_down(&self) -> bool {
        Instant::now() < self.down_until
    }

    fn change(&mut self) -> &mut State {
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back((Instant::now(), self.state.clone()));
        &mut self.state
    }

    fn version(&self) -> u64 {
        self.state.record.as_ref().map_or(0, |record| record.version)
    }

    /// Version of the record or of its removal, whichever is later.
    fn latest(&self) -> u64 {
        self.version().max(self.state.removed)
    }

    fn is_in_doubt(&self) -> bool {
        let version = self.state.spending.as_ref().and_then(|holder| holder.rsplit_once(':')?.1.parse().ok());
        version.is_some_and(|version: u64| version > self.version())
    }

    fn holder(&self) -> Option<&str> {
        self.state.lease.as_ref().filter(|(_, end)| *end > Instant::now()).map(|(holder, _)| holder.as_str())
    }

    /// True while a replica holds the lease.
    pub fn is_held(&self) -> bool {
        self.holder().is_some()
    }

    /// Notifies all replicas except `from`; some notifications are lost.
    fn notify(&mut self, from: &str, key: &TokenKey) {
        let (odds, delay) = (self.odds.notification, self.millis(50));
        let (random, handles) = (&mut self.random, &self.handles);
        let receives = |handle: &&Arc<Handle>| handle.name != from && !(odds > 0.0 && random.f64() < odds);
        let receivers: Vec<_> = handles.iter().filter(receives).cloned().collect();
        self.messages += receivers.len() as u64;
        let key = key.clone();
        self.tasks.spawn("store notifications", async move {
            sleep(delay).await;
            for handle in receivers.iter().filter(|handle| !handle.is_cut()) {
                let _ = handle.notifications.send(Notification::Changed(key.clone()));
            }
        });
    }
}
