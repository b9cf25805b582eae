//! How a connection's token requests are written and its answers read, where a server has ways of its own.

use http::{HeaderName, StatusCode};

use crate::model::secret::Secret;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TokenRequestFormat {
    pub encoding: RequestEncoding,
    /// In the order of the configuration. A value may be a secret.
    pub headers: Vec<(HeaderName, Secret)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RequestEncoding {
    /// RFC 6749 §4
    #[default]
    Form,
    /// A JSON object of texts.
    Json,
    /// The parameters in the URL, and no body.
    Query,
}

/// Where the members of a token answer are (RFC 6749 §5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenResponseFormat {
    pub encoding: ResponseEncoding,
    pub access_token: Pointer,
    pub refresh_token: Pointer,
    /// `None`: whatever it says, the token is a bearer token.
    pub token_type: Option<Pointer>,
    pub scope: Pointer,
    pub expires_in: Pointer,
    pub expires_in_unit: TimeUnit,
    /// An absolute time: Unix seconds or milliseconds, RFC 3339, or an HTTP date. It goes before `expires_in`.
    pub expires_at: Option<Pointer>,
    /// Seconds.
    pub refresh_token_expires_in: Pointer,
    pub error: Pointer,
    pub error_description: Pointer,
    /// A member that says that a 200 is none.
    pub failure: Option<MemberIs>,
    /// Error responses by which this server refuses a refresh token, beside those that every server has.
    pub refresh_refused: Vec<RefusalSign>,
}

impl Default for TokenResponseFormat {
    fn default() -> TokenResponseFormat {
        let member = |name: &str| Pointer(vec![name.to_owned()]);
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
    /// Whatever its content type says.
    #[default]
    Json,
    /// `application/x-www-form-urlencoded`; its members are at the top.
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

/// A place in a JSON document (RFC 6901): the names, or the numbers of items, on the way there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pointer(Vec<String>);

impl Pointer {
    /// `None` unless the text begins with `/`, or is empty: the whole document.
    pub fn parse(text: &str) -> Option<Pointer> {
        if text.is_empty() {
            return Some(Pointer(Vec::new()));
        }
        let parts = text.strip_prefix('/')?.split('/');
        Some(Pointer(parts.map(|part| part.replace("~1", "/").replace("~0", "~")).collect()))
    }

    pub fn parts(&self) -> &[String] {
        &self.0
    }
}

/// A member with a certain value, compared as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberIs {
    pub pointer: Pointer,
    pub equals: String,
}

/// An error response that refuses the refresh token: everything that is given has to match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusalSign {
    pub status: Option<StatusCode>,
    /// The value at the `error` pointer.
    pub error: Option<String>,
    /// A part of the text at the `error_description` pointer, in any case.
    pub description_contains: Option<String>,
}

/// What an expired token looks like at the API: all of it together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RejectionSign {
    pub status: StatusCode,
    /// A field that holds a text, whatever its case.
    pub header: Option<(HeaderName, String)>,
    /// A member of a JSON body, which is looked at as far as [`SIGN_BYTES_MAX`].
    pub body: Option<MemberIs>,
}

/// A longer body is no sign of anything.
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
    fn a_pointer_is_read_as_rfc_6901_says() {
        let parts = |text: &str| Pointer::parse(text).map(|pointer| pointer.0);
        assert_eq!(parts("/data/token"), Some(vec!["data".to_owned(), "token".to_owned()]));
        assert_eq!(parts("/a~1b/~0c/0"), Some(vec!["a/b".to_owned(), "~c".to_owned(), "0".to_owned()]));
        assert_eq!(parts("/"), Some(vec![String::new()]));
        assert_eq!(parts(""), Some(Vec::new()));
        assert_eq!(parts("data"), None);
    }
}
