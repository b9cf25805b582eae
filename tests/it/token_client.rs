//! What goes to an authorization server, and what is made of its answers: grants, proofs, shapes, scripts, discovery,
//! revocation. The servers are our own, for what no real one can be made to show or to tell.
//!
//! Not here: real servers (`grants`), answers that are no answers (`lifecycle`).

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use crate::renewal::{MANAGER, call};
use crate::rig::peers::Peers;
use crate::rig::raw::{self, Answer, Conn};
use crate::rig::scripted::{Received, Reply, Scripted};
use crate::rig::sidecar::{Sidecar, program};

/// The fields of a form.
fn form(request: &Received) -> Vec<(String, String)> {
    url_decoded(std::str::from_utf8(&request.body).unwrap())
}

fn url_decoded(text: &str) -> Vec<(String, String)> {
    let decode = |text: &str| {
        let (mut bytes, mut rest) = (Vec::new(), text.replace('+', " "));
        while let Some(at) = rest.find('%') {
            bytes.extend_from_slice(&rest.as_bytes()[..at]);
            bytes.push(u8::from_str_radix(&rest[at + 1..at + 3], 16).unwrap());
            rest = rest[at + 3..].to_owned();
        }
        bytes.extend_from_slice(rest.as_bytes());
        String::from_utf8(bytes).unwrap()
    };
    let pairs = text.split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap()).map(|(name, value)| (decode(name), decode(value))).collect()
}

fn field(request: &Received, name: &str) -> String {
    form(request).into_iter().find(|(own, _)| own == name).map(|(_, value)| value).unwrap_or_default()
}

fn names(request: &Received) -> Vec<String> {
    form(request).into_iter().map(|(name, _)| name).collect()
}

/// Header and claims of a JWT.
fn jwt(text: &str) -> (Value, Value) {
    use std::io::Write as _;
    let part = |part: &str| {
        let padded = format!("{}{}", part.replace('-', "+").replace('_', "/"), &"==="[..(4 - part.len() % 4) % 4]);
        let mut child = std::process::Command::new("base64")
            .arg("-d")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(padded.as_bytes()).unwrap();
        serde_json::from_slice(&child.wait_with_output().unwrap().stdout).unwrap()
    };
    let mut parts = text.split('.');
    (part(parts.next().unwrap()), part(parts.next().unwrap()))
}

/// A configuration with one connection `crm` for `api.test`, of these keys.
fn config(server: &Scripted, upstream: &Scripted, keys: &str) -> String {
    config_of(&format!("token_url: \"http://{}/token\", {keys}", server.address), upstream)
}

fn config_of(keys: &str, upstream: &Scripted) -> String {
    format!(
        "admin: {{users: [{{name: ops, role: manager, token: {MANAGER}}}]}}\nhosts: {{api.test: \"{}\"}}\nconnections:\n\
         - {{name: crm, client_id: id, routes: [{{host: api.test, upstream_tls: false}}], {keys}}}\n",
        upstream.address
    )
}

async fn get(sidecar: &Sidecar, lines: &str) -> Answer {
    raw::get_through(sidecar.proxy(), "http://api.test/x", lines).await
}

/// One request, and what the upstream saw of its token.
async fn injected(sidecar: &Sidecar, upstream: &Scripted) -> String {
    let answer = get(sidecar, "").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    upstream.received().last().unwrap().values("authorization").join(" ")
}

fn key(name: &str) -> String {
    let (_, key) = Peers::certs().leaf(name);
    key.display().to_string()
}

#[tokio::test]
async fn a_jwt_is_signed_anew_for_each_attempt() {
    let upstream = Scripted::upstream().await;
    let server = Scripted::start(|_, before| match before {
        0 => Reply::text(503, "text/plain", "busy"),
        _ => Reply::token(&format!("t{before}"), 2),
    })
    .await;
    let keys = format!(
        "grant: jwt_bearer, assertion: {{key: {{file: \"{}\"}}, key_id: k1, issuer: me, subject: ann, lifetime: 90s, \
         claims: {{scope: \"a b\", level: 2, flag: true, text: \"2\"}}}}, audience: https://api.test, scopes: [x]",
        key("client-rsa")
    );
    let sidecar = Sidecar::start(&config(&server, &upstream, &keys)).await;
    sidecar.until_metric("keybearer_token_requests_total{connection=\"crm\",grant=\"jwt_bearer\",outcome=\"ok\",profile=\"default\"}", |n| n >= 2.0).await;
    let received = server.received();
    let mut ids = HashSet::new();
    for request in &received[..3] {
        let expected = ["grant_type", "assertion", "scope", "audience", "client_id"];
        assert_eq!(names(request), expected);
        assert_eq!(field(request, "grant_type"), "urn:ietf:params:oauth:grant-type:jwt-bearer");
        let (header, claims) = jwt(&field(request, "assertion"));
        assert_eq!(header, json!({"alg": "RS256", "typ": "JWT", "kid": "k1"}));
        let url = format!("http://{}/token", server.address);
        assert_eq!((&claims["iss"], &claims["sub"], &claims["aud"]), (&json!("me"), &json!("ann"), &json!(url)));
        assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 90);
        assert_eq!(
            (&claims["scope"], &claims["level"], &claims["flag"], &claims["text"]),
            (&json!("a b"), &json!(2), &json!(true), &json!("2"))
        );
        assert!(ids.insert(claims["jti"].as_str().unwrap().to_owned()), "OF-21: a jti is never used twice");
    }
}

