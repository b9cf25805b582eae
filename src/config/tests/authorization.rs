//! Authorization requests, and placeholders that were not replaced.

use super::*;

const PERSON: &str = "name: crm, client_id: id, token_url: \"https://as.test/t\"";

/// One connection with `keys` on line 3, from column 5.
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
fn a_placeholder_is_named_in_every_key() {
    let at = |keys: &str, expected: &str| check(&connection(keys), &[&shift(&format!("3:{expected}"), 4)]);
    let message = |position: &str, named: &str| {
        format!("{position}: still contains the placeholder {named}; replace {named} with your own value")
    };
    at("revocation_url: \"https://<host>/r\"", &message("17: connections[0].revocation_url", "`<host>`"));
    at(
        "authorization_url: \"https://as.test/<tenant>/a\"",
        &message("20: connections[0].authorization_url", "`<tenant>`"),
    );
    at(
        "grant: device_code, device_authorization_url: \"https://{a}.test/{b}\"",
        &message("47: connections[0].device_authorization_url", "`{a}`, `{b}`"),
    );
    at("issuer: \"https://as.test/%7Btenant%7D\"", &message("9: connections[0].issuer", "`%7Btenant%7D`"));
    at("redirect_url: \"https://{keys}/oauth/callback\"", &message("15: connections[0].redirect_url", "`{keys}`"));
    at("scopes: \"a,https://<domain name>/x\"", &message("9: connections[0].scopes", "`<domain name>`"));
    at("scopes: [a, \"https://<domain>/x\"]", &message("13: connections[0].scopes[1]", "`<domain>`"));
    at("available_scopes: {Read: \"{r}\"}, scopes: Read", "26: connections[0].available_scopes.Read: still contains");
    at("audience: \"https://{tenant}/api\"", &message("11: connections[0].audience", "`{tenant}`"));
    at("resource: \"https://{tenant}/api\"", &message("11: connections[0].resource", "`{tenant}`"));
    at("profiles: [{name: a, scopes: \"<x>\"}]", &message("30: connections[0].profiles[0].scopes", "`<x>`"));
    at("routes: [{host: \"<your>.acme.test\"}]", &message("17: connections[0].routes[0].host", "`<your>`"));
    at(
        "routes: [{mount: /m, upstream: \"https://<your>.acme.test\"}]",
        &message("32: connections[0].routes[0].upstream", "`<your>`"),
    );
    at(
        "authorization_server: {proxy: \"http://<proxy>:3128\"}",
        &message("31: connections[0].authorization_server.proxy", "`<proxy>`"),
    );
    let token_url = "connections:\n  - {name: a, client_id: b, token_url: \"https://as.test/<tenant>/t\"}\n";
    check(token_url, &[&message("2:40: connections[0].token_url", "`<tenant>`")]);
    accept(&connection("authorization_url: 'https://as.test/a?claims={\"id_token\":{}}'"));
}

#[test]
fn the_value_of_a_reference_is_not_quoted() {
    let text = "connections:\n- {name: a, client_id: b, token_url: \"${file:url}\"}\n";
    let problems = super::files::Folder::new(&[("main.yaml", text), ("url", "https://<hunter2>/t\n")]).problems();
    assert!(problems.contains("refers to a value with a placeholder such as <tenant>"), "{problems}");
    assert!(!problems.contains("hunter2"), "{problems}");
}

#[test]
fn query_parameters_that_are_not_sent_are_warnings() {
    warned("authorization_url: \"https://as.test/a?prompt=consent&scope=a&resource=b&resource=c\"", &[]);
    warned(
        "authorization_url: \"https://as.test/a?client_id=x&prompt=a&prompt=b&client_secret=x\"",
        &[
            "connections[0].authorization_url: `client_id` in the URL's query is not sent: the request sets it itself; \
             remove it from the URL; use the key `client_id` of the connection",
            "connections[0].authorization_url: the URL's query repeats a parameter; keep one of them",
            "connections[0].authorization_url: `client_secret` in the URL's query is not sent",
        ],
    );
}

#[test]
fn a_response_mode_other_than_query_is_a_problem() {
    let at = |keys: &str, expected: &str| check(&connection(keys), &[&shift(&format!("3:{expected}"), 4)]);
    let message = |position: &str, mode: &str| {
        format!(
            "{position}: `response_mode` is {mode}, but the callback accepts only a GET with a query; \
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
