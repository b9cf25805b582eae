//! Fleets on simulated time: many replicas, each the real engine, over a model of the shared store and of a server that
//! rotates refresh tokens and revokes the grant when one is sent twice.
//!
//! Shown over random schedules of lost store calls, lost notifications, token requests that never arrive, replicas that
//! pause near a token request (also before it leaves) or are cut off, and a store that is down, comes back empty or as it
//! was some seconds ago: no refresh token is sent twice, none is lost, and every replica that reaches the store has a token.
//! Assumptions: a replica pauses, or cannot save its token, for less time than from the moment a token is due to its end
//! (`refresh_ahead`), and no other token request is lost meanwhile; no replica pauses while the store loses records. No
//! client survives a server that has rotated and whose response is lost: the old refresh token is then sent once more after
//! the access token has ended.
//! Larger fleets: a schedule has one lease, one record and one mark, however many replicas wait; one more replica adds a
//! load, at most one attempt to take the lease, and a message for each rotation (`what_grows_with_the_fleet`).

mod model;

use super::*;
use crate::model::connection::Grant;
use crate::store::{Refresh, RefreshLife, StoredToken};
use model::{Client, Handle, Odds, ROLLBACK_MAX, SimulatedStore, World, world};

/// Lifetime of an access token. It is due between 300 and 330 s, and usable for 595 s.
const LIFE: Duration = Duration::from_secs(600);
/// Shorter than the time from the last due moment to the end of use, less an outage of half this length, the longest
/// backoff, a lease's term and the longest call.
const PAUSE_MAX: Duration = Duration::from_secs(110);
/// Longest lack of a token at a replica without trouble of its own: two token requests lost in a row.
const LACK_MAX: Duration = Duration::from_secs(90);