#[tokio::test]
async fn an_assertion_from_elsewhere_is_sent_as_it_is_in_the_file_now() {
    let (server, upstream) = (Scripted::tokens(3600).await, Scripted::upstream().await);
    let keys = "grant: saml2_bearer, assertion: {file: a.xml}";
    let sidecar = Sidecar::start_with(&config(&server, &upstream, keys), &[("a.xml", "<A>é</A>")]).await;
    assert_eq!(injected(&sidecar, &upstream).await, "Bearer token-1");
    std::fs::write(sidecar.dir.path().join("a.xml"), "<B/>").unwrap();
    sidecar.until_metric("keybearer_config_reloads_total{outcome=\"applied\"}", |count| count >= 1.0).await;
    let refreshed = call(sidecar.admin(), "POST", "/connections/crm/refresh", &json!({})).await;
    assert_eq!(refreshed.status, 200, "{}", refreshed.text());
    let assertions: Vec<_> = server.received().iter().map(|request| field(request, "assertion")).collect();
    assert_eq!(assertions, ["PEE-w6k8L0E-", "PEIvPg"]);
    let first = &server.received()[0];
    assert_eq!(field(first, "grant_type"), "urn:ietf:params:oauth:grant-type:saml2-bearer");
}

#[tokio::test]
async fn a_service_accounts_token_is_read_again_and_exchanged() {
    let (server, upstream) = (Scripted::tokens(3600).await, Scripted::upstream().await);
    let keys = "grant: token_exchange, subject_token: {file: sa}, requested_token_type: access_token, \
                actor_token: {token: {file: actor}, token_type: saml2}, resource: urn:r, grant_type: own";
    let files = [("sa", "first\n"), ("actor", "act")];
    let sidecar = Sidecar::start_with(&config(&server, &upstream, keys), &files).await;
    assert_eq!(injected(&sidecar, &upstream).await, "Bearer token-1");
    let prefix = "urn:ietf:params:oauth:token-type:";
    let expected = [
        ("grant_type", "own".to_owned()),
        ("subject_token", "first".to_owned()),
        ("subject_token_type", format!("{prefix}jwt")),
        ("requested_token_type", format!("{prefix}access_token")),
        ("actor_token", "act".to_owned()),
        ("actor_token_type", format!("{prefix}saml2")),
        ("resource", "urn:r".to_owned()),
        ("client_id", "id".to_owned()),
    ];
    let sent = form(&server.received()[0]);
    assert_eq!(sent, expected.map(|(name, value)| (name.to_owned(), value)));
    std::fs::write(sidecar.dir.path().join("sa"), "second").unwrap();
    sidecar.until_metric("keybearer_config_reloads_total{outcome=\"applied\"}", |count| count >= 1.0).await;
    call(sidecar.admin(), "POST", "/connections/crm/refresh", &json!({})).await;
    assert_eq!(field(server.received().last().unwrap(), "subject_token"), "second");
}

#[tokio::test]
async fn each_callers_own_token_is_exchanged_and_goes_no_further() {
    let upstream = Scripted::upstream().await;
    let server = Scripted::start(|request, before| match field(request, "subject_token").as_str() {
        "bad" => Reply::json(400, &json!({"error": "invalid_grant"})),
        own => Reply::token(&format!("for-{own}-{before}"), 3600),
    })
    .await;
    let keys = "grant: token_exchange, subject_token: {from: caller}, client_secret: {file: s}, \
                routes: [{host: api.test, upstream_tls: false, inject: {header: X-Token, scheme: \"\"}}]";
    let text = config(&server, &upstream, keys).replacen("routes: [{host: api.test, upstream_tls: false}], ", "", 1);
    let sidecar = Sidecar::start_with(&text, &[("s", "secret")]).await;
    for (own, expected) in [("ann", "for-ann-0"), ("bob", "for-bob-1"), ("ann", "for-ann-0")] {
        let answer = get(&sidecar, &format!("Authorization: Bearer {own}\r\n")).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let seen = upstream.received().pop().unwrap();
        assert_eq!(seen.values("x-token"), [expected]);
        assert!(seen.values("authorization").is_empty(), "the caller's token was for us alone");
    }
    for lines in ["", "Authorization: Basic YTpi\r\n", "Authorization: Bearer a\r\nAuthorization: Bearer b\r\n"] {
        let answer = get(&sidecar, lines).await;
        assert_eq!((answer.status, answer.code()), (400, "subject_required"), "{lines}");
    }
    let refused = get(&sidecar, "Authorization: Bearer bad\r\n").await;
    assert_eq!((refused.status, refused.code()), (424, "token_refused"));
    assert_eq!(server.count(), 3);
    assert!(!sidecar.log().contains("for-ann"));
}

#[tokio::test]
async fn each_way_to_prove_the_client_is_one_way() {
    let (server, upstream) = (Scripted::tokens(3600).await, Scripted::upstream().await);
    let secret = "0123456789abcdef0123456789abcdef";
    let (certificate, private) = Peers::certs().leaf("client-rsa");
    let (certificate, private) = (certificate.display(), private.display());
    let rows = [
        (format!("client_secret: {secret}, send_credentials: client_secret_jwt"), "HS256", true),
        (
            format!(
                "client_secret: {secret}, send_credentials: client_secret_jwt, client_assertion: {{algorithm: HS512, audience: own}}"
            ),
            "HS512",
            true,
        ),
        (
            format!(
                "send_credentials: private_key_jwt, client_assertion: {{key: {{file: \"{private}\"}}, algorithm: PS256, key_id: k, certificate: \"{certificate}\", thumbprint: x5t#S256}}"
            ),
            "PS256",
            true,
        ),
        (
            format!(
                "send_credentials: tls, mutual_tls: {{certificate: \"{certificate}\", key: {{file: \"{private}\"}}}}"
            ),
            "",
            false,
        ),
        (
            format!(
                "client_secret: {secret}, mutual_tls: {{certificate: \"{certificate}\", key: {{file: \"{private}\"}}}}"
            ),
            "secret",
            false,
        ),
    ];
    for (keys, expected, assertion) in rows {
        let before = server.count();
        let sidecar = Sidecar::start(&config(&server, &upstream, &keys)).await;
        injected(&sidecar, &upstream).await;
        let request = server.received().remove(before);
        assert!(request.values("authorization").is_empty());
        if !assertion {
            // A21: with a certificate the body says who, and no more.
            let own = if expected.is_empty() {
                &["grant_type", "client_id"][..]
            } else {
                &["grant_type", "client_id", "client_secret"]
            };
            assert_eq!(names(&request), own);
            continue;
        }
        assert_eq!(names(&request), ["grant_type", "client_id", "client_assertion_type", "client_assertion"]);
        let (header, claims) = jwt(&field(&request, "client_assertion"));
        assert_eq!(header["alg"], expected);
        assert_eq!((&claims["iss"], &claims["sub"]), (&json!("id"), &json!("id")));
        let lifetime = claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap();
        assert!(lifetime <= 300, "OF-21");
        let audience = if expected == "HS512" { "own".to_owned() } else { format!("http://{}/token", server.address) };
        assert_eq!(claims["aud"], audience);
        assert_eq!(header.get("x5t#S256").is_some(), expected == "PS256");
    }
}

