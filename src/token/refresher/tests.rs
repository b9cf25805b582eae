//! The audited cause of an attempt.

use super::*;
use crate::model::connection::Connection;
use crate::model::time::{BootTime, WallTime};
use crate::model::token::AccessToken;
use crate::oauth::Outcome;
use crate::token::deadlines::Deadlines;
use crate::token::slot::{Granted, InjectedToken, LastFailure};

const NOW: Now = Now { boot: BootTime::new(Duration::from_secs(100)), wall: WallTime::from_secs(1_000_000) };

fn token(lifetime: Duration) -> Option<Arc<InjectedToken>> {
    let connection = Connection::sample("crm");
    let granted = Granted { obtained: NOW, scopes: Vec::new(), refresh_token_ends: None };
    let end = NOW.plus(lifetime);
    let (token, origins) = (AccessToken::parse("t").unwrap(), Arc::new(connection.origins()));
    Some(Arc::new(InjectedToken::new(
        1,
        token,
        origins,
        granted,
        Deadlines { usable_until: end, expires: end, refresh_at: end },
    )))
}

fn failure() -> Option<LastFailure> {
    let (outcome, error) = (Outcome::Unavailable, "timeout".to_owned());
    Some(LastFailure {
        at: NOW,
        kind: FailureKind::Retryable,
        outcome,
        error,
        description: None,
        retry_at: NOW,
        failures: 1,
    })
}

#[test]
fn an_attempt_has_start_due_or_demand_as_its_cause() {
    let check = |token, failure, demanded, expected| {
        assert_eq!(cause(&SlotState { token, last_failure: failure, attempts: 0 }, NOW, demanded), expected);
    };
    let (expired, usable) = (token(Duration::ZERO), token(Duration::from_secs(1)));
    check(None, None, false, Cause::Start);
    check(None, None, true, Cause::Start);
    check(None, failure(), false, Cause::Due);
    check(None, failure(), true, Cause::Demand);
    check(expired.clone(), None, true, Cause::Demand);
    check(expired, None, false, Cause::Due);
    check(usable, None, true, Cause::Due);
}
