//! `secrets`, `mutual_tls_profiles`, and their uses in connections.

use super::client::{connection, folder, folder_with};
use super::*;
use crate::model::connection::*;

const TOP: &str = "secrets:\n  crm: {file: s, hosts: [AS.test, proxy.test]}\n  other: {file: s, hosts: [other.test]}\n\
                   mutual_tls_profiles:\n  partner: {certificate: cert.pem, key: {file: rsa.key}}\n";
const TOKEN: &str = "token_url: \"https://as.test:8443/token\"";

#[track_caller]
fn published(keys: &str) -> Arc<Connection> {
    folder_with(TOP, &format!("{TOKEN}, {keys}")).accept().model.connections[0].clone()
}

/// Checks that the only problem contains each text of `expected`.
#[track_caller]
fn refused(top: &str, keys: &str, expected: &[&str]) {
    let problems = folder_with(top, keys).problems();
    assert_eq!(problems.lines().count(), 1, "{keys}\n{problems}");
    assert!(expected.iter().all(|part| problems.contains(part)), "{keys}\n{problems} is not {expected:?}");
}

#[test]
fn a_published_secret_is_used_wherever_a_connection_takes_one() {
    let host = |text: &str| crate::model::origin::Host::parse(text).unwrap();
    let definition = published("client_secret: [{use: crm}, {use: crm}]");
    assert_eq!(
        definition.client_auth.secrets().iter().map(|secret| secret.expose()).collect::<Vec<_>>(),
        ["secret", "secret"]
    );
    assert_eq!(definition.secret_hosts.as_deref(), Some(&[host("as.test"), host("proxy.test")][..]));
    for keys in [
        "grant: password, username: u, password: {use: crm}, profiles: [{name: p}]",
        "grant: saml2_bearer, assertion: {use: crm}",
        "grant: token_exchange, subject_token: {use: crm}, actor_token: {token: {use: crm}}",
        "token_request: {headers: {X-Key: {use: crm}}}",
        "client_secret: {use: crm}, revocation_url: \"https://as.test/r\", authorization_url: \"https://login.test/a\"",
    ] {
        let definition = published(keys);
        assert!(definition.definitions().all(|definition| definition.secret_hosts.is_some()), "{keys}");
    }
    let proxied =
        published("authorization_server: {proxy: {url: \"https://proxy.test:1\", username: u, password: {use: crm}}}");
    assert_eq!(proxied.secret_hosts, None, "the proxy's password travels to the proxy alone");
    assert_eq!(connection("client_secret: {file: s}").secret_hosts, None);
}

#[test]
fn a_published_secret_never_leaves_its_hosts() {
    for (keys, named) in [
        ("client_secret: {use: other}, token_url: \"https://as.test/t\"", ["`token_url`", "`other` to as.test"]),
        ("client_secret: {use: crm}, token_url: \"https://as.test.evil.test/t\"", ["`crm`", "to as.test.evil.test"]),
        (
            "client_secret: {use: crm}, token_url: \"https://as.test/t\", revocation_url: \"https://b.test/r\"",
            ["`revocation_url`", "`crm` to b.test"],
        ),
        ("client_secret: {use: crm}, issuer: \"https://b.test\"", ["`issuer`", "`crm` to b.test"]),
        (
            "grant: device_code, client_secret: {use: crm}, token_url: \"https://as.test/t\", \
             device_authorization_url: \"https://b.test/d\"",
            ["`device_authorization_url`", "`crm` to b.test"],
        ),
        (
            "token_url: \"https://as.test/t\", authorization_server: {proxy: {url: \"https://b.test:1\", username: u, \
             password: {use: crm}}}",
            ["`proxy.url`", "`crm` to b.test"],
        ),
        (
            "client_secret: {use: crm}, token_url: \"https://as.test/t\", allow_cleartext: true",
            ["`allow_cleartext`", "`crm` in the clear"],
        ),
        (
            "token_url: \"https://as.test/t\", authorization_server: {proxy: {url: \"http://proxy.test:1\", username: u, \
             password: {use: crm}}}",
            ["`proxy.url`", "`crm` in the clear; use https"],
        ),
    ] {
        refused(TOP, keys, &named);
    }
}

#[test]
fn an_unknown_name_is_a_problem_with_a_suggestion() {
    refused(
        TOP,
        &format!("{TOKEN}, client_secret: {{use: cmr}}"),
        &["client_secret.use", "`cmr`; did you mean `crm`?"],
    );
    refused(TOP, &format!("{TOKEN}, mutual_tls: partnr"), &["mutual_tls", "`partnr`; did you mean `partner`?"]);
    refused("", &format!("{TOKEN}, client_secret: {{use: crm}}"), &["`crm`; add it under `secrets`"]);
    refused(TOP, &format!("{TOKEN}, client_secret: {{use: crm, file: s}}"), &["must have exactly one source"]);
    let admin = format!("{TOP}admin: {{users: [{{name: a, role: viewer, token: {{use: crm}}}}]}}\n");
    refused(&admin, TOKEN, &["admin.users[0].token.use", "only connections can use a published secret"]);
}

#[test]
fn a_certificate_is_published_by_name() {
    let definition = published("mutual_tls: partner, send_credentials: tls");
    let file = connection("mutual_tls: {certificate: cert.pem, key: {file: rsa.key}}, send_credentials: tls");
    assert!(definition.mutual_tls.is_some() && definition.mutual_tls == file.mutual_tls);
}

#[test]
fn invalid_entries_are_problems_even_if_they_are_unused() {
    for (top, expected) in [
        ("secrets: {crm: {file: s}}", "secrets.crm.hosts: `hosts` is missing"),
        ("secrets: {crm: {file: s, hosts: []}}", "secrets.crm.hosts: is an empty list"),
        ("secrets: {crm: {file: s, hosts: [\"https://as.test\"]}}", "`https://as.test` is invalid"),
        ("secrets: {crm: {hosts: [as.test]}}", "secrets.crm: must have exactly one source"),
        ("secrets: {crm: {file: s, env: X, hosts: [as.test]}}", "secrets.crm: must have exactly one source"),
        ("secrets: {crm: {file: gone, hosts: [as.test]}}", "gone cannot be read"),
        ("secrets: {crm: hunter2}", "secrets.crm: must be a map"),
        ("secrets: {CRM: {file: s, hosts: [as.test]}}", "the name is not a valid name"),
        ("secrets: {crm: }", "the entry is empty"),
        (
            "mutual_tls_profiles: {partner: {certificate: cert.pem}}",
            "mutual_tls_profiles.partner.key: `key` is missing",
        ),
    ] {
        refused(&format!("{top}\n"), TOKEN, &[expected]);
    }
    assert!(
        folder("token_url: \"https://as.test/t\", client_secret: {uze: s}")
            .problems()
            .contains("file, env, store, use")
    );
}
