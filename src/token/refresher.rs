//! The task of one slot: wait, acquire, publish, repeat. It alone writes the slot.
//!
//! Metrics: `keybearer_token_expiry_timestamp_seconds`.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;

use super::acquire::{AcquireError, Acquirer};
use super::schedule::{self, Step};
use super::slot::{Granted, InjectedToken, SlotState, TokenSlot, Trouble};
use crate::clock::Now;
use crate::model::connection::Connection;
use crate::oauth::Failure;
use crate::store::StoredToken;
use crate::telemetry::audit::Cause;
use crate::telemetry::events::{Event, Events};

const AFTER_PANIC: Duration = Duration::from_secs(10);

pub(super) struct Refresher {
    pub slot: Arc<TokenSlot>,
    pub acquirer: Acquirer,
    pub events: Events,
}

impl Refresher {
    /// Runs until the slot is closed. A slot without a refresher would be dead, so a panic only pauses it.
    pub async fn run(self) {
        while AssertUnwindSafe(self.refresh()).catch_unwind().await.is_err() {
            tokio::time::sleep(AFTER_PANIC).await;
        }
    }

    async fn refresh(&self) {
        let mut demanded = false;
        while !self.slot.is_closed() {
            let (state, now) = (self.slot.state(), self.acquirer.clock.now());
            let forced = self.slot.forced(&state);
            match schedule::next(&state, now, forced.is_some(), fastrand::f64()) {
                Step::Acquire => {
                    let cause = forced.unwrap_or_else(|| cause(&state, now, demanded));
                    self.attempt(&state, &cause).await;
                    demanded = false;
                }
                Step::Wait(span) => demanded = tokio::time::timeout(span, self.slot.demanded()).await.is_ok(),
            }
        }
    }

    async fn attempt(&self, before: &SlotState, cause: &Cause) {
        let current = before.token.as_ref().map(|token| &token.access_token);
        let definition = self.acquirer.definition.load_full();
        match self.acquirer.acquire(&definition, current, cause).await {
            Ok(token) => self.succeed(before, &definition.connection, token),
            // What failed is no longer the definition: the present one has yet to be tried.
            Err(_) if !Arc::ptr_eq(&definition, &self.acquirer.definition.load()) => {}
            Err(error) => self.fail(before, &definition.connection, error),
        }
    }

    fn succeed(&self, before: &SlotState, connection: &Connection, stored: StoredToken) {
        let mut moments = schedule::moments(stored.obtained, stored.lifetime, &connection.lifetimes, fastrand::f64());
        let same = before.token.as_ref().filter(|token| token.access_token == stored.access_token);
        if same.is_some() {
            // The server hands out one token until it expires: asking early again would bring the same.
            moments.refresh_at = moments.refresh_at.later(moments.usable_until);
        }
        let last = before.token.as_ref().map_or(0, |token| token.generation);
        let generation = if same.is_some() { last } else { last + 1 };
        let key = &self.slot.key;
        let expiry =
            self.acquirer.metrics.token_expiry.with_label_values(&[key.connection.as_str(), key.profile.as_str()]);
        expiry.set(moments.expires.wall.as_secs_f64());
        tracing::info!(connection = %key.connection, profile = %key.profile, lifetime_s = stored.lifetime.as_secs_f64(),
            generation, "token obtained");
        let times = (moments.usable_until, moments.expires, moments.refresh_at);
        let scopes = stored.scopes.unwrap_or_else(|| connection.scopes.clone());
        let granted = Granted { obtained: stored.obtained, scopes };
        let token = InjectedToken::new(generation, stored.access_token, stored.origins, granted, times);
        self.slot.publish(Some(Arc::new(token)), None);
        let event = Event::TokenObtained { key: key.clone(), expires: moments.expires.wall };
        self.events.tell(self.acquirer.clock.now().wall, event);
    }

    fn fail(&self, before: &SlotState, connection: &Connection, error: AcquireError) {
        let outcome = match &error {
            AcquireError::Server(failure) => failure.outcome().as_str(),
            AcquireError::Store(_) => "unavailable",
        };
        let (permanent, error, description, retry_after) = match error {
            AcquireError::Server(Failure::Retryable { reason, retry_after, detail }) => {
                (false, reason.to_string(), detail, retry_after)
            }
            AcquireError::Server(Failure::Permanent(refusal)) => (true, refusal.error, refusal.description, None),
            AcquireError::Store(error) => (false, error.to_string(), None, None),
        };
        let failures = before.trouble.as_ref().map_or(0, |trouble| trouble.failures).saturating_add(1);
        let pause = schedule::pause(permanent, failures, retry_after, fastrand::f64());
        let now = self.acquirer.clock.now();
        let key = &self.slot.key;
        let still_usable = before.token.as_ref().is_some_and(|token| token.is_usable(now));
        tracing::warn!(connection = %key.connection, profile = %key.profile, error, description,
            permanent, still_usable, next_try_in_s = pause.as_secs(), endpoint = %connection.token_url,
            "no new token");
        let retry_at = now.plus(pause);
        let event = Event::TokenFailed { key: key.clone(), outcome, error: error.clone(), retry: retry_at.wall };
        let trouble = Trouble { at: now, permanent, outcome, error, description, retry_at, failures };
        self.slot.publish(before.token.clone(), Some(trouble));
        self.events.tell(now.wall, event);
    }
}

/// What asks for the next token where nobody forces it.
fn cause(state: &SlotState, now: Now, demanded: bool) -> Cause {
    match &state.token {
        None if state.trouble.is_none() => Cause::Start,
        token if demanded && !token.as_ref().is_some_and(|token| token.is_usable(now)) => Cause::Demand,
        _ => Cause::Due,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::token::AccessToken;

    const NOW: Now = Now { boot: Duration::from_secs(100), wall: Duration::from_secs(1_000_000) };

    fn token(lifetime: Duration) -> Option<Arc<InjectedToken>> {
        let connection = Connection::sample("crm");
        let granted = Granted { obtained: NOW, scopes: Vec::new() };
        let end = NOW.plus(lifetime);
        let (token, origins) = (AccessToken::parse("t").unwrap(), Arc::new(connection.origins()));
        Some(Arc::new(InjectedToken::new(1, token, origins, granted, (end, end, end))))
    }

    fn trouble() -> Option<Trouble> {
        let (outcome, error) = ("unavailable", "timeout".to_owned());
        Some(Trouble { at: NOW, permanent: false, outcome, error, description: None, retry_at: NOW, failures: 1 })
    }

    #[test]
    fn what_asks_is_the_start_the_time_or_a_request() {
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
}
