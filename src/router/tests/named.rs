//! Requests that name a connection.

use super::*;

#[track_caller]
fn check_named(rules: &[Rule], url: &str, table: &[(Option<&str>, &str)]) {
    for (named, expected) in table {
        assert_eq!(&found_as(rules, (Method::GET, url), None, *named), expected, "{url} {named:?}");
    }
}

#[test]
fn an_only_when_named_route_matches_only_requests_that_name_it() {
    let own = Rule { host: "a.test", ..RULE };
    let read = Rule { host: "a.test:443", profile: Some("read"), only_when_named: true, ..RULE };
    let erp = Rule { host: "a.test:*", connection: "erp", only_when_named: true, ..RULE };
    let table = [
        (None, "a.test"),
        (Some("crm/default"), "a.test"),
        (Some("crm/read"), "a.test:443"),
        (Some("erp"), "a.test:*"),
        (Some("erp/default"), "a.test:*"),
        (Some("erp/read"), "no route"),
        (Some("crm/write"), "no route"),
        (Some("other"), "no route"),
    ];
    check_named(&[own, read, erp], "https://a.test/x", &table);
    let only = Rule { host: "b.test", only_when_named: true, ..RULE };
    let table = [(None, "no route"), (Some("crm"), "b.test"), (Some("erp"), "no route")];
    check_named(&[only], "https://b.test/", &table);
    check_named(&[only], "https://c.test/", &[(Some("crm"), "unmatched")]);
}

#[test]
fn a_name_without_profile_selects_the_connection_itself_first() {
    let own = Rule { host: "*.a.test", ..RULE };
    let read = Rule { host: "*.a.test:443", profile: Some("read"), ..RULE };
    // A route that states no profile serves every profile by name.
    let named = |serves| Rule { host: "*.a.test", serves, path: "/named", only_when_named: true, ..RULE };
    let rules = [read, own, named(None), named(Some("read"))];
    let url = "https://x.a.test/named/y";
    check_named(&rules, url, &[(None, "*.a.test:443"), (Some("crm"), "*.a.test:443")]);
    let rules = [named(Some("read")), named(None)];
    let named_by = |named| {
        let router = Router::new(rules.iter().zip(["read", "own"]).map(|(rule, bound)| {
            let (route, label, callers, _) = route(rule);
            (route, label, callers, bound)
        }));
        let origin = Origin::new(Scheme::Https, Authority::parse("x.a.test").unwrap());
        let named = Named { connection: "crm", profile: named };
        match router.find(&origin, "/named", &Method::GET, None, Some(named)) {
            Found::Route(bound) => *bound,
            _ => "none",
        }
    };
    assert_eq!(
        [named_by(None), named_by(Some("default")), named_by(Some("read")), named_by(Some("x"))],
        ["own", "own", "read", "none"]
    );
}

#[test]
fn naming_a_connection_does_not_bypass_its_permitted_callers() {
    let rules = [
        Rule { host: "a.test", callers: &[1], ..RULE },
        Rule { host: "a.test:443", connection: "erp", callers: &[2], only_when_named: true, ..RULE },
    ];
    let by = |caller, named| found_as(&rules, (Method::GET, "https://a.test/"), Some(caller), named);
    assert_eq!(by(2, Some("erp")), "a.test:443");
    assert_eq!(by(1, Some("erp")), "not allowed: a.test:443");
    assert_eq!(by(2, Some("crm")), "not allowed: a.test");
    assert_eq!(by(2, None), "not allowed: a.test");
}

#[test]
fn mounts_are_selected_by_name_too() {
    let rules = [
        Rule { host: "/api", ..RULE },
        Rule { host: "/api", profile: Some("read"), only_when_named: true, ..RULE },
        Rule { host: "/api/erp", connection: "erp", only_when_named: true, ..RULE },
    ];
    let router = Router::new(rules.iter().enumerate().map(|(at, rule)| {
        let (route, label, callers, _) = route(rule);
        (route, label, callers, at)
    }));
    let find = |path, connection, profile| {
        let named = Some(connection).filter(|name: &&str| !name.is_empty());
        let named = named.map(|connection| Named { connection, profile });
        router.find_mount(path, &Method::GET, None, named)
    };
    assert_eq!(find("/api/erp/x", "", None), (Found::Route(&0), "/erp/x"));
    assert_eq!(find("/api/erp/x", "erp", None), (Found::Route(&2), "/x"));
    assert_eq!(find("/api/x", "crm", Some("read")), (Found::Route(&1), "/x"));
    assert_eq!(find("/api/x", "crm", None).0, Found::Route(&0));
    assert_eq!(find("/api/x", "erp", None).0, Found::NoRoute);
}
