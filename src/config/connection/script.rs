//! `script` and `variables`. Compiles the script once, to report its errors.

use super::file::{ConnectionFile, ScriptFile};
use crate::config::reading::{NodeRef, Problem, Section, Sink, reference};
use crate::model::connection::ScriptSource;
use crate::model::secret::Secret;
use crate::script::Script;

pub fn script(node: &NodeRef<'_>, sink: &mut Sink) -> Option<ScriptSource> {
    let section = node.section::<ScriptFile>(sink)?;
    let (at, location, text, file) = match (section.get(section.keys.file), section.get(section.keys.source)) {
        (Some(at), None) => {
            let path = at.file(sink)?;
            let text = reference::file_text(&at, &path, sink)?;
            (at, path.display().to_string(), text, Some(path))
        }
        (None, Some(at)) => {
            let text = reference::text(&at, sink)?.value;
            let location = at.location();
            (at, location, text, None)
        }
        _ => {
            node.problem(sink, "must have exactly one source", "write {file: PATH} or {source: TEXT}");
            return None;
        }
    };
    let Err(error) = Script::compile(&text) else { return Some(ScriptSource { location, text }) };
    let message = format!("the script {}", error.message);
    match (file, error.line) {
        // In its own file, the position of the error is exact.
        (Some(file), Some(line)) => sink.problem(Problem {
            file,
            line,
            column: error.column.unwrap_or(1),
            path: at.path.clone(),
            code: None,
            message,
            hint: "fix the script".to_owned(),
        }),
        (_, line) => {
            let position = line.map_or_else(String::new, |line| {
                format!(" (line {line}, column {} of the script)", error.column.unwrap_or(1))
            });
            at.problem(sink, format!("{message}{position}"), "fix the script");
        }
    }
    None
}

/// Reads the variables of a script.
pub fn variables(section: &Section<'_, ConnectionFile>, sink: &mut Sink) -> Vec<(String, Secret)> {
    let Some(node) = section.get(section.keys.variables) else { return Vec::new() };
    if section.get(section.keys.script).is_none() {
        node.problem(sink, "variables have no effect without `script`", "remove them, or add `script`");
    }
    let value = |(key, _, value): (&str, NodeRef<'_>, Option<NodeRef<'_>>), sink: &mut Sink| {
        Some((key.to_owned(), Secret::new(reference::text(&value?, sink)?.value)))
    };
    node.pairs(sink).into_iter().filter_map(|pair| value(pair, sink)).collect()
}
