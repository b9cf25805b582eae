//! Token responses in every shape that servers send.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue, header};

use super::*;
use crate::model::connection::Pointer;

fn response(status: u16, body: &str) -> TokenResponse {
    TokenResponse {
        status: StatusCode::from_u16(status).unwrap(),
        headers: HeaderMap::new(),
        body: body.as_bytes().to_vec().into(),
        received: SystemTime::UNIX_EPOCH,
    }
}

/// `token/seconds/scopes`, or the failure's name in brackets for a refusal.
fn summary(response: &TokenResponse) -> String {
    match read(response, &TokenResponseFormat::default(), Sent::Grant, &Redactor::new("", &Vec::new(), Vec::new())) {
        Ok(TokenSet { access_token, expires_in, scopes, refresh_token, .. }) => {
            let life = expires_in.map_or("-".to_owned(), |life| life.as_secs_f64().to_string());
            let refresh = refresh_token.map_or_else(String::new, |token| format!("/{}", token.expose()));
            let scopes = scopes.map_or("-".to_owned(), |all| all.join(" "));
            format!("{}/{life}/{scopes}{refresh}", access_token.expose())
        }
        Err(Failure::Permanent(refusal)) => format!("[{refusal}]"),
        Err(Failure::Retryable { reason, .. }) => reason.to_string(),
        Err(Failure::Script { message, .. }) => message,
    }
}

#[track_caller]
fn check(status: u16, body: &str, expected: &str) {
    assert_eq!(summary(&response(status, body)), expected);
}

