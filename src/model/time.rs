//! Points in time on two clocks, and RFC 3339 in UTC, the format of the API and the audit log.
//!
//! Invariants: types keep points in time apart from durations, and the clocks apart from each other. Arithmetic
//! saturates at both ends of a clock.

use std::ops::{Add, Sub};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use time::format_description::BorrowedFormatItem;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{OffsetDateTime, UtcDateTime};

/// 9999-12-31T23:59:59Z, the last second in RFC 3339.
const LAST: Duration = Duration::from_secs(253_402_300_799);
const SECONDS: &[BorrowedFormatItem<'_>] = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");
const MILLISECONDS: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
/// The last whole second of [`SystemTime`].
const SYSTEM_MAX: Duration = Duration::from_secs(i64::MAX.unsigned_abs());

/// A point in time on the boot clock (`CLOCK_BOOTTIME`): time since boot, including suspension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct BootTime(Duration);

impl BootTime {
    pub const MAX: BootTime = BootTime(Duration::MAX);

    pub const fn new(since_boot: Duration) -> BootTime {
        BootTime(since_boot)
    }

    pub fn since_boot(self) -> Duration {
        self.0
    }

    /// The duration since `earlier`; zero if `earlier` is later.
    pub fn since(self, earlier: BootTime) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for BootTime {
    type Output = BootTime;

    fn add(self, duration: Duration) -> BootTime {
        BootTime(self.0.saturating_add(duration))
    }
}

impl Sub<Duration> for BootTime {
    type Output = BootTime;

    fn sub(self, duration: Duration) -> BootTime {
        BootTime(self.0.saturating_sub(duration))
    }
}

/// A point in time on the wall clock: time since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct WallTime(Duration);

impl WallTime {
    pub const MAX: WallTime = WallTime(Duration::MAX);

    pub const fn new(since_epoch: Duration) -> WallTime {
        WallTime(since_epoch)
    }

    pub const fn from_secs(since_epoch_s: u64) -> WallTime {
        WallTime(Duration::from_secs(since_epoch_s))
    }

    pub const fn from_millis(since_epoch_ms: u64) -> WallTime {
        WallTime(Duration::from_millis(since_epoch_ms))
    }

    /// Times before the epoch become the epoch.
    pub fn from_system(time: SystemTime) -> WallTime {
        WallTime(time.duration_since(UNIX_EPOCH).unwrap_or_default())
    }

    pub fn to_system(self) -> SystemTime {
        UNIX_EPOCH + self.0.min(SYSTEM_MAX)
    }

    pub fn since_epoch(self) -> Duration {
        self.0
    }

    /// Whole seconds since the Unix epoch.
    pub fn as_secs(self) -> u64 {
        self.0.as_secs()
    }

    /// Whole milliseconds since the Unix epoch.
    pub fn as_millis(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }

    pub fn as_secs_f64(self) -> f64 {
        self.0.as_secs_f64()
    }

    /// The duration since `earlier`; zero if `earlier` is later.
    pub fn since(self, earlier: WallTime) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for WallTime {
    type Output = WallTime;

    fn add(self, duration: Duration) -> WallTime {
        WallTime(self.0.saturating_add(duration))
    }
}

impl Sub<Duration> for WallTime {
    type Output = WallTime;

    fn sub(self, duration: Duration) -> WallTime {
        WallTime(self.0.saturating_sub(duration))
    }
}

/// Formats whole seconds; fractions are dropped.
pub fn rfc3339(at: WallTime) -> String {
    formatted(at, SECONDS)
}

/// Formats milliseconds.
pub fn rfc3339_ms(at: WallTime) -> String {
    formatted(at, MILLISECONDS)
}

fn formatted(at: WallTime, format: &[BorrowedFormatItem<'_>]) -> String {
    let time = UtcDateTime::UNIX_EPOCH + at.0.min(LAST);
    time.format(&format).expect("a UTC time has every component of the format")
}

/// Parses a time with a zone and an optional fraction (RFC 3339 §5.6).
/// `None` for a time before the Unix epoch, too.
pub fn parse_rfc3339(text: &str) -> Option<WallTime> {
    Duration::try_from(since_epoch(text)?).ok().map(WallTime)
}

/// As [`parse_rfc3339`]; a time before the Unix epoch counts as the epoch.
pub fn parse_rfc3339_saturating(text: &str) -> Option<WallTime> {
    Some(WallTime(Duration::try_from(since_epoch(text)?).unwrap_or_default()))
}

fn since_epoch(text: &str) -> Option<time::Duration> {
    Some(OffsetDateTime::parse(text, &Rfc3339).ok()? - OffsetDateTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(seconds: u64, expected: &str) {
        assert_eq!(rfc3339(WallTime::from_secs(seconds)), expected);
    }

    #[test]
    fn times_are_parsed_with_zone_and_fraction() {
        for seconds in [0, 951_782_399, 951_782_400, 951_868_800, 1_704_067_199, 4_107_542_400] {
            assert_eq!(parse_rfc3339(&rfc3339(WallTime::from_secs(seconds))), Some(WallTime::from_secs(seconds)));
        }
        let expected = Some(WallTime::from_millis(1_709_210_096_500));
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
        assert_eq!(parse_rfc3339_saturating("0098-05-08T06:23:40+19:42"), Some(WallTime::default()));
        assert_eq!(parse_rfc3339_saturating("yesterday"), None);
    }

    #[test]
    fn arithmetic_saturates_at_both_ends_of_a_clock() {
        let second = Duration::from_secs(1);
        assert_eq!(BootTime::default() - second, BootTime::default());
        assert_eq!(BootTime::MAX + second, BootTime::MAX);
        assert_eq!((BootTime::default() + second).since(BootTime::default()), second);
        assert_eq!(BootTime::default().since(BootTime::MAX), Duration::ZERO);
        assert_eq!(WallTime::from_secs(1) - 2 * second, WallTime::default());
        assert_eq!(WallTime::MAX + second, WallTime::MAX);
        assert_eq!(WallTime::from_secs(5).since(WallTime::from_secs(3)), 2 * second);
        assert_eq!(WallTime::from_secs(3).since(WallTime::from_secs(5)), Duration::ZERO);
        assert_eq!(WallTime::from_system(UNIX_EPOCH - second), WallTime::default());
        assert_eq!(WallTime::from_secs(1).to_system(), UNIX_EPOCH + second);
        assert!(WallTime::MAX.to_system() > UNIX_EPOCH);
    }

    #[test]
    fn times_are_formatted_in_utc() {
        check(0, "1970-01-01T00:00:00Z");
        check(951_782_399, "2000-02-28T23:59:59Z");
        check(951_782_400, "2000-02-29T00:00:00Z");
        check(951_868_800, "2000-03-01T00:00:00Z");
        check(1_704_067_199, "2023-12-31T23:59:59Z");
        check(1_709_210_096, "2024-02-29T12:34:56Z");
        check(4_107_542_399, "2100-02-28T23:59:59Z");
        check(4_107_542_400, "2100-03-01T00:00:00Z");
        check(u64::MAX, "9999-12-31T23:59:59Z");
        assert_eq!(rfc3339_ms(WallTime::from_millis(1_709_210_096_007)), "2024-02-29T12:34:56.007Z");
    }
}
