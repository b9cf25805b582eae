//! Another token on request, before the present one is due.
//!
//! Invariants: one refresh serves all who ask and all whose token was rejected. A person's request ignores refusals and
//! backoffs; any other waits for them to end.

use std::time::Duration;

use tokio::time::Instant;

use super::{NoToken, TokenSlot};
use crate::clock::Clock;
use crate::telemetry::audit::Cause;

/// Why there is no other token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotRefreshed {
    /// A refresh of this slot was forced a moment ago.
    TooSoon {
        retry_after: Duration,
    },
    NoToken(NoToken),
}

impl TokenSlot {
    /// Returns once the authorization server has issued another token because of `cause`, or why it has not by `deadline`.
    /// A failure is reported even if the present token is still usable.
    pub async fn refresh_now(&self, clock: &Clock, deadline: Instant, cause: Cause) -> Result<(), NotRefreshed> {
        let mut changed = self.changed.subscribe();
        let (before, now) = (self.state.load_full(), clock.now());
        if let Some(trouble) = before.blocking_trouble(now).filter(|_| cause.person().is_none()) {
            return Err(NotRefreshed::NoToken(trouble.no_token(now)));
        }
        let asked = self.force_refresh(&before, now, cause);
        asked.map_err(|retry_after| NotRefreshed::TooSoon { retry_after })?;
        self.interest.note_use();
        self.demand.notify_one();
        loop {
            let state = self.state.load_full();
            if state.attempts > before.attempts {
                let failed = |trouble: &super::Trouble| NotRefreshed::NoToken(trouble.no_token(clock.now()));
                return state.trouble.as_ref().map_or(Ok(()), |trouble| Err(failed(trouble)));
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
