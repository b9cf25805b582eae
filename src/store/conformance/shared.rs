//! Conformance tests of stores that several processes use at once.

use super::*;

/// Runs against a shared store, with two handles on it, after [`every_store`].
pub async fn shared_store(one: &dyn Store, other: &dyn Store) {
    a_late_write_fails(one, other).await;
    a_slow_holder_saves_unless_another_has_spent_the_refresh_token(one, other).await;
    a_cancelled_holder_leaves_the_outcome_in_doubt(one, other).await;
    a_removed_record_is_not_written_back(one, other).await;
    a_lost_record_is_restored(one, other).await;
    the_next_holder_sees_a_backoff_until_a_token_is_saved(one, other).await;
    a_change_is_announced_to_the_other_replica(one, other).await;
    changed_definitions_are_announced_to_the_other_replica(one, other).await;
}

fn shared(store: &dyn Store) -> Arc<dyn SharedStore> {
    store.shared().expect("a shared store")
}

async fn a_late_write_fails(one: &dyn Store, other: &dyn Store) {
    let key = key("late", None);
    let late = one.lease(&key, SECOND / 2, SECOND).await.expect("a lease");
    let busy = other.lease(&key, SECOND, SECOND / 10).await.err();
    assert_eq!(busy, Some(StoreError::LeaseTimeout { key: key.clone() }));
    late.renew(Some(0)).await.expect("it is held");

    let next = other.lease(&key, 5 * SECOND, 5 * SECOND).await.expect("the first has expired");
    assert!(next.is_in_doubt(), "its holder may have spent the refresh token");
    let lost = StoreError::LeaseLost { key: key.clone() };
    next.renew(Some(0)).await.expect("it is held");
    assert_eq!(late.renew(Some(0)).await, Err(lost.clone()));
    assert_eq!(one.save(&key, token("late"), &*late).await, Err(lost.clone()));
    let saved_as = other.save(&key, token("next"), &*next).await.expect("it is saved");
    next.release(true).await;
    assert_eq!(one.save(&key, token("late"), &*late).await, Err(lost.clone()), "also after the release");
    assert_eq!(one.forget(&key, &*late).await, Err(lost));
    assert_eq!((saved(one, &key).await.as_deref(), version(one, &key).await), (Some("next"), saved_as));
    drop(late);
    let lease = one.lease(&key, SECOND, SECOND).await.expect("a lease");
    assert!(!lease.is_in_doubt(), "the save has resolved the doubt");
    assert_eq!(lease.replaces(), saved_as);
    lease.release(true).await;
}

/// Waits until a lease has expired. The store expires it on another machine, so there is no event to wait for.
async fn wait_for_expiry(term: Duration) {
    sleep(term * 2).await;
}

async fn a_slow_holder_saves_unless_another_has_spent_the_refresh_token(one: &dyn Store, other: &dyn Store) {
    let key = key("slow", None);
    let first = save(one, &key, "first").await;
    let term = SECOND / 10;
    let late = one.lease(&key, term, SECOND).await.expect("a lease");
    wait_for_expiry(term).await;
    let rescued = one.save(&key, token("rescued"), &*late).await.expect("there is no other holder");
    assert!(rescued > first);
    drop(late);

    let late = one.lease(&key, term, SECOND).await.expect("a lease");
    let lost = StoreError::LeaseLost { key: key.clone() };
    assert_eq!(late.renew(Some(rescued - 1)).await, Err(lost), "the record has another version");
    late.renew(Some(rescued)).await.expect("it is held");
    wait_for_expiry(term).await;
    let next = other.lease(&key, SECOND, SECOND).await.expect("the first has expired");
    assert!(next.is_in_doubt() && shared(other).is_in_doubt(&key).await.expect("the store replies"));
    one.save(&key, token("settled"), &*late).await.expect("the other holder has spent nothing");
    assert!(!shared(other).is_in_doubt(&key).await.expect("the store replies"));
    next.release(true).await;
}

async fn a_cancelled_holder_leaves_the_outcome_in_doubt(one: &dyn Store, other: &dyn Store) {
    let key = key("cancelled", None);
    let present = save(one, &key, "first").await;
    let dropped = one.lease(&key, 30 * SECOND, SECOND).await.expect("a lease");
    dropped.renew(Some(present)).await.expect("it is held");
    drop(dropped);
    let next = other.lease(&key, SECOND, 5 * SECOND).await.expect("dropping it has released it");
    assert!(next.is_in_doubt());
    next.release(true).await;
}

