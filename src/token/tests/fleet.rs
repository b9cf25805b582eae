//! Fleets on simulated time: many replicas run the real token cache against models of the shared store and of a server
//! that rotates refresh tokens and revokes the grant when one is reused.
//!
//! Property: no refresh token is sent twice, none is lost, and every replica that reaches the store has a token. Tested
//! over random schedules of lost store calls, lost notifications, token requests that never arrive, replicas that pause
//! around a token request (even just before it is sent) or are cut off, and a store that goes down, or comes back empty
//! or rolled back by some seconds.
//! Assumptions: a replica pauses, or cannot save its token, for less than the time between a token's due time and its
//! expiry (`refresh_ahead`), and no other token request is lost during that time; no replica pauses while the store
//! loses records. No client survives a server that rotates and whose response is lost: the old refresh token is then
//! sent once more after the access token has expired.
//! Larger fleets: a schedule has one lease, one record and one mark, however many replicas wait. Each further replica
//! adds one load, at most one attempt to take the lease, and one message per rotation
//! (`a_larger_fleet_adds_only_bounded_store_load`).

mod model;

use super::*;
use crate::model::connection::Grant;
use crate::store::{Refresh, RefreshLife, StoredToken};
use crate::token::slot::AtServer;
use model::{Handle, Odds, ROLLBACK_MAX, SimulatedEndpoint, SimulatedStore, World, world};

/// Lifetime of an access token. A refresh is due after 300 to 330 s; the token is usable for 595 s.
const LIFETIME: Duration = Duration::from_secs(600);
/// Maximum pause of a replica. Shorter than the time for which a due token stays usable, minus an outage of
/// half this length, the maximum backoff, a lease term and the longest call.
const PAUSE_MAX: Duration = Duration::from_secs(110);
/// Maximum time that a healthy replica may lack a token: two consecutive lost token requests.
const UNAVAILABLE_MAX: Duration = Duration::from_secs(90);

/// Faults in addition to lost calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Replicas pause or are cut off; the store is down for a while.
    Absence,
    /// The store loses all records, or its last writes.
    Loss,
    /// Token requests get no response. That uses up the token's remaining lifetime, so there is no other fault.
    Silence,
}

struct Fleet {
    world: Arc<Mutex<World>>,
    replicas: Vec<(Arc<Handle>, Arc<TokenSlot>)>,
    clock: Clock,
    tasks: Tasks,
    seed: u64,
}

impl Fleet {
    /// Starts `count` replicas that find a fresh token in the store.
    fn start(seed: u64, count: usize) -> Fleet {
        let (world, clock) = (world(seed, LIFETIME), Clock::simulated());
        let connection = Arc::new(Connection { grant: Grant::AuthorizationCode, ..Connection::sample("crm") });
        lock(&world).put(StoredToken {
            identity: connection.identity(),
            origins: Arc::new(connection.origins()),
            access_token: AccessToken::parse("a0").unwrap(),
            obtained: clock.now(),
            lifetime: LIFETIME,
            scopes: None,
            refresh: Refresh::Token(RefreshToken::parse("r0").unwrap()),
            refresh_life: RefreshLife::default(),
            version: 1,
        });
        let (metrics, tasks) = (Metrics::new().unwrap(), lock(&world).tasks.clone());
        let join = |number: usize| {
            let handle = Handle::join(&world, format!("replica-{number}"));
            let store = Arc::new(SimulatedStore(handle.clone()));
            let (events, audit) = (Events::default(), Audit::default());
            let cache = TokenCache::new(store, clock.clone(), tasks.clone(), metrics.clone(), events, audit);
            let slot = shared(cache.ensure(&connection, Box::new(SimulatedEndpoint(handle.clone(), clock.clone()))));
            tasks.spawn("store notifications", Arc::new(cache).follow_store_changes());
            (handle, slot)
        };
        let replicas = (0..count).map(join).collect();
        Fleet { replicas, world, clock, tasks, seed }
    }

    fn random<T>(&self, pick: impl FnOnce(&mut fastrand::Rng) -> T) -> T {
        pick(lock(&self.world).random())
    }

    fn random_span(&self, min: Duration, max: Duration) -> Duration {
        Duration::from_millis(self.random(|random| random.u64(min.as_millis() as u64..=max.as_millis() as u64)))
    }

