//! What a response holds that a script must not repeat in a message: whatever text a token may be.
//!
//! Not here: what was sent (`call`). Holds: members that tell of an error stay readable, but for tokens inside them. Pure.

use super::json::Json;
use super::posted::Posted;
use super::transport::TokenResponse;
use crate::model::connection::TokenResponseFormat;
use crate::model::secret::Secret;
use crate::script;

/// A part of a text that is so long and has letters and digits may be a token, whatever the member's name.
const TOKEN_BYTES_MIN: usize = 16;
/// A whole value that is shorter is no token, unless its member's name says so.
const VALUE_BYTES_MIN: usize = 8;
/// Parts of names of members that hold secrets; compared in lower case, without punctuation.
const SECRET: [&str; 13] = [
    "token",
    "secret",
    "password",
    "assertion",
    "jwt",
    "credential",
    "session",
    "cookie",
    "ticket",
    "apikey",
    "privatekey",
    "accesskey",
    "usercode",
];
/// Names of members that people read.
const READABLE: [&str; 22] = [
    "error",
    "errors",
    "errorcode",
    "errordescription",
    "errormessage",
    "erroruri",
    "message",
    "msg",
    "description",
    "detail",
    "details",
    "reason",
    "title",
    "status",
    "statuscode",
    "code",
    "fault",
    "faultcode",
    "faultstring",
    "scope",
    "tokentype",
    "issuedtokentype",
];

/// What the script was given of `answer`.
pub fn in_response(answer: &TokenResponse, shape: &TokenResponseFormat) -> Posted {
    let mut seen = Seen::default();
    for (name, value) in &answer.headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        if is_secret(&plain(name.as_str())) {
            seen.secrets.push(Secret::new(&*value));
        }
        seen.tokens_in(&value);
    }
    let text = String::from_utf8_lossy(&answer.body);
    let text = &text[..text.floor_char_boundary(script::TEXT_BYTES_MAX)];
    match serde_json::from_slice::<Json>(&answer.body) {
        Ok(json) => {
            if let Json::Object(members) = &json {
                let tokens = [&shape.access_token, &shape.refresh_token].map(|at| Json::at(members, at));
                seen.secrets.extend(tokens.into_iter().flatten().filter_map(Json::as_text).map(Secret::new));
            }
            seen.member("", &json);
        }
        Err(_) => {
            seen.tokens_in(text);
            for (name, value) in url::form_urlencoded::parse(answer.body.trim_ascii()) {
                seen.text(&plain(&name), &value);
            }
        }
    }
    Posted::of(seen.secrets, seen.values)
}

#[derive(Default)]
struct Seen {
    /// No part of them is repeated.
    secrets: Vec<Secret>,
    /// As a whole they are masked.
    values: Vec<String>,
}

impl Seen {
    fn member(&mut self, name: &str, value: &Json) {
        match value {
            Json::Text(text) => self.text(name, text),
            Json::List(items) => items.iter().for_each(|item| self.member(name, item)),
            Json::Object(members) => members.iter().for_each(|(name, value)| self.member(&plain(name), value)),
            Json::Null | Json::Bool(_) | Json::Number(_) => {}
        }
    }

    fn text(&mut self, name: &str, text: &str) {
        self.tokens_in(text);
        if is_secret(name) {
            self.secrets.push(Secret::new(text));
        } else if !READABLE.contains(&name) && text.len() >= VALUE_BYTES_MIN {
            self.values.push(text.to_owned());
        }
    }

    fn tokens_in(&mut self, text: &str) {
        let outside = |c: char| !(c.is_ascii_alphanumeric() || "-._~+/=!$%^*".contains(c));
        let is_token = |word: &&str| {
            let has = |of: fn(&u8) -> bool| word.bytes().any(|byte| of(&byte));
            word.len() >= TOKEN_BYTES_MIN && has(u8::is_ascii_alphabetic) && has(u8::is_ascii_digit)
        };
        self.secrets.extend(text.split(outside).filter(is_token).map(Secret::new));
    }
}

fn is_secret(name: &str) -> bool {
    !READABLE.contains(&name) && SECRET.iter().any(|part| name.contains(part))
}

/// `errorMessage` and `error_message` are one name.
fn plain(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use http::{HeaderMap, HeaderValue, StatusCode};
    use zeroize::Zeroizing;

    use super::*;

    #[track_caller]
    fn check(body: &str, thrown: &str, expected: Option<&str>) {
        let mut headers = HeaderMap::new();
        headers.insert("content-type", HeaderValue::from_static("application/json"));
        headers.insert("x-auth-token", HeaderValue::from_static("h3ader"));
        let body = Zeroizing::new(body.as_bytes().to_vec());
        let answer = TokenResponse { status: StatusCode::OK, headers, body, received: SystemTime::UNIX_EPOCH };
        assert_eq!(
            in_response(&answer, &TokenResponseFormat::default()).clean(thrown).as_deref(),
            expected,
            "{thrown}"
        );
    }

    #[test]
    fn tokens_of_the_response_are_not_repeated_and_errors_are() {
        let body = r#"{"access_token":"short","data":{"idToken":"eyJhbGciOi.x","items":["0123456789abcdefXYZ"]},
            "blob":"plain words here","error_description":"no tenant 7; see 0a1b2c3d4e5f6a7b8c9d","code":"E-17"}"#;
        check(body, "got short", None);
        check(body, "half of it: eyJhbGciOi", None);
        check(body, "0123456789ABCDEF", None);
        check(body, "h3ader", None);
        check(body, "it says plain words here", Some("it says ***"));
        check(body, "it says plain words", Some("it says plain words"));
        check(body, "E-17: no tenant 7", Some("E-17: no tenant 7"));
        check(body, "no tenant 7; see 0a1b2c3d4e5f6a7b8c9d", None);
        check(body, "application/json", Some("application/json"));
        check("access_token=form-t&token_type=bearer&error=none", "bearer none", Some("bearer none"));
        check("access_token=form-t&token_type=bearer", "is form-t", None);
        check("<r><t>a1b2c3d4e5f6a7b8</t><m>no such account</m></r>", "no such account", Some("no such account"));
        check("<r><t>a1b2c3d4e5f6a7b8</t></r>", "a1b2c3d4e5", None);
        check(r#"["x",{"refresh_token":"r3fresh"}]"#, "r3fresh", None);
    }
}
