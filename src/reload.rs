//! A changed configuration goes into force whole, or not at all.
//!
//! Load → ensure slots → swap the snapshot → forget old slots. Asked for by SIGHUP, by changed files and by the API.
//! Not here: what is valid (`config`). Holds: one reload at a time, the last one wins; a refused configuration changes
//! nothing and is told in log and metrics; what is fixed at start is named in `restart_required`, the rest is applied.
//! Metrics: `keybearer_config_*`.

mod watch;
mod wiring;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use crate::admin::Reloaded;
use crate::config::{self, Loaded, Problems};
use crate::model::secret::Vault;
use crate::model::{Listeners, StoreSettings};
use crate::telemetry::events::Event;
use crate::telemetry::{Logging, system};
use watch::Watch;
pub use wiring::{Parts, Wiring, WiringError};

/// What a running program cannot change.
#[derive(Debug, PartialEq, Eq)]
struct Fixed {
    listeners: Listeners,
    workers: usize,
    state_dir: PathBuf,
    store: StoreSettings,
}

impl Fixed {
    fn of(loaded: &Loaded) -> Fixed {
        let model = &loaded.model;
        Fixed {
            listeners: model.listeners.clone(),
            workers: model.workers,
            state_dir: model.state_dir.clone(),
            store: model.store.clone(),
        }
    }

    /// The keys by which `other` differs.
    fn differing(&self, other: &Fixed) -> Vec<&'static str> {
        let keys = [
            ("listeners", self.listeners != other.listeners),
            ("workers", self.workers != other.workers),
            ("state_dir", self.state_dir != other.state_dir),
            ("store", self.store != other.store),
        ];
        keys.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
    }
}

/// What came of a reload.
#[derive(Debug)]
enum Outcome {
    /// In force; the keys named need a restart.
    Applied {
        restart_required: Vec<&'static str>,
    },
    /// The files hold what is in force already.
    Unchanged,
    Refused(Problems),
    Failed(WiringError),
}

/// Reloads one configuration file with all that belongs to it.
pub struct Reloader {
    path: PathBuf,
    /// The store that is open.
    vault: Arc<dyn Vault>,
    wiring: Wiring,
    logging: Logging,
    fixed: Fixed,
    /// Of the configuration in force.
    fingerprint: String,
    watch: Watch,
    /// Those that ask through the API.
    asked: mpsc::Receiver<oneshot::Sender<Reloaded>>,
}

impl Reloader {
    /// For the configuration at `path`, of which `loaded` is in force.
    pub fn new(
        (path, vault): (PathBuf, Arc<dyn Vault>),
        loaded: &Loaded,
        wiring: Wiring,
        logging: Logging,
        asked: mpsc::Receiver<oneshot::Sender<Reloaded>>,
    ) -> Reloader {
        let (fixed, fingerprint) = (Fixed::of(loaded), loaded.fingerprint.clone());
        Reloader { path, vault, wiring, logging, fixed, fingerprint, watch: Watch::new(watched(loaded)), asked }
    }

    /// Reloads on SIGHUP, when the files change and when the API is asked to, until the task is stopped.
    pub async fn run(mut self) {
        let mut hangup = match signal(SignalKind::hangup()) {
            Ok(hangup) => hangup,
            Err(error) => return tracing::error!(%error, "SIGHUP cannot be received; nothing is reloaded"),
        };
        // What changed between the first load and the start of the watch would not be noticed otherwise.
        let outcome = self.reload().await;
        if !matches!(outcome, Outcome::Unchanged) {
            tell(&outcome);
        }
        loop {
            let asker = tokio::select! {
                _ = hangup.recv() => None,
                () = self.watch.changed() => None,
                Some(asker) = self.asked.recv() => Some(asker),
            };
            system::reloading();
            let outcome = self.reload().await;
            tell(&outcome);
            self.announce(&outcome);
            system::ready();
            if let Some(asker) = asker {
                // Whoever asked may have gone.
                let _ = asker.send(outcome.into());
            }
        }
    }

    fn announce(&self, outcome: &Outcome) {
        let event = match outcome {
            Outcome::Applied { restart_required } => {
                Event::ConfigurationReloaded { restart_required: restart_required.clone() }
            }
            Outcome::Unchanged => return,
            Outcome::Refused(problems) => Event::ConfigurationRefused { problems: problems.problems.len() },
            Outcome::Failed(_) => Event::ConfigurationRefused { problems: 1 },
        };
        self.wiring.parts.events.tell(self.wiring.parts.clock.now().wall, event);
    }

    async fn reload(&mut self) -> Outcome {
        let (path, vault) = (self.path.clone(), self.vault.clone());
        // What changes from here on is noticed again.
        self.watch.look_again();
        let loaded = match self.wiring.parts.tasks.blocking(move || config::load(&path, vault)).await {
            Some(Ok(loaded)) => loaded,
            Some(Err(problems)) => {
                self.wiring.parts.metrics.reload_refused();
                return Outcome::Refused(problems);
            }
            None => {
                self.wiring.parts.metrics.reload_refused();
                return Outcome::Failed(WiringError::Panicked);
            }
        };
        self.watch.follow(watched(&loaded));
        let restart_required = self.fixed.differing(&Fixed::of(&loaded));
        let unchanged = loaded.fingerprint == self.fingerprint;
        if !unchanged {
            if let Err(error) = self.wiring.apply(&loaded.model) {
                self.wiring.parts.metrics.reload_refused();
                return Outcome::Failed(error);
            }
            self.logging.change(loaded.model.log);
            self.wiring.parts.metrics.reload_applied();
        }
        self.wiring.in_force(&loaded.fingerprint, !restart_required.is_empty());
        self.fingerprint = loaded.fingerprint;
        if unchanged { Outcome::Unchanged } else { Outcome::Applied { restart_required } }
    }
}

impl From<Outcome> for Reloaded {
    fn from(outcome: Outcome) -> Reloaded {
        match outcome {
            Outcome::Applied { restart_required } => Reloaded::Applied { restart_required },
            Outcome::Unchanged => Reloaded::Unchanged,
            Outcome::Refused(problems) => Reloaded::Refused(problems.problems),
            Outcome::Failed(error) => Reloaded::Failed(error.to_string()),
        }
    }
}

fn tell(outcome: &Outcome) {
    match outcome {
        Outcome::Applied { restart_required } if restart_required.is_empty() => {
            tracing::info!("configuration reloaded");
        }
        Outcome::Applied { restart_required } => {
            let keys = restart_required.join(" ");
            tracing::warn!(restart_required = keys, "configuration reloaded, but for what needs a restart");
        }
        Outcome::Unchanged => tracing::info!("configuration unchanged"),
        Outcome::Refused(problems) => {
            for problem in &problems.problems {
                tracing::error!(%problem, "configuration refused");
            }
            let count = problems.problems.len();
            tracing::error!(problems = count, "configuration refused; the one before stays in force");
        }
        Outcome::Failed(error) => tracing::error!(%error, "configuration refused; the one before stays in force"),
    }
}

/// Files and directories whose change may be a change of the configuration.
fn watched(loaded: &Loaded) -> Vec<PathBuf> {
    loaded.files.iter().chain(&loaded.directories).cloned().collect()
}
