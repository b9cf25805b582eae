//! Suspended machines and wall clock jumps.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_response_without_expires_in_gets_the_default_lifetime() {
    let engine = engine(SECOND, Duration::ZERO, [token("endless", None)]);
    engine.token().await.unwrap();
    let left = engine.clock.now().until(engine.fresh().unwrap().expires);
    assert_eq!(left.as_secs().div_ceil(10), 360);
}

#[tokio::test(start_paused = true)]
async fn an_expired_token_is_not_served_after_a_suspend() {
    let engine = engine(3600 * SECOND, Duration::ZERO, []);
    engine.token().await.unwrap();
    engine.clock.suspend(4000 * SECOND);
    assert!(engine.fresh().is_none());
    assert_eq!(engine.token().await.as_deref(), Ok("token-2"));
}

#[tokio::test(start_paused = true)]
async fn a_forward_wall_clock_jump_expires_tokens_and_a_backward_jump_extends_none() {
    let engine = engine(3600 * SECOND, Duration::ZERO, []);
    engine.token().await.unwrap();
    engine.clock.step_wall(-7200);
    sleep(3599 * SECOND).await;
    assert_ne!(engine.fresh().unwrap().generation, 1, "due by the boot clock");
    let generation = engine.fresh().unwrap().generation;
    engine.clock.step_wall(2 * 7200);
    assert!(engine.fresh().is_none());
    engine.token().await.unwrap();
    assert_eq!(engine.fresh().unwrap().generation, generation + 1);
}

#[tokio::test(start_paused = true)]
async fn a_wall_clock_jump_causes_no_burst_of_requests() {
    let engine = engine(3600 * SECOND, Duration::ZERO, []);
    for number in 0..300 {
        engine.cache.ensure(&connection(&format!("c{number}")), Box::new(Source(engine.script.clone())));
    }
    sleep(60 * SECOND).await;
    let before = engine.script.calls();
    assert_eq!(before, 301);
    engine.clock.step_wall(7200);
    sleep(31 * SECOND).await;
    let times = lock(&engine.script.times).split_off(before);
    assert_eq!(times.len(), 301, "every refresher notices within half a minute");
    for second in 0..31 {
        let from = times[0] + second * SECOND;
        let together = times.iter().filter(|at| **at >= from && **at < from + SECOND).count();
        assert!(together < 60, "{together} in second {second}");
    }
}
