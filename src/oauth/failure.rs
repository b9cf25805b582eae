//! Why there is no token, shaped by what the caller does next, and nothing that may not be logged.
//!
//! Holds: a [`Refusal`] shows printable ASCII of bounded length; neither a secret nor a posted value nor half of one.

use std::fmt;
use std::time::Duration;

use super::posted::Posted;
use crate::script;

/// What the caller does next decides the shape.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Try again later, not before `retry_after`.
    #[error("token endpoint gave no token: {reason}")]
    Retryable {
        reason: Reason,
        retry_after: Option<Duration>,
        /// What the libraries say of it, or the remedy, for the log and the operator; clean.
        detail: Option<String>,
    },
    /// The server's verdict: only a changed configuration (or the server's mind) heals it.
    #[error("token endpoint refused the grant: {0}")]
    Permanent(Refusal),
    /// The connection's own script gave up, before the request left or, with `answered`, after.
    #[error("the script failed: {message}")]
    Script { message: String, answered: bool },
}

impl Failure {
    /// What the script threw, or what went wrong in it; nothing of it repeats what was sent, or what else it was given.
    pub fn of_script(failure: script::Failure, posted: &Posted) -> Failure {
        if let script::Failure::RetryLater { after, .. } = failure {
            return Failure::Retryable { reason: Reason::Script, retry_after: Some(after), detail: None };
        }
        let message = posted.clean(&failure.to_string()).unwrap_or_else(|| "it repeated a secret".to_owned());
        Failure::Script { message, answered: false }
    }

    /// The request had left before.
    pub fn after_the_answer(self) -> Failure {
        match self {
            Failure::Script { message, .. } => Failure::Script { message, answered: true },
            other => other,
        }
    }

    /// Asking again is of no use before somebody has changed something.
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
}

impl Failure {
    /// The server may have granted what was asked for, and we do not have it: no answer, one that cannot be read, or that
    /// of a gateway or a server that has failed half way (any 5xx but 503).
    pub fn may_have_been_granted(&self) -> bool {
        match self {
            Failure::Permanent(_) => false,
            Failure::Script { answered, .. } => *answered,
            Failure::Retryable { reason, .. } => match reason {
                Reason::Timeout | Reason::ConnectionLost => true,
                Reason::HttpStatus(status) => (500..).contains(status) && *status != 503,
                reason => reason.outcome() == Outcome::InvalidAnswer,
            },
        }
    }

    /// The server may not have accepted the client; another of its secrets may do. Some servers answer a wrong secret with
    /// a bare 401 or 403.
    pub fn may_be_of_the_client(&self) -> bool {
        match self {
            Failure::Permanent(refusal) => matches!(refusal.error.as_str(), "invalid_client" | "http_401"),
            Failure::Retryable { reason, .. } => matches!(reason, Reason::HttpStatus(401 | 403)),
            Failure::Script { .. } => false,
        }
    }

    /// There is nothing at the URL, or something else.
    pub fn is_of_the_place(&self) -> bool {
        matches!(self, Failure::Retryable { reason: Reason::HttpStatus(404 | 405 | 410), .. })
    }

    /// The issuer's metadata could not be had, so the request itself was never sent.
    pub fn of_discovery(self) -> Failure {
        let Failure::Retryable { reason, retry_after, detail } = self else { return self };
        let now = match reason {
            Reason::Unreachable | Reason::Tls | Reason::NotSent => reason,
            Reason::ConnectionLost => Reason::Unreachable,
            // Said already.
            Reason::Discovery => return Failure::Retryable { reason, retry_after, detail },
            _ => Reason::Discovery,
        };
        let detail = detail.map_or_else(|| reason.to_string(), |detail| format!("{reason}: {detail}"));
        Failure::Retryable { reason: now, retry_after, detail: Some(format!("issuer metadata: {detail}")) }
    }
}

/// The label of the token request metrics.
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

/// Why another try may help. `Display` is a stable name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// No connection: name, route or port.
    #[error("unreachable")]
    Unreachable,
    #[error("tls")]
    Tls,
    /// The right to send it ended before there was a connection.
    #[error("not_sent")]
    NotSent,
    #[error("timeout")]
    Timeout,
    /// The connection ended before the answer did.
    #[error("connection_lost")]
    ConnectionLost,
    #[error("not_http")]
    NotHttp,
    #[error("http_{0}")]
    HttpStatus(u16),
    /// A 400 without a body.
    #[error("http_400_empty")]
    Empty400,
    /// The issuer's metadata could not be had, so nothing else was asked.
    #[error("discovery_failed")]
    Discovery,
    /// RFC 6749 §4.1.2.1, used at token endpoints too.
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
    /// Not one JSON object.
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
    /// The script asks for a pause.
    #[error("script_retry")]
    Script,
}

impl Reason {
    /// The key that helps, where the server behaves as it always will.
    pub fn remedy(self) -> Option<&'static str> {
        match self {
            Reason::TokenType => Some(
                "the token_type of the response is not Bearer; if its tokens work as bearer tokens, set \
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

/// An error answer (RFC 6749 §5.2), cleaned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The server's code, `[A-Za-z0-9_.-]{1,64}`; `http_<status>` when it sent none that can be read.
    pub error: String,
    /// Printable ASCII, at most 200 characters, posted values masked.
    pub description: Option<String>,
    /// It was said of the refresh token that was sent, which is never accepted again.
    pub is_of_refresh_token: bool,
}

impl Refusal {
    /// What the server said, less what it repeats of the request.
    pub fn new(status: u16, error: Option<&str>, description: Option<&str>, posted: &Posted) -> Refusal {
        let error = error.filter(|code| is_known(code) || !posted.is_repeated_by(code));
        let error = error.map_or_else(|| format!("http_{status}"), str::to_owned);
        let description = description.and_then(|text| posted.clean(text));
        Refusal { error, description, is_of_refresh_token: false }
    }

    pub fn of_code(code: &str) -> Refusal {
        Refusal { error: code.to_owned(), description: None, is_of_refresh_token: false }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.error)?;
        self.description.as_ref().map_or(Ok(()), |text| write!(f, " ({text})"))
    }
}

/// Codes of RFC 6749 §5.2 and §4.1.2.1 and of OpenID Connect Core §3.1.2.6 that mean no, whatever the status; of RFC 8628 §3.5
/// and, in Entra's words, of polls.
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
        let posted = Posted::new("app-7", &fields, secrets);
        let refusal = Refusal::new(403, Some(error), Some(description), &posted);
        assert_eq!(refusal.to_string(), expected);
    }

    #[test]
    fn a_refusal_repeats_nothing_that_was_sent() {
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
    fn a_refresh_is_in_doubt_without_a_whole_response_and_after_any_5xx_but_503() {
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
            let failure = Failure::Retryable { reason, retry_after: None, detail: None }.of_discovery();
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
        assert_eq!(Failure::Permanent(Refusal::of_code("x")).outcome().as_str(), "refused");
        assert_eq!(Reason::HttpStatus(503).to_string(), "http_503");
    }
}
