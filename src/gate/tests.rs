//! A gate as its waiters see it, alone and under many threads.

use std::future::poll_fn;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;

use super::*;
use crate::tasks::Tasks;

const fn bounds(places: usize, queued: usize) -> Bounds {
    Bounds { places, queued, sharing: Sharing::Unbounded }
}

fn caller(name: &str) -> Turn {
    Turn::Caller(Name::parse(name).unwrap())
}

fn enter(gate: &Arc<Gate>, places: usize, queued: usize) -> Result<Entered, Full> {
    gate.enter_or_queue(bounds(places, queued), &caller("a"))
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
fn places_and_queue_are_bounded() {
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
fn each_release_lets_one_in_though_nobody_has_looked_yet() {
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
fn nobody_overtakes_those_who_wait() {
    let gate = Arc::new(Gate::default());
    let first = inside(enter(&gate, 1, 8));
    let waiting = queued(enter(&gate, 1, 8));
    drop(first);
    assert!(gate.try_enter(bounds(1, 0)).is_none(), "the place is the waiter's, though it has not looked yet");
    drop(waiting.now_or_never().unwrap());
    assert!(gate.try_enter(bounds(1, 0)).is_some());
}

#[test]
fn who_leaves_the_queue_leaves_its_place_to_the_next() {
    let gate = Arc::new(Gate::default());
    let first = inside(enter(&gate, 1, 2));
    let gone = queued(enter(&gate, 1, 2));
    let next = queued(enter(&gate, 1, 2));
    drop(gone);
    let last = queued(enter(&gate, 1, 2));
    drop(first);
    drop(next);
    let last = last.now_or_never().expect("a place that came too late is passed on").unwrap();
    drop(last);
    assert_eq!(gate.state.load(Ordering::SeqCst), 0);
}

#[test]
fn callers_take_turns_and_each_keeps_its_order() {
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
            .expect("a release lets one in");
        waiting[at] = None;
        order.push(at);
        holder = permit;
    }
    assert_eq!(order, [0, 3, 4, 1, 5, 2]);
}

#[test]
fn a_caller_that_fills_the_queue_makes_room_for_the_others() {
    let gate = Arc::new(Gate::default());
    let first = inside(enter(&gate, 1, 3));
    let mut greedy: Vec<_> = (0..3).map(|_| queued(enter(&gate, 1, 3))).collect();
    assert_eq!(enter(&gate, 1, 3).err(), Some(Full), "not for itself");
    let other = queued(gate.enter_or_queue(bounds(1, 3), &caller("b")));
    assert_eq!(greedy.pop().unwrap().now_or_never().map(|place| place.err()), Some(Some(Full)), "its last one");
    assert_eq!(gate.enter_or_queue(bounds(1, 3), &caller("b")).err(), Some(Full), "half of the queue is its own");
    drop(first);
    let first = greedy.remove(0).now_or_never().unwrap().unwrap();
    drop(first);
    assert!(other.now_or_never().unwrap().is_ok());
}

#[test]
fn changed_bounds_hold_from_the_next_request_on() {
    let gate = Arc::new(Gate::default());
    let held = [inside(enter(&gate, 2, 8)), inside(enter(&gate, 2, 8))];
    let mut waiting = queued(enter(&gate, 2, 8));
    let raised = inside(enter(&gate, 4, 8));
    let waited = (&mut waiting).now_or_never().expect("a raised bound lets in who waits, first").unwrap();
    let mut waiting = queued(enter(&gate, 1, 8));
    drop((held, raised));
    assert!((&mut waiting).now_or_never().is_none(), "one is still inside");
    drop(waited);
    assert!(waiting.now_or_never().unwrap().is_ok());
}

/// What `turn` gets of fairly shared places until it must wait.
fn take_all(gate: &Arc<Gate>, places: usize, turn: &Turn) -> Vec<Permit> {
    std::iter::from_fn(|| gate.enter_now(places, Sharing::Fair, turn)).collect()
}

#[test]
fn one_caller_leaves_places_to_others() {
    for (places, first, second) in [(1, 1, 0), (2, 2, 0), (8, 8, 0), (16, 15, 1), (100, 94, 6), (200, 188, 11)] {
        let gate = Arc::new(Gate::default());
        let greedy = take_all(&gate, places, &caller("a"));
        assert_eq!(greedy.len(), first, "of {places}");
        assert_eq!(take_all(&gate, places, &caller("b")).len(), second, "beside {first} of {places}");
        // Whichever of its places it gives back, it gets another one for it.
        let mut greedy = std::collections::VecDeque::from(greedy);
        for number in 0..2 * places {
            drop(greedy.pop_front());
            let again = gate.enter_now(places, Sharing::Fair, &caller("a"));
            greedy.push_back(again.unwrap_or_else(|| panic!("place {number} of {places} again")));
        }
        drop(greedy);
        assert_eq!((gate.state.load(Ordering::SeqCst), gate.lock().held.len()), (0, 0), "all are given back");
        assert_eq!(take_all(&gate, places, &caller("b")).len(), first, "of {places}");
    }
}

#[test]
fn a_caller_at_its_share_waits_and_is_overtaken_by_others() {
    let gate = Arc::new(Gate::default());
    let bounds = Bounds { places: 16, queued: 8, sharing: Sharing::Fair };
    let mut greedy = take_all(&gate, 16, &caller("a"));
    let mut waiting = queued(gate.enter_or_queue(bounds, &caller("a")));
    let other = inside(gate.enter_or_queue(bounds, &caller("b")));
    let mut behind = queued(gate.enter_or_queue(bounds, &caller("b")));
    drop(other);
    assert!((&mut waiting).now_or_never().is_none(), "the last place is not for the first");
    let other = (&mut behind).now_or_never().expect("it is for the second").unwrap();
    drop(greedy.pop());
    drop(waiting.now_or_never().expect("the first may take what it gives back").unwrap());
    drop((greedy, other));
    assert_eq!((gate.state.load(Ordering::SeqCst), gate.lock().held.len()), (0, 0));
}

/// Threads as the workers are, each with many requests that enter, stay for some turns of its loop, leave, or give up.
#[test]
fn no_place_is_lost_or_given_twice_under_many_threads() {
    storm(bounds(3, 64));
    storm(Bounds { places: 16, queued: 64, sharing: Sharing::Fair });
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
                            // Gives up after some turns of the loop, or waits for as long as it takes.
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
                            over.fetch_or(now > bounds.places, Ordering::SeqCst);
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
    assert!(!over.load(Ordering::SeqCst), "never more inside than there are places");
    if bounds.sharing == Sharing::Unbounded {
        assert_eq!(most.load(Ordering::SeqCst), bounds.places, "all places are used");
    }
    assert_eq!(gate.state.load(Ordering::SeqCst), 0, "all places are given back, and nobody waits");
    assert!(gate.lock().is_empty());
}
