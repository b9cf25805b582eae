//! The DNS cache over scripted resolvers: caching, coalescing, bounds and cancellation.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::join_all;

use super::*;
use crate::model::Name;

/// A resolver that returns `addresses` addresses, each twice, after 50 ms (0: a failure); for names with `silent`,
/// after an hour.
fn names(addresses: u8) -> (Names, Arc<AtomicUsize>) {
    let lookups = Arc::<AtomicUsize>::default();
    let count = lookups.clone();
    let names = Names::with_resolver(&Tasks::default(), move |name| {
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
    (names, lookups)
}

async fn lookup(names: &Names, name: &str) -> io::Result<Vec<IpAddr>> {
    names.addresses(name, Class::Requested, &of("a")).await
}

/// The turn of the caller with this name.
fn of(caller: &str) -> Turn {
    Turn::Caller(Name::parse(caller).unwrap())
}

/// The outcome of a lookup, or `None` after 100 ms.
async fn lookup_within_100ms(names: &Names, name: &str, class: Class, caller: &str) -> Option<io::Result<Vec<IpAddr>>> {
    tokio::time::timeout(Duration::from_millis(100), names.addresses(name, class, &of(caller))).await.ok()
}

/// Looks up these names for one caller; none of them resolves within 5 s.
async fn lookup_unresolved(names: &Names, hosts: impl Iterator<Item = String>) {
    let hosts: Vec<_> = hosts.collect();
    let silent = join_all(hosts.iter().map(|host| lookup(names, host)));
    assert!(tokio::time::timeout(Duration::from_secs(5), silent).await.is_err());
}

/// Lets time pass while lookups run.
async fn sleep(span: Duration) {
    tokio::time::sleep(span).await;
}

#[tokio::test(start_paused = true)]
async fn concurrent_requests_share_one_lookup() {
    let (names, lookups) = names(2);
    let answers = join_all((0..500).map(|_| lookup(&names, "a.test"))).await;
    assert!(answers.iter().all(|answer| answer.as_ref().unwrap().len() == 2));
    sleep(FRESH - Duration::from_millis(1)).await;
    lookup(&names, "a.test").await.unwrap();
    assert_eq!(lookups.load(Ordering::SeqCst), 1);
    names.forget("a.test");
    lookup(&names, "a.test").await.unwrap();
    assert_eq!(lookups.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_stale_answer_is_served_while_a_new_lookup_runs() {
    let (names, lookups) = names(1);
    lookup(&names, "a.test").await.unwrap();
    sleep(FRESH).await;
    let started = Instant::now();
    for _ in 0..100 {
        lookup(&names, "a.test").await.unwrap();
    }
    assert_eq!(started.elapsed(), Duration::ZERO);
    sleep(Duration::from_millis(50)).await;
    lookup(&names, "a.test").await.unwrap();
    assert_eq!(lookups.load(Ordering::SeqCst), 2, "the new answer is fresh");
    sleep(STALE).await;
    let started = Instant::now();
    lookup(&names, "a.test").await.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(50), "an answer older than STALE is not served");
}

#[tokio::test(start_paused = true)]
async fn a_stale_answer_is_served_when_a_lookup_fails() {
    let healthy = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let answers = healthy.clone();
    let names = Names::with_resolver(&Tasks::default(), move |_| {
        let healthy = answers.load(Ordering::SeqCst);
        Box::pin(
            async move { if healthy { Ok(vec![[192, 0, 2, 1].into()]) } else { Err(io::Error::other("SERVFAIL")) } },
        )
    });
    lookup(&names, "a.test").await.unwrap();
    healthy.store(false, Ordering::SeqCst);
    for _ in 0..10 {
        sleep(FRESH).await;
        lookup(&names, "a.test").await.unwrap();
    }
    sleep(STALE).await;
    assert_eq!(lookup(&names, "a.test").await.unwrap_err().to_string(), "SERVFAIL");
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_cached_briefly() {
    let (names, lookups) = names(0);
    for _ in 0..100 {
        assert_eq!(lookup(&names, "a.test").await.unwrap_err().to_string(), "SERVFAIL");
    }
    assert_eq!(lookups.load(Ordering::SeqCst), 1);
    sleep(FAILURE_TTL).await;
    lookup(&names, "a.test").await.unwrap_err();
    assert_eq!(lookups.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_waiter_does_not_cancel_the_lookup_of_another() {
    let (names, lookups) = names(1);
    let hurried = tokio::time::timeout(Duration::from_millis(10), lookup(&names, "a.test"));
    let (gone, answer) = tokio::join!(hurried, lookup(&names, "a.test"));
    assert!(gone.is_err());
    assert_eq!((answer.unwrap().len(), lookups.load(Ordering::SeqCst)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn an_unresponsive_name_server_delays_no_other_zone() {
    for (silent, threads_max, neighbour) in [
        ("silent.test", 15, "www.quick.example"),
        // Siblings below a public suffix are separate zones.
        ("silent.co.uk", 8, "www.quick.co.uk"),
        ("silent.com.au", 8, "quick.com.au"),
        ("api.silent.test", 8, "www.quick.test"),
    ] {
        let (names, lookups) = names(1);
        lookup_unresolved(&names, (0..1000).map(|n| format!("h{n}.{silent}"))).await;
        assert_eq!(lookups.load(Ordering::SeqCst), threads_max, "{silent}: threads of one zone and caller are bounded");
        assert!(lookup_within_100ms(&names, &format!("h.{silent}"), Class::Requested, "a").await.is_none());
        for (name, caller) in [(neighbour, "a"), (&*neighbour.replace("quick", "quick2"), "b")] {
            assert!(
                lookup_within_100ms(&names, name, Class::Requested, caller).await.is_some(),
                "{silent}: {name} of {caller}"
            );
        }
        // Queued lookups without waiters are gone.
        let waiting = names.cache().iter().filter(|(_, entry)| entry.search.is_some()).count();
        assert_eq!(waiting, threads_max, "{silent}");
    }
}

#[tokio::test(start_paused = true)]
async fn unresponsive_zones_of_one_caller_cannot_exhaust_the_lookup_threads() {
    let (names, lookups) = names(1);
    lookup_unresolved(&names, (0..200).map(|n| format!("n{n}.silent{n}.test"))).await;
    let taken = lookups.load(Ordering::SeqCst);
    assert!((LOOKUPS_MAX / 2 - 2..LOOKUPS_MAX).contains(&taken), "{taken} threads");
    for n in 0..20 {
        let outcome = lookup_within_100ms(&names, &format!("b{n}.quick{n}.test"), Class::Requested, "b").await;
        assert!(outcome.is_some_and(|found| found.is_ok()), "another caller, name {n}");
    }
    // Across many top-level domains, the caller uses up its whole share.
    lookup_unresolved(&names, (0..200).map(|n| format!("n{n}.silent{n}.tld{n}"))).await;
    let taken = lookups.load(Ordering::SeqCst) - 20;
    assert!((LOOKUPS_MAX - 4..LOOKUPS_MAX).contains(&taken), "{taken} threads");
    assert!(
        lookup_within_100ms(&names, "c.quick.test", Class::Requested, "a").await.is_none(),
        "the caller has used up its share"
    );
    let (own, configured) = (Class::Requested, Class::Configured);
    for (row, name, class, caller) in [
        ("another caller", "d.quick.test", own, "b"),
        ("another caller, below a top-level domain of the first caller", "d.quick.tld7", own, "b"),
        ("a name that the first caller waits for", "c.quick.test", own, "b"),
        ("a configured name", "e.quick.test", configured, "a"),
    ] {
        assert!(lookup_within_100ms(&names, name, class, caller).await.is_some_and(|found| found.is_ok()), "{row}");
    }
}

/// A lookup queued for one caller does not block another's; only one of them runs.
#[tokio::test(start_paused = true)]
async fn a_name_that_two_callers_wait_for_is_looked_up_once() {
    let (names, lookups) = names(1);
    let (a, b) = (of("a"), of("b"));
    let (one, other) = tokio::join!(
        names.addresses("x.quick.test", Class::Requested, &a),
        names.addresses("x.quick.test", Class::Requested, &b)
    );
    assert_eq!((one.unwrap(), lookups.load(Ordering::SeqCst)), (other.unwrap(), 1));
    lookup(&names, "x.quick.test").await.unwrap();
    assert_eq!(lookups.load(Ordering::SeqCst), 1);
    sleep(Duration::from_secs(1)).await;
    assert!(names.zones().is_empty());
}

#[tokio::test(start_paused = true)]
async fn addresses_and_names_are_bounded() {
    let (names, _) = names(250);
    assert_eq!(lookup(&names, "a.test").await.unwrap().len(), ADDRESSES_MAX);
    for n in 0..2 * NAMES_MAX.get() {
        names.find(&format!("{n}.test"), Class::Requested, &of("a"));
    }
    assert_eq!(names.cache().len(), NAMES_MAX.get());
    sleep(Duration::from_secs(1)).await;
    assert!(names.zones().is_empty(), "{:?}", names.zones().len());
}
