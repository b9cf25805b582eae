//! Renders the source line of a problem with carets below it, for a terminal.
//!
//! Invariants: only known keys, punctuation and text that the problem quotes anyway are shown; every other word may be
//! a secret and becomes an ellipsis. The excerpt is one line of bounded width, without control characters. Not here:
//! detecting a terminal (`cli`).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::document::BYTES_MAX;
use super::problem::Problem;
use super::reference;
use crate::telemetry::is_deceptive;

/// Maximum characters before the carets, and of the marked word.
const WIDTH_MAX: usize = 60;
/// A problem beyond this column gets no excerpt.
const COLUMN_MAX: usize = 10_000;
const ELLIPSIS: char = '…';

/// Reads the source lines. Caches the last file, since problems are sorted by file.
#[derive(Debug, Default)]
pub struct Excerpts {
    /// Keys of the configuration, which are shown unmasked.
    keys: BTreeSet<String>,
    file: PathBuf,
    text: String,
    /// Byte offset of each line.
    starts: Vec<usize>,
}

impl Excerpts {
    pub fn new(keys: BTreeSet<String>) -> Excerpts {
        Excerpts { keys, ..Excerpts::default() }
    }

    /// Two lines: the source and the carets. `None` if the file has no such position.
    pub fn of(&mut self, problem: &Problem) -> Option<String> {
        if self.file != problem.file {
            self.read(&problem.file);
        }
        let start = *self.starts.get(problem.line.checked_sub(1)?)?;
        let line = self.text[start..].lines().next().unwrap_or_default();
        let (source, mark) = excerpt(line, problem, &self.keys)?;
        let number = problem.line.to_string();
        let blank = " ".repeat(number.len());
        Some(format!("  {number} | {source}\n  {blank} | {mark}"))
    }

    fn read(&mut self, file: &Path) {
        let bytes = reference::read_bounded(file, BYTES_MAX).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        self.text = text.strip_prefix('\u{feff}').unwrap_or(&text).to_owned();
        self.starts = std::iter::once(0).chain(self.text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        self.file = file.to_owned();
    }
}

/// The visible part of `line`, and the carets below it.
fn excerpt(line: &str, problem: &Problem, keys: &BTreeSet<String>) -> Option<(String, String)> {
    let column = problem.column.checked_sub(1).filter(|column| *column <= COLUMN_MAX)?;
    let at = line.char_indices().map(|(at, _)| at).chain([line.len()]).nth(column)?;
    let (before, rest) = line.split_at(at);
    let mut source = masked(before, keys);
    let width = source.chars().count();
    if width > WIDTH_MAX {
        let kept: String = source.chars().skip(width - WIDTH_MAX + 1).collect();
        source = format!("{ELLIPSIS}{kept}");
    }
    let indent = source.chars().count();
    let (word, tail) = rest.split_at(match quoted_len(rest, &problem.message) {
        Some(bytes) => bytes,
        None => token(rest).len(),
    });
    let shown = if quoted_len(rest, &problem.message).is_some() { escaped(word) } else { masked(word, keys) };
    let carets = shown.chars().count().clamp(1, WIDTH_MAX);
    source.extend(shown.chars().take(WIDTH_MAX));
    if tail.starts_with(':') && token(tail) == ":" {
        source.push(':');
    }
    if !tail.trim_matches([':', ' ']).is_empty() && !source.ends_with(ELLIPSIS) {
        source.push(' ');
        source.push(ELLIPSIS);
    }
    Some((source, format!("{}{}", " ".repeat(indent), "^".repeat(carets))))
}

/// Length in bytes of the prefix of `rest` that the message quotes.
fn quoted_len(rest: &str, message: &str) -> Option<usize> {
    let inside = rest.trim_start_matches(['"', '\'']);
    let quoted = message.split('`').skip(1).step_by(2).filter(|text| !text.is_empty() && inside.starts_with(text));
    let longest = quoted.map(str::len).max()?;
    Some(rest.len() - inside.len() + longest)
}

/// Keeps punctuation, spaces and known keys, and replaces the rest by ellipses.
fn masked(text: &str, keys: &BTreeSet<String>) -> String {
    let mut shown = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (token, tail) = rest.split_at(token(rest).len());
        rest = tail;
        if is_punctuation(token) || keys.contains(token) {
            shown += &escaped(token);
        } else if shown.trim_end().ends_with(ELLIPSIS) {
            shown.truncate(shown.trim_end().len());
        } else {
            shown.push(ELLIPSIS);
        }
    }
    shown
}

