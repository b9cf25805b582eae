//! The audit: who used a connection, was denied, had a token refreshed or changed the configuration. One record for each.
//!
//! Not here: the file and its writer (`file`), the line that the log has of each request (`proxy::report`).
//! Holds: a record has names, addresses and clean words, never a query string, a token or a secret; whoever records waits
//! for nobody, and what finds no place is counted and told; nothing is put into words where nothing is to be written.

mod file;
mod record;

use std::io;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use arc_swap::{ArcSwap, Guard};

use crate::model;
use crate::model::time::WallTime;
use crate::sync::lock;
use file::Queue;
pub use file::openable;
use record::line;
pub use record::{Cause, Change, Kind, Person, Refresh, Request};

/// Lines of the log that are the audit: they are written whatever `log.level` says.
pub const TARGET: &str = "keybearer::audit";

/// Where records go at this moment.
#[derive(Debug, Default)]
pub enum Target {
    Off,
    #[default]
    Log,
    File(Queue),
}

impl Target {
    /// The field `audit` of a line in the log, where the log is the audit.
    pub fn in_log(&self, kind: Kind) -> Option<&'static str> {
        matches!(self, Target::Log).then(|| kind.as_str())
    }

    /// A request's record as a line, for the file alone: the log has a line of its own for it.
    pub fn request(&self, line: impl FnOnce() -> (WallTime, String)) {
        if let Target::File(queue) = self {
            let (at, line) = line();
            queue.push(at, line);
        }
    }

    /// A request to the admin side.
    pub fn admin(&self, at: WallTime, kind: Kind, record: &Request<'_>) {
        match self {
            Target::Off => {}
            Target::File(queue) => queue.push(at, line(at, kind.as_str(), record)),
            Target::Log => {
                let Request {
                    user,
                    from,
                    listener,
                    connection,
                    profile,
                    method,
                    host,
                    path,
                    status,
                    code,
                    injected,
                    ..
                } = record;
                let host = host.as_ref().map(tracing::field::display);
                tracing::info!(target: TARGET, audit = kind.as_str(), user, %from, listener, connection, profile, %method, host,
                    %path, status, code, injected, "asked of the admin side");
            }
        }
    }

    pub fn refresh(&self, at: WallTime, record: &Refresh<'_>) {
        match self {
            Target::Off => {}
            Target::File(queue) => queue.push(at, line(at, Kind::Refresh.as_str(), record)),
            Target::Log => {
                let Refresh { connection, profile, subject, grant, outcome, error, cause, user, from } = record;
                let from = from.map(tracing::field::display);
                tracing::info!(target: TARGET, audit = Kind::Refresh.as_str(), connection, profile, subject, grant, outcome,
                    error, cause, user, from, "token request");
            }
        }
    }

    pub fn change(&self, at: WallTime, record: &Change<'_>) {
        match self {
            Target::Off => {}
            Target::File(queue) => queue.push(at, line(at, Kind::Change.as_str(), record)),
            Target::Log => {
                let Change { outcome, cause, user, from, added, changed, removed, restart_required, problems } = record;
                let [added, changed, removed] = [added, changed, removed].map(|names| names.join(" "));
                let from = from.map(tracing::field::display);
                tracing::info!(target: TARGET, audit = Kind::Change.as_str(), outcome, cause, user, from, added, changed, removed,
                    restart_required = restart_required.join(" "), problems, "configuration change");
            }
        }
    }
}

/// The audit as it is configured; cloned freely.
#[derive(Debug, Clone, Default)]
pub struct Audit {
    target: Arc<ArcSwap<Target>>,
    writers: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

/// A target that may be put into force.
#[derive(Debug)]
pub enum Prepared {
    /// The records go where they go already.
    Same,
    Other(Target, Option<JoinHandle<()>>),
}

impl Audit {
    pub fn now(&self) -> Guard<Arc<Target>> {
        self.target.load()
    }

    /// Opens what `audit` asks for. `start` runs a writer on a thread, which ends with its queue.
    pub fn prepare<S>(&self, audit: &model::Audit, start: S) -> io::Result<Prepared>
    where
        S: FnOnce(Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>>,
    {
        Ok(match (audit, &**self.target.load()) {
            (model::Audit::Off, Target::Off) | (model::Audit::Log, Target::Log) => Prepared::Same,
            (model::Audit::File(path), Target::File(queue)) if queue.path == *path => {
                openable(path)?;
                Prepared::Same
            }
            (model::Audit::Off, _) => Prepared::Other(Target::Off, None),
            (model::Audit::Log, _) => Prepared::Other(Target::Log, None),
            (model::Audit::File(path), _) => {
                let (queue, writer) = file::open(path)?;
                let writer = start(Box::new(move || writer.run()))?;
                queue.wakes(writer.thread());
                Prepared::Other(Target::File(queue), Some(writer))
            }
        })
    }

    /// Puts it into force; what was recorded before is still written where it was meant to go. True if that is elsewhere.
    pub fn follow(&self, prepared: Prepared) -> bool {
        let Prepared::Other(target, writer) = prepared else { return false };
        let mut writers = lock(&self.writers);
        writers.retain(|writer| !writer.is_finished());
        writers.extend(writer);
        retire(&self.target.swap(Arc::new(target)));
        true
    }

    /// Looks whether the file is still the one at its path.
    pub fn look(&self) {
        if let Target::File(queue) = &**self.target.load() {
            queue.look();
        }
    }

    /// The end: nothing is recorded any more. Gives the writers, which end when everything is written.
    pub fn close(&self) -> Vec<JoinHandle<()>> {
        retire(&self.target.swap(Arc::new(Target::Off)));
        std::mem::take(&mut lock(&self.writers))
    }
}

fn retire(target: &Target) {
    if let Target::File(queue) = target {
        queue.close();
    }
}
