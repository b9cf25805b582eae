//! What a token endpoint's answer means: a token set, a refusal, or a reason to ask again later.
//!
//! Not here: limits and deadlines of reading it (`transport`, `oauth`).
//! Holds: lenient reading, strict result (RFC 6749 §5.1, §5.2; RFC 6750 §2.1). The `error` member decides before the
//! status, except where the status says "not now". Pure, but for warnings.

use std::time::Duration;

use http::StatusCode;

use crate::model::token::{AccessToken, RefreshToken, TokenSet};

use super::failure::{Failure, Posted, Reason, Refusal, is_known};
use super::json::{Json, Members};
use super::retry_after::retry_after;
use super::retryable;
use super::transport::Answer;

/// Longest token lifetime that is believed: ten years.
const EXPIRES_IN_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
const REDIRECT: &str = "the token endpoint redirects; set token_url to its final address";

pub fn read(answer: &Answer, posted: &Posted) -> Result<TokenSet, Failure> {
    judge(answer.status, &answer.body, posted).map_err(|failure| match failure {
        Failure::Retryable { reason, detail, .. } => {
            Failure::Retryable { reason, retry_after: retry_after(&answer.headers, answer.received), detail }
        }
        permanent => permanent,
    })
}

fn judge(status: StatusCode, body: &[u8], posted: &Posted) -> Result<TokenSet, Failure> {
    if status.is_redirection() {
        let description = Some(REDIRECT.to_owned());
        return Err(Failure::Permanent(Refusal { description, ..Refusal::new(status, None, None, posted) }));
    }
    let members = if body.is_empty() { Err(Reason::Empty) } else { Json::object(body) };
    if let Ok(members) = &members
        && let Some(error) = member(members, "error")
        && !matches!(error, Json::Bool(false))
    {
        let description = member(members, "error_description").and_then(Json::as_text);
        return Err(failure(status, error.as_text().and_then(code), description, posted));
    }
    if !status.is_success() {
        return Err(failure(status, None, None, posted));
    }
    members.and_then(|members| token_set(&members)).map_err(retryable)
}

fn failure(status: StatusCode, error: Option<&str>, description: Option<&str>, posted: &Posted) -> Failure {
    match (error, status.as_u16()) {
        (Some("temporarily_unavailable"), _) => retryable(Reason::TemporarilyUnavailable),
        (Some("server_error"), _) => retryable(Reason::ServerError),
        (Some("slow_down"), _) => retryable(Reason::SlowDown),
        (_, status @ (408 | 425 | 429)) => retryable(Reason::HttpStatus(status)),
        (Some(known), _) if is_known(known) => Failure::Permanent(Refusal::new(status, error, description, posted)),
        (_, status @ 500..) => retryable(Reason::HttpStatus(status)),
        _ => Failure::Permanent(Refusal::new(status, error, description, posted)),
    }
}

/// An error code that can be shown; RFC 6749 allows more, nobody uses it.
fn code(text: &str) -> Option<&str> {
    let text = text.trim();
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    ((1..=64).contains(&text.len()) && text.bytes().all(plain)).then_some(text)
}

/// A member that says something: null and an empty text are absence.
fn member<'a>(members: &'a Members, name: &str) -> Option<&'a Json> {
    members.get(name).filter(|value| !matches!(value, Json::Null) && value.as_text() != Some(""))
}

fn token_set(members: &Members) -> Result<TokenSet, Reason> {
    let text = member(members, "access_token").ok_or(Reason::NoAccessToken)?.as_text();
    let access_token = text.and_then(AccessToken::parse).ok_or(Reason::InvalidAccessToken)?;
    let bearer = |value: &Json| value.as_text().is_some_and(|text| text.eq_ignore_ascii_case("bearer"));
    if !matches!(members.get("token_type"), None | Some(Json::Null)) && !members.get("token_type").is_some_and(bearer) {
        return Err(Reason::TokenType);
    }
    let expires_in = member(members, "expires_in").and_then(lifetime);
    let refresh_token = member(members, "refresh_token").and_then(refresh_token);
    Ok(TokenSet { access_token, expires_in, refresh_token, scopes: member(members, "scope").and_then(scopes) })
}

/// One that no form could carry back is none: the token before it, if there is one, stays in use.
fn refresh_token(value: &Json) -> Option<RefreshToken> {
    let token = value.as_text().and_then(RefreshToken::parse);
    if token.is_none() {
        tracing::warn!("token answer has a refresh_token that is no text of visible characters, or too long");
    }
    token
}

