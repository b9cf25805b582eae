//! Names against scripted resolvers: what is cached, shared, bounded and abandoned.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::join_all;

use super::*;
use crate::model::Name;

/// Answers after 50 ms with each of so many addresses twice, 0 being a failure; names under `silent.test` after an hour.
fn names(addresses: u8) -> (Names, Arc<AtomicUsize>) {
    let asked = Arc::<AtomicUsize>::default();
    let count = asked.clone();
    let names = Names::over(&Tasks::default(), move |name| {
        count.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            let silent = name.contains("silent");
            tokio::time::sleep(if silent { Duration::from_secs(3600) } else { Duration::from_millis(50) }).await;
            match addresses {
                0 => Err(io::Error::other("SERVFAIL")),
                n => Ok((0..n).flat_map(|last| [IpAddr::from([192, 0, 2, last]); 2]).collect()),
            }
        })
    });
    (names, asked)
}

async fn ask(names: &Names, name: &str) -> io::Result<Vec<IpAddr>> {
    names.addresses(name, Class::Requested, &of("a")).await
}

/// The turn of the caller of this name.
fn of(caller: &str) -> Turn {
    Turn::Caller(Name::parse(caller).unwrap())
}

/// The outcome for a name that is expected at once.
async fn ask_quickly(names: &Names, name: &str, class: Class, caller: &str) -> Option<io::Result<Vec<IpAddr>>> {
    tokio::time::timeout(Duration::from_millis(100), names.addresses(name, class, &of(caller))).await.ok()
}

/// One caller asks for all of these, and waits for 5 s in vain.
async fn ask_in_vain(names: &Names, hosts: impl Iterator<Item = String>) {
    let hosts: Vec<_> = hosts.collect();
    let silent = join_all(hosts.iter().map(|host| ask(names, host)));
    assert!(tokio::time::timeout(Duration::from_secs(5), silent).await.is_err());
}

/// The time of others passes: lookups go on.
async fn pass(span: Duration) {
    tokio::time::sleep(span).await;
}

#[tokio::test(start_paused = true)]
async fn many_requests_share_one_lookup() {
    let (names, asked) = names(2);
    let answers = join_all((0..500).map(|_| ask(&names, "a.test"))).await;
    assert!(answers.iter().all(|answer| answer.as_ref().unwrap().len() == 2));
    pass(FRESH - Duration::from_millis(1)).await;
    ask(&names, "a.test").await.unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    names.forget("a.test");
    ask(&names, "a.test").await.unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_stale_answer_is_served_while_a_new_lookup_runs() {
    let (names, asked) = names(1);
    ask(&names, "a.test").await.unwrap();
    pass(FRESH).await;
    let started = Instant::now();
    for _ in 0..100 {
        ask(&names, "a.test").await.unwrap();
    }
    assert_eq!(started.elapsed(), Duration::ZERO);
    pass(Duration::from_millis(50)).await;
    ask(&names, "a.test").await.unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), 2, "the new answer is fresh");
    pass(STALE).await;
    let started = Instant::now();
    ask(&names, "a.test").await.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(50), "an answer this old is not served");
}

