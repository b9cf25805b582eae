//! Precedence of routes, and attempts to bypass them, as tables.

mod named;

use super::*;
use crate::model::connection::UpstreamTls;
use crate::model::origin::Authority;

#[derive(Clone, Copy)]
struct Rule {
    host: &'static str,
    path: &'static str,
    methods: &'static [Method],
    callers: &'static [u32],
    upgrade: bool,
    connection: &'static str,
    /// `profile` as stated by the route. `serves` as bound to it: without either, the connection itself.
    profile: Option<&'static str>,
    serves: Option<&'static str>,
    only_when_named: bool,
}

const RULE: Rule = Rule {
    host: "",
    path: "/",
    methods: &[],
    callers: &[],
    upgrade: true,
    connection: "crm",
    profile: None,
    serves: None,
    only_when_named: false,
};

fn host_match(text: &str) -> RouteMatch {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, "*")) => (host, PortRule::Any),
        Some((host, port)) => (host, PortRule::Stated(port.parse().unwrap())),
        None => (text, PortRule::Default),
    };
    let pattern = match host.strip_prefix("*.") {
        Some(suffix) => HostPattern::Subdomains(Host::parse(suffix).unwrap()),
        None => HostPattern::Exact(Host::parse(host).unwrap()),
    };
    RouteMatch::Host { pattern, port }
}

fn route(rule: &Rule) -> (Route, Label, Callers, &'static str) {
    let matches = match PathPrefix::parse(rule.host) {
        Some(prefix) => RouteMatch::Mount {
            prefix,
            upstream: Origin::new(Scheme::Https, Authority::parse("up.test").unwrap()),
            base: PathPrefix::root(),
        },
        None => host_match(rule.host),
    };
    let route = Route {
        path: PathPrefix::parse(rule.path).unwrap(),
        methods: (!rule.methods.is_empty()).then(|| rule.methods.to_vec()),
        tls: UpstreamTls { upgrade: rule.upgrade, ..UpstreamTls::default() },
        profile: rule.profile.and_then(Name::parse),
        only_when_named: rule.only_when_named,
        ..Route::sample(matches)
    };
    let callers = match rule.callers {
        [] => Callers::All,
        list => Callers::Only(list.iter().map(|id| CallerId(*id)).collect()),
    };
    let label = Label {
        connection: Name::parse(rule.connection).unwrap(),
        profile: rule.profile.or(rule.serves).and_then(Name::parse).unwrap_or_else(default_profile),
        bare: rule.profile.is_some() || rule.serves.is_none(),
    };
    (route, label, callers, rule.host)
}

fn found(rules: &[Rule], url: &str, caller: Option<u32>) -> String {
    found_by(rules, Method::GET, url, caller)
}

fn found_by(rules: &[Rule], method: Method, url: &str, caller: Option<u32>) -> String {
    found_as(rules, (method, url), caller, None)
}

/// `named` as in the request header: `connection` or `connection/profile`.
fn found_as(rules: &[Rule], (method, url): (Method, &str), caller: Option<u32>, named: Option<&str>) -> String {
    let router = Router::new(rules.iter().map(route));
    let (scheme, rest) = url.split_once("://").unwrap();
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let scheme = if scheme == "https" { Scheme::Https } else { Scheme::Http };
    let origin = Origin::new(scheme, Authority::parse(authority).unwrap());
    let named = named.map(|text| match text.split_once('/') {
        Some((connection, profile)) => Named { connection, profile: Some(profile) },
        None => Named { connection: text, profile: None },
    });
    match router.find(&origin, path, &method, caller.map(CallerId), named) {
        Found::Route(name) => (*name).to_owned(),
        Found::NotAllowed(name) => format!("not allowed: {name}"),
        Found::NoRoute => "no route".to_owned(),
        Found::AmbiguousPath => "ambiguous".to_owned(),
        Found::Unmatched => "unmatched".to_owned(),
    }
}

#[track_caller]
fn check(rules: &[Rule], table: &[(&str, &str)]) {
    for (url, expected) in table {
        assert_eq!(&found(rules, url, None), expected, "{url}");
    }
}

#[test]
fn a_host_matches_at_label_boundaries_in_its_canonical_form() {
    let rules = [Rule { host: "good.test", ..RULE }, Rule { host: "*.wild.test", ..RULE }];
    let table = [
        ("https://good.test/", "good.test"),
        ("https://GOOD.Test./", "good.test"),
        ("https://good.test:443/", "good.test"),
        ("http://good.test/", "good.test"),
        ("http://good.test:80/", "good.test"),
        ("https://good.test:8443/", "unmatched"),
        ("http://good.test:8080/", "unmatched"),
        ("https://a.good.test/", "unmatched"),
        ("https://evilgood.test/", "unmatched"),
        ("https://good.test.evil/", "unmatched"),
        ("https://good.tes/", "unmatched"),
        ("https://a.wild.test/", "*.wild.test"),
        ("https://a.b.wild.test/", "*.wild.test"),
        ("https://wild.test/", "unmatched"),
        ("https://evilwild.test/", "unmatched"),
        ("https://wild.test.evil/", "unmatched"),
    ];
    check(&rules, &table);
}

