//! Refresh tokens: rotated, kept, refused, in doubt, unsaved, imported.

use super::super::slot::{Consent, Credential, NotImported};
use super::disk::Disk;
use super::*;
use crate::model::connection::Grant;
use crate::model::secret::Secret;
use crate::store::{Refresh, StoredToken};

pub(super) struct Renewal {
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

pub(super) fn renewing(access: &str, refresh: Option<&str>) -> Answer {
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

pub(super) fn http(status: u16) -> Answer {
    Err(Failure::Retryable { reason: Reason::HttpStatus(status), retry_after: None, detail: None })
}

pub(super) fn empty_400() -> Answer {
    Err(Failure::Retryable { reason: Reason::Empty400, retry_after: None, detail: None })
}

pub(super) fn refused_grant() -> Answer {
    Err(Failure::Permanent(Refusal { refuses_refresh_token: true, ..Refusal::from_code("invalid_grant") }))
}

/// A program that starts on the disk of an earlier one.
pub(super) fn start(
    disk: Arc<Disk>,
    connection: Arc<Connection>,
    answers: impl IntoIterator<Item = Answer>,
) -> Renewal {
    let script = Script { lifetime: Some(60 * SECOND), ..Script::default() };
    answers.into_iter().for_each(|answer| script.then(answer));
    let (script, clock) = (Arc::new(script), Clock::simulated());
    let (tasks, metrics) = (Tasks::default(), Metrics::new().unwrap());
    let cache = TokenCache::new(disk.clone(), clock.clone(), tasks, metrics, Events::default(), Audit::default());
    let slot = shared(cache.ensure(&connection, Box::new(Source(script.clone()))));
    Renewal { engine: Engine { cache, clock, script, slot }, disk, connection }
}

impl Renewal {
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
                super::refresh::person(),
                Instant::now() + 10 * SECOND,
            )
            .await
    }

    /// The program ends and another one starts.
    pub(super) fn restart(self, answers: impl IntoIterator<Item = Answer>) -> Renewal {
        self.engine.cache.retain(&HashSet::new());
        start(self.disk, self.connection, answers)
    }
}

