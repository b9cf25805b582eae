//! `token_request`, `token_response` and `token_rejected`: encodings, members, and signs of failure.

use http::{HeaderName, HeaderValue, StatusCode};

use super::file::{FailureFile, RefreshRefusedFile, TokenRejectedFile, TokenRequestFile, TokenResponseFile};
use crate::config::reading::{Fault, Field, Sink, Spot, Unit, reference, secret, shape, value};
use crate::model::connection::*;

/// Fields that frame a message; a value of ours would break it.
const FRAMING: [&str; 8] =
    ["host", "content-length", "transfer-encoding", "connection", "te", "trailer", "upgrade", "keep-alive"];

pub fn token_request(spot: &Spot<'_>, sink: &mut Sink) -> Option<TokenRequestFormat> {
    let unit = spot.unit::<TokenRequestFile>(sink)?;
    let encoding = unit.get(unit.keys.encoding).map_or(Some(RequestEncoding::Form), |spot| spot.choice(sink));
    let headers = unit.get(unit.keys.headers).map(|spot| headers(&spot, sink)).unwrap_or_default();
    Some(TokenRequestFormat { encoding: encoding?, headers })
}

fn headers(spot: &Spot<'_>, sink: &mut Sink) -> Vec<(HeaderName, crate::model::secret::Secret)> {
    let mut headers = Vec::new();
    for (key, place, value) in spot.pairs(sink) {
        let Ok(name) = HeaderName::from_bytes(key.as_bytes()) else {
            place.problem(sink, "is not a header name", "write a name such as X-Api-Version");
            continue;
        };
        if FRAMING.contains(&name.as_str()) || name.as_str().starts_with("proxy-") {
            place.problem(sink, format!("`{name}` belongs to the message itself"), "remove it");
            continue;
        }
        let value = match value {
            Some(value) if value.is_map() => secret::secret(&value, sink),
            Some(value) => reference::text(&value, sink).map(|text| crate::model::secret::Secret::new(text.value)),
            None => None,
        };
        let Some(value) = value else { continue };
        if headers.iter().any(|(before, _)| *before == name) {
            place.problem(sink, format!("`{name}` stands here twice"), "remove one of them");
            continue;
        }
        if HeaderValue::try_from(value.expose()).is_err() {
            place.problem(sink, "the value holds a line break or another control character", "write it on one line");
            continue;
        }
        headers.push((name, value));
    }
    headers
}

