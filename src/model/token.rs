//! Keys of tokens, and the content of a token response.
//!
//! Invariant: an [`AccessToken`] is a valid header value without white space, so injecting it cannot fail or split a
//! header.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use url::form_urlencoded;

use super::Name;
use super::secret::Secret;

/// Identifies a token. Each has one slot, one refresher and one stored record.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenKey {
    /// Name of the connection that acquires the token.
    pub connection: Name,
    /// Which definition of the connection: `default`, or one of its profiles.
    pub profile: Name,
    /// `None`: a shared token, for all callers of the connection.
    pub subject: Option<Subject>,
}

impl TokenKey {
    /// The shared token of the connection itself, without a named profile.
    pub fn of_connection(connection: Name) -> TokenKey {
        TokenKey { connection, profile: default_profile(), subject: None }
    }

    /// The query that selects this token in a link of its connection: `profile` unless it is the default, `subject`.
    pub fn selection(&self) -> Option<String> {
        let profile = Some(("profile", self.profile.as_str())).filter(|_| self.profile != default_profile());
        let subject = self.subject.as_ref().map(|subject| ("subject", subject.as_str()));
        let mut query = form_urlencoded::Serializer::new(String::new());
        let query = query.extend_pairs(profile.into_iter().chain(subject)).finish();
        Some(query).filter(|query| !query.is_empty())
    }

    /// The token of one subject of a connection with `tokens: per_subject`.
    pub fn of_subject(connection: Name, subject: Subject) -> TokenKey {
        TokenKey { subject: Some(subject), ..TokenKey::of_connection(connection) }
    }

    /// The subject as text, for logs and records.
    pub fn subject_str(&self) -> Option<&str> {
        self.subject.as_ref().map(Subject::as_str)
    }

    /// Parses the format of [`fmt::Display`].
    pub fn parse(text: &str) -> Option<TokenKey> {
        let mut parts = text.splitn(3, '/');
        let (connection, profile) = (Name::parse(parts.next()?)?, Name::parse(parts.next()?)?);
        let subject = match parts.next() {
            Some(subject) => Some(Subject::parse(subject)?),
            None => None,
        };
        Some(TokenKey { connection, profile, subject })
    }
}

/// The person or account a token acts for; matches [`Subject::PATTERN`].
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subject(Arc<str>);

impl Subject {
    /// A regular expression for all subjects.
    pub const PATTERN: &str = "^[A-Za-z0-9._@:+-]{1,128}$";

    /// `None` if the text does not match the pattern.
    pub fn parse(text: &str) -> Option<Subject> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._@:+-".contains(&b);
        ((1..=128).contains(&text.len()) && text.bytes().all(plain)).then(|| Subject(text.into()))
    }

    /// The subject for a caller's own token: its digest, so that the token itself is stored nowhere.
    pub fn of_token(token: &Secret) -> Subject {
        Subject(token.digest().text().into())
    }

    /// The default subject of a caller: its name.
    pub fn of_caller(name: &Name) -> Subject {
        Subject(name.as_str().into())
    }

    /// Safe to log; the digest of the token if the subject was derived from a caller's token.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of the profile that is the connection itself.
pub fn default_profile() -> Name {
    Name::parse("default").expect("a literal name")
}

impl fmt::Display for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.connection, self.profile)?;
        self.subject.as_ref().map_or(Ok(()), |subject| write!(f, "/{subject}"))
    }
}

/// A successful token response, strictly checked (RFC 6749 §5.1).
#[derive(Debug, Clone)]
pub struct TokenSet {
    /// Required in every response.
    pub access_token: AccessToken,
    /// Lifetime; `None` if the response has none.
    pub expires_in: Option<Duration>,
    /// `None`: the previous one, if any, stays valid (RFC 6749 §6).
    pub refresh_token: Option<RefreshToken>,
    /// As in the response.
    pub refresh_token_expires_in: Option<Duration>,
    /// Granted scopes; `None`: as requested.
    pub scopes: Option<Vec<String>>,
}

/// An access token that is a valid header value: visible ASCII, at most 64 KiB.
///
/// RFC 6749 appendix A.12 also permits spaces, which the Bearer scheme cannot carry. RFC 6750's `b64token` is narrower
/// than what servers issue: tokens of Salesforce contain `!`, of eBay `^` and `#`, of Asana `:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessToken(Secret);

/// Longest access token that is accepted; tokens with many roles reach 60 KiB.
pub const ACCESS_TOKEN_BYTES_MAX: usize = 64 * 1024;

impl AccessToken {
    /// Accepts 1 to `ACCESS_TOKEN_BYTES_MAX` visible ASCII characters (0x21 to 0x7E).
    pub fn parse(text: &str) -> Option<AccessToken> {
        let fits = (1..=ACCESS_TOKEN_BYTES_MAX).contains(&text.len());
        (fits && text.bytes().all(|b| b.is_ascii_graphic())).then(|| AccessToken(Secret::new(text)))
    }

    /// The token in plain text: for the injected header, requests to the server and sealed records only.
    pub fn expose(&self) -> &str {
        self.0.expose()
    }
}

/// A refresh token: visible ASCII and spaces (RFC 6749 appendix A.17), at most 16 KiB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefreshToken(Secret);

/// Longest refresh token that is accepted.
pub const REFRESH_TOKEN_BYTES_MAX: usize = 16 * 1024;

impl RefreshToken {
    /// Accepts 1 to `REFRESH_TOKEN_BYTES_MAX` visible ASCII characters and spaces.
    pub fn parse(text: &str) -> Option<RefreshToken> {
        let plain = text.bytes().all(|b| (0x20..=0x7e).contains(&b));
        ((1..=REFRESH_TOKEN_BYTES_MAX).contains(&text.len()) && plain).then(|| RefreshToken(Secret::new(text)))
    }

    /// The token in plain text: for requests to the server and sealed records only.
    pub fn expose(&self) -> &str {
        self.0.expose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_formatting_and_parsing() {
        let crm = Name::parse("crm").unwrap();
        let subject = Subject::parse("alice+x@acme.test").unwrap();
        for key in [TokenKey::of_connection(crm.clone()), TokenKey::of_subject(crm, subject)] {
            assert_eq!(TokenKey::parse(&key.to_string()), Some(key));
        }
        for bad in ["crm", "crm/", "crm/default/", "crm/default/a/b", "crm/default/a b", "/default"] {
            assert_eq!(TokenKey::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn only_visible_ascii_is_an_access_token() {
        let every: String = (0x21..=0x7e_u8).map(char::from).collect();
        let longest = "x".repeat(ACCESS_TOKEN_BYTES_MAX);
        let salesforce = "00D5g000004abcd!AQ8AQNb9.x_y~z";
        for good in ["a", "eyJ.a-b_c~d+e/f==", "=", salesforce, "v^1.1#i^1#r^0", "1/12:34", &every, &longest] {
            let token = AccessToken::parse(good).unwrap_or_else(|| panic!("{good:?}"));
            assert_eq!(token.expose(), good);
            assert_eq!(http::HeaderValue::try_from(good).unwrap(), good);
        }
        let long = "x".repeat(ACCESS_TOKEN_BYTES_MAX + 1);
        for bad in ["", " ", "a b", " a", "a\t", "a\r\nb", "a\n", "a\0", "tökén", "a\u{7f}", &long] {
            assert!(AccessToken::parse(bad).is_none(), "{bad:?}");
        }
    }
}
