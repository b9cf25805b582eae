//! The most recent audit records, in memory, whatever the audit's target is.
//!
//! Invariants: records and bytes are bounded; of the proxy's requests, at most [`REQUESTS_PER_SECOND_MAX`] are kept, at
//! the cost of one relaxed atomic operation for each of the others.
//! Not here: counts of all requests (`telemetry::activity`).

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;
use tokio::time::Instant;

use super::Kind;
use crate::model::time::WallTime;
use crate::sync::lock;

pub const RECORDS_MAX: usize = 10_000;
/// Upper bound of the memory that all records take.
const BYTES_MAX: usize = 8 * 1024 * 1024;
/// A longer record is shortened.
const RECORD_BYTES_MAX: usize = 2048;
/// In a shortened record.
const TEXT_CHARS_MAX: usize = 128;
const ITEMS_MAX: usize = 8;
const REQUESTS_PER_SECOND_MAX: u64 = 100;
/// What a record takes besides its text.
const OVERHEAD_BYTES: usize = size_of::<Entry>() + 64;

/// A record, numbered from 1.
#[derive(Debug, Clone)]
pub struct Entry {
    pub number: u64,
    pub at: WallTime,
    pub kind: Kind,
    pub connection: Option<String>,
    /// The record as a JSON object, as in a file.
    pub json: String,
}

#[derive(Debug)]
pub struct Recent {
    ring: Mutex<Ring>,
    /// The second, counted from `epoch`, in the upper half; the requests kept in it in the lower half.
    budget: AtomicU64,
    epoch: Instant,
}

#[derive(Debug, Default)]
struct Ring {
    entries: VecDeque<Entry>,
    bytes: usize,
    last_number: u64,
}

impl Default for Recent {
    fn default() -> Recent {
        Recent { ring: Mutex::default(), budget: AtomicU64::new(0), epoch: Instant::now() }
    }
}

impl Recent {
    /// True if a request that began at `started` is to be kept.
    pub fn admits_request(&self, started: Instant) -> bool {
        let second = started.saturating_duration_since(self.epoch).as_secs() << 32;
        let budget = self.budget.load(Ordering::Relaxed);
        // Two workers may begin a second at once; then a few requests more are kept.
        let used = if budget >= second { budget } else { second };
        let admitted = (used & u64::from(u32::MAX)) < REQUESTS_PER_SECOND_MAX;
        if admitted {
            self.budget.store(used + 1, Ordering::Relaxed);
        }
        admitted
    }

    /// `line` is the record as in a file.
    pub fn push(&self, at: WallTime, kind: Kind, connection: Option<&str>, line: &str) {
        let line = line.trim_end();
        let json = if line.len() > RECORD_BYTES_MAX { shortened(line) } else { line.to_owned() };
        let mut ring = lock(&self.ring);
        ring.last_number += 1;
        let entry = Entry { number: ring.last_number, at, kind, connection: connection.map(str::to_owned), json };
        ring.bytes += bytes_of(&entry);
        ring.entries.push_back(entry);
        while ring.entries.len() > RECORDS_MAX || ring.bytes > BYTES_MAX {
            let Some(oldest) = ring.entries.pop_front() else { break };
            ring.bytes -= bytes_of(&oldest);
        }
    }

    /// At most `limit` records older than the number `before` that `wanted` accepts, the latest first.
    pub fn page(&self, before: u64, limit: usize, wanted: impl Fn(&Entry) -> bool) -> Vec<Entry> {
        let ring = lock(&self.ring);
        let older = ring.entries.iter().rev().skip_while(|entry| entry.number >= before);
        older.filter(|entry| wanted(entry)).take(limit).cloned().collect()
    }
}

fn bytes_of(entry: &Entry) -> usize {
    OVERHEAD_BYTES + entry.json.len() + entry.connection.as_ref().map_or(0, String::len)
}

/// The record with its long texts and lists cut off.
fn shortened(line: &str) -> String {
    let mut record: Value = serde_json::from_str(line).unwrap_or_default();
    for member in record.as_object_mut().into_iter().flat_map(|members| members.values_mut()) {
        match member {
            Value::String(text) => cut(text),
            Value::Array(items) => {
                items.truncate(ITEMS_MAX);
                items.iter_mut().for_each(|item| {
                    if let Value::String(text) = item {
                        cut(text)
                    }
                });
            }
            _ => {}
        }
    }
    record.to_string()
}

fn cut(text: &mut String) {
    if let Some((at, _)) = text.char_indices().nth(TEXT_CHARS_MAX) {
        text.truncate(at);
        text.push('…');
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    #[test]
    fn records_and_bytes_are_bounded_and_the_latest_come_first() {
        let recent = Recent::default();
        for number in 0..RECORDS_MAX + 50 {
            recent.push(WallTime::default(), Kind::Use, Some("crm"), &format!("{{\"n\":{number}}}\n"));
        }
        let page = recent.page(u64::MAX, 2, |_| true);
        assert_eq!((page[0].json.as_str(), page[1].json.as_str()), ("{\"n\":10049}", "{\"n\":10048}"));
        let rest = recent.page(page[1].number, usize::MAX, |_| true);
        assert_eq!((rest.len(), rest[0].number), (RECORDS_MAX - 2, page[1].number - 1));

        let path = "x".repeat(60_000);
        let line = json!({"event": "use", "path": path, "added": vec![path.clone(); 100]}).to_string();
        for _ in 0..2 * RECORDS_MAX {
            recent.push(WallTime::default(), Kind::Use, None, &"y".repeat(RECORD_BYTES_MAX));
        }
        assert!(lock(&recent.ring).bytes <= BYTES_MAX);
        recent.push(WallTime::default(), Kind::Change, None, &line);
        let last = recent.page(u64::MAX, 1, |_| true).remove(0);
        assert!(last.json.len() < RECORD_BYTES_MAX && last.json.contains('…'), "{}", last.json);
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_admits_a_bounded_number_of_requests() {
        let recent = Recent::default();
        let admitted = || (0..500).filter(|_| recent.admits_request(Instant::now())).count() as u64;
        assert_eq!((admitted(), admitted()), (REQUESTS_PER_SECOND_MAX, 0));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(admitted(), REQUESTS_PER_SECOND_MAX);
    }
}
