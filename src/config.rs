//! The configuration validator: YAML files in; a checked [`Model`], or every problem, out.
//!
//! The pipeline: `load` reads the main file and the files that it includes. `reading` parses each into a tree with line
//! numbers and looks up the keys of each map in its serde twin, a struct whose fields are the keys. `settings` checks
//! the top-level keys; `connection` checks each connection, then conflicts between connections. `stored` does the same
//! for definitions that were made over the API; where they collide, the files win. Outside the pipeline, `edit` turns the
//! body of a request into such a definition, `fill` turns files into such a body, `schema` describes the twins for
//! editors, and `partial` reads a few keys for commands. Not here: watching files, swapping the current configuration
//! (`reload`).
//!
//! A new top-level key changes four files: `top` (the key with its description, examples and bounds), a file in this
//! folder (the keys below it, and its reader), `settings` (one line that calls the reader), and `model` (its meaning).
//! A new key of a connection changes `connection/file` or its folder, the reader in `connection`, and `model`. The
//! schema, the suggestions for unknown keys and the excerpts are derived from the twin.
//!
//! Invariants: no problem hides another; each has a file, line, column and path; no message contains a secret; imports
//! between files have no cycle.

mod admin;
mod bounds;
mod caller;
mod connection;
mod edit;
mod egress;
mod fill;
mod forward_proxy;
mod interception;
mod listener;
mod load;
mod observe;
mod partial;
mod published;
mod reading;
mod schema;
mod settings;
mod state_dir;
mod store;
mod stored;
mod top;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use edit::{Edited, Editor};
pub use fill::FilledDefinitions;
pub use load::included_files;
pub use partial::{
    InstanceLocation, ListenerLocation, caller_secret, has_desktop, locate_instance, presented_token, read_token,
    store_of,
};
pub use reading::secret::{STORED_NAME_PATTERN, is_stored_name};
pub use reading::{Excerpts, Problem, Problems};
pub use schema::{connection_defaults, definition_schemas, schema, tidy_schema};
pub use stored::{SetAside, StoredDefinition};

use crate::model::Model;
use crate::model::connection::Connection;
use crate::model::secret::Vault;
use connection::{Registry, Surroundings};
use reading::written::Shapes;
use reading::{Sink, Source, SourceKind};
use settings::Settings;
use top::TopFile;

/// A configuration without problems.
#[derive(Debug)]
pub struct Loaded {
    pub model: Model,
    pub warnings: Vec<Problem>,
    /// Stored definitions that are not in force.
    pub set_aside: Vec<SetAside>,
    /// Every file that was read: YAML, secrets, certificates.
    pub files: Vec<PathBuf>,
    /// The directories under `include`, to be watched for added and removed files.
    pub directories: Vec<PathBuf>,
    /// Digest of the contents of those files.
    pub fingerprint: String,
}

/// Loads `path` and every file that it includes, then the `stored` definitions; `{store: NAME}` is looked up in `vault`.
///
/// # Errors
/// Every problem of the files, those of the main file first. Stored definitions with problems are set aside.
pub fn load(path: &Path, vault: Arc<dyn Vault>, stored: &[StoredDefinition]) -> Result<Loaded, Problems> {
    let mut sink = Sink::default();
    sink.vault = Some(vault);
    match load::read(path, &mut sink) {
        Some(source) => assemble(&source, stored, sink),
        None => Err(failed(path, sink)),
    }
}

/// Loads a text that is not in a file yet; paths are relative to the directory of `path`, and there is no store to look
/// up secrets in.
///
/// # Errors
/// Every problem of the text.
pub fn load_text(text: &str, path: &Path) -> Result<Loaded, Problems> {
    let mut sink = Sink::default();
    match Source::parse(text, path, &mut sink) {
        Some(source) => assemble(&source, &[], sink),
        None => Err(failed(path, sink)),
    }
}

