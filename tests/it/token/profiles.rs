//! Profiles: several tokens of one client, chosen by the route or the request, never mixed up.
//!
//! Not here: how routes are ranked (`src/router`), which configurations are valid (`src/config`).

use std::process::Output;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;

use crate::rig::manager::{MANAGER, call};
use crate::rig::peers::{AuthorizationServer, Peers, Upstream};
use crate::rig::raw::{self, RawResponse};
use crate::rig::scripted::{Received, Reply, Scripted};
use crate::rig::sidecar::{Sidecar, program};

const TIMEOUT: Duration = Duration::from_secs(20);
const APPLIED: &str = "keybearer_config_reloads_total{outcome=\"applied\"}";

/// A field of the form; none of the values here is escaped.
fn field(request: &Received, name: &str) -> String {
    let body = String::from_utf8_lossy(&request.body).into_owned();
    let mut pairs = body.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(own, _)| *own == name).map(|(_, value)| value.to_owned()).unwrap_or_default()
}

/// A token endpoint whose tokens describe their request: `grant.scope.audience.N`; refuses the scope `bad`.
async fn describing_server() -> Scripted {
    Scripted::start(|request, before| {
        let parts = ["grant_type", "scope", "audience"].map(|name| field(request, name));
        if parts[1] == "bad" {
            return Reply::json(400, &json!({"error": "invalid_scope"}));
        }
        Reply::token(&format!("{}.{before}", parts.join(".")), 3600)
    })
    .await
}

fn top(upstream: &Scripted, hosts: &[&str]) -> String {
    let hosts: Vec<_> = hosts.iter().map(|host| format!("{host}: \"{}\"", upstream.address)).collect();
    format!(
        "listeners: {{proxy: \"127.0.0.1:0\", admin: \"127.0.0.1:0\"}}\n\
         admin: {{users: [{{name: ops, role: manager, token: {MANAGER}}}]}}\nhosts: {{{}}}\nconnections:\n",
        hosts.join(", ")
    )
}

/// The connection `crm` with the profiles `write` and `person`, routed by `api.test`, `api.test/write` and by name.
fn crm(server: &Scripted, write: &str) -> String {
    format!(
        "- {{name: crm, client_id: id, token_url: \"http://{}/token\", scopes: [read], audience: own, username: u, password: p,\n   \
         profiles: [{{name: write, scopes: [{write}], audience: other}}, {{name: person, grant: password, scopes: []}}],\n   \
         routes: [{{host: api.test, upstream_tls: false}}, {{host: api.test, path: /write, profile: write, upstream_tls: false}},\n   \
         {{host: api.test, only_when_named: true, upstream_tls: false}}]}}\n",
        server.address
    )
}

/// The token that the upstream received, without its number; else the proxy's status and error code.
async fn token_or_error(sidecar: &Sidecar, upstream: &Scripted, url: &str, lines: &str) -> String {
    let before = upstream.count();
    let response = raw::get_through(sidecar.proxy(), url, lines).await;
    let received = upstream.received();
    match received.get(before) {
        None => format!("{} {}", response.status, response.code()),
        Some(request) => {
            assert!(!request.head.to_ascii_lowercase().contains("\nkeybearer-"), "{}", request.head);
            let token = request.values("authorization").join(" + ").replace("Bearer ", "");
            token.rsplit_once('.').map_or(token.clone(), |(request, _)| request.to_owned())
        }
    }
}

fn named(name: &str) -> String {
    format!("Keybearer-Connection: {name}\r\n")
}

const OWN: &str = "client_credentials.read.own";
const WRITE: &str = "client_credentials.write.other";
const PERSON: &str = "password..own";

