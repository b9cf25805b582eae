//! Concurrent readers and the single writer of a slot, on real threads.

use super::*;

#[test]
fn readers_see_the_newest_token_or_its_predecessor_during_a_publish() {
    const GENERATIONS: u64 = 20_000;
    let slot = TokenSlot::new(TokenKey::of_connection(Name::parse("crm").unwrap()), None);
    let clock = Clock::system();
    let end = clock.now().plus(3600 * SECOND);
    let deadlines = deadlines::Deadlines { usable_until: end, expires: end, refresh_at: end };
    let publish = |generation: u64| {
        let text = AccessToken::parse(&format!("t{generation}")).unwrap();
        let token =
            InjectedToken::new(generation, text, Arc::new(connection("crm").origins()), granted(end), deadlines);
        slot.publish(Some(Arc::new(token)), None);
    };
    publish(1);
    let published = std::sync::atomic::AtomicU64::new(1);
    std::thread::scope(|scope| {
        let workers = [0, 1].map(|_| {
            scope.spawn(|| {
                let mut reads = 0u64;
                loop {
                    let before = published.load(Ordering::SeqCst);
                    let seen = slot.fresh(clock.now()).expect("there is always a token").generation;
                    let after = published.load(Ordering::SeqCst);
                    assert!(seen >= before && seen <= after + 1, "saw {seen} between {before} and {after}");
                    reads += 1;
                    if after == GENERATIONS {
                        return reads;
                    }
                }
            })
        });
        for generation in 2..=GENERATIONS {
            publish(generation);
            published.store(generation, Ordering::SeqCst);
        }
        for worker in workers {
            assert!(worker.join().unwrap() > 0);
        }
    });
}
