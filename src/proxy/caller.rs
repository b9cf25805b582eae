//! Identifies the caller, its subject and the connection that it names. Pure.
//!
//! Invariants: a credential takes precedence; the caller's address never excuses a wrong one. All callers are
//! compared in full, so the time taken reveals nothing about a secret.

use base64::prelude::{BASE64_STANDARD, Engine};
use http::{HeaderMap, HeaderValue, header};

use super::arrival::Arrival;
use super::error::ProxyError;
use crate::model::secret::{Secret, SecretDigest};
use crate::model::token::{AccessToken, Subject};
use crate::model::{Caller, Name};
use crate::router::{CallerId, Named};
use crate::snapshot::CallerTable;

/// No configured caller matches.
#[derive(Debug, PartialEq, Eq)]
pub struct UnknownCaller;

/// Identifies the caller by the credential in `field`, or without one by its connection. `Ok(None)`: no callers are
/// configured, so every peer that reaches the listener may use it.
pub fn identify(
    callers: &CallerTable,
    arrival: &Arrival,
    headers: &HeaderMap,
    field: &str,
) -> Result<Option<CallerId>, UnknownCaller> {
    let mut credentials = headers.get_all(field).iter();
    let credential = credentials.next();
    if credentials.next().is_some() {
        return Err(UnknownCaller);
    }
    let Some(credential) = credential else {
        if callers.is_empty() {
            return Ok(None);
        }
        let mut matching = callers.iter().filter(|(_, caller)| caller.secret.is_none() && arrival.matches(caller));
        return matching.next().map(|(id, _)| Some(id)).ok_or(UnknownCaller);
    };
    let (name, secret) = parse_credential(credential).ok_or(UnknownCaller)?;
    let digest = SecretDigest::of(&secret);
    let matches = |caller: &Caller| caller.secret == Some(digest) && arrival.matches(caller);
    let found = match name {
        Some(name) => callers.named(&name).filter(|(_, caller)| matches(caller)),
        None => callers.iter().filter(|(_, caller)| matches(caller)).last(),
    };
    found.map(|(id, _)| Some(id)).ok_or(UnknownCaller)
}

/// The caller that opened a tunnel, by name and secret: a [`CallerId`] is valid only in its own snapshot.
pub struct AuthenticatedCaller {
    name: Name,
    secret: Option<SecretDigest>,
}

impl AuthenticatedCaller {
    pub fn of(caller: &Caller) -> AuthenticatedCaller {
        AuthenticatedCaller { name: caller.name.clone(), secret: caller.secret }
    }
}

/// Looks up the caller that opened a tunnel in the current configuration, for a request inside the tunnel. Fails if its
/// secret has changed or its connection no longer meets its conditions; never returns another caller.
pub fn identify_again(
    callers: &CallerTable,
    arrival: &Arrival,
    proven: Option<&AuthenticatedCaller>,
) -> Result<Option<CallerId>, UnknownCaller> {
    let Some(proven) = proven else {
        return if callers.is_empty() { Ok(None) } else { Err(UnknownCaller) };
    };
    let found = callers.named(proven.name.as_str());
    let unchanged = found.filter(|(_, caller)| caller.secret == proven.secret && arrival.matches(caller));
    unchanged.map(|(id, _)| Some(id)).ok_or(UnknownCaller)
}

/// The caller's own bearer token, to be exchanged.
pub fn own_token(headers: &HeaderMap) -> Result<Secret, ProxyError> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next().filter(|_| values.next().is_none()).and_then(|value| value.to_str().ok());
    let token = value.and_then(|text| {
        let (scheme, token) = text.split_once(' ')?;
        let token = AccessToken::parse(token.trim()).filter(|_| scheme.eq_ignore_ascii_case("bearer"))?;
        Some(Secret::new(token.expose()))
    });
    token.ok_or(ProxyError::SubjectRequired(
        "send the token to exchange as Authorization: Bearer TOKEN, once; it must be visible ASCII, at most 64 KiB",
    ))
}

/// The subject that the request acts for: `Keybearer-Subject` if the caller may act for it, by default the caller
/// itself.
pub fn subject(callers: &CallerTable, caller: Option<CallerId>, headers: &HeaderMap) -> Result<Subject, ProxyError> {
    let mut named = headers.get_all("keybearer-subject").iter();
    let caller = caller.and_then(|id| callers.get(id));
    let subject = match (named.next(), named.next()) {
        (None, _) => {
            let default = caller.map(|caller| Subject::of_caller(&caller.name));
            default.ok_or(ProxyError::SubjectRequired(
                "the connection has one token per subject; send Keybearer-Subject",
            ))?
        }
        (Some(value), None) => value
            .to_str()
            .ok()
            .and_then(Subject::parse)
            .ok_or(ProxyError::SubjectRequired("Keybearer-Subject must be 1 to 128 letters, digits or `._@:+-`"))?,
        (Some(_), Some(_)) => return Err(ProxyError::SubjectRequired("send Keybearer-Subject once")),
    };
    match caller {
        Some(caller) if !caller.may_act_for(&subject) => Err(ProxyError::SubjectNotAllowed),
        _ => Ok(subject),
    }
}

/// The connection, and optionally the profile, that `Keybearer-Connection` names.
pub fn named_connection(headers: &HeaderMap) -> Result<Option<Named<'_>>, ProxyError> {
    let mut values = headers.get_all("keybearer-connection").iter();
    let Some(value) = values.next() else { return Ok(None) };
    let text = value.to_str().ok().filter(|_| values.next().is_none());
    let named = text.and_then(|text| {
        let (connection, profile) = match text.split_once('/') {
            None => (text, None),
            Some((connection, profile)) => (connection, Some(profile)),
        };
        let are_names = Name::is_name(connection) && profile.is_none_or(Name::is_name);
        are_names.then_some(Named { connection, profile })
    });
    let detail = "Keybearer-Connection must be the name of a connection, or `connection/profile`; send it once";
    named.map(Some).ok_or(ProxyError::BadRequestTarget(detail))
}

/// Parses a `Basic` or `Bearer` credential into name (`Basic` only) and secret.
fn parse_credential(credential: &HeaderValue) -> Option<(Option<String>, Vec<u8>)> {
    let (scheme, value) = credential.to_str().ok()?.trim().split_once(' ')?;
    let value = value.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some((None, value.as_bytes().to_vec()));
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let pair = BASE64_STANDARD.decode(value).ok()?;
    let colon = pair.iter().position(|b| *b == b':')?;
    let name = String::from_utf8(pair[..colon].to_vec()).ok()?;
    Some((Some(name), pair[colon + 1..].to_vec()))
}

#[cfg(test)]
mod tests;