#[tokio::test]
async fn a_profile_is_selected_by_the_route_or_the_request() {
    let (server, upstream) = (describing_server().await, Scripted::upstream().await);
    let sidecar = Sidecar::start(&(top(&upstream, &["api.test", "free.test"]) + &crm(&server, "write"))).await;
    let (root, write) = ("http://api.test/x", "http://api.test/write/x");
    for (url, name, expected) in [
        (root, None, OWN),
        (write, None, WRITE),
        (root, Some("crm"), OWN),
        (root, Some("crm/default"), OWN),
        (root, Some("crm/write"), WRITE),
        (root, Some("crm/person"), PERSON),
        // A connection's name alone leaves the profile to the route.
        (write, Some("crm"), WRITE),
        (write, Some("crm/default"), OWN),
        (write, Some("crm/person"), PERSON),
        (root, Some("crm/read"), "403 no_route"),
        (root, Some("erp"), "403 no_route"),
        (root, Some("erp/write"), "403 no_route"),
        // No route matches the host, so no token is sent.
        ("http://free.test/x", Some("crm"), ""),
        ("http://free.test/x", None, ""),
    ] {
        let lines = name.map(named).unwrap_or_default();
        assert_eq!(token_or_error(&sidecar, &upstream, url, &lines).await, expected, "{url} {name:?}");
    }
    for bad in ["", "crm/", "/write", "CRM", "crm, erp", "crm/a/b", "crm write"] {
        assert_eq!(token_or_error(&sidecar, &upstream, root, &named(bad)).await, "400 bad_request_target", "{bad:?}");
    }
    let twice = named("crm") + &named("crm");
    assert_eq!(token_or_error(&sidecar, &upstream, root, &twice).await, "400 bad_request_target");
    assert_eq!(server.count(), 3, "one token request per definition");
    let refused = raw::get_through(sidecar.proxy(), root, &named("crm/read")).await.json();
    assert_eq!((&refused["code"], &refused["connection"]), (&json!("no_route"), &Value::Null), "{refused}");

    for (profile, injected) in [("default", 4.0), ("write", 3.0), ("person", 2.0)] {
        let labels = format!("connection=\"crm\",profile=\"{profile}\"");
        let series = format!("keybearer_injections_total{{{labels},outcome=\"injected\"}}");
        assert_eq!(sidecar.metric(&series).await, injected, "{series}");
        let requests =
            format!("keybearer_requests_total{{{labels},caller=\"\",origin=\"upstream\",status_class=\"2xx\"}}");
        assert_eq!(sidecar.metric(&requests).await, injected, "{requests}");
        assert_eq!(sidecar.metric(&format!("keybearer_tokens{{{labels},state=\"fresh\"}}")).await, 1.0, "{profile}");
        assert!(sidecar.metric(&format!("keybearer_token_expiry_timestamp_seconds{{{labels}}}")).await > 0.0);
        let grant = if profile == "person" { "password" } else { "client_credentials" };
        let granted = format!("keybearer_token_requests_total{{{labels},grant=\"{grant}\",outcome=\"ok\"}}");
        assert_eq!(sidecar.metric(&granted).await, 1.0, "{granted}");
    }
    let used = sidecar.wait_for_log("\"profile\":\"person\"").await;
    assert!(used.contains("\"connection\":\"crm\""), "{used}");
}

#[tokio::test]
async fn a_name_selects_among_connections_of_one_host_but_does_not_bypass_accessible_from() {
    let (server, upstream) = (describing_server().await, Scripted::upstream().await);
    let connection = |name: &str, more: &str, routes: &str| {
        format!(
            "- {{name: {name}, client_id: id, token_url: \"http://{}/token\", scopes: [{name}], {more} routes: [{routes}]}}\n",
            server.address
        )
    };
    let route = "host: api.test, upstream_tls: false";
    let mount = "mount: /m, upstream: \"http://api.test\", upstream_tls: false";
    let text = top(&upstream, &["api.test", "named.test"])
        .replace("connections:\n", "callers: [{name: a, secret: sa}, {name: b, secret: sb}]\nconnections:\n")
        + &connection("one", "", &format!("{{{route}}}, {{{mount}}}"))
        + &connection(
            "two",
            "accessible_from: [b],",
            &format!("{{{route}, only_when_named: true}}, {{{mount}, only_when_named: true}}"),
        )
        + &connection("three", "", "{host: named.test, upstream_tls: false, only_when_named: true}");
    let sidecar = Sidecar::start(&text).await;
    let by = |caller: &str, name: &str| {
        let name = if name.is_empty() { String::new() } else { named(name) };
        format!("Proxy-Authorization: Bearer {caller}\r\n{name}")
    };
    for (url, caller, name, expected) in [
        ("http://api.test/x", "sa", "", "client_credentials.one."),
        ("http://api.test/x", "sb", "", "client_credentials.one."),
        ("http://api.test/x", "sb", "two", "client_credentials.two."),
        ("http://api.test/x", "sa", "two", "403 caller_not_allowed"),
        ("http://api.test/x", "sb", "three", "403 no_route"),
        ("http://named.test/x", "sa", "", "403 no_route"),
        ("http://named.test/x", "sa", "one", "403 no_route"),
        ("http://named.test/x", "sa", "three", "client_credentials.three."),
    ] {
        assert_eq!(
            token_or_error(&sidecar, &upstream, url, &by(caller, name)).await,
            expected,
            "{url} {caller} {name}"
        );
    }
    for (caller, name, expected) in [("sa", "", "one"), ("sb", "Keybearer-Connection: two\r\n", "two")] {
        let lines = format!("Keybearer-Authorization: Bearer {caller}\r\n{name}");
        let request = format!("GET /m/x HTTP/1.1\r\nHost: kb\r\n{lines}Connection: close\r\n\r\n");
        assert_eq!(raw::send(sidecar.proxy(), request.as_bytes()).await.status, 200);
        let last = upstream.received().pop().expect("a request");
        assert!(last.values("authorization")[0].contains(expected), "{}", last.head);
        assert!(last.values("keybearer-connection").is_empty(), "{}", last.head);
    }
}

