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

/// A time since the Unix epoch, with a zone and perhaps a fraction (RFC 3339 §5.6); `None` for anything else.
pub fn parse_rfc3339(text: &str) -> Option<Duration> {
    let number = |range: std::ops::Range<usize>, of: &str| {
        let digits = of.get(range).filter(|part| part.bytes().all(|b| b.is_ascii_digit()))?;
        digits.parse::<i64>().ok()
    };
    let mark = |at: usize, allowed: &[u8]| text.as_bytes().get(at).is_some_and(|b| allowed.contains(b));
    if !(mark(4, b"-") && mark(7, b"-") && mark(10, b"Tt ") && mark(13, b":") && mark(16, b":")) {
        return None;
    }
    let (year, month, day) = (number(0..4, text)?, number(5..7, text)?, number(8..10, text)?);
    let (hour, minute, second) = (number(11..13, text)?, number(14..16, text)?, number(17..19, text)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let rest = text.get(19..)?;
    let (fraction, zone) = rest.split_at(rest.find(['Z', 'z', '+', '-'])?);
    let nanos = match fraction.strip_prefix('.') {
        None if fraction.is_empty() => 0,
        None => return None,
        Some(digits) => number(0..9, &format!("{digits:0<9}"))?,
    };
    let offset_s = match zone.as_bytes() {
        b"Z" | b"z" => 0,
        [sign, _, _, b':', _, _] => {
            let offset = number(1..3, zone)? * 3600 + number(4..6, zone)? * 60;
            if *sign == b'-' { -offset } else { offset }
        }
        _ => return None,
    };
    // As in `seconds`, backwards: a year begins in March.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, year) = (year.div_euclid(400), year.rem_euclid(400));
    let days = era * 146_097 + year * 365 + year / 4 - year / 100 + (153 * month + 2) / 5 + day - 1 - 719_468;
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second - offset_s;
    Some(Duration::new(u64::try_from(seconds).ok()?, u32::try_from(nanos).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(seconds: u64, expected: &str) {
        assert_eq!(rfc3339(Duration::from_secs(seconds)), expected);
    }

    #[test]
    fn times_are_read_with_zone_and_fraction() {
        for seconds in [0, 951_782_399, 951_782_400, 951_868_800, 1_704_067_199, 4_107_542_400] {
            assert_eq!(parse_rfc3339(&rfc3339(Duration::from_secs(seconds))), Some(Duration::from_secs(seconds)));
        }
        let expected = Some(Duration::from_millis(1_709_210_096_500));
        for text in ["2024-02-29T12:34:56.5Z", "2024-02-29t14:34:56.500+02:00", "2024-02-29 07:04:56.5000-05:30"] {
            assert_eq!(parse_rfc3339(text), expected, "{text}");
        }
        for bad in [
            "",
            "2024-02-29",
            "2024-02-29T12:34:56",
            "2024-13-01T00:00:00Z",
            "2024-02-29T12:34:56,5Z",
            "1969-12-31T23:59:59Z",
            "2024-02-29T12:34:56+2:00",
            "2024-02-29T12:34:5é.0Z",
        ] {
            assert_eq!(parse_rfc3339(bad), None, "{bad}");
        }
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
