//! Times as the API and the audit write them: RFC 3339 in UTC.

use std::time::Duration;

const DAY_S: u64 = 24 * 3600;
/// 9999-12-31T23:59:59Z: RFC 3339 has no later year.
const LAST_S: u64 = 253_402_300_799;

/// `since_epoch` is wall time; what is finer than a second is dropped.
pub fn rfc3339(since_epoch: Duration) -> String {
    format!("{}Z", seconds(since_epoch))
}

/// The same with milliseconds.
pub fn rfc3339_ms(since_epoch: Duration) -> String {
    format!("{}.{:03}Z", seconds(since_epoch), since_epoch.subsec_millis())
}

fn seconds(since_epoch: Duration) -> String {
    let seconds = since_epoch.as_secs().min(LAST_S);
    let (days, second) = (seconds / DAY_S, seconds % DAY_S);
    // Days are counted from 0000-03-01, so that a leap day ends its year; 400 years have 146 097 days.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(seconds: u64, expected: &str) {
        assert_eq!(rfc3339(Duration::from_secs(seconds)), expected);
    }

    #[test]
    fn times_are_written_in_utc() {
        check(0, "1970-01-01T00:00:00Z");
        check(951_782_399, "2000-02-28T23:59:59Z");
        check(951_782_400, "2000-02-29T00:00:00Z");
        check(951_868_800, "2000-03-01T00:00:00Z");
        check(1_704_067_199, "2023-12-31T23:59:59Z");
        check(1_709_210_096, "2024-02-29T12:34:56Z");
        check(4_107_542_399, "2100-02-28T23:59:59Z");
        check(4_107_542_400, "2100-03-01T00:00:00Z");
        check(u64::MAX, "9999-12-31T23:59:59Z");
        assert_eq!(rfc3339_ms(Duration::from_millis(1_709_210_096_007)), "2024-02-29T12:34:56.007Z");
    }
}
