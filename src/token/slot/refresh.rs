//! A person asks for another token now.
//!
//! Holds: the same single flight as a rejected token's. A person's request goes through every verdict and back-off; any
//! other waits for them.

use std::time::Duration;

use tokio::time::Instant;

use super::{NoToken, TokenSlot};
use crate::clock::Clock;
use crate::telemetry::audit::Cause;

/// Why nobody was asked for another token, or none came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotRefreshed {
    /// One refresh of this slot was forced a moment ago.
    TooSoon {
        retry_after: Duration,
    },
    NoToken(NoToken),
}

impl TokenSlot {
    /// Returns once the authorization server has given another token because of `cause`, or why none came by `deadline`. A failure counts
    /// although the token before it may still be usable.
    pub async fn refresh_now(&self, clock: &Clock, deadline: Instant, cause: Cause) -> Result<(), NotRefreshed> {
        let mut changed = self.changed.subscribe();
        let (before, now) = (self.state.load_full(), clock.now());
        if let Some(trouble) = before.standing_trouble(now).filter(|_| cause.person().is_none()) {
            return Err(NotRefreshed::NoToken(trouble.no_token(now)));
        }
        let asked = self.ask_for_refresh(&before, now, cause);
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
