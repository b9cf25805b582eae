//! Parses the request target (RFC 9112 §3.2). Pure.
//!
//! Invariants: a target that is not exactly absolute, authority or origin form, with one valid Host, is refused; no
//! other header is read; the destination of an absolute form is the target's, and Host is ignored (RFC 9112 §3.2.2).

use http::header::HOST;
use http::request::Parts;
use http::uri::{self, PathAndQuery};
use http::{HeaderMap, Method, Uri, Version};

use crate::model::origin::{Authority, Host, Origin, Scheme};

/// A parsed request target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// `GET http://host/path`: forward mode.
    Absolute(Origin, PathAndQuery),
    /// `GET /path`: a mount, or a request inside a tunnel; with the authority from Host.
    Origin(Option<Authority>, PathAndQuery),
    /// `CONNECT host:port`
    Connect(Host, u16),
}

/// Why a target is refused; shown to the caller.
pub type BadTarget = &'static str;

/// For a `*` that addresses the proxy itself.
pub const SERVER_WIDE: BadTarget = "`*` addresses the proxy itself, which does not serve such requests";

pub fn parse(head: &Parts) -> Result<Target, BadTarget> {
    let host = host_field(&head.headers, head.version)?;
    if head.method == Method::CONNECT {
        return connect(&head.uri);
    }
    let path = path_of(&head.uri)?;
    match (head.uri.scheme_str(), head.uri.authority()) {
        (Some(scheme), Some(authority)) => {
            let scheme = match scheme {
                _ if scheme.eq_ignore_ascii_case("http") => Scheme::Http,
                _ if scheme.eq_ignore_ascii_case("https") => Scheme::Https,
                _ => return Err("only http and https URLs are proxied"),
            };
            if !path.as_str().starts_with('/') && head.method != Method::OPTIONS {
                return Err("`*` is valid only with OPTIONS");
            }
            Ok(Target::Absolute(Origin::new(scheme, parse_authority(authority.as_str())?), path))
        }
        (None, None) if path.as_str().starts_with('/') => Ok(Target::Origin(host, path)),
        (None, None) if path.as_str() == "*" => Err(SERVER_WIDE),
        _ => Err("the request target is neither a URL nor a path"),
    }
}

/// True for `OPTIONS http://host`, which addresses the server as a whole. The last proxy sends it as `OPTIONS *` (RFC
/// 9112 §3.2.4).
pub fn is_server_wide(head: &Parts) -> bool {
    // The parser represents an empty path by a static `/`. A path that was sent follows the authority in the same
    // buffer.
    let sent =
        |authority: &uri::Authority| authority.as_str().as_bytes().as_ptr_range().end == head.uri.path().as_ptr();
    head.method == Method::OPTIONS && head.uri.query().is_none() && head.uri.authority().is_some_and(|it| !sent(it))
}

/// The Host field: exactly one in HTTP/1.1, at most one in HTTP/1.0 (RFC 9112 §3.2).
fn host_field(headers: &HeaderMap, version: Version) -> Result<Option<Authority>, BadTarget> {
    let mut fields = headers.get_all(HOST).iter();
    let Some(field) = fields.next() else {
        return if version >= Version::HTTP_11 { Err("the Host header is missing") } else { Ok(None) };
    };
    if fields.next().is_some() {
        return Err("there is more than one Host header");
    }
    let text = field.to_str().map_err(|_| "the Host header is not ASCII")?;
    // An empty Host is valid for a target without authority (RFC 9110 §7.2).
    if text.is_empty() { Ok(None) } else { parse_authority(text).map(Some) }
}

fn connect(uri: &Uri) -> Result<Target, BadTarget> {
    if uri.scheme().is_some() || uri.path_and_query().is_some() {
        return Err("the target of CONNECT must be host:port and nothing else");
    }
    let authority = uri.authority().ok_or("the target of CONNECT must be host:port")?;
    let authority = parse_authority(authority.as_str())?;
    Ok(Target::Connect(authority.host, authority.port.ok_or("CONNECT needs a port")?))
}

fn parse_authority(text: &str) -> Result<Authority, BadTarget> {
    if text.contains('@') {
        return Err("user information in a URL is not accepted");
    }
    Authority::parse(text).map_err(|_| "the host or port of the URL or of the Host header is not valid")
}

