//! Parses `Retry-After` (RFC 9110 §10.2.3). Pure.
//!
//! Invariants: the wait is capped at [`RETRY_AFTER_MAX`]; an unreadable value counts as absent.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, header};

/// Maximum wait; a longer one is capped.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(5 * 60);

/// Seconds or a date; a date is relative to the response's own `Date`, else to `received`.
pub fn retry_after(headers: &HeaderMap, received: SystemTime) -> Option<Duration> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let date = |text| httpdate::parse_http_date(text).ok();
    let value = text(header::RETRY_AFTER).filter(|text| !text.is_empty())?;
    let wait = if value.bytes().all(|b| b.is_ascii_digit()) {
        value.parse().map_or(RETRY_AFTER_MAX, Duration::from_secs)
    } else {
        let now = text(header::DATE).and_then(date).unwrap_or(received);
        date(value)?.duration_since(now).unwrap_or_default()
    };
    Some(wait.min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[track_caller]
    fn check(value: &'static str, with_date: bool, seconds: Option<u64>) {
        let mut headers = HeaderMap::new();
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static(value));
        if with_date {
            headers.insert(header::DATE, HeaderValue::from_static("Sun, 06 Nov 1994 08:49:37 GMT"));
        }
        let wait = retry_after(&headers, SystemTime::UNIX_EPOCH);
        assert_eq!(wait, seconds.map(Duration::from_secs), "{value}");
    }

    #[test]
    fn seconds_and_dates_are_read_and_capped() {
        check("30", true, Some(30));
        check(" 30 ", false, Some(30));
        check("0", false, Some(0));
        check("86400", false, Some(300));
        check("99999999999999999999999999", false, Some(300));
        for junk in ["", "-1", "1.5", "soon", "30, 40", "Sun, 99 Nov 1994 08:50:07 GMT"] {
            check(junk, true, None);
        }
        check("Sun, 06 Nov 1994 08:50:07 GMT", true, Some(30));
        check("Sunday, 06-Nov-94 08:50:07 GMT", true, Some(30));
        check("Sun Nov  6 08:50:07 1994", true, Some(30));
        check("Fri, 31 Dec 9999 23:59:59 GMT", true, Some(300));
        check("Sun, 06 Nov 1994 08:00:00 GMT", true, Some(0));
        check("Thu, 01 Jan 1970 00:00:42 GMT", false, Some(42));
        assert_eq!(retry_after(&HeaderMap::new(), SystemTime::UNIX_EPOCH), None);
    }
}
