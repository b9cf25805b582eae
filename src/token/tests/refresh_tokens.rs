//! Refresh tokens: rotated, kept, refused, in doubt, unsaved, imported.

use super::super::slot::{Consent, Credential, NotImported};
use super::disk::Disk;
use super::*;
use crate::model::connection::Grant;
use crate::model::secret::Secret;
use crate::store::{Refresh, StoredToken};

/// One instance of the program and its disk.
pub(super) struct Instance {
    pub(super) engine: Engine,
    disk: Arc<Disk>,
    pub(super) connection: Arc<Connection>,
}

pub(super) fn with_grant(grant: Grant) -> Arc<Connection> {
    Arc::new(Connection { grant, ..Connection::sample("crm") })
}

pub(super) fn password() -> Arc<Connection> {
    with_grant(Grant::Password { username: "ann".to_owned(), password: Secret::new("x") })
}

pub(super) fn token_response(access: &str, refresh: Option<&str>) -> TokenResult {
    let refresh_token = refresh.map(|text| RefreshToken::parse(text).unwrap());
    let access_token = AccessToken::parse(access).unwrap();
    Ok(TokenSet {
        access_token,
        expires_in: Some(60 * SECOND),
        refresh_token,
        refresh_token_expires_in: None,
        scopes: None,
    })
}

pub(super) fn http(status: u16) -> TokenResult {
    Err(Failure::Retryable { reason: Reason::HttpStatus(status), retry_after: None, detail: None })
}

pub(super) fn empty_400() -> TokenResult {
    Err(Failure::Retryable { reason: Reason::Empty400, retry_after: None, detail: None })
}

pub(super) fn refused_grant() -> TokenResult {
    Err(Failure::Permanent(Refusal { refuses_refresh_token: true, ..Refusal::from_code("invalid_grant") }))
}

/// Starts an instance on the disk of an earlier one.
pub(super) fn start(
    disk: Arc<Disk>,
    connection: Arc<Connection>,
    results: impl IntoIterator<Item = TokenResult>,
) -> Instance {
    start_with(Script::default(), disk, connection, results)
}

/// Like `start`, with a token source of its own.
pub(super) fn start_with(
    script: Script,
    disk: Arc<Disk>,
    connection: Arc<Connection>,
    results: impl IntoIterator<Item = TokenResult>,
) -> Instance {
    let script = Script { lifetime: Some(60 * SECOND), ..script };
    results.into_iter().for_each(|result| script.push(result));
    let (script, clock) = (Arc::new(script), Clock::simulated());
    let (tasks, metrics) = (Tasks::default(), Metrics::new().unwrap());
    let cache = TokenCache::new(disk.clone(), clock.clone(), tasks, metrics, Events::default(), Audit::default());
    let slot = shared(cache.ensure(&connection, Box::new(Source(script.clone()))));
    Instance { engine: Engine { cache, clock, script, slot }, disk, connection }
}

impl Instance {
    pub(super) fn spent(&self) -> Vec<String> {
        lock(&self.engine.script.spent).clone()
    }

    pub(super) async fn stored(&self) -> Refresh {
        self.disk.load(&self.engine.slot.key).await.unwrap().map_or(Refresh::None, |token| token.refresh)
    }

    pub(super) async fn import(&self, text: &str) -> Result<(), NotImported> {
        self.engine
            .slot
            .import(
                Credential::RefreshToken(RefreshToken::parse(text).unwrap()),
                super::forced_refresh::person(),
                Instant::now() + 10 * SECOND,
            )
            .await
    }

    /// Ends this instance and starts the next one on the same disk.
    pub(super) fn restart(self, results: impl IntoIterator<Item = TokenResult>) -> Instance {
        self.engine.cache.retain(&HashSet::new());
        start(self.disk, self.connection, results)
    }
}

