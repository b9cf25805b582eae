//! One token for each subject: in memory while in use, in the store always.

use super::*;
use crate::model::connection::Lifetimes;

struct Subjects {
    cache: TokenCache,
    clock: Clock,
    script: Arc<Script>,
    slots: Arc<SubjectSlots>,
}

fn subjects(keep_warm: Option<Duration>, in_memory_max: usize) -> Subjects {
    let script = Arc::new(Script { lifetime: Some(60 * SECOND), ..Script::default() });
    let (store, clock) = (Arc::new(MemoryStore::default()), Clock::simulated());
    let (tasks, metrics) = (Tasks::default(), Metrics::new().unwrap());
    let mut cache = TokenCache::new(store, clock.clone(), tasks, metrics, Events::default(), Audit::default());
    cache.subjects = InMemory::new(NonZeroUsize::new(in_memory_max).unwrap());
    let lifetimes = Lifetimes { keep_warm, ..Lifetimes::default() };
    let connection = Connection { tokens: Tokens::PerSubject, lifetimes, ..Connection::sample("crm") };
    let slots = match cache.ensure(&Arc::new(connection), Box::new(Source(script.clone()))) {
        Slots::PerSubject(slots) => slots,
        Slots::Shared(_) | Slots::PerCallerToken(_) => panic!("a shared token"),
    };
    Subjects { cache, clock, script, slots }
}

impl Subjects {
    async fn token(&self, subject: &str) -> Result<String, NoToken> {
        let slot = self.slots.slot(&Subject::parse(subject).unwrap());
        if let Some(token) = slot.fresh(self.clock.now()) {
            return Ok(token.access_token.expose().to_owned());
        }
        let token = slot.token(&self.clock, Instant::now() + 10 * SECOND).await;
        token.map(|token| token.access_token.expose().to_owned())
    }

    fn in_memory(&self) -> Vec<String> {
        let mut keys: Vec<_> = self.cache.list().iter().map(|slot| slot.key.to_string()).collect();
        keys.sort();
        keys
    }
}

