//! One token slot: read by requests, written only by its refresher.
//!
//! Invariants: a failure is kept beside the token, never in its place. Waiting requests and the refresher obey the same
//! [`Verdict`], so a leftover wake-up cannot ask the authorization server during a backoff or after a refusal.
//! Not here: when to refresh (`schedule`), what forces a refresh (`forced`), how to acquire a token (`acquire`).
//! Metrics: `keybearer_token_wait_seconds` is observed where requests wait (`proxy::exchange`).

mod command;
mod forced;
mod import;
mod inbox;
mod interest;
mod refresh;
mod revoke;
mod trouble;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use http::HeaderValue;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::moments::Moments;
use crate::clock::{Clock, Now};
use crate::model::connection::OriginSet;
use crate::model::origin::Origin;
use crate::model::secret::Secret;
use crate::model::time::WallTime;
use crate::model::token::{AccessToken, TokenKey};
pub use command::Command;
use forced::Forced;
pub(super) use forced::RejectionPause;
pub use import::{Credential, Import, NotImported};
use inbox::Inbox;
pub use interest::Interest;
use interest::{InterestCell, WaitEnd};
pub use refresh::NotRefreshed;
pub use revoke::{Fate, NotRevoked, Revoke, Revoked, Sharers};
pub use trouble::{Consent, NEEDS_CONSENT_AGAIN, NoToken, Trouble, TroubleKind, needs_consent_again};

/// The cell of one token. Reading a usable token is one atomic load and two comparisons.
#[derive(Debug)]
pub struct TokenSlot {
    pub key: TokenKey,
    /// The caller's own token, which is exchanged for the slot's token.
    caller_token: Option<Secret>,
    state: ArcSwap<SlotState>,
    changed: watch::Sender<()>,
    demand: Notify,
    forced: Mutex<Forced>,
    inbox: Inbox<Command>,
    /// Of a subject's token.
    interest: InterestCell,
    /// A caller has stopped waiting.
    left: Notify,
    /// Another replica may have changed the record.
    store_changed: AtomicBool,
    /// No longer refreshed ahead.
    closed: AtomicBool,
    /// No longer refreshed at all.
    ended: AtomicBool,
}

/// A token that may be injected, in the form in which it is injected.
#[derive(Debug)]
pub struct InjectedToken {
    /// Number of this token among those of the slot.
    pub generation: u64,
    pub access_token: AccessToken,
    bearer: HeaderValue,
    /// The origins that it was granted for; it is sent to no other.
    origins: Arc<OriginSet>,
    pub granted: Granted,
    /// Never injected from here on.
    pub usable_until: Now,
    pub expires: Now,
    /// The next one is due from here on.
    pub refresh_at: Now,
    /// The upstream's acceptance resets the pause between forced refreshes; false in the common case, which then takes no
    /// lock.
    is_on_trial: AtomicBool,
}

/// What the server granted.
#[derive(Debug)]
pub struct Granted {
    /// When the request for it left.
    pub obtained: Now,
    pub scopes: Vec<String>,
    /// `None`: there is no refresh token, or its lifetime is unknown.
    pub refresh_token_ends: Option<WallTime>,
}

/// The slot's value; replaced as a whole.
#[derive(Debug, Clone, Default)]
pub struct SlotState {
    pub token: Option<Arc<InjectedToken>>,
    pub trouble: Option<Trouble>,
    /// Finished attempts, successful or not.
    pub attempts: u64,
}

