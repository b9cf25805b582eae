//! Changes to a connection's definition that its token survives, and those that replace it.

use super::*;
use crate::model::connection::ClientAuth;
use crate::model::secret::Secret;

/// The same connection with a change.
fn changed(change: impl FnOnce(&mut Connection)) -> Arc<Connection> {
    let mut connection = Connection::sample("crm");
    change(&mut connection);
    Arc::new(connection)
}

#[tokio::test(start_paused = true)]
async fn a_token_survives_changes_outside_its_identity() {
    let engine = engine(3600 * SECOND, Duration::ZERO, []);
    engine.token().await.unwrap();
    let connection = changed(|connection| {
        connection.client_auth = ClientAuth::Body(vec![Secret::new("rotated")]);
        connection.lifetimes.usable_margin = 9 * SECOND;
        connection.comments = Some("new".to_owned());
    });
    let slot = shared(engine.cache.ensure(&connection, Box::new(Source(engine.script.clone()))));
    engine.cache.retain(&HashSet::from([connection.token_key(None)]));
    assert!(Arc::ptr_eq(&slot, &engine.slot));
    assert_eq!((engine.token().await.as_deref(), engine.script.calls()), (Ok("token-1"), 1));
}

#[tokio::test(start_paused = true)]
async fn a_changed_identity_gets_a_new_token_and_the_old_one_is_no_longer_refreshed() {
    let engine = engine(60 * SECOND, Duration::ZERO, []);
    engine.token().await.unwrap();
    let other = shared(engine.cache.ensure(
        &changed(|connection| connection.scopes = vec!["more".to_owned()]),
        Box::new(Source(engine.script.clone())),
    ));
    engine.cache.retain(&HashSet::from([other.key.clone()]));
    assert!(!Arc::ptr_eq(&other, &engine.slot));
    let token = other.token(&engine.clock, Instant::now() + SECOND).await.unwrap();
    assert_eq!(token.access_token.expose(), "token-2");
    sleep(45 * SECOND).await;
    assert_eq!(engine.script.calls(), 3, "only the new slot is refreshed");
    sleep(60 * SECOND).await;
    assert_eq!(engine.token().await, Err(NoToken::Forgotten));
}

#[tokio::test(start_paused = true)]
async fn a_corrected_definition_does_not_wait_for_the_next_probe() {
    let engine = engine(60 * SECOND, Duration::ZERO, [refused()]);
    assert!(engine.token().await.is_err());
    let fixed = changed(|connection| connection.client_auth = ClientAuth::Body(vec![Secret::new("right")]));
    engine.cache.ensure(&fixed, Box::new(Source(engine.script.clone())));
    assert_eq!(engine.token().await.as_deref(), Ok("token-2"));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_under_the_old_definition_does_not_block_the_new_one() {
    let engine = engine(60 * SECOND, SECOND, [refused()]);
    sleep(SECOND / 2).await;
    let fixed = changed(|connection| connection.client_auth = ClientAuth::Body(vec![Secret::new("right")]));
    engine.cache.ensure(&fixed, Box::new(Source(engine.script.clone())));
    assert_eq!(engine.token().await.as_deref(), Ok("token-2"));
}

#[tokio::test(start_paused = true)]
async fn a_waiting_request_gets_the_token_of_the_definition_it_began_under() {
    let engine = engine(60 * SECOND, SECOND, []);
    let replaced = async {
        sleep(SECOND / 2).await;
        let other = changed(|connection| connection.scopes = vec!["more".to_owned()]);
        let slot = shared(engine.cache.ensure(&other, Box::new(Source(engine.script.clone()))));
        engine.cache.retain(&HashSet::from([other.token_key(None)]));
        slot.token(&engine.clock, Instant::now() + 10 * SECOND).await.unwrap().access_token.expose().to_owned()
    };
    let (waited, new) = tokio::join!(engine.token(), replaced);
    assert_eq!((waited.as_deref(), new.as_str()), (Ok("token-1"), "token-2"));
}

#[tokio::test(start_paused = true)]
async fn a_request_with_an_old_slot_is_served_after_a_reload_and_the_new_record_is_kept() {
    let engine = engine(60 * SECOND, Duration::ZERO, [token("old", Some(SECOND))]);
    engine.token().await.unwrap();
    let other = changed(|connection| connection.scopes = vec!["more".to_owned()]);
    let slot = shared(engine.cache.ensure(&other, Box::new(Source(engine.script.clone()))));
    engine.cache.retain(&HashSet::from([other.token_key(None)]));
    slot.token(&engine.clock, Instant::now() + SECOND).await.unwrap();
    sleep(SECOND * 3 / 2).await;
    assert_eq!(engine.token().await.as_deref(), Ok("token-3"));
    let kept = engine.cache.store().load(&slot.key).await.unwrap().unwrap();
    assert_eq!(kept.access_token.expose(), "token-2");
    sleep(60 * SECOND).await;
    assert_eq!(engine.token().await, Err(NoToken::Forgotten));
}

#[tokio::test(start_paused = true)]
async fn profiles_have_separate_tokens_and_lifetimes() {
    let engine = engine(3600 * SECOND, Duration::ZERO, []);
    engine.token().await.unwrap();
    let read = |scope: &str| {
        changed(|connection| {
            connection.profile = Name::parse("read").unwrap();
            connection.scopes = vec![scope.to_owned()];
        })
    };
    let ensure =
        |connection: &Arc<Connection>| shared(engine.cache.ensure(connection, Box::new(Source(engine.script.clone()))));
    let (first, connection_key) = (ensure(&read("a")), engine.slot.key.clone());
    let token = first.token(&engine.clock, Instant::now() + SECOND).await.unwrap();
    assert_eq!((first.key.to_string().as_str(), token.access_token.expose()), ("crm/read", "token-2"));
    assert!(Arc::ptr_eq(&engine.cache.get(&first.key).unwrap(), &first));
    // Redefine the profile, then remove it.
    let second = ensure(&read("b"));
    engine.cache.retain(&HashSet::from([connection_key.clone(), second.key.clone()]));
    let token = second.token(&engine.clock, Instant::now() + SECOND).await.unwrap();
    assert_eq!((token.access_token.expose(), engine.script.calls()), ("token-3", 3));
    engine.cache.retain(&HashSet::from([connection_key]));
    assert!(engine.cache.get(&second.key).is_none());
    assert_eq!((engine.token().await.as_deref(), engine.script.calls()), (Ok("token-1"), 3));
}

#[tokio::test(start_paused = true)]
async fn superseded_definitions_are_deduplicated_and_bounded() {
    let engine = engine(3600 * SECOND, Duration::ZERO, []);
    let define = |number: usize| {
        let connection = changed(|connection| connection.scopes = vec![format!("s{number}")]);
        engine.cache.ensure(&connection, Box::new(Source(engine.script.clone())));
    };
    let known = || engine.cache.superseded_definitions(&engine.slot.key).len();
    for number in [0, 1, 0, 1] {
        define(number);
    }
    assert_eq!(known(), 3, "the first one, s0 and s1");
    (2..100).for_each(define);
    assert_eq!(known(), 64);
}
