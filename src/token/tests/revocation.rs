//! Revocation, refresh token expiry, and exchanged callers' tokens.

use super::disk::Disk;
use super::refresh_tokens::{Instance, password, start, start_with, token_response, with_grant};
use super::*;
use crate::model::connection::WrittenDefinition;
use crate::model::connection::{Actor, DefinedIn, Grant, Lifetimes, Revision, SubjectToken, TokenExchange};
use crate::model::secret::Secret;
use crate::model::time::WallTime;
use crate::token::slot::{AtServer, Consent, RevocationOutcome, Revoked, Sharers};

async fn revoke(run: &Instance, shared: Option<&str>) -> Revoked {
    let key = |name: &str| TokenKey::of_connection(Name::parse(name).unwrap());
    let sharers = shared.map(|name| (run.connection.identity(), key(name))).into_iter().collect();
    run.engine.slot.revoke(within(10 * SECOND, sharers), Instant::now() + 20 * SECOND).await.unwrap()
}

fn within(time: Duration, sharers: Sharers) -> AtServer {
    AtServer::Revoke { sharers, until: Instant::now() + time }
}

fn both(outcome: RevocationOutcome) -> Revoked {
    Revoked { refresh_token: outcome.clone(), access_token: outcome }
}

fn revoked(run: &Instance) -> Vec<String> {
    lock(&run.engine.script.revoked).clone()
}

#[tokio::test(start_paused = true)]
async fn the_refresh_token_is_revoked_before_the_access_token_and_neither_is_used_again() {
    let run =
        start(Default::default(), password(), [token_response("a1", Some("r1")), token_response("a2", Some("r2"))]);
    run.engine.token().await.unwrap();
    let outcome = revoke(&run, None).await;
    assert_eq!(outcome, both(RevocationOutcome::Revoked));
    assert_eq!(revoked(&run), ["refresh_token r1", "access_token a1"]);
    sleep(600 * SECOND).await;
    assert_eq!(run.engine.script.calls(), 1, "no request has demanded another token");
    assert_eq!(run.engine.token().await.as_deref(), Ok("a2"));
    assert!(run.spent().is_empty(), "the next token comes from the first grant");
}

