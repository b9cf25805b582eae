//! Token lifetimes in every form in which a token response states them. Pure, apart from log warnings.
//!
//! Invariants: a lifetime that is unreadable or not positive, or an end in the past, counts as absent; no lifetime
//! exceeds ten years.

use std::time::Duration;

use http::header;

use super::super::json::{Json, Members};
use super::TokenResponse;
use crate::model::connection::{TimeUnit, TokenResponseFormat};
use crate::model::time::{self, WallTime};

/// Maximum lifetime, ten years; a longer one is capped.
const LIFETIME_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// A larger Unix time is in milliseconds: as seconds, it would be after the year 5138.
const UNIX_SECONDS_MAX: f64 = 1e11;

/// `None`: `default_token_lifetime` applies.
pub fn of_access_token(members: &Members, format: &TokenResponseFormat, response: &TokenResponse) -> Option<Duration> {
    let end = format.expires_at.as_ref().and_then(|pointer| Json::at(members, pointer));
    match end.and_then(|value| remaining(value, response)) {
        Some(lifetime) => Some(lifetime),
        None => Json::at(members, &format.expires_in).and_then(|value| within(value, format.expires_in_unit)),
    }
}

/// Seconds as a number or as a numeric string.
pub fn seconds(value: &Json) -> Option<Duration> {
    within(value, TimeUnit::Seconds)
}

fn within(value: &Json, unit: TimeUnit) -> Option<Duration> {
    match number(value).map(|number| number * unit.seconds()) {
        Some(0.0) => None,
        Some(seconds) if seconds > 0.0 => Some(bounded(seconds)),
        Some(_) => {
            tracing::warn!("token response has a negative lifetime; using the default");
            None
        }
        None => {
            tracing::warn!("token response has a lifetime that is not a number; using the default");
            None
        }
    }
}

/// Time from now, by the response's `Date` if present, to an absolute time.
fn remaining(value: &Json, response: &TokenResponse) -> Option<Duration> {
    let Some(end) = unix_time(value) else {
        tracing::warn!("token response has an unreadable expiry time; ignored");
        return None;
    };
    let date =
        response.headers.get(header::DATE).and_then(|value| httpdate::parse_http_date(value.to_str().ok()?).ok());
    let now = WallTime::from_system(date.unwrap_or(response.received));
    let left = end - now.as_secs_f64();
    if left <= 0.0 {
        tracing::warn!("token response has an expiry time in the past; ignored");
        return None;
    }
    Some(bounded(left))
}

/// Parses Unix seconds or milliseconds, RFC 3339, or an HTTP date.
fn unix_time(value: &Json) -> Option<f64> {
    if let Some(number) = number(value) {
        return Some(if number > UNIX_SECONDS_MAX { number / 1000.0 } else { number });
    }
    let text = value.as_text()?.trim();
    let date = || httpdate::parse_http_date(text).ok().map(WallTime::from_system);
    time::parse_rfc3339(text).or_else(date).map(|time| time.as_secs_f64())
}

fn bounded(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).map_or(LIFETIME_MAX, |life| life.min(LIFETIME_MAX))
}

/// A number, or a string of digits with sign and fraction; Rust's own parser also accepts `inf`, `nan` and exponents.
fn number(value: &Json) -> Option<f64> {
    match value {
        Json::Number(number) => Some(*number),
        Json::Text(text) => {
            let text = text.trim();
            let plain = text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'+'));
            text.parse().ok().filter(|_| plain)
        }
        _ => None,
    }
}