#[tokio::test]
async fn a_token_request_is_written_as_the_server_wants_it() {
    let (server, upstream) = (Scripted::tokens(3600).await, Scripted::upstream().await);
    let common = "client_secret: {file: s}, token_params: {x: \"1 & 2\"}";
    for (encoding, files) in [("json", [("s", "a+b")]), ("query", [("s", "a+b")])] {
        let keys = format!(
            "{common}, token_request: {{encoding: {encoding}, headers: {{X-Version: \"7\", Accept: text/xml, X-Key: {{file: s}}}}}}"
        );
        let before = server.count();
        let sidecar = Sidecar::start_with(&config(&server, &upstream, &keys), &files).await;
        injected(&sidecar, &upstream).await;
        let request = server.received().remove(before);
        assert_eq!(
            (request.values("x-version"), request.values("accept"), request.values("x-key")),
            (vec!["7"], vec!["text/xml"], vec!["a+b"])
        );
        let expected =
            json!({"grant_type": "client_credentials", "x": "1 & 2", "client_id": "id", "client_secret": "a+b"});
        if encoding == "json" {
            assert_eq!(request.values("content-type"), ["application/json"]);
            assert_eq!(serde_json::from_slice::<Value>(&request.body).unwrap(), expected);
        } else {
            let query = request.request_line().split(['?', ' ']).nth(2).unwrap();
            let pairs: serde_json::Map<_, _> = url_decoded(query).into_iter().map(|(n, v)| (n, v.into())).collect();
            assert_eq!((Value::from(pairs), request.body.len()), (expected, 0));
            assert!(!sidecar.log().contains("a+b") && !sidecar.log().contains("a%2Bb"));
        }
    }
}

/// IIS and Azure answer 411 to a POST that does not state its length (RFC 9110 §8.6).
#[tokio::test]
async fn a_token_request_without_a_body_states_its_length() {
    let upstream = Scripted::upstream().await;
    let server = Scripted::start(|request, before| match request.values("content-length")[..] {
        [_] => {
            Reply::json(200, &json!({"access_token": format!("t{before}"), "refresh_token": "r", "expires_in": 600}))
        }
        _ => Reply::text(411, "text/html", "<h1>Length Required</h1>"),
    })
    .await;
    let grant = "grant: password, username: ann, password: {file: p}";
    let emptied = "script: {source: \"fn token_request(request, ctx) { request.form = #{}; request }\"}";
    for keys in [format!("{grant}, token_request: {{encoding: query}}"), format!("{grant}, {emptied}")] {
        let before = server.count();
        let sidecar = Sidecar::start_with(&config(&server, &upstream, &keys), &[("p", "pass")]).await;
        assert_eq!(injected(&sidecar, &upstream).await, format!("Bearer t{before}"), "{keys}");
        let refreshed = call(sidecar.admin(), "POST", "/connections/crm/refresh", &json!({})).await;
        assert_eq!(refreshed.status, 200, "{}", refreshed.text());
        for request in &server.received()[before..] {
            assert_eq!((request.values("content-length"), request.body.len()), (vec!["0"], 0), "{}", request.head);
            assert!(request.values("transfer-encoding").is_empty(), "{}", request.head);
        }
    }
}

#[tokio::test]
async fn a_refused_token_type_names_the_key_that_accepts_it() {
    let upstream = Scripted::upstream().await;
    let answer = json!({"access_token": "t", "token_type": "JWT", "expires_in": 3600});
    let server = Scripted::start(move |_, _| Reply::json(200, &answer)).await;
    let sidecar = Sidecar::start(&config(&server, &upstream, "comments: none")).await;
    assert_eq!(get(&sidecar, "").await.code(), "token_unavailable");
    let remedy = "set `token_response.token_type: any`";
    let logged = sidecar.logged("no new token").await;
    assert!(logged.contains("\"token_type\"") && logged.contains(remedy), "{logged}");
    let tokens = call(sidecar.admin(), "GET", "/connections/crm/tokens", &json!({})).await.json();
    let attempt = &tokens["items"][0]["last_attempt"];
    assert_eq!(attempt["error"], "token_type", "{attempt}");
    assert!(attempt["description"].as_str().is_some_and(|text| text.contains(remedy)), "{attempt}");
    let refreshed = call(sidecar.admin(), "POST", "/connections/crm/refresh", &json!({})).await;
    assert_eq!((refreshed.status, &refreshed.json()["error"]), (503, &json!("token_type")), "{}", refreshed.text());
    assert!(refreshed.text().contains(remedy), "{}", refreshed.text());
    // What it says helps.
    let sidecar = Sidecar::start(&config(&server, &upstream, "token_response: {token_type: any}")).await;
    assert_eq!(injected(&sidecar, &upstream).await, "Bearer t");
}

