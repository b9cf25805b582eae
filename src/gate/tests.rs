//! Gates from a waiter's point of view, single-threaded and under load from many threads.

use std::future::poll_fn;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;

use super::*;
use crate::tasks::Tasks;

const fn bounds(permits: usize, queued: usize) -> Bounds {
    Bounds { permits, queued, sharing: Sharing::Unbounded }
}

fn caller(name: &str) -> Turn {
    Turn::Caller(Name::parse(name).unwrap())
}

fn enter(gate: &Arc<Gate>, permits: usize, queued: usize) -> Result<Entered, Full> {
    gate.enter_or_queue(bounds(permits, queued), &caller("a"))
}

#[track_caller]
fn inside(entry: Result<Entered, Full>) -> Permit {
    match entry {
        Ok(Entered::Inside(permit)) => permit,
        other => panic!("not inside: {other:?}"),
    }
}

#[track_caller]
fn queued(entry: Result<Entered, Full>) -> Waiting {
    match entry {
        Ok(Entered::Queued(waiting)) => waiting,
        other => panic!("not queued: {other:?}"),
    }
}

#[test]
fn permits_and_queue_are_bounded() {
    let gate = Arc::new(Gate::default());
    let first = inside(enter(&gate, 1, 1));
    assert!(gate.try_enter(bounds(1, 0)).is_none());
    let mut second = queued(enter(&gate, 1, 1));
    assert_eq!(enter(&gate, 1, 1).err(), Some(Full));
    assert!((&mut second).now_or_never().is_none());
    drop(first);
    let second = second.now_or_never().unwrap().unwrap();
    assert_eq!(enter(&gate, 1, 0).err(), Some(Full));
    drop(second);
    assert!(gate.try_enter(bounds(1, 0)).is_some());
    assert_eq!(gate.state.load(Ordering::SeqCst), 0);
}

#[test]
fn each_release_admits_one_waiter_before_any_is_polled() {
    let gate = Arc::new(Gate::default());
    let held = [inside(enter(&gate, 2, 8)), inside(enter(&gate, 2, 8))];
    let waiting = [queued(enter(&gate, 2, 8)), queued(enter(&gate, 2, 8)), queued(enter(&gate, 2, 8))];
    drop(held);
    let [first, second, mut third] = waiting;
    let first = first.now_or_never().expect("the first release").unwrap();
    let _second = second.now_or_never().expect("the second release").unwrap();
    assert!((&mut third).now_or_never().is_none());
    drop(first);
    assert!(third.now_or_never().expect("the third release").is_ok());
}

#[test]
fn no_newcomer_overtakes_a_waiter() {
    let gate = Arc::new(Gate::default());
    let first = inside(enter(&gate, 1, 8));
    let waiting = queued(enter(&gate, 1, 8));
    drop(first);
    assert!(gate.try_enter(bounds(1, 0)).is_none(), "the permit belongs to the waiter even before it is polled");
    drop(waiting.now_or_never().unwrap());
    assert!(gate.try_enter(bounds(1, 0)).is_some());
}

#[test]
fn a_dropped_waiter_passes_its_permit_to_the_next() {
    let gate = Arc::new(Gate::default());
    let first = inside(enter(&gate, 1, 2));
    let gone = queued(enter(&gate, 1, 2));
    let next = queued(enter(&gate, 1, 2));
    drop(gone);
    let last = queued(enter(&gate, 1, 2));
    drop(first);
    drop(next);
    let last = last.now_or_never().expect("a permit that arrived too late is passed on").unwrap();
    drop(last);
    assert_eq!(gate.state.load(Ordering::SeqCst), 0);
}

#[test]
fn callers_are_served_round_robin_and_each_in_fifo_order() {
    let gate = Arc::new(Gate::default());
    let mut holder = inside(enter(&gate, 1, 8));
    let names = ["a", "a", "a", "b", "c", "b"];
    let mut waiting: Vec<_> =
        names.iter().map(|name| Some(queued(gate.enter_or_queue(bounds(1, 8), &caller(name))))).collect();
    let mut order = Vec::new();
    for _ in 0..waiting.len() {
        drop(holder);
        let (at, permit) = waiting
            .iter_mut()
            .enumerate()
            .find_map(|(at, waiter)| Some((at, waiter.as_mut()?.now_or_never()?.unwrap())))
            .expect("a release admits one");
        waiting[at] = None;
        order.push(at);
        holder = permit;
    }
    assert_eq!(order, [0, 3, 4, 1, 5, 2]);
}

#[test]
fn a_caller_that_fills_the_queue_loses_its_last_request_to_another() {
    let gate = Arc::new(Gate::default());
    let first = inside(enter(&gate, 1, 3));
    let mut greedy: Vec<_> = (0..3).map(|_| queued(enter(&gate, 1, 3))).collect();
    assert_eq!(enter(&gate, 1, 3).err(), Some(Full), "its own request evicts none");
    let other = queued(gate.enter_or_queue(bounds(1, 3), &caller("b")));
    assert_eq!(
        greedy.pop().unwrap().now_or_never().map(|outcome| outcome.err()),
        Some(Some(Full)),
        "its last request is evicted"
    );
    assert_eq!(gate.enter_or_queue(bounds(1, 3), &caller("b")).err(), Some(Full), "b has as much of the queue as a");
    drop(first);
    let first = greedy.remove(0).now_or_never().unwrap().unwrap();
    drop(first);
    assert!(other.now_or_never().unwrap().is_ok());
}

