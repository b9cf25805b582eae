//! The logger's counter of dropped lines, read at each scrape.
//!
//! Metrics: `keybearer_log_lines_dropped_total`.

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Error, IntCounter};
use tracing_appender::non_blocking::ErrorCounter;

pub struct DroppedLines {
    /// Provides the description.
    zero: IntCounter,
    dropped: ErrorCounter,
}

impl DroppedLines {
    pub fn new(dropped: ErrorCounter) -> Result<DroppedLines, Error> {
        Ok(DroppedLines { zero: DroppedLines::counter()?, dropped })
    }

    fn counter() -> Result<IntCounter, Error> {
        let help = "Log lines dropped because stderr was blocked and the log queue was full.";
        IntCounter::new("keybearer_log_lines_dropped_total", help)
    }
}

impl Collector for DroppedLines {
    fn desc(&self) -> Vec<&Desc> {
        self.zero.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Ok(total) = DroppedLines::counter() else { return Vec::new() };
        total.inc_by(self.dropped.dropped_lines() as u64);
        total.collect()
    }
}
