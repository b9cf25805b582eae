//! The token cache on a simulated clock, with a scripted token source that counts its calls.

mod clocks;
mod definition;
mod disk;
mod revocation;
mod fleet;
mod readers;
mod forced_refresh;
mod refresh_tokens;
mod subjects;
mod backoff;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::slot::{Granted, InjectedToken, NoToken};
use super::*;
use crate::clock::Now;
use crate::model::Name;
use crate::model::token::{AccessToken, RefreshToken, TokenSet};
use crate::oauth::{Failure, Reason, Refusal, TokenRequestContext};
use crate::store::MemoryStore;

const SECOND: Duration = Duration::from_secs(1);

type TokenResult = Result<TokenSet, Failure>;

/// Returns the scripted results, then a new token per call.
#[derive(Default)]
struct Script {
    results: Mutex<VecDeque<TokenResult>>,
    calls: AtomicUsize,
    in_flight: AtomicUsize,
    in_flight_max: AtomicUsize,
    times: Mutex<Vec<Instant>>,
    /// Refresh tokens in the order sent.
    spent: Mutex<Vec<String>>,
    /// Per refresh: whether it followed an empty 400.
    after_empty_400: Mutex<Vec<bool>>,
    /// Revoked tokens, each with its hint.
    revoked: Mutex<Vec<String>>,
    /// Callers' tokens in the order exchanged.
    exchanged: Mutex<Vec<String>>,
    lifetime: Option<Duration>,
    latency: Duration,
    revocation_latency: Duration,
}

impl Script {
    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    fn push(&self, result: TokenResult) {
        lock(&self.results).push_back(result);
    }
}

struct Source(Arc<Script>);

impl TokenSource for Source {
    fn first_grant<'a>(&'a self, context: TokenRequestContext<'a>) -> super::TokenFuture<'a> {
        lock(&self.0.exchanged).extend(context.caller_token.map(|token| token.expose().to_owned()));
        self.respond(None)
    }

    fn refresh<'a>(&'a self, token: &'a RefreshToken, context: TokenRequestContext<'a>) -> super::TokenFuture<'a> {
        lock(&self.0.after_empty_400).push(context.after_empty_400);
        self.respond(Some(token.expose().to_owned()))
    }

    fn revoke<'a>(&'a self, token: &'a str, hint: &'static str) -> RevocationFuture<'a> {
        lock(&self.0.revoked).push(format!("{hint} {token}"));
        Box::pin(async {
            sleep(self.0.revocation_latency).await;
            Ok(Revocation::Revoked)
        })
    }
}

impl Source {
    fn respond(&self, spent: Option<String>) -> super::TokenFuture<'_> {
        let script = self.0.clone();
        Box::pin(async move {
            lock(&script.spent).extend(spent);
            let number = script.calls.fetch_add(1, Ordering::SeqCst) + 1;
            lock(&script.times).push(Instant::now());
            let in_flight = script.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
            script.in_flight_max.fetch_max(in_flight, Ordering::SeqCst);
            sleep(script.latency).await;
            script.in_flight.fetch_sub(1, Ordering::SeqCst);
            let next = lock(&script.results).pop_front();
            next.unwrap_or_else(|| token(&format!("token-{number}"), script.lifetime))
        })
    }
}

fn token(text: &str, expires_in: Option<Duration>) -> TokenResult {
    Ok(TokenSet {
        access_token: AccessToken::parse(text).unwrap(),
        expires_in,
        refresh_token: None,
        refresh_token_expires_in: None,
        scopes: None,
    })
}

fn unavailable(retry_after: Option<Duration>) -> TokenResult {
    Err(Failure::Retryable { reason: Reason::Timeout, retry_after, detail: None })
}

fn refused() -> TokenResult {
    Err(Failure::Permanent(Refusal::from_code("invalid_client")))
}

fn granted(obtained: Now) -> Granted {
    Granted { obtained, scopes: Vec::new(), refresh_token_ends: None }
}

fn connection(name: &str) -> Arc<Connection> {
    Arc::new(Connection::sample(name))
}

fn shared(slots: Slots) -> Arc<TokenSlot> {
    slots.shared().expect("a shared token").clone()
}

struct Engine {
    cache: TokenCache,
    clock: Clock,
    script: Arc<Script>,
    slot: Arc<TokenSlot>,
}

