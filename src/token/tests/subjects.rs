//! Tokens per subject: always in the store, and in memory while in use.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::{panic, thread};

use super::*;
use crate::model::connection::Lifetimes;
use crate::store::{Refresh, StoredToken};

struct Subjects {
    cache: TokenCache,
    clock: Clock,
    script: Arc<Script>,
    slots: Arc<SubjectSlots>,
}

fn subjects(keep_warm: Option<Duration>, in_memory_max: usize) -> Subjects {
    let script = Arc::new(Script { lifetime: Some(60 * SECOND), ..Script::default() });
    let (store, clock) = (Arc::new(MemoryStore::default()), Clock::simulated());
    let (tasks, metrics) = (Tasks::default(), Metrics::new().unwrap());
    let mut cache = TokenCache::new(store, clock.clone(), tasks, metrics, Events::default(), Audit::default());
    cache.subjects = SubjectCache::new(NonZeroUsize::new(in_memory_max).unwrap());
    let lifetimes = Lifetimes { keep_warm, ..Lifetimes::default() };
    let connection = Connection { tokens: Tokens::PerSubject, lifetimes, ..Connection::sample("crm") };
    let slots = match cache.ensure(&Arc::new(connection), Box::new(Source(script.clone()))) {
        Slots::PerSubject(slots) => slots,
        Slots::Shared(_) | Slots::PerCallerToken(_) => panic!("a shared token"),
    };
    Subjects { cache, clock, script, slots }
}

impl Subjects {
    /// Redefines the connection with another source.
    fn redefine(&mut self, keep_warm: Option<Duration>, script: Script) {
        self.script = Arc::new(script);
        let lifetimes = Lifetimes { keep_warm, ..Lifetimes::default() };
        let connection = Connection { tokens: Tokens::PerSubject, lifetimes, ..Connection::sample("crm") };
        self.cache.ensure(&Arc::new(connection), Box::new(Source(self.script.clone())));
    }

    async fn token(&self, subject: &str) -> Result<String, NoToken> {
        let slot = self.slots.slot(&Subject::parse(subject).unwrap());
        if let Some(token) = slot.fresh(self.clock.now()) {
            return Ok(token.access_token.expose().to_owned());
        }
        let token = slot.token(&self.clock, Instant::now() + 10 * SECOND).await;
        token.map(|token| token.access_token.expose().to_owned())
    }

    fn in_memory(&self) -> Vec<String> {
        let mut keys: Vec<_> = self.cache.list().iter().map(|slot| slot.key.to_string()).collect();
        keys.sort();
        keys
    }
}

/// Runs a test on paused time in its own thread, with a timeout on the real clock: a task that never yields would stop
/// the paused clock and every timeout on it.
fn with_real_timeout(test: impl AsyncFnOnce() + Send + 'static) {
    const TIMEOUT: Duration = Duration::from_secs(30);
    let (done, ended) = mpsc::channel::<()>();
    let thread = thread::Builder::new().spawn(move || {
        // Dropped at the end, even by a panic.
        let _done = done;
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().start_paused(true).build().expect("a runtime").block_on(test());
    });
    let thread = thread.expect("a thread");
    let is_finished = ended.recv_timeout(TIMEOUT) == Err(RecvTimeoutError::Disconnected);
    assert!(is_finished, "still running after {TIMEOUT:?}: some task never yields");
    if let Err(cause) = thread.join() {
        panic::resume_unwind(cause);
    }
}

