//! Conversion between script values and JSON.
//!
//! Invariants: nesting is at most [`DEPTH_MAX`] levels; an integer beyond 64 bits (signed) becomes a float.

use rhai::{Array, Dynamic, Map};
use serde_json::{Number, Value};

/// Maximum nesting of a JSON value; equal to serde_json's limit.
const DEPTH_MAX: usize = 128;

/// Maximum total bytes of the strings in one value.
pub const STRING_BYTES_MAX: usize = 256 * 1024;

/// Name of a value's type, for messages.
pub fn kind(value: &Dynamic) -> &'static str {
    if value.is_unit() {
        "()"
    } else if value.is_map() {
        "a map"
    } else if value.is_array() {
        "an array"
    } else if value.is_blob() {
        "a blob"
    } else if value.is_string() {
        "a string"
    } else if value.is_int() {
        "an integer"
    } else if value.is_float() {
        "a float"
    } else if value.is_bool() {
        "a bool"
    } else if value.is_char() {
        "a character"
    } else {
        "a value of another type"
    }
}

pub fn text(text: &str) -> Dynamic {
    text.into()
}

/// An entry of a [`Map`], whose keys have a type without a public name.
pub fn entry<'a, K: From<&'a str>>(name: &'a str, value: Dynamic) -> (K, Dynamic) {
    (name.into(), value)
}

pub fn from_json(value: &Value) -> Dynamic {
    match value {
        Value::Null => Dynamic::UNIT,
        Value::Bool(bool) => (*bool).into(),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(integer), _) => integer.into(),
            (None, Some(float)) => float.into(),
            (None, None) => Dynamic::UNIT,
        },
        Value::String(string) => text(string),
        Value::Array(items) => Dynamic::from_array(items.iter().map(from_json).collect::<Array>()),
        Value::Object(entries) => map_from_json(entries).into(),
    }
}

fn map_from_json(entries: &serde_json::Map<String, Value>) -> Map {
    entries.iter().map(|(name, value)| entry(name, from_json(value))).collect()
}

/// # Errors
/// The type of a value that JSON cannot represent.
pub fn to_json(value: &Dynamic) -> Result<Value, &'static str> {
    to_json_below(value, DEPTH_MAX)
}

/// # Errors
/// As [`to_json`].
pub fn map_to_json(map: &Map) -> Result<Value, &'static str> {
    map_to_json_below(map, DEPTH_MAX)
}

fn to_json_below(value: &Dynamic, levels: usize) -> Result<Value, &'static str> {
    let Some(below) = levels.checked_sub(1) else { return Err("a value that is nested too deeply") };
    if value.is_unit() {
        Ok(Value::Null)
    } else if let Ok(bool) = value.as_bool() {
        Ok(Value::Bool(bool))
    } else if let Ok(integer) = value.as_int() {
        Ok(integer.into())
    } else if let Ok(float) = value.as_float() {
        Number::from_f64(float).map(Value::Number).ok_or("a float that is not a finite number")
    } else if let Ok(character) = value.as_char() {
        Ok(character.to_string().into())
    } else if let Ok(string) = value.as_immutable_string_ref() {
        Ok(string.as_str().into())
    } else if let Ok(items) = value.as_array_ref() {
        items.iter().map(|item| to_json_below(item, below)).collect::<Result<Vec<_>, _>>().map(Value::Array)
    } else if let Ok(map) = value.as_map_ref() {
        map_to_json_below(&map, below)
    } else {
        Err(kind(value))
    }
}

fn map_to_json_below(map: &Map, levels: usize) -> Result<Value, &'static str> {
    let entries = map.iter().map(|(name, value)| Ok((name.to_string(), to_json_below(value, levels)?)));
    entries.collect::<Result<serde_json::Map<_, _>, _>>().map(Value::Object)
}
