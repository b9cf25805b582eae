//! Readiness: state reported by other modules, and the checks of `/readyz`.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::sync::lock;

/// Readiness state. The program is live from the start. It is ready once the store has been reached, its definitions
/// have been read, and each token has been attempted, or the wait for tokens is over; it is not ready while draining.
#[derive(Debug, Default)]
pub struct Health {
    store_reached: AtomicBool,
    definitions_read: AtomicBool,
    tokens_settled: AtomicBool,
    draining: AtomicBool,
    /// Fingerprint of the current configuration.
    configuration: Mutex<String>,
}

impl Health {
    /// The store has been reached.
    pub fn set_store_reached(&self) {
        self.store_reached.store(true, Ordering::Relaxed);
    }

    /// The definitions in the store have been read, or there is none to read.
    pub fn set_definitions_read(&self) {
        self.definitions_read.store(true, Ordering::Relaxed);
    }

    /// Each connection has a token or the result of a first attempt, or the wait is over.
    pub fn set_tokens_settled(&self) {
        self.tokens_settled.store(true, Ordering::Relaxed);
    }

    pub fn set_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Sets the fingerprint of the current configuration.
    pub fn set_configuration(&self, fingerprint: &str) {
        *lock(&self.configuration) = fingerprint.to_owned();
    }

    pub fn configuration(&self) -> String {
        lock(&self.configuration).clone()
    }

    /// The checks by name, in display order.
    pub fn checks(&self) -> [(&'static str, bool); 4] {
        [
            ("store", self.store_reached.load(Ordering::Relaxed)),
            ("definitions", self.definitions_read.load(Ordering::Relaxed)),
            ("tokens", self.tokens_settled.load(Ordering::Relaxed)),
            ("serving", !self.draining.load(Ordering::Relaxed)),
        ]
    }

    pub fn is_ready(&self) -> bool {
        self.checks().iter().all(|(_, passed)| *passed)
    }
}
