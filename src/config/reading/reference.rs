//! Texts that a file takes from elsewhere: `${env:NAME}` and `${file:PATH}`.
//!
//! Not here: `{file: PATH}` and the like (`secret`), files of certificates (`pem`).
//! Holds: what is filled in is never read again as YAML or as a reference; every file is bounded and noted; messages
//! name the variable or the file, never its content.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::Path;

use super::problem::Sink;
use super::spot::Spot;

/// The longest secret, or file behind `${file:…}`, in bytes.
const TEXT_BYTES_MAX: usize = 64 * 1024;

/// A scalar with its references filled.
pub struct Text<'a> {
    pub value: String,
    /// As written in the file; messages may repeat this, never the value.
    pub written: &'a str,
    /// Whether it held a reference.
    pub filled: bool,
}

/// The text at `spot`; a list, a map, or a reference without a value is a problem.
pub fn text<'a>(spot: &Spot<'a>, sink: &mut Sink) -> Option<Text<'a>> {
    let Some(written) = spot.written() else {
        spot.problem(sink, "must be a single value", "write one text or number here, not a list or a map");
        return None;
    };
    let (mut value, mut rest, mut filled, mut whole) = (String::new(), written, false, true);
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            value += &rest[..at - 1];
            value += "${";
            rest = &rest[at + 2..];
            continue;
        }
        value += &rest[..at];
        let (inside, tail) = rest[at + 2..].split_once('}').unwrap_or(("", ""));
        match reference(spot, inside, sink) {
            Some(text) => value += &text,
            None => whole = false,
        }
        (filled, rest) = (true, tail);
    }
    value += rest;
    whole.then_some(Text { value, written, filled })
}

fn reference(spot: &Spot<'_>, inside: &str, sink: &mut Sink) -> Option<String> {
    if let Some(name) = inside.strip_prefix("env:") {
        return variable(spot, name, sink);
    }
    if let Some(path) = inside.strip_prefix("file:") {
        return file_text(spot, &spot.source.resolve(path), sink);
    }
    spot.problem(sink, "holds `${` without a reference", "write ${env:NAME}, ${file:PATH}, or $${ for a plain `${`");
    None
}

/// An environment variable, without one trailing line break.
#[allow(clippy::disallowed_methods, reason = "references of the configuration are what the ban leaves open")]
pub fn variable(spot: &Spot<'_>, name: &str, sink: &mut Sink) -> Option<String> {
    match std::env::var(name) {
        Ok(value) => return Some(without_line_break(value)),
        Err(std::env::VarError::NotPresent) => {
            spot.problem(sink, format!("environment variable `{name}` is not set"), "set it for this process")
        }
        Err(std::env::VarError::NotUnicode(_)) => {
            spot.problem(sink, format!("environment variable `{name}` is not UTF-8"), "set it to a UTF-8 text")
        }
    }
    None
}

/// A file's text without one trailing line break.
pub fn file_text(spot: &Spot<'_>, path: &Path, sink: &mut Sink) -> Option<String> {
    let bytes = bytes(spot, path, TEXT_BYTES_MAX, sink)?;
    let Ok(text) = String::from_utf8(bytes) else {
        spot.problem(sink, format!("{} is not UTF-8", path.display()), "store the value as plain text");
        return None;
    };
    Some(without_line_break(text))
}

/// Without one trailing `\n` or `\r\n`: editors, `echo` and `kubectl` end a value with one.
pub fn without_line_break(mut text: String) -> String {
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    text
}

/// The bytes of a file, which is noted in the sink.
pub fn bytes(spot: &Spot<'_>, path: &Path, max: usize, sink: &mut Sink) -> Option<Vec<u8>> {
    sink.file(path);
    match read_bounded(path, max) {
        Ok(bytes) => {
            sink.content(&bytes);
            Some(bytes)
        }
        Err(reason) => {
            let message = format!("{} cannot be read ({reason})", path.display());
            spot.problem(sink, message, "mount it or give another path");
            None
        }
    }
}

/// A regular file of at most `max` bytes, or why not.
pub fn read_bounded(path: &Path, max: usize) -> Result<Vec<u8>, String> {
    let why = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound => "no such file".to_owned(),
        kind => kind.to_string(),
    };
    // Looked at before it is opened: opening a pipe would wait for its other end.
    if !std::fs::metadata(path).map_err(why)?.is_file() {
        return Err("not a regular file".to_owned());
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(why)?;
    file.take(max as u64 + 1).read_to_end(&mut bytes).map_err(why)?;
    if bytes.len() > max {
        return Err(format!("larger than {max} bytes"));
    }
    Ok(bytes)
}