/// One slot whose tokens have this `lifetime`; each token request takes `latency`.
fn engine(lifetime: Duration, latency: Duration, results: impl IntoIterator<Item = TokenResult>) -> Engine {
    let script = Script { lifetime: Some(lifetime), latency, ..Script::default() };
    results.into_iter().for_each(|result| script.push(result));
    let (script, clock) = (Arc::new(script), Clock::simulated());
    let store = Arc::new(MemoryStore::default());
    let cache = TokenCache::new(
        store,
        clock.clone(),
        Tasks::default(),
        Metrics::new().unwrap(),
        Events::default(),
        Audit::default(),
    );
    let slot = shared(cache.ensure(&connection("crm"), Box::new(Source(script.clone()))));
    Engine { cache, clock, script, slot }
}

impl Engine {
    async fn token(&self) -> Result<String, NoToken> {
        let deadline = Instant::now() + 10 * SECOND;
        self.slot.token(&self.clock, deadline).await.map(|token| token.access_token.expose().to_owned())
    }

    fn fresh(&self) -> Option<Arc<InjectedToken>> {
        self.slot.fresh(self.clock.now())
    }

    async fn reject(&self, generation: u64) -> Option<String> {
        let deadline = Instant::now() + 10 * SECOND;
        let token = self.slot.reject(generation, &self.clock, deadline).await?;
        Some(token.access_token.expose().to_owned())
    }
}