#[tokio::test(start_paused = true)]
async fn each_subject_has_its_own_token() {
    let run = subjects(None, 10);
    let (ann, bob) = (run.token("ann").await.unwrap(), run.token("bob").await.unwrap());
    assert_ne!(ann, bob);
    assert_eq!(run.token("ann").await, Ok(ann));
    assert_eq!(run.script.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_token_is_refreshed_ahead_only_while_it_is_in_use() {
    let run = subjects(None, 10);
    run.token("ann").await.unwrap();
    run.token("bob").await.unwrap();
    for _ in 0..300 {
        run.token("ann").await.unwrap();
        sleep(SECOND).await;
    }
    let after_use = run.script.calls();
    assert!((10..=13).contains(&after_use), "{after_use}: only ann's token is refreshed, twice a minute");
    sleep(600 * SECOND).await;
    assert!(run.script.calls() <= after_use + 2, "{} after {after_use}", run.script.calls());
}

#[tokio::test(start_paused = true)]
async fn the_least_recently_used_subject_is_evicted_and_reloaded_from_the_store() {
    let run = subjects(None, 3);
    let ann = run.token("ann").await.unwrap();
    for subject in ["bob", "eve"] {
        run.token(subject).await.unwrap();
    }
    assert_eq!(run.token("ann").await, Ok(ann.clone()));
    run.token("zoe").await.unwrap();
    assert_eq!(run.in_memory(), ["crm/default/ann", "crm/default/eve", "crm/default/zoe"]);
    for subject in ["bob", "eve", "zoe"] {
        run.token(subject).await.unwrap();
    }
    assert_eq!(run.in_memory(), ["crm/default/bob", "crm/default/eve", "crm/default/zoe"]);
    assert_eq!(run.token("ann").await, Ok(ann));
    assert_eq!(run.script.calls(), 4, "no token was requested twice");
}

#[tokio::test(start_paused = true)]
async fn a_token_that_expires_unused_is_evicted() {
    let run = subjects(None, 10);
    run.token("ann").await.unwrap();
    sleep(120 * SECOND).await;
    assert!(run.slots.slot(&Subject::parse("ann").unwrap()).fresh(run.clock.now()).is_none());
    assert_eq!(run.script.calls(), 1);
    assert!(run.token("ann").await.is_ok());
    assert_eq!(run.script.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn all_callers_get_the_last_failure_until_the_next_attempt() {
    let run = subjects(None, 10);
    run.script.push(unavailable(Some(30 * SECOND)));
    for _ in 0..29 {
        assert!(run.token("ann").await.is_err());
        sleep(SECOND).await;
    }
    assert_eq!(run.script.calls(), 1);
    sleep(600 * SECOND).await;
    assert_eq!(run.script.calls(), 1, "no caller demands a token");
    assert!(run.token("ann").await.is_ok());
}

#[test]
fn tokens_are_kept_warm_without_demand() {
    with_real_timeout(async || {
        let run = subjects(Some(3600 * SECOND), 10);
        for number in 0..100 {
            let refresh_token = RefreshToken::parse(&format!("r{number}")).unwrap();
            let access_token = AccessToken::parse(&format!("a{number}")).unwrap();
            let expires_in = Some(60 * SECOND);
            run.script.push(Ok(TokenSet {
                access_token,
                expires_in,
                refresh_token: Some(refresh_token),
                refresh_token_expires_in: None,
                scopes: None,
            }));
        }
        run.token("ann").await.unwrap();
        run.token("bob").await.unwrap();
        sleep(10 * 3600 * SECOND).await;
        let calls = run.script.calls();
        assert!((20..=40).contains(&calls), "{calls}: each at least once an hour");
        let times = lock(&run.script.times).clone();
        let gaps = times.windows(3).map(|three| three[2] - three[0]);
        assert!(gaps.max().unwrap() <= 3600 * SECOND);
        assert!(run.in_memory().is_empty(), "warm tokens are in the store");
    });
}

/// Stores a token with a refresh token for each of `count` subjects.
async fn fill(run: &Subjects, count: usize) {
    for number in 0..count {
        let connection = Connection { tokens: Tokens::PerSubject, ..Connection::sample("crm") };
        let key = connection.token_key(Some(Subject::parse(&format!("s{number:05}")).unwrap()));
        let refresh = Refresh::Token(RefreshToken::parse(&format!("r{number}")).unwrap());
        let token = StoredToken {
            identity: connection.identity(),
            origins: Arc::new(connection.origins()),
            access_token: AccessToken::parse("old").unwrap(),
            obtained: run.clock.now(),
            lifetime: 60 * SECOND,
            scopes: None,
            refresh,
            refresh_life: Default::default(),
            version: 0,
        };
        let store = run.cache.store();
        let lease = store.lease(&key, SECOND, SECOND).await.unwrap();
        store.save(&key, token, &*lease).await.unwrap();
    }
}

/// Ten thousand subjects in 864 s at 200 ms a call; scales to a million in a day.
#[test]
fn tokens_issued_at_once_are_all_refreshed_within_keep_warm() {
    with_real_timeout(async || {
        let span = 864 * SECOND;
        let mut run = subjects(Some(span), 16_384);
        let script = Script { lifetime: Some(60 * SECOND), latency: SECOND / 5, ..Script::default() };
        run.redefine(Some(span), script);
        fill(&run, 10_000).await;
        let filled = Instant::now();
        let most = Arc::new(AtomicUsize::new(0));
        while lock(&run.script.spent).len() < 10_000 {
            assert!(filled.elapsed() < span, "only {} in time", lock(&run.script.spent).len());
            most.fetch_max(run.in_memory().len(), Ordering::SeqCst);
            sleep(SECOND).await;
        }
        let spent: HashSet<String> = lock(&run.script.spent).iter().take(10_000).cloned().collect();
        assert_eq!(spent.len(), 10_000, "each subject's refresh token once");
        assert_eq!(run.script.in_flight_max.load(Ordering::SeqCst), 6, "permits are left to requests");
        assert!(most.load(Ordering::SeqCst) < 50, "{most:?} subjects were in memory at once");
    });
}

#[test]
fn keep_warm_takes_effect_when_it_is_added() {
    with_real_timeout(async || {
        let mut run = subjects(None, 10);
        fill(&run, 3).await;
        sleep(100 * SECOND).await;
        let script = Script { lifetime: Some(60 * SECOND), ..Script::default() };
        run.redefine(Some(100 * SECOND), script);
        sleep(30 * SECOND).await;
        assert_eq!(run.script.calls(), 3);
    });
}

#[tokio::test(start_paused = true)]
async fn an_attempt_is_abandoned_when_its_last_caller_leaves() {
    let mut run = subjects(None, 100);
    run.redefine(None, Script { lifetime: Some(60 * SECOND), latency: 5 * SECOND, ..Script::default() });
    {
        let names: Vec<_> = (0..50).map(|number| format!("s{number}")).collect();
        let all = futures_util::future::join_all(names.iter().map(|subject| run.token(subject)));
        assert!(tokio::time::timeout(SECOND, all).await.is_err());
    }
    sleep(SECOND / 10).await;
    assert_eq!(run.in_memory().len(), 7, "those whose requests were sent");
    assert!(run.token("ann").await.is_ok());
    sleep(60 * SECOND).await;
    assert_eq!(run.script.calls(), 8);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_continues_while_a_caller_waits() {
    let mut run = subjects(None, 100);
    run.redefine(None, Script { lifetime: Some(60 * SECOND), latency: 3 * SECOND, ..Script::default() });
    let others: Vec<_> = (0..7).map(|number| format!("s{number}")).collect();
    let others = futures_util::future::join_all(others.iter().map(|subject| run.token(subject)));
    let gone = tokio::time::timeout(SECOND, run.token("ann"));
    let (_, gone, stays) = tokio::join!(others, gone, run.token("ann"));
    assert!(gone.is_err() && stays.is_ok(), "{stays:?}");
    assert_eq!(run.script.calls(), 8);
}

#[tokio::test(start_paused = true)]
async fn a_changed_identity_retires_the_tokens_of_all_subjects() {
    let run = subjects(None, 10);
    run.token("ann").await.unwrap();
    let scopes = vec!["more".to_owned()];
    let connection = Connection { tokens: Tokens::PerSubject, scopes, ..Connection::sample("crm") };
    let slots = run.cache.ensure(&Arc::new(connection), Box::new(Source(run.script.clone())));
    let ann = Subject::parse("ann").unwrap();
    let before = run.slots.slot(&ann);
    run.cache.retain(&HashSet::from([TokenKey { subject: None, ..before.key.clone() }]));
    assert_eq!(run.token("ann").await, Err(NoToken::Forgotten));
    let slot = slots.slot(Some(&ann)).unwrap();
    let token = slot.token(&run.clock, Instant::now() + SECOND).await.unwrap();
    assert_eq!(token.access_token.expose(), "token-2");
    assert_eq!(run.in_memory(), ["crm/default/ann"]);
}

#[test]
fn profiles_do_not_share_subjects() {
    with_real_timeout(async || {
        let run = subjects(Some(3600 * SECOND), 10);
        let profile = Name::parse("other").unwrap();
        let other_profile = Connection { tokens: Tokens::PerSubject, profile, ..Connection::sample("crm") };
        let others = run.cache.ensure(&Arc::new(other_profile), Box::new(Source(run.script.clone())));
        let ann = Subject::parse("ann").unwrap();
        let other = others.slot(Some(&ann)).unwrap();
        other.token(&run.clock, Instant::now() + SECOND).await.unwrap();
        run.token("ann").await.unwrap();
        assert_eq!(run.in_memory(), ["crm/default/ann", "crm/other/ann"]);
        // One of the two profiles is kept warm, and its walk meets the other's records.
        sleep(10 * 3600 * SECOND).await;
        assert_eq!((run.script.calls(), run.in_memory()), (2, Vec::new()));
        let other = others.slot(Some(&ann)).unwrap();
        other.token(&run.clock, Instant::now() + SECOND).await.unwrap();
        run.token("ann").await.unwrap();
        run.cache.retain(&HashSet::from([TokenKey { subject: None, ..other.key.clone() }]));
        assert_eq!(run.in_memory(), ["crm/other/ann"]);
    });
}
