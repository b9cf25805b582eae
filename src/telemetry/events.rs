//! What has just happened, told to whoever listens at that moment.
//!
//! Not here: the log, which keeps it. Holds: an event has names, times and clean words, never a token or a secret; who
//! listens slowly delays nobody and misses the oldest.

use tokio::sync::broadcast;

use crate::model::time::WallTime;
use crate::model::token::TokenKey;

/// Events that a slow listener may lie behind.
const BEHIND_MAX: usize = 256;

#[derive(Debug, Clone)]
pub enum Event {
    TokenObtained {
        key: TokenKey,
        expires: WallTime,
    },
    /// `retry`: the next attempt; `None`: none before a person acts.
    TokenFailed {
        key: TokenKey,
        outcome: &'static str,
        error: String,
        retry: Option<WallTime>,
    },
    /// In force, but for the keys that need a restart.
    ConfigurationReloaded {
        restart_required: Vec<&'static str>,
    },
    /// The one before stays in force.
    ConfigurationRefused {
        problems: usize,
    },
}

/// The sender of all events; cloned freely.
#[derive(Debug, Clone)]
pub struct Events(broadcast::Sender<(WallTime, Event)>);

impl Default for Events {
    fn default() -> Self {
        Events(broadcast::Sender::new(BEHIND_MAX))
    }
}

impl Events {
    pub fn tell(&self, at: WallTime, event: Event) {
        // Nobody may be listening.
        let _ = self.0.send((at, event));
    }

    pub fn listen(&self) -> broadcast::Receiver<(WallTime, Event)> {
        self.0.subscribe()
    }
}