async fn a_removed_record_is_not_written_back(one: &dyn Store, other: &dyn Store) {
    let key = key("removed", None);
    let first = save(one, &key, "first").await;
    assert!(!shared(other).was_removed(&key, first).await.expect("the store replies"));
    let term = SECOND / 10;
    let late = one.lease(&key, term, SECOND).await.expect("a lease");
    late.renew(Some(first)).await.expect("it is held");
    wait_for_expiry(term).await;
    let lease = other.lease(&key, SECOND, SECOND).await.expect("the first has expired");
    other.forget(&key, &*lease).await.expect("it is forgotten");
    lease.release(true).await;
    assert!(shared(one).was_removed(&key, first).await.expect("the store replies"));
    let lost = Err(StoreError::LeaseLost { key: key.clone() });
    assert_eq!(one.save(&key, token("late"), &*late).await, lost);
    drop(late);
    shared(one).restore(&key, StoredToken { version: first, ..token("first") }).await.expect("the store replies");
    assert_eq!(saved(other, &key).await, None);

    let lease = one.lease(&key, SECOND, 5 * SECOND).await.expect("a lease");
    assert!(lease.replaces() > first, "it has the version of the removal");
    assert!(!shared(one).was_removed(&key, lease.replaces()).await.expect("the store replies"));
    let newer = lease.fence().expect("a shared store has fencing tokens").version;
    lease.release(true).await;
    shared(one).restore(&key, StoredToken { version: newer, ..token("newer") }).await.expect("the store replies");
    assert_eq!(saved(other, &key).await.as_deref(), Some("newer"), "lost after the removal");
    save(one, &key, "again").await;
    assert!(!shared(one).was_removed(&key, 0).await.expect("the store replies"), "a save clears the tombstone");
}

async fn a_lost_record_is_restored(one: &dyn Store, other: &dyn Store) {
    let key = key("lost", None);
    let lease = one.lease(&key, SECOND, SECOND).await.expect("a lease");
    let version_lost = lease.fence().expect("a shared store has fencing tokens").version;
    lease.release(true).await;
    let lost = StoredToken { version: version_lost, ..token("lost") };
    shared(one).restore(&key, lost.clone()).await.expect("it is written");
    assert_eq!((saved(other, &key).await.as_deref(), version(other, &key).await), (Some("lost"), version_lost));
    let newer = save(other, &key, "newer").await;
    shared(one).restore(&key, lost).await.expect("the store replies");
    assert_eq!((saved(one, &key).await.as_deref(), version(one, &key).await), (Some("newer"), newer));
}

async fn the_next_holder_sees_a_backoff_until_a_token_is_saved(one: &dyn Store, other: &dyn Store) {
    let key = key("put-off", None);
    let error = "invalid_client".to_owned();
    let announced = AnnouncedBackoff { wait: 30 * SECOND, age: Duration::ZERO, permanent: true, failures: 3, error };
    let lease = one.lease(&key, SECOND, SECOND).await.expect("a lease");
    assert_eq!(lease.backoff(), None);
    lease.announce_backoff(&announced).await.expect("it is announced");
    lease.release(true).await;
    let lease = other.lease(&key, SECOND, SECOND).await.expect("a lease");
    let found = lease.backoff().expect("a backoff").clone();
    assert!((25 * SECOND..=30 * SECOND).contains(&found.wait) && found.age < 5 * SECOND, "{found:?}");
    assert_eq!(AnnouncedBackoff { wait: announced.wait, age: announced.age, ..found }, announced);
    other.save(&key, token("t"), &*lease).await.expect("it is saved");
    lease.release(true).await;
    let lease = one.lease(&key, SECOND, SECOND).await.expect("a lease");
    assert_eq!(lease.backoff(), None, "a saved token ends the backoff");
    lease.release(true).await;
}

async fn a_change_is_announced_to_the_other_replica(one: &dyn Store, other: &dyn Store) {
    shared(other).check_reachable().await.expect("it is reachable");
    let mut notifications = shared(other).subscribe();
    let (own, changed) = (key("own", None), key("changed", Some("ann")));
    let announced = async {
        loop {
            // A slow subscription reports `Missed` first.
            save(other, &own, "own").await;
            save(one, &changed, "changed").await;
            match timeout(SECOND, notifications.recv()).await {
                Ok(Ok(Notification::Missed)) | Err(_) => {}
                Ok(found) => return found,
            }
        }
    };
    assert_eq!(timeout(10 * SECOND, announced).await.expect("in time"), Ok(Notification::Changed(changed)));
}

async fn changed_definitions_are_announced_to_the_other_replica(one: &dyn Store, other: &dyn Store) {
    let mut notifications = shared(other).subscribe();
    // A replica is not notified of its own changes.
    change(other, put(&[("own", "text")])).await;
    let next = change(one, put(&[("announced", "text")])).await;
    let announced = async {
        loop {
            match notifications.recv().await {
                Ok(Notification::Definitions) => return,
                Ok(Notification::Changed(_) | Notification::Missed) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    timeout(SECOND, announced).await.expect("within a second");
    assert_eq!(other.catalog().await, Ok(next));
    while let Ok(more) = timeout(SECOND / 10, notifications.recv()).await {
        assert_ne!(more, Ok(Notification::Definitions), "its own change was announced, too");
    }
}
