//! Backoff after failures and rejections, and what overrides it: a person, and a current token that becomes unusable.

use super::refresh_tokens::{empty_400, http, password, refused_grant, start, token_response, with_grant};
use super::*;
use crate::model::connection::Grant;
use crate::store::Refresh;
use crate::telemetry::audit::Cause;
use crate::token::slot::{Consent, NotRefreshed};

#[tokio::test(start_paused = true)]
async fn the_rejection_backoff_grows_until_the_upstream_accepts_a_token() {
    let engine = engine(3600 * SECOND, Duration::ZERO, []);
    engine.token().await.unwrap();
    assert!(!engine.fresh().unwrap().is_on_trial(), "the common case takes no lock");
    while engine.script.calls() < 10 {
        engine.reject(engine.fresh().unwrap().generation).await;
        sleep(SECOND).await;
    }
    let times = lock(&engine.script.times).clone();
    let gaps: Vec<u64> = times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs()).collect();
    assert_eq!(gaps, [0, 10, 20, 40, 80, 160, 320, 600, 600]);

    // Accepting an older token does not reset the backoff of the current one.
    let older = engine.fresh().unwrap();
    sleep(600 * SECOND).await;
    engine.reject(older.generation).await;
    let current = engine.fresh().unwrap();
    assert_ne!(current.generation, older.generation);
    engine.slot.accept(&older);
    sleep(11 * SECOND).await;
    assert_eq!(engine.reject(current.generation).await, None);

    assert!(current.is_on_trial());
    engine.slot.accept(&current);
    assert!(!current.is_on_trial());
    assert!(engine.reject(current.generation).await.is_some(), "the minimum interval is over");
    sleep(10 * SECOND).await;
    let current = engine.fresh().unwrap();
    assert!(engine.reject(current.generation).await.is_some(), "the backoff starts over");
}

#[tokio::test(start_paused = true)]
async fn a_person_ignores_the_rejection_backoff_and_the_next_rejection_waits() {
    let engine = engine(3600 * SECOND, Duration::ZERO, []);
    engine.token().await.unwrap();
    while engine.script.calls() < 4 {
        engine.reject(engine.fresh().unwrap().generation).await;
        sleep(SECOND).await;
    }
    sleep(10 * SECOND).await;
    let by = || Cause::Person(super::forced_refresh::person());
    let refresh = || engine.slot.refresh_now(&engine.clock, Instant::now() + 10 * SECOND, by());
    assert_eq!(refresh().await, Ok(()));
    assert!(matches!(refresh().await, Err(NotRefreshed::TooSoon { .. })), "the token is only seconds old");
    assert_eq!(engine.reject(engine.fresh().unwrap().generation).await, None);
    assert_eq!(engine.script.calls(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_retried_once_the_current_token_is_unusable() {
    let engine = engine(100 * SECOND, Duration::ZERO, [token("old", Some(100 * SECOND)), refused(), refused()]);
    let started = Instant::now();
    engine.slot.wait_for_attempts(3).await;
    let times: Vec<u64> = lock(&engine.script.times).iter().map(|at| (*at - started).as_secs()).collect();
    assert!((50..=55).contains(&times[1]), "{times:?}");
    assert_eq!(times[2], 95, "once the token is unusable");
    assert!(engine.fresh().is_none());
    sleep(800 * SECOND).await;
    assert_eq!(engine.script.calls(), 3, "then only rare probes");
}

#[tokio::test(start_paused = true)]
async fn a_person_ignores_refusals_and_backoffs() {
    for failure in [refused, || unavailable(Some(300 * SECOND))] {
        let engine = engine(3600 * SECOND, Duration::ZERO, (0..4).map(|_| failure()));
        assert!(engine.token().await.is_err());
        let by = || Cause::Person(super::forced_refresh::person());
        let refresh = |cause| engine.slot.refresh_now(&engine.clock, Instant::now() + 10 * SECOND, cause);
        for calls in 2..=4 {
            assert!(matches!(refresh(by()).await, Err(NotRefreshed::NoToken(_))));
            assert_eq!(engine.script.calls(), calls);
        }
        assert!(engine.token().await.is_err());
        assert!(matches!(refresh(Cause::Due).await, Err(NotRefreshed::NoToken(_))));
        assert_eq!(engine.script.calls(), 4, "all other causes wait");
        let failing = engine.cache.failing();
        engine.cache.retry_now(&failing, &super::forced_refresh::person());
        engine.slot.wait_for_attempts(5).await;
        assert_eq!(engine.token().await.as_deref(), Ok("token-5"));
        assert!(engine.cache.failing().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_machines_refused_refresh_token_is_marked_even_if_its_own_grant_fails() {
    let results = [token_response("a1", Some("r1")), refused_grant(), unavailable(None)];
    let run = start(Arc::default(), password(), results);
    run.engine.slot.wait_for_attempts(2).await;
    assert_eq!(run.engine.script.calls(), 3, "both in one attempt");
    assert_eq!(run.stored().await, Refresh::Refused { error: "invalid_grant".to_owned() });
    let run = run.restart([token_response("a2", Some("r2"))]);
    run.engine.slot.wait_for_attempts(2).await;
    assert_eq!(run.engine.token().await.as_deref(), Ok("a2"));
    assert!(run.spent().is_empty(), "it is never sent again");
}

#[tokio::test(start_paused = true)]
async fn only_two_consecutive_empty_400s_count_as_a_refusal() {
    let results = [
        token_response("a1", Some("r1")),
        empty_400(),
        http(404),
        empty_400(),
        empty_400(),
        token_response("a2", None),
    ];
    let run = start(Arc::default(), with_grant(Grant::AuthorizationCode), results);
    let consent = NoToken::Person { consent: Consent::First, error: "consent_required".to_owned() };
    assert_eq!(run.engine.token().await, Err(consent));
    run.import("r0").await.unwrap();
    let by = || Cause::Person(super::forced_refresh::person());
    for _ in 0..5 {
        let _ = run.engine.slot.refresh_now(&run.engine.clock, Instant::now() + 10 * SECOND, by()).await;
    }
    // The import's value, then one per refresh.
    assert_eq!(*lock(&run.engine.script.after_empty_400), [false, false, true, false, true, true]);
    assert_eq!(run.engine.token().await.as_deref(), Ok("a2"));
}
