//! `keep_warm`: stored tokens of subjects are refreshed now and then although nobody asks, so that their refresh tokens do
//! not grow too old at the authorization server.
//!
//! Holds: it walks over the store page by page and gives each slot back, so its memory does not grow with the number of
//! subjects; its token requests pass the same gate, lease and slot as all others, and leave places to them.

use std::sync::Weak;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use super::subjects::SubjectSlots;
use crate::model::token::{Subject, TokenKey};
use crate::store::{Refresh, StoredToken};
use crate::telemetry::audit::Cause;

/// Records read at once.
const PAGE: usize = 256;
/// Subjects refreshed at once, of one connection or profile; fewer than it has places at the server (`gate`).
const SUBJECTS_AT_ONCE: usize = 6;
/// A walk begins so many times within `keep_warm`, within these bounds.
const WALKS: u32 = 4;
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(3600);
/// The part of `keep_warm` after which a token is refreshed. The rest is for the walk: a million subjects whose tokens came
/// at one time take ten hours at 200 ms a call, so they fit into a `keep_warm` of a day.
const DUE_AFTER: f64 = 0.5;
/// How long one subject may hold up the walk.
const PATIENCE: Duration = Duration::from_secs(30);

/// Walks for as long as the connection has these slots.
pub(super) async fn keep(slots: Weak<SubjectSlots>) {
    let mut walked = Instant::now();
    loop {
        let (keep_warm, changed) = match slots.upgrade() {
            Some(slots) if !slots.is_closed() => {
                (slots.maker.definition.load().connection.lifetimes.keep_warm, slots.changed.clone())
            }
            _ => return,
        };
        let pause = keep_warm.map_or(PAUSE_MAX, |span| (span / WALKS).clamp(PAUSE_MIN, PAUSE_MAX));
        tokio::select! {
            () = tokio::time::sleep_until(walked + pause) => {}
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
        let (tools, own) = (&slots.maker.tools, slots.maker.key(None));
        let from = after.as_ref().unwrap_or(&own);
        let page = match tools.store.list(&own.connection, Some(from), PAGE).await {
            Ok(page) => page,
            Err(error) => {
                let TokenKey { connection, profile, .. } = &own;
                return tracing::warn!(%connection, %profile, %error, "keep_warm cannot read the store");
            }
        };
        let mut under_way = FuturesUnordered::new();
        for (key, record) in page.iter().take_while(|(key, _)| key.profile == own.profile) {
            let Some((subject, token)) = key.subject.as_ref().zip(record.as_ref().ok()) else { continue };
            let is_due = tools.clock.now().reached(token.obtained.plus(keep_warm.mul_f64(DUE_AFTER)));
            if is_due && slots.is_of_this_definition(token) && matches!(token.refresh, Refresh::Token(_)) {
                if under_way.len() == SUBJECTS_AT_ONCE {
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
    let (slot, clock) = (slots.slot(subject), &slots.maker.tools.clock);
    let deadline = Instant::now() + PATIENCE;
    // From the store it may come as it is, still usable: then another one is asked for.
    match slot.token(clock, deadline).await {
        Ok(token) if token.access_token == stored.access_token => {
            drop(slot.refresh_now(clock, deadline, Cause::Due).await);
        }
        // A failure is in the log, and the next walk comes by again.
        Ok(_) | Err(_) => {}
    }
    if !was_in_memory {
        slot.release();
    }
}
