//! Authorization server metadata (RFC 8414): what it supplies, and well-known locations that serve something else.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::{config_of, get, injected};
use crate::rig::manager::call;
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::Sidecar;

#[tokio::test]
async fn discovery_supplies_missing_endpoints_and_overrides_none() {
    let upstream = Scripted::upstream().await;
    let served_metadata = Arc::new(std::sync::Mutex::new(json!({})));
    let (now, redirected) = (served_metadata.clone(), Arc::new(AtomicBool::new(false)));
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
    *served_metadata.lock().unwrap() = good.clone();
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
        *served_metadata.lock().unwrap() = metadata.clone();
        let sidecar = Sidecar::start(&config_of(&found, &upstream)).await;
        let response = get(&sidecar, "").await;
        assert_eq!((response.status, response.code()), (424, "token_refused"), "{metadata}: {}", response.text());
        assert!(response.text().contains(code), "{metadata}: {}", response.text());
    }
    *served_metadata.lock().unwrap() = with("padding", json!("x".repeat(10 << 20)));
    let sidecar = Sidecar::start(&config_of(&found, &upstream)).await;
    let response = get(&sidecar, "").await;
    assert_eq!((response.status, response.code()), (503, "token_unavailable"), "{}", response.text());
    redirected.store(true, Ordering::SeqCst);
    // A gateway may have sent the redirect, so it is not permanent.
    let sidecar = Sidecar::start(&config_of(&found, &upstream)).await;
    let response = get(&sidecar, "").await;
    assert_eq!((response.status, response.code()), (503, "token_unavailable"), "{}", response.text());
    assert!(response.text().contains("discovery_failed"), "{}", response.text());
}

/// The issuer's host is among the secret's hosts; an endpoint that its metadata names is not.
#[tokio::test]
async fn a_published_secret_is_not_sent_to_an_endpoint_that_metadata_names_elsewhere() {
    let upstream = Scripted::upstream().await;
    let thief = Scripted::start(|_, _| Reply::token("stolen", 3600)).await;
    let token_url = Arc::new(Mutex::new(format!("http://localhost:{}/token", thief.address.port())));
    let named = token_url.clone();
    let server = Scripted::start(move |request, _| {
        let issuer = format!("http://{}", request.values("host")[0]);
        match request.request_line().contains(".well-known") {
            true => Reply::json(200, &json!({"issuer": issuer, "token_endpoint": *named.lock().unwrap()})),
            false => Reply::token("own", 3600),
        }
    })
    .await;
    let issuer = format!("http://{}", server.address);
    let keys = format!("issuer: \"{issuer}\", client_secret: {{use: crm}}");
    let config = format!(
        "egress: {{allow_private: true}}\nsecrets: {{crm: {{env: PATH, hosts: [127.0.0.1]}}}}\n{}",
        config_of(&keys, &upstream)
    );
    let sidecar = Sidecar::start(&config).await;
    let response = get(&sidecar, "").await;
    assert_eq!((response.status, response.code()), (424, "token_refused"), "{}", response.text());
    let shown = call(sidecar.admin(), "GET", "/connections/crm", &json!({})).await.json();
    let description = shown["last_attempt"]["description"].as_str().unwrap_or_default();
    assert!(description.contains("names an endpoint at localhost"), "{shown}");
    assert!(thief.received().is_empty());
    *token_url.lock().unwrap() = format!("{issuer}/token");
    let sidecar = Sidecar::start(&config).await;
    assert_eq!(injected(&sidecar, &upstream).await, "Bearer own");
}

/// Metadata is found at the second well-known location, whatever the first one returns.
#[tokio::test]
async fn a_failing_well_known_location_does_not_prevent_the_next() {
    let upstream = Scripted::upstream().await;
    let (first, second) = (Arc::new(Mutex::new(String::new())), Arc::new(AtomicBool::new(true)));
    let (response, found) = (first.clone(), second.clone());
    let server = Scripted::start(move |request, _| {
        let issuer = format!("http://{}", request.values("host")[0]);
        match request.request_line().split(' ').nth(1).unwrap() {
            "/.well-known/oauth-authorization-server" => match &*response.lock().unwrap() {
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
    for response in [
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
        first.lock().unwrap().clone_from(&response);
        let sidecar = Sidecar::start(&config_of(&keys, &upstream)).await;
        assert_eq!(injected(&sidecar, &upstream).await, "Bearer t", "{}", &response[..response.len().min(100)]);
        // An unusable endpoint fails only the operation that needs it.
        let revoked = call(sidecar.admin(), "POST", "/connections/crm/revoke", &json!({})).await.json();
        let reason = revoked["access_token"]["reason"].as_str().unwrap_or_default();
        assert!(reason.contains("names a revocation_endpoint that is not https"), "{revoked}");
    }
    // Without metadata at any location the failure is retryable.
    second.store(false, Ordering::SeqCst);
    for (response, expected) in [
        (text(200, "<h1>Sign in</h1>"), "the issuer has no metadata at its well-known locations: not_json, http_503"),
        (text(404, ""), "the issuer has no metadata at its well-known locations: http_404, http_503"),
    ] {
        first.lock().unwrap().clone_from(&response);
        let sidecar = Sidecar::start(&config_of(&keys, &upstream)).await;
        let refused = get(&sidecar, "").await;
        assert_eq!((refused.status, refused.code()), (503, "token_unavailable"), "{}", refused.text());
        let tokens = call(sidecar.admin(), "GET", "/connections/crm/tokens", &json!({})).await.json();
        let attempt = &tokens["items"][0]["last_attempt"];
        assert_eq!(attempt["error"], "discovery_failed", "{attempt}");
        assert_eq!(attempt["description"], expected, "{attempt}");
    }
}
