//! The one validator: YAML files in, a checked [`Model`] out, or every problem at once.
//!
//! The way of a file: `document` makes a marked tree, `spot` looks up the keys of each map in its serde twin (`file`),
//! `resolve`, `connection` and `route` check the values (`value`, `endpoint`, `reference`), `conflict` compares
//! connections. Beside that way: `schema` for editors, `excerpt` for terminals. Not here: watching files, swapping what is in use (`reload`).
//! Holds: a mistake hides no other; each problem has file, line, column and path; no message holds a secret.

mod admin;
mod answer;
mod caller;
mod client;
mod conflict;
mod connection;
mod consent;
mod document;
mod endpoint;
mod excerpt;
mod file;
mod grant;
mod inject;
mod interception;
mod listener;
mod params;
mod pem;
mod placeholder;
mod problem;
mod profile;
mod reference;
mod resolve;
mod route;
mod schema;
mod script;
mod spot;
mod store;
mod strip;
mod value;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use admin::{Whereabouts, has_desktop, presented_token, read_token, whereabouts};
pub use excerpt::Excerpts;
pub use problem::{Problem, Problems};
pub use reference::is_stored_name;
pub use schema::SCHEMA;

use crate::model::connection::Connection;
use crate::model::secret::{Secret, Vault};
use crate::model::{Model, Name, StoreSettings};
use document::BYTES_MAX;
use file::TopFile;
use problem::Sink;
use spot::{Source, Spot, Unit};

/// More files than any directory of connections should hold.
const INCLUDED_FILES_MAX: usize = 4096;

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
    match read(path, &mut sink) {
        Some(source) => assemble(&source, sink),
        None => Err(refused(path, sink)),
    }
}

/// The same for a text that stands in no file yet; paths are relative to the directory of `path`, and no store is at hand.
///
/// # Errors
/// As [`load`].
pub fn load_text(text: &str, path: &Path) -> Result<Loaded, Problems> {
    let mut sink = Sink::default();
    match Source::parse(text, path, &mut sink) {
        Some(source) => assemble(&source, sink),
        None => Err(refused(path, sink)),
    }
}

fn assemble(source: &Source, mut sink: Sink) -> Result<Loaded, Problems> {
    let path = &source.path;
    let empty = Source { path: path.clone(), document: document::empty() };
    let Some(top) = source.root().or_else(|| empty.root()).and_then(|root| root.unit::<TopFile>(&mut sink)) else {
        return Err(refused(path, sink));
    };
    let included = included(&top, &mut sink);
    let settings = resolve::settings(&top, &mut sink);
    let units: Vec<_> = included.iter().filter_map(|source| included_unit(source, &mut sink)).collect();
    let mut drafts = Vec::new();
    for unit in std::iter::once(&top).chain(&units) {
        let items = unit.get(unit.keys.connections).and_then(|list| list.items(&mut sink));
        for item in items.unwrap_or_default() {
            drafts.extend(connection::connection(&item, &settings.caller_names, &mut sink));
        }
    }
    conflict::check(&drafts, &settings.hosts, &mut sink);
    lend(&mut drafts, &mut sink);
    interception::check(&drafts, top.get(top.keys.interception).is_some(), &mut sink);
    let person = drafts.iter().any(|draft| draft.connection.as_ref().is_some_and(Connection::needs_person));
    store::check_place(&top, &settings.store, person, &mut sink);
    if let (Some(listeners), None) = (&settings.listeners, &settings.public_url) {
        conflict::redirects(&drafts, listeners, &mut sink);
    }
    if drafts.is_empty() {
        let hint = "add one under `connections`";
        top.at("connections").warning(&mut sink, "no connection is configured", hint);
    }
    let connections: Option<Vec<_>> = drafts.into_iter().map(|draft| draft.connection.map(Arc::new)).collect();
    let (Some(connections), Some(listeners)) = (connections, settings.listeners) else {
        return Err(refused(path, sink));
    };
    let (directories, fingerprint) = (sink.directories(), sink.fingerprint());
    let (warnings, files) = sink.finish(path)?;
    let model = Model {
        listeners,
        listener_tls: settings.listener_tls,
        workers: settings.workers,
        readiness_wait: settings.readiness_wait,
        hosts: settings.hosts,
        trust: settings.trust,
        egress: settings.egress,
        interception: settings.interception,
        callers: settings.callers,
        admin: settings.admin,
        public_url: settings.public_url,
        state_dir: settings.state_dir,
        store: settings.store,
        timeouts: settings.timeouts,
        limits: settings.limits,
        log: settings.log,
        tracing: settings.tracing,
        audit: settings.audit,
        connections,
    };
    Ok(Loaded { model, warnings, files, directories, fingerprint })
}

