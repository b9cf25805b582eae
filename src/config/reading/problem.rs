//! What is wrong with a configuration: a sentence with an address and a way out.
//!
//! Holds: one problem is one line of output, whatever the file held; a secret's value is in no message (callers quote
//! what was *written*, never what a reference was filled with).

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::digest;
use serde::Serialize;

use crate::model::StoreSettings;
use crate::model::secret::Vault;
use crate::telemetry::is_deceptive;

/// More than a person reads; a file of nonsense must not become a list as long as itself.
const PROBLEMS_MAX: usize = 1000;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    pub file: PathBuf,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// `connections[2].token_url`; empty: the file as a whole.
    pub path: String,
    pub message: String,
    pub hint: String,
}

/// Why a configuration was refused.
#[derive(Debug)]
pub struct Problems {
    pub problems: Vec<Problem>,
    pub warnings: Vec<Problem>,
    /// Files and directories that were read or looked for: where the problems may be mended.
    pub files: Vec<PathBuf>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Problem { file, line, column, path, message, hint } = self;
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

/// What one load gathers on its way.
#[derive(Default)]
pub struct Sink {
    /// Where `{store: NAME}` is looked up.
    pub vault: Option<Arc<dyn Vault>>,
    /// The store and the state directory, once they are known.
    pub store: Option<(StoreSettings, PathBuf)>,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
    files: BTreeSet<PathBuf>,
    directories: Vec<PathBuf>,
    contents: Contents,
    left_out: usize,
}

/// What was read so far, as a running digest.
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
    pub fn problem(&mut self, problem: Problem) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem);
        } else {
            self.left_out += 1;
        }
    }

    pub fn warning(&mut self, warning: Problem) {
        if self.warnings.len() < PROBLEMS_MAX {
            self.warnings.push(warning);
        }
    }

    /// Notes a file that the configuration depends on.
    pub fn file(&mut self, path: &Path) {
        self.files.insert(path.to_owned());
    }

    /// Notes a directory whose files belong to the configuration.
    pub fn directory(&mut self, path: &Path) {
        self.directories.push(path.to_owned());
    }

    pub fn directories(&self) -> Vec<PathBuf> {
        self.directories.clone()
    }

    /// Notes what stood in it, for the fingerprint of the whole.
    pub fn content(&mut self, bytes: &[u8]) {
        self.contents.0.update(&bytes.len().to_le_bytes());
        self.contents.0.update(bytes);
    }

    /// Equal for equal contents of all files read; short, and reveals nothing of them.
    pub fn fingerprint(&self) -> String {
        let digest = self.contents.0.clone().finish();
        digest.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    /// Warnings and files, or all the problems: the main file's first, each file's from top to bottom.
    pub fn finish(mut self, main: &Path) -> Result<(Vec<Problem>, Vec<PathBuf>), Problems> {
        let order = |p: &Problem| (p.file != main, p.file.clone(), p.line, p.column);
        self.problems.sort_by_key(order);
        self.warnings.sort_by_key(order);
        if self.left_out > 0 {
            let message = format!("{} further problems are not listed", self.left_out);
            let hint = "mend the first ones and look again".to_owned();
            let (file, path) = (main.to_owned(), String::new());
            self.problems.push(Problem { file, line: 1, column: 1, path, message, hint });
        }
        if self.problems.is_empty() {
            return Ok((self.warnings, self.files.into_iter().collect()));
        }
        let files = self.files.into_iter().chain(self.directories).collect();
        Err(Problems { problems: self.problems, warnings: self.warnings, files })
    }
}

/// No key or word of ours is as long.
const WORD_CHARS_MAX: usize = 64;

/// ``did you mean `token_url`?`` where one of `known` is near `word`, else `otherwise`.
pub fn suggest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>, otherwise: &str) -> String {
    let word: String = word.chars().take(WORD_CHARS_MAX).collect();
    let allowed = (word.chars().count() / 3).clamp(1, 3);
    let near = known.into_iter().map(|name| (strsim::osa_distance(&word, name), name)).min();
    match near {
        Some((distance, name)) if distance <= allowed => format!("did you mean `{name}`?"),
        _ => otherwise.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(message: &str) -> Problem {
        let (path, hint) = ("connections[2].token_url".to_owned(), "write it".to_owned());
        Problem { file: "a.yaml".into(), line: 3, column: 7, path, message: message.to_owned(), hint }
    }

    #[test]
    fn a_problem_is_one_line() {
        let text = problem("is\nnot\r\u{1b}[2J\u{202e}so").to_string();
        assert_eq!(text, "a.yaml:3:7: connections[2].token_url: is\\nnot\\r\\u{1b}[2J\\u{202e}so; write it");
    }

    #[test]
    fn problems_are_bounded_and_in_order() {
        let mut sink = Sink::default();
        sink.problem(Problem { file: "0.yaml".into(), ..problem("included") });
        for line in (1..=PROBLEMS_MAX + 5).rev() {
            sink.problem(Problem { line, ..problem("x") });
        }
        let Err(problems) = sink.finish(Path::new("a.yaml")) else { panic!("accepted") };
        assert_eq!(problems.problems.len(), PROBLEMS_MAX + 1);
        assert_eq!(problems.problems[PROBLEMS_MAX - 1].message, "included");
        assert!(problems.problems[0].line < problems.problems[1].line);
        assert!(
            problems.to_string().ends_with("6 further problems are not listed; mend the first ones and look again")
        );
    }

    #[track_caller]
    fn check(word: &str, expected: &str) {
        assert_eq!(suggest(word, ["token_url", "token_params", "name", "scopes"], "no"), expected, "{word}");
    }

    #[test]
    fn near_names_are_suggested() {
        check("tokn_url", "did you mean `token_url`?");
        check("token_ulr", "did you mean `token_url`?");
        check("Name", "did you mean `name`?");
        check("scope", "did you mean `scopes`?");
        check("colour", "no");
        check("", "no");
    }
}