fn assemble(source: &Source, stored: &[StoredDefinition], mut sink: Sink) -> Result<Loaded, Problems> {
    let path = &source.path;
    let empty = Source { kind: SourceKind::File, path: path.clone(), document: reading::empty() };
    let Some(top) = source.root().or_else(|| empty.root()).and_then(|root| root.section::<TopFile>(&mut sink)) else {
        return Err(failed(path, sink));
    };
    let included = load::included(&top, &mut sink);
    let Settings { mut model, listeners_are_valid, callers } = settings::settings(&top, &mut sink);
    let stored = if model.admin.editing { stored } else { &[] };
    let context = connection::Context { callers, shapes: Shapes::new(&schema(), "connection") };
    let sections: Vec<_> = included.iter().filter_map(|source| load::included_section(source, &mut sink)).collect();
    let published = published::published(top.get(top.keys.secrets), top.get(top.keys.mutual_tls_profiles), &mut sink);
    sink.published = Some(Arc::new(published));
    let mut drafts = Vec::new();
    for section in std::iter::once(&top).chain(&sections) {
        let items = section.get(section.keys.connections).and_then(|list| list.items(&mut sink));
        for item in items.unwrap_or_default() {
            drafts.extend(connection::connection(&item, &context, &mut sink));
        }
    }
    let parsed = stored::parse(stored);
    let (candidates, set_aside) = stored::read(&parsed, &context, &sink);
    let surroundings = Surroundings {
        hosts: &model.hosts,
        has_interception: top.get(top.keys.interception).is_some(),
        needs_redirect_url: listeners_are_valid && model.public_url.is_none() && !model.listeners.consent_is_local(),
    };
    let mut registry = Registry::new(&surroundings);
    drafts.iter().for_each(|draft| registry.add(draft, &mut sink));
    let problems = stored::compare(&candidates, &drafts, &mut registry, &sink);
    drop(registry);
    connection::collect_extra_origins(&mut drafts, &mut sink);
    let needs_person = drafts.iter().any(|draft| draft.connection.as_ref().is_some_and(Connection::needs_person));
    store::check_durability(&top.at("store"), &model.store, needs_person, &mut sink);
    let mut settled = stored::settle(candidates, problems, set_aside);
    connection::collect_extra_origins(&mut settled.drafts, &mut sink);
    if drafts.is_empty() && stored.is_empty() {
        let hint = "add one under `connections`";
        top.at("connections").warning(&mut sink, "no connections are configured", hint);
    }
    // The order of `stored` decides which of two definitions is in force, and nothing else.
    settled.drafts.sort_unstable_by_key(|draft| draft.connection.as_ref().map(|connection| connection.name.clone()));
    let in_force = drafts.into_iter().chain(settled.drafts);
    let connections: Option<Vec<_>> = in_force.map(|draft| draft.connection.map(Arc::new)).collect();
    let Some(connections) = connections.filter(|_| listeners_are_valid) else {
        return Err(failed(path, sink));
    };
    let mut by_name: Vec<_> = stored.iter().collect();
    by_name.sort_unstable_by_key(|definition| &definition.name);
    for StoredDefinition { name, revision, text } in by_name {
        // A text that comes back after others has a new revision, which is the ETag.
        sink.content(format!("{name}/{revision}").as_bytes());
        text.iter().for_each(|text| sink.content(text.digest().as_bytes()));
    }
    let (directories, fingerprint) = (sink.directories(), sink.fingerprint());
    let (mut warnings, files) = sink.finish(path)?;
    warnings.extend(settled.warnings);
    model.connections = connections;
    Ok(Loaded { model, warnings, set_aside: settled.set_aside, files, directories, fingerprint })
}

/// Renders the lines that problems point at, with everything but known keys masked.
pub fn excerpts() -> Excerpts {
    Excerpts::new(schema::keys())
}

/// The problems of a failed load; never empty.
fn failed(path: &Path, sink: Sink) -> Problems {
    match sink.finish(path) {
        Err(problems) => problems,
        Ok((warnings, files)) => {
            let message = "the configuration could not be resolved".to_owned();
            let (file, yaml_path, hint) = (path.to_owned(), String::new(), "report this as a bug".to_owned());
            let problem = Problem { file, line: 1, column: 1, path: yaml_path, code: None, message, hint };
            Problems { problems: vec![problem], warnings, files }
        }
    }
}

#[cfg(test)]
mod tests;
