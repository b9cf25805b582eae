//! Failures of requests to an authorization server, shaped by what to do next and safe to log.
//!
//! Invariant: a [`Refusal`] holds printable ASCII of bounded length, and no part of a secret or of a value that was
//! sent.

use std::fmt;
use std::time::Duration;

use super::redact::Redactor;
use crate::script;

/// Why a request yielded no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Retry later, not before `retry_after`.
    #[error("no token from the token endpoint: {reason}")]
    Retryable {
        reason: Reason,
        retry_after: Option<Duration>,
        /// The library's error text or the remedy, redacted, for the log and the operator.
        detail: Option<String>,
    },
    /// The server refused: only a change in the configuration or at the server can fix this.
    #[error("token endpoint refused the grant: {0}")]
    Permanent(Refusal),
    /// The connection's script failed, before the request was sent or, with `after_response`, after.
    #[error("the script failed: {message}")]
    Script { message: String, after_response: bool },
}

impl Failure {
    /// A failure of the script. The message repeats nothing that was sent or that the script received. `None`: it has no
    /// text that the script can choose.
    pub fn from_script(failure: script::Failure, redactor: Option<&Redactor>) -> Failure {
        if let script::Failure::RetryLater { after, .. } = failure {
            return Failure::Retryable { reason: Reason::Script, retry_after: Some(after), detail: None };
        }
        let message = match redactor {
            Some(redactor) => redactor
                .redact(&failure.to_string())
                .unwrap_or_else(|| "the script threw a text that contains a secret; it is withheld".to_owned()),
            None => failure.without_text(),
        };
        Failure::Script { message, after_response: false }
    }

    /// Marks a script failure as one that came after the response.
    pub fn after_response(self) -> Failure {
        match self {
            Failure::Script { message, .. } => Failure::Script { message, after_response: true },
            other => other,
        }
    }

    /// A retry cannot succeed until the configuration or the server changes.
    pub fn is_permanent(&self) -> bool {
        !matches!(self, Failure::Retryable { .. })
    }

    pub fn outcome(&self) -> Outcome {
        match self {
            Failure::Permanent(_) => Outcome::Refused,
            Failure::Script { .. } => Outcome::Script,
            Failure::Retryable { reason, .. } => reason.outcome(),
        }
    }

    /// The server may have granted the token although we did not receive it: no response, an unreadable one, or one of
    /// a gateway or a server that failed midway (any 5xx except 503).
    pub fn may_have_been_granted(&self) -> bool {
        match self {
            Failure::Permanent(_) => false,
            Failure::Script { after_response, .. } => *after_response,
            Failure::Retryable { reason, .. } => match reason {
                Reason::Timeout | Reason::ConnectionLost => true,
                Reason::HttpStatus(status) => (500..).contains(status) && *status != 503,
                reason => reason.outcome() == Outcome::InvalidAnswer,
            },
        }
    }

    /// The server may have refused the client's credential, so that another client secret may work. Some servers refuse
    /// a wrong secret with a bare 401 or 403.
    pub fn may_be_client_refusal(&self) -> bool {
        match self {
            Failure::Permanent(refusal) => matches!(refusal.error.as_str(), "invalid_client" | "http_401"),
            Failure::Retryable { reason, .. } => matches!(reason, Reason::HttpStatus(401 | 403)),
            Failure::Script { .. } => false,
        }
    }

    /// The URL is not that of a token endpoint.
    pub fn is_wrong_endpoint(&self) -> bool {
        matches!(self, Failure::Retryable { reason: Reason::HttpStatus(404 | 405 | 410), .. })
    }

    /// The issuer's metadata could not be read, so the request itself was never sent.
    pub fn during_discovery(self) -> Failure {
        let Failure::Retryable { reason, retry_after, detail } = self else { return self };
        let reported = match reason {
            Reason::Unreachable | Reason::Tls | Reason::NotSent => reason,
            Reason::ConnectionLost => Reason::Unreachable,
            // Its detail already names the issuer.
            Reason::Discovery => return Failure::Retryable { reason, retry_after, detail },
            _ => Reason::Discovery,
        };
        let detail = detail.map_or_else(|| reason.to_string(), |detail| format!("{reason}: {detail}"));
        Failure::Retryable { reason: reported, retry_after, detail: Some(format!("issuer metadata: {detail}")) }
    }
}

