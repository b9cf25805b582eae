//! The one validator: YAML files in, a checked [`Model`] out, or every problem at once.
//!
//! The way of a file: `load` reads it and all that it includes; the reading wing (`reading`) makes a marked tree of it and
//! looks up the keys of each map in its serde twin, a struct whose fields are the keys; `settings` checks the top-level
//! keys, the connection wing (`connection`) each connection and what connections must not share. Beside that way:
//! `schema` describes the twins for editors, `lookup` reads a part for commands. Not here: watching files, swapping what
//! is in use (`reload`).
//!
//! A new top-level key changes four files: `top` (the key with its description, examples and bounds), a file of its own
//! beside this one (the keys below it, and its reader), `settings` (one line that calls the reader), and `model` (what
//! it means). A new key of a connection: `connection/file` and its folder, the reader in the connection wing, and `model`.
//! The schema, the suggestions for unknown keys and the excerpts follow from the twin.
//!
//! Holds: a mistake hides no other; each problem has file, line, column and path; no message holds a secret; no file
//! imports one that imports it, at whatever distance.

mod admin;
mod bounds;
mod caller;
mod connection;
mod egress;
mod forward_proxy;
mod interception;
mod listener;
mod load;
mod lookup;
mod observe;
mod reading;
mod schema;
mod settings;
mod state_dir;
mod store;
mod top;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use load::included_files;
pub use lookup::{Whereabouts, caller_secret, has_desktop, presented_token, read_token, store_of, whereabouts};
pub use reading::secret::is_stored_name;
pub use reading::{Excerpts, Problem, Problems};
pub use schema::schema;

use crate::model::Model;
use crate::model::connection::Connection;
use crate::model::secret::Vault;
use reading::{Sink, Source};
use settings::Settings;
use top::TopFile;

/// A configuration without problems.
#[derive(Debug)]
pub struct Loaded {
    pub model: Model,
    pub warnings: Vec<Problem>,
    /// Every file that was read: YAML, secrets, certificates.
    pub files: Vec<PathBuf>,
    /// The directories under `include`, where files may come and go.
    pub directories: Vec<PathBuf>,
    /// Equal for equal contents of those files.
    pub fingerprint: String,
}

/// Reads `path` with everything it includes; `{store: NAME}` is looked up in `vault`.
///
/// # Errors
/// All problems at once, those of the main file first.
pub fn load(path: &Path, vault: Arc<dyn Vault>) -> Result<Loaded, Problems> {
    let mut sink = Sink::default();
    sink.vault = Some(vault);
    match load::read(path, &mut sink) {
        Some(source) => assemble(&source, sink),
        None => Err(refused(path, sink)),
    }
}

/// The same for a text that stands in no file yet; paths are relative to the directory of `path`, and no store is at hand.
///
/// # Errors
/// As [`load()`].
pub fn load_text(text: &str, path: &Path) -> Result<Loaded, Problems> {
    let mut sink = Sink::default();
    match Source::parse(text, path, &mut sink) {
        Some(source) => assemble(&source, sink),
        None => Err(refused(path, sink)),
    }
}

fn assemble(source: &Source, mut sink: Sink) -> Result<Loaded, Problems> {
    let path = &source.path;
    let empty = Source { path: path.clone(), document: reading::empty() };
    let Some(top) = source.root().or_else(|| empty.root()).and_then(|root| root.unit::<TopFile>(&mut sink)) else {
        return Err(refused(path, sink));
    };
    let included = load::included(&top, &mut sink);
    let Settings { mut model, knows_listeners, caller_names } = settings::settings(&top, &mut sink);
    let units: Vec<_> = included.iter().filter_map(|source| load::included_unit(source, &mut sink)).collect();
    let mut drafts = Vec::new();
    for unit in std::iter::once(&top).chain(&units) {
        let items = unit.get(unit.keys.connections).and_then(|list| list.items(&mut sink));
        for item in items.unwrap_or_default() {
            drafts.extend(connection::connection(&item, &caller_names, &mut sink));
        }
    }
    connection::check_conflicts(&drafts, &model.hosts, &mut sink);
    connection::lend(&mut drafts, &mut sink);
    connection::check_tunnels(&drafts, top.get(top.keys.interception).is_some(), &mut sink);
    let person = drafts.iter().any(|draft| draft.connection.as_ref().is_some_and(Connection::needs_person));
    store::check_place(&top.at("store"), &model.store, person, &mut sink);
    if knows_listeners && model.public_url.is_none() {
        connection::check_redirects(&drafts, &model.listeners, &mut sink);
    }
    if drafts.is_empty() {
        let hint = "add one under `connections`";
        top.at("connections").warning(&mut sink, "no connection is configured", hint);
    }
    let connections: Option<Vec<_>> = drafts.into_iter().map(|draft| draft.connection.map(Arc::new)).collect();
    let Some(connections) = connections.filter(|_| knows_listeners) else {
        return Err(refused(path, sink));
    };
    let (directories, fingerprint) = (sink.directories(), sink.fingerprint());
    let (warnings, files) = sink.finish(path)?;
    model.connections = connections;
    Ok(Loaded { model, warnings, files, directories, fingerprint })
}

/// Shows the lines that problems point at; the configuration's own keys in them are no secret.
pub fn excerpts() -> Excerpts {
    Excerpts::new(schema::keys())
}

/// The problems of a load that failed; never an empty list.
fn refused(path: &Path, sink: Sink) -> Problems {
    match sink.finish(path) {
        Err(problems) => problems,
        Ok((warnings, files)) => {
            let message = "the configuration could not be resolved".to_owned();
            let (file, within, hint) = (path.to_owned(), String::new(), "report this as a bug".to_owned());
            let problem = Problem { file, line: 1, column: 1, path: within, message, hint };
            Problems { problems: vec![problem], warnings, files }
        }
    }
}

#[cfg(test)]
mod tests;
