//! Grants that need no person: valid and invalid values.

use serde_json::json;

use super::client::{connection, refused};
use super::*;
use crate::model::connection::*;

#[test]
fn the_keys_of_each_grant_are_read() {
    let jwt = connection(
        "grant: jwt_bearer, grant_type: own, assertion: {key: {file: ec.key}, algorithm: ES256, key_id: k, issuer: me, \
         subject: ann, audience: text, lifetime: 10m, claims: {a: 1, b: \"1\", c: true, d: [x, 2.5], e: {f: null}}}",
    );
    let Grant::JwtBearer(assertion) = &jwt.grant else { panic!("{:?}", jwt.grant) };
    assert_eq!((assertion.key.algorithm, assertion.key.key_id.as_deref()), (Algorithm::ES256, Some("k")));
    assert_eq!((assertion.issuer.as_deref(), assertion.subject.as_deref()), (Some("me"), Some("ann")));
    assert_eq!(
        (&assertion.audience, assertion.lifetime),
        (&Audience::Text("text".to_owned()), Duration::from_secs(600))
    );
    let claims = json!({"a": 1, "b": "1", "c": true, "d": ["x", 2.5], "e": {"f": null}});
    assert_eq!(serde_json::Value::from(assertion.claims.clone()), claims);
    assert_eq!((jwt.grant_type.as_deref(), jwt.grant.owner()), (Some("own"), Some("ann")));
    let saml = connection("grant: saml2_bearer, assertion: {file: a.xml}");
    assert!(matches!(&saml.grant, Grant::Saml2Bearer { assertion } if assertion.expose() == "<A/>"));
    let exchange = connection(
        "grant: token_exchange, subject_token: {file: s}, actor_token: {file: s}, requested_token_type: id_token",
    );
    let Grant::TokenExchange(exchange) = &exchange.grant else { panic!("another grant") };
    assert_eq!(exchange.subject_token_type, "urn:ietf:params:oauth:token-type:jwt");
    assert_eq!(exchange.requested_token_type.as_deref(), Some("urn:ietf:params:oauth:token-type:id_token"));
    assert!(exchange.actor.is_some());
    let caller = connection("grant: token_exchange, subject_token: {from: caller}, subject_token_type: \"urn:x:y\"");
    assert!(caller.grant.exchanges_caller_token());
}

#[test]
fn missing_and_inapplicable_keys_of_a_grant_are_problems() {
    let at = |key: &str, message: &str| (format!("connections[0].{key}: "), message.to_owned());
    for (keys, (path, message)) in [
        ("assertion: {file: a.xml}", at("assertion", "applies only to `grant: jwt_bearer` or `saml2_bearer`")),
        ("subject_token: {from: caller}", at("subject_token", "applies only to `grant: token_exchange`")),
        ("grant: jwt_bearer", at("assertion", "`assertion` is missing")),
        ("grant: jwt_bearer, assertion: {subject: a}", at("assertion.key", "`key` is missing")),
        ("grant: jwt_bearer, assertion: {key: {file: ec.key}}", at("assertion.key", "RS256")),
        ("grant: jwt_bearer, assertion: {key: {file: s}}", at("assertion.key", "the key holds no private key in PEM")),
        (
            "grant: jwt_bearer, assertion: {key: {file: rsa.key}, algorithm: HS256}",
            at("assertion.algorithm", "`HS256` is not a valid value"),
        ),
        (
            "grant: jwt_bearer, assertion: {key: {file: rsa.key}, lifetime: 2h}",
            at("assertion.lifetime", "longer than an hour"),
        ),
        (
            "grant: jwt_bearer, assertion: {key: {file: rsa.key}, audience: issuer}",
            at("assertion.audience", "has no `issuer`"),
        ),
        (
            "grant: jwt_bearer, assertion: {key: {file: rsa.key}, claims: {exp: 1}}",
            at("assertion.claims.exp", "the claim `exp` cannot be set here"),
        ),
        ("grant: token_exchange", at("subject_token", "`subject_token` is missing")),
        ("grant: token_exchange, subject_token: {from: moon}", at("subject_token.from", "`moon` is not a valid value")),
        (
            "grant: token_exchange, subject_token: {file: s}, subject_token_type: thing",
            at("subject_token_type", "is not a token type"),
        ),
        (
            "grant: token_exchange, subject_token: {from: caller}, tokens: per_subject",
            at("tokens", "already means a token for each caller token"),
        ),
        (
            "grant: token_exchange, subject_token: {from: caller}, keep_warm: 1d",
            at("keep_warm", "only a caller's request brings the token"),
        ),
        (
            "grant: token_exchange, subject_token: {from: caller}, routes: [{host: a.test, existing: keep}]",
            at("routes[0]", "`existing` contradicts"),
        ),
        (
            "grant: jwt_bearer, assertion: {key: {file: rsa.key}, lifetime: 1500ms}",
            at("assertion.lifetime", "is not a whole number of seconds"),
        ),
        (
            "issuer: ~, send_credentials: private_key_jwt, client_assertion: {key: {file: rsa.key}, audience: issuer}",
            at("client_assertion.audience", "has no `issuer`"),
        ),
        ("grant: token_exchange, subject_token: {from: ~}", at("subject_token.from", "`from` is missing")),
        (
            "grant: token_exchange, subject_token: {file: s}, actor_token: {token: ~, token_type: jwt}",
            at("actor_token.token", "`token` is missing"),
        ),
        ("username: ann", at("username", "applies only to `grant: password`")),
        ("actor_token: {file: s}", at("actor_token", "applies only to `grant: token_exchange`")),
        ("grant: saml2_bearer", at("assertion", "`assertion` is missing")),
        ("grant: saml2_bearer, assertion: {file: gone.xml}", at("assertion.file", "cannot be read (no such file)")),
        ("token_params: {assertion: x}", at("token_params.assertion", "the grant sets `assertion` itself")),
    ] {
        refused(keys, &[&path, &message]);
    }
}
