//! Functions that scripts can use in addition to Rhai's own.
//!
//! Not here: `now`, which is set per call (`sandbox`).
//! Invariant: the size of a result is checked before it is allocated; `replace` and `pad` override Rhai's, which can
//! exhaust memory or loop forever.

use aws_lc_rs::{digest, hmac, rand};
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use rhai::{Blob, Dynamic, EvalAltResult, ImmutableString, Module, Position};

use super::value::{STRING_BYTES_MAX, from_json, kind, to_json};

type Fallible<T> = Result<T, Box<EvalAltResult>>;

pub fn module() -> Module {
    let mut module = Module::new();
    module.set_native_fn("hmac_sha256", |key: Dynamic, data: Dynamic| -> Fallible<Blob> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &bytes(&key)?);
        Ok(hmac::sign(&key, &bytes(&data)?).as_ref().to_vec())
    });
    module.set_native_fn("sha256", |data: Dynamic| -> Fallible<Blob> {
        Ok(digest::digest(&digest::SHA256, &bytes(&data)?).as_ref().to_vec())
    });
    module.set_native_fn("base64", |data: Dynamic| -> Fallible<String> { Ok(BASE64_STANDARD.encode(bytes(&data)?)) });
    module.set_native_fn("base64url", |data: Dynamic| -> Fallible<String> {
        Ok(BASE64_URL_SAFE_NO_PAD.encode(bytes(&data)?))
    });
    module.set_native_fn("hex", |data: Dynamic| -> Fallible<String> { Ok(hex(&bytes(&data)?)) });
    module.set_native_fn("url_encode", |text: Dynamic| -> Fallible<String> { Ok(url_encode(&bytes(&text)?)) });
    module.set_native_fn("json", |value: Dynamic| -> Fallible<String> {
        let value = to_json(&value).map_err(|kind| mismatch("a value that JSON has", kind))?;
        Ok(value.to_string())
    });
    module.set_native_fn("parse_json", |text: ImmutableString| -> Fallible<Dynamic> {
        let value = serde_json::from_str(&text).map_err(|_| mismatch("JSON", "other text"))?;
        Ok(from_json(&value))
    });
    module.set_native_fn("uuid", uuid);
    module.set_native_fn("replace", |text: &mut ImmutableString, old: ImmutableString, new: ImmutableString| {
        replace(text, &old, &new)
    });
    module.set_native_fn("replace", |text: &mut ImmutableString, old: char, new: ImmutableString| {
        replace(text, old.encode_utf8(&mut [0; 4]), &new)
    });
    module.set_native_fn("pad", |text: &mut ImmutableString, chars: i64, padding: ImmutableString| {
        pad(text, chars, &padding)
    });
    module
}

/// The UTF-8 of a string, or the bytes of a blob.
fn bytes(data: &Dynamic) -> Fallible<Vec<u8>> {
    if let Ok(text) = data.as_immutable_string_ref() {
        return Ok(text.as_bytes().to_vec());
    }
    match data.as_blob_ref() {
        Ok(blob) => Ok(blob.to_vec()),
        Err(_) => Err(mismatch("a string or a blob", kind(data))),
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Percent-encodes all but the unreserved characters of RFC 3986 §2.3.
fn url_encode(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len()), |mut text, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) {
            text.push(char::from(*byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
        text
    })
}

/// A version 4 UUID (RFC 9562 §5.4).
fn uuid() -> Fallible<String> {
    let mut random = [0; 16];
    rand::fill(&mut random).map_err(|_| mismatch("randomness", "none"))?;
    random[6] = random[6] & 0x0f | 0x40;
    random[8] = random[8] & 0x3f | 0x80;
    let hex = hex(&random);
    Ok(format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]))
}

fn replace(text: &mut ImmutableString, old: &str, new: &str) -> Fallible<()> {
    // An empty `old` matches between all characters.
    let found = text.matches(old).count();
    if found * new.len() > STRING_BYTES_MAX {
        return Err(too_long());
    }
    *text = text.replace(old, new).into();
    Ok(())
}

/// Appends `padding`, truncated if needed, until `text` has `chars` characters.
fn pad(text: &mut ImmutableString, chars: i64, padding: &str) -> Fallible<()> {
    let missing = usize::try_from(chars).unwrap_or(0).saturating_sub(text.chars().count());
    if missing > STRING_BYTES_MAX {
        return Err(too_long());
    }
    let padded: String = text.chars().chain(padding.chars().cycle().take(missing)).collect();
    *text = padded.into();
    Ok(())
}

fn mismatch(wanted: &str, given: &str) -> Box<EvalAltResult> {
    EvalAltResult::ErrorMismatchDataType(wanted.into(), given.into(), Position::NONE).into()
}

fn too_long() -> Box<EvalAltResult> {
    EvalAltResult::ErrorDataTooLarge("Length of string".into(), Position::NONE).into()
}
