//! The cause that an attempt is audited with.

use super::*;
use crate::model::connection::Connection;
use crate::model::time::{BootTime, WallTime};
use crate::model::token::AccessToken;
use crate::oauth::Outcome;
use crate::token::moments::Moments;
use crate::token::slot::{Granted, InjectedToken, Trouble};

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
        Moments { usable_until: end, expires: end, refresh_at: end },
    )))
}

fn trouble() -> Option<Trouble> {
    let (outcome, error) = (Outcome::Unavailable, "timeout".to_owned());
    Some(Trouble {
        at: NOW,
        kind: TroubleKind::Retryable,
        outcome,
        error,
        description: None,
        retry_at: NOW,
        failures: 1,
    })
}

#[test]
fn an_attempt_is_caused_by_the_start_the_time_or_a_request() {
    let check = |token, trouble, demanded, expected| {
        assert_eq!(cause(&SlotState { token, trouble, attempts: 0 }, NOW, demanded), expected);
    };
    let (over, usable) = (token(Duration::ZERO), token(Duration::from_secs(1)));
    check(None, None, false, Cause::Start);
    check(None, None, true, Cause::Start);
    check(None, trouble(), false, Cause::Due);
    check(None, trouble(), true, Cause::Demand);
    check(over.clone(), None, true, Cause::Demand);
    check(over, None, false, Cause::Due);
    check(usable, None, true, Cause::Due);
}
