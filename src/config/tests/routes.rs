//! Mistakes in routes, and routes that match the same requests.

use super::*;

#[test]
fn each_key_of_a_route_is_checked() {
    check_route("path: /", "4:0: connections[0].routes[0]: the route has neither");
    check_route(
        "host: a.test, mount: /a, upstream: \"https://a.test\"",
        "4:22: connections[0].routes[0].mount: the route has both",
    );
    check_route("mount: /a", "4:0: connections[0].routes[0].upstream: `upstream` is missing");
    check_route(
        "host: a.test, upstream: \"https://a.test\"",
        "4:25: connections[0].routes[0].upstream: `upstream` applies only to",
    );
    check_route(
        "mount: /a, upstream: \"http://a.test\"",
        "4:22: connections[0].routes[0].upstream: would send the token in the clear",
    );
    check_route(
        "mount: /a, upstream: \"https://a.test\", upstream_tls: false",
        "4:22: connections[0].routes[0].upstream: is https",
    );
    check_route(
        "mount: /a, upstream: \"https://a.test\", path: /b",
        "4:46: connections[0].routes[0].path: `path` applies only to",
    );
    check_route(
        "mount: a, upstream: \"https://a.test\"",
        "4:8: connections[0].routes[0].mount: `a` is not a plain path",
    );
    check_route("host: a.test, path: /a/../b", "4:21: connections[0].routes[0].path: `/a/../b` is not a plain path");
    check_route("host: a.test, methods: [get]", "4:25: connections[0].routes[0].methods[0]: `get` is in lower case");
    check_route("host: a.test, methods: [TRACE]", "4:25: connections[0].routes[0].methods[0]: `TRACE` never");
    check_route("host: a.test, methods: []", "4:24: connections[0].routes[0].methods: is an empty list");
    check_route("host: a.test, inject: []", "4:23: connections[0].routes[0].inject: is an empty list");
    check_route(
        "host: a.test, inject: [none]",
        "4:24: connections[0].routes[0].inject[0]: `none` is not allowed in a list",
    );
    check_route(
        "host: a.test, inject: [{query: t}, {query: t, connection: b}]",
        "4:36: connections[0].routes[0].inject[1]: two tokens share this injection point",
    );
    check_route(
        "host: a.test, inject: [{query: t}, {header: X-A}]",
        "4:36: connections[0].routes[0].inject[1]: is a second injection point for the connection's own token",
    );
    check_route(
        "host: a.test, inject: [{query: t, connection: absent}]",
        "4:0: connections[0].routes[0]: `inject` names the connection `absent`, which does not exist",
    );
    check_route(
        "host: a.test, inject: {query: t, connection: b}",
        "4:46: connections[0].routes[0].inject.connection: `connection` is allowed only in a list",
    );
    check_route(
        "host: a.test, inject: {query: t, scheme: x}",
        "4:42: connections[0].routes[0].inject.scheme: cannot be combined with `query`",
    );
    check_route(
        "host: a.test, inject: {query: a&b}",
        "4:31: connections[0].routes[0].inject.query: `a&b` is not a parameter name",
    );
    check_route(
        "host: a.test, strip: all",
        "4:22: connections[0].routes[0].strip: `all` is not a valid value; write `known`, or a list of names",
    );
    check_route("host: a.test, strip: []", "4:22: connections[0].routes[0].strip: is an empty list");
    check_route(
        "host: a.test, strip: [known, \"X Y\"]",
        "4:30: connections[0].routes[0].strip[1]: `X Y` is not a header or parameter name",
    );
    check_route(
        "host: a.test, strip: [\"?a&b\"]",
        "4:23: connections[0].routes[0].strip[0]: `?a&b` is not a header or parameter name",
    );
    check_route(
        "host: a.test, strip: [Host]",
        "4:23: connections[0].routes[0].strip[0]: `Host` is not a header or parameter name",
    );
    check_route(
        "host: a.test, strip: [authorization_]",
        "4:23: connections[0].routes[0].strip[0]: is an injection point of the route; remove it: `existing` decides",
    );
    check_route(
        "host: a.test, inject: {query: key}, strip: [\"?key\"]",
        "4:45: connections[0].routes[0].strip[0]: is an injection point of the route",
    );
    check_route(
        "host: a.test, set_headers: {Host: x}",
        "4:29: connections[0].routes[0].set_headers.Host: `Host` cannot be set",
    );
    check_route(
        "host: a.test, set_headers: {authorization: x}",
        "4:29: connections[0].routes[0].set_headers.authorization: the token is injected into `authorization`",
    );
    check_route(
        "host: a.test, set_headers: {X-A: \"a\\r\\nb\"}",
        "4:34: connections[0].routes[0].set_headers.X-A: contains characters that headers do not allow",
    );
    check_route("host: a.test, inject: {header: Host}", "4:32: connections[0].routes[0].inject.header: `Host` cannot");
    check_route(
        "host: a.test, inject: {scheme: \"a b\"}",
        "4:32: connections[0].routes[0].inject.scheme: `a b` is not",
    );
    check_route(
        "host: a.test, upstream_tls: {server_name: a b}",
        "4:43: connections[0].routes[0].upstream_tls.server_name: `a b`",
    );
    check_route(
        "host: a.test, intercept: true",
        "4:26: connections[0].routes[0].intercept: there is no `interception`",
    );
    check_route("host: a.test, without_token: pass", "4:30: connections[0].routes[0].without_token: `pass` is not");
}

fn two_routes(first: &str, second: &str) -> String {
    let other = GOOD.replace("crm", "maps");
    format!(
        "callers: [{{name: x, cidr: [10.0.0.0/8]}}, {{name: y, cidr: [11.0.0.0/8]}}]\nconnections:\n  - {{{GOOD}, {first}}}\n  - {{{other},\n    {second}}}\n"
    )
}

#[test]
fn equal_routes_for_one_caller_are_a_problem() {
    let clash = |first: &str, second: &str| {
        check(
            &two_routes(first, second),
            &["5:14: connections[1].routes[0]: matches the same requests as connections[0].routes[0] (a.yaml:3)"],
        )
    };
    let apart = |first: &str, second: &str| drop(accept(&two_routes(first, second)));
    clash("routes: [{host: a.test}]", "routes: [{host: A.test., path: /}]");
    clash("routes: [{host: a.test, methods: [GET, PUT]}]", "routes: [{host: a.test, methods: [PUT]}]");
    clash(
        "routes: [{host: \"*.a.test:1\"}], accessible_from: [x, y]",
        "routes: [{host: \"*.a.test:1\"}], accessible_from: [y]",
    );
    clash(
        "routes: [{mount: /a, upstream: \"https://a.test\"}]",
        "routes: [{mount: /a/, upstream: \"https://b.test\"}]",
    );
    apart("routes: [{host: a.test}]", "routes: [{host: a.test, methods: [GET]}]");
    apart("routes: [{host: a.test}]", "routes: [{host: \"a.test:443\"}, {host: a.test, path: /a}]");
    apart("routes: [{host: a.test}], accessible_from: [x]", "routes: [{host: a.test}], accessible_from: [y]");
    apart("routes: [{host: a.test}]", "routes: [{host: a.test}], accessible_from: []");
    apart("routes: [{host: a.test, methods: [GET]}]", "routes: [{host: a.test, methods: [PUT]}]");
}
