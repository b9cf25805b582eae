//! Changes of definitions over the API: from a body and the definition in force to the text to be stored.
//!
//! GET shows a mask, `{set: true}`, for each secret, and adds members for the state. In a body, a mask keeps its secret
//! (`kept`) unless another change could send it elsewhere (`travel`), and the added members are dropped: a GET followed
//! by a PUT of the same body changes nothing.
//! Invariants: pure, no I/O; no problem contains a value of the body.
//! Not here: whether the definition is valid (`stored`); who may change it (`admin`).

mod effect;
mod kept;
mod patch;
mod travel;

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use serde_json::{Map, Value};
use zeroize::Zeroizing;

use self::kept::{Definition, Masks, Shown, fill, wipe};
use self::travel::Change;
use super::reading::written::Shapes;
use super::reading::{NodeRef, Problem, Sink, Source};
use super::schema::{connection_defaults, schema};
use super::stored;
use crate::model::Name;
use crate::model::secret::Secret;

/// Code of the problem that a secret has to be entered again.
pub const SECRET_NEEDED: &str = "secret_needed";

/// Maximum secrets of each kind of problem that are reported.
const NEEDED_MAX: usize = 500;

/// Members that GET adds to a definition.
const ADDED: [&str; 10] = [
    "state",
    "expires_at",
    "last_attempt",
    "shared_tokens",
    "effective",
    "source",
    "problems",
    "etag",
    "set_aside",
    "logo",
];

/// Makes the texts of changed definitions. Building it compiles the schema.
pub struct Editor {
    shapes: Shapes,
    defaults: Map<String, Value>,
}

/// A changed definition.
pub struct Edited {
    /// Compact JSON, to be stored; the present text if nothing changes.
    pub text: Secret,
    /// The top-level keys that change, sorted.
    pub fields: Vec<String>,
    pub is_unchanged: bool,
    /// `None` for a patch.
    body: Option<Source>,
}

/// The definition in force.
struct Present<'t> {
    text: &'t str,
    plain: Definition,
    masked: Map<String, Value>,
}

impl Present<'_> {
    fn key(&self, key: &str) -> Option<Shown<'_>> {
        Some(Shown { plain: self.plain.0.get(key)?, masked: self.masked.get(key)? })
    }
}

impl Editor {
    pub fn new() -> Editor {
        Editor { shapes: Shapes::new(&schema(), "connection"), defaults: connection_defaults() }
    }

    /// The definition in `body`, YAML or JSON. `present`: the text in force under this name.
    ///
    /// # Errors
    /// Every problem of the body itself, and each secret that cannot be kept. The definition may still be invalid.
    pub fn replace(&self, name: &Name, body: &str, present: Option<&str>) -> Result<Edited, Vec<Problem>> {
        let present = present.and_then(|text| self.present(name, text));
        self.edit(name, body, present)
    }

    /// The definition in force, with an RFC 7396 patch over what GET shows.
    ///
    /// # Errors
    /// As [`Editor::replace`], or the present text cannot be read. Problems have a path, but no position.
    pub fn merge(&self, name: &Name, patch: &Value, present: &str) -> Result<Edited, Vec<Problem>> {
        let Some(present) = self.present(name, present) else {
            let message = "the stored definition cannot be read".to_owned();
            let hint = "replace it as a whole, with PUT".to_owned();
            let (file, path) = (stored::path(name), String::new());
            return Err(vec![Problem { file, line: 1, column: 1, path, code: None, message, hint }]);
        };
        let mut merged = Value::Object(present.masked.clone());
        let plain = Value::Object(present.plain.0.clone());
        let shown = Value::Object(present.masked.clone());
        patch::merge(&mut merged, patch, Some(Shown { plain: &plain, masked: &shown }));
        let text = Zeroizing::new(merged.to_string());
        [plain, merged].iter_mut().for_each(wipe);
        let without_position = |problem| Problem { line: 1, column: 1, ..problem };
        match self.edit(name, &text, Some(present)) {
            Ok(edited) => Ok(Edited { body: None, ..edited }),
            Err(problems) => Err(problems.into_iter().map(without_position).collect()),
        }
    }

