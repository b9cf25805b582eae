//! The task of one slot: wait, acquire, publish, repeat. It alone writes the slot.
//!
//! Holds: while the program ends, what is under way is finished and saved, and nothing new is begun.
//! Metrics: `keybearer_token_expiry_timestamp_seconds` (shared tokens).

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::acquire::{AcquireError, Acquirer, STORE_UNAVAILABLE, Seen};
use super::schedule::{self, Failed, Force, Step, Wanted};
use super::slot::{Errand, Granted, Import, InjectedToken, Revoke, SlotState, TokenSlot, Trouble};
use super::subjects::InMemory;
use crate::clock::Now;
use crate::model::connection::Connection;
use crate::model::time::{WallTime, rfc3339};
use crate::model::token::TokenKey;
use crate::oauth::Failure;
use crate::store::{Refresh, RefreshLife, StoreError, StoredToken};
use crate::tasks::{Phase, PhaseWatch};
use crate::telemetry::audit::Cause;
use crate::telemetry::events::{Event, Events};

/// Between reading the configuration and asking for a token a request takes far less.
const LINGER: Duration = Duration::from_secs(2);
/// A refresh token is said to end soon from so long before, or from the last tenth of its life.
const ENDS_SOON: Duration = Duration::from_secs(7 * 24 * 3600);
const AFTER_PANIC: Duration = Duration::from_secs(10);
/// A token that could not be saved is offered again after this long, then half as often each time.
const SAVE_AGAIN: Duration = Duration::from_secs(1);
const SAVE_AGAIN_MAX: Duration = Duration::from_secs(60);
/// The same where another process may spend the same refresh token meanwhile.
const SAVE_AGAIN_SHARED_MAX: Duration = Duration::from_secs(4);
/// A store that others use too is looked into so often, whether or not it tells of changes.
const LOOK_EVERY: Duration = Duration::from_secs(60);

pub(super) struct Refresher {
    pub slot: Arc<TokenSlot>,
    pub acquirer: Acquirer,
    pub events: Events,
    /// A permit for each attempt under way; none is left once the program ends.
    pub under_way: Arc<Semaphore>,
    pub phases: PhaseWatch,
    pub in_memory: InMemory,
}

impl Refresher {
    /// Runs until the slot is closed. A slot without a refresher would be dead, so a panic only pauses it.
    pub async fn run(self) {
        while AssertUnwindSafe(self.refresh()).catch_unwind().await.is_err() {
            tokio::time::sleep(AFTER_PANIC).await;
        }
        self.in_memory.remove(&self.slot);
    }

    async fn refresh(&self) {
        let (mut save_again, mut end, mut ending, mut demanded) = (SAVE_AGAIN, self.phases.clone(), false, false);
        let save_again_max = if self.acquirer.shared { SAVE_AGAIN_SHARED_MAX } else { SAVE_AGAIN_MAX };
        // What a person has revoked is asked for anew only when somebody wants it.
        let mut resting = false;
        let (mut looked, mut unseen) = (Instant::now(), false);
        while !self.slot.is_closed() {
            match self.slot.take_errand() {
                Some(Errand::Import(import)) => {
                    self.import(import).await;
                    resting = false;
                    continue;
                }
                Some(Errand::Revoke(revoke)) => {
                    resting = self.revoke(revoke).await;
                    continue;
                }
                None => {}
            }
            if self.acquirer.shared && (self.slot.take_look() || unseen || looked.elapsed() > LOOK_EVERY) {
                looked = Instant::now();
                let seen = self.look().await;
                unseen = seen.is_err();
                resting = seen.ok().flatten().unwrap_or(resting);
            }
            if resting && !self.slot.is_awaited(self.acquirer.clock.now()) {
                if self.slot.key.subject.is_some() {
                    return self.slot.end();
                }
                tokio::select! {
                    () = self.slot.demanded() => {}
                    () = end.reached(Phase::Drain), if !ending => ending = true,
                }
                continue;
            }
            resting = false;
            let (state, now) = (self.slot.state(), self.acquirer.clock.now());
            let forced = self.slot.forced(&state);
            let wanted = Wanted { force: Force::by(forced.as_ref()), interest: self.slot.interest() };
            let mut step = schedule::next(&state, now, wanted, fastrand::f64());
            if self.acquirer.has_unsaved() {
                // Memory is the only place that has it: it is not given back yet, and looked after more often.
                step = match step {
                    Step::Acquire => Step::Acquire,
                    Step::Wait(span) => Step::Wait(span.min(save_again)),
                    Step::Rest => Step::Wait(save_again),
                };
            }
            if unseen && let Step::Wait(span) = step {
                // The store may have lost what is held here, and somebody else may take what it has for the newest.
                step = Step::Wait(span.min(SAVE_AGAIN_SHARED_MAX));
            }
            match step {
                Step::Acquire => {
                    let cause = forced.unwrap_or_else(|| cause(&state, now, demanded));
                    self.attempt(&state, &cause).await;
                    demanded = false;
                }
                Step::Wait(span) => tokio::select! {
                    () = self.slot.demanded() => demanded = true,
                    () = tokio::time::sleep(span) => demanded = false,
                    () = end.reached(Phase::Drain), if !ending => ending = true,
                },
                Step::Rest => return self.slot.end(),
            }
            if self.acquirer.has_unsaved() {
                let Ok(_under_way) = self.under_way.acquire().await else { return };
                let saved = self.acquirer.save_again().await;
                save_again = if saved { SAVE_AGAIN } else { (save_again * 2).min(save_again_max) };
            }
        }
        self.serve_the_last().await;
        self.slot.end();
        // It may have left memory to make room: what the store could not take yet is nowhere else.
        while self.acquirer.has_unsaved() {
            tokio::time::sleep(SAVE_AGAIN_SHARED_MAX).await;
            let Ok(_under_way) = self.under_way.acquire().await else { return };
            self.acquirer.save_again().await;
        }
    }

