//! Names against scripted resolvers: what is cached, shared, bounded and abandoned.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::join_all;

use super::*;

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
    names.addresses(name, Class::Requested).await
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
async fn a_silent_name_server_delays_no_other_zone_and_no_configured_name() {
    let (names, asked) = names(1);
    let hosts: Vec<String> = (0..1000).map(|n| format!("h{n}.silent.test")).collect();
    let silent = join_all(hosts.iter().map(|host| ask(&names, host)));
    assert!(tokio::time::timeout(Duration::from_secs(5), silent).await.is_err());
    assert_eq!(asked.load(Ordering::SeqCst), ZONE_LOOKUPS_MAX, "threads of one zone are bounded");
    let quick = |name, class| tokio::time::timeout(Duration::from_millis(100), names.addresses(name, class));
    quick("a.quick.test", Class::Requested).await.unwrap().unwrap();
    quick("a.silent.example", Class::Requested).await.unwrap_err();
    quick("a.quick.example", Class::Requested).await.unwrap().unwrap();
    // Many silent zones occupy every thread of their class, and none of the configuration's.
    let hosts: Vec<String> = (0..100).map(|n| format!("a.silent{n}.test")).collect();
    let silent = join_all(hosts.iter().map(|host| ask(&names, host)));
    assert!(tokio::time::timeout(Duration::from_secs(5), silent).await.is_err());
    quick("b.quick.test", Class::Requested).await.unwrap_err();
    quick("c.quick.test", Class::Configured).await.unwrap().unwrap();
    // Lookups without waiters have left the queue.
    let waiting = names.cache().iter().filter(|(_, entry)| entry.lookup.is_some()).count();
    assert_eq!(waiting, LOOKUPS_MAX);
}

#[tokio::test(start_paused = true)]
async fn addresses_and_names_are_bounded() {
    let (names, _) = names(250);
    assert_eq!(ask(&names, "a.test").await.unwrap().len(), ADDRESSES_MAX);
    for n in 0..2 * NAMES_MAX.get() {
        names.find(&format!("{n}.test"), Class::Requested);
    }
    assert_eq!(names.cache().len(), NAMES_MAX.get());
    pass(Duration::from_secs(1)).await;
    assert!(names.zones().is_empty(), "{:?}", names.zones().len());
}
