//! Each kind of mistake is reported with its exact position.

use super::*;

#[test]
fn every_mistake_in_a_connection_is_reported() {
    let text = "\
connections:
  - name: CRM
    client_id: id
    tokn_url: https://login.acme.test/token
    provider: salesforce
    refresh_ahead: 5
    active: yes
    routes:
      - host: \"*\"
        mehods: [GET]
      - mount: /a
        upstream: https://acme.test
        existing: keeps
";
    let expected = [
        "2:5: connections[0].token_url: `token_url` is missing",
        "2:11: connections[0].name: `CRM` is not a valid name",
        "4:5: connections[0].tokn_url: unknown key `tokn_url`; did you mean `token_url`?",
        "5:5: connections[0].provider: `provider` is not built yet; remove it",
        "6:20: connections[0].refresh_ahead: `5` has no unit; write integers with units",
        "7:13: connections[0].active: `yes` is neither true nor false",
        "9:15: connections[0].routes[0].host: `*` has a misplaced `*`",
        "10:9: connections[0].routes[0].mehods: unknown key `mehods`; did you mean `methods`?",
        "13:19: connections[0].routes[1].existing: `keeps` is not a valid value; did you mean `keep`?",
    ];
    check(text, &expected);
}

#[test]
fn top_level_mistakes_are_reported_together() {
    let text = "\
listeners: {proxy: 0.0.0.0:8080, admin: \"[::]:8081\", public: 1.2.3.4:5}
workers: 65
readiness: {wait_for_tokens: 5}
include: nowhere
hosts: {\"*.a.test\": 127.0.0.1, b.test: localhost, 1.2.3.4: 127.0.0.1, c.test: }
trust: [nowhere.pem]
egress: {unmatched: drop, allow_private: [10.1.1.1/8], proxy: x}
callers:
  - {name: a}
  - {name: a, cidr: [10.0.0.0/8]}
  - {secret: {sha256: abc}, unix_user: no such user}
store: {redis: {url: x}}
timeouts: {idle: 0s, connect: 1}
limits: {head: 4KiB, tunnels: 0, replay_body: 0B}
log: {level: loud, colour: red}
interception: {}
nonsense: 1
";
    let expected = [
        "1:41: listeners.admin: listens beyond loopback, but no users are configured",
        "2:10: workers: `65` is not an integer from 1 to 64",
        "3:30: readiness.wait_for_tokens: `5` has no unit",
        "4:10: include: must be a list",
        "5:9: hosts[\"*.a.test\"]: the key is not a plain host name",
        "5:40: hosts[\"b.test\"]: `localhost` is not an address",
        "5:51: hosts[\"1.2.3.4\"]: the key is an address",
        "5:71: hosts[\"c.test\"]: has no address",
        "6:9: trust[0]: nowhere.pem cannot be read (no such file); mount it, or correct the path",
        "7:21: egress.unmatched: `drop` is not a valid value; write one of forward, deny",
        "7:43: egress.allow_private[0]: `10.1.1.1/8` has host bits set",
        "7:63: egress.proxy: the URL is malformed; write http://HOST:PORT",
        "9:5: callers[0]: the caller has no condition",
        "10:12: callers[1].name: another caller is named `a` (line 9)",
        "11:5: callers[2].name: `name` is missing",
        "11:23: callers[2].secret.sha256: is not a SHA-256 digest",
        "11:40: callers[2].unix_user: `no such user` is not a user on this machine",
        "12:16: store.redis: `seal_key` is missing",
        "12:22: store.redis.url: the URL is not a Redis URL",
        "13:18: timeouts.idle: `0s` is zero",
        "13:31: timeouts.connect: `1` has no unit",
        "14:16: limits.head: `4KiB` is out of range; write a size from 8KiB to 1MiB",
        "14:31: limits.tunnels: `0` is not an integer",
        "14:47: limits.replay_body: `0B` is out of range",
        "15:14: log.level: `loud` is not a valid value",
        "15:20: log.colour: unknown key `colour`",
        "16:15: interception.ca_certificate: `ca_certificate` is missing; write the path of a CA certificate",
        "16:15: interception.ca_key: `ca_key` is missing",
        "17:1: nonsense: unknown key `nonsense`",
    ];
    check(text, &expected);
}

#[test]
fn listeners_beyond_loopback_need_callers_or_open() {
    let beyond = "1:19: listeners.proxy[0]: listens beyond loopback, but no callers";
    check("listeners: {proxy: [0.0.0.0:1]}", &[&beyond.replace("1:19", "1:21")]);
    check("listeners: {proxy: 127.0.0.1:8081}", &["1:20: listeners.proxy: two listeners cannot share 127.0.0.1:8081"]);
    check(
        "listeners: {proxy: 127.0.0.1:1, telemetry: 0.0.0.0:1, admin: {name: proxy, address: 127.0.0.1:0}}",
        &["1:44: listeners.telemetry: two listeners", "1:85: listeners.admin.address: another listener is named"],
    );
    check("listeners: {proxy: {name: a, mode: 1}}", &["1:20: listeners.proxy.address: `address` is missing"]);
    check(
        "listeners: {admin: \"unix:/x\"}",
        &["1:20: listeners.admin: `unix:/x` is a Unix socket, which only a proxy listener can use"],
    );
    check(
        "listeners: {proxy: [{address: \"unix:a\", mode: 9}, {address: \"unix:a\"}, \"unix:\", {address: \"1.2.3.4:5\", mode: \"0600\", open: true}]}",
        &[
            "1:47: listeners.proxy[0].mode: `9` is not a file mode; write it in octal",
            "1:72: listeners.proxy[2]: has no path",
            "1:110: listeners.proxy[3].mode: only a Unix socket has a mode",
        ],
    );
    check(
        "callers: [{name: a, listener: [proxy, other]}, {name: b, unix_user: []}, {name: c, certificate: {}}]",
        &[
            "1:39: callers[0].listener[1]: no proxy listener is named `other`; use one of `proxy`",
            "1:69: callers[1].unix_user: is an empty list",
            "1:97: callers[2].certificate.san: `san` is missing",
        ],
    );
    check("listeners: {proxy: []}", &["1:20: listeners.proxy: is an empty list"]);
    check(
        "egress: {no_proxy: [a.test]}",
        &["1:20: egress.no_proxy: has no effect without `proxy`; add `proxy`, or remove `no_proxy`"],
    );
    check(
        "egress: {proxy: \"http://p.test:3128\", no_proxy: [.a.test, \"*\", 10.0.0.0/8, \"[::1]:80\", a.test:80, a b, 10.0.0.1/8]}",
        &[
            "1:99: egress.no_proxy[5]: `a b` is not a host; write a name such as .internal",
            "1:104: egress.no_proxy[6]: `10.0.0.1/8` has host bits set",
        ],
    );
}

#[test]
fn each_key_of_a_connection_is_checked() {
    let at = |keys: &str, expected: &str| {
        check_connection(&format!("GOOD,\n{keys}"), &[&shift(&format!("4:{expected}"), 4)])
    };
    at("tokens: mine", "9: connections[1].tokens: `mine` is not a valid value");
    at("keep_warm: 0s", "12: connections[1].keep_warm: ");
    at("username: ann", "11: connections[1].username: applies only to `grant: password`");
    let missing = "3:5: connections[1].device_authorization_url: `device_authorization_url` is missing";
    check_connection("GOOD,\ngrant: device_code", &[missing]);
    at("pkce: {method: S256}", "7: connections[1].pkce: applies only to `grant: authorization_code`");
    at("authorize_params: {a: b}", "19: connections[1].authorize_params: applies only to `grant: authorization_code`");
    at(
        "redirect_url: \"http://keys.test/oauth/callback\"",
        "15: connections[1].redirect_url: `http://keys.test/oauth/callback` would receive the authorization code",
    );
    at("authorization_url: \"http://as.test/a\"", "20: connections[1].authorization_url: would send the client secret");
    let person = |keys: &str, expected: &str| {
        let whole = format!("GOOD, authorization_url: \"https://as.test/a\",\n{keys}");
        check_connection(&whole, &[&shift(&format!("4:{expected}"), 4)]);
    };
    person("pkce: {method: S512}", "16: connections[1].pkce.method: `S512` is not a valid value");
    person("pkce: {required: true, method: none}", "32: connections[1].pkce.method: contradicts `required: true`");
    person("authorize_params: {state: x}", "20: connections[1].authorize_params.state: the grant sets `state` itself");
    at("grant: client_credential", "8: connections[1].grant: `client_credential` is not a valid value; did you mean");
    let both = [
        "3:5: connections[1].mutual_tls: `mutual_tls` is missing for `send_credentials: tls`",
        "4:20: connections[1].client_secret: there is a secret, but `send_credentials` is tls",
    ];
    check_connection("GOOD,\nclient_secret: s, send_credentials: tls", &both);
    let missing = "3:5: connections[1].client_secret: `client_secret` is missing";
    check_connection("GOOD,\nsend_credentials: basic", &[missing]);
    at("client_secret: s, send_credentials: none", "16: connections[1].client_secret: there is a secret");
    at("client_secret: []", "16: connections[1].client_secret: is an empty list");
    at("client_secret: \"\"", "16: connections[1].client_secret: the secret is empty");
    at("client_secret: {store: x}", "24: connections[1].client_secret.store: no store is available here");
    at("client_secret: {file: x, env: y}", "16: connections[1].client_secret: must have exactly one source");
    at("client_secret: s, basic_encoding: raw", "35: connections[1].basic_encoding: `basic_encoding` applies only to");
    at("authorization_server: {timeout: 0s}", "33: connections[1].authorization_server.timeout: `0s` is zero");
    at("authorization_server: {trust: []}", "31: connections[1].authorization_server.trust: is an empty list");
    at("scopes: [a, \"b\\n\"]", "13: connections[1].scopes[1]: contains a control character");
    at("audience: \"a\\0\"", "11: connections[1].audience: contains a control character");
    at("resource: \"\"", "11: connections[1].resource: is empty");
    at("token_params: {scope: a}", "16: connections[1].token_params.scope: the grant sets `scope` itself");
    at("token_params: {a: [b]}", "19: connections[1].token_params.a: must be a single value");
    at("default_token_lifetime: 0s", "25: connections[1].default_token_lifetime: `0s` is zero");
    at("token_rejected: [{status: 399}]", "27: connections[1].token_rejected[0].status: `399` is not an integer");
    at("token_rejected: [401]", "18: connections[1].token_rejected[0]: must be a map");
    at("accessible_from: [nobody]", "19: connections[1].accessible_from[0]: no caller is named `nobody`");
    at("routes: {host: a.test}", "9: connections[1].routes: must be a list");
    at("provider: {}", "1: connections[1].provider: `provider` is not built yet");
    at("comments: \"${nothing}\"", "11: connections[1].comments: contains `${` without a reference");
}

#[test]
fn token_urls_are_https_and_unambiguous() {
    let at = |url: &str, more: &str, expected: &str| {
        let keys = format!("name: a, client_id: id{more},\ntoken_url: \"{url}\"");
        check_connection(&keys, &[&format!("4:16: connections[1].token_url: {expected}")]);
    };
    at("http://a.test/t", "", "would send the client secret in the clear");
    at("https://u:hunter2@a.test/t", "", "the URL has a user name");
    at("https://a.test/t#x", ", allow_cleartext: true", "the URL has a fragment");
    at("https://127.1/t", "", "the URL has an invalid host");
    let two = format!("hosts: {{login.acme.test: \"127.0.0.1:9443\"}}\nconnections:\n  - {{{GOOD}}}\n");
    accept(&two);
    accept(&two.replace("test/token", "test:9443/token"));
    check(&two.replace("test/token", "test:8443/token"), &["3:43: connections[0].token_url: has port 8443"]);
}

#[test]
fn names_are_unique_and_secrets_are_not_quoted() {
    check(
        &format!("connections:\n  - {{{GOOD}}}\n  - {{{GOOD}}}\n"),
        &["3:12: connections[1].name: another connection is named `crm` (a.yaml:2)"],
    );
    let text = format!("connections:\n  - {{{GOOD}, client_secret: {{hunter2}}, send_credentials: basik}}\n");
    let problems = load_text(&text, Path::new("a.yaml")).unwrap_err().to_string();
    assert!(!problems.contains("hunter2") && problems.contains("contains an unknown key"), "{problems}");
}

#[test]
fn a_file_that_is_not_a_map_is_rejected() {
    check("- a\n", &["1:1: must be a map"]);
    check("a: [\n", &["2:1: "]);
    check("connections: x", &["1:14: connections: must be a list"]);
    check("connections: [x,~]", &["1:15: connections[0]: must be a map", "1:17: connections[1]: the item is empty"]);
}

#[test]
fn every_mistake_in_admin_is_reported() {
    let text = "\
state_dir: [a]
admin:
  editing: perhaps
  hosts: [\"https://a.test\", a.test, a.test:8443]
  users:
    - {name: A, role: manager, token: {sha256: abc}}
    - {name: a, role: owner, token: {env: KEYBEARER_TEST_UNSET}}
    - {name: a, role: viewer, token: same}
    - {name: b, role: viewer, token: same, colour: red}
    - {}
";
    let expected = [
        "1:12: state_dir: must be a single value",
        "3:12: admin.editing: `perhaps` is neither true nor false; write true or false",
        "4:11: admin.hosts[0]: `https://a.test` is not a valid Host value",
        "6:14: admin.users[0].name: `A` is not a valid name",
        "6:48: admin.users[0].token.sha256: is not a SHA-256 digest",
        "7:23: admin.users[1].role: `owner` is not a valid value; write one of viewer, operator, manager",
        "7:43: admin.users[1].token.env: environment variable `KEYBEARER_TEST_UNSET` is not set",
        "8:14: admin.users[2].name: another user is named `a` (line 7)",
        "9:38: admin.users[3].token: is also the token of `a`; give each user its own token",
        "9:44: admin.users[3].colour: unknown key `colour`",
        "10:7: admin.users[4].name: `name` is missing",
        "10:7: admin.users[4].role: `role` is missing",
        "10:7: admin.users[4].token: `token` is missing",
    ];
    check(text, &expected);
    check(
        "listeners: {admin: 0.0.0.0:1}\nadmin: {hosts: [a.test]}\n",
        &["1:20: listeners.admin: listens beyond loopback"],
    );
}

#[test]
fn sign_in_needs_a_provider_roles_and_a_way_back() {
    let sign_in = |keys: &str| format!("admin: {{sign_in: {{{keys}}}}}");
    check(
        &sign_in("claim: /"),
        &[
            "1:18: admin.sign_in.issuer: `issuer` is missing",
            "1:18: admin.sign_in.client_id: `client_id` is missing",
            "1:18: admin.sign_in.roles: `roles` is missing",
            "1:26: admin.sign_in.claim: `/` names no claim",
        ],
    );
    check(
        &sign_in("issuer: http://op.test, client_id: a, roles: {}, redirect_url: https://keys.test/x"),
        &[
            "1:27: admin.sign_in.issuer: the URL would be requested in the clear",
            "1:64: admin.sign_in.roles: maps no group",
            "1:82: admin.sign_in.redirect_url: the URL does not end in /sign-in/callback",
        ],
    );
    let good = "issuer: https://op.test, client_id: a, roles: {a: viewer}";
    let cleartext = sign_in(&format!("{good}, redirect_url: http://keys.test/sign-in/callback"));
    check(&cleartext, &["1:92: admin.sign_in.redirect_url: the URL would receive the authorization code in the clear"]);
    check(
        &sign_in("issuer: https://op.test, client_id: a, roles: {a: admin}"),
        &["1:69: admin.sign_in.roles.a: `admin` is"],
    );
    check(
        &format!("listeners: {{admin: \"10.0.0.1:1\"}}\n{}", sign_in(good)),
        &["2:18: admin.sign_in: has no `redirect_url`, and the admin listener is not on loopback"],
    );
}