#[tokio::test(start_paused = true)]
async fn a_failed_lookup_leaves_the_stale_answer_in_use() {
    let healthy = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let answers = healthy.clone();
    let names = Names::over(&Tasks::default(), move |_| {
        let healthy = answers.load(Ordering::SeqCst);
        Box::pin(
            async move { if healthy { Ok(vec![[192, 0, 2, 1].into()]) } else { Err(io::Error::other("SERVFAIL")) } },
        )
    });
    ask(&names, "a.test").await.unwrap();
    healthy.store(false, Ordering::SeqCst);
    for _ in 0..10 {
        pass(FRESH).await;
        ask(&names, "a.test").await.unwrap();
    }
    pass(STALE).await;
    assert_eq!(ask(&names, "a.test").await.unwrap_err().to_string(), "SERVFAIL");
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_cached_for_a_moment() {
    let (names, asked) = names(0);
    for _ in 0..100 {
        assert_eq!(ask(&names, "a.test").await.unwrap_err().to_string(), "SERVFAIL");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    pass(FAILURE_TTL).await;
    ask(&names, "a.test").await.unwrap_err();
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_leaves_cancels_no_lookup_of_the_others() {
    let (names, asked) = names(1);
    let hurried = tokio::time::timeout(Duration::from_millis(10), ask(&names, "a.test"));
    let (gone, answer) = tokio::join!(hurried, ask(&names, "a.test"));
    assert!(gone.is_err());
    assert_eq!((answer.unwrap().len(), asked.load(Ordering::SeqCst)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_silent_name_server_delays_no_other_zone() {
    for (silent, threads_max, neighbour) in [
        ("silent.test", 15, "www.quick.example"),
        // Its neighbours below a public suffix are others' zones.
        ("silent.co.uk", 8, "www.quick.co.uk"),
        ("silent.com.au", 8, "quick.com.au"),
        ("api.silent.test", 8, "www.quick.test"),
    ] {
        let (names, asked) = names(1);
        ask_in_vain(&names, (0..1000).map(|n| format!("h{n}.{silent}"))).await;
        assert_eq!(asked.load(Ordering::SeqCst), threads_max, "{silent}: threads of one zone and caller are bounded");
        assert!(ask_quickly(&names, &format!("h.{silent}"), Class::Requested, "a").await.is_none());
        for (name, caller) in [(neighbour, "a"), (&*neighbour.replace("quick", "quick2"), "b")] {
            assert!(
                ask_quickly(&names, name, Class::Requested, caller).await.is_some(),
                "{silent}: {name} of {caller}"
            );
        }
        // Lookups without waiters have left the queue.
        let waiting = names.cache().iter().filter(|(_, entry)| entry.search.is_some()).count();
        assert_eq!(waiting, threads_max, "{silent}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_of_many_silent_zones_leaves_threads_to_the_others_and_to_configured_names() {
    let (names, asked) = names(1);
    ask_in_vain(&names, (0..200).map(|n| format!("n{n}.silent{n}.test"))).await;
    let taken = asked.load(Ordering::SeqCst);
    assert!((LOOKUPS_MAX / 2 - 2..LOOKUPS_MAX).contains(&taken), "{taken} threads");
    for n in 0..20 {
        let outcome = ask_quickly(&names, &format!("b{n}.quick{n}.test"), Class::Requested, "b").await;
        assert!(outcome.is_some_and(|found| found.is_ok()), "another caller, name {n}");
    }
    // In many top-level domains, too: now its threads are all taken.
    ask_in_vain(&names, (0..200).map(|n| format!("n{n}.silent{n}.tld{n}"))).await;
    let taken = asked.load(Ordering::SeqCst) - 20;
    assert!((LOOKUPS_MAX - 4..LOOKUPS_MAX).contains(&taken), "{taken} threads");
    assert!(ask_quickly(&names, "c.quick.test", Class::Requested, "a").await.is_none(), "it has no more threads");
    let (own, configured) = (Class::Requested, Class::Configured);
    for (row, name, class, caller) in [
        ("another caller", "d.quick.test", own, "b"),
        ("another caller, below a top-level domain of the first", "d.quick.tld7", own, "b"),
        ("a name that the first waits for", "c.quick.test", own, "b"),
        ("a configured name", "e.quick.test", configured, "a"),
    ] {
        assert!(ask_quickly(&names, name, class, caller).await.is_some_and(|found| found.is_ok()), "{row}");
    }
}

/// A lookup in the queue of one caller does not keep another from its own, and one of them runs.
#[tokio::test(start_paused = true)]
async fn a_name_that_two_callers_wait_for_is_looked_up_once() {
    let (names, asked) = names(1);
    let (a, b) = (of("a"), of("b"));
    let (one, other) = tokio::join!(
        names.addresses("x.quick.test", Class::Requested, &a),
        names.addresses("x.quick.test", Class::Requested, &b)
    );
    assert_eq!((one.unwrap(), asked.load(Ordering::SeqCst)), (other.unwrap(), 1));
    ask(&names, "x.quick.test").await.unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    pass(Duration::from_secs(1)).await;
    assert!(names.zones().is_empty());
}

#[tokio::test(start_paused = true)]
async fn addresses_and_names_are_bounded() {
    let (names, _) = names(250);
    assert_eq!(ask(&names, "a.test").await.unwrap().len(), ADDRESSES_MAX);
    for n in 0..2 * NAMES_MAX.get() {
        names.find(&format!("{n}.test"), Class::Requested, &of("a"));
    }
    assert_eq!(names.cache().len(), NAMES_MAX.get());
    pass(Duration::from_secs(1)).await;
    assert!(names.zones().is_empty(), "{:?}", names.zones().len());
}
