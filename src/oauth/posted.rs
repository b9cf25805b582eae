//! What no message repeats: the values and secrets of a request, and what a browser or a server wrote, made fit for a log.

use std::collections::HashSet;

use zeroize::Zeroizing;

use super::form::Fields;
use crate::model::secret::Secret;

const DESCRIPTION_CHARS_MAX: usize = 200;
/// How much of a description is read at all.
const DESCRIPTION_CHARS_READ: usize = 1000;
/// A description that repeats so many bytes of a secret in a row is dropped.
const SECRET_WINDOW_BYTES: usize = 8;
/// Posted values shorter than this are no news to anybody and are not masked.
const MASKED_BYTES_MIN: usize = 3;

/// What was sent, so that no message repeats it.
pub struct Posted {
    secrets: Vec<Secret>,
    values: Vec<String>,
}

impl Posted {
    /// `secrets`: in every shape that they may come back in. The grant's name is no value: everybody knows it.
    pub fn new(client_id: &str, fields: &Fields, secrets: Vec<Secret>) -> Posted {
        let values = fields.iter().filter(|(name, _)| name != "grant_type");
        Posted::of(secrets, values.map(|(_, value)| value.clone()).chain([client_id.to_owned()]).collect())
    }

    /// No part of `secrets` may be repeated; `values` are masked as a whole.
    pub fn of(secrets: Vec<Secret>, mut values: Vec<String>) -> Posted {
        values.retain(|value| value.len() >= MASKED_BYTES_MIN);
        // The longest first, so that none is cut in two by a shorter one.
        values.sort_by_key(|value| std::cmp::Reverse(value.len()));
        Posted { secrets, values }
    }

    /// Both together.
    pub fn and(&self, other: Posted) -> Posted {
        let secrets = self.secrets.iter().cloned().chain(other.secrets).collect();
        Posted::of(secrets, self.values.iter().cloned().chain(other.values).collect())
    }

    pub fn is_repeated_by(&self, text: &str) -> bool {
        self.holds_secret(text) || self.values.iter().any(|value| text.contains(value.as_str()))
    }

    pub fn holds_secret(&self, text: &str) -> bool {
        let text = text.to_ascii_lowercase();
        let windows: HashSet<&[u8]> = text.as_bytes().windows(SECRET_WINDOW_BYTES).collect();
        self.secrets.iter().map(|secret| Zeroizing::new(secret.expose().to_ascii_lowercase())).any(
            |secret| match secret.len() < SECRET_WINDOW_BYTES {
                true => !secret.is_empty() && text.contains(secret.as_str()),
                false => secret.as_bytes().windows(SECRET_WINDOW_BYTES).any(|window| windows.contains(window)),
            },
        )
    }

    /// A description fit for a log: dropped if it repeats a secret, posted values masked.
    pub fn clean(&self, text: &str) -> Option<String> {
        let mut text: String = text.chars().take(DESCRIPTION_CHARS_READ).collect();
        if self.holds_secret(&text) {
            return None;
        }
        for value in &self.values {
            text = text.replace(value.as_str(), "***");
        }
        let clean: String = text.trim().chars().map(printable).take(DESCRIPTION_CHARS_MAX).collect();
        (!clean.is_empty()).then_some(clean)
    }
}

/// An error as a browser brings it (RFC 6749 §4.1.2.1), fit for a page and a log: anybody may have written it.
pub fn clean_error(error: &str, description: Option<&str>) -> (String, Option<String>) {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let fits = (1..=64).contains(&error.len()) && error.bytes().all(plain);
    let error = if fits { error.to_owned() } else { "unreadable_error".to_owned() };
    (error, description.and_then(|text| Posted { secrets: Vec::new(), values: Vec::new() }.clean(text)))
}

/// RFC 6749 §5.2 allows printable ASCII without `"` and `\`.
pub fn printable(c: char) -> char {
    match c {
        '"' => '\'',
        '\\' => '/',
        ' '..='~' => c,
        _ if c.is_whitespace() => ' ',
        _ => '?',
    }
}
