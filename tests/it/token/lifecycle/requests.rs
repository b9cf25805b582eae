//! Credentials of a request: the route's token, the caller's own, or none; and how the client authenticates to get the
//! token.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;
use url::form_urlencoded;

use super::{Crm, URL, check_own, crm, get, local, number, numbered, token_url, wait_until};
use crate::rig::peers::{AuthorizationServer, BASIC_CLIENT_SECRET, Upstream};
use crate::rig::raw;
use crate::rig::scripted::{Received, Reply, Scripted};
use crate::rig::sidecar::Sidecar;

fn form(request: &Received) -> Vec<(String, String)> {
    let mut fields: Vec<_> = form_urlencoded::parse(&request.body).into_owned().collect();
    fields.sort();
    fields
}

#[tokio::test]
async fn a_callers_credential_is_overwritten_kept_or_refused_as_configured() {
    let (server, upstream) = (Scripted::tokens(60).await, Scripted::upstream().await);
    let at = upstream.address;
    let route = |name: &str| format!("{{host: {name}.test, upstream_tls: false, existing: {name}}}");
    let sidecar = Sidecar::start(&format!(
        "hosts: {{overwrite.test: \"{at}\", keep.test: \"{at}\", refuse.test: \"{at}\"}}\nconnections:\n- {{name: crm, \
         client_id: a, client_secret: b, token_url: \"{}\", routes: [{}, {}, {}]}}\n",
        token_url(&server),
        route("overwrite"),
        route("keep"),
        route("refuse")
    ))
    .await;
    let (none, one) = ("", "authorization: Bearer mine\r\n");
    let two = "Authorization: Bearer mine\r\nauthorization: Basic eDp5\r\n";
    for (host, lines, arrived) in [
        ("overwrite", none, Some("Bearer token-1")),
        ("overwrite", one, Some("Bearer token-1")),
        ("overwrite", two, Some("Bearer token-1")),
        ("keep", none, Some("Bearer token-1")),
        ("keep", one, Some("Bearer mine")),
        ("keep", two, None),
        ("refuse", none, Some("Bearer token-1")),
        ("refuse", one, None),
        ("refuse", two, None),
    ] {
        let before = upstream.count();
        let response = raw::get_through(sidecar.proxy(), &format!("http://{host}.test/"), lines).await;
        let received = upstream.received();
        let values: Vec<_> = received[before..].iter().map(|request| request.values("authorization")).collect();
        match arrived {
            Some(value) => assert_eq!((response.status, values), (200, vec![vec![value]]), "{host} {lines}"),
            None => {
                check_own(&response, 400, "bad_request_target", "fix_request");
                assert!(values.is_empty(), "{host} {lines}");
            }
        }
    }
    for (outcome, count) in [("injected", 5.0), ("kept", 1.0), ("refused", 3.0)] {
        let series =
            format!("keybearer_injections_total{{connection=\"crm\",profile=\"default\",outcome=\"{outcome}\"}}");
        assert_eq!(sidecar.metric(&series).await, count, "{outcome}");
    }
}

#[tokio::test]
async fn a_request_without_a_token_fails_or_is_forwarded_as_configured() {
    let upstream = Scripted::upstream().await;
    for (reply, status, code, action) in [
        (
            (|_, _| Reply::json(400, &json!({"error": "invalid_client"}))) as fn(&Received, usize) -> Reply,
            424,
            "token_refused",
            "fix_configuration",
        ),
        (|_, _| Reply::text(503, "text/plain", ""), 503, "token_unavailable", "retry_later"),
    ] {
        let server = Scripted::start(reply).await;
        let config = crm(token_url(&server), upstream.address).text();
        let config =
            config.replace("routes: [", "routes: [{host: bare.test, upstream_tls: false, without_token: forward}, ");
        let config = config.replace("hosts: {", &format!("hosts: {{bare.test: \"{}\", ", upstream.address));
        let sidecar = Sidecar::start(&config).await;
        let before = upstream.count();
        for lines in ["", "Authorization: Bearer mine\r\n"] {
            check_own(&raw::get_through(sidecar.proxy(), URL, lines).await, status, code, action);
            assert_eq!(upstream.count(), before);
        }
        for lines in ["", "Authorization: Bearer mine\r\n"] {
            let response = raw::get_through(sidecar.proxy(), "http://bare.test/", lines).await;
            assert_eq!((response.status, response.code()), (200, ""));
        }
        let received = upstream.received();
        assert_eq!(received.len() - before, 2);
        assert!(received[before..].iter().all(|request| request.values("authorization").is_empty()), "{received:?}");
    }
}

