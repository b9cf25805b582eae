//! The audit log: one record per use of a connection, denial, token request or configuration change.
//!
//! Not here: the file and its writer (`file`), the records kept in memory (`recent`), the log line of each request (`proxy::report`).
//! Invariants: a record contains names, addresses and escaped text, never a query string, a token or a secret;
//! recording never blocks, and records that do not fit the queue are counted and reported; if the audit is off, a request's
//! record is formatted only for `recent`, at a bounded rate.

mod file;
mod recent;
mod record;

use std::io;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use arc_swap::{ArcSwap, Guard};
use tokio::time::Instant;

use crate::model;
use crate::model::time::WallTime;
use crate::sync::lock;
use file::Queue;
pub use file::check_can_open;
pub use recent::Entry;
use recent::Recent;
use record::line;
pub use record::{Cause, Change, Kind, Person, Refresh, Request, record_schema};

/// Target of audit lines in the log; they are written at every `log.level`.
pub const TARGET: &str = "keybearer::audit";

/// Destination of audit records.
#[derive(Debug, Default)]
pub enum Target {
    Off,
    #[default]
    Log,
    File(Queue),
}

impl Target {
    /// Records a request to the admin side.
    fn admin(&self, at: WallTime, kind: Kind, record: &Request<'_>) {
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
                    %path, status, code, injected, "admin request");
            }
        }
    }

    fn refresh(&self, at: WallTime, record: &Refresh<'_>) {
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
                let Change { outcome, cause, user, from, restart_required, problems, .. } = record;
                let names = [record.added, record.changed, record.removed, record.fields];
                let [added, changed, removed, fields] = names.map(|names| names.join(" "));
                let fields = Some(fields).filter(|fields| !fields.is_empty());
                let from = from.map(tracing::field::display);
                tracing::info!(target: TARGET, audit = Kind::Change.as_str(), outcome, cause, user, from, added, changed, removed, fields,
                    restart_required = restart_required.join(" "), problems, "configuration change");
            }
        }
    }
}

/// The configured audit log; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Audit {
    target: Arc<ArcSwap<Target>>,
    recent: Arc<Recent>,
    writers: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

/// Records to the target in force, and to memory.
pub struct Recorder<'a> {
    pub target: Guard<Arc<Target>>,
    recent: &'a Recent,
}

impl Recorder<'_> {
    /// Value of the field `audit` of a log line, if audit records go to the log.
    pub fn in_log(&self, kind: Kind) -> Option<&'static str> {
        matches!(**self.target, Target::Log).then(|| kind.as_str())
    }

    /// Records a request of the proxy that began at `started`. It is not logged here: the log has its own line for each
    /// request.
    pub fn request(
        &self,
        kind: Kind,
        started: Instant,
        connection: Option<&str>,
        line: impl FnOnce() -> (WallTime, String),
    ) {
        let kept = self.recent.admits_request(started);
        let queue = match &**self.target {
            Target::File(queue) => Some(queue),
            Target::Off | Target::Log => None,
        };
        if !kept && queue.is_none() {
            return;
        }
        let (at, line) = line();
        if kept {
            self.recent.push(at, kind, connection, &line);
        }
        if let Some(queue) = queue {
            queue.push(at, line);
        }
    }

    /// Records a request to the admin side.
    pub fn admin(&self, at: WallTime, kind: Kind, record: &Request<'_>) {
        self.recent.push(at, kind, record.connection, &line(at, kind.as_str(), record));
        self.target.admin(at, kind, record);
    }

    pub fn refresh(&self, at: WallTime, record: &Refresh<'_>) {
        self.recent.push(at, Kind::Refresh, Some(record.connection), &line(at, Kind::Refresh.as_str(), record));
        self.target.refresh(at, record);
    }

    pub fn change(&self, at: WallTime, record: &Change<'_>) {
        self.recent.push(at, Kind::Change, None, &line(at, Kind::Change.as_str(), record));
        self.target.change(at, record);
    }
}

/// A target that is ready to be applied.
#[derive(Debug)]
pub enum Prepared {
    /// The target does not change.
    Unchanged,
    Changed(Target, Option<JoinHandle<()>>),
}

impl Audit {
    /// Records to the target in force. A reload may replace it, so call this again for each record.
    pub fn now(&self) -> Recorder<'_> {
        Recorder { target: self.target.load(), recent: &self.recent }
    }

    /// The latest records of this process.
    pub fn recent(&self) -> &Recent {
        &self.recent
    }

    /// Opens the target that `audit` configures. `start` runs a writer on a thread, which ends with its queue.
    pub fn prepare<S>(&self, audit: &model::Audit, start: S) -> io::Result<Prepared>
    where
        S: FnOnce(Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>>,
    {
        Ok(match (audit, &**self.target.load()) {
            (model::Audit::Off, Target::Off) | (model::Audit::Log, Target::Log) => Prepared::Unchanged,
            (model::Audit::File(path), Target::File(queue)) if queue.path == *path => {
                check_can_open(path)?;
                Prepared::Unchanged
            }
            (model::Audit::Off, _) => Prepared::Changed(Target::Off, None),
            (model::Audit::Log, _) => Prepared::Changed(Target::Log, None),
            (model::Audit::File(path), _) => {
                let (queue, writer) = file::open(path)?;
                let writer = start(Box::new(move || writer.run()))?;
                queue.set_writer(writer.thread());
                Prepared::Changed(Target::File(queue), Some(writer))
            }
        })
    }

    /// Applies a target. Records queued for the previous target are still written there. Returns true if the target
    /// changed.
    pub fn apply(&self, prepared: Prepared) -> bool {
        let Prepared::Changed(target, writer) = prepared else { return false };
        let mut writers = lock(&self.writers);
        writers.retain(|writer| !writer.is_finished());
        writers.extend(writer);
        retire(&self.target.swap(Arc::new(target)));
        true
    }

    /// Reopens the file if its path no longer names it, after a rotation.
    pub fn reopen_if_moved(&self) {
        if let Target::File(queue) = &**self.target.load() {
            queue.wake_writer();
        }
    }

    /// Stops recording. Returns the writers, which end once every queued record is written.
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
