//! Refresh on request, before the current token is due.
//!
//! Invariants: one refresh serves all requesters and all callers whose token was rejected. A person's request ignores
//! refusals and backoffs; any other cause waits until they end.

use std::time::Duration;

use tokio::time::Instant;

use super::{NoToken, TokenSlot};
use crate::clock::Clock;
use crate::telemetry::audit::Cause;

/// Why there is no new token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotRefreshed {
    /// A refresh of this slot was forced too recently.
    TooSoon {
        retry_after: Duration,
    },
    NoToken(NoToken),
}

impl TokenSlot {
    /// Forces a refresh because of `cause`; returns once the authorization server has issued a token. Fails at
    /// `deadline`. Reports a failure even if the current token is still usable.
    pub async fn refresh_now(&self, clock: &Clock, deadline: Instant, cause: Cause) -> Result<(), NotRefreshed> {
        let mut changed = self.changed.subscribe();
        let (before, now) = (self.state.load_full(), clock.now());
        if let Some(failure) = before.blocking_failure(now).filter(|_| cause.person().is_none()) {
            return Err(NotRefreshed::NoToken(failure.no_token(now)));
        }
        let forced = self.force_refresh(&before, now, cause);
        forced.map_err(|retry_after| NotRefreshed::TooSoon { retry_after })?;
        self.usage.record_use();
        self.demand.notify_one();
        loop {
            let state = self.state.load_full();
            if state.attempts > before.attempts {
                let failed = |failure: &super::LastFailure| NotRefreshed::NoToken(failure.no_token(clock.now()));
                return state.last_failure.as_ref().map_or(Ok(()), |failure| Err(failed(failure)));
            }
            if self.is_closed() {
                return Err(NotRefreshed::NoToken(NoToken::Forgotten));
            }
            if tokio::time::timeout_at(deadline, changed.changed()).await.is_err() {
                return Err(NotRefreshed::NoToken(NoToken::WaitTimeout));
            }
        }
    }
}
