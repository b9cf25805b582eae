//! Interprets token responses: a token set, a refusal, or a reason to retry later. Pure, apart from log warnings.
//!
//! Invariants: lenient parsing, strict result (RFC 6749 §5.1, §5.2; RFC 6750 §2.1). The `error` member takes precedence
//! over the status, unless the status means "retry later" (`verdict`).
//! Not here: size limit (`transport`), timeout (`oauth`).

mod lifetime;

use http::StatusCode;

use super::failure::{Failure, Reason, Refusal};
use super::json::{Json, Members};
use super::redact::Redactor;
use super::retry_after::retry_after;
use super::retryable;
use super::transport::TokenResponse;
use super::verdict::{self, ErrorResponse, Sent, Verdict};
use crate::model::connection::{RefusalSign, ResponseEncoding, TokenResponseFormat};
use crate::model::token::{AccessToken, RefreshToken, TokenSet};
use crate::script::{self, Context, Script};

pub use lifetime::seconds;

const REDIRECT: &str = "the token endpoint redirects; set token_url to the final address";

/// Reads the token set from the response to `sent`; `format` locates the members.
pub fn read(
    response: &TokenResponse,
    format: &TokenResponseFormat,
    sent: Sent,
    redactor: &Redactor,
) -> Result<TokenSet, Failure> {
    judge(response, format, sent, redactor).map_err(|failure| match failure {
        Failure::Retryable { reason, detail, .. } => {
            Failure::Retryable { reason, retry_after: retry_after(&response.headers, response.received), detail }
        }
        permanent => permanent,
    })
}

/// Passes a response through the script; `true` if the script returned the members themselves, under their standard
/// names.
pub fn scripted(
    script: &Script,
    response: &TokenResponse,
    context: &Context,
) -> Result<(TokenResponse, bool), script::Failure> {
    let header = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        Some((name.to_string(), value.to_str().ok()?.to_owned()))
    };
    let given = script::Response {
        status: response.status.as_u16(),
        headers: response.headers.iter().filter_map(header).collect(),
        text: String::from_utf8_lossy(&response.body).into_owned(),
    };
    let scripted = script.token_response(given, context)?;
    let status = StatusCode::from_u16(scripted.status).unwrap_or(response.status);
    let body = zeroize::Zeroizing::new(scripted.body.into_bytes());
    Ok((
        TokenResponse { status, headers: response.headers.clone(), body, received: response.received },
        scripted.is_short,
    ))
}

/// Reads the response of a revocation endpoint (RFC 7009 §2.2); it reports success for an unknown token, too.
pub fn revoked(response: &TokenResponse, redactor: &Redactor) -> Result<(), Failure> {
    if response.status.is_success() {
        return Ok(());
    }
    Err(refusal(response, redactor))
}

/// The failure in a response that is not a success.
pub fn refusal(response: &TokenResponse, redactor: &Redactor) -> Failure {
    match read(response, &TokenResponseFormat::default(), Sent::Grant, redactor) {
        Err(failure) => failure,
        Ok(_) => retryable(Reason::HttpStatus(response.status.as_u16())),
    }
}

fn judge(
    response: &TokenResponse,
    format: &TokenResponseFormat,
    sent: Sent,
    redactor: &Redactor,
) -> Result<TokenSet, Failure> {
    let (status, body) = (response.status, response.body.as_slice());
    if status.is_redirection() {
        let (reason, detail) = (Reason::HttpStatus(status.as_u16()), Some(REDIRECT.to_owned()));
        return Err(Failure::Retryable { reason, retry_after: None, detail });
    }
    let members = match format.encoding {
        _ if body.is_empty() => Err(Reason::Empty),
        ResponseEncoding::Json => Json::object(body),
        // Servers that send tokens as a form may send errors as JSON.
        ResponseEncoding::Form => Json::object(body).or_else(|_| Json::form(body)),
    };
    if let Ok(members) = &members {
        let error = Json::at(members, &format.error).filter(|error| !matches!(error, Json::Bool(false)));
        let failed = format
            .failure
            .as_ref()
            .is_some_and(|sign| Json::at(members, &sign.pointer).is_some_and(|value| value.is(&sign.equals)));
        if error.is_some() || failed {
            let description = Json::at(members, &format.error_description).and_then(Json::as_text);
            let matches_sign = format.refresh_refused.iter().any(|sign| matches(sign, status, error, description));
            // A configured failure sign without a readable code gets one from the status.
            let status_code = failed.then(|| format!("http_{}", status.as_u16()));
            let error = error.and_then(Json::as_text).and_then(code).or(status_code.as_deref());
            let response = ErrorResponse { status: status.as_u16(), error, is_empty: false, matches_sign };
            return Err(failure(response, description, sent, redactor));
        }
    }
    if !status.is_success() {
        let matches_sign = format.refresh_refused.iter().any(|sign| matches(sign, status, None, None));
        let response = ErrorResponse { status: status.as_u16(), error: None, is_empty: body.is_empty(), matches_sign };
        return Err(failure(response, None, sent, redactor));
    }
    members.and_then(|members| token_set(&members, format, response)).map_err(retryable)
}

