//! The refresher task of one slot: wait, acquire, publish, repeat. It is the slot's only writer.
//!
//! Invariant: at shutdown, an attempt in flight finishes and is saved, and no new attempt starts.
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
use super::schedule::{self, Demand, Force, STORE_POLL_INTERVAL, Step};
use super::slot::{Command, FailureKind, Import, Revoke, SlotState, TokenSlot};
use super::subjects::SubjectCache;
use crate::clock::Now;
use crate::store::StoreError;
use crate::tasks::{Phase, PhaseWatch};
use crate::telemetry::audit::Cause;
use crate::telemetry::events::Events;

/// Grace period of a closed slot. A request takes far less time from reading its snapshot to requesting the token.
const GRACE_PERIOD: Duration = Duration::from_secs(2);
const PANIC_RETRY_DELAY: Duration = Duration::from_secs(10);
/// First backoff before saving an unsaved token again; doubles up to [`SAVE_RETRY_MAX`].
const SAVE_RETRY_MIN: Duration = Duration::from_secs(1);
const SAVE_RETRY_MAX: Duration = Duration::from_secs(60);
/// Maximum for a shared store, where another replica may spend the same refresh token before the save.
const SAVE_RETRY_SHARED_MAX: Duration = Duration::from_secs(4);

pub(super) struct Refresher {
    pub slot: Arc<TokenSlot>,
    pub acquirer: Acquirer,
    pub events: Events,
    /// A permit per attempt in flight; shutdown takes all permits.
    pub in_flight: Arc<Semaphore>,
    pub phases: PhaseWatch,
    pub subject_cache: SubjectCache,
}

/// State that the loop carries from one iteration to the next.
struct LoopState {
    /// The token was revoked; the next one is acquired on demand only.
    is_dormant: bool,
    /// The last wait ended because of demand.
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
    /// The graceful shutdown begins.
    Drain,
}

/// The effect of a store poll on the slot.
enum Polled {
    Unchanged,
    /// Another replica's token was adopted.
    Updated,
    /// The token was removed on purpose and is now forgotten.
    Removed,
}

impl Refresher {
    /// Runs until the slot is closed. Restarts after a panic, because a slot without a refresher is dead.
    pub async fn run(self) {
        while AssertUnwindSafe(self.refresh()).catch_unwind().await.is_err() {
            tokio::time::sleep(PANIC_RETRY_DELAY).await;
        }
        self.subject_cache.remove(&self.slot);
    }

    async fn refresh(&self) {
        let mut loop_state = LoopState::new(self.phases.clone());
        while !self.slot.is_closed() {
            if let Some(command) = self.slot.take_command() {
                self.execute(command, &mut loop_state).await;
            } else if self.run_once(&mut loop_state).await.is_break() {
                return self.slot.end();
            }
        }
        self.serve_last_callers().await;
        self.slot.end();
        // If the slot was evicted, this task holds the only copy of an unsaved token.
        while self.acquirer.has_unsaved() {
            tokio::time::sleep(SAVE_RETRY_SHARED_MAX).await;
            self.retry_save().await;
        }
    }

    async fn execute(&self, command: Command, loop_state: &mut LoopState) {
        match command {
            Command::Import(import) => {
                self.import(import).await;
                loop_state.is_dormant = false;
            }
            Command::Revoke(revoke) => loop_state.is_dormant = self.revoke(revoke).await,
        }
    }

    /// One iteration of the loop: polls the store, then attempts or waits. Breaks if the slot may be evicted.
    async fn run_once(&self, loop_state: &mut LoopState) -> ControlFlow<()> {
        self.poll_if_due(loop_state).await;
        if loop_state.is_dormant && !self.slot.is_awaited(self.acquirer.clock.now()) {
            if self.slot.key.subject.is_some() {
                return ControlFlow::Break(());
            }
            self.wait(None, loop_state).await;
            return ControlFlow::Continue(());
        }
        loop_state.is_dormant = false;
        let (state, now) = (self.slot.state(), self.acquirer.clock.now());
        let forced = self.slot.forced(&state);
        match self.next_step(&state, now, forced.as_ref(), loop_state) {
            Step::Acquire => {
                let cause = forced.unwrap_or_else(|| cause(&state, now, loop_state.is_demanded));
                self.attempt(&state, &cause).await;
                loop_state.is_demanded = false;
            }
            Step::Wait(span) => match self.wait(Some(span), loop_state).await {
                Wake::Demand => loop_state.is_demanded = true,
                Wake::Timer => loop_state.is_demanded = false,
                Wake::Drain => {}
            },
            Step::Evict => return ControlFlow::Break(()),
        }
        if self.acquirer.has_unsaved() {
            loop_state.save_retry = match self.retry_save().await {
                true => SAVE_RETRY_MIN,
                false => (loop_state.save_retry * 2).min(self.save_retry_max()),
            };
        }
        ControlFlow::Continue(())
    }

    fn next_step(&self, state: &SlotState, now: Now, forced: Option<&Cause>, loop_state: &LoopState) -> Step {
        let demand = Demand { force: Force::by(forced), usage: self.slot.usage() };
        let mut step = schedule::next_step(state, now, demand, fastrand::f64());
        if self.acquirer.has_unsaved() {
            step = step.awake_within(loop_state.save_retry);
        }
        if loop_state.poll_failed {
            // The store may have lost the record that this replica caches. Until it is written back, another replica
            // may mistake an older record for the newest.
            step = step.within(SAVE_RETRY_SHARED_MAX);
        }
        step
    }