    async fn inject_fault(&self, fault: Fault) {
        let any_replica =
            |fleet: &Fleet| fleet.replicas[fleet.random(|random| random.usize(..fleet.replicas.len()))].0.clone();
        match (fault, self.random(|random| random.u8(..4))) {
            (Fault::Silence, _) => {}
            (Fault::Absence, 0) => {
                let span = self.random_span(SECOND, PAUSE_MAX / 2);
                lock(&self.world).take_down(span);
                self.replicas.iter().for_each(|(handle, _)| handle.cut(span));
                sleep(span).await;
                lock(&self.world).reconnect();
            }
            (Fault::Absence, 1) => {
                let (handle, span) = (any_replica(self), self.random_span(SECOND, PAUSE_MAX));
                handle.cut(span);
                self.tasks.spawn("reconnect", async move {
                    sleep(span).await;
                    handle.reconnect().await;
                });
            }
            (Fault::Absence, _) => any_replica(self).pause(self.random_span(SECOND, PAUSE_MAX)),
            (Fault::Loss, kind) => {
                let back = self.random_span(Duration::ZERO, ROLLBACK_MAX);
                lock(&self.world).lose_records((kind < 2).then_some(back));
                lock(&self.world).reconnect();
            }
        }
    }

    /// Runs three token lifetimes with faults, then one without.
    async fn run(&self, fault: Fault) {
        let mut without_token = vec![None; self.replicas.len()];
        let (faults_end, end) = (Instant::now() + 3 * LIFETIME, Instant::now() + 4 * LIFETIME + LIFETIME / 2);
        {
            let mut world = lock(&self.world);
            world.odds = Odds { store: 0.01, notification: 0.02, refused: 0.02, ..Odds::default() };
            match fault {
                Fault::Absence => (world.odds.pause, world.pause_max) = (0.05, PAUSE_MAX),
                Fault::Loss => world.odds.loss = 0.1,
                Fault::Silence => world.odds.lost = 0.1,
            }
        }
        let mut next = Instant::now() + self.random_span(Duration::ZERO, LIFETIME / 4);
        while Instant::now() < end {
            sleep(5 * SECOND).await;
            self.check_replicas(&mut without_token);
            if Instant::now() > faults_end {
                lock(&self.world).odds = Odds::default();
            } else if Instant::now() > next {
                self.inject_fault(fault).await;
                next = Instant::now() + self.random_span(LIFETIME / 20, LIFETIME / 2);
            }
        }
        // Wait for a rotation in progress.
        while lock(&self.world).is_held() {
            sleep(SECOND / 10).await;
        }
    }

    fn check_replicas(&self, without_token: &mut [Option<Instant>]) {
        let now = Instant::now();
        for ((handle, slot), without_token) in self.replicas.iter().zip(without_token) {
            let healthy_since = *lock(&handle.healthy_since);
            let state = slot.state();
            let serves = state.token.as_ref().is_some_and(|token| token.is_usable(self.clock.now()));
            *without_token = if serves { None } else { without_token.or(Some(now)) };
            let since = without_token.map(|since| since.max(healthy_since));
            let gap = since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
            assert!(gap <= UNAVAILABLE_MAX, "seed {}: no token for {gap:?}: {:?}", self.seed, state.last_failure);
        }
    }

    fn assert_invariants(&self) {
        let world = lock(&self.world);
        let (server, seed) = (&world.server, self.seed);
        assert_eq!(server.spent_twice, 0, "seed {seed}: a refresh token was spent twice");
        assert_eq!(server.first_grants, 0, "seed {seed}: a first grant was sent without a person");
        assert!(!server.revoked, "seed {seed}: an unknown refresh token was sent");
        let newest = Refresh::Token(RefreshToken::parse(&format!("r{}", server.current)).unwrap());
        let stored = world.record().map(|record| record.refresh.clone());
        assert_eq!(stored, Some(newest), "seed {seed}: a refresh token was lost");
        assert!(server.requests <= server.rotations + server.lost, "seed {seed}: unnecessary token requests");
        assert!(server.rotations >= 5, "seed {seed}: only {} rotations", server.rotations);
        for (_, slot) in &self.replicas {
            let state = slot.state();
            let token = state.token.as_ref().unwrap_or_else(|| panic!("seed {seed}: {:?}", state.last_failure));
            assert!(server.is_alive(token.access_token.expose()), "seed {seed}: a revoked token is in use");
        }
    }
}

/// Runs one schedule per seed, on two threads, each schedule on its own runtime.
fn run_schedules(fault: Fault, replicas: usize, seeds: std::ops::Range<u64>) {
    let run = |seed| {
        // Seeds the jitter of the code under test.
        fastrand::seed(seed);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let fleet = Fleet::start(seed, replicas);
            fleet.run(fault).await;
            fleet.assert_invariants();
        });
    };
    let fails = |seed: &u64| std::panic::catch_unwind(|| run(*seed)).is_err();
    let failed: Vec<u64> = std::thread::scope(|scope| {
        let halves = [0, 1].map(|odd| {
            let half = seeds.clone().filter(move |seed| seed % 2 == odd);
            scope.spawn(move || half.filter(fails).collect::<Vec<_>>())
        });
        halves.into_iter().flat_map(|half| half.join().unwrap()).collect()
    });
    assert!(failed.is_empty(), "{fault:?}, {replicas} replicas: {} of {} fail: {failed:?}", failed.len(), seeds.end);
}

