//! Tables of decisions.

use std::sync::Arc;

use super::*;
use crate::model::connection::Grant;
use crate::model::secret::Secret;
use crate::model::time::WallTime;
use crate::store::RefreshLife;
use crate::telemetry::audit::Person;

const NOW: Now = Now { boot: BootTime::new(Duration::from_secs(10_000)), wall: WallTime::from_secs(1_800_000_000) };
const SECOND: Duration = Duration::from_secs(1);

/// Input of one decision; each test changes some of it.
#[derive(Clone)]
struct Case {
    connection: Connection,
    record: Option<StoredToken>,
    in_use: Option<AccessToken>,
    cause: Cause,
    store_fault_age: Option<Duration>,
    shared: bool,
    lease: LeaseState,
}

/// The term of a lease is 15 s: the timeout of `Connection::sample`, 10 s, and [`LEASE_MARGIN`].
fn case(grant: Grant, record: Option<StoredToken>) -> Case {
    let connection = Connection { grant, ..Connection::sample("crm") };
    let in_use = AccessToken::parse("in-use");
    let lease = LeaseState { in_doubt: false, rejected_elsewhere: None, rounds_left: 3 };
    Case { connection, record, in_use, cause: Cause::Due, store_fault_age: None, shared: true, lease }
}

fn person() -> Grant {
    Grant::AuthorizationCode
}

fn machine() -> Grant {
    Grant::Password { username: "ann".to_owned(), password: Secret::new("x") }
}

fn by_person() -> Cause {
    Cause::Person(Person { user: None, from: None })
}

/// A token with a lifetime of one minute that stays usable for `left`.
fn record(access: &str, left: Duration, refresh: store::Refresh) -> Option<StoredToken> {
    let connection = Connection::sample("crm");
    let age = 55 * SECOND - left;
    Some(StoredToken {
        identity: connection.identity(),
        origins: Arc::new(connection.origins()),
        access_token: AccessToken::parse(access).unwrap(),
        obtained: Now { boot: NOW.boot - age, wall: NOW.wall - age },
        lifetime: 60 * SECOND,
        scopes: None,
        refresh,
        refresh_life: RefreshLife::default(),
        version: 7,
    })
}

fn usable() -> Option<StoredToken> {
    record("in-use", 20 * SECOND, rotating())
}

fn expired() -> Option<StoredToken> {
    record("in-use", Duration::ZERO, rotating())
}

fn rotating() -> store::Refresh {
    store::Refresh::Token(RefreshToken::parse("r").unwrap())
}

fn refused() -> store::Refresh {
    store::Refresh::Refused { error: "invalid_grant".to_owned() }
}

impl Case {
    fn plan_input(&self) -> PlanInput<'_> {
        PlanInput {
            connection: &self.connection,
            cause: &self.cause,
            in_use: self.in_use.as_ref(),
            record: self.record.as_ref(),
            store_fault_age: self.store_fault_age,
            shared: self.shared,
        }
    }

    fn store_fault_ago(self, age: Duration) -> Case {
        Case { store_fault_age: Some(age), ..self }
    }

    fn by(self, cause: Cause) -> Case {
        Case { cause, ..self }
    }

    fn alone(self) -> Case {
        Case { shared: false, ..self }
    }

    fn lease(self, change: impl FnOnce(&mut LeaseState)) -> Case {
        let mut lease = self.lease;
        change(&mut lease);
        Case { lease, ..self }
    }
}

/// An error in brief.
fn stop(error: &AcquireError) -> String {
    match error {
        AcquireError::Recovering(span) => format!("recovering {}", span.as_secs()),
        AcquireError::InDoubt => "in doubt".to_owned(),
        AcquireError::RejectedElsewhere(_) => "rejected elsewhere".to_owned(),
        AcquireError::ConsentNeeded { consent, error } => format!("consent {consent:?} {error}"),
        other => format!("{other:?}"),
    }
}

fn request(request: &Request<'_>) -> String {
    match request {
        Request::Grant => "grant".to_owned(),
        Request::Refresh(Refresh { sent_before: None, .. }) => "refresh".to_owned(),
        Request::Refresh(Refresh { sent_before: Some(deadline), .. }) => {
            format!("refresh within {}", deadline.since(NOW.boot).as_secs())
        }
    }
}

#[track_caller]
fn check_lease(case: &Case, expected: &str) {
    let decided = match decide_lease(&case.plan_input(), NOW) {
        LeaseDecision::Adopt(_) => "adopt".to_owned(),
        LeaseDecision::TakeLease => "lease".to_owned(),
        LeaseDecision::TakeLeaseUnlessInDoubt => "lease unless in doubt".to_owned(),
        LeaseDecision::Stop(error) => stop(&error),
    };
    assert_eq!(decided, expected);
}

#[track_caller]
fn check(case: &Case, expected: &str) {
    let decided = match decide(&case.plan_input(), &case.lease, NOW) {
        Plan::Adopt(_) => "adopt".to_owned(),
        Plan::Request(of) => request(&of),
        Plan::Pause(span) => format!("pause {}", span.as_secs()),
        Plan::Stop(error) => stop(&error),
    };
    assert_eq!(decided, expected);
}

#[track_caller]
fn check_offline(case: &Case, expected: &str) {
    let decided = match decide_offline(&case.plan_input(), NOW) {
        Offline::Adopt(_) => "adopt".to_owned(),
        Offline::Request(of) => request(&of),
        Offline::Stop => "stop".to_owned(),
    };
    assert_eq!(decided, expected);
}