/// Seconds as a number or as a numeric text; `None` is the connection's default lifetime.
fn lifetime(value: &Json) -> Option<Duration> {
    let seconds = match value {
        Json::Number(seconds) => Some(*seconds),
        Json::Text(text) => numeric(text.trim()),
        _ => None,
    };
    match seconds {
        Some(0.0) => None,
        Some(seconds) if seconds > 0.0 => {
            Some(Duration::try_from_secs_f64(seconds).map_or(EXPIRES_IN_MAX, |life| life.min(EXPIRES_IN_MAX)))
        }
        Some(_) => {
            tracing::warn!("token answer has a negative expires_in; the default lifetime applies");
            None
        }
        None => {
            tracing::warn!("token answer has an expires_in that is no number; the default lifetime applies");
            None
        }
    }
}

/// Digits with sign and fraction; Rust's own parser knows `inf`, `nan` and exponents as well.
fn numeric(text: &str) -> Option<f64> {
    let plain = text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'+'));
    text.parse().ok().filter(|_| plain)
}

/// Granted scopes from a text or a list; `None` when nothing is said. What is no scope (RFC 6749 §3.3) is left out.
fn scopes(value: &Json) -> Option<Vec<String>> {
    let separator = |c: char| c.is_whitespace() || c == ',';
    let items: Vec<&str> = match value {
        Json::Text(text) => text.split(separator).collect(),
        Json::List(items) => items.iter().filter_map(Json::as_text).collect(),
        _ => return None,
    };
    let scope = |text: &&str| !text.is_empty() && text.bytes().all(|b| matches!(b, 0x21 | 0x23..=0x5b | 0x5d..=0x7e));
    let scopes: Vec<String> = items.into_iter().filter(scope).map(str::to_owned).collect();
    (!scopes.is_empty()).then_some(scopes)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use http::HeaderMap;

    use super::*;

    fn answer(status: u16, body: &str) -> Answer {
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: HeaderMap::new(),
            body: body.as_bytes().to_vec().into(),
            received: SystemTime::UNIX_EPOCH,
        }
    }

    /// `token/seconds/scopes`, or the failure's name in brackets for a refusal.
    fn told(answer: &Answer) -> String {
        match read(answer, &Posted::new("", &Vec::new(), Vec::new())) {
            Ok(TokenSet { access_token, expires_in, scopes, refresh_token }) => {
                let life = expires_in.map_or("-".to_owned(), |life| life.as_secs_f64().to_string());
                let refresh = refresh_token.map_or_else(String::new, |token| format!("/{}", token.expose()));
                let scopes = scopes.map_or("-".to_owned(), |all| all.join(" "));
                format!("{}/{life}/{scopes}{refresh}", access_token.expose())
            }
            Err(Failure::Permanent(refusal)) => format!("[{refusal}]"),
            Err(Failure::Retryable { reason, .. }) => reason.to_string(),
        }
    }

    #[track_caller]
    fn check(status: u16, body: &str, expected: &str) {
        assert_eq!(told(&answer(status, body)), expected);
    }

    #[track_caller]
    fn check_with(members: &str, expected: &str) {
        check(200, &format!(r#"{{"access_token":"t",{members}}}"#), expected);
    }

    #[test]
    fn success_is_read_leniently() {
        check(200, r#"{"access_token":"t"}"#, "t/-/-");
        check(201, r#"{"iat":1,"access_token":"a.b-c==","token_type":"bearer","id_token":"x"}"#, "a.b-c==/-/-");
        check(200, "\u{feff}{\"access_token\":\"t\",\"token_type\":\"BEARER\"}", "t/-/-");
        for (value, seconds) in [
            ("600", "600"),
            ("600.5", "600.5"),
            ("\"600\"", "600"),
            ("\" 600.0 \"", "600"),
            ("1", "1"),
            ("6e2", "600"),
            ("0", "-"),
            ("-0", "-"),
            ("\"0\"", "-"),
            ("null", "-"),
            ("\"\"", "-"),
            ("-1", "-"),
            ("\"-600\"", "-"),
            ("\"3600abc\"", "-"),
            ("\"inf\"", "-"),
            ("\"NaN\"", "-"),
            ("\"1e9\"", "-"),
            ("true", "-"),
            ("[600]", "-"),
            ("{\"s\":1}", "-"),
            ("1576800000", "315360000"),
            ("99999999999999999999999999", "315360000"),
            ("1e300", "315360000"),
        ] {
            check_with(&format!("\"expires_in\":{value}"), &format!("t/{seconds}/-"));
        }
        for (value, scopes) in [
            ("\"a b\"", "a b"),
            ("\"a, b,c\\td\"", "a b c d"),
            ("[\"a\",\"b\",1,\"c d\"]", "a b"),
            ("\"\"", "-"),
            ("null", "-"),
            ("\" \"", "-"),
            ("7", "-"),
            ("\"a \\u0007x b\"", "a b"),
        ] {
            check_with(&format!("\"scope\":{value}"), &format!("t/-/{scopes}"));
        }
        check_with("\"refresh_token\":\"r 1~\"", "t/-/-/r 1~");
        let long = format!("\"{}\"", "r".repeat(16 * 1024 + 1));
        for none in ["null", "\"\"", "7", "[\"r\"]", "\"r\\u0000\"", "\"ä\"", &long] {
            check_with(&format!("\"refresh_token\":{none}"), "t/-/-");
        }
        check_with("\"error\":null", "t/-/-");
        check_with("\"error\":\"\"", "t/-/-");
        check_with("\"error\":false", "t/-/-");
    }

    #[test]
    fn a_success_that_is_none_gives_no_token() {
        for body in ["<html>", " ", "null", "[]", "[{\"access_token\":\"t\"}]", "access_token=t", "{", "\"t\""] {
            check(200, body, "not_json");
        }
        check(200, "", "empty");
        check(204, "", "empty");
        check(200, "{}", "no_access_token");
        for value in ["null", "\"\""] {
            check(200, &format!("{{\"access_token\":{value}}}"), "no_access_token");
        }
        let long = format!("\"{}\"", "x".repeat(8193));
        let bad = ["\"a b\"", "\"a,b\"", "\"a\\r\\nX: y\"", "\"a\\u0000\"", "\"ä\"", "\"=\"", "7", "[\"t\"]", &long];
        for value in bad {
            check(200, &format!("{{\"access_token\":{value}}}"), "invalid_access_token");
        }
        for value in ["\"mac\"", "\"DPoP\"", "\"N_A\"", "\"\"", "7", "\"Bearer x\""] {
            check_with(&format!("\"token_type\":{value}"), "token_type");
        }
        check_with("\"access_token\":\"u\"", "duplicate_member");
        check_with("\"x\":{\"a\":1,\"a\":1}", "duplicate_member");
        check_with("\"token_type\":null", "t/-/-");
    }

    #[test]
    fn the_error_member_decides_then_the_status() {
        check(401, r#"{"error":"invalid_client"}"#, "[invalid_client]");
        check(400, r#"{"error":"invalid_client","error_description":"expired"}"#, "[invalid_client (expired)]");
        check(200, r#"{"error":"bad_verification_code","access_token":"t"}"#, "[bad_verification_code]");
        check(200, r#"{"error":{"message":"no"}}"#, "[http_200]");
        check(400, r#"{"error":" invalid_grant "}"#, "[invalid_grant]");
        check(400, r#"{"error":"in valid"}"#, "[http_400]");
        check(400, &format!(r#"{{"error":"{}"}}"#, "x".repeat(65)), "[http_400]");
        check(400, r#"{"error":"a","error":"b"}"#, "[http_400]");
        check(403, "", "[http_403]");
        check(403, r#"{"error":"invalid_code"}"#, "[invalid_code]");
        check(404, "<html>", "[http_404]");
        check(500, r#"{"error":"invalid_scope"}"#, "[invalid_scope]");
        check(500, r#"{"error":"oops"}"#, "http_500");
        check(503, "<html>fault</html>", "http_503");
        for code in ["temporarily_unavailable", "server_error", "slow_down"] {
            check(400, &format!(r#"{{"error":"{code}"}}"#), code);
        }
        for status in [408, 425, 429] {
            check(status, "", &format!("http_{status}"));
            check(status, r#"{"error":"access_denied"}"#, &format!("http_{status}"));
        }
        for status in [301, 302, 304, 307, 308] {
            check(status, r#"{"access_token":"t"}"#, &format!("[http_{status} ({REDIRECT})]"));
        }
    }
}
