//! Accepted and rejected hosts, header names and methods.

use super::super::header::RESERVED_HEADERS;
use super::*;

#[track_caller]
fn check(text: &str, expected: Result<&str, &str>) {
    let got = host_pattern(text).map(|(pattern, port)| format!("{pattern:?} {port:?}")).map_err(|fault| fault.message);
    match (got, expected) {
        (Ok(got), Ok(expected)) => assert_eq!(got, expected, "{text}"),
        (Err(got), Err(expected)) => assert!(got.contains(expected), "{text}: {got}"),
        (got, expected) => panic!("{text}: {got:?} is not {expected:?}"),
    }
}

#[test]
fn hosts_are_names_suffixes_or_addresses() {
    check("API.Acme.test", Ok("Exact(api.acme.test) Default"));
    check("api.acme.test:9443", Ok("Exact(api.acme.test) Stated(9443)"));
    check("api.acme.test:*", Ok("Exact(api.acme.test) Any"));
    check("*.acme.test", Ok("Subdomains(acme.test) Default"));
    check("*.acme.test:8443", Ok("Subdomains(acme.test) Stated(8443)"));
    check("*.internal:*", Ok("Subdomains(internal) Any"));
    check("[::1]:*", Ok("Exact([::1]) Any"));
    check("127.0.0.1:80", Ok("Exact(127.0.0.1) Stated(80)"));
    for star in ["*", "*:443", "a.*.test", "*a.test", "*.*.test", "**"] {
        check(star, Err("misplaced `*`"));
    }
    check("*.", Err("empty"));
    check("*.10.0.0.1", Err("before an address"));
    check("https://a.test", Err("is a URL"));
    check("a.test/v1", Err("contains a path"));
    check("a.test:0", Err("port"));
    check("a b", Err("invalid"));
    check("", Err("empty"));
}

#[test]
fn framing_and_proxy_headers_cannot_carry_a_token() {
    assert_eq!(header("X-Api-Key").unwrap(), "x-api-key");
    for bad in RESERVED_HEADERS.iter().chain(&[
        "Host",
        "Keybearer-Connection",
        "Keybearer_Subject",
        "Transfer_Encoding",
        "",
        "a b",
        "a:",
        "a\r\nb",
    ]) {
        assert!(header(bad).is_err(), "{bad}");
    }
}

#[test]
fn methods_are_upper_case() {
    assert_eq!(method("PATCH").unwrap(), Method::PATCH);
    assert_eq!(method("PURGE").unwrap().as_str(), "PURGE");
    for bad in ["get", "Get", "TRACE", "CONNECT", "", "G T"] {
        assert!(method(bad).is_err(), "{bad}");
    }
}
