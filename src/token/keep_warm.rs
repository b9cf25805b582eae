//! `keep_warm`: refreshes stored tokens of idle subjects, so that their refresh tokens do not expire unused.
//!
//! Invariants: a walk reads the store page by page and releases each slot, so its memory use is independent of the
//! number of subjects. Its token requests use the same limiter, lease and slot as all others, and leave permits to
//! them.

use std::sync::Weak;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use super::subjects::SubjectSlots;
use crate::model::token::{Subject, TokenKey};
use crate::store::{Refresh, StoredToken};
use crate::telemetry::audit::Cause;

/// Records per read.
const PAGE_RECORDS_MAX: usize = 256;
/// Concurrent refreshes per connection or profile; fewer than its permits (`request_limiter`).
const CONCURRENT_SUBJECTS_MAX: usize = 6;
/// Walks per `keep_warm` period, if the interval bounds allow.
const WALKS: u32 = 4;
const WALK_INTERVAL_MIN: Duration = Duration::from_secs(1);
const WALK_INTERVAL_MAX: Duration = Duration::from_secs(3600);
/// Fraction of `keep_warm` after which a token is refreshed. The remainder is time for the walk: a million subjects
/// whose tokens were issued at once take ten hours at 200 ms a call, which fits into a `keep_warm` of one day.
const DUE_FRACTION: f64 = 0.5;
/// Timeout per subject; a hanging subject delays the walk.
const SUBJECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Runs until the slots are closed or dropped.
pub(super) async fn run(slots: Weak<SubjectSlots>) {
    let mut walked = Instant::now();
    loop {
        let (keep_warm, changed) = match slots.upgrade() {
            Some(slots) if !slots.is_closed() => {
                (slots.factory.definition.load().connection.lifetimes.keep_warm, slots.changed.clone())
            }
            _ => return,
        };
        let interval =
            keep_warm.map_or(WALK_INTERVAL_MAX, |span| (span / WALKS).clamp(WALK_INTERVAL_MIN, WALK_INTERVAL_MAX));
        tokio::select! {
            () = tokio::time::sleep_until(walked + interval) => {}
            () = changed.notified() => continue,
        }
        if let Some(keep_warm) = keep_warm {
            walk(&slots, keep_warm).await;
        }
        walked = Instant::now();
    }
}

async fn walk(slots: &Weak<SubjectSlots>, keep_warm: Duration) {
    let mut after: Option<TokenKey> = None;
    loop {
        let Some(slots) = slots.upgrade().filter(|slots| !slots.is_closed()) else { return };
        let (services, definition_key) = (&slots.factory.services, slots.factory.key(None));
        let from = after.as_ref().unwrap_or(&definition_key);
        let page = match services.store.list(&definition_key.connection, Some(from), PAGE_RECORDS_MAX).await {
            Ok(page) => page,
            Err(error) => {
                let TokenKey { connection, profile, .. } = &definition_key;
                return tracing::warn!(%connection, %profile, %error, "keep_warm cannot read the store");
            }
        };
        let mut in_flight = FuturesUnordered::new();
        for (key, record) in page.iter().take_while(|(key, _)| key.profile == definition_key.profile) {
            let Some((subject, token)) = key.subject.as_ref().zip(record.as_ref().ok()) else { continue };
            let is_due = services.clock.now().reached(token.obtained.plus(keep_warm.mul_f64(DUE_FRACTION)));
            if is_due && slots.is_of_current_definition(token) && matches!(token.refresh, Refresh::Token(_)) {
                if in_flight.len() == CONCURRENT_SUBJECTS_MAX {
                    in_flight.next().await;
                }
                in_flight.push(refresh(&slots, subject, token));
            }
        }
        while in_flight.next().await.is_some() {}
        drop(in_flight);
        match page.into_iter().next_back() {
            Some((last, _)) if last.profile == definition_key.profile => after = Some(last),
            _ => return,
        }
    }
}

async fn refresh(slots: &SubjectSlots, subject: &Subject, stored: &StoredToken) {
    let was_in_memory = slots.has(subject);
    let (slot, clock) = (slots.slot(subject), &slots.factory.services.clock);
    let deadline = Instant::now() + SUBJECT_TIMEOUT;
    // The slot may serve the stored token while it is usable; then force a refresh.
    match slot.token(clock, deadline).await {
        Ok(token) if token.access_token == stored.access_token => {
            drop(slot.refresh_now(clock, deadline, Cause::Due).await);
        }
        // A failure is logged by the refresher; the next walk retries.
        Ok(_) | Err(_) => {}
    }
    if !was_in_memory {
        slot.release();
    }
}