/// Faults besides lost calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    /// Replicas pause or are cut off; the store is down for a while.
    Absence,
    /// The store loses its records, or its last writes.
    Loss,
    /// Token requests get no response, which leaves no time of the present token for another fault.
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
    /// `count` replicas that find a new token in the store.
    fn start(seed: u64, count: usize) -> Fleet {
        let (world, clock) = (world(seed, LIFE), Clock::simulated());
        let connection = Arc::new(Connection { grant: Grant::AuthorizationCode, ..Connection::sample("crm") });
        lock(&world).put(StoredToken {
            identity: connection.identity(),
            origins: Arc::new(connection.origins()),
            access_token: AccessToken::parse("a0").unwrap(),
            obtained: clock.now(),
            lifetime: LIFE,
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
            let slot = shared(cache.ensure(&connection, Box::new(Client(handle.clone(), clock.clone()))));
            tasks.spawn("news", Arc::new(cache).follow_news());
            (handle, slot)
        };
        let replicas = (0..count).map(join).collect();
        Fleet { replicas, world, clock, tasks, seed }
    }

    fn random<T>(&self, pick: impl FnOnce(&mut fastrand::Rng) -> T) -> T {
        pick(lock(&self.world).random())
    }

    fn span(&self, least: Duration, most: Duration) -> Duration {
        Duration::from_millis(self.random(|random| random.u64(least.as_millis() as u64..=most.as_millis() as u64)))
    }

    async fn trouble(&self, trouble: Trouble) {
        let one = |fleet: &Fleet| fleet.replicas[fleet.random(|random| random.usize(..fleet.replicas.len()))].0.clone();
        match (trouble, self.random(|random| random.u8(..4))) {
            (Trouble::Silence, _) => {}
            (Trouble::Absence, 0) => {
                let span = self.span(SECOND, PAUSE_MAX / 2);
                lock(&self.world).goes_down(span);
                self.replicas.iter().for_each(|(handle, _)| handle.cut(span));
                sleep(span).await;
                lock(&self.world).mend();
            }
            (Trouble::Absence, 1) => {
                let (handle, span) = (one(self), self.span(SECOND, PAUSE_MAX));
                handle.cut(span);
                self.tasks.spawn("mend", async move {
                    sleep(span).await;
                    handle.mend().await;
                });
            }
            (Trouble::Absence, _) => one(self).pause(self.span(SECOND, PAUSE_MAX)),
            (Trouble::Loss, kind) => {
                let back = self.span(Duration::ZERO, ROLLBACK_MAX);
                lock(&self.world).loses((kind < 2).then_some(back));
                lock(&self.world).mend();
            }
        }
    }

    /// Three lifetimes with faults, then one without.
    async fn run(&self, trouble: Trouble) {
        let mut lacking = vec![None; self.replicas.len()];
        let (trouble_ends, end) = (Instant::now() + 3 * LIFE, Instant::now() + 4 * LIFE + LIFE / 2);
        {
            let mut world = lock(&self.world);
            world.odds = Odds { store: 0.01, news: 0.02, refused: 0.02, ..Odds::default() };
            match trouble {
                Trouble::Absence => (world.odds.pause, world.pause_max) = (0.05, PAUSE_MAX),
                Trouble::Loss => world.odds.loss = 0.1,
                Trouble::Silence => world.odds.lost = 0.1,
            }
        }
        let mut next = Instant::now() + self.span(Duration::ZERO, LIFE / 4);
        while Instant::now() < end {
            sleep(5 * SECOND).await;
            self.look(&mut lacking);
            if Instant::now() > trouble_ends {
                lock(&self.world).odds = Odds::default();
            } else if Instant::now() > next {
                self.trouble(trouble).await;
                next = Instant::now() + self.span(LIFE / 20, LIFE / 2);
            }
        }
        // No rotation is under way at the end.
        while lock(&self.world).is_held() {
            sleep(SECOND / 10).await;
        }
    }

    fn look(&self, lacking: &mut [Option<Instant>]) {
        let now = Instant::now();
        for ((handle, slot), lacking) in self.replicas.iter().zip(lacking) {
            let well_since = *lock(&handle.well_since);
            let state = slot.state();
            let serves = state.token.as_ref().is_some_and(|token| token.is_usable(self.clock.now()));
            *lacking = if serves { None } else { lacking.or(Some(now)) };
            let since = lacking.map(|since| since.max(well_since));
            let lack = since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
            assert!(lack <= LACK_MAX, "seed {}: no token for {lack:?}: {:?}", self.seed, state.trouble);
        }
    }

    fn holds(&self) {
        let world = lock(&self.world);
        let (server, seed) = (&world.server, self.seed);
        assert_eq!(server.spent_twice, 0, "seed {seed}: a refresh token was spent twice");
        assert_eq!(server.begun_anew, 0, "seed {seed}: the grant was tried without a person");
        assert!(!server.revoked, "seed {seed}: an unknown refresh token was sent");
        let newest = Refresh::Token(RefreshToken::parse(&format!("r{}", server.current)).unwrap());
        let kept = world.record().map(|record| record.refresh.clone());
        assert_eq!(kept, Some(newest), "seed {seed}: a refresh token was lost");
        assert!(server.requests <= server.rotations + server.lost, "seed {seed}: requests in vain");
        assert!(server.rotations >= 5, "seed {seed}: only {} rotations", server.rotations);
        for (_, slot) in &self.replicas {
            let state = slot.state();
            let token = state.token.as_ref().unwrap_or_else(|| panic!("seed {seed}: {:?}", state.trouble));
            assert!(server.is_alive(token.access_token.expose()), "seed {seed}: a dead token is in use");
        }
    }
}

/// Runs the schedules of `seeds` on two threads, each schedule on a runtime of its own.
fn schedules(trouble: Trouble, replicas: usize, seeds: std::ops::Range<u64>) {
    let run = |seed| {
        // The engine uses random jitter, too.
        fastrand::seed(seed);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let fleet = Fleet::start(seed, replicas);
            fleet.run(trouble).await;
            fleet.holds();
        });
    };
    let fails = |seed: &u64| std::panic::catch_unwind(|| run(*seed)).is_err();
    let failed: Vec<u64> = std::thread::scope(|scope| {
        let halves = [0, 1].map(|odd| {
            let own = seeds.clone().filter(move |seed| seed % 2 == odd);
            scope.spawn(move || own.filter(fails).collect::<Vec<_>>())
        });
        halves.into_iter().flat_map(|half| half.join().unwrap()).collect()
    });
    assert!(failed.is_empty(), "{trouble:?}, {replicas} replicas: {} of {} fail: {failed:?}", failed.len(), seeds.end);
}