#[tokio::test]
async fn an_answer_is_read_where_the_connection_says() {
    let upstream = Scripted::upstream().await;
    let in_an_hour = "2099-01-01T00:00:00Z";
    let bodies = [
        ("token_response: {encoding: form}", "access_token=t&expires_in=7200&scope=a".to_owned(), 7200),
        (
            "token_response: {access_token: /data/0/token, expires_in: /data/0/ttl, expires_in_unit: m, scope: /data/0/can}",
            json!({"data": [{"token": "t", "ttl": 120, "can": ["a"]}]}).to_string(),
            7200,
        ),
        (
            "token_response: {access_token: /accessToken, expires_in: /expiresMs, expires_in_unit: ms}",
            json!({"accessToken": "t", "expiresMs": "7200000", "scope": "a"}).to_string(),
            7200,
        ),
        (
            "token_response: {expires_at: /until, token_type: any}",
            json!({"access_token": "t", "until": in_an_hour, "token_type": "N/A", "scope": "a"}).to_string(),
            10 * 365 * 24 * 3600,
        ),
    ];
    for (keys, body, lifetime) in bodies {
        let server = Scripted::start(move |_, _| Reply::text(200, "text/plain", &body)).await;
        let sidecar = Sidecar::start(&config(&server, &upstream, keys)).await;
        assert_eq!(injected(&sidecar, &upstream).await, "Bearer t", "{keys}");
        let tokens = call(sidecar.admin(), "GET", "/connections/crm/tokens", &json!({})).await.json();
        let item = &tokens["items"][0];
        let seconds = |name: &str| {
            let out =
                std::process::Command::new("date").args(["-d", item[name].as_str().unwrap(), "+%s"]).output().unwrap();
            String::from_utf8(out.stdout).unwrap().trim().parse::<i64>().unwrap()
        };
        let lived = seconds("expires_at") - seconds("obtained_at");
        assert!((lived - lifetime).abs() <= 1, "{keys}: {lived}");
        assert_eq!(item["scopes"], json!(["a"]), "{keys}");
    }
    for (keys, body, code) in [
        (
            "token_response: {failure: {pointer: /ok, equals: false}}",
            json!({"ok": false, "access_token": "t"}),
            "http_200",
        ),
        (
            "token_response: {error: /fault/code}",
            json!({"fault": {"code": "bad_tenant"}, "access_token": "t"}),
            "bad_tenant",
        ),
        ("comments: none", json!({"access_token": "t", "error": "invalid_scope"}), "invalid_scope"),
    ] {
        let server = Scripted::start(move |_, _| Reply::json(200, &body)).await;
        let sidecar = Sidecar::start(&config(&server, &upstream, keys)).await;
        let answer = get(&sidecar, "").await;
        assert_eq!((answer.status, answer.code()), (424, "token_refused"), "{keys}");
        assert!(answer.text().contains(code), "{keys}: {}", answer.text());
    }
}