    /// Requests that began under the definition that is gone still get their token by it.
    async fn serve_the_last(&self) {
        let end = tokio::time::Instant::now() + LINGER;
        loop {
            while self.slot.is_awaited(self.acquirer.clock.now()) {
                self.attempt(&self.slot.state(), &Cause::Demand).await;
            }
            if tokio::time::timeout_at(end, self.slot.demanded()).await.is_err() {
                return;
            }
        }
    }

    async fn attempt(&self, before: &SlotState, cause: &Cause) {
        let Ok(_under_way) = self.under_way.acquire().await else { return };
        let current = before.token.as_ref().map(|token| &token.access_token);
        let definition = self.acquirer.definition.load_full();
        match self.acquirer.acquire(&definition, current, cause).await {
            Ok((token, new)) => self.succeed(before, &definition.connection, token, new),
            Err(AcquireError::Interrupted) => {}
            // The server was not asked, and meanwhile a person wants it to be.
            Err(AcquireError::PutOff(_) | AcquireError::InDoubt) if self.slot.is_person_waiting(before, cause) => {}
            Err(AcquireError::RejectedLately(told)) => {
                self.slot.hold_rejections(told, self.acquirer.clock.now());
                self.slot.publish(before.token.clone(), before.trouble.clone());
            }
            // What failed is no longer the definition: the present one has yet to be tried.
            Err(_) if !Arc::ptr_eq(&definition, &self.acquirer.definition.load()) => {}
            Err(error) => self.fail(before, &definition.connection, error),
        }
    }

    async fn import(&self, import: Import) {
        let Ok(_under_way) = self.under_way.acquire().await else { return };
        let definition = self.acquirer.definition.load_full();
        let outcome = match self.acquirer.import(&definition, import.handed, &Cause::Person(import.by)).await {
            Ok(token) => {
                self.succeed(&self.slot.state(), &definition.connection, token, true);
                Ok(())
            }
            Err(error) => {
                let now = self.acquirer.clock.now();
                Err(error.trouble(now, now).no_token(now))
            }
        };
        // Whoever handed it in may have gone.
        let _ = import.reply.send(outcome);
    }

    /// Takes over what another process has done; `Some(true)`: there is nothing left to use, `Some(false)`: there is again.
    async fn look(&self) -> Result<Option<bool>, StoreError> {
        let (definition, state) = (self.acquirer.definition.load_full(), self.slot.state());
        let of_the_store = |trouble: &Trouble| trouble.error == STORE_UNAVAILABLE;
        let waits_for_person = |trouble: &Trouble| trouble.consent.is_some();
        match self.acquirer.look(&definition.connection).await? {
            Seen::Token(token) => {
                self.succeed(&state, &definition.connection, *token, false);
                return Ok(Some(false));
            }
            Seen::Removed if state.token.is_some() => {
                self.forget();
                return Ok(Some(true));
            }
            Seen::Record if state.trouble.as_ref().is_some_and(waits_for_person) => self.slot.reconsider(),
            // It answers again.
            _ if state.trouble.as_ref().is_some_and(of_the_store) => self.slot.reconsider(),
            _ => {}
        }
        Ok(None)
    }

