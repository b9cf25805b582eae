//! Extra parameters of requests to an authorization server.
//!
//! Invariant: a parameter that the request sets itself is rejected, and the hint says how to set it.

use serde_json::{Value, json};

use crate::config::reading::{NodeRef, Sink, reference};

/// Parameters that the token request sets itself, each with a hint how to set it.
pub const TOKEN_REQUEST_OWN: [(&str, &str); 20] = [
    ("grant_type", "use the key `grant_type` of the connection"),
    ("client_id", "use the key `client_id` of the connection"),
    ("client_secret", "use the key `client_secret` of the connection"),
    ("scope", "use the key `scopes` of the connection"),
    ("audience", "use the key `audience` of the connection"),
    ("resource", "use the key `resource` of the connection"),
    ("username", "use the key `username` of the connection"),
    ("password", "use the key `password` of the connection"),
    ("refresh_token", "import it: `keybearer connect NAME --import -`"),
    ("assertion", "use the key `assertion` of the connection"),
    ("client_assertion", "use the key `client_assertion` of the connection"),
    ("client_assertion_type", "use the key `client_assertion` of the connection"),
    ("subject_token", "use the key `subject_token` of the connection"),
    ("subject_token_type", "use the key `subject_token_type` of the connection"),
    ("requested_token_type", "use the key `requested_token_type` of the connection"),
    ("actor_token", "use the key `actor_token` of the connection"),
    ("code", "the authorization server issues it for each authorization"),
    ("device_code", "the authorization server issues it for each authorization"),
    ("redirect_uri", "use the key `redirect_url` of the connection"),
    ("code_verifier", "use the key `pkce` of the connection"),
];

/// Parameters that the authorization request sets itself, each with a hint how to set it.
pub const AUTHORIZATION_OWN: [(&str, &str); 10] = [
    ("response_type", "it is always `code`"),
    ("client_id", "use the key `client_id` of the connection"),
    ("redirect_uri", "use the key `redirect_url` of the connection"),
    ("scope", "use the key `scopes` of the connection"),
    ("state", "it is generated for each authorization"),
    ("code_challenge", "use the key `pkce` of the connection"),
    ("code_challenge_method", "use the key `pkce` of the connection"),
    ("audience", "use the key `audience` of the connection"),
    ("resource", "use the key `resource` of the connection"),
    ("client_secret", "a browser must never see it"),
];

/// The JSON Schema of parameter names that are not in `own`.
pub fn other_names(own: &[(&str, &str)]) -> Value {
    let own: Vec<_> = own.iter().map(|(name, _)| *name).collect();
    json!({ "minLength": 1, "not": { "enum": own } })
}

/// Reads extra parameters, none of which may be in `own`.
pub fn params(node: &NodeRef<'_>, own: &[(&str, &str)], sink: &mut Sink) -> Vec<(String, String)> {
    let mut params = Vec::new();
    for (key, key_node, value) in node.pairs(sink) {
        if let Some((_, hint)) = own.iter().find(|(own, _)| *own == key) {
            key_node.problem(sink, format!("the grant sets `{key}` itself"), *hint);
            continue;
        }
        if key.is_empty() || key.chars().any(char::is_control) {
            key_node.problem(sink, "the name is empty or contains a control character", "write the parameter's name");
            continue;
        }
        let value = value.and_then(|value| {
            let text = reference::text(&value, sink)?.value;
            value.without_controls(text, sink)
        });
        params.extend(value.map(|value| (key.to_owned(), value)));
    }
    params
}