#[tokio::test]
async fn an_expired_token_is_known_by_its_signs() {
    let (challenge, session) = (r#"[{"errorCode":"INVALID_SESSION_ID"}]"#, r#"{"code":17}"#);
    let upstream = Scripted::start(move |request, _| {
        let first = request.values("authorization") == ["Bearer token-1"];
        let reply = |status: u16, head: &str, body: &str| {
            let length = body.len();
            Reply::Bytes(format!("HTTP/1.1 {status} X\r\n{head}Content-Length: {length}\r\n\r\n{body}").into_bytes())
        };
        match request.request_line().split(' ').nth(1).unwrap() {
            "/header" if first => reply(403, "WWW-Authenticate: Bearer error=\"Invalid_Token\"\r\n", "no"),
            "/array" if first => reply(401, "", challenge),
            "/plain" => reply(403, "WWW-Authenticate: Bearer error=\"scope\"\r\n", "other"),
            "/code" if first => reply(200, "", session),
            "/long" => reply(200, "", &format!("{{\"code\":17,\"x\":\"{}\"}}", "x".repeat(70_000))),
            "/events" => Reply::Bytes(
                b"HTTP/1.1 200 X\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n6\r\ndata:1\r\n".to_vec(),
            ),
            "/bare" => reply(401, "", "[{\"errorCode\":\"OTHER\"}]"),
            _ => reply(200, "", "fine"),
        }
    })
    .await;
    let keys = "token_rejected: [{status: 401, pointer: /0/errorCode, equals: INVALID_SESSION_ID}, \
                {status: 403, header: WWW-Authenticate, contains: invalid_token}, {status: 200, pointer: /code, equals: 17}]";
    for (path, status, body, requests) in [
        ("header", 200, Some("fine"), 2),
        ("array", 200, Some("fine"), 2),
        ("code", 200, Some("fine"), 2),
        ("plain", 403, Some("other"), 1),
        ("bare", 401, Some("[{\"errorCode\":\"OTHER\"}]"), 1),
        ("long", 200, None, 1),
    ] {
        let server = Scripted::tokens(3600).await;
        let sidecar = Sidecar::start(&config(&server, &upstream, keys)).await;
        let before = upstream.count();
        let answer = raw::get_through(sidecar.proxy(), &format!("http://api.test/{path}"), "").await;
        assert_eq!((answer.status, upstream.count() - before), (status, requests), "{path}");
        match body {
            Some(body) => assert_eq!(answer.text(), body, "{path}"),
            None => assert_eq!(answer.text().len(), 70_000 + 18, "{path}: a long body passes whole"),
        }
    }
    // A stream is passed on at once, whatever might come in it.
    let server = Scripted::tokens(3600).await;
    let sidecar = Sidecar::start(&config(&server, &upstream, keys)).await;
    let mut events = Conn::open(sidecar.proxy()).await;
    events.write(b"GET http://api.test/events HTTP/1.1\r\nHost: api.test\r\n\r\n").await;
    let first = async {
        let mut seen = Vec::new();
        while !seen.ends_with(b"data:1") {
            seen.push(events.stream.read_u8().await.unwrap());
        }
    };
    tokio::time::timeout(std::time::Duration::from_millis(1500), first).await.expect("it is not held back");
}

const SCRIPT: &str = r#"
fn token_request(request, ctx) {
    request.headers["x-signature"] = hex(hmac_sha256(ctx.variables.key, request.form.client_id));
    request.form.tenant = ctx.connection + "/" + ctx.grant;
    request
}
fn token_response(response, ctx) {
    if response.status == 202 { throw #{retry_after: 2}; }
    if response.status == 203 { throw "no account for this client"; }
    if response.text.starts_with("token:") {
        let parts = response.text.split(":");
        return #{access_token: parts[1], expires_in: parse_int(parts[2])};
    }
    response
}
"#;

#[tokio::test]
async fn a_script_shapes_the_request_and_reads_the_answer() {
    let (upstream, answer) =
        (Scripted::upstream().await, Arc::new(std::sync::Mutex::new((200, "token:abc:3600".to_owned()))));
    let now = answer.clone();
    let server = Scripted::start(move |_, _| {
        let (status, text) = now.lock().unwrap().clone();
        Reply::text(status, "text/plain", &text)
    })
    .await;
    let keys = "script: {file: token.rhai}, variables: {key: k}";
    let text = config(&server, &upstream, keys);
    let sidecar = Sidecar::start_with(&text, &[("token.rhai", SCRIPT)]).await;
    assert_eq!(injected(&sidecar, &upstream).await, "Bearer abc");
    let request = server.received().remove(0);
    assert_eq!(field(&request, "tenant"), "crm/client_credentials");
    // HMAC-SHA-256 of `id` under `k`, as openssl computes it.
    let openssl = std::process::Command::new("sh")
        .args(["-c", "printf id | openssl dgst -sha256 -hmac k -r | cut -d' ' -f1"])
        .output()
        .unwrap();
    assert_eq!(request.values("x-signature"), [String::from_utf8(openssl.stdout).unwrap().trim()]);

    *answer.lock().unwrap() = (202, String::new());
    let sidecar = Sidecar::start_with(&text, &[("token.rhai", SCRIPT)]).await;
    let later = get(&sidecar, "").await;
    assert_eq!((later.status, later.code()), (503, "token_unavailable"), "{}", later.text());
    *answer.lock().unwrap() = (203, "secret-answer".to_owned());
    let sidecar = Sidecar::start_with(&text, &[("token.rhai", SCRIPT)]).await;
    let failed = get(&sidecar, "").await;
    assert_eq!((failed.status, failed.code()), (424, "script_failed"));
    assert!(failed.text().contains("no account for this client"), "{}", failed.text());
    let outcome = "keybearer_token_requests_total{connection=\"crm\",grant=\"client_credentials\",outcome=\"script\",profile=\"default\"}";
    assert!(sidecar.metric(outcome).await >= 1.0);
    assert!(!sidecar.log().contains("secret-answer"));
    assert!(server.count() <= 6, "a script that failed is not tried again at once");
}

/// Requests, the log and the API show what a script throws; not what it has seen of secrets.
#[tokio::test]
async fn what_a_script_throws_repeats_no_secret() {
    let upstream = Scripted::upstream().await;
    let answer = json!({"access_token": "acc3ss-T0ken", "refresh_token": "refr3sh", "id_token": "eyJ0.eyJz.c2ln",
        "data": {"session": "s3ssion", "note": "a1b2c3d4e5f6g7h8i9"}, "error_description": "no account 17"});
    let server = Scripted::start(move |_, _| Reply::json(200, &answer)).await;
    let response = |body: &str| format!("fn token_response(response, ctx) {{ {body} }}");
    let request = |body: &str| format!("fn token_request(request, ctx) {{ {body} }}");
    for (source, shown) in [
        (response("throw \"got \" + response.json.access_token"), false),
        (response("throw response.json.refresh_token"), false),
        (response("throw response.json.id_token.sub_string(0, 10)"), false),
        (response("throw response.json.data.session"), false),
        (response("throw response.json.data.note"), false),
        (response("throw response.text"), false),
        (response("throw #{message: response.json.access_token}"), false),
        (response("response[response.json.access_token] = 1; response"), false),
        (response("throw ctx.variables.key"), false),
        (request("throw request.headers[\"x-key\"]"), false),
        (request("throw request.form.client_secret + ctx.variables.key"), false),
        (response("throw \"it says: \" + response.json.error_description"), true),
    ] {
        let keys = "script: {file: s.rhai}, client_secret: {file: s}, variables: {key: var1able}, token_request: {headers: {X-Key: {file: h}}}";
        let files = [("s.rhai", &*source), ("s", "cl1ent-secret"), ("h", "h3ader-secret")];
        let sidecar = Sidecar::start_with(&config(&server, &upstream, keys), &files).await;
        let refused = get(&sidecar, "").await;
        assert_eq!((refused.status, refused.code()), (424, "script_failed"), "{source}: {}", refused.text());
        let tokens = call(sidecar.admin(), "GET", "/connections/crm/tokens", &json!({})).await;
        let all = refused.text() + &sidecar.logged("no new token").await + &sidecar.log() + &tokens.text();
        for secret in ["acc3ss", "refr3sh", "eyJ0", "s3ssion", "a1b2c3d4", "var1able", "cl1ent", "h3ader"] {
            assert!(!all.contains(secret), "{source}: {secret} in {all}");
        }
        assert_eq!(all.contains("it says: no account 17"), shown, "{source}: {all}");
    }
}

#[tokio::test]
async fn an_issuer_fills_what_is_missing_and_overrides_nothing() {
    let upstream = Scripted::upstream().await;
    let told = Arc::new(std::sync::Mutex::new(json!({})));
    let (now, redirected) = (told.clone(), Arc::new(AtomicBool::new(false)));
    let redirect = redirected.clone();
    let server = Scripted::start(move |request, _| {
        let path = request.request_line().split(' ').nth(1).unwrap().to_owned();
        if !path.contains(".well-known") {
            return Reply::token(&path.replace('/', ""), 3600);
        }
        if redirect.load(Ordering::SeqCst) {
            return Reply::Bytes(
                b"HTTP/1.1 302 X\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n".to_vec(),
            );
        }
        match path.as_str() {
            "/.well-known/openid-configuration" => Reply::json(200, &now.lock().unwrap()),
            _ => Reply::text(404, "text/plain", "none"),
        }
    })
    .await;
    let issuer = format!("http://{}", server.address);
    let good = json!({"issuer": issuer, "token_endpoint": format!("{issuer}/found"), "revocation_endpoint": format!("{issuer}/revoke")});
    *told.lock().unwrap() = good.clone();
    let found = format!("issuer: \"{issuer}\"");
    let given = format!("issuer: \"{issuer}\", token_url: \"{issuer}/own\"");
    for (keys, token) in [(&found, "Bearer found"), (&given, "Bearer own")] {
        let sidecar = Sidecar::start(&config_of(keys, &upstream)).await;
        assert_eq!(injected(&sidecar, &upstream).await, token);
        let revoked = call(sidecar.admin(), "POST", "/connections/crm/revoke", &json!({})).await.json();
        assert_eq!(revoked["access_token"]["outcome"], "revoked", "{revoked}");
        let paths: Vec<_> = server.received().iter().map(|request| request.request_line().to_owned()).collect();
        assert!(paths.iter().any(|line| line.starts_with("POST /revoke ")), "{paths:?}");
    }
    // OF-22
    let with = |member: &str, value: Value| {
        let mut metadata = good.clone();
        metadata[member] = value;
        metadata
    };
    for (metadata, code) in [
        (with("issuer", json!("https://other.test")), "issuer_mismatch"),
        (with("issuer", json!(format!("{issuer}/"))), "issuer_mismatch"),
        (with("token_endpoint", json!("http://api.acme.test/token")), "discovery_failed"),
        (with("token_endpoint", json!("ftp://127.0.0.1/")), "discovery_failed"),
        (with("token_endpoint", json!("https://10.0.0.7/token")), "discovery_failed"),
        (with("token_endpoint", Value::Null), "discovery_failed"),
    ] {
        *told.lock().unwrap() = metadata.clone();
        let sidecar = Sidecar::start(&config_of(&found, &upstream)).await;
        let answer = get(&sidecar, "").await;
        assert_eq!((answer.status, answer.code()), (424, "token_refused"), "{metadata}: {}", answer.text());
        assert!(answer.text().contains(code), "{metadata}: {}", answer.text());
    }
    *told.lock().unwrap() = with("padding", json!("x".repeat(10 << 20)));
    let sidecar = Sidecar::start(&config_of(&found, &upstream)).await;
    let answer = get(&sidecar, "").await;
    assert_eq!((answer.status, answer.code()), (503, "token_unavailable"), "{}", answer.text());
    redirected.store(true, Ordering::SeqCst);
    // A gateway may have sent it, so it is no verdict.
    let sidecar = Sidecar::start(&config_of(&found, &upstream)).await;
    let answer = get(&sidecar, "").await;
    assert_eq!((answer.status, answer.code()), (503, "token_unavailable"), "{}", answer.text());
    assert!(answer.text().contains("discovery_failed"), "{}", answer.text());
}

fn gzip(text: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut command = std::process::Command::new("gzip");
    let mut child =
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().expect("gzip");
    let (mut input, text) = (child.stdin.take().unwrap(), text.to_vec());
    let writer = std::thread::spawn(move || input.write_all(&text).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output.stdout
}

/// Some servers compress although they were asked not to.
#[tokio::test]
async fn a_gzip_encoded_response_is_read_within_the_limit() {
    let upstream = Scripted::upstream().await;
    let encoded = |status: u16, coding: &str, body: &[u8]| {
        let body = gzip(body);
        let head =
            format!("HTTP/1.1 {status} X\r\nContent-Encoding: {coding}\r\nContent-Length: {}\r\n\r\n", body.len());
        [head.into_bytes(), body].concat()
    };
    let bomb = Arc::new(AtomicBool::new(false));
    let (explodes, large) = (bomb.clone(), encoded(200, "gzip", &vec![b' '; 64 << 20]));
    assert!(large.len() < 100_000, "it fits as it comes");
    let server = Scripted::start(move |request, before| {
        let issuer = format!("http://{}", request.values("host")[0]);
        Reply::Bytes(match request.request_line().split(' ').nth(1).unwrap() {
            "/token" if explodes.load(Ordering::SeqCst) => large.clone(),
            "/token" => {
                let token = json!({"access_token": format!("t{before}"), "expires_in": 3600, "pad": "x".repeat(900_000)});
                encoded(200, "GZip", token.to_string().as_bytes())
            }
            "/revoke" => encoded(400, "x-gzip", br#"{"error":"unsupported_token_type"}"#),
            _ => encoded(200, "gzip", json!({"issuer": issuer, "token_endpoint": format!("{issuer}/token"), "revocation_endpoint": format!("{issuer}/revoke")}).to_string().as_bytes()),
        })
    })
    .await;
    let text = config_of(&format!("issuer: \"http://{}\"", server.address), &upstream);
    let sidecar = Sidecar::start(&text).await;
    assert_eq!(injected(&sidecar, &upstream).await, "Bearer t1");
    let revoked = call(sidecar.admin(), "POST", "/connections/crm/revoke", &json!({})).await.json();
    assert!(revoked["access_token"]["reason"].as_str().unwrap().contains("unsupported_token_type"), "{revoked}");
    bomb.store(true, Ordering::SeqCst);
    let refreshed = call(sidecar.admin(), "POST", "/connections/crm/refresh", &json!({})).await;
    assert_eq!((refreshed.status, &refreshed.json()["error"]), (503, &json!("too_large")), "{}", refreshed.text());
    for request in server.received() {
        assert_eq!(request.values("accept-encoding"), ["identity"], "{}", request.head);
    }
}

/// Metadata is found at the second well-known location, whatever the first one answers.
#[tokio::test]
async fn one_well_known_location_does_not_stop_the_next() {
    let upstream = Scripted::upstream().await;
    let (first, second) = (Arc::new(Mutex::new(String::new())), Arc::new(AtomicBool::new(true)));
    let (answer, found) = (first.clone(), second.clone());
    let server = Scripted::start(move |request, _| {
        let issuer = format!("http://{}", request.values("host")[0]);
        match request.request_line().split(' ').nth(1).unwrap() {
            "/.well-known/oauth-authorization-server" => match &*answer.lock().unwrap() {
                none if none.is_empty() => Reply::Close,
                text => Reply::Bytes(text.clone().into_bytes()),
            },
            "/.well-known/openid-configuration" if found.load(Ordering::SeqCst) => Reply::json(
                200,
                &json!({"issuer": issuer, "token_endpoint": format!("{issuer}/token"), "revocation_endpoint": "http://as.test/revoke",
                    "authorization_endpoint": 7, "device_authorization_endpoint": "ftp://as.test/"}),
            ),
            "/token" => Reply::token("t", 3600),
            _ => Reply::text(503, "text/html", "<h1>Busy</h1>"),
        }
    })
    .await;
    let keys = format!("issuer: \"http://{}\"", server.address);
    let text = |status: u16, body: &str| {
        format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nLocation: /login\r\n\r\n{body}", body.len())
    };
    for answer in [
        text(200, "<!doctype html><h1>Sign in</h1>"),
        text(200, "[]"),
        text(200, &json!({"issuer": "https://other.test", "token_endpoint": "https://other.test/t"}).to_string()),
        text(200, &"x".repeat(2 << 20)),
        text(302, ""),
        text(403, "no"),
        text(500, "<h1>Error</h1>"),
        text(503, ""),
        String::new(),
        "SSH-2.0\r\n".to_owned(),
    ] {
        first.lock().unwrap().clone_from(&answer);
        let sidecar = Sidecar::start(&config_of(&keys, &upstream)).await;
        assert_eq!(injected(&sidecar, &upstream).await, "Bearer t", "{}", &answer[..answer.len().min(100)]);
        // An endpoint that must not be used fails what uses it alone.
        let revoked = call(sidecar.admin(), "POST", "/connections/crm/revoke", &json!({})).await.json();
        let reason = revoked["access_token"]["reason"].as_str().unwrap_or_default();
        assert!(reason.contains("names a revocation_endpoint that is not https"), "{revoked}");
    }
    // Without metadata anywhere it is asked for again soon.
    second.store(false, Ordering::SeqCst);
    for (answer, expected) in [
        (text(200, "<h1>Sign in</h1>"), "the issuer answers not_json, http_503 at its well-known locations"),
        (text(404, ""), "the issuer answers http_404, http_503 at its well-known locations"),
    ] {
        first.lock().unwrap().clone_from(&answer);
        let sidecar = Sidecar::start(&config_of(&keys, &upstream)).await;
        let refused = get(&sidecar, "").await;
        assert_eq!((refused.status, refused.code()), (503, "token_unavailable"), "{}", refused.text());
        let tokens = call(sidecar.admin(), "GET", "/connections/crm/tokens", &json!({})).await.json();
        let attempt = &tokens["items"][0]["last_attempt"];
        assert_eq!(attempt["error"], "discovery_failed", "{attempt}");
        assert_eq!(attempt["description"], expected, "{attempt}");
    }
}

#[tokio::test]
async fn what_is_revoked_is_forgotten_whatever_the_server_says() {
    let upstream = Scripted::upstream().await;
    let failing = Arc::new(AtomicBool::new(false));
    let fails = failing.clone();
    let server = Scripted::start(move |request, before| match request.request_line() {
        line if line.starts_with("POST /revoke ") && fails.load(Ordering::SeqCst) => {
            Reply::text(500, "text/plain", "no")
        }
        line if line.starts_with("POST /revoke ") => Reply::text(200, "text/html", ""),
        _ => Reply::json(
            200,
            &json!({"access_token": format!("a{before}"), "refresh_token": format!("r{before}"), "expires_in": 3600}),
        ),
    })
    .await;
    let url = format!("http://{}/revoke", server.address);
    let keys = format!(
        "grant: password, username: ann, password: {{file: p}}, client_secret: {{file: s}}, send_credentials: basic, revocation_url: \"{url}\""
    );
    let files = [("p", "pass"), ("s", "secret")];
    let sidecar = Sidecar::start_with(&config(&server, &upstream, &keys), &files).await;
    assert_eq!(injected(&sidecar, &upstream).await, "Bearer a0");
    let answer = call(sidecar.admin(), "POST", "/connections/crm/revoke", &json!({})).await;
    let expected =
        json!({"forgotten": true, "refresh_token": {"outcome": "revoked"}, "access_token": {"outcome": "revoked"}});
    assert_eq!((answer.status, answer.json()), (200, expected));
    let sent: Vec<_> =
        server.received()[1..3].iter().map(|request| (form(request), request.values("authorization").len())).collect();
    let pairs = |token: &str, hint: &str| {
        vec![("token".to_owned(), token.to_owned()), ("token_type_hint".to_owned(), hint.to_owned())]
    };
    assert_eq!(sent, [(pairs("r0", "refresh_token"), 1), (pairs("a0", "access_token"), 1)]);
    // The next token is a first one, of the machine's own grant.
    assert_eq!(injected(&sidecar, &upstream).await, "Bearer a3");
    failing.store(true, Ordering::SeqCst);
    let answer = call(sidecar.admin(), "DELETE", "/connections/crm/tokens?profile=default", &json!({})).await.json();
    assert_eq!(
        (&answer["forgotten"], &answer["access_token"]["outcome"]),
        (&json!(true), &json!("failed")),
        "{answer}"
    );
    assert!(answer["access_token"]["reason"].as_str().unwrap().contains("http_500"), "{answer}");
    assert_ne!(injected(&sidecar, &upstream).await, "Bearer a3");
    sidecar.logged("/api/v1/connections/crm/revoke").await;
    // The command says it, too, and fails.
    let admin = format!("http://{}", sidecar.admin());
    let output = program()
        .args(["revoke", "crm", "--admin", &admin])
        .env("KEYBEARER_ADMIN_TOKEN", MANAGER)
        .output()
        .await
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("crm: forgotten here; at the server: refresh token failed"), "{said}");
    assert_eq!(output.status.code(), Some(1));
}

#[tokio::test]
async fn nothing_is_revoked_that_another_connection_uses() {
    let (server, upstream) = (Scripted::tokens(3600).await, Scripted::upstream().await);
    let url = format!("http://{}", server.address);
    let text = config(&server, &upstream, &format!("revocation_url: \"{url}/revoke\""))
        + &format!(
            "- {{name: twin, client_id: id, scopes: [more], token_url: \"{url}/token\"}}\n- {{name: other, client_id: o, token_url: \"{url}/token\"}}\n"
        );
    let sidecar = Sidecar::start(&text).await;
    sidecar.until_ready().await;
    let before = server.count();
    let answer = call(sidecar.admin(), "POST", "/connections/crm/revoke", &json!({})).await.json();
    assert_eq!(answer["access_token"]["outcome"], "not_revoked", "{answer}");
    assert!(answer["access_token"]["reason"].as_str().unwrap().contains("twin"), "{answer}");
    let answer = call(sidecar.admin(), "POST", "/connections/other/revoke", &json!({})).await.json();
    assert!(answer["access_token"]["reason"].as_str().unwrap().contains("no revocation endpoint"), "{answer}");
    assert!(server.received()[before..].iter().all(|request| !request.request_line().contains("/revoke")));
}

#[tokio::test]
async fn an_own_proxy_carries_token_requests_and_the_environments_does_not() {
    let (server, upstream) = (Scripted::tokens(3600).await, Scripted::upstream().await);
    let proxy = Scripted::start(|request, _| {
        let line = request.request_line().to_owned();
        Reply::token(if line.starts_with("POST http://as.test/token ") { "proxied" } else { "astray" }, 3600)
    })
    .await;
    let address = proxy.address;
    let keys = format!(
        "token_url: \"http://as.test/token\", allow_cleartext: true, authorization_server: {{proxy: {{url: \"http://{address}\", username: u, password: {{file: p}}}}}}"
    );
    let sidecar = Sidecar::start_with(&config_of(&keys, &upstream), &[("p", "pw")]).await;
    assert_eq!(injected(&sidecar, &upstream).await, "Bearer proxied");
    assert_eq!(proxy.received()[0].values("proxy-authorization"), ["Basic dTpwdw=="]);
    let environment = ["HTTP_PROXY", "http_proxy", "ALL_PROXY"].map(|name| (name, format!("http://{address}")));
    let before = proxy.count();
    let sidecar = Sidecar::start_in(&config(&server, &upstream, "comments: none"), &environment).await;
    assert_eq!(injected(&sidecar, &upstream).await, "Bearer token-1", "TL-26");
    assert_eq!(proxy.count(), before);
}

#[tokio::test]
async fn a_refresh_tokens_end_is_forecast_and_warned_of() {
    let upstream = Scripted::upstream().await;
    let server = Scripted::start(|_, before| {
        let token = |life: u64| json!({"access_token": format!("a{before}"), "refresh_token": format!("r{before}"), "expires_in": 3600, "refresh_token_expires_in": life});
        Reply::json(200, &if before == 0 { token(864_000) } else { json!({"access_token": "b", "expires_in": 3600}) })
    })
    .await;
    let keys =
        "grant: password, username: ann, password: {file: p}, audience: aud, resource: res, token_params: {x: y}";
    let sidecar = Sidecar::start_with(&config(&server, &upstream, keys), &[("p", "pass")]).await;
    injected(&sidecar, &upstream).await;
    let series = "keybearer_refresh_token_expiry_timestamp_seconds{connection=\"crm\",profile=\"default\"}";
    let ends = sidecar.metric(series).await;
    let token =
        async || call(sidecar.admin(), "GET", "/connections/crm/tokens", &json!({})).await.json()["items"][0].clone();
    let shown = token().await["refresh_token_expires_at"].clone();
    assert!(shown.is_string());
    let refreshed = call(sidecar.admin(), "POST", "/connections/crm/refresh", &json!({})).await;
    assert_eq!(refreshed.status, 200, "{}", refreshed.text());
    assert_eq!((sidecar.metric(series).await, token().await["refresh_token_expires_at"].clone()), (ends, shown));
    // A22: what goes with the first request goes with every refresh.
    let refresh = server.received().remove(1);
    for (name, value) in
        [("grant_type", "refresh_token"), ("refresh_token", "r0"), ("audience", "aud"), ("resource", "res"), ("x", "y")]
    {
        assert_eq!(field(&refresh, name), value);
    }
    let silent = Scripted::start(|_, _| {
        Reply::json(200, &json!({"access_token": "a", "refresh_token": "r", "expires_in": 3600}))
    })
    .await;
    let keys = "grant: password, username: ann, password: {file: p}, refresh_token_lifespan: 30d";
    let sidecar = Sidecar::start_with(&config(&silent, &upstream, keys), &[("p", "pass")]).await;
    injected(&sidecar, &upstream).await;
    let later = sidecar.metric(series).await;
    assert!((later - ends - 20.0 * 86_400.0).abs() < 60.0, "30 days from now, not 10: {later} {ends}");
}

#[tokio::test]
async fn a_refresh_token_past_its_forecast_is_warned_of_and_used() {
    let upstream = Scripted::upstream().await;
    let token = |number: usize| json!({"access_token": format!("a{number}"), "refresh_token": "r", "expires_in": 2});
    let server = Scripted::start(move |_, before| Reply::json(200, &token(before))).await;
    let keys = "grant: password, username: ann, password: {file: p}, refresh_token_lifespan: 1s";
    let sidecar = Sidecar::start_with(&config(&server, &upstream, keys), &[("p", "pass")]).await;
    injected(&sidecar, &upstream).await;
    sidecar.logged("the refresh token ends soon").await;
    let refreshes =
        "keybearer_token_requests_total{connection=\"crm\",grant=\"refresh_token\",outcome=\"ok\",profile=\"default\"}";
    sidecar.until_metric(refreshes, |count| count >= 2.0).await;
    assert_ne!(injected(&sidecar, &upstream).await, "Bearer a0", "a forecast stops nothing");
}
