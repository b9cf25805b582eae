//! Cookies of ours: written and found.
//!
//! Holds: over https a cookie is bound to this host alone (`__Host-`), and no other is believed; no page's script reads one.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue, header};

use super::{Admin, auth};

const HOST_PREFIX: &str = "__Host-";

/// Did the browser come by `public_url`, and is that https?
pub fn is_secure(admin: &Admin, headers: &HeaderMap) -> bool {
    let snapshot = admin.snapshot.load();
    let base = snapshot.links.base().filter(|base| base.scheme() == "https");
    auth::is_host_of(base, headers)
}

/// `Set-Cookie` for this whole host; `None`: the value fits no header.
pub fn set(name: &str, value: &str, life: Duration, secure: bool) -> Option<HeaderValue> {
    let (prefix, end) = if secure { (HOST_PREFIX, "; Secure") } else { ("", "") };
    let text = format!("{prefix}{name}={value}; Path=/; Max-Age={}; HttpOnly; SameSite=Lax{end}", life.as_secs());
    let mut value = HeaderValue::try_from(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// `Set-Cookie` that ends it.
pub fn gone(name: &str, secure: bool) -> HeaderValue {
    set(name, "", Duration::ZERO, secure).unwrap_or(HeaderValue::from_static(""))
}

/// The value of the one cookie of this name.
pub fn get(headers: &HeaderMap, name: &str, secure: bool) -> Option<String> {
    let name = if secure { format!("{HOST_PREFIX}{name}") } else { name.to_owned() };
    let lines = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
    let mut found = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let mut own = found.by_ref().filter(|(key, _)| *key == name);
    let (_, value) = own.next()?;
    own.next().is_none().then(|| value.to_owned())
}
