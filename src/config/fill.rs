//! Definitions in files of this machine, for the API of an instance that may be on another one.
//!
//! `literal` renders a definition. Not here: its validation, which is the instance's; sending it (`cli`).
//! Invariant: no message contains a secret.

mod literal;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::load::{included_files, read_within};
use super::reading::written::Shapes;
use super::reading::{Limits, NodeRef, Problem, Problems, Sink, Source, value};
use super::schema::schema;
use crate::model::Name;
use literal::Literals;

/// Definitions whose references are replaced by literals.
pub struct FilledDefinitions {
    /// `{"connections": […]}`
    pub json: Zeroizing<String>,
    pub warnings: Vec<Problem>,
    sources: Vec<Source>,
    positions: HashMap<Name, Position>,
}

/// Where a definition is written.
struct Position {
    /// Index of the source.
    source: usize,
    /// Path of the definition in it.
    path: String,
    /// For messages: `FILE:LINE`.
    location: String,
}

impl FilledDefinitions {
    /// Reads a file with `connections` or with one definition, or every `*.yaml` of a directory.
    ///
    /// # Errors
    /// Every problem of the files that can be found here.
    pub fn read(path: &Path) -> Result<FilledDefinitions, Problems> {
        let (mut sink, shapes) = (Sink::default(), Shapes::new(&schema(), "connection"));
        let paths = if path.is_dir() { files(path, &mut sink) } else { vec![path.to_owned()] };
        let read = |path: &PathBuf| read_within(Limits::EXPORT, path, &mut sink);
        let sources: Vec<Source> = paths.iter().filter_map(read).collect();
        let (mut json, mut positions) = (Zeroizing::new("{\"connections\":[".to_owned()), HashMap::new());
        for (index, source) in sources.iter().enumerate() {
            for node in definitions(source, &mut sink) {
                *json += if positions.is_empty() { "" } else { "," };
                Literals { sink: &mut sink, json: &mut json }.write(&node, Some(shapes.root()));
                let Some(name) = name(&node, &mut sink) else { continue };
                let position = Position { source: index, location: node.location(), path: node.path.clone() };
                if let Some(first) = positions.insert(name, position) {
                    let hint = "keep one of the two, or rename one";
                    node.problem(&mut sink, format!("has the name of another definition ({})", first.location), hint);
                }
            }
        }
        *json += "]}";
        let (warnings, _) = sink.finish(path)?;
        Ok(FilledDefinitions { json, warnings, sources, positions })
    }

    /// A problem that the instance found at `path` of a definition, at its position in the file. `None`: the files have
    /// no such definition.
    pub fn problem(&self, name: &str, path: &str, message: &str, hint: &str) -> Option<Problem> {
        let Position { source, path: start, .. } = self.positions.get(&Name::parse(name)?)?;
        let dot = if start.is_empty() || path.is_empty() || path.starts_with('[') { "" } else { "." };
        let full = format!("{start}{dot}{path}");
        let (_, value) = self.sources[*source].root()?.closest(&full);
        Some(Problem { path: full, ..value.to_problem(message, hint) })
    }
}

fn files(directory: &Path, sink: &mut Sink) -> Vec<PathBuf> {
    match included_files(directory) {
        Ok(files) if files.is_empty() => {
            let hint = "correct the path; to apply no definition at all, write a file with `connections: []`";
            sink.problem(whole(directory, "contains no *.yaml file".to_owned(), hint));
            Vec::new()
        }
        Ok(files) => files,
        Err(error) => {
            sink.problem(whole(directory, format!("cannot be read ({})", error.kind()), "correct the path"));
            Vec::new()
        }
    }
}

/// A problem of a whole file or directory.
fn whole(path: &Path, message: String, hint: &str) -> Problem {
    let (file, hint) = (path.to_owned(), hint.to_owned());
    Problem { file, line: 1, column: 1, path: String::new(), code: None, message, hint }
}

/// The definitions of a file. A file that has none must say so with `connections: []`.
fn definitions<'a>(source: &'a Source, sink: &mut Sink) -> Vec<NodeRef<'a>> {
    const NONE: &str = "write `connections: []` for none, or remove the file";
    let Some(root) = source.root() else {
        sink.problem(whole(&source.path, "is empty".to_owned(), NONE));
        return Vec::new();
    };
    let pairs = root.pairs(sink);
    let connections = pairs.iter().find(|(key, ..)| *key == "connections");
    if connections.is_none() && pairs.iter().any(|(key, ..)| *key == "name") {
        return vec![root];
    }
    for (key, key_node, _) in pairs.iter().filter(|(key, ..)| *key != "connections") {
        let key: String = key.chars().take(80).collect();
        let hint = "move it to the instance's own configuration file";
        key_node.problem(sink, format!("`{key}` is not part of a definition"), hint);
    }
    match connections {
        Some((_, _, Some(list))) => list.items(sink).unwrap_or_default(),
        Some((_, key, None)) => {
            key.problem(sink, "is empty", NONE);
            Vec::new()
        }
        None if root.is_map() => {
            let hint = "write `connections:` with a list, or the keys of one definition";
            root.problem(sink, "has neither `connections` nor `name`", hint);
            Vec::new()
        }
        None => Vec::new(),
    }
}

fn name(node: &NodeRef<'_>, sink: &mut Sink) -> Option<Name> {
    match node.value_of("name") {
        Some(at) => at.parse(sink, value::name),
        None => {
            if node.is_map() {
                node.problem(sink, "`name` is missing", "give the connection a name");
            } else {
                node.problem(sink, "must be a map", "write it as `key: value` lines");
            }
            None
        }
    }
}