#[tokio::test]
async fn a_changed_profile_does_not_affect_the_tokens_of_others() {
    let (server, upstream) = (describing_server().await, Scripted::upstream().await);
    let text = |write: &str| top(&upstream, &["api.test"]) + &crm(&server, write);
    let sidecar = Sidecar::start(&text("write")).await;
    let file = sidecar.dir.path().join("keybearer.yaml");
    let requests = |scope: &str| server.received().iter().filter(|request| field(request, "scope") == scope).count();
    std::fs::write(&file, text("all")).expect("a file");
    sidecar.wait_for_metric(APPLIED, |count| count >= 1.0).await;
    let (root, write) = ("http://api.test/x", "http://api.test/write/x");
    assert_eq!(token_or_error(&sidecar, &upstream, write, "").await, "client_credentials.all.other");
    assert_eq!(token_or_error(&sidecar, &upstream, root, "").await, OWN);
    assert_eq!((requests("read"), requests("write"), requests("all")), (1, 1, 1));
    // When the profile is removed, its token is forgotten and its name matches no route.
    let without =
        text("all").replace("{name: write, scopes: [all], audience: other}, ", "").replace(", profile: write", "");
    std::fs::write(&file, without).expect("a file");
    sidecar.wait_for_metric(APPLIED, |count| count >= 2.0).await;
    assert_eq!(token_or_error(&sidecar, &upstream, root, &named("crm/write")).await, "403 no_route");
    assert_eq!(token_or_error(&sidecar, &upstream, write, "").await, OWN);
    let expiry = "keybearer_token_expiry_timestamp_seconds{connection=\"crm\",profile=";
    sidecar.wait_for_metric(&format!("{expiry}\"write\"}}"), |value| value == 0.0).await;
    assert!(sidecar.metric(&format!("{expiry}\"person\"}}")).await > 0.0);
    assert_eq!(server.count(), 4);
}

#[tokio::test]
async fn tokens_of_all_profiles_survive_a_restart() {
    let (server, upstream) = (describing_server().await, Scripted::upstream().await);
    let sidecar = Sidecar::start(&(top(&upstream, &["api.test"]) + &crm(&server, "write"))).await;
    let (root, write) = ("http://api.test/x", "http://api.test/write/x");
    let bearer = async |sidecar: &Sidecar, url: &str| {
        raw::get_through(sidecar.proxy(), url, "").await;
        upstream.received().pop().expect("a request").values("authorization").join(" ")
    };
    let before = [bearer(&sidecar, root).await, bearer(&sidecar, write).await];
    assert_ne!(before[0], before[1]);
    let (dir, addresses, _) = sidecar.crash().await;
    let sidecar = Sidecar::start_over(dir, addresses, &[]).await;
    assert_eq!([bearer(&sidecar, root).await, bearer(&sidecar, write).await], before);
    assert_eq!(server.count(), 3, "no token is requested again");
}

async fn command(sidecar: &Sidecar, arguments: &[&str]) -> Output {
    let mut command = program();
    command.args(arguments).env("KEYBEARER_ADMIN_URL", format!("http://{}", sidecar.admin()));
    command.env("KEYBEARER_ADMIN_TOKEN", MANAGER);
    timeout(TIMEOUT, command.output()).await.expect("no timeout").expect("the command starts")
}

