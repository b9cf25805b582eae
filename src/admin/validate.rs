//! Validates a definition that is not saved, as a save would, and keeps nothing.
//!
//! Invariant: the one validator decides (`config`), against the configuration files as they are now.
//! Not here: what a definition means by `{set: true}` (`preflight`), the configuration in force (`reload`).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use serde_json::json;
use tokio::sync::Semaphore;

use super::Admin;
use super::problem::{Problem, no_file};
use crate::config::{self, StoredDefinition};
use crate::model::Name;
use crate::model::connection::{Connection, DefinedIn};
use crate::model::secret::{Secret, Vault};

/// Longer than reading a large configuration takes.
const VALIDATION_TIMEOUT: Duration = Duration::from_secs(20);
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// What definitions are validated against.
pub struct Validator {
    /// The main configuration file.
    path: PathBuf,
    /// The store that is open.
    vault: Arc<dyn Vault>,
    /// One validation runs at a time, even if its request has timed out.
    permits: Arc<Semaphore>,
}

impl Validator {
    pub fn new(path: &Path, vault: Arc<dyn Vault>) -> Validator {
        Validator { path: path.to_owned(), vault, permits: Arc::new(Semaphore::new(1)) }
    }
}

impl Admin {
    /// The connection that the definition `text` makes under `name`.
    ///
    /// # Errors
    /// 422 with the problems of the definition; 409 if the files have problems themselves.
    pub async fn validate(&self, name: &Name, text: Secret) -> Result<Arc<Connection>, Problem> {
        let validator = self.validator.clone().ok_or_else(no_file)?;
        let definition = StoredDefinition { name: name.clone(), text };
        let load = async {
            // The semaphore is never closed.
            let permit = validator.permits.clone().acquire_owned().await;
            let load = move || {
                let _permit = permit;
                config::load(&validator.path, validator.vault.clone(), &[definition])
            };
            self.tasks.blocking(load).await
        };
        let Ok(loaded) = tokio::time::timeout(VALIDATION_TIMEOUT, load).await else {
            let detail = "reading the configuration files did not finish in time; retry";
            let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", detail);
            return Err(problem.retry_after(RETRY_AFTER));
        };
        let loaded = loaded.ok_or_else(failed)?.map_err(|problems| {
            let detail = "the configuration files have problems; correct them first, because a definition is checked \
                          against them";
            let problem = Problem::new(StatusCode::CONFLICT, "configuration_refused", detail);
            problem.with("problems", json!(problems.problems))
        })?;
        if let Some(aside) = loaded.set_aside.into_iter().find(|aside| aside.name == *name) {
            return Err(refused(&aside.problems));
        }
        let is_it = |made: &Arc<Connection>| made.name == *name && made.written.defined_in == DefinedIn::Api;
        loaded.model.connections.into_iter().find(is_it).ok_or_else(failed)
    }
}

/// The definition has problems. They have no position: the client's text was read as JSON.
fn refused(problems: &[config::Problem]) -> Problem {
    let shown = |problem: &config::Problem| {
        let mut shown = json!({ "path": problem.path, "message": problem.message, "hint": problem.hint });
        if let Some(code) = problem.code {
            shown["code"] = code.into();
        }
        shown
    };
    let detail = "the definition has problems; nothing was sent to its server";
    let code = problems.iter().find_map(|problem| problem.code).unwrap_or("definition_refused");
    let problem = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, code, detail);
    problem.with("problems", problems.iter().map(shown).collect::<Vec<_>>())
}

fn failed() -> Problem {
    let detail = "validating the definition failed; this is a bug, please report it";
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "validation_failed", detail)
}