/// The `outcome` label of `keybearer_token_requests_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Refused,
    Unavailable,
    InvalidAnswer,
    Script,
}

impl Outcome {
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Refused => "refused",
            Outcome::Unavailable => "unavailable",
            Outcome::InvalidAnswer => "invalid_answer",
            Outcome::Script => "script",
        }
    }
}

/// Why a retry may succeed. `Display` is a stable name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// No network connection: DNS, routing or a closed port.
    #[error("unreachable")]
    Unreachable,
    #[error("tls")]
    Tls,
    /// The send deadline passed before there was a connection to send on.
    #[error("not_sent")]
    NotSent,
    #[error("timeout")]
    Timeout,
    /// The connection ended before the response was complete.
    #[error("connection_lost")]
    ConnectionLost,
    #[error("not_http")]
    NotHttp,
    #[error("http_{0}")]
    HttpStatus(u16),
    /// A 400 without a body.
    #[error("http_400_empty")]
    Empty400,
    /// The issuer's metadata could not be read, so no other request was sent.
    #[error("discovery_failed")]
    Discovery,
    /// RFC 6749 §4.1.2.1; token endpoints use it too.
    #[error("temporarily_unavailable")]
    TemporarilyUnavailable,
    #[error("server_error")]
    ServerError,
    /// RFC 8628 §3.5
    #[error("slow_down")]
    SlowDown,
    /// A success without a body.
    #[error("empty")]
    Empty,
    #[error("too_large")]
    TooLarge,
    /// Not a single JSON object.
    #[error("not_json")]
    NotJson,
    #[error("duplicate_member")]
    DuplicateMember,
    #[error("no_access_token")]
    NoAccessToken,
    #[error("invalid_access_token")]
    InvalidAccessToken,
    /// A token type that is not Bearer.
    #[error("token_type")]
    TokenType,
    /// The script threw `retry_after`.
    #[error("script_retry")]
    Script,
}

impl Reason {
    /// The configuration key to set if the server always behaves like this.
    pub fn remedy(self) -> Option<&'static str> {
        match self {
            Reason::TokenType => Some(
                "the token_type of the token response is not Bearer; if its tokens work as bearer tokens, set \
                 `token_response.token_type: any`",
            ),
            _ => None,
        }
    }

    fn outcome(self) -> Outcome {
        match self {
            Reason::Unreachable | Reason::Tls | Reason::NotSent => Outcome::Unavailable,
            Reason::Timeout | Reason::ConnectionLost => Outcome::Unavailable,
            Reason::HttpStatus(_) | Reason::Empty400 | Reason::Discovery => Outcome::Unavailable,
            Reason::TemporarilyUnavailable => Outcome::Unavailable,
            Reason::ServerError | Reason::SlowDown => Outcome::Unavailable,
            Reason::NotHttp | Reason::Empty | Reason::TooLarge | Reason::NotJson => Outcome::InvalidAnswer,
            Reason::DuplicateMember | Reason::NoAccessToken => Outcome::InvalidAnswer,
            Reason::InvalidAccessToken | Reason::TokenType => Outcome::InvalidAnswer,
            Reason::Script => Outcome::Script,
        }
    }
}

/// An error response (RFC 6749 §5.2), redacted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The server's error code, `[A-Za-z0-9_.-]{1,64}`; `http_<status>` if it sent no readable one.
    pub error: String,
    /// Printable ASCII, at most 200 characters, with the values that were sent masked.
    pub description: Option<String>,
    /// The server refuses the refresh token that was sent and will never accept it again.
    pub refuses_refresh_token: bool,
}

impl Refusal {
    /// The server's error, without what it repeats of the request.
    pub fn new(status: u16, error: Option<&str>, description: Option<&str>, redactor: &Redactor) -> Refusal {
        let error = error.filter(|code| is_known(code) || !redactor.is_repeated_by(code));
        let error = error.map_or_else(|| format!("http_{status}"), str::to_owned);
        let description = description.and_then(|text| redactor.redact(text));
        Refusal { error, description, refuses_refresh_token: false }
    }

