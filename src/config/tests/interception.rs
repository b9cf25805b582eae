//! `interception` with its CA, and `intercept` at the routes.

use std::time::Duration;

use super::files::Folder;
use super::*;
use crate::clock::Clock;
use crate::model::origin::Host;
use crate::tls::authority::make_ca;

const DAY: Duration = Duration::from_secs(24 * 3600);
const TOP: &str = "interception: {ca_certificate: ca.pem, ca_key: {file: ca.key}}\n";

/// Files with a CA that has `lifetime_left`.
fn folder(main: &str, lifetime_left: Duration) -> Folder {
    let created_at = Clock::system().now().wall + lifetime_left - 3650 * DAY;
    let created = make_ca("x", &[] as &[Host], created_at).unwrap();
    let other = make_ca("x", &[] as &[Host], created_at).unwrap();
    Folder::new(&[
        ("main.yaml", main),
        ("ca.pem", &created.certificate_pem),
        ("ca.key", created.key_pem.expose()),
        ("other.key", other.key_pem.expose()),
        ("leaf.pem", include_str!("expired.pem")),
        ("s", "secret"),
    ])
}

fn routes(routes: &str) -> String {
    format!("connections:\n  - {{{GOOD}, routes: [{routes}]}}\n")
}

#[test]
fn a_ca_is_read_with_its_key() {
    let loaded = folder(&format!("{TOP}{}", routes("{host: a.test}")), 31 * DAY).accept();
    let read = loaded.model.interception.unwrap();
    assert_eq!((read.chain.len(), loaded.warnings), (1, vec![]));
    let names: Vec<_> = loaded.files.iter().map(|file| file.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["ca.key", "ca.pem", "main.yaml"], "certificate and key are watched");
    assert!(loaded.model.connections[0].routes[0].intercept);
}

#[test]
fn a_ca_that_expires_soon_is_a_warning_and_an_expired_one_is_a_problem() {
    let text = format!("{TOP}{}", routes(""));
    let warnings = folder(&text, 29 * DAY).accept().warnings;
    assert_eq!((warnings.len(), warnings[0].path.as_str()), (1, "interception.ca_certificate"));
    assert!(warnings[0].message.contains("ca.pem expires on "), "{}", warnings[0]);
    let problems = folder(&text, Duration::ZERO).problems();
    assert!(
        problems.contains("interception.ca_certificate: ") && problems.contains("ca.pem expired on "),
        "{problems}"
    );
}

#[test]
fn a_wrong_certificate_or_key_of_the_ca_is_a_problem() {
    for (keys, path, message) in [
        ("ca_certificate: leaf.pem, ca_key: {file: ca.key}", "ca_certificate", "is not a CA certificate"),
        ("ca_certificate: s, ca_key: {file: ca.key}", "ca_certificate", "holds no certificate"),
        ("ca_certificate: nowhere, ca_key: {file: ca.key}", "ca_certificate", "cannot be read (no such file)"),
        ("ca_certificate: ca.pem, ca_key: {file: other.key}", "ca_key", "does not belong to the certificate"),
        ("ca_certificate: ca.pem, ca_key: {file: s}", "ca_key", "is not an unencrypted private key"),
        ("ca_certificate: ca.pem", "ca_key", "`ca_key` is missing"),
    ] {
        let problems = folder(&format!("interception: {{{keys}}}\n{}", routes("")), 31 * DAY).problems();
        assert_eq!(problems.lines().count(), 1, "{keys}: {problems}");
        assert!(problems.contains(&format!(" interception.{path}: ")) && problems.contains(message), "{problems}");
        assert!(!problems.contains("PRIVATE KEY"), "{problems}");
    }
}

#[test]
fn intercept_needs_a_ca_and_a_host() {
    check(
        &routes("{host: a.test, intercept: true}, {mount: /x, upstream: \"https://b.test\", intercept: false}"),
        &[
            "2:111: connections[0].routes[0].intercept: there is no `interception`",
            "2:169: connections[0].routes[1].intercept: `intercept` applies only to `host`",
        ],
    );
    folder(&format!("{TOP}{}", routes("{host: a.test, intercept: true}")), 31 * DAY).accept();
}

#[test]
fn a_connection_whose_tunnels_are_relayed_is_one_warning() {
    let two = "{host: a.test, intercept: false}, {host: b.test, intercept: false}, {host: c.test}";
    for top in [TOP, ""] {
        let loaded = folder(&format!("{top}{}", routes(two)), 31 * DAY).accept();
        let warnings: Vec<_> = loaded.warnings.iter().map(|warning| warning.path.as_str()).collect();
        assert_eq!(warnings, ["connections[0].routes[0].intercept"], "{top}");
        assert!(loaded.warnings[0].message.contains("gets no token"));
        let routes: Vec<_> = loaded.model.connections[0].routes.iter().map(|route| route.intercept).collect();
        assert_eq!(routes, [false, false, true]);
    }
}

#[test]
fn routes_of_one_host_and_port_must_agree() {
    let both =
        |one: &str, other: &str| routes(&format!("{{host: {one}, intercept: false}}, {{host: {other}, path: /b}}"));
    for (one, other, agree) in [
        ("a.test", "a.test", false),
        ("a.test", "\"a.test:443\"", false),
        ("\"*.a.test\"", "\"*.a.test\"", false),
        ("a.test", "\"a.test:444\"", true),
        ("a.test", "\"a.test:*\"", true),
        ("\"*.a.test\"", "b.a.test", true),
    ] {
        let folder = folder(&format!("{TOP}{}", both(one, other)), 31 * DAY);
        if agree {
            folder.accept();
        } else {
            let problems = folder.problems();
            assert!(
                problems.contains("connections[0].routes[1]: `intercept` differs from connections[0].routes[0]"),
                "{problems}"
            );
        }
    }
    let callers = |names: &str| {
        format!(
            "{TOP}callers: [{{name: a, secret: {{file: s}}}}, {{name: b, secret: {{file: s}}}}]\nconnections:\n  - {{{GOOD}, \
            accessible_from: [a], routes: [{{host: a.test, intercept: false}}]}}\n  - {{{}, accessible_from: {names}, \
            routes: [{{host: a.test, path: /b}}]}}\n",
            GOOD.replace("crm", "erp")
        )
    };
    folder(&callers("[b]"), 31 * DAY).accept();
    folder(&callers("[a, b]"), 31 * DAY).problems();
}
