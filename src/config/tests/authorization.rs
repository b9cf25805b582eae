//! What an authorization request is made of, and placeholders that nobody has replaced.

use super::*;

const PERSON: &str = "name: crm, client_id: id, token_url: \"https://as.test/t\"";

/// One connection with these keys on its third line, which begin at column 5.
fn connection(keys: &str) -> String {
    format!("connections:\n  - {{{PERSON},\n    {keys}}}\n")
}

#[track_caller]
fn warned(keys: &str, expected: &[&str]) {
    let warnings = accept(&connection(keys)).warnings;
    let got: Vec<_> = warnings.iter().map(|one| format!("{}: {}; {}", one.path, one.message, one.hint)).collect();
    assert_eq!(got.len(), expected.len(), "{keys}: {got:?}");
    for (got, expected) in got.iter().zip(expected) {
        assert!(got.starts_with(expected), "{keys}: {got}");
    }
}

#[test]
fn a_placeholder_is_named_wherever_it_is_left() {
    let at = |keys: &str, expected: &str| check(&connection(keys), &[&shift(&format!("3:{expected}"), 4)]);
    let whole = |place: &str, named: &str| {
        format!("{place}: still holds the placeholder {named}; replace {named} with your own value")
    };
    at("revocation_url: \"https://<host>/r\"", &whole("17: connections[0].revocation_url", "`<host>`"));
    at(
        "authorization_url: \"https://as.test/<tenant>/a\"",
        &whole("20: connections[0].authorization_url", "`<tenant>`"),
    );
    at(
        "grant: device_code, device_authorization_url: \"https://{a}.test/{b}\"",
        &whole("47: connections[0].device_authorization_url", "`{a}`, `{b}`"),
    );
    at("issuer: \"https://as.test/%7Btenant%7D\"", &whole("9: connections[0].issuer", "`%7Btenant%7D`"));
    at("redirect_url: \"https://{keys}/oauth/callback\"", &whole("15: connections[0].redirect_url", "`{keys}`"));
    at("scopes: \"a,https://<domain name>/x\"", &whole("9: connections[0].scopes", "`<domain name>`"));
    at("scopes: [a, \"https://<domain>/x\"]", &whole("13: connections[0].scopes[1]", "`<domain>`"));
    at("available_scopes: {Read: \"{r}\"}, scopes: Read", "26: connections[0].available_scopes.Read: still holds");
    at("audience: \"https://{tenant}/api\"", &whole("11: connections[0].audience", "`{tenant}`"));
    at("resource: \"https://{tenant}/api\"", &whole("11: connections[0].resource", "`{tenant}`"));
    at("profiles: [{name: a, scopes: \"<x>\"}]", &whole("30: connections[0].profiles[0].scopes", "`<x>`"));
    at("routes: [{host: \"<your>.acme.test\"}]", &whole("17: connections[0].routes[0].host", "`<your>`"));
    at(
        "routes: [{mount: /m, upstream: \"https://<your>.acme.test\"}]",
        &whole("32: connections[0].routes[0].upstream", "`<your>`"),
    );
    at(
        "authorization_server: {proxy: \"http://<proxy>:3128\"}",
        &whole("31: connections[0].authorization_server.proxy", "`<proxy>`"),
    );
    let token_url = "connections:\n  - {name: a, client_id: b, token_url: \"https://as.test/<tenant>/t\"}\n";
    check(token_url, &[&whole("2:40: connections[0].token_url", "`<tenant>`")]);
    accept(&connection("authorization_url: 'https://as.test/a?claims={\"id_token\":{}}'"));
}

#[test]
fn what_a_reference_was_filled_with_is_not_repeated() {
    let text = "connections:\n- {name: a, client_id: b, token_url: \"${file:url}\"}\n";
    let problems = super::files::Folder::new(&[("main.yaml", text), ("url", "https://<hunter2>/t\n")]).problems();
    assert!(problems.contains("comes with a placeholder such as <tenant>"), "{problems}");
    assert!(!problems.contains("hunter2"), "{problems}");
}

#[test]
fn parameters_of_the_url_that_are_not_sent_are_warned_of() {
    warned("authorization_url: \"https://as.test/a?prompt=consent&scope=a&resource=b&resource=c\"", &[]);
    warned(
        "authorization_url: \"https://as.test/a?client_id=x&prompt=a&prompt=b&client_secret=x\"",
        &[
            "connections[0].authorization_url: `client_id` in the URL's query is not sent: the request sets it itself; \
             remove it from the URL; use the key `client_id` of the connection",
            "connections[0].authorization_url: a parameter is twice in the URL's query; keep one of them",
            "connections[0].authorization_url: `client_secret` in the URL's query is not sent",
        ],
    );
}

#[test]
fn an_answer_that_would_not_come_to_the_callback_is_a_problem() {
    let at = |keys: &str, expected: &str| check(&connection(keys), &[&shift(&format!("3:{expected}"), 4)]);
    let message = |place: &str, mode: &str| {
        format!(
            "{place}: `response_mode` is {mode}, but the callback takes the answer from the query of a GET alone; \
             remove `response_mode`, or write `query`"
        )
    };
    let url = "authorization_url: \"https://as.test/a\"";
    at(
        &format!("{url}, authorize_params: {{response_mode: form_post}}"),
        &message("75: connections[0].authorize_params.response_mode", "`form_post`"),
    );
    at(
        &format!("{url}, profiles: [{{name: a, authorize_params: {{response_mode: own}}}}]"),
        &message("96: connections[0].profiles[0].authorize_params.response_mode", "another value"),
    );
    at(
        "authorization_url: \"https://as.test/a?response_mode=fragment\"",
        &message("20: connections[0].authorization_url", "`fragment`"),
    );
    warned(&format!("{url}, authorize_params: {{response_mode: query}}"), &[]);
}
