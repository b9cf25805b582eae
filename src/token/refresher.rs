//! The task of one slot: wait, acquire, publish, repeat. It alone writes the slot.
//!
//! Invariant: while the program ends, an attempt under way is finished and saved, and no new one begins.
//! Not here: when to act (`schedule`), how to acquire (`acquire`), what an outcome does to the slot (`outcome`).

mod outcome;

use std::ops::ControlFlow;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::acquire::{AcquireError, Acquired, Acquirer, Attempt, Poll};
use super::schedule::{self, Force, STORE_POLL_INTERVAL, Step, Wanted};
use super::slot::{Command, Import, Revoke, SlotState, TokenSlot, TroubleKind};
use super::subjects::InMemory;
use crate::clock::Now;
use crate::store::StoreError;
use crate::tasks::{Phase, PhaseWatch};
use crate::telemetry::audit::Cause;
use crate::telemetry::events::Events;

/// Grace period of a closed slot. A request takes far less from reading the configuration to asking for a token.
const GRACE_PERIOD: Duration = Duration::from_secs(2);
const PANIC_PAUSE: Duration = Duration::from_secs(10);
/// First pause before an unsaved token is offered to the store again; it doubles up to a maximum.
const SAVE_RETRY_MIN: Duration = Duration::from_secs(1);
const SAVE_RETRY_MAX: Duration = Duration::from_secs(60);
/// The same maximum in a shared store, where another replica may spend the same refresh token meanwhile.
const SAVE_RETRY_SHARED_MAX: Duration = Duration::from_secs(4);

pub(super) struct Refresher {
    pub slot: Arc<TokenSlot>,
    pub acquirer: Acquirer,
    pub events: Events,
    /// A permit for each attempt under way; none is left once the program ends.
    pub under_way: Arc<Semaphore>,
    pub phases: PhaseWatch,
    pub in_memory: InMemory,
}

/// What the loop remembers from one turn to the next.
struct LoopState {
    /// The token was revoked: the next one is acquired on demand.
    is_dormant: bool,
    /// The last wait ended with a demand.
    is_demanded: bool,
    polled_at: Instant,
    poll_failed: bool,
    save_retry: Duration,
    phases: PhaseWatch,
    is_draining: bool,
}

/// What ended a wait.
enum Wake {
    Demand,
    Timer,
    /// The program begins to drain.
    Drain,
}

/// What a poll of the store did to the slot.
enum Polled {
    Unchanged,
    /// Another replica's token was taken over.
    Updated,
    /// The token was removed on purpose, and is forgotten.
    Removed,
}

impl Refresher {
    /// Runs until the slot is closed. A panic only pauses it, because a slot without a refresher is dead.
    pub async fn run(self) {
        while AssertUnwindSafe(self.refresh()).catch_unwind().await.is_err() {
            tokio::time::sleep(PANIC_PAUSE).await;
        }
        self.in_memory.remove(&self.slot);
    }

    async fn refresh(&self) {
        let mut own = LoopState::new(self.phases.clone());
        while !self.slot.is_closed() {
            if let Some(command) = self.slot.take_command() {
                self.obey(command, &mut own).await;
            } else if self.turn(&mut own).await.is_break() {
                return self.slot.end();
            }
        }
        self.serve_last_callers().await;
        self.slot.end();
        // The slot may have left memory to make room: an unsaved token is nowhere else.
        while self.acquirer.has_unsaved() {
            tokio::time::sleep(SAVE_RETRY_SHARED_MAX).await;
            self.retry_save().await;
        }
    }

    async fn obey(&self, command: Command, own: &mut LoopState) {
        match command {
            Command::Import(import) => {
                self.import(import).await;
                own.is_dormant = false;
            }
            Command::Revoke(revoke) => own.is_dormant = self.revoke(revoke).await,
        }
    }

    /// One turn of the loop: polls the store, then attempts or waits. Breaks if the slot may leave memory.
    async fn turn(&self, own: &mut LoopState) -> ControlFlow<()> {
        self.poll_if_due(own).await;
        if own.is_dormant && !self.slot.is_awaited(self.acquirer.clock.now()) {
            if self.slot.key.subject.is_some() {
                return ControlFlow::Break(());
            }
            self.wait(None, own).await;
            return ControlFlow::Continue(());
        }
        own.is_dormant = false;
        let (state, now) = (self.slot.state(), self.acquirer.clock.now());
        let forced = self.slot.forced(&state);
        match self.next_step(&state, now, forced.as_ref(), own) {
            Step::Acquire => {
                let cause = forced.unwrap_or_else(|| cause(&state, now, own.is_demanded));
                self.attempt(&state, &cause).await;
                own.is_demanded = false;
            }
            Step::Wait(span) => match self.wait(Some(span), own).await {
                Wake::Demand => own.is_demanded = true,
                Wake::Timer => own.is_demanded = false,
                Wake::Drain => {}
            },
            Step::Rest => return ControlFlow::Break(()),
        }
        if self.acquirer.has_unsaved() {
            own.save_retry = match self.retry_save().await {
                true => SAVE_RETRY_MIN,
                false => (own.save_retry * 2).min(self.save_retry_max()),
            };
        }
        ControlFlow::Continue(())
    }

    fn next_step(&self, state: &SlotState, now: Now, forced: Option<&Cause>, own: &LoopState) -> Step {
        let wanted = Wanted { force: Force::by(forced), interest: self.slot.interest() };
        let mut step = schedule::next_step(state, now, wanted, fastrand::f64());
        if self.acquirer.has_unsaved() {
            step = step.awake_within(own.save_retry);
        }
        if own.poll_failed {
            // The store may have lost the record that is held here; until it is written back, another replica may take an
            // older one for the newest.
            step = step.within(SAVE_RETRY_SHARED_MAX);
        }
        step
    }