/// The output of a command, which must succeed.
async fn successful_output(sidecar: &Sidecar, arguments: &[&str]) -> String {
    let output = command(sidecar, arguments).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[tokio::test]
async fn commands_and_api_select_a_profile_by_name() {
    let (server, upstream) = (describing_server().await, Scripted::upstream().await);
    let text = top(&upstream, &["api.test"])
        + &crm(&server, "Write").replace("read]", "Read]").replace(
            "audience: own,",
            &format!(
                "audience: own, revocation_url: \"http://{}/revoke\", available_scopes: {{Read: read, Write: write}},",
                server.address
            ),
        );
    let sidecar = Sidecar::start(&text).await;
    let admin = sidecar.admin();
    let shown = call(admin, "GET", "/connections/crm", &json!({})).await.json();
    assert_eq!((&shown["state"], &shown["effective"]["scopes"]), (&json!("fresh"), &json!(["read"])), "{shown}");
    assert_eq!(shown["available_scopes"], json!({"Read": "read", "Write": "write"}));
    let profiles = json!([
        {"name": "write", "grant": "client_credentials", "scopes": ["write"], "audience": "other", "resource": null},
        {"name": "person", "grant": "password", "scopes": [], "audience": "own", "resource": null},
    ]);
    assert_eq!(shown["effective"]["profiles"], profiles);
    assert_eq!(
        (&shown["routes"][1]["profile"], &shown["routes"][2]["only_when_named"]),
        (&json!("write"), &json!(true))
    );

    let table = successful_output(&sidecar, &["connections"]).await;
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().take(3).collect()).collect();
    let expected = [
        ["crm", "fresh", "client_credentials"],
        ["default", "fresh", "client_credentials"],
        ["write", "fresh", "client_credentials"],
        ["person", "fresh", "password"],
    ];
    assert_eq!(lines[1..], expected, "{table}");

    let refreshed = successful_output(&sidecar, &["refresh", "crm", "--profile", "write"]).await;
    assert!(refreshed.starts_with("crm/write: fresh"), "{refreshed}");
    assert_eq!((server.count(), field(&server.received()[3], "scope")), (4, "write".to_owned()));
    let tested = successful_output(&sidecar, &["test", "crm", "--profile", "write"]).await;
    assert!(tested.contains("http://api.test/write: 200") && tested.contains("profile write"), "{tested}");
    let last = upstream.received().pop().expect("a request");
    assert_eq!(last.values("authorization"), ["Bearer client_credentials.write.other.3"]);
    let by_name = successful_output(&sidecar, &["test", "crm", "http://api.test/x", "--profile", "person"]).await;
    assert!(by_name.contains("200"), "{by_name}");
    let elsewhere =
        call(admin, "POST", "/connections/crm/test", &json!({"profile": "write", "url": "http://b.test/"})).await;
    assert_eq!((elsewhere.status, elsewhere.json()["code"].clone()), (422, json!("url_refused")));

    let unknown = command(&sidecar, &["refresh", "crm", "--profile", "read"]).await;
    let text = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert_eq!(unknown.status.code(), Some(1), "{text}");
    assert!(text.contains("profile_unknown") && text.contains("`default`, `write`, `person`"), "{text}");
    for (method, path) in [("POST", "refresh"), ("POST", "revoke"), ("POST", "test"), ("PUT", "tokens")] {
        let body = json!({"profile": "read", "refresh_token": "r"});
        let body = if path == "tokens" { body } else { json!({"profile": "read"}) };
        let response = call(admin, method, &format!("/connections/crm/{path}"), &body).await;
        assert_eq!((response.status, response.json()["code"].clone()), (404, json!("profile_unknown")), "{path}");
    }

    // Tokens of a client credentials grant are revoked independently.
    let before = server.count();
    let revoked = successful_output(&sidecar, &["revoke", "crm", "--profile", "write", "--json"]).await;
    let revoked: Value = serde_json::from_str(&revoked).expect("JSON");
    assert_eq!(revoked["access_token"]["outcome"], "revoked", "{revoked}");
    let sent = server.received().split_off(before);
    assert_eq!(sent.len(), 1);
    assert_eq!(field(&sent[0], "token"), "client_credentials.write.other.3");
    assert_eq!(token_or_error(&sidecar, &upstream, "http://api.test/x", "").await, OWN);
}

