//! Revocation, refresh token expiry, and exchanged callers' tokens.

use super::refresh_tokens::{Instance, password, start, token_response, with_grant};
use super::*;
use crate::model::connection::{Actor, Grant, Lifetimes, SubjectToken, TokenExchange};
use crate::model::secret::Secret;
use crate::model::time::WallTime;
use crate::token::slot::{Consent, RevocationOutcome, Revoked};

async fn revoke(run: &Instance, shared: Option<&str>) -> Revoked {
    let key = |name: &str| TokenKey::of_connection(Name::parse(name).unwrap());
    let sharers = shared.map(|name| (run.connection.identity(), key(name))).into_iter().collect();
    run.engine.slot.revoke(sharers, Instant::now() + 10 * SECOND).await.unwrap()
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
    assert_eq!(
        outcome,
        Revoked { refresh_token: RevocationOutcome::Revoked, access_token: RevocationOutcome::Revoked }
    );
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
    assert_eq!(outcome, Revoked { refresh_token: other.clone(), access_token: other });
    assert!(revoked(&run).is_empty());
    run.engine.token().await.unwrap();
    assert!(run.spent().is_empty());
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
    assert!(crate::store::TokenStore::list(&*store, &connection.name, None, 10).await.unwrap().is_empty());
}