fn refresh_token(text: &str) -> Refresh {
    Refresh::Token(RefreshToken::parse(text).unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_rotated_refresh_token_is_saved_before_its_access_token_is_used_and_the_old_one_never_sent_again() {
    let results = (1..=4).map(|n| token_response(&format!("a{n}"), Some(&format!("r{n}"))));
    let run = start(Arc::default(), password(), results);
    for n in 1..=4 {
        run.engine.slot.wait_for_attempts(n).await;
        assert_eq!(run.stored().await, refresh_token(&format!("r{n}")));
    }
    assert_eq!(run.spent(), ["r1", "r2", "r3"]);
}

#[tokio::test(start_paused = true)]
async fn a_response_without_a_refresh_token_keeps_the_old_one() {
    let results = [token_response("a1", Some("r1")), token_response("a2", None), token_response("a3", None)];
    let run = start(Arc::default(), password(), results);
    run.engine.slot.wait_for_attempts(3).await;
    assert_eq!(run.spent(), ["r1", "r1"]);
    assert_eq!(run.stored().await, refresh_token("r1"));
}

#[tokio::test(start_paused = true)]
async fn a_restart_uses_the_stored_token_without_a_token_request() {
    let run = start(Arc::default(), password(), [token_response("a1", Some("r1"))]);
    assert_eq!(run.engine.token().await.as_deref(), Ok("a1"));
    let run = run.restart([token_response("a2", Some("r2"))]);
    assert_eq!(run.engine.token().await.as_deref(), Ok("a1"));
    assert_eq!(run.engine.script.calls(), 0);
    run.engine.slot.wait_for_attempts(2).await;
    assert_eq!((run.engine.script.calls(), run.spent()), (1, vec!["r1".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn a_refused_refresh_token_of_a_machine_is_replaced_by_a_first_grant() {
    let results = [token_response("a1", Some("r1")), refused_grant(), token_response("a2", Some("r2"))];
    let run = start(Arc::default(), password(), results);
    run.engine.slot.wait_for_attempts(2).await;
    assert_eq!(run.engine.token().await.as_deref(), Ok("a2"));
    assert_eq!(run.spent(), ["r1"]);
    assert_eq!(run.stored().await, refresh_token("r2"));
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_needs_a_person_sends_no_request_until_a_refresh_token_is_imported() {
    let run =
        start(Arc::default(), with_grant(Grant::AuthorizationCode), [refused_grant(), token_response("a1", None)]);
    let consent = NoToken::Person { consent: Consent::First, error: "consent_required".to_owned() };
    for _ in 0..100 {
        assert_eq!(run.engine.token().await, Err(consent.clone()));
        sleep(60 * SECOND).await;
    }
    assert_eq!(run.engine.script.calls(), 0);
    assert_eq!(run.engine.slot.state().name(run.engine.clock.now()), "reauthorize");

    let Err(NotImported::NotProven(NoToken::Refused { error, .. })) = run.import("bad").await else {
        panic!("accepted")
    };
    assert_eq!((error.as_str(), run.stored().await), ("invalid_grant", Refresh::None));
    assert_eq!(run.engine.token().await, Err(consent), "a failed import changes nothing");

    assert_eq!(run.import("good").await, Ok(()));
    assert_eq!(run.engine.token().await.as_deref(), Ok("a1"));
    assert_eq!(run.spent(), ["bad", "good"]);
    assert_eq!(run.stored().await, refresh_token("good"));
}

#[tokio::test(start_paused = true)]
async fn a_refused_refresh_token_waits_for_a_person_even_after_a_restart() {
    let results = [token_response("a1", Some("r1")), refused_grant()];
    let run = start(Arc::default(), with_grant(Grant::AuthorizationCode), results);
    run.import("r0").await.unwrap();
    sleep(40 * SECOND).await;
    assert_eq!(run.spent(), ["r0", "r1"]);
    assert_eq!(run.engine.token().await.as_deref(), Ok("a1"), "still usable");
    sleep(30 * SECOND).await;
    let again = Err(NoToken::Person { consent: Consent::Again, error: "invalid_grant".to_owned() });
    assert_eq!(run.engine.token().await, again);
    let run = run.restart([]);
    sleep(7200 * SECOND).await;
    assert_eq!(run.engine.token().await, again);
    assert_eq!(run.engine.script.calls(), 0);
    lock(&run.engine.script.results).push_back(token_response("b1", Some("s1")));
    assert_eq!(run.import("s0").await, Ok(()));
    assert_eq!(run.engine.token().await.as_deref(), Ok("b1"));
}

/// The server may have rotated the token before it failed, and some servers revoke the grant when a refresh token is
/// reused.
#[tokio::test(start_paused = true)]
async fn a_refresh_without_a_response_is_retried_only_once_the_token_is_unusable() {
    let lost = || Err(Failure::Retryable { reason: Reason::ConnectionLost, retry_after: None, detail: None });
    for unknown in [lost(), http(500), http(502), http(504), http(524)] {
        let run = start(Arc::default(), password(), [token_response("a1", Some("r1")), unknown]);
        let started = Instant::now();
        run.engine.slot.wait_for_attempts(3).await;
        let times = lock(&run.engine.script.times).clone();
        assert!(times[1] - started <= 34 * SECOND, "ahead of expiry");
        assert_eq!((times[2] - started).as_secs(), 55, "retried once the token is unusable");
        assert_eq!(run.spent(), ["r1", "r1"]);
        assert!(run.engine.fresh().is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn a_refresh_with_a_failure_response_backs_off() {
    let run = start(
        Arc::default(),
        password(),
        [token_response("a1", Some("r1")), http(503), token_response("a2", Some("r2"))],
    );
    run.engine.slot.wait_for_attempts(3).await;
    let times = lock(&run.engine.script.times).clone();
    assert!(times[2] - times[1] < 3 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn an_unsaved_token_is_used_refreshed_and_saved_later() {
    let results = (1..=3).map(|n| token_response(&format!("a{n}"), Some(&format!("r{n}"))));
    let run = start(Arc::default(), password(), results);
    run.engine.slot.wait_for_attempts(1).await;
    run.disk.full.store(true, Ordering::SeqCst);
    run.engine.slot.wait_for_attempts(2).await;
    assert_eq!(run.engine.token().await.as_deref(), Ok("a2"), "served although unsaved");
    assert_eq!(run.stored().await, refresh_token("r1"));
    run.engine.slot.wait_for_attempts(3).await;
    assert_eq!(run.spent(), ["r1", "r2"], "the refresh spends the token in memory, not the stored one");
    let saves = run.disk.saves.load(Ordering::SeqCst);
    assert!((4..=12).contains(&saves), "the save is retried with backoff: {saves}");
    run.disk.full.store(false, Ordering::SeqCst);
    sleep(60 * SECOND).await;
    assert_eq!(run.spent().last().map(String::as_str), Some("r3"));
    assert_ne!(run.stored().await, refresh_token("r1"), "saved by a retry");
}

#[tokio::test(start_paused = true)]
async fn draining_waits_for_attempts_in_flight_and_starts_none() {
    let run = start(Arc::default(), password(), [token_response("a1", Some("r1"))]);
    run.engine.slot.wait_for_attempts(1).await;
    let slow = Script { latency: 5 * SECOND, ..Script::default() };
    slow.push(token_response("a2", Some("r2")));
    let slow = Arc::new(slow);
    run.engine.cache.ensure(&run.connection, Box::new(Source(slow.clone())));
    while slow.calls() == 0 {
        sleep(SECOND).await;
    }
    run.engine.cache.drain(30 * SECOND).await;
    assert_eq!(run.stored().await, refresh_token("r2"));
    sleep(600 * SECOND).await;
    assert_eq!(slow.calls(), 1);
}

/// A token source whose refresh token another process rotates between our read and our request.
struct Rival {
    store: Arc<Disk>,
    key: TokenKey,
    sent: Arc<AtomicUsize>,
}

impl TokenSource for Rival {
    fn first_grant<'a>(&'a self, _: TokenRequestContext<'a>) -> crate::token::TokenFuture<'a> {
        Box::pin(async { refused_grant() })
    }

    fn refresh<'a>(&'a self, _: &'a RefreshToken, _: TokenRequestContext<'a>) -> crate::token::TokenFuture<'a> {
        Box::pin(async {
            if self.sent.fetch_add(1, Ordering::SeqCst) == 0 {
                return token_response("ours", Some("first"));
            }
            let stored = self.store.load(&self.key).await.unwrap().unwrap();
            let access_token = AccessToken::parse("theirs").unwrap();
            let refresh = Refresh::Token(RefreshToken::parse("second").unwrap());
            let theirs = StoredToken { access_token, refresh, obtained: stored.obtained.plus(40 * SECOND), ..stored };
            let lease = crate::store::NoStore.lease(&self.key, SECOND, SECOND).await.unwrap();
            self.store.save(&self.key, theirs, &*lease).await.unwrap();
            refused_grant()
        })
    }

    fn revoke<'a>(&'a self, _: &'a str, _: &'static str) -> RevocationFuture<'a> {
        Box::pin(async { Ok(Revocation::Revoked) })
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_replica_reads_the_record_again_before_it_marks_the_token() {
    let (store, clock) = (Arc::new(Disk::default()), Clock::simulated());
    let connection = with_grant(Grant::AuthorizationCode);
    let (tasks, metrics) = (Tasks::default(), Metrics::new().unwrap());
    let cache = TokenCache::new(store.clone(), clock.clone(), tasks, metrics, Events::default(), Audit::default());
    let (key, sent) = (connection.token_key(None), Arc::new(AtomicUsize::new(0)));
    let rival = Rival { store: store.clone(), key: key.clone(), sent: sent.clone() };
    let slot = shared(cache.ensure(&connection, Box::new(rival)));
    let imported = Credential::RefreshToken(RefreshToken::parse("given").unwrap());
    slot.import(imported, super::forced_refresh::person(), Instant::now() + 10 * SECOND).await.unwrap();
    // The token is due after half a minute; by then another process has spent the refresh token.
    sleep(45 * SECOND).await;
    assert_eq!(sent.load(Ordering::SeqCst), 2);
    assert_eq!(slot.fresh(clock.now()).unwrap().access_token.expose(), "theirs");
    assert_eq!(
        store.load(&key).await.unwrap().unwrap().refresh,
        Refresh::Token(RefreshToken::parse("second").unwrap())
    );
}
