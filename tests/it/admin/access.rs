//! Access control: roles, tokens, host names, and separation from the proxy.

use serde_json::json;

use super::{MANAGER, OPERATOR, ROWS, Stage, VIEWER, call, send, status, wait_until};
use crate::rig::interception::{interception, interception_ca};
use crate::rig::raw::{self, Conn};
use crate::rig::scripted::Reply;
use crate::rig::sidecar::Sidecar;

#[tokio::test]
async fn every_operation_is_allowed_only_for_its_roles() {
    let stage = Stage::start().await;
    let document = stage.call("get", "/api/v1/openapi.json", VIEWER, None).await.json();
    assert_eq!(document["openapi"], "3.1.0");
    let mut walked = 0;
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for (method, operation) in methods.as_object().expect("methods") {
            let row = ROWS.iter().find(|(row_method, row_path, _)| row_method == method && row_path == path);
            let (.., expected) = row.unwrap_or_else(|| panic!("{method} {path} has no row in this test: add one"));
            walked += 1;
            for (token, expected) in ["", "wrong", VIEWER, OPERATOR, MANAGER].into_iter().zip(expected) {
                let real = path.replace("{name}", "crm").replace("{secret}", "spare").replace("{id}", "c");
                let got = if path.ends_with("/test") && *expected == 200 {
                    let url = json!({ "url": "http://api.test/v1/x" });
                    stage.call(method, &real, token, Some(&url)).await.status
                } else {
                    status(stage.sidecar.admin(), method, &real, token).await
                };
                assert_eq!(got, *expected, "{method} {path} with {token:?}");
                let described = &operation["responses"][got.to_string()];
                assert!(described.is_object(), "{method} {path}: OpenAPI does not describe {got}");
            }
        }
    }
    assert_eq!(walked, ROWS.len(), "a row without a route");
}

/// CI-15
#[tokio::test]
async fn no_route_serves_the_interception_ca() {
    let stage = Stage::with(&interception(), |_, _| Reply::token("t", 3600)).await;
    let (certificate, key) = interception_ca();
    let lines = |path: &std::path::Path| {
        let text = std::fs::read_to_string(path).expect("PEM");
        let lines: Vec<_> = text.lines().filter(|line| !line.starts_with("-----")).map(str::to_owned).collect();
        lines
    };
    let secrets = [lines(certificate), lines(key)].concat();
    let document = stage.call("get", "/api/v1/openapi.json", MANAGER, None).await.json();
    let mut paths: Vec<String> = ["/", "/metrics", "/livez", "/readyz?verbose"].map(str::to_owned).into();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        if methods["get"].is_object() && !path.ends_with("/events") {
            paths.push(path.replace("{name}", "crm").replace("{id}", "c"));
        }
    }
    assert!(paths.len() > 8, "{paths:?}");
    for path in paths {
        let response = stage.call("get", &path, MANAGER, None).await;
        let text = format!("{}{:?}", response.text(), response.headers);
        assert!(!text.contains("PRIVATE KEY") && !text.contains("BEGIN CERTIFICATE"), "{path}: {text}");
        assert!(!secrets.iter().any(|line| text.contains(line)), "{path}: {text}");
    }
}

#[tokio::test]
async fn a_credential_that_is_not_a_users_token_is_refused() {
    let stage = Stage::with("callers: [{name: billing, secret: billing-secret}]\n", |_, _| Reply::token("t", 60)).await;
    let admin = stage.sidecar.admin();
    let host = format!("Host: {admin}\r\n");
    for credential in [
        "",
        "Authorization: Bearer billing-secret\r\n",
        "Authorization: Basic YmlsbGluZzpiaWxsaW5nLXNlY3JldA==\r\n",
        "Authorization: Bearer\r\n",
        "Authorization: Bearer \r\n",
        &format!("Authorization: Basic {MANAGER}\r\n"),
        &format!("Authorization: {MANAGER}\r\n"),
        &format!("Authorization: Bearer {MANAGER}x\r\n"),
        &format!("Authorization: Bearer {MANAGER}\r\nAuthorization: Bearer {MANAGER}\r\n"),
        &format!("Proxy-Authorization: Bearer {MANAGER}\r\n"),
        &format!("Cookie: token={MANAGER}\r\n"),
    ] {
        for path in ["/api/v1/connections", "/api/v1/nothing", "/api/v1/connections/absent"] {
            let response = send(admin, "GET", path, &format!("{host}{credential}"), b"").await;
            assert_eq!(response.status, 401, "{path} {credential}");
            assert_eq!(response.header("www-authenticate"), Some("Bearer realm=\"keybearer\""));
            assert_eq!(response.header("content-type"), Some("application/problem+json"));
            assert_eq!(response.json()["code"], "user_unknown");
        }
    }
    let query = send(admin, "GET", &format!("/api/v1/connections?token={MANAGER}"), &host, b"").await;
    assert_eq!(query.status, 401);
    let lower = format!("{host}authorization: bearer {MANAGER}\r\n");
    assert_eq!(send(admin, "GET", "/api/v1/connections", &lower, b"").await.status, 200);
}

