//! How long a token is good for, in whatever way an answer says so. Pure, but for warnings.
//!
//! Holds: what cannot be read, is not positive or lies in the past is as if it were not there; nothing exceeds ten years.

use std::time::Duration;

use http::header;

use super::super::json::{Json, Members};
use super::TokenResponse;
use crate::model::connection::{TimeUnit, TokenResponseFormat};
use crate::model::time::{self, WallTime};

/// Longest lifetime that is believed: ten years.
const LIFETIME_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// A larger number of Unix seconds is one of milliseconds: the year 5138.
const UNIX_SECONDS_MAX: f64 = 1e11;

/// `None`: the connection's default.
pub fn of_access_token(members: &Members, shape: &TokenResponseFormat, answer: &TokenResponse) -> Option<Duration> {
    let end = shape.expires_at.as_ref().and_then(|place| Json::at(members, place));
    match end.and_then(|value| until(value, answer)) {
        Some(lifetime) => Some(lifetime),
        None => Json::at(members, &shape.expires_in).and_then(|value| within(value, shape.expires_in_unit)),
    }
}

/// Seconds as a number or as a numeric text.
pub fn seconds(value: &Json) -> Option<Duration> {
    within(value, TimeUnit::Seconds)
}

fn within(value: &Json, unit: TimeUnit) -> Option<Duration> {
    match number(value).map(|number| number * unit.seconds()) {
        Some(0.0) => None,
        Some(seconds) if seconds > 0.0 => Some(bounded(seconds)),
        Some(_) => {
            tracing::warn!("token answer has a negative lifetime; the default applies");
            None
        }
        None => {
            tracing::warn!("token answer has a lifetime that is no number; the default applies");
            None
        }
    }
}

/// From the server's own clock, where it tells, to an absolute time.
fn until(value: &Json, answer: &TokenResponse) -> Option<Duration> {
    let Some(end) = moment(value) else {
        tracing::warn!("token answer has an end that is no time; it is left aside");
        return None;
    };
    let date = answer.headers.get(header::DATE).and_then(|value| httpdate::parse_http_date(value.to_str().ok()?).ok());
    let now = WallTime::from_system(date.unwrap_or(answer.received));
    let left = end - now.as_secs_f64();
    if left <= 0.0 {
        tracing::warn!("token answer has an end that has passed; it is left aside");
        return None;
    }
    Some(bounded(left))
}

/// Unix seconds or milliseconds, RFC 3339, or an HTTP date.
fn moment(value: &Json) -> Option<f64> {
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

/// A number, or a text of digits with sign and fraction; Rust's own parser knows `inf`, `nan` and exponents as well.
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