/// Seeds for a CI run or a long run.
#[allow(clippy::disallowed_methods, reason = "the duration of a test run is not configuration")]
fn seeds(ci: u64, long: u64) -> std::ops::Range<u64> {
    0..if std::env::var_os("KEYBEARER_LONG").is_some() { long } else { ci }
}

#[test]
fn no_refresh_token_is_reused_or_lost_while_replicas_pause_or_are_cut_off() {
    run_schedules(Fault::Absence, 8, seeds(300, 2_000));
    run_schedules(Fault::Absence, 200, seeds(2, 5_000));
}

#[test]
fn no_refresh_token_is_reused_or_lost_while_the_store_loses_records() {
    run_schedules(Fault::Loss, 8, seeds(300, 2_000));
    run_schedules(Fault::Loss, 200, seeds(2, 5_000));
}

#[test]
fn no_refresh_token_is_reused_or_lost_while_token_requests_get_no_response() {
    run_schedules(Fault::Silence, 8, seeds(100, 1_000));
}

#[tokio::test(start_paused = true)]
async fn an_unsaved_token_is_saved_once_the_store_is_reachable_again() {
    for seed in 1..10 {
        let fleet = Fleet::start(seed, 2);
        let rotations = || lock(&fleet.world).server.rotations;
        while rotations() == 0 {
            sleep(SECOND / 100).await;
        }
        // The store goes down before the token response arrives.
        lock(&fleet.world).take_down(100 * SECOND);
        sleep(100 * SECOND).await;
        assert_eq!(lock(&fleet.world).record().map(|record| record.version), Some(1));
        lock(&fleet.world).reconnect();
        // Every replica reconnects within a second and a half.
        sleep(SECOND * 8 / 5).await;
        assert!(lock(&fleet.world).record().is_some_and(|record| record.access_token.expose() == "a1"), "seed {seed}");
        sleep(LIFETIME).await;
        assert_eq!(lock(&fleet.world).server.spent_twice, 0);
    }
}

/// The server rotates, but a gateway turns its response into a 504.
#[tokio::test(start_paused = true)]
async fn after_a_gateways_504_no_replica_reuses_the_refresh_token_while_the_token_is_usable() {
    let fleet = Fleet::start(1, 3);
    lock(&fleet.world).odds.gateway = 1.0;
    let started = Instant::now();
    while lock(&fleet.world).server.requests == 0 {
        sleep(SECOND / 10).await;
    }
    assert!(started.elapsed() < Duration::from_secs(340), "{:?}", started.elapsed());
    sleep(Duration::from_secs(590).saturating_sub(started.elapsed())).await;
    let server = &lock(&fleet.world).server;
    assert_eq!((server.requests, server.spent_twice), (1, 0));
}

/// The store poll catches lost notifications.
#[tokio::test(start_paused = true)]
async fn a_revocation_reaches_every_replica_within_the_poll_interval_without_notifications() {
    let fleet = Fleet::start(1, 3);
    lock(&fleet.world).odds.notification = 1.0;
    sleep(SECOND).await;
    let serving = || {
        let serves = |slot: &TokenSlot| slot.state().token.is_some();
        fleet.replicas.iter().filter(|(_, slot)| serves(slot)).count()
    };
    assert_eq!(serving(), 3);
    let at_server = AtServer::Revoke { sharers: Vec::new(), until: Instant::now() + 60 * SECOND };
    let revoked = fleet.replicas[0].1.revoke(at_server, Instant::now() + 70 * SECOND).await;
    assert!(revoked.is_ok(), "{revoked:?}");
    sleep(SECOND).await;
    assert_eq!(serving(), 2, "the other replicas get no notification");
    // A poll may be half a minute late.
    sleep(95 * SECOND).await;
    assert_eq!(serving(), 0);
    assert!(lock(&fleet.world).record().is_none(), "no replica writes it back");
}

/// Checks the claim about larger fleets in this file's header.
#[test]
fn a_larger_fleet_adds_only_bounded_store_load() {
    let count = |replicas: usize| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let fleet = Fleet::start(1, replicas);
            sleep(10 * LIFETIME).await;
            while lock(&fleet.world).is_held() {
                sleep(SECOND / 10).await;
            }
            fleet.assert_invariants();
            let world = lock(&fleet.world);
            let rotations = world.server.rotations as f64;
            let each = |count: u64| count as f64 / rotations / replicas as f64;
            assert_eq!(world.server.requests, world.server.rotations);
            (each(world.steps), each(world.messages))
        })
    };
    for replicas in [3, 10, 50, 200] {
        let (steps, messages) = count(replicas);
        println!("{replicas} replicas: {steps:.1} steps and {messages:.2} messages for each rotation and replica");
        // One poll a minute and one per notification, the steps under the lease, and attempts to take it.
        assert!(steps < 20.0 && messages <= 1.0, "{replicas}: {steps} {messages}");
    }
}
