//! Classifies the error responses of a token endpoint, in one table. Pure.
//!
//! Invariant: judges the response as received, before redaction.
//! Not here: parsing the response (`response`), when to retry (`token::schedule`), what happens to the stored refresh
//! token (`token::acquire`).

use http::StatusCode;

use super::failure::{Reason, is_known};

/// The parts of an error response that the verdict depends on.
#[derive(Debug, Clone, Copy, Default)]
pub struct ErrorResponse<'a> {
    pub status: u16,
    /// The OAuth error code (RFC 6749 §5.2); `None` if it is absent or unreadable.
    pub error: Option<&'a str>,
    /// No body at all.
    pub is_empty: bool,
    /// One of `token_response.refresh_refused` matches.
    pub matches_sign: bool,
}

/// Credential that the request presented.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sent {
    /// The connection's own grant, or a request that grants nothing yet.
    #[default]
    Grant,
    RefreshToken {
        /// Without this refresh token, only a person can get the next token.
        needs_person: bool,
        /// The refresh before this one got an empty 400.
        after_empty_400: bool,
    },
}

/// The class of an error response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Retryable, with backoff.
    Retry(Reason),
    /// Permanent until the configuration or the server changes. The refresh token, if one was sent, may still be valid.
    Refused,
    /// The server does not accept the refresh token and never will.
    RefreshTokenRefused,
}

/// Refusals of a refresh token after which a person has to connect again: those of OAuth and OpenID Connect (Core
/// §3.1.2.6), and the ones of GitHub and Slack.
const CONNECT_AGAIN: [&str; 7] = [
    "invalid_grant",
    "interaction_required",
    "login_required",
    "consent_required",
    "invalid_refresh_token",
    "bad_refresh_token",
    "expired_refresh_token",
];

pub fn judge(response: ErrorResponse<'_>, sent: Sent) -> Verdict {
    let ErrorResponse { status, error, is_empty, matches_sign } = response;
    let Sent::RefreshToken { needs_person, after_empty_400 } = sent else { return judge_grant(response) };
    let has_no_detail = is_empty || error.is_some_and(|code| repeats_status(code, status));
    match (error, status) {
        _ if matches_sign => Verdict::RefreshTokenRefused,
        // A failing server proves nothing about the refresh token, whatever the body.
        (_, 500..) => Verdict::Retry(Reason::HttpStatus(status)),
        (_, 400 | 401) if has_no_detail && !needs_person => Verdict::RefreshTokenRefused,
        // The first empty 400 may have come from a gateway.
        (_, 400) if is_empty && after_empty_400 => Verdict::RefreshTokenRefused,
        (error, _) => match (judge_grant(response), error) {
            (Verdict::Refused, Some("invalid_client")) => Verdict::Refused,
            (Verdict::Refused, _) if !needs_person => Verdict::RefreshTokenRefused,
            (Verdict::Refused, Some(code)) if CONNECT_AGAIN.contains(&code) => Verdict::RefreshTokenRefused,
            (verdict, _) => verdict,
        },
    }
}

/// The verdict if no refresh token was sent.
fn judge_grant(ErrorResponse { status, error, is_empty, .. }: ErrorResponse<'_>) -> Verdict {
    match (error, status) {
        (Some("temporarily_unavailable"), _) => Verdict::Retry(Reason::TemporarilyUnavailable),
        (Some("slow_down"), _) => Verdict::Retry(Reason::SlowDown),
        (_, 408 | 425 | 429) => Verdict::Retry(Reason::HttpStatus(status)),
        (Some("server_error"), 500..) => Verdict::Retry(Reason::ServerError),
        (Some(code), 500..) if !is_known(code) => Verdict::Retry(Reason::HttpStatus(status)),
        (Some(code), _) if !repeats_status(code, status) => Verdict::Refused,
        (None, 400) if is_empty => Verdict::Retry(Reason::Empty400),
        _ => Verdict::Retry(Reason::HttpStatus(status)),
    }
}