    /// Waits for demand, for at most `span`.
    async fn wait(&self, span: Option<Duration>, loop_state: &mut LoopState) -> Wake {
        let timer = async {
            match span {
                Some(span) => tokio::time::sleep(span).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.slot.wait_for_demand() => Wake::Demand,
            () = timer => Wake::Timer,
            () = loop_state.phases.reached(Phase::Drain), if !loop_state.is_draining => {
                loop_state.is_draining = true;
                Wake::Drain
            }
        }
    }

    async fn retry_save(&self) -> bool {
        let Ok(_in_flight) = self.in_flight.acquire().await else { return false };
        self.acquirer.retry_save().await
    }

    fn save_retry_max(&self) -> Duration {
        if self.acquirer.shared { SAVE_RETRY_SHARED_MAX } else { SAVE_RETRY_MAX }
    }

    /// Serves requests that began under the superseded definition.
    async fn serve_last_callers(&self) {
        let end = Instant::now() + GRACE_PERIOD;
        loop {
            while self.slot.is_awaited(self.acquirer.clock.now()) {
                self.attempt(&self.slot.state(), &Cause::Demand).await;
            }
            if tokio::time::timeout_at(end, self.slot.wait_for_demand()).await.is_err() {
                return;
            }
        }
    }

    async fn attempt(&self, before: &SlotState, cause: &Cause) {
        let Ok(_in_flight) = self.in_flight.acquire().await else { return };
        let in_use = before.token.as_ref().map(|token| &token.access_token);
        let definition = self.acquirer.definition.load_full();
        match self.acquirer.acquire(Attempt { definition: &definition, in_use, cause }).await {
            Ok(acquired) => self.succeed(before, &definition.connection, acquired),
            Err(AcquireError::Interrupted) => {}
            // No token request was sent, and a person has requested one in the meantime.
            Err(AcquireError::Deferred(_) | AcquireError::InDoubt) if self.slot.is_person_waiting(before, cause) => {}
            Err(AcquireError::RejectedElsewhere(pause)) => {
                self.slot.back_off_rejections(pause, self.acquirer.clock.now());
                self.slot.publish(before.token.clone(), before.last_failure.clone());
            }
            // The definition was replaced during the attempt; try again under the new one.
            Err(_) if !Arc::ptr_eq(&definition, &self.acquirer.definition.load()) => {}
            Err(error) => self.fail(before, &definition.connection, error),
        }
    }

    async fn import(&self, import: Import) {
        let Ok(_in_flight) = self.in_flight.acquire().await else { return };
        let definition = self.acquirer.definition.load_full();
        let outcome = match self.acquirer.import(&definition, import.credential, &Cause::Person(import.by)).await {
            Ok(token) => {
                self.succeed(&self.slot.state(), &definition.connection, Acquired::Issued(token));
                Ok(())
            }
            Err(error) => {
                let now = self.acquirer.clock.now();
                Err(error.into_last_failure(now, now, 1).no_token(now))
            }
        };
        // The sender may have been dropped.
        let _ = import.reply.send(outcome);
    }

    /// Returns true if the token was forgotten.
    async fn revoke(&self, revoke: Revoke) -> bool {
        let Ok(_in_flight) = self.in_flight.acquire().await else { return false };
        let definition = self.acquirer.definition.load_full();
        let outcome = self.acquirer.revoke(&definition, &revoke.at_server).await;
        let is_forgotten = outcome.is_ok();
        if is_forgotten {
            self.forget();
        }
        // The sender may have been dropped.
        let _ = revoke.reply.send(outcome.map_err(|error| error.to_string()));
        is_forgotten
    }

    /// Polls a shared store after a notification, after a failed poll, and every [`STORE_POLL_INTERVAL`].
    async fn poll_if_due(&self, loop_state: &mut LoopState) {
        let shared = self.acquirer.shared;
        if !shared
            || !(self.slot.take_store_change()
                || loop_state.poll_failed
                || loop_state.polled_at.elapsed() > STORE_POLL_INTERVAL)
        {
            return;
        }
        loop_state.polled_at = Instant::now();
        let polled = self.poll().await;
        loop_state.poll_failed = polled.is_err();
        match polled {
            Ok(Polled::Updated) => loop_state.is_dormant = false,
            Ok(Polled::Removed) => loop_state.is_dormant = true,
            Ok(Polled::Unchanged) | Err(_) => {}
        }
    }

    /// Adopts another replica's changes to the record.
    async fn poll(&self) -> Result<Polled, StoreError> {
        let (definition, state) = (self.acquirer.definition.load_full(), self.slot.state());
        let failure = state.last_failure.as_ref().map(|failure| failure.kind);
        match (self.acquirer.poll(&definition.connection).await?, failure) {
            (Poll::Token(token), _) => {
                self.succeed(&state, &definition.connection, Acquired::Stored(*token));
                return Ok(Polled::Updated);
            }
            (Poll::Removed, _) if state.token.is_some() => {
                self.forget();
                return Ok(Polled::Removed);
            }
            (Poll::Record, Some(FailureKind::Consent(_))) => self.slot.clear_failure(),
            // Any successful poll shows that the store is reachable again.
            (_, Some(FailureKind::Store)) => self.slot.clear_failure(),
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

/// The cause of an attempt that is not forced.
fn cause(state: &SlotState, now: Now, is_demanded: bool) -> Cause {
    match &state.token {
        None if state.last_failure.is_none() => Cause::Start,
        token if is_demanded && !token.as_ref().is_some_and(|token| token.is_usable(now)) => Cause::Demand,
        _ => Cause::Due,
    }
}

#[cfg(test)]
mod tests;
