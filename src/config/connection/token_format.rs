//! `token_request`, `token_response` and `token_rejected`: encodings, JSON pointers and failure signs.

use http::{HeaderName, HeaderValue, StatusCode};

use super::file::{FailureFile, RefreshRefusedFile, TokenRejectedFile, TokenRequestFile, TokenResponseFile};
use crate::config::reading::{Fault, Field, NodeRef, Section, Sink, reference, secret, shape, value};
use crate::model::connection::*;

/// Headers that frame a message; a configured value would break it.
const FRAMING: [&str; 8] =
    ["host", "content-length", "transfer-encoding", "connection", "te", "trailer", "upgrade", "keep-alive"];

pub fn token_request(node: &NodeRef<'_>, sink: &mut Sink) -> Option<TokenRequestFormat> {
    let section = node.section::<TokenRequestFile>(sink)?;
    let encoding = section.get(section.keys.encoding).map_or(Some(RequestEncoding::Form), |node| node.choice(sink));
    let headers = section.get(section.keys.headers).map(|node| headers(&node, sink)).unwrap_or_default();
    Some(TokenRequestFormat { encoding: encoding?, headers })
}

fn headers(node: &NodeRef<'_>, sink: &mut Sink) -> Vec<(HeaderName, crate::model::secret::Secret)> {
    let mut headers = Vec::new();
    for (key, key_node, value) in node.pairs(sink) {
        let Ok(name) = HeaderName::from_bytes(key.as_bytes()) else {
            key_node.problem(sink, "is not a header name", "write a name such as X-Api-Version");
            continue;
        };
        if FRAMING.contains(&name.as_str()) || name.as_str().starts_with("proxy-") {
            key_node.problem(sink, format!("`{name}` is set by the HTTP client"), "remove it");
            continue;
        }
        let value = match value {
            Some(value) if value.is_map() => secret::secret(&value, sink),
            Some(value) => reference::text(&value, sink).map(|text| crate::model::secret::Secret::new(text.value)),
            None => None,
        };
        let Some(value) = value else { continue };
        if headers.iter().any(|(before, _)| *before == name) {
            key_node.problem(sink, format!("`{name}` is set twice"), "remove one of the two");
            continue;
        }
        if HeaderValue::try_from(value.expose()).is_err() {
            key_node.problem(
                sink,
                "the value contains a line break or another control character",
                "write it on one line",
            );
            continue;
        }
        headers.push((name, value));
    }
    headers
}

pub fn token_response(node: &NodeRef<'_>, sink: &mut Sink) -> Option<TokenResponseFormat> {
    let section = node.section::<TokenResponseFile>(sink)?;
    let keys = &section.keys;
    let defaults = TokenResponseFormat::default();
    let mut at = |field: Field<shape::Text>, default: Pointer| match section.get(field) {
        None => Some(default),
        Some(node) => node.parse(sink, pointer),
    };
    let access_token = at(keys.access_token, defaults.access_token);
    let refresh_token = at(keys.refresh_token, defaults.refresh_token);
    let scope = at(keys.scope, defaults.scope);
    let expires_in = at(keys.expires_in, defaults.expires_in);
    let refresh_token_expires_in = at(keys.refresh_token_expires_in, defaults.refresh_token_expires_in);
    let error = at(keys.error, defaults.error);
    let error_description = at(keys.error_description, defaults.error_description);
    let token_type = match section.get(keys.token_type) {
        None => Some(defaults.token_type),
        Some(node) if node.written() == Some("any") => Some(None),
        Some(node) => node.parse(sink, pointer).map(Some),
    };
    let expires_at = section.get(keys.expires_at).map(|node| node.parse(sink, pointer));
    let unit_of_time = section.get(keys.expires_in_unit).map_or(Some(TimeUnit::Seconds), |node| node.choice(sink));
    let encoding = section.get(keys.encoding).map_or(Some(ResponseEncoding::Json), |node| node.choice(sink));
    let failure = section.get(keys.failure).map(|node| failure(&node, sink));
    let refresh_refused =
        section.get(keys.refresh_refused).map(|node| refresh_refused(&node, sink)).unwrap_or_default();
    Some(TokenResponseFormat {
        encoding: encoding?,
        access_token: access_token?,
        refresh_token: refresh_token?,
        token_type: token_type?,
        scope: scope?,
        expires_in: expires_in?,
        expires_in_unit: unit_of_time?,
        expires_at: expires_at.flatten(),
        refresh_token_expires_in: refresh_token_expires_in?,
        error: error?,
        error_description: error_description?,
        failure: failure.flatten(),
        refresh_refused,
    })
}

