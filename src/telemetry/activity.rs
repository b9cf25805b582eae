//! One-minute counts of the last hour for each connection that was active, derived from the metrics' counters.
//!
//! Invariants: requests cost nothing here: the counters are read once a minute and when a person asks; a connection without
//! a request in the last hour takes no memory; the others take less than 2 KiB each.
//! Not here: the records (`audit::recent`), the task that reads once a minute (`admin::activity`).

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;
use std::time::Duration;

use prometheus::core::Collector as _;
use prometheus::proto::Metric;

use super::metrics::Metrics;
use crate::model::time::WallTime;
use crate::sync::lock;

/// Minutes that are kept.
const MINUTES: usize = 60;
pub const MINUTE: Duration = Duration::from_secs(60);

/// Requests of one connection, within a minute or since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    pub requests: u64,
    /// Responses of the upstream with 5xx.
    pub errors: u64,
    /// Error responses of the proxy itself.
    pub refused: u64,
}

impl Counts {
    fn since(self, earlier: Counts) -> Counts {
        Counts {
            requests: self.requests.saturating_sub(earlier.requests),
            errors: self.errors.saturating_sub(earlier.errors),
            refused: self.refused.saturating_sub(earlier.refused),
        }
    }

    fn add(&mut self, more: Counts) {
        self.requests += more.requests;
        self.errors += more.errors;
        self.refused += more.refused;
    }
}

/// The counts of the last [`MINUTES`] minutes; the last one is the current minute.
#[derive(Debug, Clone)]
pub struct Hour {
    /// Beginning of the first minute.
    pub from: WallTime,
    pub connections: Vec<(String, Vec<Counts>)>,
}

#[derive(Debug, Default)]
pub struct Activity {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The current minute, since the epoch.
    minute: u64,
    /// The counters when they were last read.
    read: HashMap<String, Counts>,
    series: HashMap<String, VecDeque<Counts>>,
}

impl Activity {
    /// The last hour until now.
    pub fn hour(&self, metrics: &Metrics, now: WallTime) -> Hour {
        let totals = totals(metrics);
        let mut state = lock(&self.state);
        state.advance(now.as_secs() / MINUTE.as_secs(), totals);
        let from = state.minute.saturating_sub(MINUTES as u64 - 1) * MINUTE.as_secs();
        let counts = |(name, series): (&String, &VecDeque<Counts>)| (name.clone(), series.iter().copied().collect());
        Hour { from: WallTime::from_secs(from), connections: state.series.iter().map(counts).collect() }
    }
}

impl State {
    /// Attributes what was counted since the last time to the minute that was current, then moves on to `minute`.
    fn advance(&mut self, minute: u64, totals: HashMap<String, Counts>) {
        for (name, total) in &totals {
            let counted = total.since(self.read.get(name).copied().unwrap_or_default());
            if counted != Counts::default() {
                let empty = || std::iter::repeat_n(Counts::default(), MINUTES).collect();
                let series = self.series.entry(name.clone()).or_insert_with(empty);
                series.iter_mut().last().into_iter().for_each(|last| last.add(counted));
            }
        }
        self.read = totals;
        // A clock that was set back changes only the name of the current minute.
        let passed = minute.saturating_sub(self.minute).min(MINUTES as u64);
        for series in self.series.values_mut().filter(|_| self.minute > 0) {
            for _ in 0..passed {
                series.pop_front();
                series.push_back(Counts::default());
            }
        }
        self.series.retain(|_, series| series.iter().any(|counts| *counts != Counts::default()));
        self.minute = minute;
    }
}

/// The counters of each connection, all callers and profiles together.
fn totals(metrics: &Metrics) -> HashMap<String, Counts> {
    let mut totals: HashMap<String, Counts> = HashMap::new();
    let label = |metric: &Metric, name: &str| {
        let found = metric.get_label().iter().find(|label| label.name() == name);
        found.map(|label| label.value().to_owned()).unwrap_or_default()
    };
    let mut count = |metric: &Metric, add: &dyn Fn(&mut Counts, u64)| {
        let (connection, value) = (label(metric, "connection"), metric.get_counter().get_value());
        if !connection.is_empty() && value > 0.0 {
            // A counter holds an integer.
            add(totals.entry(connection).or_default(), value as u64);
        }
    };
    for metric in metrics.requests.collect().iter().flat_map(|family| family.get_metric()) {
        let is_error = label(metric, "origin") == "upstream" && label(metric, "status_class") == "5xx";
        count(metric, &|counts, value| {
            counts.requests += value;
            counts.errors += if is_error { value } else { 0 };
        });
    }
    for metric in metrics.errors.collect().iter().flat_map(|family| family.get_metric()) {
        count(metric, &|counts, value| counts.refused += value);
    }
    totals
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(requests: u64) -> HashMap<String, Counts> {
        [("crm".to_owned(), Counts { requests, ..Counts::default() })].into()
    }

    #[test]
    fn a_minute_counts_what_happened_in_it_and_an_idle_connection_is_dropped_after_an_hour() {
        let mut state = State::default();
        let requests = |state: &State, back: usize| state.series["crm"][MINUTES - 1 - back].requests;
        state.advance(1000, totals(3));
        assert_eq!(requests(&state, 0), 3);
        state.advance(1000, totals(5));
        assert_eq!(requests(&state, 0), 5);
        state.advance(1001, totals(6));
        assert_eq!((requests(&state, 1), requests(&state, 0)), (6, 0));
        state.advance(1001, totals(10));
        assert_eq!((requests(&state, 1), requests(&state, 0)), (6, 4));
        // The clock is set back.
        state.advance(900, totals(11));
        assert_eq!((requests(&state, 1), requests(&state, 0)), (6, 5));
        state.advance(958, totals(11));
        assert_eq!((state.series["crm"].len(), requests(&state, 59), requests(&state, 58)), (MINUTES, 6, 5));
        state.advance(960, totals(11));
        assert!(state.series.is_empty());
        state.advance(960, totals(12));
        assert_eq!(requests(&state, 0), 1);
    }
}
