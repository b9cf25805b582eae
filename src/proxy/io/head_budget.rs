//! Unfinished request heads: recognizes one, and bounds the memory of all of them together.
//!
//! Invariant: a connection whose head is complete holds no share, so only slow or hostile callers compete for the
//! budget.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// For all connections together. With the memory of 10,000 idle connections added, the process stays below 200 MB.
const BUDGET_BYTES: usize = 64 * 1024 * 1024;

/// The memory budget for unfinished heads, shared by all connections.
#[derive(Debug, Default)]
pub struct HeadBudget {
    taken_bytes: AtomicUsize,
}

/// One connection's share of the budget; released on drop, after its last request has ended.
#[derive(Debug)]
pub struct HeadShare {
    budget: Arc<HeadBudget>,
    bytes: AtomicUsize,
}

impl HeadShare {
    pub fn new(budget: Arc<HeadBudget>) -> HeadShare {
        HeadShare { budget, bytes: AtomicUsize::new(0) }
    }

    /// Adjusts the share to `bytes`. Returns false, and leaves the share as it is, if the budget is exhausted. Called
    /// by one thread at a time.
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

/// True for an incomplete HTTP/1.x head. False for bytes that cannot be a head; hyper refuses them.
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
    fn shares_are_acquired_and_released() {
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
    fn a_head_is_unfinished_until_its_empty_line_and_only_if_it_looks_like_one() {
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
