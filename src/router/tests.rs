//! The order of routes and the ways past them, as tables.

use super::*;
use crate::model::connection::{Existing, Inject, UpstreamTls, WithoutToken};
use crate::model::origin::Authority;

struct Rule {
    host: &'static str,
    path: &'static str,
    methods: &'static [Method],
    callers: &'static [u32],
    upgrade: bool,
}

const RULE: Rule = Rule { host: "", path: "/", methods: &[], callers: &[], upgrade: true };

fn host_place(text: &str) -> Place {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, "*")) => (host, PortRule::Any),
        Some((host, port)) => (host, PortRule::Stated(port.parse().unwrap())),
        None => (text, PortRule::Default),
    };
    let pattern = match host.strip_prefix("*.") {
        Some(suffix) => HostPattern::Below(Host::parse(suffix).unwrap()),
        None => HostPattern::Exact(Host::parse(host).unwrap()),
    };
    Place::Host { pattern, port }
}

fn route(rule: &Rule) -> (Route, Callers, &'static str) {
    let place = match PathPrefix::parse(rule.host) {
        Some(prefix) => Place::Mount {
            prefix,
            upstream: Origin::new(Scheme::Https, Authority::parse("up.test").unwrap()),
            base: PathPrefix::root(),
        },
        None => host_place(rule.host),
    };
    let route = Route {
        place,
        path: PathPrefix::parse(rule.path).unwrap(),
        methods: (!rule.methods.is_empty()).then(|| rule.methods.to_vec()),
        tls: UpstreamTls { upgrade: rule.upgrade, ..UpstreamTls::default() },
        inject: Inject::Nothing,
        existing: Existing::default(),
        without_token: WithoutToken::default(),
    };
    let callers = match rule.callers {
        [] => Callers::All,
        list => Callers::Only(list.iter().map(|id| CallerId(*id)).collect()),
    };
    (route, callers, rule.host)
}

fn found(rules: &[Rule], url: &str, caller: Option<u32>) -> String {
    found_by(rules, Method::GET, url, caller)
}

fn found_by(rules: &[Rule], method: Method, url: &str, caller: Option<u32>) -> String {
    let router = Router::new(rules.iter().map(route));
    let (scheme, rest) = url.split_once("://").unwrap();
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let scheme = if scheme == "https" { Scheme::Https } else { Scheme::Http };
    let origin = Origin::new(scheme, Authority::parse(authority).unwrap());
    match router.find(&origin, path, &method, caller.map(CallerId)) {
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
fn a_host_is_matched_at_label_boundaries_and_in_its_one_spelling() {
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
fn the_narrower_route_wins() {
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
fn stated_methods_win_and_a_method_that_none_takes_has_no_route() {
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
fn a_path_with_two_readings_is_refused_only_where_a_prefix_decides() {
    let rules = [Rule { host: "paths.test", path: "/v1", ..RULE }, Rule { host: "whole.test", ..RULE }];
    for path in ["/v1/../x", "/v1%2f..%2fx", "/v1;x", "//v1/x"] {
        assert_eq!(found(&rules, &format!("https://paths.test{path}"), None), "ambiguous");
        assert_eq!(found(&rules, &format!("https://whole.test{path}"), None), "whole.test");
    }
}

#[test]
fn two_callers_have_their_own_routes_for_one_host() {
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
fn a_mount_is_the_longest_prefix_and_never_climbs() {
    let rules = [Rule { host: "/crm", ..RULE }, Rule { host: "/crm/eu", ..RULE }];
    let router = Router::new(rules.iter().map(route));
    let find = |path| router.find_mount(path, &Method::GET, None);
    assert_eq!(find("/crm/x"), (Found::Route(&"/crm"), "/x"));
    assert_eq!(find("/crm"), (Found::Route(&"/crm"), ""));
    assert_eq!(find("/crm/eu/x"), (Found::Route(&"/crm/eu"), "/x"));
    assert_eq!(find("/crmx").0, Found::Unmatched);
    assert_eq!(find("/crm/a%2Fb").0, Found::Route(&"/crm"));
    for path in ["/crm/../x", "/crm/%2e%2e/x", "/crm/a%2f../x", "/crm/..;/x"] {
        assert_eq!(find(path).0, Found::AmbiguousPath, "{path}");
    }
}