#[tokio::test]
async fn only_accepted_host_names_are_served() {
    let stage = Stage::start().await;
    let admin = stage.sidecar.admin();
    let port = admin.port();
    let with = |hosts: String| async move {
        let lines = format!("{hosts}Authorization: Bearer {VIEWER}\r\n");
        send(admin, "GET", "/api/v1/connections", &lines, b"").await.status
    };
    for good in [
        format!("127.0.0.1:{port}"),
        format!("LOCALHOST:{port}"),
        "keys.test".into(),
        "keys.test:1".into(),
        "other.test:99".into(),
    ] {
        assert_eq!(with(format!("Host: {good}\r\n")).await, 200, "{good}");
    }
    let bad = [
        "evil.test",
        "127.0.0.1",
        "localhost:1",
        "other.test",
        "other.test:98",
        "127.0.0.2:8081",
        "keys.test.evil",
        "",
        "a b",
    ];
    for bad in bad {
        assert_eq!(with(format!("Host: {bad}\r\n")).await, 421, "{bad}");
    }
    assert_eq!(with(String::new()).await, 421);
    assert_eq!(with("Host: keys.test\r\nHost: keys.test\r\n".to_owned()).await, 421);
    let lines = format!("Host: keys.test\r\nAuthorization: Bearer {VIEWER}\r\n");
    assert_eq!(send(admin, "GET", "http://evil.test/api/v1/connections", &lines, b"").await.status, 421);
    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(send(admin, "GET", path, "Host: evil.test\r\n", b"").await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn the_proxy_does_not_reach_the_admin_listener() {
    let stage = Stage::start().await;
    let (proxy, admin) = (stage.sidecar.proxy(), stage.sidecar.admin());
    let lines = format!("Authorization: Bearer {MANAGER}\r\n");
    for host in
        [admin.to_string(), format!("localhost:{}", admin.port()), format!("[::ffff:127.0.0.1]:{}", admin.port())]
    {
        let response = raw::get_through(proxy, &format!("http://{host}/api/v1/connections"), &lines).await;
        assert!(
            response.status != 200 && !response.code().is_empty(),
            "{host}: {} {}",
            response.status,
            response.text()
        );
        let mut tunnel = Conn::open(proxy).await;
        tunnel.write(format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await;
        let opened = wait_until(&mut tunnel, "\r\n\r\n").await;
        if opened.starts_with("HTTP/1.1 200") {
            let request = format!("GET /api/v1/connections HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n");
            tunnel.write(request.as_bytes()).await;
            let inside = tunnel.read_response().await;
            assert!(inside.status != 200 && !inside.code().is_empty(), "{host}: {}", inside.text());
        }
    }
}

#[tokio::test]
async fn without_users_the_token_file_grants_access_to_the_api() {
    let sidecar = Sidecar::start("connections: []\n").await;
    let path = sidecar.dir.path().join("state/admin-token");
    let token = std::fs::read_to_string(&path).expect("a readable file");
    let (token, admin) = (token.trim_end(), sidecar.admin());
    assert!(token.len() == 43, "{} characters", token.len());
    assert_eq!(call(admin, "post", "/api/v1/reload", token, None).await.status, 200);
    assert_eq!(call(admin, "get", "/api/v1/connections", "", None).await.status, 401);
    let log = sidecar.log();
    assert!(log.contains("state/admin-token") && !log.contains(token), "{log}");
}

#[tokio::test]
async fn an_unwritable_state_directory_disables_only_the_api() {
    let sidecar = Sidecar::start("state_dir: /proc/keybearer\nconnections: []\n").await;
    sidecar.wait_for_log("admin token file unusable").await;
    assert_eq!(call(sidecar.admin(), "get", "/api/v1/connections", "anything", None).await.status, 401);
    assert_eq!(raw::get(sidecar.admin(), "/livez").await.status, 200);
}

#[tokio::test]
async fn with_a_telemetry_listener_the_admin_listener_serves_no_metrics() {
    let config =
        "listeners: {proxy: \"127.0.0.1:0\", admin: \"127.0.0.1:0\", telemetry: \"127.0.0.1:0\"}\nconnections: []\n";
    let sidecar = Sidecar::spawn(config, &[]).await;
    let (admin, telemetry) = (sidecar.admin(), sidecar.address("telemetry"));
    assert_eq!(raw::get(telemetry, "/livez").await.status, 200);
    assert_eq!(raw::get(telemetry, "/api/v1/connections").await.status, 404);
    assert_eq!(raw::get(admin, "/metrics").await.status, 404);
    assert_eq!(raw::get(admin, "/api/v1/connections").await.status, 401);
}