#[test]
fn ports_follow_the_contract() {
    let rules = [
        Rule { host: "tls.test", ..RULE },
        Rule { host: "plain.test", upgrade: false, ..RULE },
        Rule { host: "port.test:9443", ..RULE },
        Rule { host: "any.test:*", ..RULE },
        Rule { host: "any.test:7", ..RULE },
    ];
    let table = [
        ("http://tls.test:443/", "tls.test"),
        ("https://tls.test:80/", "unmatched"),
        ("http://plain.test/", "plain.test"),
        ("https://plain.test/", "unmatched"),
        ("http://port.test:9443/", "port.test:9443"),
        ("https://port.test:9443/", "port.test:9443"),
        ("https://port.test/", "unmatched"),
        ("http://any.test:8/", "any.test:*"),
        ("http://any.test:7/", "any.test:7"),
    ];
    check(&rules, &table);
}

#[test]
fn the_more_specific_route_wins() {
    let rules = [
        Rule { host: "*.test", ..RULE },
        Rule { host: "*.a.test", ..RULE },
        Rule { host: "x.a.test", path: "/v1", ..RULE },
        Rule { host: "x.a.test:443", ..RULE },
    ];
    let table = [
        ("https://b.test/", "*.test"),
        ("https://y.a.test/", "*.a.test"),
        ("https://z.y.a.test/", "*.a.test"),
        ("https://x.a.test/v1/x", "x.a.test:443"),
        ("http://x.a.test/v1/x", "x.a.test"),
    ];
    check(&rules, &table);
}

#[test]
fn a_method_that_no_route_lists_has_no_route() {
    let rules = [
        Rule { host: "a.test", path: "/v1", ..RULE },
        Rule { host: "a.test", path: "/v1/deep", methods: &[Method::POST], ..RULE },
        Rule { host: "b.test", methods: &[Method::GET], ..RULE },
    ];
    assert_eq!(found_by(&rules, Method::POST, "https://b.test/", None), "no route");
    assert_eq!(found_by(&rules, Method::GET, "https://b.test/", None), "b.test");
    assert_eq!(found_by(&rules, Method::GET, "https://a.test/v2", None), "no route");
    assert_eq!(found_by(&rules, Method::GET, "https://a.test/v10", None), "no route");
    assert_eq!(found_by(&rules, Method::GET, "https://a.test/v1/deep", None), "a.test");
}

#[test]
fn a_route_that_lists_methods_wins_over_an_equal_one_without() {
    let write = [Method::POST, Method::PATCH];
    for host in ["a.test", "*.test", "/api"] {
        let all = Rule { host, ..RULE };
        let some = Rule { methods: &[Method::POST, Method::PATCH], ..all };
        for (rules, names) in [([all, some], ["all", "some"]), ([some, all], ["some", "all"])] {
            let router = Router::new(rules.iter().zip(names).map(|(rule, name)| {
                let (route, label, callers, _) = route(rule);
                (route, label, callers, name)
            }));
            let origin = Origin::new(Scheme::Https, Authority::parse("a.test").unwrap());
            for method in [Method::GET, Method::POST, Method::PATCH, Method::DELETE] {
                let found = match host {
                    "/api" => router.find_mount("/api/x", &method, None, None).0,
                    _ => router.find(&origin, "/x", &method, None, None),
                };
                let expected = if write.contains(&method) { "some" } else { "all" };
                assert_eq!(found, Found::Route(&expected), "{host} {names:?} {method}");
            }
        }
    }
}

#[test]
fn a_path_is_ambiguous_only_if_a_server_could_read_it_as_one_of_another_route() {
    let rules = [
        Rule { host: "a.test", path: "/v1", ..RULE },
        Rule { host: "b.test", path: "/v1", ..RULE },
        Rule { host: "b.test:443", path: "/v1/admin", ..RULE },
        Rule { host: "whole.test", ..RULE },
    ];
    let escapes =
        ["/v1/../x", "/v1/..", "/v1/%2e%2e/x", "/v1/..%2fx", "/v1%2fx", "/v1%5cx", "/v1\\x", "/v1;x", "//v1/x"];
    let double =
        ["/v1/%252e%252e/x", "/x/%252e%252e/v1", "/x/..%2fv1/", "/v1/..;/x", "/v1/x/..%5c..%5cy", "/v1/..%00/x"];
    for path in escapes.iter().chain(&double) {
        assert_eq!(found(&rules, &format!("https://a.test{path}"), None), "ambiguous", "{path}");
        assert_eq!(found(&rules, &format!("https://whole.test{path}"), None), "whole.test", "{path}");
    }
    let below =
        ["/v1/a%2Fb", "/v1/./x", "/v1//x", "/v1/a;b", "/v1/a%5Cb", "/v1/a/../b", "/v1/%252F", "/v1/%00", "/v1/x%"];
    for path in below.iter().chain(&["/v1/a%2F..%2Fb", "/%76%31/x", "/v%31", "/v1/%61dmin"]) {
        assert_eq!(found(&rules, &format!("https://a.test{path}"), None), "a.test", "{path}");
    }
    for path in ["/v2/a%2Fb", "/v10/../x", "/V1/%2E"] {
        assert_eq!(found(&rules, &format!("https://a.test{path}"), None), "no route", "{path}");
    }
    let table = [
        ("https://b.test/v1/%61dmin/x", "b.test:443"),
        ("https://b.test/v1/admin%2Fx", "ambiguous"),
        ("https://b.test/v1/x%2F..%2Fadmin", "ambiguous"),
        ("https://b.test/v1/admin/a%2Fb", "b.test:443"),
        ("https://b.test/v1/admin;x", "ambiguous"),
        ("https://b.test/v1/admin%3Fx", "ambiguous"),
        ("https://b.test/v1/x%2Fadmin", "b.test"),
    ];
    check(&rules, &table);
}

