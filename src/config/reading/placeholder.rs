//! Detects placeholders such as `<tenant>` that were copied from a provider's documentation and never replaced.
//!
//! Not here: the references `${env:NAME}` and `${file:PATH}` (`reference`).

use super::node::NodeRef;
use super::problem::Sink;

/// Delimiters of a placeholder, plain and percent-encoded.
const DELIMITERS: [(&str, &str); 4] = [("<", ">"), ("{", "}"), ("%3c", "%3e"), ("%7b", "%7d")];
const NAME_BYTES_MAX: usize = 64;
/// Maximum placeholders that one problem names, per kind of delimiter.
const NAMED_MAX: usize = 8;

impl NodeRef<'_> {
    /// Reports the placeholders in `text`, the resolved text of this node. Returns true if there is none.
    pub fn check_placeholders(&self, text: &str, sink: &mut Sink) -> bool {
        let found = placeholders(text);
        let [first, rest @ ..] = &found[..] else { return true };
        // The value of a reference is never quoted.
        let written = self.written().unwrap_or_default();
        if !found.iter().all(|one| written.contains(one)) {
            self.problem(
                sink,
                "refers to a value with a placeholder such as <tenant>",
                "replace it there with your own value",
            );
            return false;
        }
        let named = rest.iter().fold(format!("`{first}`"), |named, one| format!("{named}, `{one}`"));
        let message = format!("still contains the placeholder {named}");
        self.problem(sink, message, format!("replace {named} with your own value"));
        false
    }

    /// Reads a line without placeholders.
    pub fn line_without_placeholders(&self, sink: &mut Sink) -> Option<String> {
        let text = self.line(sink)?;
        self.check_placeholders(&text, sink).then_some(text)
    }
}

/// The distinct placeholders in order, at most [`NAMED_MAX`] of each kind.
fn placeholders(text: &str) -> Vec<&str> {
    if !text.contains(['<', '{', '%']) {
        return Vec::new();
    }
    let lower = text.to_ascii_lowercase();
    let mut found: Vec<(usize, &str)> = Vec::new();
    for (open, close) in DELIMITERS {
        let named = lower.match_indices(open).filter_map(|(at, _)| {
            let inside = &lower[at + open.len()..];
            let inside = &inside[..inside.floor_char_boundary(NAME_BYTES_MAX + close.len())];
            let length = inside.find(close).filter(|length| is_name(&inside[..*length]))?;
            Some((at, &text[at..at + open.len() + length + close.len()]))
        });
        for (at, whole) in named.take(NAMED_MAX) {
            if !found.iter().any(|(_, one)| *one == whole) {
                found.push((at, whole));
            }
        }
    }
    found.sort_unstable();
    found.into_iter().map(|(_, whole)| whole).collect()
}

/// True for `tenant`, `your-instance`, `domain name`; false for JSON, regular expressions and UUIDs.
fn is_name(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b' ');
    text.len() <= NAME_BYTES_MAX && text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        assert_eq!(placeholders(text), expected, "{text}");
    }

    #[test]
    fn placeholders_of_documentation_are_found() {
        check("https://login.microsoftonline.com/<tenant>/oauth2/v2.0/token", &["<tenant>"]);
        check("https://login.<yourinstance>.pure.cloud/oauth/token", &["<yourinstance>"]);
        check("https://<domain-name>/AllSites.Manage,offline_access", &["<domain-name>"]);
        check("https://{tenant}.b2clogin.com/{tenant}.test/{Policy}/t", &["{tenant}", "{Policy}"]);
        check("https://as.test/<b>/{a}/<domain name>", &["<b>", "{a}", "<domain name>"]);
        check("https://as.test/%3Ctenant%3E/%7Bregion%7d", &["%3Ctenant%3E", "%7Bregion%7d"]);
        check("https://{{host}}/t", &["{host}"]);
        check("https://as.test/ä<tenant>", &["<tenant>"]);
        check(&format!("<{}>", "a".repeat(64)), &[&format!("<{}>", "a".repeat(64))]);
        check(&format!("<{}><b>", "ä".repeat(64)), &["<b>"]);
        assert_eq!(placeholders(&"<a>{b}".repeat(100_000)), ["<a>", "{b}"]);
        for none in [
            "https://as.test/t",
            "https://as.test/t?claims={\"id_token\":{}}",
            "a<b",
            "a>b<c",
            "{}",
            "<>",
            "{3f2504e0-4f89}",
            "x{2,3}",
        ] {
            check(none, &[]);
        }
    }
}
