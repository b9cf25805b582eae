//! What a token endpoint's answer means: a token set, a refusal, or a reason to ask again later.
//!
//! Not here: limits and deadlines of reading it (`transport`, `oauth`).
//! Holds: lenient reading, strict result (RFC 6749 §5.1, §5.2; RFC 6750 §2.1). The `error` member decides before the
//! status, except where the status says "not now". Pure, but for warnings.

mod lifetime;

use http::StatusCode;

use super::failure::{Failure, Reason, Refusal};
use super::json::{Json, Members};
use super::posted::Posted;
use super::retry_after::retry_after;
use super::retryable;
use super::transport::TokenResponse;
use super::verdict::{self, ErrorResponse, Sent, Verdict};
use crate::model::connection::{RefusalSign, ResponseEncoding, TokenResponseFormat};
use crate::model::token::{AccessToken, RefreshToken, TokenSet};
use crate::script::{self, Context, Script};

pub use lifetime::seconds;

const REDIRECT: &str = "the token endpoint redirects; set token_url to its final address";

/// The token set of an answer to what was `sent`, whose members are where `shape` says.
pub fn read(
    answer: &TokenResponse,
    shape: &TokenResponseFormat,
    sent: Sent,
    posted: &Posted,
) -> Result<TokenSet, Failure> {
    judge(answer, shape, sent, posted).map_err(|failure| match failure {
        Failure::Retryable { reason, detail, .. } => {
            Failure::Retryable { reason, retry_after: retry_after(&answer.headers, answer.received), detail }
        }
        permanent => permanent,
    })
}

/// What the script makes of an answer, and whether it wrote the members itself, at their standard places.
pub fn scripted(
    script: &Script,
    answer: &TokenResponse,
    context: &Context,
) -> Result<(TokenResponse, bool), script::Failure> {
    let header = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        Some((name.to_string(), value.to_str().ok()?.to_owned()))
    };
    let given = script::Response {
        status: answer.status.as_u16(),
        headers: answer.headers.iter().filter_map(header).collect(),
        text: String::from_utf8_lossy(&answer.body).into_owned(),
    };
    let made = script.token_response(given, context)?;
    let status = StatusCode::from_u16(made.status).unwrap_or(answer.status);
    let body = zeroize::Zeroizing::new(made.body.into_bytes());
    Ok((TokenResponse { status, headers: answer.headers.clone(), body, received: answer.received }, made.is_short))
}

/// The answer of a revocation endpoint (RFC 7009 §2.2): a token that it does not know is revoked, too.
pub fn revoked(answer: &TokenResponse, posted: &Posted) -> Result<(), Failure> {
    if answer.status.is_success() {
        return Ok(());
    }
    Err(refusal(answer, posted))
}

/// What an answer that is no success says.
pub fn refusal(answer: &TokenResponse, posted: &Posted) -> Failure {
    match read(answer, &TokenResponseFormat::default(), Sent::Grant, posted) {
        Err(failure) => failure,
        Ok(_) => retryable(Reason::HttpStatus(answer.status.as_u16())),
    }
}

