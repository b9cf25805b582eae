//! Formats of token requests and token responses, for servers that deviate from RFC 6749.

use http::{HeaderName, StatusCode};

use crate::model::secret::Secret;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TokenRequestFormat {
    pub encoding: RequestEncoding,
    /// In configuration order. A value may be a secret.
    pub headers: Vec<(HeaderName, Secret)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RequestEncoding {
    /// RFC 6749 §4.
    #[default]
    Form,
    /// A JSON object with string members.
    Json,
    /// Parameters in the URL, no body.
    Query,
}

/// Where the members of a token response are (RFC 6749 §5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenResponseFormat {
    pub encoding: ResponseEncoding,
    pub access_token: Pointer,
    pub refresh_token: Pointer,
    /// `None`: not checked; the token is a bearer token.
    pub token_type: Option<Pointer>,
    pub scope: Pointer,
    pub expires_in: Pointer,
    pub expires_in_unit: TimeUnit,
    /// An absolute time: Unix seconds or milliseconds, RFC 3339, or an HTTP date. Takes precedence over `expires_in`.
    pub expires_at: Option<Pointer>,
    /// Seconds.
    pub refresh_token_expires_in: Pointer,
    pub error: Pointer,
    pub error_description: Pointer,
    /// A member that marks a 2xx response as a failure.
    pub failure: Option<MemberIs>,
    /// Error responses that mean the refresh token was refused, in addition to the standard ones.
    pub refresh_refused: Vec<RefusalSign>,
}

impl Default for TokenResponseFormat {
    fn default() -> TokenResponseFormat {
        let member = Pointer::member;
        TokenResponseFormat {
            encoding: ResponseEncoding::Json,
            access_token: member("access_token"),
            refresh_token: member("refresh_token"),
            token_type: Some(member("token_type")),
            scope: member("scope"),
            expires_in: member("expires_in"),
            expires_in_unit: TimeUnit::Seconds,
            expires_at: None,
            refresh_token_expires_in: member("refresh_token_expires_in"),
            error: member("error"),
            error_description: member("error_description"),
            failure: None,
            refresh_refused: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ResponseEncoding {
    /// Whatever the content type is.
    #[default]
    Json,
    /// `application/x-www-form-urlencoded`; all members are at the top level.
    Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TimeUnit {
    Milliseconds,
    #[default]
    Seconds,
    Minutes,
}

impl TimeUnit {
    pub fn seconds(self) -> f64 {
        match self {
            TimeUnit::Milliseconds => 0.001,
            TimeUnit::Seconds => 1.0,
            TimeUnit::Minutes => 60.0,
        }
    }
}

/// A JSON pointer (RFC 6901), as its member names and item indices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pointer(Vec<String>);

impl Pointer {
    /// Accepts a text that starts with `/`; an empty text is the whole document.
    pub fn parse(text: &str) -> Option<Pointer> {
        if text.is_empty() {
            return Some(Pointer(Vec::new()));
        }
        let parts = text.strip_prefix('/')?.split('/');
        Some(Pointer(parts.map(|part| part.replace("~1", "/").replace("~0", "~")).collect()))
    }

    /// A top-level member.
    pub fn member(name: &str) -> Pointer {
        Pointer(vec![name.to_owned()])
    }

    pub fn parts(&self) -> &[String] {
        &self.0
    }
}

/// A condition: a member has this value, compared as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberIs {
    pub pointer: Pointer,
    pub equals: String,
}

/// An error response that refuses the refresh token: every condition that is set must match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusalSign {
    pub status: Option<StatusCode>,
    /// The value at the `error` pointer.
    pub error: Option<String>,
    /// A substring of the value at the `error_description` pointer, ignoring case.
    pub description_contains: Option<String>,
}

/// A response that means the API rejected the token: every condition that is set must match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RejectionSign {
    pub status: StatusCode,
    /// A header that contains a text, ignoring case.
    pub header: Option<(HeaderName, String)>,
    /// A member of a JSON body of at most [`SIGN_BYTES_MAX`].
    pub body: Option<MemberIs>,
}

/// Maximum size of a body that is searched for a sign.
pub const SIGN_BYTES_MAX: usize = 64 * 1024;

impl RejectionSign {
    pub fn of_status(status: StatusCode) -> RejectionSign {
        RejectionSign { status, header: None, body: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_is_parsed_as_in_rfc_6901() {
        let parts = |text: &str| Pointer::parse(text).map(|pointer| pointer.0);
        assert_eq!(parts("/data/token"), Some(vec!["data".to_owned(), "token".to_owned()]));
        assert_eq!(parts("/a~1b/~0c/0"), Some(vec!["a/b".to_owned(), "~c".to_owned(), "0".to_owned()]));
        assert_eq!(parts("/"), Some(vec![String::new()]));
        assert_eq!(parts(""), Some(Vec::new()));
        assert_eq!(parts("data"), None);
    }
}