#[tokio::test]
async fn a_grant_shared_by_profiles_is_not_revoked() {
    let (server, upstream) = (describing_server().await, Scripted::upstream().await);
    let text = top(&upstream, &["api.test"])
        + &format!(
            "- {{name: crm, client_id: id, token_url: \"http://{0}/token\", revocation_url: \"http://{0}/revoke\", username: u, password: p,\n   \
             profiles: [{{name: same}}, {{name: one, grant: password}}, {{name: two, grant: password, scopes: [x]}}, {{name: own, scopes: [y]}}]}}\n",
            server.address
        );
    let sidecar = Sidecar::start(&text).await;
    for (profile, reason) in [
        // The server may have issued the same token to both.
        ("default", Some("the profile crm/same uses")),
        ("same", Some("the connection crm uses")),
        // The same resource owner means the same grant.
        ("one", Some("the profile crm/two uses")),
        ("own", None),
    ] {
        let body = json!({ "profile": profile });
        let outcome = call(sidecar.admin(), "POST", "/connections/crm/revoke", &body).await.json();
        let expected = if reason.is_some() { "not_revoked" } else { "revoked" };
        assert_eq!(outcome["access_token"]["outcome"], expected, "{profile}: {outcome}");
        let detail = outcome["access_token"]["reason"].as_str().unwrap_or_default();
        assert!(detail.starts_with(reason.unwrap_or_default()), "{profile}: {outcome}");
    }
}

#[tokio::test]
async fn a_connection_has_the_worst_state_of_its_tokens() {
    let (server, upstream) = (describing_server().await, Scripted::upstream().await);
    let sidecar = Sidecar::start(&(top(&upstream, &["api.test"]) + &crm(&server, "bad"))).await;
    let admin = sidecar.admin();
    let shown = call(admin, "GET", "/connections/crm", &json!({})).await.json();
    assert_eq!((&shown["state"], &shown["last_attempt"]["error"]), (&json!("misconfigured"), &json!("invalid_scope")));
    let states = |response: &Value| -> Vec<String> {
        let items = response.as_array().expect("a list").iter();
        items.map(|item| format!("{} {}", item["profile"], item["state"]).replace('"', "")).collect()
    };
    let expected = ["default fresh", "write misconfigured", "person fresh"];
    assert_eq!(states(&shown["shared_tokens"]), expected);
    let tokens = async |query: &str| call(admin, "GET", &format!("/connections/crm/tokens{query}"), &json!({})).await;
    assert_eq!(states(&tokens("").await.json()["items"]), expected);
    assert_eq!(states(&tokens("?profile=person").await.json()["items"]), expected[2..]);
    assert_eq!(states(&tokens("?state=misconfigured").await.json()["items"]), expected[1..2]);
    let page = tokens("?limit=2").await.json();
    assert_eq!(states(&page["items"]), expected[..2]);
    assert_eq!(page["cursor"], "write");
    let rest = tokens("?limit=2&cursor=write").await.json();
    assert_eq!(states(&rest["items"]), expected[2..]);
    assert_eq!(rest["cursor"], Value::Null);
    for (query, status) in [("?profile=read", 404), ("?cursor=read", 400), ("?cursor=write/ann", 400)] {
        assert_eq!(tokens(query).await.status, status, "{query}");
    }
    // A failing profile does not affect the others.
    assert_eq!(token_or_error(&sidecar, &upstream, "http://api.test/x", "").await, OWN);
    assert_eq!(token_or_error(&sidecar, &upstream, "http://api.test/write/x", "").await, "424 token_refused");
    let refused = raw::get_through(sidecar.proxy(), "http://api.test/write/x", "").await.json();
    assert_eq!((&refused["connection"], &refused["profile"]), (&json!("crm"), &json!("write")), "{refused}");
}

