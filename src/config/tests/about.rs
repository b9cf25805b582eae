//! Keys that describe a connection, and `accessible_from: application`.

use super::*;
use crate::clock::Clock;
use crate::model::time::{parse_rfc3339, rfc3339};

const CALLERS: &str = "callers:\n  - {name: nightly, cidr: [127.0.0.0/8], application: billing}\n  - {name: web, cidr: \
                       [127.0.0.0/8], application: shop}\n  - {name: daily, cidr: [127.0.0.0/8], application: billing}\n";

fn text(keys: &str) -> String {
    format!("{CALLERS}connections:\n- {{{GOOD}, {keys}}}\n")
}

fn names(list: Option<&[crate::model::Name]>) -> Option<Vec<&str>> {
    list.map(|names| names.iter().map(|name| name.as_str()).collect())
}

#[test]
fn callers_of_the_same_application_may_use_the_connection() {
    let loaded = accept(&text("application: billing, accessible_from: application"));
    let connection = &loaded.model.connections[0];
    assert_eq!(connection.application.as_deref(), Some("billing"));
    assert_eq!(names(connection.accessible_from.as_deref()), Some(vec!["daily", "nightly"]));
    let loaded = accept(&text("application: payroll, accessible_from: application"));
    assert_eq!(names(loaded.model.connections[0].accessible_from.as_deref()), Some(vec![]));
    assert_eq!(loaded.warnings[0].message, "no caller has this `application`");
    assert_eq!(accept(&text("application: billing")).model.connections[0].accessible_from, None);
}

#[test]
fn access_by_application_needs_an_application() {
    for (keys, expected) in [
        ("accessible_from: application", "accessible_from: needs the connection's `application`, which is missing"),
        (
            "accessible_from: applicatoin",
            "accessible_from: `applicatoin` is not a valid value; did you mean `application`?",
        ),
        ("accessible_from: application, application: \"\"", "application: is empty"),
        ("accessible_from: [application]", "accessible_from[0]: no caller is named `application`"),
    ] {
        let Err(problems) = load_text(&text(keys), Path::new("a.yaml")) else { panic!("accepted {keys}") };
        let shown = problems.to_string();
        assert!(shown.lines().count() == 1 && shown.contains(expected), "{keys}\n{shown}");
    }
}

#[test]
fn a_logo_is_an_unambiguous_https_url() {
    let loaded = accept(&text("logo_url: \"https://acme.test/logo.png?v=2\""));
    assert_eq!(loaded.model.connections[0].logo_url.as_ref().unwrap().as_str(), "https://acme.test/logo.png?v=2");
    for (url, expected) in [
        ("http://acme.test/l.png", "the URL is not https"),
        ("https://u:p@acme.test/l.png", "the URL has a user name"),
        ("https://<host>/l.png", "the placeholder `<host>`"),
        ("data:image/png;base64,AA", "the URL is malformed"),
    ] {
        let Err(problems) = load_text(&text(&format!("logo_url: \"{url}\"")), Path::new("a.yaml")) else {
            panic!("{url}")
        };
        assert!(problems.to_string().contains(expected), "{problems}");
    }
}

#[test]
fn a_client_secret_that_expires_within_30_days_is_a_warning() {
    let now = Clock::system().now().wall;
    let days = |days: u64| Duration::from_secs(days * 24 * 3600);
    let minute = Duration::from_secs(60);
    for (at, expected) in [
        (now - days(1), Some("the client secret expired on")),
        (now + days(30) - minute, Some("the client secret expires on")),
        (now + days(30) + minute, None),
    ] {
        let keys = format!("client_secret: \"${{env:PATH}}\", client_secret_expires_at: {}", rfc3339(at));
        let loaded = accept(&text(&keys));
        assert_eq!(loaded.model.connections[0].client_secret_expires_at, parse_rfc3339(&rfc3339(at)));
        let warnings: Vec<_> = loaded.warnings.iter().map(|warning| warning.message.as_str()).collect();
        assert_eq!(warnings.len(), expected.iter().count(), "{warnings:?}");
        assert!(expected.is_none_or(|expected| warnings[0].starts_with(expected)), "{warnings:?}");
    }
    for (keys, expected) in [
        ("client_secret: x, client_secret_expires_at: tomorrow", "`tomorrow` is not a timestamp"),
        ("client_secret_expires_at: 2999-01-01T00:00:00Z", "there is no `client_secret` that could expire"),
    ] {
        let Err(problems) = load_text(&text(keys), Path::new("a.yaml")) else { panic!("accepted {keys}") };
        assert!(problems.to_string().contains(expected), "{problems}");
    }
}