#[tokio::test(start_paused = true)]
async fn a_revoked_token_of_a_person_needs_consent_again() {
    let run = start(Default::default(), with_grant(Grant::AuthorizationCode), [token_response("a1", Some("r2"))]);
    run.import("r1").await.unwrap();
    assert_eq!(revoke(&run, None).await.refresh_token, RevocationOutcome::Revoked);
    let Err(NoToken::Person { consent: Consent::First, .. }) = run.engine.token().await else { panic!("a token") };
    assert_eq!(run.stored().await, crate::store::Refresh::None);
    assert_eq!(run.engine.script.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_grant_shared_with_another_connection_is_not_revoked() {
    let run = start(Default::default(), password(), [token_response("a1", Some("r1"))]);
    run.engine.token().await.unwrap();
    let outcome = revoke(&run, Some("other")).await;
    let other = RevocationOutcome::Shared(TokenKey::of_connection(Name::parse("other").unwrap()));
    assert_eq!(outcome, both(other));
    assert!(revoked(&run).is_empty());
    run.engine.token().await.unwrap();
    assert!(run.spent().is_empty());
}

#[tokio::test(start_paused = true)]
async fn tokens_are_forgotten_in_time_if_the_server_does_not_respond() {
    let script = Script { revocation_latency: 3600 * SECOND, ..Script::default() };
    let run = start_with(script, Default::default(), password(), [token_response("a1", Some("r1"))]);
    run.engine.token().await.unwrap();
    let started = Instant::now();
    let Revoked { refresh_token, access_token } = revoke(&run, None).await;
    for outcome in [refresh_token, access_token] {
        assert!(matches!(&outcome, RevocationOutcome::Failed(why) if why.contains("in time")), "{outcome:?}");
    }
    assert!(started.elapsed() <= 11 * SECOND, "{:?}", started.elapsed());
    assert_eq!(revoked(&run), ["refresh_token r1"], "no request begins after the deadline");
    assert_eq!(run.stored().await, crate::store::Refresh::None);
    assert!(run.engine.fresh().is_none());
}

#[tokio::test(start_paused = true)]
async fn forgetting_sends_nothing_to_the_server() {
    let run = start(Default::default(), password(), [token_response("a1", Some("r1"))]);
    run.engine.token().await.unwrap();
    let outcome = run.engine.slot.revoke(AtServer::Nothing, Instant::now() + SECOND).await;
    assert_eq!(outcome, Ok(both(RevocationOutcome::NotRequested)));
    assert_eq!((revoked(&run), run.stored().await), (Vec::new(), crate::store::Refresh::None));
    assert!(run.engine.fresh().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_token_that_only_the_store_has_is_revoked_without_a_slot() {
    for (outdated, server_responds) in [(false, true), (false, false), (true, true)] {
        let disk = Arc::<Disk>::default();
        let run = start(disk.clone(), password(), [token_response("a1", Some("r1"))]);
        run.engine.token().await.unwrap();
        let key = run.engine.slot.key.clone();
        let revocation_latency = if server_responds { Duration::ZERO } else { 3600 * SECOND };
        let script = Arc::new(Script { revocation_latency, ..Script::default() });
        let (tasks, metrics) = (Tasks::default(), Metrics::new().unwrap());
        let cache =
            TokenCache::new(disk.clone(), Clock::simulated(), tasks, metrics, Events::default(), Audit::default());
        let client_id = if outdated { "another" } else { "id" }.to_owned();
        let current = Arc::new(Connection { client_id, active: false, ..(*password()).clone() });
        let revoked =
            cache.revoke_stored(&key, (&current, Box::new(Source(script.clone()))), &within(SECOND, Vec::new())).await;
        let Revoked { refresh_token, access_token } = revoked.unwrap();
        match (outdated, server_responds) {
            (false, true) => assert_eq!(refresh_token, RevocationOutcome::Revoked),
            (false, false) => assert!(matches!(&refresh_token, RevocationOutcome::Failed(why) if why.contains("time"))),
            (true, _) => assert!(matches!(&refresh_token, RevocationOutcome::Failed(why) if why.contains("earlier"))),
        }
        assert_eq!(access_token, refresh_token);
        let sent: &[&str] = match (outdated, server_responds) {
            (false, true) => &["refresh_token r1", "access_token a1"],
            (false, false) => &["refresh_token r1"],
            (true, _) => &[],
        };
        assert_eq!(*lock(&script.revoked), sent);
        assert_eq!(run.stored().await, crate::store::Refresh::None);
        assert_eq!((script.calls(), cache.list().len()), (0, 0), "it has no refresher");
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_without_a_slot_can_be_forgotten_alone() {
    let disk = Arc::<Disk>::default();
    let run = start(disk.clone(), password(), [token_response("a1", Some("r1"))]);
    run.engine.token().await.unwrap();
    run.engine.cache.forget_stored(&run.engine.slot.key).await.unwrap();
    assert_eq!((revoked(&run), run.stored().await), (Vec::new(), crate::store::Refresh::None));
}

/// A connection made over the API, with its revocation endpoint at `host`.
fn over_the_api(host: &str) -> Arc<Connection> {
    let mut connection = (*with_grant(Grant::AuthorizationCode)).clone();
    let (defined_in, json) = (DefinedIn::Api(Revision::random()), "{}".to_owned());
    connection.written = Arc::new(WrittenDefinition { defined_in, json, lines: Vec::new() });
    connection.endpoints.revocation = Some(format!("https://{host}/revoke").parse().unwrap());
    Arc::new(connection)
}

#[tokio::test(start_paused = true)]
async fn a_revocation_url_changed_over_the_api_gets_no_earlier_token() {
    for restarts in [false, true] {
        let disk = Arc::<Disk>::default();
        let run = start(disk.clone(), over_the_api("as.test"), [token_response("a1", Some("r2"))]);
        run.import("r1").await.unwrap();
        let changed = over_the_api("evil.test");
        if restarts {
            let run = start(disk, changed, []);
            let Revoked { refresh_token, access_token } = revoke(&run, None).await;
            assert!(matches!(&refresh_token, RevocationOutcome::Failed(why) if why.contains("earlier definition")));
            assert_eq!(access_token, refresh_token);
            assert_eq!((revoked(&run), run.stored().await), (Vec::new(), crate::store::Refresh::None));
        } else {
            let evil = Arc::new(Script::default());
            let slot = shared(run.engine.cache.ensure(&changed, Box::new(Source(evil.clone()))));
            let outcome = slot.revoke(within(10 * SECOND, Vec::new()), Instant::now() + 20 * SECOND).await;
            assert_eq!(outcome, Ok(both(RevocationOutcome::Revoked)));
            assert_eq!(revoked(&run), ["refresh_token r2", "access_token a1"], "where it was granted");
            assert!(lock(&evil.revoked).is_empty());
        }
    }
}

fn with_ten_hour_refresh_token() -> Arc<Connection> {
    let lifetimes = Lifetimes { refresh_token: Some(36_000 * SECOND), ..Lifetimes::default() };
    let grant = Grant::Password { username: "ann".to_owned(), password: Secret::new("x") };
    Arc::new(Connection { lifetimes, grant, ..Connection::sample("crm") })
}

/// Seconds from `started` to the expected expiry of the refresh token.
async fn expires_after(run: &Instance, started: WallTime) -> Option<f64> {
    run.engine.token().await.unwrap();
    let ends = run.engine.fresh().unwrap().granted.refresh_token_ends;
    ends.map(|ends| (ends.as_secs_f64() - started.as_secs_f64()).round())
}

#[tokio::test(start_paused = true)]
async fn a_repeated_or_missing_refresh_token_does_not_extend_its_lifetime() {
    let with_expiry = |access: &str, refresh: &str, seconds: u32| {
        token_response(access, Some(refresh))
            .map(|set| TokenSet { refresh_token_expires_in: Some(seconds * SECOND), ..set })
    };
    let results = [
        token_response("a1", Some("r1")),
        token_response("a2", Some("r1")),
        token_response("a3", None),
        with_expiry("a4", "r2", 100),
    ];
    let run = start(Default::default(), with_ten_hour_refresh_token(), results);
    let started = run.engine.clock.now().wall;
    assert_eq!(expires_after(&run, started).await, Some(36_000.0));
    // The next refresh is due after 30 to 33 seconds.
    for wait in [45, 30] {
        sleep(wait * SECOND).await;
        assert_eq!(expires_after(&run, started).await, Some(36_000.0));
    }
    sleep(30 * SECOND).await;
    let stated = expires_after(&run, started).await.unwrap();
    assert!((190.0..200.0).contains(&stated), "{stated}: the stated lifetime, from the time of the request");
}

#[tokio::test(start_paused = true)]
async fn each_callers_token_is_exchanged_once_and_not_stored() {
    let script = Arc::new(Script { lifetime: Some(60 * SECOND), ..Script::default() });
    let (store, clock) = (Arc::new(MemoryStore::default()), Clock::simulated());
    let (tasks, metrics) = (Tasks::default(), Metrics::new().unwrap());
    let cache = TokenCache::new(store.clone(), clock.clone(), tasks, metrics, Events::default(), Audit::default());
    let exchange = TokenExchange {
        subject_token: SubjectToken::FromCaller,
        subject_token_type: "urn:x".to_owned(),
        requested_token_type: None,
        actor: Some(Actor { token: Secret::new("a"), token_type: "urn:x".to_owned() }),
    };
    let connection = with_grant(Grant::TokenExchange(exchange));
    let Slots::PerCallerToken(slots) = cache.ensure(&connection, Box::new(Source(script.clone()))) else {
        panic!("slots of another kind")
    };
    let mut tokens = Vec::new();
    for caller_token in ["one", "other", "one"] {
        let slot = slots.slot_of_token(&Secret::new(caller_token));
        assert!(!slot.key.to_string().contains(caller_token));
        let token = slot.token(&clock, Instant::now() + SECOND).await.unwrap();
        tokens.push(token.access_token.expose().to_owned());
    }
    assert_eq!(tokens, ["token-1", "token-2", "token-1"]);
    assert_eq!(*lock(&script.exchanged), ["one", "other"]);
    let slot = slots.slot_of_token(&Secret::new("other"));
    let outcome = slot.revoke(within(SECOND, Vec::new()), Instant::now() + 2 * SECOND).await.unwrap();
    assert_eq!(outcome, Revoked { access_token: RevocationOutcome::Revoked, ..Revoked::default() });
    assert_eq!(*lock(&script.revoked), ["access_token token-2"]);
    assert!(crate::store::TokenStore::list(&*store, &connection.name, None, 10).await.unwrap().is_empty());
}