#[tokio::test]
async fn each_subject_has_a_token_per_profile() {
    let (server, upstream) = (describing_server().await, Scripted::upstream().await);
    let script = "fn token_request(request, ctx) { request.form.audience = `${ctx.profile}-${ctx.subject}`; request }";
    let connection = format!(
        "- {{name: crm, client_id: id, token_url: \"http://{}/token\", scopes: [read], tokens: per_subject, script: {{file: s.rhai}},\n   \
         profiles: [{{name: write, scopes: [write]}}],\n   \
         routes: [{{host: api.test, upstream_tls: false}}, {{host: api.test, path: /write, profile: write, upstream_tls: false}}]}}\n",
        server.address
    );
    let sidecar = Sidecar::start_with(&(top(&upstream, &["api.test"]) + &connection), &[("s.rhai", script)]).await;
    for subject in ["ann", "bob"] {
        for (path, profile, scope) in [("x", "default", "read"), ("write", "write", "write")] {
            let lines = format!("Keybearer-Subject: {subject}\r\n");
            for _ in 0..2 {
                let token = token_or_error(&sidecar, &upstream, &format!("http://api.test/{path}"), &lines).await;
                assert_eq!(token, format!("client_credentials.{scope}.{profile}-{subject}"));
            }
        }
    }
    assert_eq!(server.count(), 4);
    let (mut cursor, mut found) = (String::new(), Vec::new());
    loop {
        let path = format!("/connections/crm/tokens?limit=3{cursor}");
        let page = call(sidecar.admin(), "GET", &path, &json!({})).await.json();
        let items = page["items"].as_array().expect("a list");
        found.extend(items.iter().map(|item| format!("{}/{}", item["profile"], item["subject"]).replace('"', "")));
        match page["cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(found, ["default/ann", "default/bob", "write/ann", "write/bob"]);
    let of = |query: &str| format!("/connections/crm/tokens?{query}");
    for (query, count) in
        [("profile=write", 2), ("subject=ann", 2), ("subject=ann&profile=write", 1), ("subject=eve", 0)]
    {
        let response = call(sidecar.admin(), "GET", &of(query), &json!({})).await.json();
        assert_eq!(response["items"].as_array().map(Vec::len), Some(count), "{query}: {response}");
    }
    let body = json!({"profile": "write", "subject": "ann"});
    let refreshed = call(sidecar.admin(), "POST", "/connections/crm/refresh", &body).await.json();
    assert_eq!((&refreshed["profile"], &refreshed["subject"]), (&json!("write"), &json!("ann")), "{refreshed}");
    assert_eq!(field(server.received().last().expect("a request"), "audience"), "write-ann");
}

async fn get(sidecar: &Sidecar, path: &str, lines: &str) -> RawResponse {
    raw::get_through(sidecar.proxy(), &format!("http://api.test{path}"), lines).await
}

/// With a real server, and an upstream that introspects every token.
async fn check_profiles(server: AuthorizationServer) {
    let upstream = Upstream::start(&server).await;
    let (ca, url, port) = (Peers::certs().ca.display(), server.token_url(), upstream.http_port());
    let sidecar = Sidecar::start(&format!(
        "trust: [\"{ca}\"]\nhosts: {{api.test: \"127.0.0.1:{port}\"}}\nconnections:\n\
         - {{name: crm, client_id: m-basic, client_secret: m-basic-secret-0123456789abcdef0123456789abcdef, send_credentials: basic,\n   \
         token_url: \"{url}\", scopes: [api.read], resource: \"https://read.test\", username: ann, password: ann-password,\n   \
         profiles: [{{name: write, scopes: [api.write], resource: \"https://write.test\"}}, {{name: person, grant: password}}],\n   \
         routes: [{{host: api.test, upstream_tls: false}}, {{host: api.test, path: /write, profile: write, upstream_tls: false}},\n   \
         {{host: api.test, only_when_named: true, upstream_tls: false}}]}}\n"
    ))
    .await;
    upstream.records().await;
    for (path, name, scope, audience, subject) in [
        ("/x", "", "api.read", "https://read.test", None),
        ("/write/x", "", "api.write", "https://write.test", None),
        ("/x", "crm/write", "api.write", "https://write.test", None),
        ("/x", "crm/person", "api.read", "https://read.test", Some("ann")),
        ("/write/x", "crm/default", "api.read", "https://read.test", None),
    ] {
        let lines = if name.is_empty() { String::new() } else { named(name) };
        let response = get(&sidecar, path, &lines).await;
        assert_eq!(response.status, 200, "{path} {name}: {}\n{}", response.text(), sidecar.log());
        let record = upstream.records().await.pop().expect("a record");
        assert_eq!(
            (&record["scope"], &record["audience"]),
            (&json!(scope), &json!(audience)),
            "{path} {name}: {record}"
        );
        if let Some(subject) = subject {
            assert_eq!(record["sub"], subject, "{record}");
        }
    }
    assert_eq!(get(&sidecar, "/x", &named("crm/unknown")).await.code(), "no_route");
    assert_eq!(server.token_requests("m-basic").await, 3);
}

#[tokio::test]
async fn one_client_holds_three_tokens_at_oidc_provider() {
    check_profiles(AuthorizationServer::op(json!({ "lifetime": 600 })).await).await;
}

#[tokio::test]
async fn one_client_holds_three_tokens_at_authlib() {
    check_profiles(AuthorizationServer::al(json!({ "lifetime": 600 })).await).await;
}
