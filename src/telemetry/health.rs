//! Is the program ready: a few facts that others report here, and the answer for `/readyz`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// What readiness hangs on. Live from the start; ready once tokens were tried or the wait is over; not while draining.
#[derive(Debug, Default)]
pub struct Health {
    tokens_settled: AtomicBool,
    draining: AtomicBool,
    /// Of the configuration in force.
    configuration: Mutex<String>,
}

impl Health {
    /// Each connection has a token or a first answer, or the wait for them is over.
    pub fn tokens_settled(&self) {
        self.tokens_settled.store(true, Ordering::Relaxed);
    }

    pub fn draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Names the configuration in force by its fingerprint.
    pub fn configured(&self, fingerprint: &str) {
        *self.configuration.lock().unwrap_or_else(PoisonError::into_inner) = fingerprint.to_owned();
    }

    pub fn configuration(&self) -> String {
        self.configuration.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The checks by name, in the order in which they are shown.
    pub fn checks(&self) -> [(&'static str, bool); 2] {
        [("tokens", self.tokens_settled.load(Ordering::Relaxed)), ("serving", !self.draining.load(Ordering::Relaxed))]
    }

    pub fn is_ready(&self) -> bool {
        self.checks().iter().all(|(_, passed)| *passed)
    }
}