    /// From here on nobody sends the token; the next one is asked for as if there had been none.
    fn forget(&self) {
        self.slot.publish(None, None);
        let key = &self.slot.key;
        if key.subject.is_none() {
            let labels = [key.connection.as_str(), key.profile.as_str()];
            let _ = self.acquirer.metrics.token_expiry.remove_label_values(&labels);
            let _ = self.acquirer.metrics.refresh_token_expiry.remove_label_values(&labels);
        }
    }

    /// True if there is nothing left to use.
    async fn revoke(&self, revoke: Revoke) -> bool {
        let Ok(_under_way) = self.under_way.acquire().await else { return false };
        let definition = self.acquirer.definition.load_full();
        let outcome = self.acquirer.revoke(&definition, &revoke.sharers).await;
        let forgotten = outcome.is_ok();
        if forgotten {
            self.forget();
        }
        // Whoever asked may have gone.
        let _ = revoke.reply.send(outcome.map_err(|error| error.to_string()));
        forgotten
    }

    /// `new`: the server gave it just now.
    fn succeed(&self, before: &SlotState, connection: &Connection, stored: StoredToken, new: bool) {
        let mut moments = schedule::moments(stored.obtained, stored.lifetime, &connection.lifetimes, fastrand::f64());
        let same = before.token.as_ref().filter(|token| token.access_token == stored.access_token);
        if same.is_some_and(|token| token.granted.obtained.wall != stored.obtained.wall) {
            // The server hands out one token until it expires: asking early again would bring the same.
            moments.refresh_at = moments.refresh_at.later(moments.usable_until);
        }
        let last = before.token.as_ref().map_or(0, |token| token.generation);
        let generation = if same.is_some() { last } else { last + 1 };
        let key = &self.slot.key;
        if key.subject.is_none() {
            let labels = [key.connection.as_str(), key.profile.as_str()];
            let expiry = self.acquirer.metrics.token_expiry.with_label_values(&labels);
            expiry.set(moments.expires.wall.as_secs_f64());
        }
        let subject = key.subject.as_ref().map(|subject| subject.as_str());
        tracing::info!(connection = %key.connection, profile = %key.profile, subject,
            lifetime_s = stored.lifetime.as_secs_f64(), generation, "{}", if new { "token obtained" } else { "token read from the store" });
        let times = (moments.usable_until, moments.expires, moments.refresh_at);
        let refresh_token_ends = self.refresh_token_ends(connection, &stored);
        let scopes = stored.scopes.unwrap_or_else(|| connection.scopes.clone());
        if before.token.as_ref().is_none_or(|token| token.granted.scopes != scopes) {
            warn_of_less(key, &connection.scopes, &scopes);
        }
        let granted = Granted { obtained: stored.obtained, scopes, refresh_token_ends };
        let token = InjectedToken::new(generation, stored.access_token, stored.origins, granted, times);
        self.slot.publish(Some(Arc::new(token)), None);
        let event = Event::TokenObtained { key: key.clone(), expires: moments.expires.wall };
        self.events.tell(self.acquirer.clock.now().wall, event);
    }

    /// A forecast: it shows in the gauge, and a warning comes before it.
    fn refresh_token_ends(&self, connection: &Connection, stored: &StoredToken) -> Option<WallTime> {
        let (key, now) = (&self.slot.key, self.acquirer.clock.now().wall);
        let RefreshLife { since, stated } = stored.refresh_life;
        let has_token = matches!(stored.refresh, Refresh::Token(_));
        let life = stated.or(connection.lifetimes.refresh_token).filter(|_| has_token)?;
        let ends = since? + life;
        if key.subject.is_none() {
            let labels = [key.connection.as_str(), key.profile.as_str()];
            self.acquirer.metrics.refresh_token_expiry.with_label_values(&labels).set(ends.as_secs_f64());
        }
        if ends.since(now) < (life / 10).min(ENDS_SOON) {
            let subject = key.subject.as_ref().map(|subject| subject.as_str());
            tracing::warn!(connection = %key.connection, profile = %key.profile, subject, ends = rfc3339(ends),
                "the refresh token ends soon, and the server has given no other one");
        }
        Some(ends)
    }

