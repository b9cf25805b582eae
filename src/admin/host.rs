//! Host and Origin checks of the admin listeners.
//!
//! Invariant: a request has exactly one Host, and a form exactly one Origin; any other is refused.

use axum::extract::Request;
use axum::http::{HeaderMap, Uri, header};
use url::Url;

use super::{Admin, ConnAddrs};
use crate::model::AdminAccess;
use crate::model::origin::{Authority, Host};

/// True if the request is for the listener's address, one of `admin.hosts`, or the host of `public_url` or of
/// `admin.sign_in.redirect_url`.
pub fn is_accepted(admin: &Admin, request: &Request, addrs: ConnAddrs) -> bool {
    let listed = is_listed(&admin.access.current(), request.uri(), request.headers(), addrs);
    let snapshot = admin.snapshot.load();
    let redirect_url = snapshot.sign_in.as_ref().map(|provider| &provider.redirect_url);
    let is_own = |base| names_host_of(base, request.headers());
    listed || request.uri().authority().is_none() && (is_own(snapshot.links.base()) || is_own(redirect_url))
}

/// True if the request is for the host of `base`.
pub fn names_host_of(base: Option<&Url>, headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    let authority = host.to_str().ok().and_then(|text| Authority::parse(text).ok());
    let (Some(base), Some(authority)) = (base, authority) else { return false };
    let port = base.port_or_known_default();
    base.host_str() == Some(authority.host.to_string().as_str()) && authority.port.or(port) == port
}

/// True if the request is for the host of `url`, at any port: the browser sends the same cookies there.
pub fn names_host(url: &Url, headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|host| Authority::parse(host.to_str().ok()?).ok());
    host.is_some_and(|authority| url.host_str() == Some(authority.host.to_string().as_str()))
}

/// True if one of our pages sent the request. Browsers send Origin with every POST; a request without one, with several
/// or with `null` is cross-site. `secure`: the connection uses TLS.
pub fn is_from_own_page(base: Option<&Url>, headers: &HeaderMap, secure: bool) -> bool {
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let (Some(origin), None) = (origins.next(), origins.next()) else { return false };
    let Some(text) = origin.to_str().ok() else { return false };
    let Some(origin) = Url::parse(text).ok().filter(|url| url.origin().ascii_serialization() == text) else {
        return false;
    };
    // Without TLS, under a host other than that of `public_url`, the scheme is not known: a reverse proxy may terminate
    // TLS.
    let scheme_fits = !secure || origin.scheme() == "https";
    base.is_some_and(|base| base.origin() == origin.origin())
        || scheme_fits && !names_host_of(base, headers) && names_host_of(Some(&origin), headers)
}

/// True if `named` is the listener's address, or is in `admin.hosts`.
fn accepts(access: &AdminAccess, named: &Authority, addrs: ConnAddrs) -> bool {
    let (local, default_port) = (addrs.local, if addrs.secure { 443 } else { 80 });
    let is_ours = match &named.host {
        Host::Ip(address) => address.to_canonical() == local.ip().to_canonical(),
        Host::Name(name) => &**name == "localhost" && local.ip().to_canonical().is_loopback(),
    };
    let listed = |host: &Authority| host.host == named.host && (host.port.is_none() || host.port == named.port);
    is_ours && named.port.unwrap_or(default_port) == local.port() || access.hosts.iter().any(listed)
}

fn is_listed(access: &AdminAccess, uri: &Uri, headers: &HeaderMap, addrs: ConnAddrs) -> bool {
    let known = |text: &str| Authority::parse(text).is_ok_and(|named| accepts(access, &named, addrs));
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    host.to_str().is_ok_and(known) && uri.authority().is_none_or(|authority| known(authority.as_str()))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[track_caller]
    fn check(base: Option<&str>, host: &'static str, origins: &[&'static str], expected: bool) {
        let base = base.map(|base| base.parse().unwrap());
        let mut headers = HeaderMap::from_iter([(header::HOST, HeaderValue::from_static(host))]);
        for origin in origins {
            headers.append(header::ORIGIN, HeaderValue::from_static(origin));
        }
        assert_eq!(is_from_own_page(base.as_ref(), &headers, false), expected, "{base:?} {host} {origins:?}");
    }

    #[test]
    fn a_form_is_accepted_from_a_page_of_public_url_or_of_the_requested_host() {
        let https = Some("https://keys.test/kb");
        check(https, "keys.test", &["https://keys.test"], true);
        // A reverse proxy may have replaced Host.
        check(https, "127.0.0.1:8081", &["https://keys.test"], true);
        check(https, "127.0.0.1:8081", &["http://127.0.0.1:8081"], true);
        check(https, "keys.internal", &["https://keys.internal"], true);
        check(https, "[::1]:8081", &["http://[::1]:8081"], true);
        check(None, "localhost:8081", &["http://localhost:8081"], true);
        check(None, "keys.test", &["https://keys.test"], true);
        for foreign in [
            "http://keys.test",
            "https://keys.test:444",
            "https://keys.test/",
            "https://keys.test.evil.test",
            "https://evil.test",
            "null",
            "",
            "keys.test",
        ] {
            check(https, "keys.test", &[foreign], false);
        }
        check(Some("http://localhost:8081"), "localhost:8081", &["http://localhost:8082"], false);
        check(None, "localhost:8081", &["http://localhost"], false);
        check(https, "keys.test", &[], false);
        check(https, "keys.test", &["https://keys.test", "https://keys.test"], false);
    }

    #[test]
    fn over_tls_a_form_from_a_cleartext_page_is_cross_site() {
        let headers = |origin| {
            let lines = [("host", "keys.test:8081"), ("origin", origin)];
            HeaderMap::from_iter(
                lines.map(|(name, value)| (axum::http::HeaderName::from_static(name), HeaderValue::from_static(value))),
            )
        };
        for (origin, secure, expected) in [
            ("https://keys.test:8081", true, true),
            ("http://keys.test:8081", true, false),
            ("http://keys.test:8081", false, true),
        ] {
            assert_eq!(is_from_own_page(None, &headers(origin), secure), expected, "{origin} {secure}");
        }
    }
}
