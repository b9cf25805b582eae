//! Readings of a path: every path that a server may take it for. Pure functions.
//!
//! A server may decode escapes (some twice) and overlong UTF-8, treat `\` as `/`, drop `;parameters`, trim white space,
//! merge `//`, resolve `.` and `..`, and stop at an escaped NUL, `?` or `#`, in any order. Invariant: the path that
//! such a server arrives at is among [`readings`], or the path has more readings than the bounds allow.

use std::ops::ControlFlow;

use crate::model::connection::PathPrefix;

/// Maximum number of times that a server decodes escapes.
const DECODINGS_MAX: usize = 2;
/// Bounds on the work per path; a path beyond them is treated as ambiguous.
const READINGS_MAX: usize = 64;
const READINGS_BYTES_MAX: usize = 256 * 1024;

/// The readings of a path.
#[derive(Debug, PartialEq, Eq)]
pub enum Readings {
    /// Every server reads the path as written.
    One,
    /// The first is the path with its unreserved characters decoded.
    Several(Vec<Vec<u8>>),
    TooMany,
}

/// Computes the readings of `path` (without its query). A path without special characters costs one pass over its
/// bytes.
pub fn readings(path: &str) -> Readings {
    if is_plain(path.as_bytes()) {
        return Readings::One;
    }
    let mut found = Collected { readings: Vec::new(), bytes: 0 };
    match found.collect(normalized(path.as_bytes())) {
        ControlFlow::Continue(()) => Readings::Several(found.readings),
        ControlFlow::Break(TooMany) => Readings::TooMany,
    }
}

/// The rest of `path` after `prefix`, as written. Unreserved characters of the prefix may be escaped.
pub fn rest<'p>(prefix: &PathPrefix, path: &'p str) -> Option<&'p str> {
    let mut rest = path;
    for wanted in prefix.as_str().bytes() {
        let (byte, length) = match rest.as_bytes() {
            [b'%', high, low, ..] => (unreserved(*high, *low)?, 3),
            [byte, ..] => (*byte, 1),
            [] => return None,
        };
        if byte != wanted {
            return None;
        }
        rest = &rest[length..];
    }
    (rest.is_empty() || rest.starts_with('/')).then_some(rest)
}

/// True if every reading of `path` is at or below `prefix`.
pub fn stays_below(prefix: &PathPrefix, path: &str) -> bool {
    if prefix.is_root() {
        return true;
    }
    match readings(path) {
        Readings::One => prefix.matches(path.as_bytes()),
        Readings::Several(all) => all.iter().all(|reading| prefix.matches(reading)),
        Readings::TooMany => false,
    }
}

/// True if the path has one reading: no `%`, `;` or `\`, no empty segment and none that starts with a dot.
fn is_plain(path: &[u8]) -> bool {
    let mut after_slash = false;
    path.iter().all(|byte| {
        let special = match byte {
            b'%' | b';' | b'\\' => true,
            b'/' | b'.' => after_slash,
            _ => false,
        };
        after_slash = *byte == b'/';
        !special
    })
}

/// One normalization step of a server.
type Step = fn(&[u8]) -> Vec<u8>;

struct TooMany;

struct Collected {
    readings: Vec<Vec<u8>>,
    bytes: usize,
}

impl Collected {
    /// Collects all results of the steps on `path`, decoding it at most [`DECODINGS_MAX`] times.
    fn collect(&mut self, path: Vec<u8>) -> ControlFlow<TooMany> {
        const STEPS: [Step; 7] = [
            with_slashes,
            without_parameters,
            with_trimmed_segments,
            with_shortest_utf8,
            with_merged_slashes,
            without_dot_segments,
            up_to_its_end,
        ];
        self.add(path)?;
        let mut level = 0;
        for decoding in 0..=DECODINGS_MAX {
            let mut at = level;
            while at < self.readings.len() {
                for step in STEPS {
                    self.add(step(&self.readings[at]))?;
                }
                at += 1;
            }
            if decoding < DECODINGS_MAX {
                for of in level..at {
                    self.add(decoded(&self.readings[of]))?;
                }
            }
            level = at;
        }
        ControlFlow::Continue(())
    }

    fn add(&mut self, reading: Vec<u8>) -> ControlFlow<TooMany> {
        if self.readings.contains(&reading) {
            return ControlFlow::Continue(());
        }
        self.bytes += reading.len();
        if self.readings.len() == READINGS_MAX || self.bytes > READINGS_BYTES_MAX {
            return ControlFlow::Break(TooMany);
        }
        self.readings.push(reading);
        ControlFlow::Continue(())
    }
}