/// What a request gets, and whether the refresher has to act for it.
#[derive(Debug)]
pub enum Verdict<'a> {
    Serve(&'a Arc<InjectedToken>),
    Fail(&'a Trouble),
    Acquire,
}

impl InjectedToken {
    pub fn new(
        generation: u64,
        access_token: AccessToken,
        origins: Arc<OriginSet>,
        granted: Granted,
        moments: Moments,
    ) -> InjectedToken {
        let Moments { usable_until, expires, refresh_at } = moments;
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

    /// The header value for `origin`, or `None` if the token was not granted for it.
    pub fn header_for(&self, origin: &Origin, scheme: &str) -> Option<HeaderValue> {
        self.origins.permits(origin).then(|| match scheme {
            "Bearer" => self.bearer.clone(),
            scheme => header_value(scheme, &self.access_token),
        })
    }

    /// The token itself for `origin`, or `None` if it was not granted for it.
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
    pub fn verdict(&self, now: Now) -> Verdict<'_> {
        if let Some(token) = self.token.as_ref().filter(|token| token.is_usable(now)) {
            return Verdict::Serve(token);
        }
        match self.blocking_trouble(now) {
            Some(trouble) => Verdict::Fail(trouble),
            None => Verdict::Acquire,
        }
    }

    /// The trouble that lets no attempt begin yet.
    pub fn blocking_trouble(&self, now: Now) -> Option<&Trouble> {
        self.trouble.as_ref().filter(|trouble| !now.reached(trouble.retry_at))
    }

    /// Failures in a row.
    pub(super) fn failures(&self) -> u32 {
        self.trouble.as_ref().map_or(0, |trouble| trouble.failures)
    }

    /// The contract's name of this state.
    pub fn name(&self, now: Now) -> &'static str {
        let usable = self.token.as_ref().filter(|token| token.is_usable(now));
        match (usable, &self.trouble) {
            (Some(token), _) if now.reached(token.refresh_at) => "due",
            (Some(_), _) => "fresh",
            (None, Some(trouble)) if trouble.consent().is_some() => "reauthorize",
            (None, Some(trouble)) if trouble.kind.is_permanent() => "misconfigured",
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
            interest: InterestCell::used(),
            left: Notify::new(),
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

    /// The usable token, if there is one: the hot path.
    pub fn fresh(&self, now: Now) -> Option<Arc<InjectedToken>> {
        let state = self.state.load();
        let token = state.token.as_ref().filter(|token| token.is_usable(now))?;
        self.note_use(token, now);
        Some(token.clone())
    }

    /// A subject's token is refreshed ahead only while it is in use.
    fn note_use(&self, token: &InjectedToken, now: Now) {
        if self.key.subject.is_some() && !self.interest.is_used() {
            self.interest.note_use();
            if now.reached(token.refresh_at) {
                self.demand.notify_one();
            }
        }
    }

    /// A usable token, waiting for one until `deadline`. Dropping this future cancels no request that has left.
    pub async fn token(&self, clock: &Clock, deadline: Instant) -> Result<Arc<InjectedToken>, NoToken> {
        let _wait_end = WaitEnd(&self.left);
        let mut changed = self.changed.subscribe();
        loop {
            let now = clock.now();
            match self.state.load_full().verdict(now) {
                Verdict::Serve(token) => return Ok(token.clone()),
                Verdict::Fail(trouble) => return Err(trouble.no_token(now)),
                Verdict::Acquire if self.ended.load(Ordering::SeqCst) => return Err(NoToken::Forgotten),
                Verdict::Acquire => {
                    self.interest.note_use();
                    self.demand.notify_one();
                }
            }
            if tokio::time::timeout_at(deadline, changed.changed()).await.is_err() {
                return Err(NoToken::WaitTimeout);
            }
        }
    }

    /// Returns after `count` attempts have finished, successful or not.
    pub async fn attempted(&self, count: u64) {
        let mut changed = self.changed.subscribe();
        while self.state.load().attempts < count && changed.changed().await.is_ok() {}
    }

    /// Ends refreshing ahead. Requests that began before still read the token, or get the one that they wait for.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        // Dropping the command reports the end to its sender.
        drop(self.take_command());
        self.changed.send_replace(());
        self.demand.notify_one();
        self.left.notify_one();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Ends the slot: no request gets another token, and those that wait fail.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        self.close();
    }

    /// The cause of the trouble may be gone: tries again without waiting for a backoff to end.
    pub(super) fn clear_trouble(&self) {
        self.state.rcu(|state| SlotState { trouble: None, ..(**state).clone() });
        self.demand.notify_one();
    }

    /// Another replica may have changed the record.
    pub(super) fn note_store_change(&self) {
        self.store_changed.store(true, Ordering::SeqCst);
        self.demand.notify_one();
    }

    /// For the refresher: true once after each noted change.
    pub(super) fn take_store_change(&self) -> bool {
        self.store_changed.swap(false, Ordering::SeqCst)
    }

    /// For the refresher, while it waits for the lease: returns when the store has changed or a command waits.
    pub(super) async fn interrupted(&self) {
        let is_interrupted = || self.store_changed.load(Ordering::SeqCst) || self.has_command();
        while !is_interrupted() {
            self.demanded().await;
        }
    }

    /// For the refresher: returns on the next demand, of a request or of another part.
    pub(super) async fn demanded(&self) {
        self.demand.notified().await;
    }

    /// For the refresher alone: replaces the state after an attempt, then wakes all waiting requests.
    pub(super) fn publish(&self, token: Option<Arc<InjectedToken>>, trouble: Option<Trouble>) {
        {
            let mut forced = self.force();
            forced.end();
            if let Some(token) = token.as_ref().filter(|_| forced.is_growing()) {
                token.is_on_trial.store(true, Ordering::Relaxed);
            }
        }
        self.interest.settle();
        let attempts = self.state.load().attempts + 1;
        self.state.store(Arc::new(SlotState { token, trouble, attempts }));
        self.changed.send_replace(());
    }
}
