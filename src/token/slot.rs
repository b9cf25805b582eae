//! One token slot: read by requests, written only by its refresher.
//!
//! Invariants: a failure is stored in addition to the token and never replaces it. Waiting requests and the refresher
//! follow the same [`Decision`], so a spurious wake-up cannot send a token request during a backoff or after a refusal.
//! Not here: when to refresh (`schedule`), what forces a refresh (`forced`), how to acquire a token (`acquire`).
//! Metrics: `keybearer_token_wait_seconds` is observed where requests wait (`proxy::exchange`).

mod command;
mod forced;
mod import;
mod inbox;
mod usage;
mod refresh;
mod revoke;
mod failure;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use http::HeaderValue;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::deadlines::Deadlines;
use crate::clock::{Clock, Now};
use crate::model::connection::OriginSet;
use crate::model::origin::Origin;
use crate::model::secret::Secret;
use crate::model::time::WallTime;
use crate::model::token::{AccessToken, TokenKey};
pub use command::Command;
pub use failure::{Consent, FailureKind, LastFailure, NEEDS_CONSENT_AGAIN, NoToken, needs_consent_again};
use forced::Forced;
pub(super) use forced::RejectionBackoff;
pub use import::{Credential, Import, NotImported};
use inbox::Inbox;
pub use refresh::NotRefreshed;
pub use revoke::{AtServer, NotRevoked, RevocationOutcome, Revoke, Revoked, Sharers};
pub use usage::Usage;
use usage::{UsageCell, WaitEnd};

/// The slot of one token. Reading a usable token costs one atomic load and two comparisons.
#[derive(Debug)]
pub struct TokenSlot {
    pub key: TokenKey,
    /// The caller's token that is exchanged for this slot's token.
    caller_token: Option<Secret>,
    state: ArcSwap<SlotState>,
    changed: watch::Sender<()>,
    demand: Notify,
    forced: Mutex<Forced>,
    inbox: Inbox<Command>,
    /// Meaningful for a subject's token only.
    usage: UsageCell,
    /// Notified when a caller stops waiting.
    waiter_left: Notify,
    /// Set when another replica may have changed the record.
    store_changed: AtomicBool,
    /// Set: the token is no longer refreshed ahead.
    closed: AtomicBool,
    /// Set: the token is no longer refreshed at all.
    ended: AtomicBool,
}

/// A token that may be injected, with its header value prepared.
#[derive(Debug)]
pub struct InjectedToken {
    /// Sequence number of this token within the slot.
    pub generation: u64,
    pub access_token: AccessToken,
    bearer: HeaderValue,
    /// The origins that the token was granted for; it is never sent elsewhere.
    origins: Arc<OriginSet>,
    pub granted: Granted,
    /// The token is not injected at or after this time.
    pub usable_until: Now,
    pub expires: Now,
    /// Time at which a refresh becomes due.
    pub refresh_at: Now,
    /// True: the upstream's acceptance of this token resets the rejection backoff. False in the common case, so that it
    /// takes no lock.
    is_on_trial: AtomicBool,
}

/// Scopes and lifetime that the server granted.
#[derive(Debug)]
pub struct Granted {
    /// When the token request was sent.
    pub obtained: Now,
    pub scopes: Vec<String>,
    /// Expected expiry; `None`: there is no refresh token, or its lifetime is unknown.
    pub refresh_token_ends: Option<WallTime>,
}

/// The slot's value, always replaced in one step.
#[derive(Debug, Clone, Default)]
pub struct SlotState {
    pub token: Option<Arc<InjectedToken>>,
    pub last_failure: Option<LastFailure>,
    /// Finished attempts, successful or not.
    pub attempts: u64,
}

/// How to serve a request: the token, a failure, or a wait for the refresher.
#[derive(Debug)]
pub enum Decision<'a> {
    Serve(&'a Arc<InjectedToken>),
    Fail(&'a LastFailure),
    Acquire,
}

impl InjectedToken {
    pub fn new(
        generation: u64,
        access_token: AccessToken,
        origins: Arc<OriginSet>,
        granted: Granted,
        deadlines: Deadlines,
    ) -> InjectedToken {
        let Deadlines { usable_until, expires, refresh_at } = deadlines;
        let bearer = header_value("Bearer", &access_token);
        let is_on_trial = AtomicBool::new(false);
        InjectedToken {
            generation,
            access_token,
            bearer,
            origins,
            granted,
            usable_until,
            expires,
            refresh_at,
            is_on_trial,
        }
    }

    /// The header value, or `None` if the token was not granted for `origin`.
    pub fn header_for(&self, origin: &Origin, scheme: &str) -> Option<HeaderValue> {
        self.origins.permits(origin).then(|| match scheme {
            "Bearer" => self.bearer.clone(),
            scheme => header_value(scheme, &self.access_token),
        })
    }

    /// The bare token, or `None` if it was not granted for `origin`.
    pub fn text_for(&self, origin: &Origin) -> Option<&str> {
        self.origins.permits(origin).then(|| self.access_token.expose())
    }

    pub fn is_usable(&self, now: Now) -> bool {
        !now.reached(self.usable_until)
    }
}

fn header_value(scheme: &str, token: &AccessToken) -> HeaderValue {
    let space = if scheme.is_empty() { "" } else { " " };
    let text = format!("{scheme}{space}{}", token.expose());
    let mut value = HeaderValue::try_from(text).expect("an RFC 9110 token and visible ASCII make a header value");
    value.set_sensitive(true);
    value
}

impl SlotState {
    pub fn decide(&self, now: Now) -> Decision<'_> {
        if let Some(token) = self.token.as_ref().filter(|token| token.is_usable(now)) {
            return Decision::Serve(token);
        }
        match self.blocking_failure(now) {
            Some(failure) => Decision::Fail(failure),
            None => Decision::Acquire,
        }
    }

    /// The last failure, while its backoff blocks new attempts.
    pub fn blocking_failure(&self, now: Now) -> Option<&LastFailure> {
        self.last_failure.as_ref().filter(|failure| !now.reached(failure.retry_at))
    }

    /// Consecutive failures.
    pub(super) fn failures(&self) -> u32 {
        self.last_failure.as_ref().map_or(0, |failure| failure.failures)
    }

    /// The state's name in API and metrics.
    pub fn name(&self, now: Now) -> &'static str {
        let usable = self.token.as_ref().filter(|token| token.is_usable(now));
        match (usable, &self.last_failure) {
            (Some(token), _) if now.reached(token.refresh_at) => "due",
            (Some(_), _) => "fresh",
            (None, Some(failure)) if failure.consent().is_some() => "reauthorize",
            (None, Some(failure)) if failure.kind.is_permanent() => "misconfigured",
            (None, _) if self.token.is_none() => "starting",
            (None, _) => "expired",
        }
    }
}

