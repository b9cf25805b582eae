//! Refreshes requested by a person.

use super::*;
use crate::telemetry::audit::{Cause, Person};
use crate::token::slot::NotRefreshed;

pub(super) fn person() -> Person {
    Person { user: Name::parse("ops"), from: "127.0.0.1:1".parse().ok() }
}

#[tokio::test(start_paused = true)]
async fn a_persons_refresh_is_single_flight_and_ignores_backoff() {
    let person = person();
    let engine = engine(3600 * SECOND, SECOND, []);
    engine.token().await.unwrap();
    let deadline = Instant::now() + 10 * SECOND;
    let refresh = || engine.slot.refresh_now(&engine.clock, deadline, Cause::Person(person.clone()));
    let generation = engine.fresh().unwrap().generation;
    let (one, other, rejected) = tokio::join!(refresh(), refresh(), engine.reject(generation));
    assert_eq!((one, other, rejected.as_deref()), (Ok(()), Ok(()), Some("token-2")));
    assert_eq!(engine.script.calls(), 2);
    let Err(NotRefreshed::TooSoon { retry_after }) = refresh().await else { panic!("refreshed again at once") };
    assert!(retry_after > 8 * SECOND && retry_after <= 10 * SECOND, "{retry_after:?}");
    sleep(10 * SECOND).await;
    engine.script.push(unavailable(None));
    let refresh =
        || engine.slot.refresh_now(&engine.clock, Instant::now() + 10 * SECOND, Cause::Person(person.clone()));
    let Err(NotRefreshed::NoToken(NoToken::Unavailable { .. })) = refresh().await else { panic!("no failure") };
    assert_eq!((engine.script.calls(), engine.token().await.as_deref()), (3, Ok("token-2")));
    assert_eq!(refresh().await, Ok(()), "a failed refresh may be retried at once");
    assert_eq!((engine.script.calls(), engine.token().await.as_deref()), (4, Ok("token-4")));
}

#[tokio::test(start_paused = true)]
async fn a_persons_refresh_ends_at_its_deadline_or_with_the_slot() {
    let person = person();
    let engine = engine(3600 * SECOND, 60 * SECOND, []);
    let late = engine.slot.refresh_now(&engine.clock, Instant::now() + SECOND, Cause::Person(person.clone())).await;
    assert_eq!(late, Err(NotRefreshed::NoToken(NoToken::WaitTimeout)));
    let waiting = engine.slot.refresh_now(&engine.clock, Instant::now() + 10 * SECOND, Cause::Person(person.clone()));
    let forgotten = async {
        sleep(SECOND).await;
        engine.cache.retain(&HashSet::new());
    };
    assert_eq!(tokio::join!(waiting, forgotten).0, Err(NotRefreshed::NoToken(NoToken::Forgotten)));
}