fn refresh_refused(node: &NodeRef<'_>, sink: &mut Sink) -> Vec<RefusalSign> {
    let mut signs = Vec::new();
    for item in node.items(sink).unwrap_or_default() {
        let Some(section) = item.section::<RefreshRefusedFile>(sink) else { continue };
        signs.extend(refusal_sign(&section, sink).filter(|sign| !signs.contains(sign)));
    }
    signs
}

fn refusal_sign(section: &Section<'_, RefreshRefusedFile>, sink: &mut Sink) -> Option<RefusalSign> {
    let (status, error) = (section.get(section.keys.status), section.get(section.keys.error));
    let text = section.get(section.keys.description_contains);
    if status.is_none() && error.is_none() && text.is_none() {
        section.node.problem(sink, "matches every response", "write `status`, `error` or `description_contains`");
        return None;
    }
    // Without another condition, only an error status can be a refusal.
    let status_min = if error.is_some() || text.is_some() { 200 } else { 400 };
    Some(RefusalSign {
        status: status.and_then(|at| at.parse(sink, |text| status_code(text, status_min))),
        error: error.and_then(|at| at.line(sink)),
        description_contains: text.and_then(|at| at.line(sink)),
    })
}

fn status_code(text: &str, status_min: usize) -> Result<StatusCode, Fault> {
    let status = value::integer(text, status_min..=599)?;
    let status = u16::try_from(status).ok().and_then(|status| StatusCode::from_u16(status).ok());
    status.ok_or_else(|| Fault::new("is not a status code", "write one such as 403"))
}

fn failure(node: &NodeRef<'_>, sink: &mut Sink) -> Option<MemberIs> {
    let section = node.section::<FailureFile>(sink)?;
    let hint = "write its JSON pointer, such as /ok";
    let pointer =
        section.require(section.keys.pointer, "pointer", hint, sink).and_then(|at| at.parse(sink, self::pointer));
    let hint = "write the value that means failure, such as false";
    let equals = section.require(section.keys.equals, "equals", hint, sink).and_then(|at| at.line(sink));
    Some(MemberIs { pointer: pointer?, equals: equals? })
}

fn pointer(text: &str) -> Result<Pointer, Fault> {
    Pointer::parse(text).ok_or_else(|| Fault::new("is not a JSON pointer", "start it with `/`, such as /data/token"))
}

pub fn token_rejected(node: &NodeRef<'_>, sink: &mut Sink) -> Vec<RejectionSign> {
    let mut signs = Vec::new();
    for item in node.items(sink).unwrap_or_default() {
        let Some(section) = item.section::<TokenRejectedFile>(sink) else { continue };
        signs.extend(rejection_sign(&section, sink).filter(|sign| !signs.contains(sign)));
    }
    signs
}

fn rejection_sign(section: &Section<'_, TokenRejectedFile>, sink: &mut Sink) -> Option<RejectionSign> {
    let keys = &section.keys;
    let mut pair = |one: (Field<shape::Text>, &str), other: (Field<shape::Text>, &str), hint: &str| match (
        section.get(one.0),
        section.get(other.0),
    ) {
        (None, None) => None,
        (Some(a), Some(b)) => Some((a, b)),
        (Some(a), None) | (None, Some(a)) => {
            a.problem(sink, format!("`{}` and `{}` must be set together", one.1, other.1), hint);
            None
        }
    };
    let header = pair(
        (keys.header, "header"),
        (keys.contains, "contains"),
        "write the header's name and a text that it contains",
    );
    let body =
        pair((keys.pointer, "pointer"), (keys.equals, "equals"), "write the JSON pointer of a member, and its value");
    // Without another condition, only an error status can mean a rejected token.
    let has_other_sign =
        [keys.header, keys.contains, keys.pointer, keys.equals].into_iter().any(|field| section.get(field).is_some());
    let status_min = if has_other_sign { 200 } else { 400 };
    let at = section.require(keys.status, "status", "write a status such as 401", sink);
    let status = at.and_then(|at| at.parse(sink, |text| status_code(text, status_min)));
    let header = match header {
        None => None,
        Some((name, text)) => {
            let name = name.parse(sink, |text| {
                HeaderName::from_bytes(text.as_bytes())
                    .map_err(|_| Fault::new("is not a header name", "write a name such as WWW-Authenticate"))
            });
            Some((name?, text.line(sink)?))
        }
    };
    let body = match body {
        None => None,
        Some((pointer_at, text)) => {
            Some(MemberIs { pointer: pointer_at.parse(sink, pointer)?, equals: text.line(sink)? })
        }
    };
    Some(RejectionSign { status: status?, header, body })
}