impl TokenSlot {
    pub fn new(key: TokenKey, caller_token: Option<Secret>) -> TokenSlot {
        TokenSlot {
            key,
            caller_token,
            state: ArcSwap::default(),
            changed: watch::Sender::new(()),
            demand: Notify::new(),
            forced: Mutex::default(),
            inbox: Inbox::default(),
            usage: UsageCell::in_use(),
            waiter_left: Notify::new(),
            store_changed: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        }
    }

    pub(super) fn caller_token(&self) -> Option<&Secret> {
        self.caller_token.as_ref()
    }

    pub fn state(&self) -> Arc<SlotState> {
        self.state.load_full()
    }

    /// The usable token, if any. This is the hot path.
    pub fn fresh(&self, now: Now) -> Option<Arc<InjectedToken>> {
        let state = self.state.load();
        let token = state.token.as_ref().filter(|token| token.is_usable(now))?;
        self.record_use(token, now);
        Some(token.clone())
    }

    /// Records the use of a subject's token, which is refreshed ahead only while in use.
    fn record_use(&self, token: &InjectedToken, now: Now) {
        if self.key.subject.is_some() && !self.usage.is_in_use() {
            self.usage.record_use();
            if now.reached(token.refresh_at) {
                self.demand.notify_one();
            }
        }
    }

    /// Returns a usable token, waiting for one until `deadline`. Dropping the future does not cancel a request in
    /// flight.
    pub async fn token(&self, clock: &Clock, deadline: Instant) -> Result<Arc<InjectedToken>, NoToken> {
        let _wait_end = WaitEnd(&self.waiter_left);
        let mut changed = self.changed.subscribe();
        loop {
            let now = clock.now();
            match self.state.load_full().decide(now) {
                Decision::Serve(token) => return Ok(token.clone()),
                Decision::Fail(failure) => return Err(failure.no_token(now)),
                Decision::Acquire if self.ended.load(Ordering::SeqCst) => return Err(NoToken::Forgotten),
                Decision::Acquire => {
                    self.usage.record_use();
                    self.demand.notify_one();
                }
            }
            if tokio::time::timeout_at(deadline, changed.changed()).await.is_err() {
                return Err(NoToken::WaitTimeout);
            }
        }
    }

    /// Waits until `count` attempts have finished, successful or not.
    pub async fn wait_for_attempts(&self, count: u64) {
        let mut changed = self.changed.subscribe();
        while self.state.load().attempts < count && changed.changed().await.is_ok() {}
    }

    /// Stops refreshing ahead. Requests in progress can still read the token, or get the token they wait for.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        // Dropping the command notifies its sender.
        drop(self.take_command());
        self.changed.send_replace(());
        self.demand.notify_one();
        self.waiter_left.notify_one();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Ends the slot: no request gets a new token, and waiting requests fail.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        self.close();
    }

    /// Clears the last failure and retries at once, because its cause may be gone.
    pub(super) fn clear_failure(&self) {
        self.state.rcu(|state| SlotState { last_failure: None, ..(**state).clone() });
        self.demand.notify_one();
    }

    /// Records that another replica may have changed the record, and wakes the refresher.
    pub(super) fn record_store_change(&self) {
        self.store_changed.store(true, Ordering::SeqCst);
        self.demand.notify_one();
    }

    /// For the refresher: returns and clears the recorded change.
    pub(super) fn take_store_change(&self) -> bool {
        self.store_changed.swap(false, Ordering::SeqCst)
    }

    /// For the refresher, while it waits for the lease: returns when the store has changed or a command is pending.
    pub(super) async fn interrupted(&self) {
        let is_interrupted = || self.store_changed.load(Ordering::SeqCst) || self.has_command();
        while !is_interrupted() {
            self.wait_for_demand().await;
        }
    }

    /// For the refresher: returns on the next wake-up, by a request or by another component.
    pub(super) async fn wait_for_demand(&self) {
        self.demand.notified().await;
    }

    /// For the refresher only: replaces the state after an attempt, then wakes all waiting requests.
    pub(super) fn publish(&self, token: Option<Arc<InjectedToken>>, last_failure: Option<LastFailure>) {
        {
            let mut forced = self.force();
            forced.end();
            if let Some(token) = token.as_ref().filter(|_| forced.is_growing()) {
                token.is_on_trial.store(true, Ordering::Relaxed);
            }
        }
        self.usage.settle();
        let attempts = self.state.load().attempts + 1;
        self.state.store(Arc::new(SlotState { token, last_failure, attempts }));
        self.changed.send_replace(());
    }
}