/// The path as it is matched and forwarded: visible ASCII only, with `/` before a query without a path (RFC 9110
/// §4.2.1).
fn path_of(uri: &Uri) -> Result<PathAndQuery, BadTarget> {
    let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    if !path.as_str().bytes().all(|b| b.is_ascii_graphic()) {
        return Err("the path contains characters that must be percent-encoded");
    }
    if path.as_str().starts_with('?') {
        return PathAndQuery::try_from(["/", path.as_str()].concat()).map_err(|_| "the query is too long");
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(method: Method, uri: &str, hosts: &[&str], version: Version) -> Option<Parts> {
        let mut request = http::Request::builder().method(method).version(version).uri(uri);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        Some(request.body(()).ok()?.into_parts().0)
    }

    #[track_caller]
    fn check(uri: &str, host: &str, expected: Option<&str>) {
        let target = parts(Method::GET, uri, &[host], Version::HTTP_11).and_then(|head| parse(&head).ok());
        let shown = target.map(|target| match target {
            Target::Absolute(origin, path) => format!("{origin} {path}"),
            Target::Origin(_, path) => format!("mount {path}"),
            Target::Connect(host, port) => format!("connect {host}:{port}"),
        });
        assert_eq!(shown.as_deref(), expected, "{uri}");
    }

    #[test]
    fn the_target_decides_and_host_is_only_checked() {
        check("http://good.test/x?q=1", "good.test", Some("http://good.test /x?q=1"));
        check("https://GOOD.test.:443/x", "good.test", Some("https://good.test /x"));
        check("HTTP://good.test", "good.test", Some("http://good.test /"));
        check("http://good.test?x=1", "good.test", Some("http://good.test /?x=1"));
        check("http://good.test?", "good.test", Some("http://good.test /?"));
        check("http://good.test/", "evil.test", Some("http://good.test /"));
        check("http://[::1]:8080/", "x", Some("http://[::1]:8080 /"));
        check("/x", "good.test", Some("mount /x"));
    }

    #[test]
    fn ambiguous_targets_are_refused() {
        let bad = [
            "http://good.test@evil.test/",
            "http://evil.test@good.test/",
            "http://x@good.test@evil.test/",
            "http://good.test%40evil.test/",
            "http://good.test%2f@evil.test/",
            "http://user:pw@good.test/",
            "http:///evil.test",
            "http:/evil.test",
            "//evil.test/",
            "ftp://good.test/",
            "file:///etc/passwd",
            "ws://good.test/",
            "http://good.test:0/",
            "http://good.test:65536/",
            "http://good.test:/",
            "http://127.1/",
            "http://0x7f000001/",
            "http://good..test/",
            "http://good.test\\@evil.test/",
            "http://good_test,evil/",
            "*",
        ];
        for uri in bad.iter().filter(|uri| **uri != "//evil.test/") {
            check(uri, "good.test", None);
        }
        // In origin form this path starts with an empty segment, which no mount has.
        check("//evil.test/", "good.test", Some("mount //evil.test/"));
        check("/päth", "good.test", None);
    }

    #[test]
    fn exactly_one_valid_host_is_required() {
        for hosts in
            [&[][..], &["a.test", "a.test"], &["a b"], &["u@a.test"], &["a/b"], &["a.test,b.test"], &["a.test:x"]]
        {
            let head = parts(Method::GET, "http://good.test/", hosts, Version::HTTP_11).unwrap();
            assert!(parse(&head).is_err(), "{hosts:?}");
        }
        let old = parts(Method::GET, "http://good.test/", &[], Version::HTTP_10).unwrap();
        assert!(parse(&old).is_ok());
    }

    #[test]
    fn options_without_a_path_addresses_the_server() {
        #[track_caller]
        fn check(method: Method, target: &'static str, expected: bool) {
            // As hyper parses it: one buffer.
            let uri = Uri::from_maybe_shared(bytes::Bytes::from_static(target.as_bytes())).unwrap();
            let head = http::Request::builder().method(method).uri(uri).body(()).unwrap().into_parts().0;
            assert_eq!(is_server_wide(&head), expected, "{target}");
        }
        check(Method::OPTIONS, "http://good.test", true);
        check(Method::OPTIONS, "https://good.test:8443", true);
        check(Method::OPTIONS, "http://good.test/", false);
        check(Method::OPTIONS, "http://good.test?q", false);
        check(Method::OPTIONS, "http://good.test?", false);
        check(Method::OPTIONS, "http://good.test/x", false);
        check(Method::OPTIONS, "/", false);
        check(Method::GET, "http://good.test", false);
    }

    #[test]
    fn connect_accepts_only_host_and_port() {
        let connect = |uri| parts(Method::CONNECT, uri, &["x"], Version::HTTP_11).and_then(|head| parse(&head).ok());
        assert_eq!(connect("a.test:80"), Some(Target::Connect(Host::parse("a.test").unwrap(), 80)));
        for bad in ["a.test", "a.test:0", "a.test:65536", "a.test:http", "http://a.test:80/", "u@a.test:80", "/x"] {
            assert_eq!(connect(bad), None, "{bad}");
        }
    }
}