fn judge(
    answer: &TokenResponse,
    shape: &TokenResponseFormat,
    sent: Sent,
    posted: &Posted,
) -> Result<TokenSet, Failure> {
    let (status, body) = (answer.status, answer.body.as_slice());
    if status.is_redirection() {
        let (reason, detail) = (Reason::HttpStatus(status.as_u16()), Some(REDIRECT.to_owned()));
        return Err(Failure::Retryable { reason, retry_after: None, detail });
    }
    let members = match shape.encoding {
        _ if body.is_empty() => Err(Reason::Empty),
        ResponseEncoding::Json => Json::object(body),
        // Errors come as JSON from servers whose tokens do not.
        ResponseEncoding::Form => Json::object(body).or_else(|_| Json::form(body)),
    };
    if let Ok(members) = &members {
        let error = Json::at(members, &shape.error).filter(|error| !matches!(error, Json::Bool(false)));
        let failed = shape
            .failure
            .as_ref()
            .is_some_and(|sign| Json::at(members, &sign.pointer).is_some_and(|value| value.is(&sign.equals)));
        if error.is_some() || failed {
            let description = Json::at(members, &shape.error_description).and_then(Json::as_text);
            let matches_sign = shape.refresh_refused.iter().any(|sign| matches(sign, status, error, description));
            // What the connection calls a failure is one, and has the status for a code if it names none.
            let of_failure = failed.then(|| format!("http_{}", status.as_u16()));
            let error = error.and_then(Json::as_text).and_then(code).or(of_failure.as_deref());
            let response = ErrorResponse { status: status.as_u16(), error, is_empty: false, matches_sign };
            return Err(failure(response, description, sent, posted));
        }
    }
    if !status.is_success() {
        let matches_sign = shape.refresh_refused.iter().any(|sign| matches(sign, status, None, None));
        let response = ErrorResponse { status: status.as_u16(), error: None, is_empty: body.is_empty(), matches_sign };
        return Err(failure(response, None, sent, posted));
    }
    members.and_then(|members| token_set(&members, shape, answer)).map_err(retryable)
}

/// Is this one of the connection's own signs of a refused refresh token?
fn matches(sign: &RefusalSign, status: StatusCode, error: Option<&Json>, description: Option<&str>) -> bool {
    let is = |text: &str| error.is_some_and(|error| error.is(text) || error.as_text().map(str::trim) == Some(text));
    let contains =
        |part: &str| description.is_some_and(|text| text.to_ascii_lowercase().contains(&part.to_ascii_lowercase()));
    sign.status.is_none_or(|expected| expected == status)
        && sign.error.as_deref().is_none_or(is)
        && sign.description_contains.as_deref().is_none_or(contains)
}

/// The verdict, with what may be shown of the response.
fn failure(response: ErrorResponse<'_>, description: Option<&str>, sent: Sent, posted: &Posted) -> Failure {
    let refusal = || Refusal::new(response.status, response.error, description, posted);
    match verdict::judge(response, sent) {
        Verdict::Retry(reason) => {
            let detail = response.error.map(|_| refusal().to_string());
            Failure::Retryable { reason, retry_after: None, detail }
        }
        Verdict::Refused => Failure::Permanent(refusal()),
        Verdict::RefreshTokenRefused => Failure::Permanent(Refusal { is_of_refresh_token: true, ..refusal() }),
    }
}

/// An error code that can be shown; RFC 6749 allows more, nobody uses it.
fn code(text: &str) -> Option<&str> {
    let text = text.trim();
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    ((1..=64).contains(&text.len()) && text.bytes().all(plain)).then_some(text)
}

fn token_set(members: &Members, shape: &TokenResponseFormat, answer: &TokenResponse) -> Result<TokenSet, Reason> {
    let text = Json::at(members, &shape.access_token).ok_or(Reason::NoAccessToken)?.as_text();
    let access_token = text.and_then(AccessToken::parse).ok_or(Reason::InvalidAccessToken)?;
    let other = |value: &Json| !value.as_text().is_some_and(|text| text.eq_ignore_ascii_case("bearer"));
    if shape.token_type.as_ref().and_then(|place| Json::stated(members, place)).is_some_and(other) {
        return Err(Reason::TokenType);
    }
    Ok(TokenSet {
        access_token,
        expires_in: lifetime::of_access_token(members, shape, answer),
        refresh_token: Json::at(members, &shape.refresh_token).and_then(refresh_token),
        refresh_token_expires_in: Json::at(members, &shape.refresh_token_expires_in).and_then(lifetime::seconds),
        scopes: Json::at(members, &shape.scope).and_then(scopes),
    })
}

/// One that no form could carry back is none: the token before it, if there is one, stays in use.
fn refresh_token(value: &Json) -> Option<RefreshToken> {
    let token = value.as_text().and_then(RefreshToken::parse);
    if token.is_none() {
        tracing::warn!("token answer has a refresh_token that is no text of visible characters, or too long");
    }
    token
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
mod tests;