/// Tells each connection where routes of others carry its token.
fn lend(drafts: &mut [connection::Draft<'_>], sink: &mut Sink) {
    let mut lent = Vec::new();
    for draft in drafts.iter() {
        let own = draft.name.as_ref().map(|(name, _)| name);
        for (spot, route) in &draft.routes {
            for other in &route.others {
                let name = &other.connection;
                let known = |draft: &connection::Draft<'_>| draft.name.as_ref().is_some_and(|(known, _)| known == name);
                if own == Some(name) {
                    let hint = "leave `connection` out: the token is its own";
                    spot.problem(sink, format!("`inject` names its own connection `{name}`"), hint);
                } else if !drafts.iter().any(known) {
                    let hint = "name one that is configured";
                    spot.problem(sink, format!("`inject` names the connection `{name}`, which is not there"), hint);
                }
                lent.push((name.clone(), route.origin()));
            }
        }
    }
    for (name, origin) in lent {
        let named = drafts.iter_mut().filter_map(|draft| draft.connection.as_mut()).find(|own| own.name == name);
        if let Some(connection) = named
            && !connection.lent.contains(&origin)
        {
            connection.lent.push(origin);
        }
    }
}

/// The store of a configuration and its state directory, whatever else it holds.
///
/// # Errors
/// The problems of those two keys, and of the file as a whole.
pub fn store_of(path: &Path) -> Result<(StoreSettings, PathBuf), Problems> {
    let mut sink = Sink::default();
    let source = read(path, &mut sink);
    let top = source.as_ref().and_then(|source| source.root()?.unit::<TopFile>(&mut sink));
    let state_dir = admin::state_dir(top.as_ref().and_then(|top| top.get(top.keys.state_dir)), &mut sink);
    let store = top.as_ref().and_then(|top| top.get(top.keys.store));
    let settings = store::settings(store, &state_dir, &mut sink);
    sink.finish(path).map(|_| (settings, state_dir))
}

/// What the caller `name` proves itself with; `None` where nothing is asked of it.
///
/// # Errors
/// The problems of that secret, such as one of which the configuration has a digest alone.
pub fn caller_secret(path: &Path, name: &Name, vault: Arc<dyn Vault>) -> Result<Option<Secret>, Problems> {
    let mut sink = Sink::default();
    sink.vault = Some(vault);
    let source = read(path, &mut sink);
    let top = source.as_ref().and_then(|source| source.root()?.unit::<TopFile>(&mut sink));
    let secret = top.and_then(|top| {
        let state_dir = admin::state_dir(top.get(top.keys.state_dir), &mut sink);
        let store = store::settings(top.get(top.keys.store), &state_dir, &mut sink);
        sink.store = Some((store, state_dir));
        caller::secret_to_send(top.get(top.keys.callers), name, &mut sink)
    });
    sink.finish(path).map(|_| secret)
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

fn read(path: &Path, sink: &mut Sink) -> Option<Source> {
    sink.file(path);
    let problem = |sink: &mut Sink, line: usize, column: usize, message: String, hint: &str| {
        let (file, path, hint) = (path.to_owned(), String::new(), hint.to_owned());
        sink.problem(Problem { file, line, column, path, message, hint });
    };
    let bytes = match reference::read_bounded(path, BYTES_MAX) {
        Ok(bytes) => bytes,
        Err(reason) => {
            problem(sink, 1, 1, format!("cannot be read ({reason})"), "give another path, or divide a large file");
            return None;
        }
    };
    sink.content(&bytes);
    if bytes.trim_ascii().is_empty() {
        // Whoever writes a file in place empties it first: read at that moment, it would take everything away.
        let hint = "if it is not just being written, write `connections: []` for none, or remove it";
        problem(sink, 1, 1, "is empty".to_owned(), hint);
        return None;
    }
    match String::from_utf8(bytes) {
        Ok(text) => Source::parse(&text, path, sink),
        Err(error) => {
            let good = String::from_utf8_lossy(&error.as_bytes()[..error.utf8_error().valid_up_to()]).into_owned();
            let line = good.rsplit('\n').next().unwrap_or_default();
            problem(
                sink,
                good.matches('\n').count() + 1,
                line.chars().count() + 1,
                "is not UTF-8".to_owned(),
                "save it as UTF-8",
            );
            None
        }
    }
}

/// Every `*.yaml` in the directories of `include`, in the order of the list and of names.
fn included(top: &Unit<'_, TopFile>, sink: &mut Sink) -> Vec<Source> {
    let directories = top.get(top.keys.include).and_then(|list| list.items(sink)).unwrap_or_default();
    let mut paths: Vec<PathBuf> = Vec::new();
    for item in directories {
        let Some(directory) = item.file(sink) else { continue };
        sink.directory(&directory);
        match included_files(&directory) {
            Ok(files) => paths.extend(files),
            Err(error) => {
                let message = format!("{} cannot be read ({})", directory.display(), error.kind());
                item.problem(sink, message, "make the directory or remove it from the list");
            }
        }
        if paths.len() > INCLUDED_FILES_MAX {
            item.problem(sink, format!("more than {INCLUDED_FILES_MAX} files are included"), "put more into each file");
            return Vec::new();
        }
    }
    paths.iter().filter_map(|path| read(path, sink)).collect()
}

/// The files that a directory under `include` brings, in order; hidden ones are editors' and Kubernetes' own.
pub fn included_files(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|end| end == "yaml") && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// An included file holds `connections:` alone.
fn included_unit<'a>(source: &'a Source, sink: &mut Sink) -> Option<Unit<'a, TopFile>> {
    let root: Spot<'a> = source.root()?;
    let unit = root.unit::<TopFile>(sink)?;
    for (key, place, _) in root.pairs(sink) {
        if key != "connections" && unit.knows(key) {
            place.problem(sink, format!("`{key}` cannot stand in an included file"), "move it to the main file");
        }
    }
    Some(unit)
}

#[cfg(test)]
mod tests;
