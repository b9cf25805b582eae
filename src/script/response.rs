//! The authorization server's answer, as a script sees it and gives it back.
//!
//! Not here: what an answer means (`oauth`).
//! Holds: what comes back is a status and a text of at most [`STRING_BYTES_MAX`] bytes.

use std::fmt;

use rhai::{Dynamic, Map};
use serde_json::Value;

use super::failure::Failure;
use super::request::{fields_to_map, lower_case};
use super::sandbox::STRING_BYTES_MAX;
use super::value::{entry, from_json, kind, map_to_json, text, to_json};

/// The most bytes of an answer's text that a script is given.
pub const TEXT_BYTES_MAX: usize = 64 * 1024;

/// What the authorization server sent.
#[derive(Clone)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub text: String,
}

/// What stands in its place.
#[derive(Clone, PartialEq, Eq)]
pub struct Answered {
    pub status: u16,
    pub body: String,
}

/// The text may hold tokens.
impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Response").field("status", &self.status).finish_non_exhaustive()
    }
}

/// The body may hold tokens.
impl fmt::Debug for Answered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answered").field("status", &self.status).finish_non_exhaustive()
    }
}

impl Response {
    pub(super) fn to_map(&self) -> Result<Map, Failure> {
        if self.text.len() > TEXT_BYTES_MAX {
            return Err(Failure::error(format!("the answer is longer than {TEXT_BYTES_MAX} bytes")));
        }
        let json = serde_json::from_str::<Value>(&self.text).map_or(Dynamic::UNIT, |value| from_json(&value));
        Ok(Map::from_iter([
            entry("status", i64::from(self.status).into()),
            entry("headers", fields_to_map(&lower_case(&self.headers)).into()),
            entry("text", text(&self.text)),
            entry("json", json),
        ]))
    }
}

/// What the script returned for `given`: that map, changed, or the fields of a token answer.
pub(super) fn read(given: &Map, returned: Map) -> Result<Answered, Failure> {
    if !returned.contains_key("status") && returned.contains_key("access_token") {
        let fields = map_to_json(&returned).map_err(|kind| Failure::error(format!("it returned {kind} in a field")))?;
        return answered(200, fields.to_string());
    }
    if let Some(unknown) = returned.keys().find(|key| !given.contains_key(key.as_str())) {
        return Err(Failure::error(format!("the returned answer has an unknown key `{unknown}`")));
    }
    let status = returned.get("status").and_then(|status| status.as_int().ok()).and_then(|it| u16::try_from(it).ok());
    let status = status.filter(|status| (100..=599).contains(status));
    let status = status.ok_or_else(|| Failure::error("the returned answer has no `status` from 100 to 599"))?;
    if let Some(json) = returned.get("json").filter(|json| !json.is_unit()) {
        let json = json_of(json)?;
        let unchanged = given.get("json").filter(|before| !before.is_unit()).map(json_of).transpose()?;
        if unchanged.as_ref() != Some(&json) {
            return answered(status, json.to_string());
        }
    }
    let text = returned.get("text").ok_or_else(|| Failure::error("the returned answer has no `text`"))?;
    match text.as_immutable_string_ref() {
        Ok(text) => answered(status, text.to_string()),
        Err(_) => Err(Failure::error(format!("the returned `text` is {}, not a string", kind(text)))),
    }
}

fn json_of(value: &Dynamic) -> Result<Value, Failure> {
    to_json(value).map_err(|kind| Failure::error(format!("the returned `json` holds {kind}")))
}

fn answered(status: u16, body: String) -> Result<Answered, Failure> {
    if body.len() > STRING_BYTES_MAX {
        return Err(Failure::error(format!("the returned answer is longer than {STRING_BYTES_MAX} bytes")));
    }
    Ok(Answered { status, body })
}