#[test]
fn changed_bounds_apply_from_the_next_request_on() {
    let gate = Arc::new(Gate::default());
    let held = [inside(enter(&gate, 2, 8)), inside(enter(&gate, 2, 8))];
    let mut waiting = queued(enter(&gate, 2, 8));
    let raised = inside(enter(&gate, 4, 8));
    let waited = (&mut waiting).now_or_never().expect("a raised bound admits the waiter first").unwrap();
    let mut waiting = queued(enter(&gate, 1, 8));
    drop((held, raised));
    assert!((&mut waiting).now_or_never().is_none(), "one is still inside");
    drop(waited);
    assert!(waiting.now_or_never().unwrap().is_ok());
}

/// Takes fairly shared permits as `turn` until it would have to wait.
fn take_all(gate: &Arc<Gate>, permits: usize, turn: &Turn) -> Vec<Permit> {
    std::iter::from_fn(|| gate.enter_now(permits, Sharing::Fair, turn)).collect()
}

#[test]
fn one_caller_cannot_exhaust_the_permits() {
    for (permits, first, second) in [(1, 1, 0), (2, 2, 0), (8, 8, 0), (16, 15, 1), (100, 94, 6), (200, 188, 11)] {
        let gate = Arc::new(Gate::default());
        let greedy = take_all(&gate, permits, &caller("a"));
        assert_eq!(greedy.len(), first, "of {permits}");
        assert_eq!(take_all(&gate, permits, &caller("b")).len(), second, "next to {first} of {permits}");
        // Whichever permit it releases, it gets another one in exchange.
        let mut greedy = std::collections::VecDeque::from(greedy);
        for number in 0..2 * permits {
            drop(greedy.pop_front());
            let again = gate.enter_now(permits, Sharing::Fair, &caller("a"));
            greedy.push_back(again.unwrap_or_else(|| panic!("permit {number} of {permits} again")));
        }
        drop(greedy);
        assert_eq!((gate.state.load(Ordering::SeqCst), gate.lock().held.len()), (0, 0), "all are released");
        assert_eq!(take_all(&gate, permits, &caller("b")).len(), first, "of {permits}");
    }
}

#[test]
fn a_caller_at_its_share_waits_and_others_overtake_it() {
    let gate = Arc::new(Gate::default());
    let bounds = Bounds { permits: 16, queued: 8, sharing: Sharing::Fair };
    let mut greedy = take_all(&gate, 16, &caller("a"));
    let mut waiting = queued(gate.enter_or_queue(bounds, &caller("a")));
    let other = inside(gate.enter_or_queue(bounds, &caller("b")));
    let mut behind = queued(gate.enter_or_queue(bounds, &caller("b")));
    drop(other);
    assert!((&mut waiting).now_or_never().is_none(), "a must not take the last permit");
    let other = (&mut behind).now_or_never().expect("the last permit is for b").unwrap();
    drop(greedy.pop());
    drop(waiting.now_or_never().expect("a may take what it has released").unwrap());
    drop((greedy, other));
    assert_eq!((gate.state.load(Ordering::SeqCst), gate.lock().held.len()), (0, 0));
}

/// Threads like the workers, each with many requests that enter, hold a permit for some polls, leave, or give up.
#[test]
fn no_permit_is_lost_or_granted_twice_under_many_threads() {
    storm(bounds(3, 64));
    storm(Bounds { permits: 16, queued: 64, sharing: Sharing::Fair });
}

fn storm(bounds: Bounds) {
    const ROUNDS: usize = 2_000;
    let (gate, tasks) = (Arc::new(Gate::default()), Tasks::default());
    let (inside, most, over) =
        (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let (gate, inside, most, over) = (gate.clone(), inside.clone(), most.clone(), over.clone());
            let body = move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
                runtime.block_on(join_all((0..8).map(|number| {
                    let (gate, inside, most, over) = (gate.clone(), inside.clone(), most.clone(), over.clone());
                    let mut random = fastrand::Rng::with_seed(thread * 100 + number);
                    async move {
                        let turn = caller(["a", "b", "c"][random.usize(..3)]);
                        for _ in 0..ROUNDS {
                            let mut entering = std::pin::pin!(gate.enter(bounds, &turn));
                            let mut polls_left = random.usize(..12);
                            let gives_up = random.bool();
                            // Gives up after some polls, or waits for as long as it takes.
                            let entered = poll_fn(|cx| {
                                let polled = entering.as_mut().poll(cx).map(Some);
                                polls_left = polls_left.saturating_sub(usize::from(gives_up));
                                match polled {
                                    Poll::Pending if gives_up && polls_left == 0 => Poll::Ready(None),
                                    Poll::Pending => {
                                        if gives_up {
                                            cx.waker().wake_by_ref();
                                        }
                                        Poll::Pending
                                    }
                                    ready => ready,
                                }
                            });
                            let entered = tokio::time::timeout(Duration::from_secs(30), entered).await;
                            let Some(permit) = entered.expect("no wake-up is lost") else { continue };
                            let permit = permit.expect("the queue is long enough");
                            let now = inside.fetch_add(1, Ordering::SeqCst) + 1;
                            most.fetch_max(now, Ordering::SeqCst);
                            over.fetch_or(now > bounds.permits, Ordering::SeqCst);
                            for _ in 0..random.usize(..3) {
                                tokio::task::yield_now().await;
                            }
                            inside.fetch_sub(1, Ordering::SeqCst);
                            drop(permit);
                        }
                    }
                })));
            };
            tasks.thread(format!("worker-{thread}"), body).unwrap()
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert!(!over.load(Ordering::SeqCst), "never more inside than there are permits");
    if bounds.sharing == Sharing::Unbounded {
        assert_eq!(most.load(Ordering::SeqCst), bounds.permits, "all permits are used");
    }
    assert_eq!(gate.state.load(Ordering::SeqCst), 0, "all permits are released, and no request waits");
    assert!(gate.lock().is_empty());
}