#[tokio::test]
async fn every_token_request_has_the_configured_authentication_and_parameters() {
    const SECRET: &str = "a+b/c:d%e$f g";
    let plain = |text: &str| Some(format!("Basic {}", BASE64_STANDARD.encode(text)));
    let coded = "a%2Bb%2Fc%3Ad%25e%24f%20g";
    let table = [
        ("client_secret: \"a+b/c:d%e$$f g\"", None, vec![("client_id", "i:d"), ("client_secret", SECRET)]),
        (
            "client_secret: \"a+b/c:d%e$$f g\", send_credentials: body",
            None,
            vec![("client_id", "i:d"), ("client_secret", SECRET)],
        ),
        ("client_secret: \"a+b/c:d%e$$f g\", send_credentials: basic", plain(&format!("i%3Ad:{coded}")), vec![]),
        (
            "client_secret: \"a+b/c:d%e$$f g\", send_credentials: basic, basic_encoding: raw",
            plain(&format!("i:d:{SECRET}")),
            vec![],
        ),
        ("send_credentials: none", None, vec![("client_id", "i:d")]),
        ("comments: no secret", None, vec![("client_id", "i:d")]),
        ("scopes: \"a,b  c\"", None, vec![("client_id", "i:d"), ("scope", "a b c")]),
        ("scopes: [a, \"b:c/d\"]", None, vec![("client_id", "i:d"), ("scope", "a b:c/d")]),
        (
            "audience: \"https://api.test/?x=1&y\", resource: \"urn:r\", token_params: {tenant: \"t 1\", z: \"\"}",
            None,
            vec![
                ("audience", "https://api.test/?x=1&y"),
                ("client_id", "i:d"),
                ("resource", "urn:r"),
                ("tenant", "t 1"),
                ("z", ""),
            ],
        ),
    ];
    let (server, upstream) = (Scripted::tokens(2).await, Scripted::upstream().await);
    let keys: Vec<_> =
        table.iter().map(|(keys, ..)| format!("client_id: \"i:d\", {}", keys.replace("$$", "$"))).collect();
    let keys: Vec<_> = keys.iter().map(String::as_str).collect();
    let _sidecar = Sidecar::start(&numbered(&server, &upstream, &keys)).await;
    // Wait for the first grant and one refresh per connection.
    let of = |n: usize| server.received().into_iter().filter(|request| number(request) == n).collect::<Vec<_>>();
    wait_until("each has refreshed", async || (0..table.len()).all(|n| of(n).len() >= 2)).await;
    for (n, (keys, header, fields)) in table.iter().enumerate() {
        let mut expected: Vec<_> = fields.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        expected.push(("grant_type".into(), "client_credentials".into()));
        expected.sort();
        for request in of(n) {
            assert_eq!(form(&request), expected, "{keys}");
            assert_eq!(request.values("authorization").first().map(|value| value.to_string()), *header, "{keys}");
            assert_eq!(request.values("content-type"), ["application/x-www-form-urlencoded"]);
            assert_eq!(request.values("accept"), ["application/json"]);
            assert!(request.request_line().starts_with("POST /c"));
        }
    }
}

#[tokio::test]
async fn real_servers_accept_a_basic_secret_with_special_characters() {
    let (op, al) = tokio::join!(AuthorizationServer::op(json!({})), AuthorizationServer::al(json!({})));
    // Authlib ignores a `%` without two hexadecimal digits, so it also accepts this secret raw.
    for (server, raw_status) in [(&op, 424), (&al, 200)] {
        let upstream = Upstream::start(server).await;
        let client = ["client_id: machine-basic", "client_secret: {file: secret}", "send_credentials: basic"];
        let form = Crm { client: &client, ..crm(server.token_url(), local(upstream.http_port())) };
        let files = [("secret", BASIC_CLIENT_SECRET)];
        let sidecar = Sidecar::start_with(&form.text(), &files).await;
        let response = get(&sidecar).await;
        assert_eq!(
            (response.status, &response.json()["client_id"]),
            (200, &json!("machine-basic")),
            "{}",
            sidecar.log()
        );
        let raw = Crm { keys: &["basic_encoding: raw"], ..form };
        let sidecar = Sidecar::start_with(&raw.text(), &files).await;
        assert_eq!(get(&sidecar).await.status, raw_status, "{}", sidecar.log());
    }
}
