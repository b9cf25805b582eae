//! Errors as responses.

use super::*;

#[track_caller]
fn check(error: ProxyError, status: u16, code: &str, action: &str) {
    let about = ErrorContext { connection: Some("crm"), profile: Some("default"), request_id: "r1" };
    let response = error.response(about);
    let body: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
    assert_eq!(response.status().as_u16(), status);
    assert_eq!(response.headers()["keybearer-error"], code);
    assert_eq!(body["type"], format!("urn:keybearer:error:{code}"));
    assert_eq!((&body["code"], &body["action"], &body["connection"]), (&code.into(), &action.into(), &"crm".into()));
    assert!(response.headers()["proxy-status"].to_str().unwrap().starts_with("keybearer; error="));
    let retry = response.headers().contains_key(RETRY_AFTER);
    assert_eq!(retry, status == 503, "Retry-After belongs to 503");
}

#[test]
fn each_error_matches_the_contract() {
    use ProxyError::*;
    let wait = Duration::from_millis(1);
    check(BadRequestTarget("x"), 400, "bad_request_target", "fix_request");
    check(SubjectRequired("x"), 400, "subject_required", "fix_request");
    check(SubjectNotAllowed, 403, "subject_not_allowed", "fix_configuration");
    check(ConsentRequired { again: false, link: None }, 424, "consent_required", "reauthorize");
    check(RefreshTokenExpired { error: "x".into(), link: None }, 424, "refresh_token_expired", "reauthorize");
    check(RequestTimeout, 408, "request_timeout", "fix_request");
    check(TargetTooLong(LONG_TARGET), 414, "target_too_long", "fix_request");
    check(HeadTooLarge, 431, "head_too_large", "fix_request");
    check(NoMount, 404, "no_mount", "fix_request");
    check(MethodRefused, 405, "method_refused", "fix_request");
    check(AuthorityMismatch, 421, "authority_mismatch", "fix_request");
    check(CallerUnknown { mount: false }, 407, "caller_unknown", "authenticate");
    check(CallerUnknown { mount: true }, 401, "caller_unknown", "authenticate");
    check(CallerNotAllowed, 403, "caller_not_allowed", "fix_configuration");
    check(NoRoute, 403, "no_route", "fix_configuration");
    check(ConnectionInactive, 403, "connection_inactive", "fix_configuration");
    check(EgressDenied("x"), 403, "egress_denied", "fix_configuration");
    check(LoopDetected, 508, "loop_detected", "fix_configuration");
    check(TokenRefused { error: "x".into() }, 424, "token_refused", "fix_configuration");
    check(TokenUnavailable { error: "x".into(), retry_after: wait }, 503, "token_unavailable", "retry_later");
    check(Overloaded, 503, "overloaded", "retry_later");
    check(UpstreamTls(TlsFault::Certificate), 502, "upstream_tls", "fix_configuration");
    check(UpstreamUnreachable(Unreachable::Name), 502, "upstream_unreachable", "retry_later");
    check(UpstreamProtocol, 502, "upstream_protocol", "retry_later");
    check(UpstreamTimeout, 504, "upstream_timeout", "retry_later");
}

#[test]
fn a_serialized_response_is_one_complete_message() {
    let wire = String::from_utf8(to_wire(&ProxyError::HeadTooLarge.response(ErrorContext::default()))).unwrap();
    let (head, body) = wire.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 431 Request Header Fields Too Large\r\n"));
    assert!(head.contains(&format!("content-length: {}\r\n", body.len())));
    for error in [ProxyError::HeadTooLarge, ProxyError::BadRequestTarget("x"), ProxyError::RequestTimeout] {
        let wire = String::from_utf8(to_wire(&error.response(ErrorContext::default()))).unwrap();
        assert_eq!(wire.matches("connection: close\r\n").count(), 1, "{wire}");
    }
}
