//! Requests to the task that puts configurations in force, and their outcomes.
//!
//! Not here: carrying them out (`reload`), the operations that send them (`actions`, `definitions`).

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use crate::config::Problem;
use crate::model::Name;
use crate::model::connection::{Connection, Revision};
use crate::store::StoreError;
use crate::telemetry::audit::Person;

/// A request of a user.
#[derive(Debug)]
pub enum ConfigurationRequest {
    Reload(ReloadRequest),
    Change(ChangeRequest),
}

/// A reload requested by a user.
#[derive(Debug)]
pub struct ReloadRequest {
    pub by: Person,
    pub reply: oneshot::Sender<ReloadOutcome>,
}

/// Outcome of a requested reload.
#[derive(Debug)]
pub enum ReloadOutcome {
    /// Applied; changes to the named keys need a restart.
    Applied {
        restart_required: Vec<&'static str>,
    },
    /// The files match the current configuration.
    Unchanged,
    Refused(Vec<Problem>),
    Failed(String),
}

/// A change of definitions requested by a user.
#[derive(Debug)]
pub struct ChangeRequest {
    pub by: Person,
    pub change: Arc<Change>,
    /// Checks the change without making it.
    pub dry_run: bool,
    pub reply: oneshot::Sender<Result<Changed, NotChanged>>,
}

/// A change of the definitions in the store; all or nothing.
pub enum Change {
    /// `body` is the whole definition, in YAML or JSON.
    Put { name: Name, body: Zeroizing<String>, precondition: Precondition },
    /// `patch` is a JSON merge patch (RFC 7396) of the definition as `GET` shows it.
    Merge { name: Name, patch: Value, precondition: Precondition },
    /// Removes one definition.
    Remove { name: Name, precondition: Precondition },
    /// Puts each definition, in JSON; `prune` removes all others.
    Apply { definitions: BTreeMap<Name, Zeroizing<String>>, prune: bool },
}

impl Change {
    /// True for a definition that is checked and never kept.
    pub fn keeps_nothing(&self) -> bool {
        matches!(self, Change::Put { precondition: Precondition::Unconditional, .. })
    }

    /// The names that the change puts or removes by name.
    pub fn names(&self) -> Vec<&Name> {
        match self {
            Change::Put { name, .. } | Change::Merge { name, .. } | Change::Remove { name, .. } => vec![name],
            Change::Apply { definitions, .. } => definitions.keys().collect(),
        }
    }
}

/// Shows the names; the rest may hold secrets.
impl std::fmt::Debug for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Change").field(&self.names()).finish()
    }
}

/// The condition of a change, from `If-Match` and `If-None-Match` (RFC 9110 §13.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Precondition {
    /// None was sent: only a new definition may be put.
    Absent,
    /// `If-None-Match: *`: there is no definition.
    New,
    /// `If-Match: *`: there is a definition.
    Existing,
    /// `If-Match`: the revision in force is one of these.
    Revisions(Vec<Revision>),
    /// For a dry run that replaces nothing.
    Unconditional,
}

/// A change that is in force, or that would be after a dry run.
#[derive(Debug, Default)]
pub struct Changed {
    pub created: Vec<Name>,
    pub changed: Vec<Name>,
    pub unchanged: Vec<Name>,
    pub removed: Vec<Name>,
    /// The top-level keys that differ, of a change of one definition.
    pub fields: Vec<String>,
    /// Of one definition: its revision in force.
    pub revision: Option<Revision>,
    /// Of one definition: what it means.
    pub connection: Option<Arc<Connection>>,
}

/// Why a change was not made.
#[derive(Debug)]
pub enum NotChanged {
    /// The name is defined in a file, or the configuration forbids editing; `path` is that file or key.
    ReadOnly {
        name: Option<Name>,
        path: String,
    },
    /// The store keeps no definitions.
    NotKept,
    Unknown,
    PreconditionRequired,
    /// With the reason and the remedy.
    PreconditionFailed(&'static str),
    /// Problems of the definitions, each with the name of its connection.
    Refused(Vec<(Name, Problem)>),
    /// These definitions would no longer be valid without the ones that the change removes.
    InUse(Vec<(Name, Problem)>),
    /// The configuration files have problems, so nothing can be put in force.
    Files(Vec<Problem>),
    TooLarge(&'static str),
    Store(StoreError),
    /// The store failed while it made the change, and may have made it.
    Unclear(StoreError),
    /// Other writers keep changing the definitions.
    Contended,
    Failed(String),
}

impl NotChanged {
    /// The reason, for the log.
    pub fn word(&self) -> &'static str {
        match self {
            NotChanged::ReadOnly { .. } => "read only",
            NotChanged::NotKept => "store keeps no definitions",
            NotChanged::Unknown => "unknown",
            NotChanged::PreconditionRequired | NotChanged::PreconditionFailed(_) => "precondition",
            NotChanged::Refused(_) => "invalid",
            NotChanged::InUse(_) => "in use",
            NotChanged::Files(_) => "files invalid",
            NotChanged::TooLarge(_) => "too large",
            NotChanged::Store(_) | NotChanged::Unclear(_) => "store unavailable",
            NotChanged::Contended => "contended",
            NotChanged::Failed(_) => "failed",
        }
    }
}
