//! Reload: applies a changed configuration completely or not at all.
//!
//! Load → ensure slots → swap the snapshot → forget old slots. Triggered by SIGHUP, by changed files, by definitions that
//! another replica has changed, and by the API.
//! Not here: validation (`config`), changes of definitions (`definitions`), log, events and audit (`report`). Invariants:
//! a store that cannot be read changes nothing; one reload runs at a time, and the last one wins; a refused
//! configuration changes nothing and is reported in log and metrics; `restart_required` names changed settings that are
//! fixed at startup, the rest is applied.
//! Metrics: `keybearer_config_*`.

mod definitions;
mod report;
mod watch;
mod wiring;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};

use crate::admin::{ConfigurationRequest, ReloadOutcome, ReloadRequest};
use crate::config::{self, Editor, Loaded, Problems};
use crate::model::secret::Vault;
use crate::model::{Listeners, StoreSettings};
use crate::store::{Definitions, Notification};
use crate::telemetry::audit::{Person, Prepared};
use crate::telemetry::{Logging, system};
pub use definitions::stored as stored_definitions;
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
    /// Another replica has changed the definitions, or the store is reachable again.
    Store,
    Person(ReloadRequest),
}

impl Cause {
    /// The person who triggered the reload, if any; a signal does not identify its sender.
    fn by(&self) -> Option<Person> {
        match self {
            Cause::Signal => Some(Person { user: None, from: None }),
            Cause::Person(request) => Some(request.by.clone()),
            Cause::File | Cause::Store => None,
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
    /// Requests of the API.
    requests: mpsc::Receiver<ConfigurationRequest>,
    /// Changes of the store by other replicas; `None`: no other process uses it.
    notifications: Option<broadcast::Receiver<Notification>>,
    /// The definitions in the store, as read last.
    definitions: Definitions,
    editor: Arc<Editor>,
    /// Audit of the new configuration, prepared but not yet in use.
    audit: Option<Prepared>,
}

impl Reloader {
    /// Creates the reloader of the configuration at `path`; `loaded`, with `definitions`, is the current one. Installs the
    /// SIGHUP handler; until then, SIGHUP terminates the process.
    pub fn new(
        (path, vault): (PathBuf, Arc<dyn Vault>),
        (loaded, definitions): (&Loaded, Definitions),
        wiring: Wiring,
        logging: Logging,
        requests: mpsc::Receiver<ConfigurationRequest>,
    ) -> io::Result<Reloader> {
        let files = watched(loaded);
        report::log_set_aside(&[], &loaded.set_aside);
        Ok(Reloader {
            path,
            vault,
            notifications: wiring.parts.cache.store().shared().map(|shared| shared.subscribe()),
            wiring,
            logging,
            fixed: RestartSettings::of(loaded),
            fingerprint: loaded.fingerprint.clone(),
            watch: Watch::new(files.clone()),
            files,
            hangup: signal(SignalKind::hangup())?,
            requests,
            definitions,
            editor: Arc::new(Editor::new()),
            audit: None,
        })
    }

    /// Reloads on SIGHUP, on changed files, on changed definitions and on requests of the API. Never returns.
    pub async fn run(mut self) {
        // Catches changes between the first load and the start of the watch.
        let outcome = self.reload().await;
        if !matches!(outcome, Outcome::Unchanged) {
            report::log_outcome(&outcome);
            self.record(&outcome, &Cause::File);
        }
        loop {
            let cause = tokio::select! {
                _ = self.hangup.recv() => Cause::Signal,
                () = self.watch.changed() => Cause::File,
                () = changed_definitions(&mut self.notifications) => Cause::Store,
                Some(request) = self.requests.recv() => match request {
                    ConfigurationRequest::Reload(request) => Cause::Person(request),
                    ConfigurationRequest::Change(request) => {
                        self.change(request).await;
                        continue;
                    }
                },
            };
            self.reload_because(cause).await;
        }
    }

    async fn reload_because(&mut self, cause: Cause) {
        system::reloading();
        let cache = self.wiring.parts.cache.clone();
        let retry = cause.by().map(|by| (by, cache.failing()));
        let outcome = self.reload().await;
        if let Some((by, failing)) = retry {
            cache.retry_now(&failing, &by);
        }
        report::log_outcome(&outcome);
        self.publish_event(&outcome);
        self.record(&outcome, &cause);
        system::ready();
        match cause {
            // The admin client may have disconnected.
            Cause::Person(request) => drop(request.reply.send(outcome.into())),
            Cause::Signal => self.wiring.parts.audit.reopen_if_moved(),
            Cause::File | Cause::Store => {}
        }
    }

    /// Loads the files with the definitions in the store. If the store cannot be read, the definitions stay as they are.
    async fn reload(&mut self) -> Outcome {
        match self.definitions.update(&**self.wiring.parts.cache.store()).await {
            Ok(_) => self.wiring.parts.health.set_definitions_read(),
            Err(error) => tracing::warn!(%error, "definitions in the store not read; keeping the previous ones"),
        }
        let stored = definitions::stored(&self.definitions, &definitions::in_force(&self.wiring.snapshot.load()));
        let (path, vault) = (self.path.clone(), self.vault.clone());
        // Changes from here on trigger another reload.
        self.watch.record_stamps();
        match self.wiring.parts.tasks.blocking(move || config::load(&path, vault, &stored)).await {
            Some(Ok(loaded)) => self.apply(loaded),
            Some(Err(problems)) => {
                self.wiring.parts.metrics.reload_refused();
                // A missing file may appear in a directory that is not watched yet.
                self.watch.follow(self.files.iter().chain(&problems.files).cloned().collect());
                Outcome::Refused(problems)
            }
            None => {
                self.wiring.parts.metrics.reload_refused();
                Outcome::Failed(WiringError::Panicked)
            }
        }
    }

    /// Puts a configuration in force.
    fn apply(&mut self, loaded: Loaded) -> Outcome {
        self.files = watched(&loaded);
        self.watch.follow(self.files.clone());
        let restart_required = self.fixed.changed_keys(&RestartSettings::of(&loaded));
        let unchanged = loaded.fingerprint == self.fingerprint;
        let mut differences = Differences::default();
        if !unchanged {
            report::log_set_aside(&self.wiring.snapshot.load().set_aside, &loaded.set_aside);
            match self.wiring.apply(&loaded) {
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

/// Files and directories whose change triggers a reload.
fn watched(loaded: &Loaded) -> Vec<PathBuf> {
    loaded.files.iter().chain(&loaded.directories).cloned().collect()
}

/// Waits until another replica has changed the definitions.
async fn changed_definitions(notifications: &mut Option<broadcast::Receiver<Notification>>) {
    loop {
        let Some(receiver) = notifications else { return std::future::pending().await };
        match receiver.recv().await {
            Ok(Notification::Definitions | Notification::Missed) | Err(RecvError::Lagged(_)) => return,
            Ok(Notification::Changed(_)) => {}
            Err(RecvError::Closed) => *notifications = None,
        }
    }
}