#[test]
fn callers_have_separate_routes_for_one_host() {
    let rules = [
        Rule { host: "a.test", path: "/", callers: &[1], ..RULE },
        Rule { host: "a.test:443", callers: &[2], ..RULE },
        Rule { host: "b.test", callers: &[1], ..RULE },
    ];
    assert_eq!(found(&rules, "https://a.test/", Some(1)), "a.test");
    assert_eq!(found(&rules, "https://a.test/", Some(2)), "a.test:443");
    assert_eq!(found(&rules, "https://a.test/", Some(3)), "not allowed: a.test:443");
    assert_eq!(found(&rules, "https://b.test/", Some(2)), "not allowed: b.test");
    assert_eq!(found(&rules, "https://b.test/", None), "not allowed: b.test");
}

#[test]
fn the_longest_mount_prefix_wins_and_dot_segments_never_leave_it() {
    let rules = [Rule { host: "/crm", ..RULE }, Rule { host: "/crm/eu", ..RULE }];
    let router = Router::new(rules.iter().map(route));
    let find = |path| router.find_mount(path, &Method::GET, None, None);
    assert_eq!(find("/crm/x"), (Found::Route(&"/crm"), "/x"));
    assert_eq!(find("/crm"), (Found::Route(&"/crm"), ""));
    assert_eq!(find("/crm/eu/x"), (Found::Route(&"/crm/eu"), "/x"));
    assert_eq!(find("/crmx").0, Found::Unmatched);
    assert_eq!(find("/crm/a%2Fb"), (Found::Route(&"/crm"), "/a%2Fb"));
    assert_eq!(find("/%63rm/%61?"), (Found::Route(&"/crm"), "/%61?"));
    assert_eq!(find("/crm/a/../b"), (Found::Route(&"/crm"), "/a/../b"));
    assert_eq!(find("/crm/%65u/a%2Fb"), (Found::Route(&"/crm/eu"), "/a%2Fb"));
    assert_eq!(find("/x%2Fcrm").0, Found::Unmatched);
    for path in
        ["/crm/../x", "/crm/%2e%2e/x", "/crm/a%2f../../x", "/crm/..;/x", "/crm%2Fx", "/crm/a%2F..%2Feu/x", "/crm/eu/.."]
    {
        assert_eq!(find(path).0, Found::AmbiguousPath, "{path}");
    }
}

#[test]
fn a_tunnel_uses_the_best_route_of_its_origin() {
    let rules = [
        Rule { host: "*.a.test", ..RULE },
        Rule { host: "b.a.test", path: "/v1", callers: &[1], ..RULE },
        Rule { host: "b.a.test:*", callers: &[2], ..RULE },
        Rule { host: "c.test:9443", callers: &[1], ..RULE },
    ];
    let router = Router::new(rules.iter().map(route));
    let best = |authority: &str, caller: u32| {
        let origin = Origin::new(Scheme::Https, Authority::parse(authority).unwrap());
        router.best_route(&origin, Some(CallerId(caller))).copied()
    };
    assert_eq!(best("b.a.test", 1), Some("b.a.test"), "regardless of path");
    assert_eq!(best("b.a.test", 2), Some("b.a.test:*"), "the best that the caller may use");
    assert_eq!(best("b.a.test", 3), Some("*.a.test"));
    assert_eq!(best("x.a.test", 3), Some("*.a.test"));
    assert_eq!(best("c.test:9443", 3), Some("c.test:9443"), "the best of all, since the caller may use none");
    assert_eq!((best("c.test", 1), best("a.test", 1)), (None, None));
    let origin = Origin::new(Scheme::Https, Authority::parse("b.a.test").unwrap());
    let all: Vec<_> = router.routes_for(&origin, Some(CallerId(2))).map(|(host, may)| (*host, may)).collect();
    assert_eq!(all, [("b.a.test", false), ("b.a.test:*", true), ("*.a.test", true)]);
}
