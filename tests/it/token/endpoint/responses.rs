//! Token responses: token types, custom members, content codings, refresh token expiry; and `token_rejected` matches.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;
use tokio::io::AsyncReadExt;

use super::{config, config_of, field, get, injected};
use crate::rig::manager::call;
use crate::rig::raw::{self, Conn};
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::Sidecar;

#[tokio::test]
async fn a_refused_token_type_names_the_key_that_accepts_it() {
    let upstream = Scripted::upstream().await;
    let response = json!({"access_token": "t", "token_type": "JWT", "expires_in": 3600});
    let server = Scripted::start(move |_, _| Reply::json(200, &response)).await;
    let sidecar = Sidecar::start(&config(&server, &upstream, "comments: none")).await;
    assert_eq!(get(&sidecar, "").await.code(), "token_unavailable");
    let remedy = "set `token_response.token_type: any`";
    let logged = sidecar.wait_for_log("token acquisition failed").await;
    assert!(logged.contains("\"token_type\"") && logged.contains(remedy), "{logged}");
    let tokens = call(sidecar.admin(), "GET", "/connections/crm/tokens", &json!({})).await.json();
    let attempt = &tokens["items"][0]["last_attempt"];
    assert_eq!(attempt["error"], "token_type", "{attempt}");
    assert!(attempt["description"].as_str().is_some_and(|text| text.contains(remedy)), "{attempt}");
    let refreshed = call(sidecar.admin(), "POST", "/connections/crm/refresh", &json!({})).await;
    assert_eq!((refreshed.status, &refreshed.json()["error"]), (503, &json!("token_type")), "{}", refreshed.text());
    assert!(refreshed.text().contains(remedy), "{}", refreshed.text());
    // The suggested remedy works.
    let sidecar = Sidecar::start(&config(&server, &upstream, "token_response: {token_type: any}")).await;
    assert_eq!(injected(&sidecar, &upstream).await, "Bearer t");
}

#[tokio::test]
async fn token_response_keys_locate_the_members() {
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
        let response = get(&sidecar, "").await;
        assert_eq!((response.status, response.code()), (424, "token_refused"), "{keys}");
        assert!(response.text().contains(code), "{keys}: {}", response.text());
    }
}

#[tokio::test]
async fn token_rejected_matches_recognize_an_expired_token() {
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
        let response = raw::get_through(sidecar.proxy(), &format!("http://api.test/{path}"), "").await;
        assert_eq!((response.status, upstream.count() - before), (status, requests), "{path}");
        match body {
            Some(body) => assert_eq!(response.text(), body, "{path}"),
            None => assert_eq!(response.text().len(), 70_000 + 18, "{path}: a long body passes complete"),
        }
    }
    // An event stream is forwarded at once, not buffered for a match.
    let server = Scripted::tokens(3600).await;
    let sidecar = Sidecar::start(&config(&server, &upstream, keys)).await;
    let mut events = Conn::open(sidecar.proxy()).await;
    events.write(b"GET http://api.test/events HTTP/1.1\r\nHost: api.test\r\n\r\n").await;
    let first = async {
        let mut events_read = Vec::new();
        while !events_read.ends_with(b"data:1") {
            events_read.push(events.stream.read_u8().await.unwrap());
        }
    };
    tokio::time::timeout(std::time::Duration::from_millis(1500), first).await.expect("the stream is not buffered");
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

/// Some servers compress despite `Accept-Encoding: identity`.
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
    assert!(large.len() < 100_000, "compressed, it is within the limit");
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

#[tokio::test]
async fn a_refresh_tokens_expiry_is_forecast() {
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
    // A22: every refresh repeats the parameters of the first request.
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
async fn a_refresh_token_past_its_forecast_expiry_is_used_with_a_warning() {
    let upstream = Scripted::upstream().await;
    let token = |number: usize| json!({"access_token": format!("a{number}"), "refresh_token": "r", "expires_in": 2});
    let server = Scripted::start(move |_, before| Reply::json(200, &token(before))).await;
    let keys = "grant: password, username: ann, password: {file: p}, refresh_token_lifespan: 1s";
    let sidecar = Sidecar::start_with(&config(&server, &upstream, keys), &[("p", "pass")]).await;
    injected(&sidecar, &upstream).await;
    sidecar.wait_for_log("refresh token expires soon").await;
    let refreshes =
        "keybearer_token_requests_total{connection=\"crm\",grant=\"refresh_token\",outcome=\"ok\",profile=\"default\"}";
    sidecar.wait_for_metric(refreshes, |count| count >= 2.0).await;
    assert_ne!(injected(&sidecar, &upstream).await, "Bearer a0", "a forecast does not stop refreshes");
}
