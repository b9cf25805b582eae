//! The authorization server's response, as passed to a script and as returned by it.
//!
//! Not here: the interpretation of a response (`oauth`).
//! Invariant: the result is a status and a body of at most [`STRING_BYTES_MAX`] bytes.

use std::fmt;

use rhai::{Dynamic, Map};
use serde_json::Value;

use super::failure::Failure;
use super::request::{fields_to_map, lower_case};
use super::value::{STRING_BYTES_MAX, entry, from_json, kind, map_to_json, text, to_json};

/// Maximum size of `response.text`; `response.json` is parsed from the whole body.
pub const TEXT_BYTES_MAX: usize = 64 * 1024;

/// A response of the authorization server.
#[derive(Clone)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub text: String,
}

/// The response that the script returned.
#[derive(Clone, PartialEq, Eq)]
pub struct ScriptedResponse {
    pub status: u16,
    pub body: String,
    /// The script returned the token's fields directly: members have the names of RFC 6749 §5.1.
    pub is_short: bool,
}

/// The text may hold tokens.
impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Response").field("status", &self.status).finish_non_exhaustive()
    }
}

/// The body may hold tokens.
impl fmt::Debug for ScriptedResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScriptedResponse").field("status", &self.status).finish_non_exhaustive()
    }
}

impl Response {
    pub(super) fn to_map(&self) -> Map {
        let json = serde_json::from_str::<Value>(&self.text).map_or(Dynamic::UNIT, |value| from_json(&value));
        Map::from_iter([
            entry("status", i64::from(self.status).into()),
            entry("headers", fields_to_map(&lower_case(&self.headers)).into()),
            entry("text", text(self.shown_text())),
            entry("json", json),
        ])
    }

    fn shown_text(&self) -> &str {
        &self.text[..self.text.floor_char_boundary(TEXT_BYTES_MAX)]
    }
}

/// Reads the script's result for `given`, the map of `response`: that map with changes, or the fields of a token
/// response.
pub(super) fn read(response: &Response, given: &Map, returned: Map) -> Result<ScriptedResponse, Failure> {
    if !returned.contains_key("status") && returned.contains_key("access_token") {
        let fields = map_to_json(&returned).map_err(|kind| Failure::error(format!("a returned field holds {kind}")))?;
        return scripted_response(200, fields.to_string(), true);
    }
    if let Some(unknown) = returned.keys().find(|key| !given.contains_key(key.as_str())) {
        return Err(Failure::error(format!("the returned response has an unknown key `{unknown}`")));
    }
    let status = returned.get("status").and_then(|status| status.as_int().ok()).and_then(|it| u16::try_from(it).ok());
    let status = status.filter(|status| (100..=599).contains(status));
    let status = status.ok_or_else(|| Failure::error("the returned response has no `status` from 100 to 599"))?;
    if let Some(json) = returned.get("json").filter(|json| !json.is_unit()) {
        let json = json_of(json)?;
        let unchanged = given.get("json").filter(|before| !before.is_unit()).map(json_of).transpose()?;
        if unchanged.as_ref() != Some(&json) {
            return scripted_response(status, json.to_string(), false);
        }
    }
    let text = returned.get("text").ok_or_else(|| Failure::error("the returned response has no `text`"))?;
    match text.as_immutable_string_ref() {
        // An unchanged text stands for the whole body, however long that is.
        Ok(text) if text.as_str() == response.shown_text() => {
            Ok(ScriptedResponse { status, body: response.text.clone(), is_short: false })
        }
        Ok(text) => scripted_response(status, text.to_string(), false),
        Err(_) => Err(Failure::error(format!("the returned `text` is {}, not a string", kind(text)))),
    }
}

fn json_of(value: &Dynamic) -> Result<Value, Failure> {
    to_json(value).map_err(|kind| Failure::error(format!("the returned `json` holds {kind}")))
}

fn scripted_response(status: u16, body: String, is_short: bool) -> Result<ScriptedResponse, Failure> {
    if body.len() > STRING_BYTES_MAX {
        return Err(Failure::error(format!("the returned response is longer than {STRING_BYTES_MAX} bytes")));
    }
    Ok(ScriptedResponse { status, body, is_short })
}
