//! `script` and `variables`: the script is read, and compiled once to find its mistakes.

use super::file::{ConnectionFile, ScriptFile};
use crate::config::reading::{Problem, Sink, Spot, Unit, reference};
use crate::model::connection::ScriptSource;
use crate::model::secret::Secret;
use crate::script::Script;

pub fn script(spot: &Spot<'_>, sink: &mut Sink) -> Option<ScriptSource> {
    let unit = spot.unit::<ScriptFile>(sink)?;
    let (at, place, text, file) = match (unit.get(unit.keys.file), unit.get(unit.keys.source)) {
        (Some(at), None) => {
            let path = at.file(sink)?;
            let text = reference::file_text(&at, &path, sink)?;
            (at, path.display().to_string(), text, Some(path))
        }
        (None, Some(at)) => {
            let text = reference::text(&at, sink)?.value;
            let place = at.place();
            (at, place, text, None)
        }
        _ => {
            spot.problem(sink, "must have exactly one source", "write {file: PATH} or {source: TEXT}");
            return None;
        }
    };
    let Err(error) = Script::compile(&text) else { return Some(ScriptSource { place, text }) };
    let message = format!("the script {}", error.message);
    match (file, error.line) {
        // In a file of its own the place is known to the letter.
        (Some(file), Some(line)) => sink.problem(Problem {
            file,
            line,
            column: error.column.unwrap_or(1),
            path: at.path.clone(),
            message,
            hint: "mend the script".to_owned(),
        }),
        (_, line) => {
            let within = line
                .map_or_else(String::new, |line| format!(" (its line {line}, column {})", error.column.unwrap_or(1)));
            at.problem(sink, format!("{message}{within}"), "mend the script");
        }
    }
    None
}

/// Names and values that a script may read.
pub fn variables(unit: &Unit<'_, ConnectionFile>, sink: &mut Sink) -> Vec<(String, Secret)> {
    let Some(spot) = unit.get(unit.keys.variables) else { return Vec::new() };
    if unit.get(unit.keys.script).is_none() {
        spot.problem(sink, "nothing reads them: they go with `script`", "remove them, or add the script");
    }
    let value = |(key, _, value): (&str, Spot<'_>, Option<Spot<'_>>), sink: &mut Sink| {
        Some((key.to_owned(), Secret::new(reference::text(&value?, sink)?.value)))
    };
    spot.pairs(sink).into_iter().filter_map(|pair| value(pair, sink)).collect()
}
