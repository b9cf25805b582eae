//! A request to the authorization server, as passed to a script and as returned by it.
//!
//! Not here: the call (`sandbox`).
//! Invariants: a script cannot change the URL, set an invalid header, or set a header that frames or routes the
//! message.

use std::fmt;

use http::{HeaderName, HeaderValue};
use rhai::{Array, Dynamic, Map};

use super::failure::Failure;
use super::value::{entry, kind, text};

/// Framing and routing headers, which a script must not set; neither may it set `Proxy-*`.
const RESERVED_HEADERS: [&str; 7] =
    ["host", "content-length", "transfer-encoding", "connection", "te", "trailer", "upgrade"];

/// Scripts see header names in lower case, and a repeated name as an array of values.
#[derive(Clone, PartialEq, Eq)]
pub struct Request {
    /// Read-only.
    pub url: String,
    pub headers: Vec<(String, String)>,
    pub form: Vec<(String, String)>,
}

/// Values may be secrets.
impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").finish_non_exhaustive()
    }
}

impl Request {
    pub(super) fn to_map(&self) -> Map {
        Map::from_iter([
            entry("url", text(&self.url)),
            entry("headers", fields_to_map(&lower_case(&self.headers)).into()),
            entry("form", fields_to_map(&self.form).into()),
        ])
    }

    /// Applies the map that the script `returned`.
    pub(super) fn changed(self, mut returned: Map) -> Result<Request, Failure> {
        let url = returned.remove("url");
        if url.is_some_and(|url| url.as_immutable_string_ref().map_or(true, |url| url.as_str() != self.url)) {
            return Err(Failure::error("the returned `url` differs; the destination cannot be changed"));
        }
        let headers = merge_case(take_map(&mut returned, "headers")?);
        let form = take_map(&mut returned, "form")?;
        if let Some(unknown) = returned.keys().next() {
            return Err(Failure::error(format!("the returned request has an unknown key `{unknown}`")));
        }
        let given = lower_case(&self.headers);
        let headers = merge("headers", &given, headers)?;
        for (name, value) in &headers {
            check_header(name, value, given.contains(&(name.clone(), value.clone())))?;
        }
        Ok(Request { url: self.url, headers, form: merge("form", &self.form, form)? })
    }
}

fn check_header(name: &str, value: &str, unchanged: bool) -> Result<(), Failure> {
    if HeaderName::from_bytes(name.as_bytes()).is_err() {
        return Err(Failure::error(format!("`headers.{name}` is not a valid HTTP header name")));
    }
    if HeaderValue::from_str(value).is_err() {
        return Err(Failure::error(format!("the value of `headers.{name}` is not a valid HTTP header value")));
    }
    if !unchanged && (RESERVED_HEADERS.contains(&name) || name.starts_with("proxy-")) {
        return Err(Failure::error(format!("`headers.{name}` cannot be set by a script")));
    }
    Ok(())
}

/// Merges header names by case: one that the script wrote with capitals overrides its lower-case form.
fn merge_case(headers: Map) -> Map {
    let is_lower = |name: &str| !name.bytes().any(|byte| byte.is_ascii_uppercase());
    let (lower, mixed_case): (Vec<_>, Vec<_>) = headers.into_iter().partition(|(name, _)| is_lower(name));
    let mixed_case = mixed_case.into_iter().map(|(name, value)| (name.to_ascii_lowercase().into(), value));
    lower.into_iter().chain(mixed_case).collect()
}

/// The fields of `returned`: those also in `given` in their original order, then the new ones.
fn merge(part: &str, given: &[(String, String)], returned: Map) -> Result<Vec<(String, String)>, Failure> {
    let mut left = Vec::with_capacity(returned.len());
    for (name, value) in returned {
        let values = values(&value).map_err(|kind| {
            let allowed = "a string, an integer, a bool, an array of these, or () to remove it";
            Failure::error(format!("`{part}.{name}` is {kind}; it may be {allowed}"))
        })?;
        left.push((name.to_string(), std::collections::VecDeque::from(values)));
    }
    let mut fields = Vec::new();
    for (name, _) in given {
        let values = left.iter_mut().find(|(candidate, _)| candidate == name).map(|(_, values)| values);
        if let Some(value) = values.and_then(std::collections::VecDeque::pop_front) {
            fields.push((name.clone(), value));
        }
    }
    for (name, values) in left {
        fields.extend(values.into_iter().map(|value| (name.clone(), value)));
    }
    Ok(fields)
}

/// The strings of a returned value, or the name of its unsupported type.
fn values(value: &Dynamic) -> Result<Vec<String>, &'static str> {
    if value.is_unit() {
        return Ok(Vec::new());
    }
    match value.as_array_ref() {
        Ok(items) => items.iter().map(|item| text_of(item).ok_or("an array with another value")).collect(),
        Err(_) => text_of(value).map(|text| vec![text]).ok_or_else(|| kind(value)),
    }
}

fn text_of(value: &Dynamic) -> Option<String> {
    if let Ok(text) = value.as_immutable_string_ref() {
        return Some(text.to_string());
    }
    value.as_int().map(|integer| integer.to_string()).or_else(|_| value.as_bool().map(|bool| bool.to_string())).ok()
}

pub fn fields_to_map(fields: &[(String, String)]) -> Map {
    let mut map = Map::new();
    for (name, value) in fields {
        let value = text(value);
        match map.get_mut(name.as_str()) {
            None => {
                map.insert(name.as_str().into(), value);
            }
            Some(before) => {
                let mut items = before.take().try_cast_result::<Array>().unwrap_or_else(|single| vec![single]);
                items.push(value);
                *before = Dynamic::from_array(items);
            }
        }
    }
    map
}

pub fn lower_case(headers: &[(String, String)]) -> Vec<(String, String)> {
    headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone())).collect()
}

fn take_map(returned: &mut Map, key: &str) -> Result<Map, Failure> {
    let value = returned.remove(key).ok_or_else(|| Failure::error(format!("the returned request has no `{key}`")))?;
    let kind = kind(&value);
    value.try_cast::<Map>().ok_or_else(|| Failure::error(format!("the returned `{key}` is {kind}, not a map")))
}
