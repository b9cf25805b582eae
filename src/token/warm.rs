//! `keep_warm`: refreshes stored tokens of subjects without demand, so that their refresh tokens do not expire unused.
//!
//! Invariants: a walk reads the store page by page and releases each slot, so its memory does not grow with the number of
//! subjects. Its token requests pass the same gate, lease and slot as all others, and leave permits to them.

use std::sync::Weak;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use super::subjects::SubjectSlots;
use crate::model::token::{Subject, TokenKey};
use crate::store::{Refresh, StoredToken};
use crate::telemetry::audit::Cause;

/// Records of one read.
const PAGE_RECORDS_MAX: usize = 256;
/// Subjects refreshed concurrently, of one connection or profile; fewer than its permits (`gate`).
const SUBJECTS_AT_ONCE_MAX: usize = 6;
/// Walks within `keep_warm`, as far as the bounds of their interval allow.
const WALKS: u32 = 4;
const WALK_INTERVAL_MIN: Duration = Duration::from_secs(1);
const WALK_INTERVAL_MAX: Duration = Duration::from_secs(3600);
/// Part of `keep_warm` after which a token is refreshed. The rest is left for the walk: a million subjects whose tokens were
/// issued at one time take ten hours at 200 ms a call, so they fit into a `keep_warm` of a day.
const DUE_AFTER: f64 = 0.5;
/// Timeout of one subject, which delays the walk.
const SUBJECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Walks until the connection no longer has these slots.
pub(super) async fn keep(slots: Weak<SubjectSlots>) {
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
        let (services, own) = (&slots.factory.services, slots.factory.key(None));
        let from = after.as_ref().unwrap_or(&own);
        let page = match services.store.list(&own.connection, Some(from), PAGE_RECORDS_MAX).await {
            Ok(page) => page,
            Err(error) => {
                let TokenKey { connection, profile, .. } = &own;
                return tracing::warn!(%connection, %profile, %error, "keep_warm cannot read the store");
            }
        };
        let mut under_way = FuturesUnordered::new();
        for (key, record) in page.iter().take_while(|(key, _)| key.profile == own.profile) {
            let Some((subject, token)) = key.subject.as_ref().zip(record.as_ref().ok()) else { continue };
            let is_due = services.clock.now().reached(token.obtained.plus(keep_warm.mul_f64(DUE_AFTER)));
            if is_due && slots.is_of_this_definition(token) && matches!(token.refresh, Refresh::Token(_)) {
                if under_way.len() == SUBJECTS_AT_ONCE_MAX {
                    under_way.next().await;
                }
                under_way.push(refresh(&slots, subject, token));
            }
        }
        while under_way.next().await.is_some() {}
        drop(under_way);
        match page.into_iter().next_back() {
            Some((last, _)) if last.profile == own.profile => after = Some(last),
            _ => return,
        }
    }
}

async fn refresh(slots: &SubjectSlots, subject: &Subject, stored: &StoredToken) {
    let was_in_memory = slots.has(subject);
    let (slot, clock) = (slots.slot(subject), &slots.factory.services.clock);
    let deadline = Instant::now() + SUBJECT_TIMEOUT;
    // The stored token may still be usable and is served as it is: then another one is requested.
    match slot.token(clock, deadline).await {
        Ok(token) if token.access_token == stored.access_token => {
            drop(slot.refresh_now(clock, deadline, Cause::Due).await);
        }
        // A failure is in the log; the next walk tries again.
        Ok(_) | Err(_) => {}
    }
    if !was_in_memory {
        slot.release();
    }
}
