//! Names of headers and query parameters that may carry a credential.

use http::HeaderName;

use crate::config::reading::Fault;

/// Headers that frame a message or belong to the proxy. A token there would break the message or leak.
pub const RESERVED_HEADERS: [&str; 12] = [
    "host",
    "content-length",
    "connection",
    "transfer-encoding",
    "te",
    "trailer",
    "upgrade",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "proxy-authenticate",
    "via",
];

pub fn header(text: &str) -> Result<HeaderName, Fault> {
    let Ok(name) = HeaderName::from_bytes(text.as_bytes()) else {
        return Err(Fault::new("is not a header name", "write a name such as Authorization or X-Api-Key"));
    };
    // Some servers read `_` as `-`.
    let plain = name.as_str().replace('_', "-");
    if RESERVED_HEADERS.contains(&plain.as_str()) || plain.starts_with("keybearer-") {
        return Err(Fault::new("cannot carry a token", "write a name such as Authorization or X-Api-Key"));
    }
    Ok(name)
}

pub fn parameter(text: &str) -> Result<String, Fault> {
    let plain = |b: u8| b.is_ascii_graphic() && !b"&=#?%+".contains(&b);
    match !text.is_empty() && text.bytes().all(plain) {
        true => Ok(text.to_owned()),
        false => Err(Fault::new("is not a parameter name", "write a name such as access_token")),
    }
}
