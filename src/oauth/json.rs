//! Strict JSON: duplicate member names are an error at every level, and nesting is limited to 128 levels.
//!
//! Invariants: strings are wiped on drop; an error has a kind and no part of the input.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use url::form_urlencoded;
use zeroize::Zeroizing;

use super::failure::Reason;
use crate::model::connection::Pointer;

/// No `Debug`: it may hold tokens.
pub enum Json {
    Null,
    Bool(bool),
    Number(f64),
    Text(Zeroizing<String>),
    List(Vec<Json>),
    Object(Members),
}

pub type Members = BTreeMap<String, Json>;

impl Json {
    /// Parses one JSON object in UTF-8; a leading byte order mark is ignored.
    pub fn object(bytes: &[u8]) -> Result<Members, Reason> {
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        match serde_json::from_slice(bytes) {
            Ok(Json::Object(members)) => Ok(members),
            Ok(_) => Err(Reason::NotJson),
            // The visitor accepts any value, so the only data error is its own: a duplicate member.
            Err(error) if error.is_data() => Err(Reason::DuplicateMember),
            Err(_) => Err(Reason::NotJson),
        }
    }

    /// Parses an encoded form as an object of strings.
    pub fn form(bytes: &[u8]) -> Result<Members, Reason> {
        let mut members = Members::new();
        for (name, value) in form_urlencoded::parse(bytes.trim_ascii()) {
            let value = Json::Text(Zeroizing::new(value.into_owned()));
            if members.insert(name.into_owned(), value).is_some() {
                return Err(Reason::DuplicateMember);
            }
        }
        Ok(members)
    }

    /// The value at a pointer; null and an empty string count as absent.
    pub fn at<'a>(members: &'a Members, pointer: &Pointer) -> Option<&'a Json> {
        Json::stated(members, pointer).filter(|value| value.as_text() != Some(""))
    }

    /// The value at a pointer; only null counts as absent.
    pub fn stated<'a>(members: &'a Members, pointer: &Pointer) -> Option<&'a Json> {
        let (first, rest) = pointer.parts().split_first()?;
        let found = rest.iter().try_fold(members.get(first)?, |value, part| match value {
            Json::Object(members) => members.get(part),
            Json::List(items) => items.get(part.parse::<usize>().ok()?),
            _ => None,
        });
        found.filter(|value| !matches!(value, Json::Null))
    }

    /// True if this value is a scalar whose text form equals `text`.
    pub fn is(&self, text: &str) -> bool {
        match self {
            Json::Null => text == "null",
            Json::Bool(value) => text == if *value { "true" } else { "false" },
            Json::Number(number) => text.parse::<f64>() == Ok(*number),
            Json::Text(value) => value.as_str() == text,
            Json::List(_) | Json::Object(_) => false,
        }
    }

    pub fn as_text(&self) -> Option<&str> {
        match self {
            Json::Text(text) => Some(text),
            _ => None,
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(Strict)
    }
}

struct Strict;

impl<'de> Visitor<'de> for Strict {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Number(value as f64))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Number(value as f64))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Json::Number(value))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::Text(Zeroizing::new(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Json, A::Error> {
        let mut members = Members::new();
        while let Some((name, value)) = entries.next_entry()? {
            if members.insert(name, value).is_some() {
                return Err(de::Error::custom("duplicate member"));
            }
        }
        Ok(Json::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: impl AsRef<[u8]>, expected: Result<usize, Reason>) {
        assert_eq!(Json::object(text.as_ref()).map(|members| members.len()), expected);
    }

    #[test]
    fn an_object_is_parsed_strictly() {
        check("{}", Ok(0));
        check(r#"{"a":1,"b":[null,true,-1,1.5,99999999999999999999,"x",{"a":{"a":0}}]}"#, Ok(2));
        check(b"\xef\xbb\xbf {\"a\":1} \r\n", Ok(1));
        check(r#"{"a":1,"a":1}"#, Err(Reason::DuplicateMember));
        check(r#"{"a":1,"\u0061":1}"#, Err(Reason::DuplicateMember));
        check(r#"{"x":[{"y":{"a":1,"b":2,"a":3}}]}"#, Err(Reason::DuplicateMember));
        for broken in
            ["", " ", "null", "[]", "\"x\"", "1", "{", "{}{}", "{} x", "<html>", "{a:1}", "{'a':1}", "a=1&b=2"]
        {
            check(broken, Err(Reason::NotJson));
        }
        check(b"{\"a\":\"\xff\"}", Err(Reason::NotJson));
        check("{\"a\":1}".encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>(), Err(Reason::NotJson));
        check(format!("{{\"a\":{}", "[".repeat(100_000)), Err(Reason::NotJson));
        check(format!("{}1{}", "{\"a\":".repeat(100_000), "}".repeat(100_000)), Err(Reason::NotJson));
    }
}
