//! What has just happened, told to whoever listens at that moment.
//!
//! Not here: the log, which keeps it. Holds: an event has names, times and clean words, never a token or a secret; who
//! listens slowly delays nobody and misses the oldest.

use std::time::Duration;

use tokio::sync::broadcast;

use crate::model::token::TokenKey;

/// Events that a slow listener may lie behind.
const BEHIND_MAX: usize = 256;

#[derive(Debug, Clone)]
pub enum Event {
    /// `expires`: since the Unix epoch.
    TokenObtained { key: TokenKey, expires: Duration },
    /// `retry`: since the Unix epoch; `None`: not before a person acts.
    TokenFailed { key: TokenKey, outcome: &'static str, error: String, retry: Option<Duration> },
    /// In force, but for the keys that need a restart.
    ConfigurationReloaded { restart_required: Vec<&'static str> },
    /// The one before stays in force.
    ConfigurationRefused { problems: usize },
}

/// The sender of all events; cloned freely.
#[derive(Debug, Clone)]
pub struct Events(broadcast::Sender<(Duration, Event)>);

impl Default for Events {
    fn default() -> Self {
        Events(broadcast::Sender::new(BEHIND_MAX))
    }
}

impl Events {
    /// `at`: since the Unix epoch.
    pub fn tell(&self, at: Duration, event: Event) {
        // Nobody may be listening.
        let _ = self.0.send((at, event));
    }

    pub fn listen(&self) -> broadcast::Receiver<(Duration, Event)> {
        self.0.subscribe()
    }
}