#[tokio::test(start_paused = true)]
async fn each_subject_has_its_own_token() {
    let run = subjects(None, 10);
    let (ann, bob) = (run.token("ann").await.unwrap(), run.token("bob").await.unwrap());
    assert_ne!(ann, bob);
    assert_eq!(run.token("ann").await, Ok(ann));
    assert_eq!(run.script.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_token_is_refreshed_ahead_only_while_it_is_in_use() {
    let run = subjects(None, 10);
    run.token("ann").await.unwrap();
    run.token("bob").await.unwrap();
    for _ in 0..300 {
        run.token("ann").await.unwrap();
        sleep(SECOND).await;
    }
    let after_use = run.script.calls();
    assert!((10..=13).contains(&after_use), "{after_use}: only ann's is renewed, twice a minute");
    sleep(600 * SECOND).await;
    assert!(run.script.calls() <= after_use + 2, "{} after {after_use}", run.script.calls());
}

#[tokio::test(start_paused = true)]
async fn who_was_not_used_for_longest_leaves_memory_first_and_comes_back_from_the_store() {
    let run = subjects(None, 3);
    let ann = run.token("ann").await.unwrap();
    for subject in ["bob", "eve"] {
        run.token(subject).await.unwrap();
    }
    assert_eq!(run.token("ann").await, Ok(ann.clone()));
    run.token("zoe").await.unwrap();
    assert_eq!(run.in_memory(), ["crm/default/ann", "crm/default/eve", "crm/default/zoe"]);
    for subject in ["bob", "eve", "zoe"] {
        run.token(subject).await.unwrap();
    }
    assert_eq!(run.in_memory(), ["crm/default/bob", "crm/default/eve", "crm/default/zoe"]);
    assert_eq!(run.token("ann").await, Ok(ann));
    assert_eq!(run.script.calls(), 4, "nobody's token was asked for twice");
}

#[tokio::test(start_paused = true)]
async fn a_token_that_ends_unused_leaves_memory() {
    let run = subjects(None, 10);
    run.token("ann").await.unwrap();
    sleep(120 * SECOND).await;
    assert!(run.slots.slot(&Subject::parse("ann").unwrap()).fresh(run.clock.now()).is_none());
    assert_eq!(run.script.calls(), 1);
    assert!(run.token("ann").await.is_ok());
    assert_eq!(run.script.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_told_to_all_who_ask_until_the_next_try() {
    let run = subjects(None, 10);
    run.script.then(unavailable(Some(30 * SECOND)));
    for _ in 0..29 {
        assert!(run.token("ann").await.is_err());
        sleep(SECOND).await;
    }
    assert_eq!(run.script.calls(), 1);
    sleep(600 * SECOND).await;
    assert_eq!(run.script.calls(), 1, "nobody asks any more");
    assert!(run.token("ann").await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn what_is_to_be_kept_warm_is_renewed_though_nobody_asks() {
    let run = subjects(Some(3600 * SECOND), 10);
    for answer in 0..100 {
        let refresh_token = RefreshToken::parse(&format!("r{answer}")).unwrap();
        let access_token = AccessToken::parse(&format!("a{answer}")).unwrap();
        let expires_in = Some(60 * SECOND);
        run.script.then(Ok(TokenSet {
            access_token,
            expires_in,
            refresh_token: Some(refresh_token),
            refresh_token_expires_in: None,
            scopes: None,
        }));
    }
    run.token("ann").await.unwrap();
    run.token("bob").await.unwrap();
    sleep(10 * 3600 * SECOND).await;
    let calls = run.script.calls();
    assert!((20..=30).contains(&calls), "{calls}: each about once an hour");
    let times = lock(&run.script.times).clone();
    let gaps = times.windows(4).map(|four| four[3] - four[0]);
    assert!(gaps.max().unwrap() < 2 * 3600 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn another_identity_ends_the_tokens_of_all_subjects() {
    let run = subjects(None, 10);
    run.token("ann").await.unwrap();
    let scopes = vec!["more".to_owned()];
    let connection = Connection { tokens: Tokens::PerSubject, scopes, ..Connection::sample("crm") };
    let slots = run.cache.ensure(&Arc::new(connection), Box::new(Source(run.script.clone())));
    let ann = Subject::parse("ann").unwrap();
    let before = run.slots.slot(&ann);
    run.cache.retain(&HashSet::from([TokenKey { subject: None, ..before.key.clone() }]));
    assert_eq!(run.token("ann").await, Err(NoToken::Forgotten));
    let slot = slots.slot(Some(&ann)).unwrap();
    let token = slot.token(&run.clock, Instant::now() + SECOND).await.unwrap();
    assert_eq!(token.access_token.expose(), "token-2");
    assert_eq!(run.in_memory(), ["crm/default/ann"]);
}

#[tokio::test(start_paused = true)]
async fn the_subjects_of_one_profile_are_none_of_the_others() {
    let run = subjects(Some(3600 * SECOND), 10);
    let profile = Name::parse("other").unwrap();
    let own = Connection { tokens: Tokens::PerSubject, profile, ..Connection::sample("crm") };
    let others = run.cache.ensure(&Arc::new(own), Box::new(Source(run.script.clone())));
    let ann = Subject::parse("ann").unwrap();
    let other = others.slot(Some(&ann)).unwrap();
    other.token(&run.clock, Instant::now() + SECOND).await.unwrap();
    run.token("ann").await.unwrap();
    assert_eq!(run.in_memory(), ["crm/default/ann", "crm/other/ann"]);
    // Only one of the two profiles is to be kept warm, and its walk meets the other's records.
    sleep(10 * 3600 * SECOND).await;
    assert_eq!(run.in_memory(), ["crm/default/ann", "crm/other/ann"]);
    run.cache.retain(&HashSet::from([TokenKey { subject: None, ..other.key.clone() }]));
    assert_eq!(run.in_memory(), ["crm/other/ann"]);
}
