//! What names a token and what an authorization server gave us.
//!
//! Holds: an [`AccessToken`] is always a valid header value (RFC 6750 §2.1 `b64token`), so injecting cannot fail and
//! cannot split a header.

use std::fmt;
use std::time::Duration;

use super::Name;
use super::secret::Secret;

/// Which token: one slot, one refresher and one stored record each.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenKey {
    pub connection: Name,
    pub profile: Name,
}

impl TokenKey {
    /// The token of the connection itself, without a named profile.
    pub fn of_connection(connection: Name) -> TokenKey {
        TokenKey { connection, profile: default_profile() }
    }
}

/// The profile that is the connection itself.
pub fn default_profile() -> Name {
    Name::parse("default").expect("a literal name")
}

impl fmt::Display for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.connection, self.profile)
    }
}

/// A strict success answer of a token endpoint (RFC 6749 §5.1).
#[derive(Debug, Clone)]
pub struct TokenSet {
    pub access_token: AccessToken,
    /// Lifetime; `None` when the answer names none.
    pub expires_in: Option<Duration>,
    /// Scopes as granted; `None` means as requested.
    pub scopes: Option<Vec<String>>,
}

/// An access token that may stand in a header: token68 characters, at most 8 KiB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessToken(Secret);

/// Longest access token that is accepted, in bytes.
pub const ACCESS_TOKEN_BYTES_MAX: usize = 8 * 1024;

impl AccessToken {
    /// `None` unless the text is a `b64token` (RFC 6750 §2.1) of at most [`ACCESS_TOKEN_BYTES_MAX`] bytes.
    pub fn parse(text: &str) -> Option<AccessToken> {
        let body = text.trim_end_matches('=');
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~' | b'+' | b'/');
        let fits = !body.is_empty() && text.len() <= ACCESS_TOKEN_BYTES_MAX;
        (fits && body.bytes().all(plain)).then(|| AccessToken(Secret::new(text)))
    }

    pub fn expose(&self) -> &str {
        self.0.expose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_token68_reaches_a_header() {
        for good in ["a", "eyJ.a-b_c~d+e/f==", &"x".repeat(ACCESS_TOKEN_BYTES_MAX)] {
            assert!(AccessToken::parse(good).is_some());
        }
        let long = "x".repeat(ACCESS_TOKEN_BYTES_MAX + 1);
        for bad in ["", "=", "==", "a b", "a,b", "a\r\nb", "a\0", "tökén", "a\u{7f}", "token=continued", &long] {
            assert!(AccessToken::parse(bad).is_none(), "{bad:?}");
        }
    }
}
