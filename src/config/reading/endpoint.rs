//! Parses URLs: OAuth endpoints, upstreams of mounts, egress proxies, the trace collector, `public_url`. Pure.
//!
//! Invariant: the authority is parsed from the text as written, by [`Authority::parse`], so a URL that another parser
//! would silently correct or read differently is rejected.

use url::Url;

use super::value::Fault;
use crate::model::connection::PathPrefix;
use crate::model::origin::{Authority, Origin, Scheme};

/// The URL of an OAuth endpoint, with its authority as written.
#[derive(Debug)]
pub struct EndpointUrl {
    pub url: Url,
    pub scheme: Scheme,
    pub authority: Authority,
}

impl EndpointUrl {
    /// True if requests would leave the machine unencrypted.
    pub fn is_cleartext(&self) -> bool {
        self.scheme == Scheme::Http && !self.authority.host.is_loopback()
    }
}

pub fn token_url(text: &str) -> Result<EndpointUrl, Fault> {
    let (scheme, authority, rest) = split(text)?;
    if rest.contains('#') {
        return Err(Fault::new("has a fragment", "remove the `#` and what follows it"));
    }
    let malformed = || Fault::new("is malformed", "write https://HOST/PATH");
    let mut url = Url::parse(text).map_err(|_| malformed())?;
    url.set_host(Some(&authority.host.to_string())).map_err(|_| malformed())?;
    let same_port = url.port_or_known_default() == Some(authority.port.unwrap_or(scheme.default_port()));
    if url.scheme() != scheme.as_str() || !same_port {
        return Err(malformed());
    }
    Ok(EndpointUrl { url, scheme, authority })
}

/// The URL of an image that people see: https.
pub fn logo_url(text: &str) -> Result<Url, Fault> {
    let endpoint = token_url(text)?;
    match endpoint.scheme {
        Scheme::Https => Ok(endpoint.url),
        Scheme::Http => Err(Fault::new("is not https", "write https://HOST/PATH")),
    }
}

/// Checks an issuer, which has neither a query nor a fragment (RFC 8414 §2).
pub fn issuer(text: &str) -> Result<(), Fault> {
    match text.contains(['?', '#']) {
        true => Err(Fault::new("has a query or a fragment", "write the issuer exactly as in its metadata")),
        false => Ok(()),
    }
}

/// The URL of an egress proxy: host and port only.
pub fn proxy(text: &str) -> Result<Url, Fault> {
    const HINT: &str = "write http://HOST:PORT";
    if text.contains('@') {
        let hint = "write {url: http://HOST:PORT, username: NAME, password: {file: PATH}}";
        return Err(Fault::new("has a user name", hint));
    }
    let endpoint = token_url(text).map_err(|fault| Fault::new(fault.message, HINT))?;
    match endpoint.url.path() == "/" && endpoint.url.query().is_none() {
        true => Ok(endpoint.url),
        false => Err(Fault::new("has a path or a query", HINT)),
    }
}

/// A collector's base URL, with the path for traces appended (OTLP/HTTP).
pub fn collector(text: &str) -> Result<Url, Fault> {
    const PATH: &str = "/v1/traces";
    if text.contains(['?', '#', '@']) {
        return Err(Fault::new(
            "has a user name, a query or a fragment",
            "write http://HOST:4318, optionally with a path",
        ));
    }
    let base = text.trim_end_matches('/');
    if base.ends_with(PATH) {
        return Err(Fault::new(format!("already ends in {PATH}"), format!("remove {PATH}; Keybearer appends it")));
    }
    Ok(token_url(&format!("{base}{PATH}"))?.url)
}

/// `https://HOST[/BASE]`, where browsers reach Keybearer.
pub fn public_url(text: &str) -> Result<Url, Fault> {
    let endpoint = token_url(text)?;
    if endpoint.url.query().is_some() {
        return Err(Fault::new("has a query", "write https://HOST, optionally with a path"));
    }
    match endpoint.is_cleartext() {
        true => Err(Fault::new(
            "would send authorization codes and sign-ins in the clear",
            "use https; http is only for loopback",
        )),
        false => Ok(endpoint.url),
    }
}

