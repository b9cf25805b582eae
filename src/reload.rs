//! A changed configuration goes into force whole, or not at all.
//!
//! Load → ensure slots → swap the snapshot → forget old slots. Asked for by SIGHUP, by changed files and by the API.
//! Not here: what is valid (`config`). Holds: one reload at a time, the last one wins; a refused configuration changes
//! nothing and is told in log and metrics; what is fixed at start is named in `restart_required`, the rest is applied.
//! Metrics: `keybearer_config_*`.

mod watch;
mod wiring;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::admin::{ReloadRequest, Reloaded};
use crate::config::{self, Loaded, Problems};
use crate::model::secret::Vault;
use crate::model::{Listeners, StoreSettings};
use crate::telemetry::audit::{Change, Person, Prepared};
use crate::telemetry::events::Event;
use crate::telemetry::{Logging, system};
use watch::Watch;
use wiring::Differences;
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
            store: model.store.fixed(),
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
        differences: Differences,
    },
    /// The files hold what is in force already.
    Unchanged,
    Refused(Problems),
    Failed(WiringError),
}

/// What asked for a reload.
#[derive(Debug)]
enum Cause {
    Signal,
    File,
    Person(ReloadRequest),
}

impl Cause {
    /// The person who wants it, if one does; a signal does not say who sent it.
    fn by(&self) -> Option<Person> {
        match self {
            Cause::Signal => Some(Person { user: None, from: None }),
            Cause::Person(asked) => Some(asked.by.clone()),
            Cause::File => None,
        }
    }
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
    /// What it was read from.
    files: Vec<PathBuf>,
    watch: Watch,
    hangup: Signal,
    /// Those that ask through the API.
    asked: mpsc::Receiver<ReloadRequest>,
    /// Of the configuration in force, but not followed yet.
    audit: Option<Prepared>,
}

impl Reloader {
    /// For the configuration at `path`, of which `loaded` is in force. From here on SIGHUP is heard; before, it would end
    /// the program.
    pub fn new(
        (path, vault): (PathBuf, Arc<dyn Vault>),
        loaded: &Loaded,
        wiring: Wiring,
        logging: Logging,
        asked: mpsc::Receiver<ReloadRequest>,
    ) -> io::Result<Reloader> {
        let (fixed, fingerprint) = (Fixed::of(loaded), loaded.fingerprint.clone());
        let files = watched(loaded);
        let watch = Watch::new(files.clone());
        let hangup = signal(SignalKind::hangup())?;
        Ok(Reloader { path, vault, wiring, logging, fixed, fingerprint, files, watch, hangup, asked, audit: None })
    }

    /// Reloads on SIGHUP, when the files change and when the API is asked to, until the task is stopped.
    pub async fn run(mut self) {
        // What changed between the first load and the start of the watch would not be noticed otherwise.
        let outcome = self.reload().await;
        if !matches!(outcome, Outcome::Unchanged) {
            tell(&outcome);
            self.record(&outcome, &Cause::File);
        }
        loop {
            let cause = tokio::select! {
                _ = self.hangup.recv() => Cause::Signal,
                () = self.watch.changed() => Cause::File,
                Some(asked) = self.asked.recv() => Cause::Person(asked),
            };
            system::reloading();
            let cache = self.wiring.parts.cache.clone();
            let asked = cause.by().map(|by| (by, cache.failing()));
            let outcome = self.reload().await;
            if let Some((by, failing)) = asked {
                cache.retry_now(&failing, &by);
            }
            tell(&outcome);
            self.announce(&outcome);
            self.record(&outcome, &cause);
            system::ready();
            match cause {
                // Whoever asked may have gone.
                Cause::Person(asked) => drop(asked.answer.send(outcome.into())),
                Cause::Signal => self.wiring.parts.audit.look(),
                Cause::File => {}
            }
        }
    }

    fn announce(&self, outcome: &Outcome) {
        let event = match outcome {
            Outcome::Applied { restart_required, .. } => {
                Event::ConfigurationReloaded { restart_required: restart_required.clone() }
            }
            Outcome::Unchanged => return,
            Outcome::Refused(problems) => Event::ConfigurationRefused { problems: problems.problems.len() },
            Outcome::Failed(_) => Event::ConfigurationRefused { problems: 1 },
        };
        self.wiring.parts.events.tell(self.wiring.parts.clock.now().wall, event);
    }

    /// In the audit as it was, and in the new one where that goes elsewhere: nobody switches it off unseen.
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
            Cause::Person(asked) => ("api", Some(&asked.by)),
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
        if self.audit.take().is_some_and(|next| audit.follow(next)) {
            audit.now().change(at, &change);
        }
    }

    async fn reload(&mut self) -> Outcome {
        let (path, vault) = (self.path.clone(), self.vault.clone());
        // What changes from here on is noticed again.
        self.watch.look_again();
        let loaded = match self.wiring.parts.tasks.blocking(move || config::load(&path, vault)).await {
            Some(Ok(loaded)) => loaded,
            Some(Err(problems)) => {
                self.wiring.parts.metrics.reload_refused();
                // What was missing may come in a place that was not watched so far.
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
        let restart_required = self.fixed.differing(&Fixed::of(&loaded));
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
            self.logging.change(loaded.model.log);
            self.wiring.parts.metrics.reload_applied();
        }
        self.wiring.in_force(&loaded.fingerprint, !restart_required.is_empty());
        self.fingerprint = loaded.fingerprint;
        if unchanged { Outcome::Unchanged } else { Outcome::Applied { restart_required, differences } }
    }
}

impl From<Outcome> for Reloaded {
    fn from(outcome: Outcome) -> Reloaded {
        match outcome {
            Outcome::Applied { restart_required, .. } => Reloaded::Applied { restart_required },
            Outcome::Unchanged => Reloaded::Unchanged,
            Outcome::Refused(problems) => Reloaded::Refused(problems.problems),
            Outcome::Failed(error) => Reloaded::Failed(error.to_string()),
        }
    }
}

fn tell(outcome: &Outcome) {
    match outcome {
        Outcome::Applied { restart_required, .. } if restart_required.is_empty() => {
            tracing::info!("configuration reloaded");
        }
        Outcome::Applied { restart_required, .. } => {
            let keys = restart_required.join(" ");
            tracing::warn!(restart_required = keys, "configuration reloaded, but for what needs a restart");
        }
        Outcome::Unchanged => tracing::debug!("configuration unchanged"),
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