#[tokio::test(start_paused = true)]
async fn many_waiters_on_a_cold_slot_cause_one_request() {
    let engine = Arc::new(engine(60 * SECOND, SECOND / 2, []));
    let mut waiters = tokio::task::JoinSet::new();
    for _ in 0..500 {
        let engine = engine.clone();
        waiters.spawn(async move { engine.token().await });
    }
    for token in waiters.join_all().await {
        assert_eq!(token.as_deref(), Ok("token-1"));
    }
    assert_eq!(engine.script.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn dropping_a_waiter_does_not_cancel_the_request() {
    let engine = engine(60 * SECOND, SECOND, []);
    assert!(tokio::time::timeout(SECOND / 2, engine.token()).await.is_err());
    assert_eq!(engine.token().await.as_deref(), Ok("token-1"));
    assert_eq!(engine.script.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_short_lived_token_is_refreshed_at_half_its_lifetime() {
    let engine = engine(2 * SECOND, Duration::ZERO, []);
    engine.token().await.unwrap();
    sleep(SECOND + SECOND / 5).await;
    assert_eq!(engine.fresh().unwrap().access_token.expose(), "token-2");
    assert_eq!(engine.script.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_failed_refresh_keeps_the_valid_token_and_an_expired_one_is_never_served() {
    let engine = engine(100 * SECOND, Duration::ZERO, [token("old", Some(100 * SECOND))]);
    engine.token().await.unwrap();
    for _ in 0..20 {
        engine.script.push(unavailable(None));
    }
    sleep(94 * SECOND).await;
    assert_eq!(engine.fresh().unwrap().access_token.expose(), "old");
    assert_eq!(engine.slot.state().name(engine.clock.now()), "due");
    sleep(2 * SECOND).await;
    assert!(engine.fresh().is_none());
    let Err(NoToken::Unavailable { retry_after, .. }) = engine.token().await else { panic!("a token") };
    assert!(retry_after <= 72 * SECOND, "{retry_after:?}");
    lock(&engine.script.results).clear();
    sleep(72 * SECOND).await;
    assert!(engine.fresh().is_some(), "it recovers within one backoff");
}

#[tokio::test(start_paused = true)]
async fn no_token_request_is_sent_during_a_backoff() {
    let engine = engine(60 * SECOND, Duration::ZERO, [unavailable(Some(30 * SECOND)), unavailable(None)]);
    assert!(engine.token().await.is_err());
    for _ in 0..290 {
        assert!(engine.token().await.is_err());
        sleep(SECOND / 10).await;
    }
    assert_eq!(engine.script.calls(), 1, "Retry-After is honoured");
    sleep(8 * SECOND).await;
    assert_eq!(engine.script.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_permanent_except_for_rare_probes() {
    let engine = engine(3600 * SECOND, Duration::ZERO, [refused()]);
    for _ in 0..800 {
        let Err(NoToken::Refused { error, .. }) = engine.token().await else { panic!("no refusal") };
        assert_eq!(error, "invalid_client");
        sleep(SECOND).await;
    }
    assert_eq!(engine.script.calls(), 1);
    assert_eq!(engine.slot.state().name(engine.clock.now()), "misconfigured");
    sleep(300 * SECOND).await;
    assert_eq!(engine.token().await.as_deref(), Ok("token-2"), "a probe finds the server fixed");
}

#[tokio::test(start_paused = true)]
async fn a_failing_server_gets_three_requests_in_the_first_minute_and_one_a_minute_later() {
    let engine = engine(60 * SECOND, Duration::ZERO, (0..50).map(|_| unavailable(None)));
    sleep(58 * SECOND).await;
    assert_eq!(engine.script.calls(), 3);
    sleep(Duration::from_secs(600)).await;
    assert!((10..=14).contains(&engine.script.calls()), "{}", engine.script.calls());
}

#[tokio::test(start_paused = true)]
async fn a_rejected_token_is_refreshed_once_for_all_callers() {
    let engine = Arc::new(engine(3600 * SECOND, SECOND / 10, []));
    engine.token().await.unwrap();
    let mut rejections = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let engine = engine.clone();
        rejections.spawn(async move { engine.reject(1).await });
    }
    for replacement in rejections.join_all().await {
        assert_eq!(replacement.as_deref(), Some("token-2"));
    }
    assert_eq!(engine.script.calls(), 2);
    assert_eq!(engine.reject(1).await.as_deref(), Some("token-2"), "rejecting an old token causes no token request");
    assert_eq!(engine.reject(2).await, None, "no second forced refresh within ten seconds");
    assert_eq!(engine.script.calls(), 2);
    sleep(10 * SECOND).await;
    assert_eq!(engine.reject(2).await.as_deref(), Some("token-3"));
}

#[tokio::test(start_paused = true)]
async fn a_failed_forced_refresh_ends_the_wait() {
    let engine = engine(3600 * SECOND, Duration::ZERO, []);
    engine.token().await.unwrap();
    engine.script.push(unavailable(None));
    let started = Instant::now();
    assert_eq!(engine.reject(1).await, None);
    assert!(started.elapsed() < SECOND);
    assert!(engine.fresh().is_some(), "the token is kept, because other upstreams may accept it");
    sleep(SECOND).await;
    assert_eq!(engine.reject(1).await, None, "a rejection does not interrupt a backoff");
    assert_eq!(engine.script.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_repeats_the_token_gets_the_next_request_only_once_it_is_unusable() {
    let engine = engine(60 * SECOND, Duration::ZERO, (0..100).map(|_| token("same", Some(60 * SECOND))));
    engine.token().await.unwrap();
    sleep(50 * SECOND).await;
    assert!(engine.script.calls() <= 2, "{}", engine.script.calls());
    sleep(300 * SECOND).await;
    assert!(engine.script.calls() <= 9, "{}", engine.script.calls());
    assert_eq!(engine.token().await.as_deref(), Ok("same"));
}

#[tokio::test(start_paused = true)]
async fn a_lifetime_of_one_second_does_not_spin() {
    let engine = engine(SECOND, Duration::ZERO, []);
    sleep(10 * SECOND).await;
    assert!((15..=22).contains(&engine.script.calls()), "{}", engine.script.calls());
}

#[tokio::test(start_paused = true)]
async fn at_most_eight_token_requests_are_in_flight() {
    let engine = engine(3600 * SECOND, SECOND, []);
    for number in 0..40 {
        engine.cache.ensure(&connection(&format!("c{number}")), Box::new(Source(engine.script.clone())));
    }
    sleep(7 * SECOND).await;
    assert_eq!(engine.script.calls(), 41);
    assert_eq!(engine.script.in_flight_max.load(Ordering::SeqCst), 8);
}

#[tokio::test(start_paused = true)]
async fn a_shared_token_is_acquired_even_after_all_callers_have_disconnected() {
    let engine = engine(3600 * SECOND, SECOND, []);
    let slots: Vec<_> = (0..40)
        .map(|number| engine.cache.ensure(&connection(&format!("c{number}")), Box::new(Source(engine.script.clone()))))
        .collect();
    let last = shared(slots.last().unwrap().clone());
    let waited = last.token(&engine.clock, Instant::now() + 10 * SECOND);
    assert!(tokio::time::timeout(SECOND / 2, waited).await.is_err());
    sleep(7 * SECOND).await;
    assert!(last.fresh(engine.clock.now()).is_some());
}

#[tokio::test(start_paused = true)]
async fn one_key_has_one_slot() {
    let engine = engine(60 * SECOND, Duration::ZERO, []);
    let again = engine.cache.ensure(&connection("crm"), Box::new(Source(engine.script.clone())));
    assert!(Arc::ptr_eq(&engine.slot, &shared(again)));
    assert_eq!(engine.cache.list().len(), 1);
}