fn kept(text: &str) -> Refresh {
    Refresh::Token(RefreshToken::parse(text).unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_rotated_refresh_token_is_saved_before_its_access_token_is_used_and_the_old_one_never_sent_again() {
    let answers = (1..=4).map(|n| renewing(&format!("a{n}"), Some(&format!("r{n}"))));
    let run = start(Arc::default(), password(), answers);
    for n in 1..=4 {
        run.engine.slot.attempted(n).await;
        assert_eq!(run.stored().await, kept(&format!("r{n}")));
    }
    assert_eq!(run.spent(), ["r1", "r2", "r3"]);
}

#[tokio::test(start_paused = true)]
async fn a_response_without_a_refresh_token_leaves_the_old_one_in_use() {
    let answers = [renewing("a1", Some("r1")), renewing("a2", None), renewing("a3", None)];
    let run = start(Arc::default(), password(), answers);
    run.engine.slot.attempted(3).await;
    assert_eq!(run.spent(), ["r1", "r1"]);
    assert_eq!(run.stored().await, kept("r1"));
}

#[tokio::test(start_paused = true)]
async fn a_restart_uses_the_stored_token_and_requests_none() {
    let run = start(Arc::default(), password(), [renewing("a1", Some("r1"))]);
    assert_eq!(run.engine.token().await.as_deref(), Ok("a1"));
    let run = run.restart([renewing("a2", Some("r2"))]);
    assert_eq!(run.engine.token().await.as_deref(), Ok("a1"));
    assert_eq!(run.engine.script.calls(), 0);
    run.engine.slot.attempted(2).await;
    assert_eq!((run.engine.script.calls(), run.spent()), (1, vec!["r1".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn a_refused_refresh_token_of_a_machine_is_replaced_by_a_first_grant() {
    let answers = [renewing("a1", Some("r1")), refused_grant(), renewing("a2", Some("r2"))];
    let run = start(Arc::default(), password(), answers);
    run.engine.slot.attempted(2).await;
    assert_eq!(run.engine.token().await.as_deref(), Ok("a2"));
    assert_eq!(run.spent(), ["r1"]);
    assert_eq!(run.stored().await, kept("r2"));
}

#[tokio::test(start_paused = true)]
async fn without_a_person_nothing_is_requested_until_a_refresh_token_is_imported() {
    let run = start(Arc::default(), with_grant(Grant::AuthorizationCode), [refused_grant(), renewing("a1", None)]);
    let consent = NoToken::Person { consent: Consent::First, error: "consent_required".to_owned() };
    for _ in 0..100 {
        assert_eq!(run.engine.token().await, Err(consent.clone()));
        sleep(60 * SECOND).await;
    }
    assert_eq!(run.engine.script.calls(), 0);
    assert_eq!(run.engine.slot.state().name(run.engine.clock.now()), "reauthorize");

    let Err(NotImported::NotProven(NoToken::Refused { error, .. })) = run.import("bad").await else { panic!("kept") };
    assert_eq!((error.as_str(), run.stored().await), ("invalid_grant", Refresh::None));
    assert_eq!(run.engine.token().await, Err(consent), "nothing has changed");

    assert_eq!(run.import("good").await, Ok(()));
    assert_eq!(run.engine.token().await.as_deref(), Ok("a1"));
    assert_eq!(run.spent(), ["bad", "good"]);
    assert_eq!(run.stored().await, kept("good"));
}

#[tokio::test(start_paused = true)]
async fn a_refused_refresh_token_waits_for_a_person_through_every_restart() {
    let answers = [renewing("a1", Some("r1")), refused_grant()];
    let run = start(Arc::default(), with_grant(Grant::AuthorizationCode), answers);
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
    lock(&run.engine.script.answers).push_back(renewing("b1", Some("s1")));
    assert_eq!(run.import("s0").await, Ok(()));
    assert_eq!(run.engine.token().await.as_deref(), Ok("b1"));
}

/// The server may have rotated and failed, and some servers revoke the grant when a refresh token is sent twice.
#[tokio::test(start_paused = true)]
async fn a_refresh_without_a_response_is_retried_only_when_the_token_ends() {
    let lost = || Err(Failure::Retryable { reason: Reason::ConnectionLost, retry_after: None, detail: None });
    for unknown in [lost(), http(500), http(502), http(504), http(524)] {
        let run = start(Arc::default(), password(), [renewing("a1", Some("r1")), unknown]);
        let begun = Instant::now();
        run.engine.slot.attempted(3).await;
        let times = lock(&run.engine.script.times).clone();
        assert!(times[1] - begun <= 34 * SECOND, "ahead of expiry");
        assert_eq!((times[2] - begun).as_secs(), 55, "and again at its end");
        assert_eq!(run.spent(), ["r1", "r1"]);
        assert!(run.engine.fresh().is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn a_refresh_answered_with_a_failure_backs_off() {
    let run = start(Arc::default(), password(), [renewing("a1", Some("r1")), http(503), renewing("a2", Some("r2"))]);
    run.engine.slot.attempted(3).await;
    let times = lock(&run.engine.script.times).clone();
    assert!(times[2] - times[1] < 3 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn an_unsaved_token_is_used_refreshed_and_saved_later() {
    let answers = (1..=3).map(|n| renewing(&format!("a{n}"), Some(&format!("r{n}"))));
    let run = start(Arc::default(), password(), answers);
    run.engine.slot.attempted(1).await;
    run.disk.full.store(true, Ordering::SeqCst);
    run.engine.slot.attempted(2).await;
    assert_eq!(run.engine.token().await.as_deref(), Ok("a2"), "used all the same");
    assert_eq!(run.stored().await, kept("r1"));
    run.engine.slot.attempted(3).await;
    assert_eq!(run.spent(), ["r1", "r2"], "memory, not the store, has the next one");
    let saves = run.disk.saves.load(Ordering::SeqCst);
    assert!((4..=12).contains(&saves), "offered again, ever more rarely: {saves}");
    run.disk.full.store(false, Ordering::SeqCst);
    sleep(60 * SECOND).await;
    assert_eq!(run.spent().last().map(String::as_str), Some("r3"));
    assert_ne!(run.stored().await, kept("r1"), "saved without help");
}

#[tokio::test(start_paused = true)]
async fn shutdown_waits_for_attempts_under_way_and_begins_none() {
    let run = start(Arc::default(), password(), [renewing("a1", Some("r1"))]);
    run.engine.slot.attempted(1).await;
    let slow = Script { takes: 5 * SECOND, ..Script::default() };
    slow.then(renewing("a2", Some("r2")));
    let slow = Arc::new(slow);
    run.engine.cache.ensure(&run.connection, Box::new(Source(slow.clone())));
    while slow.calls() == 0 {
        sleep(SECOND).await;
    }
    run.engine.cache.rest(30 * SECOND).await;
    assert_eq!(run.stored().await, kept("r2"));
    sleep(600 * SECOND).await;
    assert_eq!(slow.calls(), 1);
}

/// Another process rotates between our read and our request.
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
                return renewing("ours", Some("first"));
            }
            let held = self.store.load(&self.key).await.unwrap().unwrap();
            let access_token = AccessToken::parse("theirs").unwrap();
            let refresh = Refresh::Token(RefreshToken::parse("second").unwrap());
            let theirs = StoredToken { access_token, refresh, obtained: held.obtained.plus(40 * SECOND), ..held };
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
async fn a_refused_replica_reads_again_before_it_marks_the_token() {
    let (store, clock) = (Arc::new(Disk::default()), Clock::simulated());
    let connection = with_grant(Grant::AuthorizationCode);
    let (tasks, metrics) = (Tasks::default(), Metrics::new().unwrap());
    let cache = TokenCache::new(store.clone(), clock.clone(), tasks, metrics, Events::default(), Audit::default());
    let (key, sent) = (connection.token_key(None), Arc::new(AtomicUsize::new(0)));
    let rival = Rival { store: store.clone(), key: key.clone(), sent: sent.clone() };
    let slot = shared(cache.ensure(&connection, Box::new(rival)));
    let handed = Credential::RefreshToken(RefreshToken::parse("given").unwrap());
    slot.import(handed, super::refresh::person(), Instant::now() + 10 * SECOND).await.unwrap();
    // Due after half a minute, when another process has spent the refresh token.
    sleep(45 * SECOND).await;
    assert_eq!(sent.load(Ordering::SeqCst), 2);
    assert_eq!(slot.fresh(clock.now()).unwrap().access_token.expose(), "theirs");
    assert_eq!(
        store.load(&key).await.unwrap().unwrap().refresh,
        Refresh::Token(RefreshToken::parse("second").unwrap())
    );
}
