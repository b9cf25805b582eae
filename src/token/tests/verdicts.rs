//! How a failure delays the next attempt, and what overrides the delay: a person, the end of the present token, and an
//! upstream that rejects every token.

use super::renewal::{empty_400, http, password, refused_grant, renewing, start, with_grant};
use super::*;
use crate::model::connection::Grant;
use crate::store::Refresh;
use crate::telemetry::audit::Cause;
use crate::token::slot::{Consent, NotRefreshed};

#[tokio::test(start_paused = true)]
async fn rejections_force_refreshes_ever_more_rarely_until_the_upstream_accepts_a_token() {
    let engine = engine(3600 * SECOND, Duration::ZERO, []);
    engine.token().await.unwrap();
    assert!(!engine.fresh().unwrap().is_on_trial(), "the ordinary case costs nothing");
    while engine.script.calls() < 10 {
        engine.reject(engine.fresh().unwrap().generation).await;
        sleep(SECOND).await;
    }
    let times = lock(&engine.script.times).clone();
    let gaps: Vec<u64> = times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs()).collect();
    assert_eq!(gaps, [0, 10, 20, 40, 80, 160, 320, 600, 600]);

    // The response to a request with an older token says nothing about the present one.
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
    assert!(engine.reject(current.generation).await.is_some(), "ten seconds are over");
    sleep(10 * SECOND).await;
    let current = engine.fresh().unwrap();
    assert!(engine.reject(current.generation).await.is_some(), "and it grows from the start");
}

#[tokio::test(start_paused = true)]
async fn a_person_goes_through_a_growing_pause_and_a_rejection_waits_after_it() {
    let engine = engine(3600 * SECOND, Duration::ZERO, []);
    engine.token().await.unwrap();
    while engine.script.calls() < 4 {
        engine.reject(engine.fresh().unwrap().generation).await;
        sleep(SECOND).await;
    }
    sleep(10 * SECOND).await;
    let by = || Cause::Person(super::refresh::person());
    let ask = || engine.slot.refresh_now(&engine.clock, Instant::now() + 10 * SECOND, by());
    assert_eq!(ask().await, Ok(()));
    assert!(matches!(ask().await, Err(NotRefreshed::TooSoon { .. })), "a new token is seconds old");
    assert_eq!(engine.reject(engine.fresh().unwrap().generation).await, None);
    assert_eq!(engine.script.calls(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_does_not_outlast_the_present_token() {
    let engine = engine(100 * SECOND, Duration::ZERO, [token("old", Some(100 * SECOND)), refused(), refused()]);
    let begun = Instant::now();
    engine.slot.attempted(3).await;
    let times: Vec<u64> = lock(&engine.script.times).iter().map(|at| (*at - begun).as_secs()).collect();
    assert!((50..=55).contains(&times[1]), "{times:?}");
    assert_eq!(times[2], 95, "at the end of its use");
    assert!(engine.fresh().is_none());
    sleep(800 * SECOND).await;
    assert_eq!(engine.script.calls(), 3, "and then rarely");
}

#[tokio::test(start_paused = true)]
async fn a_person_waits_for_no_refusal_and_no_backoff() {
    for failure in [refused, || unavailable(Some(300 * SECOND))] {
        let engine = engine(3600 * SECOND, Duration::ZERO, (0..4).map(|_| failure()));
        assert!(engine.token().await.is_err());
        let by = || Cause::Person(super::refresh::person());
        let ask = |cause| engine.slot.refresh_now(&engine.clock, Instant::now() + 10 * SECOND, cause);
        for calls in 2..=4 {
            assert!(matches!(ask(by()).await, Err(NotRefreshed::NoToken(_))));
            assert_eq!(engine.script.calls(), calls);
        }
        assert!(engine.token().await.is_err());
        assert!(matches!(ask(Cause::Due).await, Err(NotRefreshed::NoToken(_))));
        assert_eq!(engine.script.calls(), 4, "all other causes wait");
        let troubled = engine.cache.troubled();
        engine.cache.retry_now(&troubled, &super::refresh::person());
        engine.slot.attempted(5).await;
        assert_eq!(engine.token().await.as_deref(), Ok("token-5"));
        assert!(engine.cache.troubled().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_machines_refused_refresh_token_is_marked_although_its_own_grant_fails() {
    let answers = [renewing("a1", Some("r1")), refused_grant(), unavailable(None)];
    let run = start(Arc::default(), password(), answers);
    run.engine.slot.attempted(2).await;
    assert_eq!(run.engine.script.calls(), 3, "both in one attempt");
    assert_eq!(run.stored().await, Refresh::Refused { error: "invalid_grant".to_owned() });
    let run = run.restart([renewing("a2", Some("r2"))]);
    run.engine.slot.attempted(2).await;
    assert_eq!(run.engine.token().await.as_deref(), Ok("a2"));
    assert!(run.spent().is_empty(), "it is never sent again");
}

#[tokio::test(start_paused = true)]
async fn only_two_empty_400_in_a_row_count() {
    let answers = [renewing("a1", Some("r1")), empty_400(), http(404), empty_400(), empty_400(), renewing("a2", None)];
    let run = start(Arc::default(), with_grant(Grant::AuthorizationCode), answers);
    let consent = NoToken::Person { consent: Consent::First, error: "consent_required".to_owned() };
    assert_eq!(run.engine.token().await, Err(consent));
    run.import("r0").await.unwrap();
    let by = || Cause::Person(super::refresh::person());
    for _ in 0..5 {
        let _ = run.engine.slot.refresh_now(&run.engine.clock, Instant::now() + 10 * SECOND, by()).await;
    }
    // The import's, then each refresh's.
    assert_eq!(*lock(&run.engine.script.after_empty_400), [false, false, true, false, true, true]);
    assert_eq!(run.engine.token().await.as_deref(), Ok("a2"));
}