#[track_caller]
fn check_with(members: &str, expected: &str) {
    check(200, &format!(r#"{{"access_token":"t",{members}}}"#), expected);
}

#[test]
fn a_success_is_parsed_leniently() {
    check(200, r#"{"access_token":"t"}"#, "t/-/-");
    check(201, r#"{"iat":1,"access_token":"a.b-c==","token_type":"bearer","id_token":"x"}"#, "a.b-c==/-/-");
    check(200, "\u{feff}{\"access_token\":\"t\",\"token_type\":\"BEARER\"}", "t/-/-");
    for (value, seconds) in [
        ("600", "600"),
        ("600.5", "600.5"),
        ("\"600\"", "600"),
        ("\" 600.0 \"", "600"),
        ("1", "1"),
        ("6e2", "600"),
        ("0", "-"),
        ("-0", "-"),
        ("\"0\"", "-"),
        ("null", "-"),
        ("\"\"", "-"),
        ("-1", "-"),
        ("\"-600\"", "-"),
        ("\"3600abc\"", "-"),
        ("\"inf\"", "-"),
        ("\"NaN\"", "-"),
        ("\"1e9\"", "-"),
        ("true", "-"),
        ("[600]", "-"),
        ("{\"s\":1}", "-"),
        ("1576800000", "315360000"),
        ("99999999999999999999999999", "315360000"),
        ("1e300", "315360000"),
    ] {
        check_with(&format!("\"expires_in\":{value}"), &format!("t/{seconds}/-"));
    }
    for (value, scopes) in [
        ("\"a b\"", "a b"),
        ("\"a, b,c\\td\"", "a b c d"),
        ("[\"a\",\"b\",1,\"c d\"]", "a b"),
        ("\"\"", "-"),
        ("null", "-"),
        ("\" \"", "-"),
        ("7", "-"),
        ("\"a \\u0007x b\"", "a b"),
    ] {
        check_with(&format!("\"scope\":{value}"), &format!("t/-/{scopes}"));
    }
    check_with("\"refresh_token\":\"r 1~\"", "t/-/-/r 1~");
    let long = format!("\"{}\"", "r".repeat(16 * 1024 + 1));
    for none in ["null", "\"\"", "7", "[\"r\"]", "\"r\\u0000\"", "\"ä\"", &long] {
        check_with(&format!("\"refresh_token\":{none}"), "t/-/-");
    }
    check_with("\"error\":null", "t/-/-");
    check_with("\"error\":\"\"", "t/-/-");
    check_with("\"error\":false", "t/-/-");
}

/// An absolute expiry time is relative to the response's `Date`, or to our own clock if there is none.
#[test]
fn an_absolute_expiry_time_is_relative_to_the_servers_clock() {
    const RECEIVED: u64 = 1_767_225_600; // 2026-01-01T00:00:00Z
    #[track_caller]
    fn check(date: Option<&'static str>, end: &str, expected: Option<u64>) {
        let body = format!(r#"{{"access_token":"t","expires_in":60,"until":{end}}}"#);
        let received = SystemTime::UNIX_EPOCH + Duration::from_secs(RECEIVED);
        let headers = date.map(|date| (header::DATE, HeaderValue::from_static(date))).into_iter().collect();
        let response = TokenResponse { headers, received, ..response(200, &body) };
        let format = TokenResponseFormat { expires_at: Pointer::parse("/until"), ..TokenResponseFormat::default() };
        let redactor = Redactor::new("", &Vec::new(), Vec::new());
        let set = read(&response, &format, Sent::Grant, &redactor).expect("a token set");
        // An end in the past is ignored, and `expires_in` applies.
        let expected = expected.unwrap_or(60);
        assert_eq!(set.expires_in, Some(Duration::from_secs(expected)), "{date:?} {end}");
    }
    const AT_TEN: &str = "\"2026-01-01T00:10:00Z\"";
    let (right, behind, ahead) =
        ("Thu, 01 Jan 2026 00:00:00 GMT", "Wed, 31 Dec 2025 23:00:00 GMT", "Thu, 01 Jan 2026 00:09:00 GMT");
    let at_ten = (RECEIVED + 600).to_string();
    let at_ten_ms = ((RECEIVED + 600) * 1000).to_string();
    for end in [AT_TEN, &at_ten, &at_ten_ms, "\"Thu, 01 Jan 2026 00:10:00 GMT\""] {
        check(None, end, Some(600));
        check(Some(right), end, Some(600));
        check(Some(behind), end, Some(3600 + 600));
        check(Some(ahead), end, Some(60));
        check(Some("Thu, 01 Jan 2026 02:00:00 GMT"), end, None);
        check(Some("yesterday"), end, Some(600));
    }
}

#[test]
fn a_malformed_success_yields_no_token() {
    for body in ["<html>", " ", "null", "[]", "[{\"access_token\":\"t\"}]", "access_token=t", "{", "\"t\""] {
        check(200, body, "not_json");
    }
    check(200, "", "empty");
    check(204, "", "empty");
    check(200, "{}", "no_access_token");
    for value in ["null", "\"\""] {
        check(200, &format!("{{\"access_token\":{value}}}"), "no_access_token");
    }
    let long = format!("\"{}\"", "x".repeat(65_537));
    let bad = ["\"a b\"", "\"a\\r\\nX: y\"", "\"a\\u0000\"", "\"a\\u007f\"", "\"ä\"", "7", "[\"t\"]", &long];
    for value in bad {
        check(200, &format!("{{\"access_token\":{value}}}"), "invalid_access_token");
    }
    for value in ["\"mac\"", "\"DPoP\"", "\"N_A\"", "\"\"", "7", "\"Bearer x\""] {
        check_with(&format!("\"token_type\":{value}"), "token_type");
    }
    check_with("\"access_token\":\"u\"", "duplicate_member");
    check_with("\"x\":{\"a\":1,\"a\":1}", "duplicate_member");
    check_with("\"token_type\":null", "t/-/-");
}

#[test]
fn the_error_member_takes_precedence_over_the_status() {
    check(401, r#"{"error":"invalid_client"}"#, "[invalid_client]");
    check(400, r#"{"error":"invalid_client","error_description":"expired"}"#, "[invalid_client (expired)]");
    check(200, r#"{"error":"bad_verification_code","access_token":"t"}"#, "[bad_verification_code]");
    check(200, r#"{"error":{"message":"no"}}"#, "http_200");
    check(400, r#"{"error":" invalid_grant "}"#, "[invalid_grant]");
    check(400, r#"{"error":"in valid"}"#, "http_400");
    check(400, &format!(r#"{{"error":"{}"}}"#, "x".repeat(65)), "http_400");
    check(400, r#"{"error":"a","error":"b"}"#, "http_400");
    check(400, "", "http_400_empty");
    check(403, "", "http_403");
    check(403, r#"{"error":"invalid_code"}"#, "[invalid_code]");
    check(404, "<html>", "http_404");
    check(500, r#"{"error":"invalid_scope"}"#, "[invalid_scope]");
    check(500, r#"{"error":"oops"}"#, "http_500");
    check(503, "<html>fault</html>", "http_503");
    for code in ["temporarily_unavailable", "slow_down"] {
        check(400, &format!(r#"{{"error":"{code}"}}"#), code);
    }
    check(500, r#"{"error":"server_error"}"#, "server_error");
    for status in [408, 425, 429] {
        check(status, "", &format!("http_{status}"));
        check(status, r#"{"error":"access_denied"}"#, &format!("http_{status}"));
    }
    for status in [301, 302, 304, 307, 308] {
        check(status, r#"{"access_token":"t"}"#, &format!("http_{status}"));
    }
}

#[test]
fn a_sign_is_matched_against_the_unredacted_response() {
    let refresh = Sent::RefreshToken { needs_person: true, after_empty_400: false };
    let redactor = Redactor::new("client", &vec![("refresh_token".to_owned(), "r3fresh-t0ken".to_owned())], Vec::new());
    let summary = |sign: RefusalSign, status: u16, body: &str| {
        let format = TokenResponseFormat { refresh_refused: vec![sign], ..TokenResponseFormat::default() };
        match read(&response(status, body), &format, refresh, &redactor) {
            Err(Failure::Permanent(refusal)) => format!("{refusal} {}", refusal.refuses_refresh_token),
            Err(Failure::Retryable { reason, .. }) => reason.to_string(),
            other => panic!("{:?}", other.map(|_| ())),
        }
    };
    let sign = |status: Option<u16>, error: Option<&str>, text: Option<&str>| RefusalSign {
        status: status.map(|status| StatusCode::from_u16(status).unwrap()),
        error: error.map(str::to_owned),
        description_contains: text.map(str::to_owned),
    };
    let body = r#"{"error":"dead client","error_description":"R3FRESH-t0ken is over"}"#;
    assert_eq!(summary(sign(None, Some("dead client"), None), 403, body), "http_403 (R3FRESH-t0ken is over) true");
    assert_eq!(summary(sign(None, None, Some("r3fresh-T0KEN")), 403, body), "http_403 (R3FRESH-t0ken is over) true");
    assert_eq!(
        summary(sign(Some(403), Some("dead client"), Some("over")), 403, body),
        "http_403 (R3FRESH-t0ken is over) true"
    );
    assert_eq!(summary(sign(Some(401), Some("dead client"), Some("over")), 403, body), "http_403");
    assert_eq!(summary(sign(Some(403), Some("dead"), None), 403, body), "http_403");
    assert_eq!(summary(sign(Some(403), None, Some("gone")), 403, body), "http_403");
    assert_eq!(summary(sign(None, Some("7"), None), 200, r#"{"error":7}"#), "http_200 true");
    assert_eq!(summary(sign(Some(418), None, None), 418, "<html>"), "http_418 true");
    assert_eq!(summary(sign(None, Some("x"), None), 418, "<html>"), "http_418");
}
