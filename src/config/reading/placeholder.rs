//! Placeholders such as `<tenant>` that were copied from a provider's documentation and never replaced.
//!
//! Not here: `${env:NAME}` and `${file:PATH}`, which are filled (`reference`).

use super::problem::Sink;
use super::spot::Spot;

/// What encloses a placeholder, as people write it and as browsers encode it.
const MARKS: [(&str, &str); 4] = [("<", ">"), ("{", "}"), ("%3c", "%3e"), ("%7b", "%7d")];
const NAME_BYTES_MAX: usize = 64;
/// More are not named at once.
const NAMED_MAX: usize = 8;

impl Spot<'_> {
    /// True where `text`, the filled text of this place, holds no placeholder; else each is named in a problem.
    pub fn is_filled_in(&self, text: &str, sink: &mut Sink) -> bool {
        let found = placeholders(text);
        let [first, rest @ ..] = &found[..] else { return true };
        // What a reference was filled with is not repeated.
        let written = self.written().unwrap_or_default();
        if !found.iter().all(|one| written.contains(one)) {
            self.problem(sink, "comes with a placeholder such as <tenant>", "put your own value where it comes from");
            return false;
        }
        let named = rest.iter().fold(format!("`{first}`"), |named, one| format!("{named}, `{one}`"));
        let message = format!("still holds the placeholder {named}");
        self.problem(sink, message, format!("replace {named} with your own value"));
        false
    }

    /// A line in which no placeholder is left.
    pub fn filled_line(&self, sink: &mut Sink) -> Option<String> {
        let text = self.line(sink)?;
        self.is_filled_in(&text, sink).then_some(text)
    }
}

/// Each placeholder once, in order; the first few of each kind.
fn placeholders(text: &str) -> Vec<&str> {
    if !text.contains(['<', '{', '%']) {
        return Vec::new();
    }
    let lower = text.to_ascii_lowercase();
    let mut found: Vec<(usize, &str)> = Vec::new();
    for (open, close) in MARKS {
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

/// `tenant`, `your-instance`, `domain name`; no JSON, no regular expression, no identifier in braces.
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
    fn what_documentations_leave_open_is_found() {
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
        for good in [
            "https://as.test/t",
            "https://as.test/t?claims={\"id_token\":{}}",
            "a<b",
            "a>b<c",
            "{}",
            "<>",
            "{3f2504e0-4f89}",
            "x{2,3}",
        ] {
            check(good, &[]);
        }
    }
}
