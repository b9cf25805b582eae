//! Redaction: keeps what was sent, secrets above all, out of error texts, and makes untrusted text safe to log.

use std::collections::HashSet;

use zeroize::Zeroizing;

use super::form::Fields;
use crate::model::secret::Secret;

const DESCRIPTION_CHARS_MAX: usize = 200;
/// The rest of a longer description is ignored.
const DESCRIPTION_CHARS_READ: usize = 1000;
/// A description that repeats this many consecutive bytes of a secret is dropped.
const SECRET_WINDOW_BYTES: usize = 8;
/// Shorter values reveal nothing and are not masked.
const MASKED_BYTES_MIN: usize = 3;

/// Secrets and values that no message may repeat.
pub struct Redactor {
    secrets: Vec<Secret>,
    values: Vec<String>,
}

impl Redactor {
    /// `secrets` in every encoding that a response may echo. `grant_type` is public and not masked.
    pub fn new(client_id: &str, fields: &Fields, secrets: Vec<Secret>) -> Redactor {
        let values = fields.iter().filter(|(name, _)| name != "grant_type");
        Redactor::from_parts(secrets, values.map(|(_, value)| value.clone()).chain([client_id.to_owned()]).collect())
    }

    /// A text with any part of a secret is dropped; `values` are masked where they occur in full.
    pub fn from_parts(secrets: Vec<Secret>, mut values: Vec<String>) -> Redactor {
        values.retain(|value| value.len() >= MASKED_BYTES_MIN);
        // The longest first, so that masking a shorter one does not split a longer one.
        values.sort_by_key(|value| std::cmp::Reverse(value.len()));
        Redactor { secrets, values }
    }

    /// The union of both.
    pub fn and(&self, other: Redactor) -> Redactor {
        let secrets = self.secrets.iter().cloned().chain(other.secrets).collect();
        Redactor::from_parts(secrets, self.values.iter().cloned().chain(other.values).collect())
    }

    pub fn is_repeated_by(&self, text: &str) -> bool {
        self.has_secret_in(text) || self.values.iter().any(|value| text.contains(value.as_str()))
    }

    pub fn has_secret_in(&self, text: &str) -> bool {
        let text = text.to_ascii_lowercase();
        let windows: HashSet<&[u8]> = text.as_bytes().windows(SECRET_WINDOW_BYTES).collect();
        self.secrets.iter().map(|secret| Zeroizing::new(secret.expose().to_ascii_lowercase())).any(
            |secret| match secret.len() < SECRET_WINDOW_BYTES {
                true => !secret.is_empty() && text.contains(secret.as_str()),
                false => secret.as_bytes().windows(SECRET_WINDOW_BYTES).any(|window| windows.contains(window)),
            },
        )
    }

    /// A description that is safe to log: `None` if it repeats a secret; values are masked.
    pub fn redact(&self, text: &str) -> Option<String> {
        let mut text: String = text.chars().take(DESCRIPTION_CHARS_READ).collect();
        if self.has_secret_in(&text) {
            return None;
        }
        for value in &self.values {
            text = text.replace(value.as_str(), "***");
        }
        let redacted: String = text.trim().chars().map(printable).take(DESCRIPTION_CHARS_MAX).collect();
        (!redacted.is_empty()).then_some(redacted)
    }
}

/// Makes an error from a browser's redirect (RFC 6749 §4.1.2.1) safe to show and to log: an attacker may have written
/// it.
pub fn sanitize_error(error: &str, description: Option<&str>) -> (String, Option<String>) {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let fits = (1..=64).contains(&error.len()) && error.bytes().all(plain);
    let error = if fits { error.to_owned() } else { "unreadable_error".to_owned() };
    (error, description.and_then(|text| Redactor { secrets: Vec::new(), values: Vec::new() }.redact(text)))
}

/// Maps a character to one that RFC 6749 §5.2 allows: printable ASCII without `"` and `\`.
pub fn printable(c: char) -> char {
    match c {
        '"' => '\'',
        '\\' => '/',
        ' '..='~' => c,
        _ if c.is_whitespace() => ' ',
        _ => '?',
    }
}
