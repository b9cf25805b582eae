//! Publishes the outcome of an attempt: to the slot, the log, the gauges and the event stream.
//!
//! Metrics: `keybearer_token_expiry_timestamp_seconds`, `keybearer_refresh_token_expiry_timestamp_seconds` (shared
//! tokens).

use std::sync::Arc;
use std::time::Duration;

use super::Refresher;
use crate::model::connection::{Connection, without_query};
use crate::model::time::{WallTime, rfc3339};
use crate::model::token::TokenKey;
use crate::store::{Refresh, RefreshLife, StoredToken};
use crate::telemetry::events::Event;
use crate::token::acquire::{AcquireError, Acquired};
use crate::token::deadlines;
use crate::token::slot::{Granted, InjectedToken, SlotState};

/// Warning period before a refresh token expires; at most a tenth of its lifetime.
const EXPIRY_WARNING: Duration = Duration::from_secs(7 * 24 * 3600);

impl Refresher {
    pub(super) fn succeed(&self, before: &SlotState, connection: &Connection, acquired: Acquired) {
        let (message, stored) = match acquired {
            Acquired::Issued(stored) => ("token acquired", stored),
            Acquired::Stored(stored) => ("token loaded from the store", stored),
        };
        let mut deadlines = deadlines::of(stored.obtained, stored.lifetime, &connection.lifetimes, fastrand::f64());
        let same = before.token.as_ref().filter(|token| token.access_token == stored.access_token);
        if same.is_some_and(|token| token.granted.obtained.wall != stored.obtained.wall) {
            // The server returns the same token until it expires, so an earlier refresh would be useless.
            deadlines.refresh_at = deadlines.refresh_at.later(deadlines.usable_until);
        }
        let last = before.token.as_ref().map_or(0, |token| token.generation);
        let generation = if same.is_some() { last } else { last + 1 };
        let key = &self.slot.key;
        if key.subject.is_none() {
            let labels = [key.connection.as_str(), key.profile.as_str()];
            let expiry = self.acquirer.metrics.token_expiry.with_label_values(&labels);
            expiry.set(deadlines.expires.wall.as_secs_f64());
        }
        tracing::info!(connection = %key.connection, profile = %key.profile, subject = key.subject_str(),
            lifetime_s = stored.lifetime.as_secs_f64(), generation, "{message}");
        let refresh_token_ends = self.forecast_expiry(connection, &stored);
        let scopes = stored.scopes.unwrap_or_else(|| connection.scopes.clone());
        if before.token.as_ref().is_none_or(|token| token.granted.scopes != scopes) {
            warn_of_missing_scopes(key, &connection.scopes, &scopes);
        }
        let granted = Granted { obtained: stored.obtained, scopes, refresh_token_ends };
        let token = InjectedToken::new(generation, stored.access_token, stored.origins, granted, deadlines);
        self.slot.publish(Some(Arc::new(token)), None);
        let event = Event::TokenObtained { key: key.clone(), expires: deadlines.expires.wall };
        self.events.publish(self.acquirer.clock.now().wall, event);
    }

    /// Forecasts the expiry of the refresh token: sets the gauge, and warns when it is near.
    fn forecast_expiry(&self, connection: &Connection, stored: &StoredToken) -> Option<WallTime> {
        let (key, now) = (&self.slot.key, self.acquirer.clock.now().wall);
        let RefreshLife { since, stated } = stored.refresh_life;
        let has_token = matches!(stored.refresh, Refresh::Token(_));
        let life = stated.or(connection.lifetimes.refresh_token).filter(|_| has_token)?;
        let ends = since? + life;
        if key.subject.is_none() {
            let labels = [key.connection.as_str(), key.profile.as_str()];
            self.acquirer.metrics.refresh_token_expiry.with_label_values(&labels).set(ends.as_secs_f64());
        }
        if ends.since(now) < (life / 10).min(EXPIRY_WARNING) {
            tracing::warn!(connection = %key.connection, profile = %key.profile, subject = key.subject_str(),
                ends = rfc3339(ends), "refresh token expires soon, and the server has not issued a new one");
        }
        Some(ends)
    }

    pub(super) fn fail(&self, before: &SlotState, connection: &Connection, error: AcquireError) {
        let now = self.acquirer.clock.now();
        let usable = before.token.as_ref().filter(|token| token.is_usable(now));
        let (failures, in_doubt) = (error.failures(before.failures()), error.is_in_doubt());
        let policy = error.retry_policy(failures);
        let retry_at = policy.retry_at(now, usable.map(|token| token.usable_until), fastrand::f64());
        let failure = error.into_last_failure(now, retry_at, failures);
        let key = &self.slot.key;
        let next_try_in_s = failure.consent().is_none().then(|| now.until(failure.retry_at).as_secs());
        tracing::warn!(connection = %key.connection, profile = %key.profile, subject = key.subject_str(),
            error = failure.error, description = failure.description, permanent = failure.kind.is_permanent(), in_doubt,
            still_usable = usable.is_some(), next_try_in_s, endpoint = without_query(&connection.endpoints.server),
            "token acquisition failed");
        let event = Event::TokenFailed {
            key: key.clone(),
            outcome: failure.outcome.as_str(),
            error: failure.error.clone(),
            retry: failure.consent().is_none().then_some(failure.retry_at.wall),
        };
        self.slot.publish(before.token.clone(), Some(failure));
        self.events.publish(now.wall, event);
    }

    /// Forgets the token; the next one is acquired like the first one.
    pub(super) fn forget(&self) {
        self.slot.publish(None, None);
        let key = &self.slot.key;
        if key.subject.is_none() {
            let labels = [key.connection.as_str(), key.profile.as_str()];
            let _ = self.acquirer.metrics.token_expiry.remove_label_values(&labels);
            let _ = self.acquirer.metrics.refresh_token_expiry.remove_label_values(&labels);
        }
    }
}

/// The server may grant fewer scopes than requested (RFC 6749 §3.3).
fn warn_of_missing_scopes(key: &TokenKey, requested: &[String], granted: &[String]) {
    let missing: Vec<_> = requested.iter().filter(|scope| !granted.contains(scope)).map(String::as_str).collect();
    if !missing.is_empty() {
        tracing::warn!(connection = %key.connection, profile = %key.profile, subject = key.subject_str(),
            missing = missing.join(" "), "authorization server granted fewer scopes than requested");
    }
}
