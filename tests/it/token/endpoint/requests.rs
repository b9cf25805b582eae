//! Token requests: grants, assertions, client authentication, encodings, and proxies.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::{config, config_of, field, form, get, injected, key, names, url_decoded};
use crate::rig::manager::call;
use crate::rig::peers::Peers;
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::Sidecar;

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

#[tokio::test]
async fn each_attempt_signs_a_new_jwt() {
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
    sidecar.wait_for_metric("keybearer_token_requests_total{connection=\"crm\",grant=\"jwt_bearer\",outcome=\"ok\",profile=\"default\"}", |n| n >= 2.0).await;
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
async fn an_assertion_file_is_sent_verbatim_and_reloaded() {
    let (server, upstream) = (Scripted::tokens(3600).await, Scripted::upstream().await);
    let keys = "grant: saml2_bearer, assertion: {file: a.xml}";
    let sidecar = Sidecar::start_with(&config(&server, &upstream, keys), &[("a.xml", "<A>é</A>")]).await;
    assert_eq!(injected(&sidecar, &upstream).await, "Bearer token-1");
    std::fs::write(sidecar.dir.path().join("a.xml"), "<B/>").unwrap();
    sidecar.wait_for_metric("keybearer_config_reloads_total{outcome=\"applied\"}", |count| count >= 1.0).await;
    let refreshed = call(sidecar.admin(), "POST", "/connections/crm/refresh", &json!({})).await;
    assert_eq!(refreshed.status, 200, "{}", refreshed.text());
    let assertions: Vec<_> = server.received().iter().map(|request| field(request, "assertion")).collect();
    assert_eq!(assertions, ["PEE-w6k8L0E-", "PEIvPg"]);
    let first = &server.received()[0];
    assert_eq!(field(first, "grant_type"), "urn:ietf:params:oauth:grant-type:saml2-bearer");
}

#[tokio::test]
async fn a_service_accounts_token_is_reloaded_and_exchanged() {
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
    sidecar.wait_for_metric("keybearer_config_reloads_total{outcome=\"applied\"}", |count| count >= 1.0).await;
    call(sidecar.admin(), "POST", "/connections/crm/refresh", &json!({})).await;
    assert_eq!(field(server.received().last().unwrap(), "subject_token"), "second");
}

#[tokio::test]
async fn each_callers_own_token_is_exchanged_and_not_forwarded() {
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
        let response = get(&sidecar, &format!("Authorization: Bearer {own}\r\n")).await;
        assert_eq!(response.status, 200, "{}", response.text());
        let request = upstream.received().pop().unwrap();
        assert_eq!(request.values("x-token"), [expected]);
        assert!(request.values("authorization").is_empty(), "the caller's token is not forwarded");
    }
    for lines in ["", "Authorization: Basic YTpi\r\n", "Authorization: Bearer a\r\nAuthorization: Bearer b\r\n"] {
        let response = get(&sidecar, lines).await;
        assert_eq!((response.status, response.code()), (400, "subject_required"), "{lines}");
    }
    let refused = get(&sidecar, "Authorization: Bearer bad\r\n").await;
    assert_eq!((refused.status, refused.code()), (424, "token_refused"));
    assert_eq!(server.count(), 3);
    assert!(!sidecar.log().contains("for-ann"));
}

#[tokio::test]
async fn a_client_authenticates_by_exactly_one_method() {
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
            // A21: with a certificate, the body has the client ID, and a secret only if one is configured.
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
async fn a_token_request_has_the_configured_encoding_and_headers() {
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

/// IIS and Azure respond 411 to a POST without Content-Length (RFC 9110 §8.6).
#[tokio::test]
async fn a_token_request_without_a_body_has_a_content_length() {
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
async fn token_requests_use_the_configured_proxy_and_ignore_the_environments() {
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