    fn present<'t>(&self, name: &Name, text: &'t str) -> Option<Present<'t>> {
        // Only the validator reports the problems of a stored text.
        let source = Source::parse(text, &stored::path(name), &mut Sink::default())?;
        let root = source.root()?;
        let plain = self.members(&root)?;
        let Value::Object(masked) = serde_json::from_str(&self.shapes.definition(&root).0).ok()? else { return None };
        Some(Present { text, plain, masked })
    }

    /// The members of a map that may be keys of a definition; null is an absent key.
    fn members(&self, root: &NodeRef<'_>) -> Option<Definition> {
        let Value::Object(members) = serde_json::from_str(&self.shapes.unmasked(root)).ok()? else { return None };
        let mut definition = Definition(members);
        definition.0.retain(|key, value| !value.is_null() && !ADDED.contains(&key.as_str()));
        Some(definition)
    }

    fn edit(&self, name: &Name, body: &str, present: Option<Present<'_>>) -> Result<Edited, Vec<Problem>> {
        let mut sink = Sink::default();
        // Parsed only: no reference is resolved here.
        let source = Source::parse(body, &stored::path(name), &mut sink);
        let updated = source.and_then(|source| {
            let updated = self.updated(name, &source, present.as_ref(), &mut sink)?;
            Some((updated, source))
        });
        let problems = sink.finish(Path::new("")).map_or_else(|problems| problems.problems, |_| Vec::new());
        let (updated, source) = updated.filter(|_| problems.is_empty()).ok_or(problems)?;
        Ok(compare(&updated, present.as_ref(), source))
    }

    /// The new definition, with the secrets that it keeps.
    fn updated(
        &self,
        name: &Name,
        source: &Source,
        present: Option<&Present<'_>>,
        sink: &mut Sink,
    ) -> Option<Definition> {
        let root = stored::root(source, sink)?;
        let Some(mut updated) = self.members(&root) else {
            root.problem(sink, "must be a map", "write it as `key: value` lines");
            return None;
        };
        match updated.0.get("name") {
            None => {
                updated.0.insert("name".to_owned(), name.as_str().into());
            }
            // The validator rejects a value that is not a name.
            Some(written) => {
                if let Some(written) = written.as_str().and_then(Name::parse) {
                    stored::check_name(&root.closest("name").1, &written, name, sink);
                }
            }
        }
        let masks = fill(&mut updated.0, |key| present?.key(key), self.shapes.root());
        self.check(&masks, &updated, present, &root, sink);
        Some(updated)
    }

    /// Reports the secrets that have to be entered.
    fn check(
        &self,
        masks: &Masks,
        updated: &Definition,
        present: Option<&Present<'_>>,
        root: &NodeRef<'_>,
        sink: &mut Sink,
    ) {
        let mut needed = |path: &str, message: String, hint: String| {
            let problem = root.closest(path).1.to_problem(message, hint);
            sink.problem(Problem { code: Some(SECRET_NEEDED), ..problem });
        };
        for path in masks.missing.iter().take(NEEDED_MAX) {
            let hint = "enter it; a secret is kept only at the same path, and in a list at the same index";
            needed(path, "no secret is kept here".to_owned(), hint.to_owned());
        }
        let Some(present) = present else { return };
        let (defaults, shape) = (&self.defaults, self.shapes.root());
        let change = Change { before: &present.plain.0, after: &updated.0, defaults, shape };
        let conflicts = change.conflicts(&masks.kept).into_iter().filter(|(_, conflicts)| !conflicts.is_empty());
        for (kept, conflicts) in conflicts.take(NEEDED_MAX) {
            let changed = conflicts.iter().map(|path| format!("`{path}`")).collect::<Vec<_>>().join(", ");
            let message = format!("the secret cannot be kept: {changed} changed, so it might be sent elsewhere");
            needed(&kept.path, message, format!("enter the secret again, or restore {changed}"));
        }
    }
}

impl Default for Editor {
    fn default() -> Editor {
        Editor::new()
    }
}

fn compare(updated: &Definition, present: Option<&Present<'_>>, body: Source) -> Edited {
    let absent = Map::new();
    let before = present.map_or(&absent, |present| &present.plain.0);
    let keys: BTreeSet<&String> = before.keys().chain(updated.0.keys()).collect();
    let changed = keys.into_iter().filter(|key| before.get(*key) != updated.0.get(*key));
    let fields: Vec<String> = changed.cloned().collect();
    let unchanged = present.filter(|_| fields.is_empty());
    let text = match unchanged {
        Some(present) => Secret::new(present.text),
        None => Secret::new(updated.to_json()),
    };
    Edited { text, fields, is_unchanged: unchanged.is_some(), body: Some(body) }
}

impl Edited {
    /// Moves a problem of [`Edited::text`] to the position of its path in the body; of a patch, to line 1, column 1.
    pub fn locate(&self, problem: Problem) -> Problem {
        let root = self.body.as_ref().and_then(Source::root);
        let Some((key, value)) = root.map(|root| root.closest(&problem.path)) else {
            return Problem { line: 1, column: 1, ..problem };
        };
        // In compact JSON, the value of a key follows a colon.
        let before = problem.column.checked_sub(2).and_then(|at| self.text.expose().chars().nth(at));
        let at = if before == Some(':') { value } else { key };
        Problem { line: at.line, column: at.column, ..problem }
    }
}

/// Leaves the texts out, which contain secrets.
impl fmt::Debug for Edited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Edited").field("fields", &self.fields).finish_non_exhaustive()
    }
}