#[test]
fn a_usable_token_of_another_replica_is_adopted_without_a_token_request() {
    for grant in [person(), machine()] {
        let other = || case(grant.clone(), record("other", SECOND, refused())).store_fault_ago(SECOND);
        check_lease(&other(), "adopt");
        check(&other().lease(|lease| lease.in_doubt = true), "adopt");
        check_offline(&other(), "adopt");
        let first = Case { in_use: None, ..other() };
        check_lease(&first, "adopt");
        check_lease(&Case { record: record("other", Duration::ZERO, rotating()), ..first }, "lease");
    }
}

#[test]
fn consent_is_needed_without_a_refresh_token() {
    for (record, expected) in [
        (None, "consent First consent_required"),
        (record("in-use", SECOND, store::Refresh::None), "consent First consent_required"),
        (record("in-use", SECOND, refused()), "consent Again invalid_grant"),
    ] {
        let case = |grant| case(grant, record.clone()).store_fault_ago(SECOND);
        check_lease(&case(person()), expected);
        check(&case(person()), expected);
        check_offline(&case(person()), "stop");
        check_lease(&case(machine()), "lease");
        check(&case(machine()), "grant");
        check_offline(&case(machine()), "grant");
    }
}

#[test]
fn a_replica_with_a_usable_token_does_not_queue_for_the_lease_during_a_recovery_or_in_doubt() {
    check_lease(&case(person(), usable()), "lease unless in doubt");
    check_lease(&case(person(), usable()).by(by_person()), "lease");
    check_lease(&case(person(), usable()).store_fault_ago(SECOND), "recovering 20");
    check_lease(&case(person(), usable()).store_fault_ago(25 * SECOND), "recovering 5");
    check_lease(&case(person(), usable()).store_fault_ago(30 * SECOND), "lease unless in doubt");
    check_lease(&case(person(), usable()).store_fault_ago(SECOND).by(by_person()), "recovering 20");
    check_lease(&case(person(), usable()).store_fault_ago(SECOND).alone(), "lease");
    check_lease(&case(person(), expired()).store_fault_ago(SECOND), "lease");
    check_lease(&case(machine(), usable()).store_fault_ago(SECOND), "lease");
}

#[test]
fn a_refresh_is_sent_within_the_lease_and_the_lifetime_of_the_current_token() {
    check(&case(person(), usable()), "refresh within 10");
    check(&case(machine(), usable()), "refresh within 10");
    check(&case(person(), record("in-use", 12 * SECOND, rotating())), "refresh within 5");
    check(&case(person(), expired()), "refresh within 5");
    check(&case(person(), usable()).alone(), "refresh");
}

#[test]
fn a_refresh_waits_after_a_store_fault() {
    check(&case(person(), usable()).store_fault_ago(SECOND), "recovering 20");
    check(&case(person(), usable()).store_fault_ago(29 * SECOND), "recovering 1");
    check(&case(person(), usable()).store_fault_ago(30 * SECOND), "refresh within 10");
    check(&case(person(), usable()).store_fault_ago(SECOND).by(by_person()), "recovering 20");
    check(&case(person(), expired()).store_fault_ago(SECOND), "pause 2");
    check(&case(person(), expired()).store_fault_ago(3 * SECOND), "refresh within 5");
    check(&case(machine(), usable()).store_fault_ago(SECOND), "grant");
    check(&case(machine(), expired()).store_fault_ago(SECOND), "grant");
}

#[test]
fn a_refresh_token_in_doubt_waits_until_the_current_token_expires_or_a_person_acts() {
    let doubtful = |grant, record| case(grant, record).lease(|lease| lease.in_doubt = true);
    check(&doubtful(person(), usable()), "in doubt");
    check(&doubtful(person(), usable()).by(by_person()), "refresh within 10");
    check(&doubtful(person(), expired()), "refresh within 5");
    check(&doubtful(machine(), usable()), "grant");
    check(&doubtful(machine(), expired()), "grant");
}

#[test]
fn a_rejection_elsewhere_stops_an_attempt_unless_there_is_a_newer_token() {
    let backoff = RejectionBackoff { rejections: 1, wait: SECOND };
    let rejected = |record| case(person(), record).lease(|lease| lease.rejected_elsewhere = Some(backoff));
    check(&rejected(usable()), "rejected elsewhere");
    check(&rejected(None), "rejected elsewhere");
    check(&rejected(record("other", SECOND, rotating())), "adopt");
}

#[test]
fn the_last_round_sends_no_refresh() {
    let last = |grant, record| case(grant, record).lease(|lease| lease.rounds_left = 0);
    check(&last(person(), usable()), "recovering 1");
    check(&last(person(), expired()).store_fault_ago(SECOND), "recovering 1");
    check(&last(machine(), usable()), "grant");
    check(&last(person(), record("other", SECOND, rotating())), "adopt");
    check(&last(person(), None), "consent First consent_required");
}

#[test]
fn offline_only_a_refresh_token_that_does_not_rotate_is_sent() {
    let lasting = |record: Option<StoredToken>| {
        let obtained = record.as_ref().unwrap().obtained.wall;
        let refresh_life = RefreshLife { since: Some(obtained - SECOND), stated: None };
        record.map(|record| StoredToken { refresh_life, ..record })
    };
    check_offline(&case(person(), lasting(usable())), "refresh");
    check_offline(&case(machine(), lasting(expired())), "refresh");
    check_offline(&case(person(), usable()), "stop");
    check_offline(&case(machine(), usable()), "grant");
}
