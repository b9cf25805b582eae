//! Reload: applies a changed configuration completely or not at all.
//!
//! Load → ensure slots → swap the snapshot → forget old slots. Triggered by SIGHUP, by changed files and by the API.
//! Not here: validation (`config`). Invariants: one reload runs at a time, and the last one wins; a refused
//! configuration changes nothing and is reported in log and metrics; `restart_required` names changed settings that are
//! fixed at startup, the rest is applied.
//! Metrics: `keybearer_config_*`.

mod watch;
mod wiring;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::admin::{ReloadOutcome, ReloadRequest};
use crate::config::{self, Loaded, Problems};
use crate::model::secret::Vault;
use crate::model::{Listeners, StoreSettings};
use crate::telemetry::audit::{Change, Person, Prepared};
use crate::telemetry::events::Event;
use crate::telemetry::{Logging, system};
use watch::Watch;
use wiring::Differences;
pub use wiring::{Parts, Wiring, WiringError};

/// Settings that need a restart.
#[derive(Debug, PartialEq, Eq)]
struct RestartSettings {
    listeners: Listeners,
    workers: usize,
    state_dir: PathBuf,
    store: StoreSettings,
}

impl RestartSettings {
    fn of(loaded: &Loaded) -> RestartSettings {
        let model = &loaded.model;
        RestartSettings {
            listeners: model.listeners.clone(),
            workers: model.workers,
            state_dir: model.state_dir.clone(),
            store: model.store.fixed(),
        }
    }

    /// The keys whose settings differ in `other`.
    fn changed_keys(&self, other: &RestartSettings) -> Vec<&'static str> {
        let keys = [
            ("listeners", self.listeners != other.listeners),
            ("workers", self.workers != other.workers),
            ("state_dir", self.state_dir != other.state_dir),
            ("store", self.store != other.store),
        ];
        keys.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
    }
}

/// Outcome of a reload.
#[derive(Debug)]
enum Outcome {
    /// Applied, except for the keys that need a restart.
    Applied {
        restart_required: Vec<&'static str>,
        differences: Differences,
    },
    /// The files match the current configuration.
    Unchanged,
    Refused(Problems),
    Failed(WiringError),
}

/// Trigger of a reload.
#[derive(Debug)]
enum Cause {
    Signal,
    File,
    Person(ReloadRequest),
}

impl Cause {
    /// The person who triggered the reload, if any; a signal does not identify its sender.
    fn by(&self) -> Option<Person> {
        match self {
            Cause::Signal => Some(Person { user: None, from: None }),
            Cause::Person(request) => Some(request.by.clone()),
            Cause::File => None,
        }
    }
}

/// Reloads one configuration file with the files that it refers to.
pub struct Reloader {
    path: PathBuf,
    /// The store that is open.
    vault: Arc<dyn Vault>,
    wiring: Wiring,
    logging: Logging,
    fixed: RestartSettings,
    /// Fingerprint of the current configuration.
    fingerprint: String,
    /// Files and directories that the configuration was read from.
    files: Vec<PathBuf>,
    watch: Watch,
    hangup: Signal,
    /// Reload requests of the API.
    requests: mpsc::Receiver<ReloadRequest>,
    /// Audit of the new configuration, prepared but not yet in use.
    audit: Option<Prepared>,
}

impl Reloader {
    /// Creates the reloader of the configuration at `path`; `loaded` is the current one. Installs the SIGHUP handler;
    /// until then, SIGHUP terminates the process.
    pub fn new(
        (path, vault): (PathBuf, Arc<dyn Vault>),
        loaded: &Loaded,
        wiring: Wiring,
        logging: Logging,
        requests: mpsc::Receiver<ReloadRequest>,
    ) -> io::Result<Reloader> {
        let (fixed, fingerprint) = (RestartSettings::of(loaded), loaded.fingerprint.clone());
        let files = watched(loaded);
        let watch = Watch::new(files.clone());
        let hangup = signal(SignalKind::hangup())?;
        Ok(Reloader { path, vault, wiring, logging, fixed, fingerprint, files, watch, hangup, requests, audit: None })
    }

    /// Reloads on SIGHUP, on changed files and on requests of the API. Never returns.
    pub async fn run(mut self) {
        // Catches changes between the first load and the start of the watch.
        let outcome = self.reload().await;
        if !matches!(outcome, Outcome::Unchanged) {
            log_outcome(&outcome);
            self.record(&outcome, &Cause::File);
        }
        loop {
            let cause = tokio::select! {
                _ = self.hangup.recv() => Cause::Signal,
                () = self.watch.changed() => Cause::File,
                Some(request) = self.requests.recv() => Cause::Person(request),
            };
            system::reloading();
            let cache = self.wiring.parts.cache.clone();
            let retry = cause.by().map(|by| (by, cache.failing()));
            let outcome = self.reload().await;
            if let Some((by, failing)) = retry {
                cache.retry_now(&failing, &by);
            }
            log_outcome(&outcome);
            self.publish_event(&outcome);
            self.record(&outcome, &cause);
            system::ready();
            match cause {
                // The admin client may have disconnected.
                Cause::Person(request) => drop(request.reply.send(outcome.into())),
                Cause::Signal => self.wiring.parts.audit.reopen_if_moved(),
                Cause::File => {}
            }
        }
    }