/// The first token of `text`: a quoted string, a word, or one separator. Empty only if `text` is.
fn token(text: &str) -> &str {
    let Some(first) = text.chars().next() else { return text };
    if matches!(first, '"' | '\'') {
        return text[1..].find(first).map_or(text, |end| &text[..end + 2]);
    }
    let end = |(at, c): (usize, char)| {
        let after = text[at + c.len_utf8()..].chars().next();
        let colon = c == ':' && after.is_none_or(|after| after.is_whitespace() || "{}[],".contains(after));
        (colon || c.is_whitespace() || "{}[],".contains(c)).then_some(at)
    };
    match text.char_indices().find_map(end) {
        Some(0) => &text[..first.len_utf8()],
        Some(end) => &text[..end],
        None => text,
    }
}

fn is_punctuation(token: &str) -> bool {
    matches!(token, "{" | "}" | "[" | "]" | "," | ":" | "-") || token.chars().all(char::is_whitespace)
}

fn escaped(text: &str) -> String {
    let escape = |c: char| if is_deceptive(c) { c.escape_default().collect() } else { String::from(c) };
    text.chars().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, column: usize, message: &str, source: &str, mark: &str) {
        let (path, hint) = ("a.b".to_owned(), String::new());
        let problem =
            Problem { file: "a".into(), line: 1, column, path, code: None, message: message.to_owned(), hint };
        let keys = ["egress", "unmatched", "name", "workers", "include", "trust", "client_secret", "token_params"];
        let keys = keys.map(String::from).into();
        assert_eq!(excerpt(line, &problem, &keys), Some((source.to_owned(), mark.to_owned())), "{line}");
    }

    #[test]
    fn carets_mark_the_word_at_the_column() {
        check(
            "egress: {unmatched: maybe}",
            21,
            "`maybe` is not a valid value",
            "egress: {unmatched: maybe …",
            &mark(20, 5),
        );
        check("    tokn_url: https://x", 5, "unknown key `tokn_url`", "    tokn_url: …", &mark(4, 8));
        check("  - name: crm", 5, "`client_id` is missing", "  - name: …", &mark(4, 4));
        check("workers: 2", 1, "`workers` is missing", "workers: …", &mark(0, 7));
        check("include:", 1, "must be a list", "include:", &mark(0, 7));
        check("", 1, "is not valid YAML", "", &mark(0, 1));
        check("trust: [\"x y\"]", 9, "`x y` is invalid", "trust: [\"x y …", &mark(8, 4));
        check("\tname: x", 2, "is not valid YAML: tab", "\\tname: …", &mark(2, 4));
    }

    #[test]
    fn values_that_the_problem_does_not_quote_are_masked() {
        check("client_secret: hunter2", 16, "is empty", "client_secret: …", &mark(15, 1));
        check("client_secret: hunter2", 1, "duplicate key", "client_secret: …", &mark(0, 13));
        check(
            "{client_secret: \"a: {b\", colour: 1}",
            26,
            "unknown key `colour`",
            "{client_secret: …, colour: …",
            &mark(19, 6),
        );
        check(
            "{token_params: {pin: 1 2}, colour: 1}",
            28,
            "unknown key `colour`",
            "{token_params: {…: …}, colour: …",
            &mark(23, 6),
        );
        check("  hunter2, colour: 1}", 12, "unknown key `colour`", "  …, colour: …", &mark(5, 6));
        check("passphrase: x # hunter2 {x}", 25, "is odd", "…: … { …", &mark(5, 1));
    }

    #[test]
    fn an_excerpt_is_bounded_and_escapes_control_characters() {
        let wide = format!("{}x: 1", "[".repeat(500));
        check(&wide, 501, "unknown key `x`", &format!("…{}x: …", "[".repeat(59)), &mark(60, 1));
        let long = "y".repeat(500);
        check(
            &long,
            1,
            &format!("`{}` is not a valid value", &long[..100]),
            &format!("{} …", "y".repeat(60)),
            &mark(0, 60),
        );
        check("name: \u{1b}[2J", 7, "`\u{1b}[2J` is not a name", "name: \\u{1b}[2J", &mark(6, 9));
        let problem = |column| Problem {
            file: "a".into(),
            line: 1,
            column,
            path: String::new(),
            code: None,
            message: String::new(),
            hint: String::new(),
        };
        assert_eq!(excerpt("a", &problem(3), &BTreeSet::new()), None);
        assert_eq!(excerpt(&"a".repeat(20_000), &problem(15_000), &BTreeSet::new()), None);
    }

    fn mark(indent: usize, carets: usize) -> String {
        format!("{}{}", " ".repeat(indent), "^".repeat(carets))
    }
}
