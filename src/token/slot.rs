//! One token slot: what requests may read and only the refresher may write.
//!
//! Not here: when to refresh (`schedule`), what forces a refresh (`forced`), how to get a token (`acquire`).
//! Holds: a failure stands beside the token, never in its place. Waiting requests and the refresher obey the same
//! [`Verdict`], so a leftover wake-up cannot ask the authorization server through a back-off or a refusal.
//! Metrics: `keybearer_token_wait_seconds` is observed by whoever waits here (`proxy::exchange`).

mod forced;
mod import;
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

use crate::clock::{Clock, Now};
use crate::model::connection::OriginSet;
use crate::model::origin::Origin;
use crate::model::secret::Secret;
use crate::model::time::WallTime;
use crate::model::token::{AccessToken, TokenKey};
use forced::Forced;
pub(super) use forced::RejectionPause;
use import::Desk;
pub use import::{Errand, Handed, Import, NotImported};
pub use interest::Interest;
use interest::{InterestCell, Leaves};
pub use refresh::NotRefreshed;
pub use revoke::{Fate, NotRevoked, Revoke, Revoked, Sharers};
pub use trouble::{Consent, NEEDS_CONSENT_AGAIN, NoToken, Trouble, needs_consent_again};

/// The cell of one token. Reading a usable token is one atomic load and two comparisons.
#[derive(Debug)]
pub struct TokenSlot {
    pub key: TokenKey,
    /// What is exchanged for the slot's token.
    caller_token: Option<Secret>,
    state: ArcSwap<SlotState>,
    changed: watch::Sender<()>,
    demand: Notify,
    forced: Mutex<Forced>,
    desk: Desk,
    /// In a subject's token.
    interest: InterestCell,
    /// A caller has stopped waiting.
    left: Notify,
    /// The store may have something newer.
    stale: AtomicBool,
    closed: AtomicBool,
    over: AtomicBool,
}

/// A token that may be injected, in the form in which it is injected.
#[derive(Debug)]
pub struct InjectedToken {
    /// Counts the different tokens of this slot.
    pub generation: u64,
    pub access_token: AccessToken,
    bearer: HeaderValue,
    /// Where it may go: the origins that it was granted for.
    origins: Arc<OriginSet>,
    pub granted: Granted,
    /// Never injected from here on.
    pub usable_until: Now,
    pub expires: Now,
    /// The next one is asked for from here on.
    pub refresh_at: Now,
    /// Whether a request that the upstream accepts with it is worth a look at `forced`: rarely.
    is_on_trial: AtomicBool,
}

/// What the server granted.
#[derive(Debug)]
pub struct Granted {
    /// When the request that obtained it left.
    pub obtained: Now,
    pub scopes: Vec<String>,
    /// `None`: there is no refresh token, or its lifetime is unknown.
    pub refresh_token_ends: Option<WallTime>,
}

/// What a slot holds at one moment; replaced whole.
#[derive(Debug, Clone, Default)]
pub struct SlotState {
    pub token: Option<Arc<InjectedToken>>,
    pub trouble: Option<Trouble>,
    /// Finished attempts, good or bad.
    pub attempts: u64,
}

/// What a request gets, and whether the refresher has anything to do for it.
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
        (usable_until, expires, refresh_at): (Now, Now, Now),
    ) -> InjectedToken {
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
        match self.standing_trouble(now) {
            Some(trouble) => Verdict::Fail(trouble),
            None => Verdict::Acquire,
        }
    }

    /// The trouble through which nobody may ask yet.
    pub fn standing_trouble(&self, now: Now) -> Option<&Trouble> {
        self.trouble.as_ref().filter(|trouble| !now.reached(trouble.retry_at))
    }

    /// The contract's word for this state of a token.
    pub fn name(&self, now: Now) -> &'static str {
        let usable = self.token.as_ref().filter(|token| token.is_usable(now));
        match (usable, &self.trouble) {
            (Some(token), _) if now.reached(token.refresh_at) => "due",
            (Some(_), _) => "fresh",
            (None, Some(trouble)) if trouble.consent.is_some() => "reauthorize",
            (None, Some(trouble)) if trouble.permanent => "misconfigured",
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
            desk: Desk::default(),
            interest: InterestCell::used(),
            left: Notify::new(),
            stale: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            over: AtomicBool::new(false),
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

    /// A usable token, waiting for one until `deadline`. Going away cancels no request that has left.
    pub async fn token(&self, clock: &Clock, deadline: Instant) -> Result<Arc<InjectedToken>, NoToken> {
        let _leaves = Leaves(&self.left);
        let mut changed = self.changed.subscribe();
        loop {
            let now = clock.now();
            match self.state.load_full().verdict(now) {
                Verdict::Serve(token) => return Ok(token.clone()),
                Verdict::Fail(trouble) => return Err(trouble.no_token(now)),
                Verdict::Acquire if self.over.load(Ordering::SeqCst) => return Err(NoToken::Forgotten),
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

    /// Returns after `count` attempts have finished, good or bad.
    pub async fn attempted(&self, count: u64) {
        let mut changed = self.changed.subscribe();
        while self.state.load().attempts < count && changed.changed().await.is_ok() {}
    }

    /// The end of refreshing ahead. Requests that began before still read what is here, or get what they wait for.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        // Whoever waits for an errand is told by its end.
        drop(self.take_errand());
        self.changed.send_replace(());
        self.demand.notify_one();
        self.left.notify_one();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Nobody gets another token for this slot: whoever waits is told.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
        self.close();
    }

    /// The definition has changed: whatever stood in the way may be gone, so nobody waits for a back-off to end.
    pub(super) fn reconsider(&self) {
        self.state.rcu(|state| SlotState { trouble: None, ..(**state).clone() });
        self.demand.notify_one();
    }

    /// Another process may have changed what the store has.
    pub(super) fn look(&self) {
        self.stale.store(true, Ordering::SeqCst);
        self.demand.notify_one();
    }

    /// For the refresher: was it told to look?
    pub(super) fn take_look(&self) -> bool {
        self.stale.swap(false, Ordering::SeqCst)
    }

    /// For the refresher, while it waits for its turn: returns when there is something to look at, or an errand.
    pub(super) async fn told(&self) {
        let waits = || self.stale.load(Ordering::SeqCst) || self.has_errand();
        while !waits() {
            self.demanded().await;
        }
    }

    /// For the refresher: returns when some request wants an answer.
    pub(super) async fn demanded(&self) {
        self.demand.notified().await;
    }

    /// For the refresher alone: replaces the state after an attempt, then wakes everybody who waits.
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
