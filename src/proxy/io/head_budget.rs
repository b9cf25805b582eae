//! Unfinished request heads: which bytes are one, and the memory that those of all connections may occupy.
//!
//! Invariant: a connection whose head is complete holds no share, so that only slow or hostile callers compete for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// For all connections together: with what 10,000 idle ones take, the program stays below 200 MB.
const BUDGET_BYTES: usize = 64 * 1024 * 1024;

#[derive(Debug, Default)]
pub struct HeadBudget {
    taken_bytes: AtomicUsize,
}

/// The share of one connection; given back on drop, when the last of its requests has ended.
#[derive(Debug)]
pub struct HeadShare {
    budget: Arc<HeadBudget>,
    bytes: AtomicUsize,
}

impl HeadShare {
    pub fn new(budget: Arc<HeadBudget>) -> HeadShare {
        HeadShare { budget, bytes: AtomicUsize::new(0) }
    }

    /// Adjusts the share to `bytes`; false if the budget is exhausted, and the share stays. Called by one thread at a time.
    pub fn adjust(&self, bytes: usize) -> bool {
        let held = self.bytes.load(Ordering::Relaxed);
        if bytes > held {
            let more = bytes - held;
            let take = |taken: usize| taken.checked_add(more).filter(|taken| *taken <= BUDGET_BYTES);
            if self.budget.taken_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err() {
                return false;
            }
        } else if bytes < held {
            self.budget.taken_bytes.fetch_sub(held - bytes, Ordering::Relaxed);
        }
        self.bytes.store(bytes, Ordering::Relaxed);
        true
    }
}

impl Drop for HeadShare {
    fn drop(&mut self) {
        self.adjust(0);
    }
}

/// May this be the beginning of a head over HTTP/1.x, and no more? Whatever cannot be one is left to hyper to refuse.
pub fn is_unfinished(bytes: &[u8]) -> bool {
    let Some(line_end) = bytes.iter().position(|byte| *byte == b'\n') else {
        return bytes.iter().all(|byte| matches!(byte, b' '..=b'~' | b'\r'));
    };
    let (line, rest) = bytes.split_at(line_end);
    let is_request = line.windows(8).any(|part| part == b" HTTP/1.");
    is_request && !rest.windows(2).any(|part| part == b"\n\n") && !rest.windows(3).any(|part| part == b"\n\r\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_taken_and_given_back() {
        let budget = Arc::<HeadBudget>::default();
        let (one, other) = (HeadShare::new(budget.clone()), HeadShare::new(budget.clone()));
        assert!(one.adjust(BUDGET_BYTES - 1));
        assert!(!other.adjust(2) && other.adjust(1), "a refused share takes nothing");
        assert!(one.adjust(BUDGET_BYTES - 2) && other.adjust(2));
        drop(one);
        assert!(other.adjust(BUDGET_BYTES));
        drop(other);
        assert_eq!(budget.taken_bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_head_is_unfinished_until_its_empty_line_and_only_if_it_reads_like_one() {
        for (bytes, expected) in [
            ("", true),
            ("GE", true),
            ("GET http://a.test/ HTTP/1.1\r", true),
            ("GET / HTTP/1.1\r\nHost: x\r\n", true),
            ("GET / HTTP/1.1\nHost: x\n", true),
            ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", false),
            ("GET / HTTP/1.1\nHost: x\n\n", false),
            ("POST / HTTP/1.1\r\n\r\nbody", false),
            ("\r\nGET / HTTP/1.1\r\n", false),
            ("hello\r\n", false),
            ("\u{16}\u{3}\u{1}", false),
        ] {
            assert_eq!(is_unfinished(bytes.as_bytes()), expected, "{bytes:?}");
        }
    }
}
