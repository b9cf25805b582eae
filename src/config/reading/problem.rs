//! Problems of a configuration: each has a position, a message and a hint.
//!
//! Invariants: a problem prints as one line, whatever the file contains; no message contains a secret (readers quote
//! text as *written*, never the value of a reference).

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::digest;
use schemars::JsonSchema;
use serde::Serialize;

use super::published::{Destinations, Published};
use crate::model::StoreSettings;
use crate::model::secret::Vault;
use crate::telemetry::is_deceptive;

/// Maximum problems that are listed, so that a garbage file does not yield one problem per line.
const PROBLEMS_MAX: usize = 1000;

/// A problem of the configuration, and where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "ConfigurationProblem")]
pub struct Problem {
    #[schemars(with = "String")]
    pub file: PathBuf,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// Such as `connections[2].token_url`; empty for the whole file.
    pub path: String,
    /// For programs; absent if the message says it all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<&'static str>,
    pub message: String,
    pub hint: String,
}

/// The reasons why a configuration was rejected.
#[derive(Debug)]
pub struct Problems {
    pub problems: Vec<Problem>,
    pub warnings: Vec<Problem>,
    /// Files and directories that were read or are missing: a change to them may fix the problems.
    pub files: Vec<PathBuf>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Problem { file, line, column, path, message, hint, .. } = self;
        let mut text = format!("{}:{line}:{column}: ", file.display());
        if !path.is_empty() {
            text += path;
            text += ": ";
        }
        text += message;
        if !hint.is_empty() {
            text += "; ";
            text += hint;
        }
        text.chars().try_for_each(|c| match c {
            c if is_deceptive(c) => write!(f, "{}", c.escape_default()),
            c => f.write_char(c),
        })
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            let end = if index == 0 { "" } else { "\n" };
            write!(f, "{end}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Collects problems, warnings and the files that were read during one load.
#[derive(Default)]
pub struct Sink {
    /// Resolves `{store: NAME}`.
    pub vault: Option<Arc<dyn Vault>>,
    /// The store and the state directory, once they are known.
    pub store: Option<(StoreSettings, PathBuf)>,
    /// Resolves `{use: NAME}` and `mutual_tls: NAME`; `None` outside connections.
    pub published: Option<Arc<Published>>,
    /// Where the secrets that are being read are sent.
    pub destinations: Destinations,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
    files: BTreeSet<PathBuf>,
    directories: Vec<PathBuf>,
    contents: Contents,
    unlisted: usize,
}

/// Running digest of the contents that were read.
struct Contents(digest::Context);

impl Default for Contents {
    fn default() -> Self {
        Contents(digest::Context::new(&digest::SHA256))
    }
}

impl fmt::Debug for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

impl Sink {
    /// An empty sink for a definition that may fail by itself: it refers to the same published secrets.
    pub fn fork(&self) -> Sink {
        Sink { published: self.published.clone(), ..Sink::default() }
    }

    pub fn problem(&mut self, problem: Problem) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem);
        } else {
            self.unlisted += 1;
        }
    }

    pub fn warning(&mut self, warning: Problem) {
        if self.warnings.len() < PROBLEMS_MAX {
            self.warnings.push(warning);
        }
    }

    /// Records a file that the configuration depends on.
    pub fn file(&mut self, path: &Path) {
        self.files.insert(path.to_owned());
    }

    /// Records a directory whose files belong to the configuration.
    pub fn directory(&mut self, path: &Path) {
        self.directories.push(path.to_owned());
    }

    pub fn directories(&self) -> Vec<PathBuf> {
        self.directories.clone()
    }

    /// Adds the content of a file or a stored secret to the fingerprint.
    pub fn content(&mut self, bytes: &[u8]) {
        self.contents.0.update(&bytes.len().to_le_bytes());
        self.contents.0.update(bytes);
    }

    /// A short digest of everything that was read.
    pub fn fingerprint(&self) -> String {
        let digest = self.contents.0.clone().finish();
        digest.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    /// The warnings and files, or every problem: the main file's first, each file's from top to bottom.
    pub fn finish(mut self, main: &Path) -> Result<(Vec<Problem>, Vec<PathBuf>), Problems> {
        let order = |p: &Problem| (p.file != main, p.file.clone(), p.line, p.column);
        self.problems.sort_by_key(order);
        self.warnings.sort_by_key(order);
        if self.unlisted > 0 {
            let message = format!("{} more problems are not listed", self.unlisted);
            let hint = "fix the first ones and check again".to_owned();
            let (file, path) = (main.to_owned(), String::new());
            self.problems.push(Problem { file, line: 1, column: 1, path, code: None, message, hint });
        }
        if self.problems.is_empty() {
            return Ok((self.warnings, self.files.into_iter().collect()));
        }
        let files = self.files.into_iter().chain(self.directories).collect();
        Err(Problems { problems: self.problems, warnings: self.warnings, files })
    }
}

/// Words are compared up to this length; no key or keyword is as long.
const WORD_CHARS_MAX: usize = 64;

/// ``did you mean `token_url`?`` if `word` is close to one of `known`, else `otherwise`.
pub fn suggest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>, otherwise: &str) -> String {
    let word: String = word.chars().take(WORD_CHARS_MAX).collect();
    let distance_max = (word.chars().count() / 3).clamp(1, 3);
    let closest = known.into_iter().map(|name| (strsim::osa_distance(&word, name), name)).min();
    match closest {
        Some((distance, name)) if distance <= distance_max => format!("did you mean `{name}`?"),
        _ => otherwise.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(message: &str) -> Problem {
        let (path, hint) = ("connections[2].token_url".to_owned(), "write it".to_owned());
        Problem { file: "a.yaml".into(), line: 3, column: 7, path, code: None, message: message.to_owned(), hint }
    }

    #[test]
    fn a_problem_prints_as_one_line() {
        let text = problem("is\nnot\r\u{1b}[2J\u{202e}so").to_string();
        assert_eq!(text, "a.yaml:3:7: connections[2].token_url: is\\nnot\\r\\u{1b}[2J\\u{202e}so; write it");
    }

    #[test]
    fn problems_are_bounded_and_sorted() {
        let mut sink = Sink::default();
        sink.problem(Problem { file: "0.yaml".into(), ..problem("included") });
        for line in (1..=PROBLEMS_MAX + 5).rev() {
            sink.problem(Problem { line, ..problem("x") });
        }
        let Err(problems) = sink.finish(Path::new("a.yaml")) else { panic!("accepted") };
        assert_eq!(problems.problems.len(), PROBLEMS_MAX + 1);
        assert_eq!(problems.problems[PROBLEMS_MAX - 1].message, "included");
        assert!(problems.problems[0].line < problems.problems[1].line);
        assert!(problems.to_string().ends_with("6 more problems are not listed; fix the first ones and check again"));
    }

    #[track_caller]
    fn check(word: &str, expected: &str) {
        assert_eq!(suggest(word, ["token_url", "token_params", "name", "scopes"], "no"), expected, "{word}");
    }

    #[test]
    fn close_names_are_suggested() {
        check("tokn_url", "did you mean `token_url`?");
        check("token_ulr", "did you mean `token_url`?");
        check("Name", "did you mean `name`?");
        check("scope", "did you mean `scopes`?");
        check("colour", "no");
        check("", "no");
    }
}