    fn publish_event(&self, outcome: &Outcome) {
        let event = match outcome {
            Outcome::Applied { restart_required, .. } => {
                Event::ConfigurationReloaded { restart_required: restart_required.clone() }
            }
            Outcome::Unchanged => return,
            Outcome::Refused(problems) => Event::ConfigurationRefused { problems: problems.problems.len() },
            Outcome::Failed(_) => Event::ConfigurationRefused { problems: 1 },
        };
        self.wiring.parts.events.publish(self.wiring.parts.clock.now().wall, event);
    }

    /// Records the reload in the current audit, and in the new one if it differs, so that switching audits leaves a
    /// trace.
    fn record(&mut self, outcome: &Outcome, cause: &Cause) {
        let none = Differences::default();
        let (word, differences, keys, problems) = match outcome {
            Outcome::Applied { restart_required, differences } => ("applied", differences, &restart_required[..], None),
            Outcome::Unchanged => return,
            Outcome::Refused(problems) => ("refused", &none, &[][..], Some(problems.problems.len())),
            Outcome::Failed(_) => ("failed", &none, &[][..], None),
        };
        let (cause, person) = match cause {
            Cause::Signal => ("signal", None),
            Cause::File => ("file", None),
            Cause::Person(request) => ("api", Some(&request.by)),
        };
        let change = Change {
            outcome: word,
            cause,
            user: person.and_then(|person| person.user.as_ref()).map(|user| user.as_str()),
            from: person.and_then(|person| person.from),
            added: &differences.added,
            changed: &differences.changed,
            removed: &differences.removed,
            restart_required: keys,
            problems,
        };
        let Parts { audit, clock, .. } = &self.wiring.parts;
        let at = clock.now().wall;
        audit.now().change(at, &change);
        if self.audit.take().is_some_and(|next| audit.apply(next)) {
            // The records in memory have it once.
            audit.now().target.change(at, &change);
        }
    }

    async fn reload(&mut self) -> Outcome {
        let (path, vault) = (self.path.clone(), self.vault.clone());
        // Changes from here on trigger another reload.
        self.watch.record_stamps();
        let loaded = match self.wiring.parts.tasks.blocking(move || config::load(&path, vault, &[])).await {
            Some(Ok(loaded)) => loaded,
            Some(Err(problems)) => {
                self.wiring.parts.metrics.reload_refused();
                // A missing file may appear in a directory that is not watched yet.
                self.watch.follow(self.files.iter().chain(&problems.files).cloned().collect());
                return Outcome::Refused(problems);
            }
            None => {
                self.wiring.parts.metrics.reload_refused();
                return Outcome::Failed(WiringError::Panicked);
            }
        };
        self.files = watched(&loaded);
        self.watch.follow(self.files.clone());
        let restart_required = self.fixed.changed_keys(&RestartSettings::of(&loaded));
        let unchanged = loaded.fingerprint == self.fingerprint;
        let mut differences = Differences::default();
        if !unchanged {
            match self.wiring.apply(&loaded.model) {
                Ok((found, audit)) => (differences, self.audit) = (found, Some(audit)),
                Err(error) => {
                    self.wiring.parts.metrics.reload_refused();
                    return Outcome::Failed(error);
                }
            }
            self.vault.apply(&loaded.model.store);
            self.logging.reconfigure(loaded.model.log);
            self.wiring.parts.metrics.reload_applied();
        }
        self.wiring.in_force(&loaded.fingerprint, !restart_required.is_empty());
        self.fingerprint = loaded.fingerprint;
        if unchanged { Outcome::Unchanged } else { Outcome::Applied { restart_required, differences } }
    }
}

impl From<Outcome> for ReloadOutcome {
    fn from(outcome: Outcome) -> ReloadOutcome {
        match outcome {
            Outcome::Applied { restart_required, .. } => ReloadOutcome::Applied { restart_required },
            Outcome::Unchanged => ReloadOutcome::Unchanged,
            Outcome::Refused(problems) => ReloadOutcome::Refused(problems.problems),
            Outcome::Failed(error) => ReloadOutcome::Failed(error.to_string()),
        }
    }
}

fn log_outcome(outcome: &Outcome) {
    match outcome {
        Outcome::Applied { restart_required, .. } if restart_required.is_empty() => {
            tracing::info!("configuration reloaded");
        }
        Outcome::Applied { restart_required, .. } => {
            let keys = restart_required.join(" ");
            tracing::warn!(restart_required = keys, "configuration reloaded; some changes need a restart");
        }
        Outcome::Unchanged => tracing::debug!("configuration unchanged"),
        Outcome::Refused(problems) => {
            for problem in &problems.problems {
                tracing::error!(%problem, "configuration refused");
            }
            let count = problems.problems.len();
            tracing::error!(problems = count, "configuration refused; keeping the previous one");
        }
        Outcome::Failed(error) => tracing::error!(%error, "configuration refused; keeping the previous one"),
    }
}

/// Files and directories whose change triggers a reload.
fn watched(loaded: &Loaded) -> Vec<PathBuf> {
    loaded.files.iter().chain(&loaded.directories).cloned().collect()
}