/// True if the response matches this sign of a refused refresh token (`token_response.refresh_refused`).
fn matches(sign: &RefusalSign, status: StatusCode, error: Option<&Json>, description: Option<&str>) -> bool {
    let is = |text: &str| error.is_some_and(|error| error.is(text) || error.as_text().map(str::trim) == Some(text));
    let contains =
        |part: &str| description.is_some_and(|text| text.to_ascii_lowercase().contains(&part.to_ascii_lowercase()));
    sign.status.is_none_or(|expected| expected == status)
        && sign.error.as_deref().is_none_or(is)
        && sign.description_contains.as_deref().is_none_or(contains)
}

/// The failure by the verdict on the response, with its error redacted.
fn failure(response: ErrorResponse<'_>, description: Option<&str>, sent: Sent, redactor: &Redactor) -> Failure {
    let refusal = || Refusal::new(response.status, response.error, description, redactor);
    match verdict::judge(response, sent) {
        Verdict::Retry(reason) => {
            let detail = response.error.map(|_| refusal().to_string());
            Failure::Retryable { reason, retry_after: None, detail }
        }
        Verdict::Refused => Failure::Permanent(refusal()),
        Verdict::RefreshTokenRefused => Failure::Permanent(Refusal { refuses_refresh_token: true, ..refusal() }),
    }
}

/// An error code that is safe to log. RFC 6749 allows more characters; no server is known to use them.
fn code(text: &str) -> Option<&str> {
    let text = text.trim();
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    ((1..=64).contains(&text.len()) && text.bytes().all(plain)).then_some(text)
}

fn token_set(members: &Members, format: &TokenResponseFormat, response: &TokenResponse) -> Result<TokenSet, Reason> {
    let text = Json::at(members, &format.access_token).ok_or(Reason::NoAccessToken)?.as_text();
    let access_token = text.and_then(AccessToken::parse).ok_or(Reason::InvalidAccessToken)?;
    let is_not_bearer = |value: &Json| !value.as_text().is_some_and(|text| text.eq_ignore_ascii_case("bearer"));
    if format.token_type.as_ref().and_then(|pointer| Json::stated(members, pointer)).is_some_and(is_not_bearer) {
        return Err(Reason::TokenType);
    }
    Ok(TokenSet {
        access_token,
        expires_in: lifetime::of_access_token(members, format, response),
        refresh_token: Json::at(members, &format.refresh_token).and_then(refresh_token),
        refresh_token_expires_in: Json::at(members, &format.refresh_token_expires_in).and_then(lifetime::seconds),
        scopes: Json::at(members, &format.scope).and_then(scopes),
    })
}

/// A refresh token that no form could send back counts as absent: the previous one, if any, stays in use.
fn refresh_token(value: &Json) -> Option<RefreshToken> {
    let token = value.as_text().and_then(RefreshToken::parse);
    if token.is_none() {
        tracing::warn!(
            "token response has an unusable refresh_token: not a string, not printable, or too long; ignored"
        );
    }
    token
}

/// Granted scopes from a string or a list; `None` if absent. Invalid scopes (RFC 6749 §3.3) are left out.
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