/// True for an error code that only repeats the status, as in `{"status": 403, "error": "Forbidden"}`: gateways and web
/// frameworks send it, and it is not an OAuth error.
fn repeats_status(code: &str, status: u16) -> bool {
    let letters = |text: &str| -> String {
        let letters = text.chars().filter(char::is_ascii_alphanumeric);
        letters.map(|letter| letter.to_ascii_lowercase()).collect()
    };
    let phrase = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    code == status.to_string() || phrase.is_some_and(|phrase| letters(phrase) == letters(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: Sent = Sent::RefreshToken { needs_person: false, after_empty_400: false };
    const PERSON: Sent = Sent::RefreshToken { needs_person: true, after_empty_400: false };

    /// A verdict as one word: the reason of a retry, `refused`, or `dead` if the refresh token is refused.
    fn word(response: ErrorResponse<'_>, sent: Sent) -> String {
        match judge(response, sent) {
            Verdict::Retry(reason) => reason.to_string(),
            Verdict::Refused => "refused".to_owned(),
            Verdict::RefreshTokenRefused => "dead".to_owned(),
        }
    }

    /// Expected verdicts for the connection's own grant, for a refresh token that the own grant can replace, and for
    /// one that only a person can replace.
    #[track_caller]
    fn check(response: ErrorResponse<'_>, expected: [&str; 3]) {
        assert_eq!([Sent::Grant, MACHINE, PERSON].map(|sent| word(response, sent)), expected, "{response:?}");
    }

    fn oauth(status: u16, error: &str) -> ErrorResponse<'_> {
        ErrorResponse { status, error: Some(error), ..ErrorResponse::default() }
    }

    fn empty(status: u16) -> ErrorResponse<'static> {
        ErrorResponse { status, is_empty: true, ..ErrorResponse::default() }
    }

    fn page(status: u16) -> ErrorResponse<'static> {
        ErrorResponse { status, ..ErrorResponse::default() }
    }

    #[test]
    fn an_oauth_error_refuses_and_some_codes_require_a_person_to_connect_again() {
        for code in CONNECT_AGAIN {
            check(oauth(400, code), ["refused", "dead", "dead"]);
        }
        for code in ["unauthorized_client", "unsupported_grant_type", "invalid_scope", "server_error", "oops"] {
            for status in [200, 400, 401, 403, 404] {
                check(oauth(status, code), ["refused", "dead", "refused"]);
            }
        }
        for status in [200, 400, 401] {
            check(oauth(status, "invalid_client"), ["refused"; 3]);
            check(oauth(status, "slow_down"), ["slow_down"; 3]);
            check(oauth(status, "temporarily_unavailable"), ["temporarily_unavailable"; 3]);
        }
    }

    #[test]
    fn a_busy_or_failing_server_does_not_refuse_a_refresh_token() {
        for status in [408, 425, 429] {
            let busy = format!("http_{status}");
            check(empty(status), [&busy; 3]);
            check(oauth(status, "invalid_grant"), [&busy; 3]);
        }
        for status in [500, 502, 503, 504, 524] {
            let broken = format!("http_{status}");
            check(page(status), [&broken; 3]);
            check(oauth(status, "oops"), [&broken; 3]);
            check(oauth(status, "invalid_grant"), ["refused", &broken, &broken]);
            check(oauth(status, "server_error"), ["server_error", &broken, &broken]);
        }
        check(oauth(429, "slow_down"), ["slow_down"; 3]);
    }

    #[test]
    fn a_response_without_an_oauth_error_is_retried_except_an_empty_400_or_401_to_a_refresh() {
        for status in [200, 302, 400, 401, 403, 404, 405, 418] {
            let retry = format!("http_{status}");
            check(page(status), [&retry; 3]);
        }
        check(empty(400), ["http_400_empty", "dead", "http_400_empty"]);
        check(empty(401), ["http_401", "dead", "http_401"]);
        check(empty(403), ["http_403"; 3]);
        let second = Sent::RefreshToken { needs_person: true, after_empty_400: true };
        assert_eq!(word(empty(400), second), "dead");
        assert_eq!(word(empty(401), second), "http_401");
        assert_eq!(word(page(400), second), "http_400");
    }

    #[test]
    fn a_configured_sign_takes_precedence() {
        for response in [oauth(403, "unauthorized_client"), oauth(401, "invalid_client"), page(500), page(429)] {
            let response = ErrorResponse { matches_sign: true, ..response };
            assert_eq!([MACHINE, PERSON].map(|sent| word(response, sent)), ["dead", "dead"], "{response:?}");
            assert_ne!(word(response, Sent::Grant), "dead", "no refresh token was sent");
        }
    }

    #[test]
    fn a_code_that_repeats_the_status_is_not_an_oauth_error() {
        for (status, code) in [(403, "Forbidden"), (404, "not_found"), (404, "NotFound"), (403, "403")] {
            check(oauth(status, code), [&format!("http_{status}"); 3]);
        }
        for (status, code) in [(400, "bad_request"), (401, "Unauthorized")] {
            let retry = format!("http_{status}");
            check(oauth(status, code), [&retry, "dead", &retry]);
        }
        check(oauth(400, "Forbidden"), ["refused", "dead", "refused"]);
    }
}
