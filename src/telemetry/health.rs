//! Is the program ready: a few facts that others report here, and the answer for `/readyz`.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::sync::lock;

/// What readiness hangs on. Live from the start; ready once the store was reached, and tokens were tried or the wait is
/// over; not while draining.
#[derive(Debug, Default)]
pub struct Health {
    store_stands: AtomicBool,
    tokens_settled: AtomicBool,
    draining: AtomicBool,
    /// Of the configuration in force.
    configuration: Mutex<String>,
}

impl Health {
    /// The store could be used once.
    pub fn store_stands(&self) {
        self.store_stands.store(true, Ordering::Relaxed);
    }

    /// Each connection has a token or a first answer, or the wait for them is over.
    pub fn tokens_settled(&self) {
        self.tokens_settled.store(true, Ordering::Relaxed);
    }

    pub fn draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Names the configuration in force by its fingerprint.
    pub fn configured(&self, fingerprint: &str) {
        *lock(&self.configuration) = fingerprint.to_owned();
    }

    pub fn configuration(&self) -> String {
        lock(&self.configuration).clone()
    }

    /// The checks by name, in the order in which they are shown.
    pub fn checks(&self) -> [(&'static str, bool); 3] {
        [
            ("store", self.store_stands.load(Ordering::Relaxed)),
            ("tokens", self.tokens_settled.load(Ordering::Relaxed)),
            ("serving", !self.draining.load(Ordering::Relaxed)),
        ]
    }

    pub fn is_ready(&self) -> bool {
        self.checks().iter().all(|(_, passed)| *passed)
    }
}
