//! Collects the parts of a response that a script's error text must not repeat: every text that may be a token. Pure.
//!
//! Invariant: members that describe an error stay readable, apart from tokens inside them.
//! Not here: the parts of the request (`call`).

use super::json::Json;
use super::redact::Redactor;
use super::transport::TokenResponse;
use crate::model::connection::TokenResponseFormat;
use crate::model::secret::Secret;
use crate::script;

/// A word of at least this length with letters and digits may be a token, whatever the member's name.
const TOKEN_BYTES_MIN: usize = 16;
/// A shorter value is not a token, unless the member's name says so.
const VALUE_BYTES_MIN: usize = 8;
/// Member names that contain one of these hold secrets; compared in lower case, without punctuation.
const SECRET_NAME_PARTS: [&str; 13] = [
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
/// Names of members that are meant for people.
const READABLE_NAMES: [&str; 22] = [
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

/// The redactor for the response that the script received.
pub fn redactor(response: &TokenResponse, format: &TokenResponseFormat) -> Redactor {
    let mut collected = Collected::default();
    for (name, value) in &response.headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        if is_secret(&normalized(name.as_str())) {
            collected.secrets.push(Secret::new(&*value));
        }
        collected.add_tokens(&value);
    }
    let text = String::from_utf8_lossy(&response.body);
    let text = &text[..text.floor_char_boundary(script::TEXT_BYTES_MAX)];
    match serde_json::from_slice::<Json>(&response.body) {
        Ok(json) => {
            if let Json::Object(members) = &json {
                let tokens = [&format.access_token, &format.refresh_token].map(|at| Json::at(members, at));
                collected.secrets.extend(tokens.into_iter().flatten().filter_map(Json::as_text).map(Secret::new));
            }
            collected.add_member("", &json);
        }
        Err(_) => {
            collected.add_tokens(text);
            for (name, value) in url::form_urlencoded::parse(response.body.trim_ascii()) {
                collected.add_text(&normalized(&name), &value);
            }
        }
    }
    Redactor::from_parts(collected.secrets, collected.values)
}

#[derive(Default)]
struct Collected {
    /// A text with any part of one is dropped.
    secrets: Vec<Secret>,
    /// Masked where they occur in full.
    values: Vec<String>,
}

impl Collected {
    fn add_member(&mut self, name: &str, value: &Json) {
        match value {
            Json::Text(text) => self.add_text(name, text),
            Json::List(items) => items.iter().for_each(|item| self.add_member(name, item)),
            Json::Object(members) => members.iter().for_each(|(name, value)| self.add_member(&normalized(name), value)),
            Json::Null | Json::Bool(_) | Json::Number(_) => {}
        }
    }

    fn add_text(&mut self, name: &str, text: &str) {
        self.add_tokens(text);
        if is_secret(name) {
            self.secrets.push(Secret::new(text));
        } else if !READABLE_NAMES.contains(&name) && text.len() >= VALUE_BYTES_MIN {
            self.values.push(text.to_owned());
        }
    }

    fn add_tokens(&mut self, text: &str) {
        let is_separator = |c: char| !(c.is_ascii_alphanumeric() || "-._~+/=!$%^*".contains(c));
        let is_token = |word: &&str| {
            let has = |of: fn(&u8) -> bool| word.bytes().any(|byte| of(&byte));
            word.len() >= TOKEN_BYTES_MIN && has(u8::is_ascii_alphabetic) && has(u8::is_ascii_digit)
        };
        self.secrets.extend(text.split(is_separator).filter(is_token).map(Secret::new));
    }
}

fn is_secret(name: &str) -> bool {
    !READABLE_NAMES.contains(&name) && SECRET_NAME_PARTS.iter().any(|part| name.contains(part))
}

/// Lower case without punctuation: `errorMessage` and `error_message` are one name.
fn normalized(name: &str) -> String {
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
        let response = TokenResponse { status: StatusCode::OK, headers, body, received: SystemTime::UNIX_EPOCH };
        assert_eq!(
            redactor(&response, &TokenResponseFormat::default()).redact(thrown).as_deref(),
            expected,
            "{thrown}"
        );
    }

    #[test]
    fn tokens_of_the_response_are_redacted_and_errors_are_not() {
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