    /// Waits for a demand, and for `span` at most.
    async fn wait(&self, span: Option<Duration>, own: &mut LoopState) -> Wake {
        let timer = async {
            match span {
                Some(span) => tokio::time::sleep(span).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.slot.demanded() => Wake::Demand,
            () = timer => Wake::Timer,
            () = own.phases.reached(Phase::Drain), if !own.is_draining => {
                own.is_draining = true;
                Wake::Drain
            }
        }
    }

    async fn retry_save(&self) -> bool {
        let Ok(_under_way) = self.under_way.acquire().await else { return false };
        self.acquirer.retry_save().await
    }

    fn save_retry_max(&self) -> Duration {
        if self.acquirer.shared { SAVE_RETRY_SHARED_MAX } else { SAVE_RETRY_MAX }
    }

    /// Requests that began under the replaced definition still get their token by it.
    async fn serve_last_callers(&self) {
        let end = Instant::now() + GRACE_PERIOD;
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
        let in_use = before.token.as_ref().map(|token| &token.access_token);
        let definition = self.acquirer.definition.load_full();
        match self.acquirer.acquire(Attempt { definition: &definition, in_use, cause }).await {
            Ok(acquired) => self.succeed(before, &definition.connection, acquired),
            Err(AcquireError::Interrupted) => {}
            // The server was not asked, and a person has requested meanwhile that it is.
            Err(AcquireError::PutOff(_) | AcquireError::InDoubt) if self.slot.is_person_waiting(before, cause) => {}
            Err(AcquireError::RejectedElsewhere(pause)) => {
                self.slot.pause_rejections(pause, self.acquirer.clock.now());
                self.slot.publish(before.token.clone(), before.trouble.clone());
            }
            // The definition has been replaced: the present one has yet to be tried.
            Err(_) if !Arc::ptr_eq(&definition, &self.acquirer.definition.load()) => {}
            Err(error) => self.fail(before, &definition.connection, error),
        }
    }

    async fn import(&self, import: Import) {
        let Ok(_under_way) = self.under_way.acquire().await else { return };
        let definition = self.acquirer.definition.load_full();
        let outcome = match self.acquirer.import(&definition, import.credential, &Cause::Person(import.by)).await {
            Ok(token) => {
                self.succeed(&self.slot.state(), &definition.connection, Acquired::Issued(token));
                Ok(())
            }
            Err(error) => {
                let now = self.acquirer.clock.now();
                Err(error.into_trouble(now, now, 1).no_token(now))
            }
        };
        // The sender may have gone.
        let _ = import.reply.send(outcome);
    }

    /// True if the token is forgotten.
    async fn revoke(&self, revoke: Revoke) -> bool {
        let Ok(_under_way) = self.under_way.acquire().await else { return false };
        let definition = self.acquirer.definition.load_full();
        let outcome = self.acquirer.revoke(&definition, &revoke.sharers).await;
        let is_forgotten = outcome.is_ok();
        if is_forgotten {
            self.forget();
        }
        // The sender may have gone.
        let _ = revoke.reply.send(outcome.map_err(|error| error.to_string()));
        is_forgotten
    }

    /// Polls a shared store after a notification, after a failed poll, and at each [`STORE_POLL_INTERVAL`].
    async fn poll_if_due(&self, own: &mut LoopState) {
        let shared = self.acquirer.shared;
        if !shared
            || !(self.slot.take_store_change() || own.poll_failed || own.polled_at.elapsed() > STORE_POLL_INTERVAL)
        {
            return;
        }
        own.polled_at = Instant::now();
        let polled = self.poll().await;
        own.poll_failed = polled.is_err();
        match polled {
            Ok(Polled::Updated) => own.is_dormant = false,
            Ok(Polled::Removed) => own.is_dormant = true,
            Ok(Polled::Unchanged) | Err(_) => {}
        }
    }

    /// Takes over what another replica has done to the record.
    async fn poll(&self) -> Result<Polled, StoreError> {
        let (definition, state) = (self.acquirer.definition.load_full(), self.slot.state());
        let trouble = state.trouble.as_ref().map(|trouble| trouble.kind);
        match (self.acquirer.poll(&definition.connection).await?, trouble) {
            (Poll::Token(token), _) => {
                self.succeed(&state, &definition.connection, Acquired::Stored(*token));
                return Ok(Polled::Updated);
            }
            (Poll::Removed, _) if state.token.is_some() => {
                self.forget();
                return Ok(Polled::Removed);
            }
            (Poll::Record, Some(TroubleKind::Consent(_))) => self.slot.clear_trouble(),
            // The store is reachable again.
            (_, Some(TroubleKind::Store)) => self.slot.clear_trouble(),
            _ => {}
        }
        Ok(Polled::Unchanged)
    }
}

impl LoopState {
    fn new(phases: PhaseWatch) -> LoopState {
        LoopState {
            is_dormant: false,
            is_demanded: false,
            polled_at: Instant::now(),
            poll_failed: false,
            save_retry: SAVE_RETRY_MIN,
            phases,
            is_draining: false,
        }
    }
}

/// The cause of an attempt that nothing forces.
fn cause(state: &SlotState, now: Now, is_demanded: bool) -> Cause {
    match &state.token {
        None if state.trouble.is_none() => Cause::Start,
        token if is_demanded && !token.as_ref().is_some_and(|token| token.is_usable(now)) => Cause::Demand,
        _ => Cause::Due,
    }
}

#[cfg(test)]
mod tests;
