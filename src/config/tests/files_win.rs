//! Files win: routes of stored definitions that would get requests of a file's route.

use serde_json::{Value, json};

use super::files::Folder;
use super::stored::{MAIN, files, merge, stored};

/// Whatever its precedence, a stored route gets no request of a file's route.
#[test]
fn a_stored_route_takes_no_request_of_a_file() {
    let file = |routes: Value| {
        let definition =
            json!({ "name": "file", "client_id": "id", "token_url": "https://as.test/t", "routes": routes });
        let caller = |name: &str, digit: &str| json!({ "name": name, "secret": {"sha256": digit.repeat(64)} });
        json!({ "connections": [definition], "callers": [caller("a", "0"), caller("b", "1")] })
    };
    let mount = |mount: &str| json!({ "mount": mount, "upstream": "https://up.test" });
    let with = |mut route: Value, keys: Value| {
        merge(&mut route, keys);
        route
    };
    let host = |host: &str| json!({ "host": host });
    let cases = [
        // More specific than a file's route.
        (host("api.test"), with(host("api.test"), json!({ "methods": ["GET", "POST"] })), true),
        (host("api.test"), with(host("api.test"), json!({ "path": "/v1" })), true),
        (host("api.test:*"), host("api.test"), true),
        (host("api.test:*"), host("api.test:8443"), true),
        (host("api.test"), host("api.test:443"), true),
        (host("*.test"), host("api.test"), true),
        (host("*.test"), host("*.api.test"), true),
        (with(host("*.test"), json!({ "path": "/v1" })), host("a.b.test"), true),
        (with(host("*.test"), json!({ "methods": ["GET"] })), host("api.test"), true),
        (mount("/m"), mount("/m/n"), true),
        (mount("/"), mount("/m"), true),
        (mount("/m"), with(mount("/m"), json!({ "methods": ["GET"] })), true),
        // The file's route wins, or no request matches both.
        (host("api.test"), host("*.test"), false),
        (host("*.api.test"), host("*.test"), false),
        (host("*.api.test"), host("api.test"), false),
        (host("api.test"), host("api.test:8443"), false),
        (host("api.test"), host("api.test:*"), false),
        (with(host("api.test"), json!({ "path": "/v1" })), host("api.test"), false),
        (with(host("*.test"), json!({ "path": "/v1" })), with(host("api.test"), json!({ "path": "/v10" })), false),
        (
            with(host("*.test"), json!({ "methods": ["GET"] })),
            with(host("a.test"), json!({ "methods": ["POST"] })),
            false,
        ),
        (host("*.test"), with(host("api.test"), json!({ "only_when_named": true })), false),
        (with(host("*.test"), json!({ "only_when_named": true })), host("api.test"), false),
        (mount("/m/n"), mount("/m"), false),
        (mount("/m"), mount("/mn"), false),
        (with(mount("/m"), json!({ "methods": ["GET"] })), mount("/m"), false),
    ];
    for (theirs, own, collides) in cases {
        let folder = Folder::new(&[("main.yaml", &file(json!([theirs])).to_string())]);
        let loaded = folder.with_stored(&[stored("own", json!({ "routes": [own] }))]);
        let problems: Vec<_> = loaded.set_aside.iter().flat_map(|aside| &aside.problems).collect();
        assert_eq!(!problems.is_empty(), collides, "{theirs} {own} {problems:?}");
        let sentence = "would get requests of connections[0].routes[0] (";
        assert!(problems.iter().all(|problem| problem.message.starts_with(sentence)), "{problems:?}");
    }
    let mut theirs = file(json!([host("*.test")]));
    merge(&mut theirs["connections"][0], json!({ "accessible_from": ["a"] }));
    let folder = Folder::new(&[("main.yaml", &theirs.to_string())]);
    let by = |caller: &str| stored("own", json!({ "routes": [host("api.test")], "accessible_from": [caller] }));
    assert_eq!(folder.with_stored(&[by("a")]).set_aside.len(), 1);
    assert_eq!(folder.with_stored(&[by("b")]).set_aside.len(), 0, "no caller may use both");
}

/// A tunnel is intercepted or relayed before its paths are known.
#[test]
fn a_stored_route_decides_on_no_interception_of_a_file() {
    let file = MAIN.replace("host: file.test", "host: \"*.file.test\", path: /v1");
    let own = || json!({ "routes": [{"host": "a.file.test", "path": "/v2", "intercept": false}] });
    let loaded = files(&file).with_stored(&[stored("own", own())]);
    let problem = loaded.set_aside[0].problems[0].to_string();
    assert!(problem.contains("`intercept` differs from connections[0].routes[0]"), "{problem}");
    assert!(
        files(&file.replace("/v1", "/v1, intercept: false")).with_stored(&[stored("own", own())]).set_aside.is_empty()
    );
}
