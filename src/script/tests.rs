//! Hooks: what they may change and return, and how they fail.
//!
//! Not here: resource exhaustion (`bombs`), rejected sources (`refused`), the available functions (`functions`).

use std::time::Duration;

use super::*;
use crate::model::secret::Secret;

mod bombs;
mod functions;
mod refused;

fn context() -> Context {
    Context {
        connection: "crm".into(),
        profile: "default".into(),
        subject: None,
        grant: "client_credentials".into(),
        variables: vec![("account".into(), Secret::new("a1"))],
        now: WallTime::from_secs(1_700_000_000),
    }
}

fn fields(fields: &[(&str, &str)]) -> Vec<(String, String)> {
    fields.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

fn request() -> Request {
    Request {
        url: "https://as.test/token".into(),
        headers: fields(&[("Accept", "application/json"), ("Host", "as.test")]),
        form: fields(&[("grant_type", "password"), ("resource", "a"), ("scope", "x"), ("resource", "b")]),
    }
}

fn response(text: &str) -> Response {
    Response { status: 201, headers: fields(&[("X-Id", "7"), ("X-Id", "8")]), text: text.into() }
}

/// Runs `body` as the token request hook.
fn on_request(body: &str) -> Result<Request, Failure> {
    let source = format!("fn token_request(request, ctx) {{ {body} }}");
    Script::compile(&source).expect("the script compiles").token_request(request(), &context())
}

/// Runs `body` as the token response hook.
fn on_response(body: &str, text: &str) -> Result<(u16, String), Failure> {
    let source = format!("fn token_response(response, ctx) {{ {body} }}");
    let script = Script::compile(&source).expect("the script compiles");
    script.token_response(response(text), &context()).map(|response| (response.status, response.body))
}

#[track_caller]
fn check_form(body: &str, expected: &[(&str, &str)]) {
    assert_eq!(on_request(&format!("{body}; request")).unwrap().form, fields(expected), "after {body}");
}

#[track_caller]
fn check_headers(body: &str, expected: &[(&str, &str)]) {
    assert_eq!(on_request(&format!("{body}; request")).unwrap().headers, fields(expected), "after {body}");
}

/// The message of a failure that the script did not throw itself.
#[track_caller]
fn message(failure: Failure) -> String {
    let Failure::Error { message, .. } = failure else { panic!("{failure:?}") };
    message
}

#[track_caller]
fn check_failed(body: &str, expected: &str) {
    let found = message(on_request(body).expect_err(body));
    assert!(found.contains(expected), "{body}: {found}");
}

#[test]
fn fields_keep_their_order_and_new_ones_follow() {
    let given = [("grant_type", "password"), ("resource", "a"), ("scope", "x"), ("resource", "b")];
    check_form("()", &given);
    check_form("request.form.scope = ()", &[given[0], given[1], given[3]]);
    check_form("request.form.remove(\"scope\")", &[given[0], given[1], given[3]]);
    check_form(
        "request.form.account = ctx.variables.account; request.form.grant_type = \"own\"",
        &[("grant_type", "own"), given[1], given[2], given[3], ("account", "a1")],
    );
    check_form("request.form.n = 7; request.form.yes = true", &[&given[..], &[("n", "7"), ("yes", "true")]].concat());
    check_form("request.form.resource = \"only\"", &[given[0], ("resource", "only"), given[2]]);
    check_form("request.form.resource.push(\"c\")", &[&given[..], &[("resource", "c")]].concat());
    check_form("request.form = #{}", &[]);
}

#[test]
fn header_names_are_in_lower_case_and_match_any_case() {
    check_headers("()", &[("accept", "application/json"), ("host", "as.test")]);
    check_headers("request.headers.accept = ()", &[("host", "as.test")]);
    check_headers("request.headers.Accept = \"x\"", &[("accept", "x"), ("host", "as.test")]);
    check_headers("request.headers.Accept = ()", &[("host", "as.test")]);
    check_headers(
        "request.headers[\"X-Key\"] = 5",
        &[("accept", "application/json"), ("host", "as.test"), ("x-key", "5")],
    );
}

#[test]
fn an_unusable_result_is_reported() {
    check_failed("request.form.scope = 1.5; request", "`form.scope` is a float");
    check_failed("request.form.scope = #{}; request", "`form.scope` is a map");
    check_failed("request.form.scope = [[]]; request", "`form.scope` is an array with another value");
    check_failed("request.headers[\"a b\"] = \"\"; request", "`headers.a b` is not a valid");
    check_failed("request.headers.x = \"a\\nb\"; request", "value of `headers.x` is not a valid");
    for name in ["Host", "content-length", "Transfer-Encoding", "connection", "te", "Trailer", "Upgrade", "Proxy-X"] {
        let set = format!("request.headers[\"{name}\"] = \"x\"; request");
        check_failed(&set, &format!("`headers.{}` cannot be set", name.to_lowercase()));
    }
    check_failed("request.url = \"https://evil.test/\"; request", "destination cannot be changed");
    check_failed("request.url = 7; request", "destination cannot be changed");
    check_failed("request.body = \"x\"; request", "unknown key `body`");
    check_failed("request.remove(\"form\"); request", "has no `form`");
    check_failed("request.headers = 1; request", "`headers` is an integer");
    check_failed("request.form = 1; request", "`form` is an integer");
    check_failed("request.form.a = 1;", "returned (), not a map");
    assert!(on_request("#{headers: #{}, form: #{}}").is_ok(), "the URL may be omitted");
}

#[test]
fn a_script_replaces_the_token_response() {
    let given = r#"{"data": {"token": "t"},  "n": 1e2}"#;
    #[track_caller]
    fn check(body: &str, text: &str, status: u16, expected: &str) {
        assert_eq!(on_response(body, text).unwrap(), (status, expected.to_string()), "{body}");
    }
    check("response", given, 201, given);
    check("response.status = 400; response", "no json", 400, "no json");
    check("response.text = \"other\"; response", given, 201, "other");
    check("response.json = response.json.data; response", given, 201, r#"{"token":"t"}"#);
    check("response.json = (); response", given, 201, given);
    check("response.json = #{a: response.headers[\"x-id\"]}; response", "no json", 201, r#"{"a":["7","8"]}"#);
    check(
        "#{access_token: response.json.data.token, expires_in: 60}",
        given,
        200,
        r#"{"access_token":"t","expires_in":60}"#,
    );
    check("#{access_token: `${response.json == ()}`}", "no json", 200, r#"{"access_token":"true"}"#);
    // An integer beyond the script's range does not count as a change.
    check("response", r#"{"id": 18446744073709551615}"#, 201, r#"{"id": 18446744073709551615}"#);
    #[track_caller]
    fn refused(body: &str, expected: &str) {
        let found = message(on_response(body, "x").unwrap_err());
        assert!(found.contains(expected), "{body}: {found}");
    }
    refused("response.status = 99; response", "`status` from 100 to 599");
    refused("response.access_token = \"t\"; response", "unknown key `access_token`");
    refused("response.text = 7; response", "`text` is an integer");
    refused("response.json = blob(3); response", "`json` holds a blob");
    refused("#{access_token: blob(3)}", "a blob");
    refused("#{other: 1}", "unknown key `other`");
}

#[test]
fn truncating_the_text_leaves_a_long_response_whole() {
    let token = "a".repeat(61_440);
    let long = format!("{{\"access_token\":\"{token}\",\"refresh_token\":\"{}\"}}", "ä".repeat(4_000));
    let (status, unchanged) = on_response("response", &long).unwrap();
    assert!(status == 201 && unchanged == long);
    let short = "#{access_token: response.json.access_token, size: `${response.text.bytes}`}";
    let read: serde_json::Value = serde_json::from_str(&on_response(short, &long).unwrap().1).unwrap();
    assert!(read["access_token"] == token.as_str() && read["size"] == "65536", "{}", read["size"]);
}

#[test]
fn a_script_throws_a_message_or_a_retry_delay() {
    let thrown =
        |message: &str, column| Failure::Thrown { message: message.into(), line: Some(1), column: Some(column) };
    assert_eq!(on_request("throw \"no such account\""), Err(thrown("no such account", 34)));
    assert_eq!(on_request("throw 42"), Err(thrown("an integer instead of a string", 34)));
    assert_eq!(on_request("throw #{message: \"m\"}"), Err(thrown("m", 34)));
    let later = |after: f64, message: Option<&str>| {
        Err(Failure::RetryLater { after: Duration::from_secs_f64(after), message: message.map(String::from) })
    };
    assert_eq!(on_request("throw #{retry_after: 30}"), later(30.0, None));
    assert_eq!(on_request("throw #{retry_after: 0.5, message: \"busy\"}"), later(0.5, Some("busy")));
    assert_eq!(on_request("throw #{retry_after: 301}"), later(300.0, None));
    assert_eq!(on_request("throw #{retry_after: 1e300}"), later(300.0, None));
    for wrong in ["-1", "-0.1", "\"30\"", "0.0 / 0.0"] {
        check_failed(&format!("throw #{{retry_after: {wrong}}}"), "not a non-negative number of seconds");
    }
    let long = on_request("let long = \"\\u00e9\\n\"; long.pad(1000, \"a\"); throw long").unwrap_err();
    let Failure::Thrown { message, .. } = long else { panic!("{long:?}") };
    assert_eq!(message, format!("??{}", "a".repeat(298)));
}

#[test]
fn an_error_has_a_position_and_shows_no_value() {
    let source =
        "fn helper(x) {\n  parse_int(x)\n}\nfn token_request(request, ctx) {\n  helper(request.form.grant_type)\n}";
    let failure = Script::compile(source).unwrap().token_request(request(), &context()).unwrap_err();
    let Failure::Error { message, line, column } = failure else { panic!("{failure:?}") };
    assert_eq!((message.as_str(), line, column), ("arithmetic error", Some(2), Some(3)));
    check_failed("request.form.scope.nothing()", "no function nothing (");
    check_failed("request.form.scope - 1", "no function - (");
    check_failed("let a = []; a[7]", "index out of bounds");
    check_failed("parse_json(request.form.scope)", "expects JSON, not other text");
    check_failed("hex(1)", "expects a string or a blob, not an integer");
}

#[test]
fn without_a_hook_requests_and_responses_are_unchanged() {
    let script = Script::compile("fn authorization_request(request, ctx) { request.form.x = 1; request }").unwrap();
    assert!(script.has_authorization_request() && !script.has_token_request() && !script.has_token_response());
    assert_eq!(script.token_request(request(), &context()), Ok(request()));
    let unchanged = script.token_response(response("text"), &context()).unwrap();
    assert_eq!((unchanged.status, unchanged.body.as_str()), (201, "text"));
    assert_eq!(
        script.authorization_request(request(), &context()).unwrap().form.last(),
        Some(&("x".into(), "1".into()))
    );
}

#[test]
fn debug_output_shows_no_source_and_no_data() {
    let script = Script::compile("fn token_request(request, ctx) { \"s3cret\" }").unwrap();
    let shown = format!("{script:?} {:?} {:?}", request(), response("s3cret"));
    assert!(shown.contains("token_request") && !shown.contains("s3cret") && !shown.contains("password"), "{shown}");
}

#[test]
fn one_script_serves_several_threads() {
    fn shared<T: Clone + Send + Sync>(_: &T) {}
    shared(&Script::compile("fn token_request(request, ctx) { request }").unwrap());
}