pub fn token_response(spot: &Spot<'_>, sink: &mut Sink) -> Option<TokenResponseFormat> {
    let unit = spot.unit::<TokenResponseFile>(sink)?;
    let keys = &unit.keys;
    let standard = TokenResponseFormat::default();
    let mut at = |field: Field<shape::Text>, otherwise: Pointer| match unit.get(field) {
        None => Some(otherwise),
        Some(spot) => spot.parse(sink, pointer),
    };
    let access_token = at(keys.access_token, standard.access_token);
    let refresh_token = at(keys.refresh_token, standard.refresh_token);
    let scope = at(keys.scope, standard.scope);
    let expires_in = at(keys.expires_in, standard.expires_in);
    let refresh_token_expires_in = at(keys.refresh_token_expires_in, standard.refresh_token_expires_in);
    let error = at(keys.error, standard.error);
    let error_description = at(keys.error_description, standard.error_description);
    let token_type = match unit.get(keys.token_type) {
        None => Some(standard.token_type),
        Some(spot) if spot.written() == Some("any") => Some(None),
        Some(spot) => spot.parse(sink, pointer).map(Some),
    };
    let expires_at = unit.get(keys.expires_at).map(|spot| spot.parse(sink, pointer));
    let unit_of_time = unit.get(keys.expires_in_unit).map_or(Some(TimeUnit::Seconds), |spot| spot.choice(sink));
    let encoding = unit.get(keys.encoding).map_or(Some(ResponseEncoding::Json), |spot| spot.choice(sink));
    let failure = unit.get(keys.failure).map(|spot| failure(&spot, sink));
    let refresh_refused = unit.get(keys.refresh_refused).map(|spot| refresh_refused(&spot, sink)).unwrap_or_default();
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

fn refresh_refused(spot: &Spot<'_>, sink: &mut Sink) -> Vec<RefusalSign> {
    let mut signs = Vec::new();
    for item in spot.items(sink).unwrap_or_default() {
        let Some(unit) = item.unit::<RefreshRefusedFile>(sink) else { continue };
        signs.extend(refusal_sign(&unit, sink).filter(|sign| !signs.contains(sign)));
    }
    signs
}

fn refusal_sign(unit: &Unit<'_, RefreshRefusedFile>, sink: &mut Sink) -> Option<RefusalSign> {
    let (status, error) = (unit.get(unit.keys.status), unit.get(unit.keys.error));
    let text = unit.get(unit.keys.description_contains);
    if status.is_none() && error.is_none() && text.is_none() {
        unit.spot.problem(sink, "matches every response", "write `status`, `error` or `description_contains`");
        return None;
    }
    // A 2xx response is an error response only if its body shows one.
    let least = if error.is_some() || text.is_some() { 200 } else { 400 };
    Some(RefusalSign {
        status: status.and_then(|at| at.parse(sink, |text| status_code(text, least))),
        error: error.and_then(|at| at.line(sink)),
        description_contains: text.and_then(|at| at.line(sink)),
    })
}

fn status_code(text: &str, least: usize) -> Result<StatusCode, Fault> {
    let status = value::integer(text, least..=599)?;
    let status = u16::try_from(status).ok().and_then(|status| StatusCode::from_u16(status).ok());
    status.ok_or_else(|| Fault::new("is no status", "write one such as 403"))
}

fn failure(spot: &Spot<'_>, sink: &mut Sink) -> Option<MemberIs> {
    let unit = spot.unit::<FailureFile>(sink)?;
    let hint = "write where it is, such as /ok";
    let pointer = unit.require(unit.keys.pointer, "pointer", hint, sink).and_then(|at| at.parse(sink, self::pointer));
    let hint = "write the value that means failure, such as false";
    let equals = unit.require(unit.keys.equals, "equals", hint, sink).and_then(|at| at.line(sink));
    Some(MemberIs { pointer: pointer?, equals: equals? })
}

fn pointer(text: &str) -> Result<Pointer, Fault> {
    Pointer::parse(text).ok_or_else(|| Fault::new("is no JSON pointer", "begin with `/`, such as /data/token"))
}

pub fn token_rejected(spot: &Spot<'_>, sink: &mut Sink) -> Vec<RejectionSign> {
    let mut signs = Vec::new();
    for item in spot.items(sink).unwrap_or_default() {
        let Some(unit) = item.unit::<TokenRejectedFile>(sink) else { continue };
        signs.extend(sign(&unit, sink).filter(|sign| !signs.contains(sign)));
    }
    signs
}

fn sign(unit: &Unit<'_, TokenRejectedFile>, sink: &mut Sink) -> Option<RejectionSign> {
    let keys = &unit.keys;
    let mut pair = |one: (Field<shape::Text>, &str), other: (Field<shape::Text>, &str), hint: &str| match (
        unit.get(one.0),
        unit.get(other.0),
    ) {
        (None, None) => None,
        (Some(a), Some(b)) => Some((a, b)),
        (Some(a), None) | (None, Some(a)) => {
            a.problem(sink, format!("`{}` and `{}` go together", one.1, other.1), hint);
            None
        }
    };
    let header = pair((keys.header, "header"), (keys.contains, "contains"), "write the field's name and a text in it");
    let body = pair((keys.pointer, "pointer"), (keys.equals, "equals"), "write where in the body, and which value");
    // A 2xx status alone is no sign of a rejected token.
    let more =
        [keys.header, keys.contains, keys.pointer, keys.equals].into_iter().any(|field| unit.get(field).is_some());
    let least = if more { 200 } else { 400 };
    let at = unit.require(keys.status, "status", "write a status such as 401", sink);
    let status = at.and_then(|at| at.parse(sink, |text| status_code(text, least)));
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
        Some((place, text)) => Some(MemberIs { pointer: place.parse(sink, pointer)?, equals: text.line(sink)? }),
    };
    Some(RejectionSign { status: status?, header, body })
}
