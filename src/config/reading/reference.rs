//! Resolves the references `${env:NAME}` and `${file:PATH}` in a text.
//!
//! Invariants: a definition that was made over the API gets nothing from files or variables; a value is never parsed
//! again as YAML or for references; every file is bounded in size and recorded in the sink; messages name the variable or
//! the file, never its content. Not here: `{file: PATH}` and other sources of secrets (`secret`), certificates (`pem`).

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::Path;

use super::node::NodeRef;
use super::problem::{Problem, Sink};
use super::source::SourceKind;

/// Maximum size of a secret, or of a file behind `${file:…}`.
const TEXT_BYTES_MAX: usize = 64 * 1024;

/// A scalar with its references resolved.
pub struct Text<'a> {
    pub value: String,
    /// As written in the file; messages may quote this, never the value.
    pub written: &'a str,
    /// True if it contained a reference.
    pub has_reference: bool,
}

/// Reads the text of `node`. A list, a map, or a reference that cannot be resolved is a problem.
pub fn text<'a>(node: &NodeRef<'a>, sink: &mut Sink) -> Option<Text<'a>> {
    let Some(written) = node.written() else {
        node.problem(sink, "must be a single value", "write a string or a number here, not a list or a map");
        return None;
    };
    let (mut value, mut rest, mut has_reference, mut resolved) = (String::new(), written, false, true);
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            value += &rest[..at - 1];
            value += "${";
            rest = &rest[at + 2..];
            continue;
        }
        value += &rest[..at];
        let (inside, tail) = rest[at + 2..].split_once('}').unwrap_or(("", ""));
        match reference(node, inside, sink) {
            Some(text) => value += &text,
            None => resolved = false,
        }
        (has_reference, rest) = (true, tail);
    }
    value += rest;
    resolved.then_some(Text { value, written, has_reference })
}

/// Code of the problem that a definition made over the API refers to something of this machine.
pub const NOT_ALLOWED: &str = "reference_not_allowed";

/// Reports a reference in a definition that was made over the API. Returns true if there is such a problem. `what` is
/// the subject of the message.
pub fn is_refused(node: &NodeRef<'_>, what: &str, sink: &mut Sink) -> bool {
    if node.source.kind == SourceKind::File {
        return false;
    }
    let message = format!("{what} is not allowed in a definition made over the API");
    let hint = "write the value itself, or refer to what the operator publishes under `secrets` ({use: NAME}) or \
                `mutual_tls_profiles`";
    sink.problem(Problem { code: Some(NOT_ALLOWED), ..node.to_problem(message, hint) });
    true
}

fn reference(node: &NodeRef<'_>, inside: &str, sink: &mut Sink) -> Option<String> {
    if is_refused(node, "a reference (`${…}`)", sink) {
        return None;
    }
    if let Some(name) = inside.strip_prefix("env:") {
        return variable(node, name, sink);
    }
    if let Some(path) = inside.strip_prefix("file:") {
        return file_text(node, &node.source.resolve(path), sink);
    }
    node.problem(
        sink,
        "contains `${` without a reference",
        "write ${env:NAME}, ${file:PATH}, or $${ for a literal `${`",
    );
    None
}

/// Reads an environment variable, without one trailing line break.
#[allow(clippy::disallowed_methods, reason = "the configuration may refer to the environment")]
pub fn variable(node: &NodeRef<'_>, name: &str, sink: &mut Sink) -> Option<String> {
    if is_refused(node, "an environment variable", sink) {
        return None;
    }
    match std::env::var(name) {
        Ok(value) => return Some(without_line_break(value)),
        Err(std::env::VarError::NotPresent) => {
            node.problem(sink, format!("environment variable `{name}` is not set"), "set it for this process")
        }
        Err(std::env::VarError::NotUnicode(_)) => {
            node.problem(sink, format!("environment variable `{name}` is not UTF-8"), "set it to UTF-8 text")
        }
    }
    None
}

/// Reads a text file, without one trailing line break.
pub fn file_text(node: &NodeRef<'_>, path: &Path, sink: &mut Sink) -> Option<String> {
    let bytes = bytes(node, path, TEXT_BYTES_MAX, sink)?;
    let Ok(text) = String::from_utf8(bytes) else {
        node.problem(sink, format!("{} is not UTF-8", path.display()), "save the value as UTF-8 text");
        return None;
    };
    Some(without_line_break(text))
}

/// Drops one trailing `\n` or `\r\n`, which editors, `echo` and `kubectl` append.
pub fn without_line_break(mut text: String) -> String {
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    text
}

/// Reads a file, and records it in the sink.
pub fn bytes(node: &NodeRef<'_>, path: &Path, max: usize, sink: &mut Sink) -> Option<Vec<u8>> {
    if is_refused(node, "a file", sink) {
        return None;
    }
    sink.file(path);
    match read_bounded(path, max) {
        Ok(bytes) => {
            sink.content(&bytes);
            Some(bytes)
        }
        Err(reason) => {
            let message = format!("{} cannot be read ({reason})", path.display());
            node.problem(sink, message, "mount it, or correct the path");
            None
        }
    }
}

/// Reads a regular file of at most `max` bytes. The error is a phrase for parentheses, such as `no such file`.
pub fn read_bounded(path: &Path, max: usize) -> Result<Vec<u8>, String> {
    let reason = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => "no such file".to_owned(),
        kind => kind.to_string(),
    };
    // Checked before opening, since opening a pipe would block until its other end is opened.
    if !std::fs::metadata(path).map_err(reason)?.is_file() {
        return Err("not a regular file".to_owned());
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(reason)?;
    file.take(max as u64 + 1).read_to_end(&mut bytes).map_err(reason)?;
    if bytes.len() > max {
        return Err(format!("larger than {max} bytes"));
    }
    Ok(bytes)
}
