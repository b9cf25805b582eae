//! Broadcast of events to live subscribers.
//!
//! Not here: the log, which is the permanent record.
//! Invariants: an event contains names, times and escaped text, never a token or a secret; a slow subscriber delays no
//! publisher and misses the oldest events.

use tokio::sync::broadcast;

use crate::model::time::WallTime;
use crate::model::token::TokenKey;

/// Events queued for a slow subscriber.
const QUEUE_MAX: usize = 256;

#[derive(Debug, Clone)]
pub enum Event {
    TokenObtained {
        key: TokenKey,
        expires: WallTime,
    },
    /// `retry`: time of the next attempt; `None`: a person must act first.
    TokenFailed {
        key: TokenKey,
        outcome: &'static str,
        error: String,
        retry: Option<WallTime>,
    },
    /// The new configuration was applied, except for the keys that need a restart.
    ConfigurationReloaded {
        restart_required: Vec<&'static str>,
    },
    /// The previous configuration stays active.
    ConfigurationRefused {
        problems: usize,
    },
}

/// Publisher of all events; cheap to clone.
#[derive(Debug, Clone)]
pub struct Events(broadcast::Sender<(WallTime, Event)>);

impl Default for Events {
    fn default() -> Self {
        Events(broadcast::Sender::new(QUEUE_MAX))
    }
}

impl Events {
    /// Never blocks. `at` is when the event happened.
    pub fn publish(&self, at: WallTime, event: Event) {
        // There may be no subscriber.
        let _ = self.0.send((at, event));
    }

    /// Receives events published from now on. `Lagged` reports how many a slow subscriber has missed.
    pub fn subscribe(&self) -> broadcast::Receiver<(WallTime, Event)> {
        self.0.subscribe()
    }
}
