//! Header fields that are removed, added and read.

use super::*;

fn map(fields: &[(&str, &str)]) -> HeaderMap {
    fields.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())).collect()
}

const SELF: HeaderValue = HeaderValue::from_static("1.1 keybearer-1");

#[test]
fn only_end_to_end_fields_go_upstream() {
    let mut headers = map(&[
        ("host", "evil.test"),
        ("connection", "close, X-Gone, keep-alive"),
        ("x-gone", "1"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("proxy-authorization", "Basic eDp5"),
        ("te", "trailers"),
        ("upgrade", "h2c"),
        ("http2-settings", "AAMAAABk"),
        ("transfer-encoding", "chunked, chunked"),
        ("content-length", "5"),
        ("expect", "100-continue"),
        ("keybearer-subject", "alice"),
        ("x-forwarded-host", "evil.test"),
        ("accept", "*/*"),
    ]);
    rewrite_request(&mut headers, HeaderValue::from_static("good.test"), &SELF);
    let expected =
        map(&[("host", "good.test"), ("x-forwarded-host", "evil.test"), ("accept", "*/*"), ("via", "1.1 keybearer-1")]);
    assert_eq!(headers, expected);
}

#[test]
fn fields_that_any_connection_field_names_are_hop_by_hop() {
    let sent = || {
        map(&[
            ("connection", "keep-alive"),
            ("connection", "X-Second, x-third"),
            ("connection", "X-Last"),
            ("x-second", "1"),
            ("x_second", "2"),
            ("x-third", "3"),
            ("x-last", "4"),
            ("x-kept", "5"),
        ])
    };
    let (mut request, mut response) = (sent(), sent());
    rewrite_request(&mut request, HeaderValue::from_static("good.test"), &SELF);
    assert_eq!(request, map(&[("x-kept", "5"), ("host", "good.test"), ("via", "1.1 keybearer-1")]));
    rewrite_response(&mut response, &SELF);
    assert_eq!(response, map(&[("x-kept", "5"), ("via", "1.1 keybearer-1")]));
    assert_eq!(sanitize_trailers(sent(), &[]), map(&[("x-kept", "5")]));
}

#[test]
fn an_upstream_cannot_forge_an_error_of_the_proxy() {
    let mut headers = map(&[("keybearer-error", "no_route"), ("via", "1.0 x"), ("connection", "close"), ("etag", "1")]);
    rewrite_response(&mut headers, &SELF);
    assert_eq!(headers, map(&[("etag", "1"), ("via", "1.0 x"), ("via", "1.1 keybearer-1")]));
}

#[test]
fn conflicting_lengths_are_not_copied() {
    let mut headers = map(&[("content-length", "4"), ("transfer-encoding", "chunked")]);
    rewrite_response(&mut headers, &SELF);
    assert!(!headers.contains_key(CONTENT_LENGTH));
}

#[test]
fn equal_lengths_are_merged() {
    #[track_caller]
    fn check(sent: &[&str], expected: Option<&str>) {
        let fields: Vec<_> = sent.iter().map(|value| ("content-length", *value)).collect();
        let mut headers = map(&fields);
        rewrite_response(&mut headers, &SELF);
        let kept: Vec<_> = headers.get_all(CONTENT_LENGTH).iter().map(|value| value.to_str().unwrap()).collect();
        assert_eq!(kept, expected.into_iter().collect::<Vec<_>>(), "{sent:?}");
    }
    check(&["2"], Some("2"));
    check(&["2, 2"], Some("2"));
    check(&["2", "2"], Some("2"));
    check(&["2", "2,2 ,  2"], Some("2"));
    check(&["2, 3"], None);
    check(&["2", "3"], None);
    check(&["+2"], None);
    check(&[""], None);
    check(&[","], None);
    check(&[], None);
}

#[test]
fn trailers_cannot_set_head_fields() {
    let sent = map(&[
        ("authorization", "Bearer x"),
        ("host", "x"),
        ("content-length", "1"),
        ("keybearer-error", "no_route"),
        ("keybearer-subject", "alice"),
        ("x-api-key", "1"),
        ("x_api_key", "1"),
        ("x-checksum", "1"),
    ]);
    assert_eq!(sanitize_trailers(sent, &["x-api-key".parse().unwrap()]), map(&[("x-checksum", "1")]));
}

#[test]
fn max_forwards_is_decremented_and_stops_at_zero() {
    let mut headers = map(&[("max-forwards", "5")]);
    assert!(!decrement_max_forwards(&Method::GET, &mut headers));
    assert_eq!(headers["max-forwards"], "5");
    assert!(!decrement_max_forwards(&Method::OPTIONS, &mut headers));
    assert_eq!(headers["max-forwards"], "4");
    assert!(decrement_max_forwards(&Method::TRACE, &mut map(&[("max-forwards", "0")])));
    assert!(!decrement_max_forwards(&Method::TRACE, &mut map(&[])));
}

#[test]
fn the_proxy_recognizes_its_own_via() {
    let via = Via::new("keybearer-1").unwrap();
    assert!(is_loop(&map(&[("via", "1.0 fred, 1.1 keybearer-1")]), &via));
    assert!(is_loop(&map(&[("via", "1.0 fred"), ("via", "1.0 keybearer-1")]), &via));
    assert!(is_loop(&map(&[("via", "2.0 keybearer-1")]), &via));
    assert!(!is_loop(&map(&[("via", "1.1 keybearer-2, 1.1 p")]), &via));
}

#[test]
fn a_field_is_removed_in_all_its_spellings() {
    let mut headers = map(&[("x-api-key", "1"), ("x_api_key", "2"), ("x-api_key_", "3"), ("x-api-keys", "4")]);
    remove_all_spellings(&mut headers, &"x-api-key".parse().unwrap());
    assert_eq!(headers, map(&[("x-api-keys", "4")]));
    let mut headers = map(&[("x-token", "1"), ("x_token", "2"), ("x_token_", "3"), ("xtoken", "4")]);
    assert_eq!(values_of_all_spellings(&headers, &"x_token".parse().unwrap()).count(), 3);
    remove_all_spellings(&mut headers, &"x_token".parse().unwrap());
    assert_eq!(headers, map(&[("xtoken", "4")]));
}

#[test]
fn the_callers_request_id_must_be_one_short_plain_text() {
    let id = |fields: &[(&str, &str)]| caller_request_id(&map(fields)).map(|id| id.to_str().unwrap().to_owned());
    let name = "x-request-id";
    assert_eq!(id(&[(name, "a-1_.~:/+=@,")]).as_deref(), Some("a-1_.~:/+=@,"));
    assert_eq!(id(&[(name, &"x".repeat(128))]), Some("x".repeat(128)));
    for wrong in ["", "a b", "a\"b", "a\\b", "<a>", "a{b", &"x".repeat(129)] {
        assert_eq!(id(&[(name, wrong)]), None, "{wrong}");
    }
    assert_eq!(id(&[(name, "a"), (name, "b")]), None);
}