/// The number of schedules, in CI or in a long run.
#[allow(clippy::disallowed_methods, reason = "how long the tests take is no configuration")]
fn many(ci: u64, long: u64) -> std::ops::Range<u64> {
    0..if std::env::var_os("KEYBEARER_LONG").is_some() { long } else { ci }
}

#[test]
fn nothing_is_spent_twice_or_lost_while_replicas_pause_or_are_cut_off() {
    schedules(Trouble::Absence, 8, many(300, 2_000));
    schedules(Trouble::Absence, 200, many(2, 5_000));
}

#[test]
fn nothing_is_spent_twice_or_lost_while_the_store_loses_records() {
    schedules(Trouble::Loss, 8, many(300, 2_000));
    schedules(Trouble::Loss, 200, many(2, 5_000));
}

#[test]
fn nothing_is_spent_twice_or_lost_while_token_requests_get_no_response() {
    schedules(Trouble::Silence, 8, many(100, 1_000));
}

#[tokio::test(start_paused = true)]
async fn an_unsaved_token_is_saved_as_soon_as_the_store_is_back() {
    for seed in 1..10 {
        let fleet = Fleet::start(seed, 2);
        let rotations = || lock(&fleet.world).server.rotations;
        while rotations() == 0 {
            sleep(SECOND / 100).await;
        }
        // Before the response has arrived.
        lock(&fleet.world).goes_down(100 * SECOND);
        sleep(100 * SECOND).await;
        assert_eq!(lock(&fleet.world).record().map(|record| record.version), Some(1));
        lock(&fleet.world).mend();
        // Every replica reconnects within a second and a half.
        sleep(SECOND * 8 / 5).await;
        assert!(lock(&fleet.world).record().is_some_and(|record| record.access_token.expose() == "a1"), "seed {seed}");
        sleep(LIFE).await;
        assert_eq!(lock(&fleet.world).server.spent_twice, 0);
    }
}

/// The server has rotated, and a gateway has answered 504.
#[tokio::test(start_paused = true)]
async fn after_a_gateways_504_no_replica_sends_the_refresh_token_again_while_the_token_lasts() {
    let fleet = Fleet::start(1, 3);
    lock(&fleet.world).odds.gateway = 1.0;
    let begun = Instant::now();
    while lock(&fleet.world).server.requests == 0 {
        sleep(SECOND / 10).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(340), "{:?}", begun.elapsed());
    sleep(Duration::from_secs(590).saturating_sub(begun.elapsed())).await;
    let server = &lock(&fleet.world).server;
    assert_eq!((server.requests, server.spent_twice), (1, 0));
}

/// The poll of the store catches lost notifications.
#[tokio::test(start_paused = true)]
async fn without_news_a_revocation_holds_everywhere_within_a_minute() {
    let fleet = Fleet::start(1, 3);
    lock(&fleet.world).odds.news = 1.0;
    sleep(SECOND).await;
    let serving = || {
        let serves = |slot: &TokenSlot| slot.state().token.is_some();
        fleet.replicas.iter().filter(|(_, slot)| serves(slot)).count()
    };
    assert_eq!(serving(), 3);
    let revoked = fleet.replicas[0].1.revoke(Vec::new(), Instant::now() + 60 * SECOND).await;
    assert!(revoked.is_ok(), "{revoked:?}");
    sleep(SECOND).await;
    assert_eq!(serving(), 2, "no notification has reached them");
    // Each poll may be half a minute late.
    sleep(95 * SECOND).await;
    assert_eq!(serving(), 0);
    assert!(lock(&fleet.world).record().is_none(), "no replica has written it back");
}

/// Evidence for the argument about larger fleets.
#[test]
fn what_grows_with_the_fleet() {
    let count = |replicas: usize| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let fleet = Fleet::start(1, replicas);
            sleep(10 * LIFE).await;
            while lock(&fleet.world).is_held() {
                sleep(SECOND / 10).await;
            }
            fleet.holds();
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
        // A poll each minute and one for the notification; some steps of the lease's holder, and attempts to take the lease.
        assert!(steps < 20.0 && messages <= 1.0, "{replicas}: {steps} {messages}");
    }
}