    pub fn from_code(code: &str) -> Refusal {
        Refusal { error: code.to_owned(), description: None, refuses_refresh_token: false }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.error)?;
        self.description.as_ref().map_or(Ok(()), |text| write!(f, " ({text})"))
    }
}

/// True for error codes that refuse the request whatever the status: those of RFC 6749 §5.2 and §4.1.2.1 and of OpenID
/// Connect Core §3.1.2.6; and for the codes of device polls, RFC 8628 §3.5 and Entra's own.
pub fn is_known(code: &str) -> bool {
    const KNOWN: [&str; 13] = [
        "invalid_request",
        "invalid_client",
        "invalid_grant",
        "unauthorized_client",
        "unsupported_grant_type",
        "invalid_scope",
        "access_denied",
        "authorization_pending",
        "authorization_declined",
        "expired_token",
        "interaction_required",
        "login_required",
        "consent_required",
    ];
    KNOWN.contains(&code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::secret::Secret;

    #[track_caller]
    fn check(error: &str, description: &str, expected: &str) {
        let fields = [("grant_type", "client_credentials"), ("audience", "https://api.test"), ("tenant", "x")];
        let fields = fields.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let secrets = ["hunter2", "correct horse battery", "kurz\"ü"].map(Secret::new).to_vec();
        let redactor = Redactor::new("app-7", &fields, secrets);
        let refusal = Refusal::new(403, Some(error), Some(description), &redactor);
        assert_eq!(refusal.to_string(), expected);
    }

    #[test]
    fn a_refusal_repeats_no_value_that_was_sent() {
        check("invalid_scope", "client_credentials: x is wrong", "invalid_scope (client_credentials: x is wrong)");
        check("e", "no https://api.test here", "e (no *** here)");
        check("e", "unknown app-7", "e (unknown ***)");
        check("e", "secret hunter2 is wrong", "e");
        check("e", "half a HORSE batt... is half too many", "e");
        check("e", "kurz\"ü", "e");
        check("e", "a\r\nb\u{1b}[31m \"c\" \\ é", "e (a  b?[31m 'c' / ?)");
        check("e", " \t ", "e");
        check("xhunter2x", "", "http_403");
        let long = format!("{}hunter2", "y".repeat(900));
        check("e", &long, "e");
        check("e", &"y".repeat(5000), &format!("e ({})", "y".repeat(200)));
    }

    #[test]
    fn a_refresh_is_in_doubt_after_an_incomplete_response_or_any_5xx_except_503() {
        let in_doubt = |reason| Failure::Retryable { reason, retry_after: None, detail: None }.may_have_been_granted();
        for reason in [Reason::Timeout, Reason::ConnectionLost, Reason::NotHttp, Reason::NotJson, Reason::TooLarge] {
            assert!(in_doubt(reason), "{reason}");
        }
        for status in [500, 502, 504, 520, 524] {
            assert!(in_doubt(Reason::HttpStatus(status)), "{status}");
        }
        for status in [302, 400, 401, 403, 404, 408, 425, 429, 503] {
            assert!(!in_doubt(Reason::HttpStatus(status)), "{status}");
        }
        for reason in [Reason::Unreachable, Reason::Tls, Reason::NotSent, Reason::Empty400, Reason::SlowDown] {
            assert!(!in_doubt(reason), "{reason}");
        }
        for reason in [Reason::Timeout, Reason::ConnectionLost, Reason::HttpStatus(502), Reason::NotJson] {
            let failure = Failure::Retryable { reason, retry_after: None, detail: None }.during_discovery();
            assert!(!failure.may_have_been_granted(), "{failure}: nothing was sent");
        }
    }

    #[test]
    fn every_failure_has_an_outcome() {
        for (reason, outcome) in [
            (Reason::Tls, "unavailable"),
            (Reason::HttpStatus(503), "unavailable"),
            (Reason::NotJson, "invalid_answer"),
            (Reason::TokenType, "invalid_answer"),
        ] {
            assert_eq!(Failure::Retryable { reason, retry_after: None, detail: None }.outcome().as_str(), outcome);
        }
        assert_eq!(Failure::Permanent(Refusal::from_code("x")).outcome().as_str(), "refused");
        assert_eq!(Reason::HttpStatus(503).to_string(), "http_503");
    }
}