/// The upstream of a mount: `https://HOST[:PORT][/BASE]`.
pub fn upstream(text: &str) -> Result<(Origin, PathPrefix), Fault> {
    let (scheme, authority, rest) = split(text)?;
    if rest.contains(['?', '#']) {
        return Err(Fault::new("has a query or a fragment", "write https://HOST, optionally with a path"));
    }
    let base = if rest.is_empty() { Some(PathPrefix::root()) } else { PathPrefix::parse(rest) };
    let base = base.ok_or_else(|| Fault::new("has a path that is not plain", PLAIN_PATH))?;
    Ok((Origin::new(scheme, authority), base))
}

/// The hint for a path that [`PathPrefix`] rejects.
pub const PLAIN_PATH: &str = "write a path of plain segments, such as /v1 (no query, no %, no `..`, no `//`)";

fn split(text: &str) -> Result<(Scheme, Authority, &str), Fault> {
    if text.bytes().any(|b| b <= b' ' || b >= 0x7f || b == b'\\') {
        return Err(Fault::new(
            "contains a character that URLs do not allow",
            "remove spaces and `\\`, and write the host in ASCII",
        ));
    }
    let (name, rest) = text.split_once("://").ok_or_else(|| Fault::new("is malformed", "write https://HOST/PATH"))?;
    let scheme = match name.to_ascii_lowercase().as_str() {
        "https" => Scheme::Https,
        "http" => Scheme::Http,
        _ => return Err(Fault::new("is neither https nor http", "write https://HOST/PATH")),
    };
    let (authority, rest) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    if authority.contains('@') {
        return Err(Fault::new("has a user name", "remove it; credentials have their own keys"));
    }
    let authority = Authority::parse(authority)
        .map_err(|error| Fault::new(format!("has an invalid host: {error}"), "write https://HOST/PATH"))?;
    Ok((scheme, authority, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<&str, &str>) {
        let got = token_url(text).map(|endpoint| endpoint.url.to_string()).map_err(|fault| fault.message);
        let got = got.as_deref().map_err(String::as_str);
        match (got, expected) {
            (Err(got), Err(expected)) => assert!(got.contains(expected), "{text}: {got}"),
            (got, expected) => assert_eq!(got, expected, "{text}"),
        }
    }

    #[test]
    fn a_token_url_is_unambiguous_or_rejected() {
        check("https://Login.Acme.test/token?x=1", Ok("https://login.acme.test/token?x=1"));
        check("HTTPS://a.test.:8443/t", Ok("https://a.test:8443/t"));
        check("http://[::1]:80/t", Ok("http://[::1]/t"));
        check("https://a.test", Ok("https://a.test/"));
        check("https://u:p@a.test/t", Err("user name"));
        check("https://a.test/t#x", Err("fragment"));
        check("https://a.test\\@b.test/t", Err("character"));
        check("https://a.te\tst/t", Err("character"));
        check("https://ä.test/t", Err("character"));
        check("https:a.test/t", Err("malformed"));
        check("ftp://a.test/t", Err("neither"));
        check("https://2130706433/t", Err("invalid host"));
        check("https://a.test:0/t", Err("port"));
        check("https://a.test:/t", Err("port"));
        check("https:///t", Err("empty"));
        check("https://a%2etest/t", Err("invalid host"));
    }

    #[test]
    fn the_trace_path_is_appended_to_the_collector_url() {
        assert_eq!(collector("http://Otel.test:4318/").unwrap().as_str(), "http://otel.test:4318/v1/traces");
        assert_eq!(collector("https://otel.test/otlp").unwrap().as_str(), "https://otel.test/otlp/v1/traces");
        for bad in ["http://a/v1/traces", "http://u:p@a", "http://a?x", "http://a#x", "grpc://a", "a:4318", ""] {
            assert!(collector(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_upstream_is_an_origin_with_a_base_path() {
        let (origin, base) = upstream("https://Acme.test:444/services/").unwrap();
        assert_eq!((origin.to_string().as_str(), base.as_str()), ("https://acme.test:444", "/services"));
        assert!(upstream("https://acme.test").unwrap().1.is_root());
        for bad in ["https://a.test/?x", "https://a.test/a//b", "https://a.test/..", "https://a.test#x", "a.test"] {
            assert!(upstream(bad).is_err(), "{bad}");
        }
    }
}