/// Decodes unreserved characters, which is equivalent for every server (RFC 3986 §6.2.2.2).
fn normalized(path: &[u8]) -> Vec<u8> {
    decode(path, unreserved)
}

fn decoded(path: &[u8]) -> Vec<u8> {
    decode(path, |high, low| Some(hex(high)? << 4 | hex(low)?))
}

/// Replaces each escape for whose two digits `byte_of` returns a byte.
fn decode(text: &[u8], byte_of: impl Fn(u8, u8) -> Option<u8>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        let escaped = match rest {
            [b'%', high, low, ..] => byte_of(*high, *low),
            _ => None,
        };
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &rest[3..] } else { tail };
    }
    bytes
}

/// The unreserved character that these two digits escape (RFC 3986 §2.3).
fn unreserved(high: u8, low: u8) -> Option<u8> {
    let byte = hex(high)? << 4 | hex(low)?;
    (byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)).then_some(byte)
}

fn hex(digit: u8) -> Option<u8> {
    u8::try_from(char::from(digit).to_digit(16)?).ok()
}

/// IIS, and URL parsers that follow browsers, treat `\` as `/`.
fn with_slashes(path: &[u8]) -> Vec<u8> {
    path.iter().map(|byte| if *byte == b'\\' { b'/' } else { *byte }).collect()
}

/// Servlet containers drop what follows `;` in each segment (RFC 3986 §3.3).
fn without_parameters(path: &[u8]) -> Vec<u8> {
    let segments: Vec<&[u8]> = path.split(|byte| *byte == b'/').map(|segment| before(segment, b";")).collect();
    segments.join(&b'/')
}

/// Trims white space and control characters (like Java's `trim`) around each segment.
fn with_trimmed_segments(path: &[u8]) -> Vec<u8> {
    let is_space = |byte: &u8| *byte <= b' ';
    let trimmed = |segment: &[u8]| {
        let begin = segment.iter().position(|byte| !is_space(byte)).unwrap_or(segment.len());
        let end = segment.iter().rposition(|byte| !is_space(byte)).map_or(begin, |last| last + 1);
        segment[begin..end].to_vec()
    };
    path.split(|byte| *byte == b'/').map(trimmed).collect::<Vec<_>>().join(&b'/')
}

/// Replaces overlong encodings by the ASCII character that a lenient decoder takes them for (RFC 3629 §10).
fn with_shortest_utf8(path: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path;
    while let [first, tail @ ..] = rest {
        let (byte, after) = match rest {
            [0xc0..=0xc1, last @ 0x80..=0xbf, after @ ..] => ((first & 1) << 6 | last & 0x3f, after),
            [0xe0, high @ 0x80..=0x81, last @ 0x80..=0xbf, after @ ..]
            | [0xf0, 0x80, high @ 0x80..=0x81, last @ 0x80..=0xbf, after @ ..] => {
                ((high & 1) << 6 | last & 0x3f, after)
            }
            _ => (*first, tail),
        };
        bytes.push(byte);
        rest = after;
    }
    bytes
}

fn with_merged_slashes(path: &[u8]) -> Vec<u8> {
    let mut merged = path.to_vec();
    merged.dedup_by(|byte, before| (*byte, *before) == (b'/', b'/'));
    merged
}

/// Resolves `.` and `..`, never above the root (RFC 3986 §5.2.4).
fn without_dot_segments(path: &[u8]) -> Vec<u8> {
    let Some(path) = path.strip_prefix(b"/") else { return path.to_vec() };
    let mut kept: Vec<&[u8]> = vec![b""];
    let mut segments = path.split(|byte| *byte == b'/').peekable();
    while let Some(segment) = segments.next() {
        match segment {
            b"." => {}
            b".." if kept.len() > 1 => drop(kept.pop()),
            b".." => {}
            segment => kept.push(segment),
        }
        if segments.peek().is_none() && matches!(segment, b"." | b"..") {
            kept.push(b"");
        }
    }
    kept.join(&b'/')
}

/// Truncates at a decoded NUL, `?` or `#`, which ends the path for a server that parses it again.
fn up_to_its_end(path: &[u8]) -> Vec<u8> {
    before(path, b"\0?#").to_vec()
}

fn before<'t>(text: &'t [u8], ends: &[u8]) -> &'t [u8] {
    text.split(|byte| ends.contains(byte)).next().unwrap_or_default()
}

#[cfg(test)]
mod tests;