    fn fail(&self, before: &SlotState, connection: &Connection, error: AcquireError) {
        let now = self.acquirer.clock.now();
        let usable = before.token.as_ref().filter(|token| token.is_usable(now));
        let in_doubt = matches!(error, AcquireError::Server { in_doubt: true, .. } | AcquireError::InDoubt);
        let retry_after = match &error {
            AcquireError::Server { failure: Failure::Retryable { retry_after, .. }, .. } => *retry_after,
            _ => None,
        };
        let failures = match &error {
            AcquireError::PutOff(told) => told.failures,
            _ => before.trouble.as_ref().map_or(0, |trouble| trouble.failures).saturating_add(1),
        };
        let permanent = matches!(&error, AcquireError::Server { failure, .. } if failure.is_permanent());
        let failed = Failed { permanent, failures, retry_after, in_doubt };
        let usable_until = usable.map(|token| token.usable_until);
        let mut retry_at = failed.retry_at(now, usable_until, fastrand::f64());
        match &error {
            AcquireError::Recovering(wait) => retry_at = now.plus(*wait),
            // Whoever has caused the doubt may end it before.
            AcquireError::InDoubt => retry_at = now.plus(now.until(retry_at).min(LOOK_EVERY)),
            AcquireError::PutOff(told) => {
                // Not all at once.
                let told = now.plus(told.wait.mul_f64(1.0 + 0.1 * fastrand::f64()));
                retry_at = usable_until.map_or(told, |end| told.earlier(end));
            }
            _ => {}
        }
        let mut trouble = error.trouble(now, retry_at);
        trouble.failures = failures;
        let key = &self.slot.key;
        let subject = key.subject.as_ref().map(|subject| subject.as_str());
        let next_try_in_s = trouble.consent.is_none().then(|| now.until(trouble.retry_at).as_secs());
        tracing::warn!(connection = %key.connection, profile = %key.profile, subject, error = trouble.error,
            description = trouble.description, permanent = trouble.permanent, in_doubt, still_usable = usable.is_some(),
            next_try_in_s, endpoint = %connection.endpoints.server, "no new token");
        let event = Event::TokenFailed {
            key: key.clone(),
            outcome: trouble.outcome,
            error: trouble.error.clone(),
            retry: trouble.consent.is_none().then_some(trouble.retry_at.wall),
        };
        self.slot.publish(before.token.clone(), Some(trouble));
        self.events.tell(now.wall, event);
    }
}

/// The server may grant less than it was asked for (RFC 6749 §3.3).
fn warn_of_less(key: &TokenKey, asked: &[String], granted: &[String]) {
    let missing: Vec<_> = asked.iter().filter(|scope| !granted.contains(scope)).map(String::as_str).collect();
    if !missing.is_empty() {
        let subject = key.subject.as_ref().map(|subject| subject.as_str());
        tracing::warn!(connection = %key.connection, profile = %key.profile, subject, missing = missing.join(" "),
            "the authorization server has not granted all scopes");
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
    use crate::model::time::BootTime;
    use crate::model::token::AccessToken;

    const NOW: Now = Now { boot: BootTime::new(Duration::from_secs(100)), wall: WallTime::from_secs(1_000_000) };

    fn token(lifetime: Duration) -> Option<Arc<InjectedToken>> {
        let connection = Connection::sample("crm");
        let granted = Granted { obtained: NOW, scopes: Vec::new(), refresh_token_ends: None };
        let end = NOW.plus(lifetime);
        let (token, origins) = (AccessToken::parse("t").unwrap(), Arc::new(connection.origins()));
        Some(Arc::new(InjectedToken::new(1, token, origins, granted, (end, end, end))))
    }

    fn trouble() -> Option<Trouble> {
        let (outcome, error) = ("unavailable", "timeout".to_owned());
        Some(Trouble {
            at: NOW,
            permanent: false,
            consent: None,
            outcome,
            error,
            description: None,
            retry_at: NOW,
            failures: 1,
        })
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
