//! Our cookies, written and parsed by the `cookie` crate.
//!
//! Invariants: over https a cookie is bound to this host (`__Host-`), and no other one is accepted; scripts cannot read
//! it (`HttpOnly`).

use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue, header};
use cookie::{Cookie, SameSite};

use super::{Admin, ConnAddrs, host};

const HOST_PREFIX: &str = "__Host-";

/// True if the browser uses https: on this connection, or to the host of a `public_url` or `redirect_url` that is https.
pub fn is_secure(admin: &Admin, headers: &HeaderMap, addrs: ConnAddrs) -> bool {
    let snapshot = admin.snapshot.load();
    let redirect_url = snapshot.sign_in.as_ref().map(|provider| &provider.redirect_url);
    let bases = [snapshot.links.base(), redirect_url].into_iter().flatten().filter(|base| base.scheme() == "https");
    addrs.secure || bases.into_iter().any(|base| host::names_host_of(Some(base), headers))
}

/// `Set-Cookie` for all paths of this host; `None`: the value is not valid in a header.
pub fn set(name: &str, value: &str, life: Duration, secure: bool) -> Option<HeaderValue> {
    let cookie = Cookie::build((full_name(name, secure), value))
        .path("/")
        .max_age(life.try_into().ok()?)
        .http_only(true)
        .same_site(SameSite::Lax)
        .secure(secure);
    let mut value = HeaderValue::try_from(cookie.to_string()).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// `Set-Cookie` that removes it.
pub fn removal(name: &str, secure: bool) -> HeaderValue {
    set(name, "", Duration::ZERO, secure).unwrap_or(HeaderValue::from_static(""))
}

/// The value of the cookie of this name; `None` if it is sent twice.
pub fn get(headers: &HeaderMap, name: &str, secure: bool) -> Option<String> {
    let name = full_name(name, secure);
    let lines = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
    let mut matching = lines.flat_map(Cookie::split_parse).flatten().filter(|cookie| cookie.name() == name);
    let cookie = matching.next()?;
    matching.next().is_none().then(|| cookie.value().to_owned())
}

/// The cookie's name; over https it has a prefix.
pub fn full_name(name: &str, secure: bool) -> String {
    if secure { format!("{HOST_PREFIX}{name}") } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_cookie_is_bound_to_the_host_and_hidden_from_scripts() {
        let attributes = |value: &HeaderValue| {
            assert!(value.is_sensitive());
            let mut parts: Vec<_> = value.to_str().unwrap().split("; ").map(str::to_owned).collect();
            parts[1..].sort_unstable();
            parts.join("; ")
        };
        let plain = "kb=v; HttpOnly; Max-Age=3600; Path=/; SameSite=Lax";
        assert_eq!(attributes(&set("kb", "v", HOUR, false).unwrap()), plain);
        assert_eq!(attributes(&set("kb", "v", HOUR, true).unwrap()), format!("__Host-{plain}; Secure"));
        assert_eq!(attributes(&removal("kb", false)), "kb=; HttpOnly; Max-Age=0; Path=/; SameSite=Lax");
        assert!(set("kb", "a\r\nSet-Cookie: x=y", HOUR, false).is_none());
    }

    #[track_caller]
    fn check(lines: &[&'static str], secure: bool, expected: Option<&str>) {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(header::COOKIE, HeaderValue::from_static(line));
        }
        assert_eq!(get(&headers, "kb", secure).as_deref(), expected, "{lines:?}");
    }

    #[test]
    fn a_cookie_is_read_only_if_its_name_is_sent_once() {
        check(&["kb=v"], false, Some("v"));
        check(&["other=1; kb=v=w; x"], false, Some("v=w"));
        check(&["other=1", "kb=v"], false, Some("v"));
        check(&["kb=v", "__Host-kb=w"], true, Some("w"));
        check(&["kb=v"], true, None);
        check(&["__Host-kb=v"], false, None);
        check(&["kb=v; kb=w"], false, None);
        check(&["kb=v", "kb=v"], false, None);
        check(&["kb", "KB=v", ""], false, None);
    }
}
