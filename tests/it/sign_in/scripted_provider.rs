//! A scripted OpenID provider: ID tokens that no real one sends, and its keys as they rotate.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use url::form_urlencoded;

use super::api;
use crate::rig::pages;
use crate::rig::raw::RawResponse;
use crate::rig::scripted::{Received, Reply, Scripted};
use crate::rig::sidecar::Sidecar;

const RSA: &str = include_str!("../../../src/jwt/tests/rsa-pkcs1.pem");
const RSA_PUBLIC: &str = include_str!("../../../src/jwt/tests/rsa-public.pem");
const P256: &str = include_str!("../../../src/jwt/tests/p256-pkcs8.pem");

fn key(algorithm: Algorithm) -> EncodingKey {
    let der = |pem: &str| {
        let lines = pem.lines().filter(|line| !line.starts_with('-')).collect::<String>();
        BASE64_STANDARD.decode(lines).expect("base64")
    };
    match algorithm {
        Algorithm::ES256 => EncodingKey::from_ec_der(&der(P256)),
        Algorithm::HS256 => EncodingKey::from_secret(RSA_PUBLIC.as_bytes()).expect("a secret"),
        _ => EncodingKey::from_rsa_der(&der(RSA)),
    }
}

/// The ID token of the next token response, and the key IDs that the provider publishes, all of the RSA key.
#[derive(Default)]
struct Script {
    id_token: String,
    key_ids: Vec<&'static str>,
}

struct Provider {
    server: Scripted,
    script: Arc<Mutex<Script>>,
    sidecar: Sidecar,
}

/// A sign-in that waits at the provider.
struct Attempt {
    cookie: String,
    state: String,
    nonce: String,
}

impl Provider {
    async fn start() -> Provider {
        let script = Arc::new(Mutex::new(Script { key_ids: vec!["one"], ..Script::default() }));
        let shared = script.clone();
        let server = Scripted::start(move |request, _| respond(request, &shared.lock().unwrap())).await;
        let config = format!(
            "admin: {{sign_in: {{issuer: \"http://{}\", client_id: kb, client_secret: a-secret-of-this-test, \
             claim: /realm/roles, roles: {{ops: operator}}}}}}\nconnections: []\n",
            server.address
        );
        Provider { server, script, sidecar: Sidecar::start(&config).await }
    }

    fn url(&self, path: &str) -> String {
        format!("http://localhost:{}{path}", self.sidecar.admin().port())
    }

    async fn begin(&self) -> Attempt {
        let response = pages::visit(self.sidecar.admin(), "GET", &self.url("/sign-in"), "", "").await;
        assert_eq!(response.status, 303, "{}\n{}", response.text(), self.sidecar.log());
        let location = response.header("location").expect("a location");
        let query = location.split_once('?').expect("a query").1.as_bytes();
        let fields: HashMap<_, _> = form_urlencoded::parse(query).into_owned().collect();
        assert_eq!(fields["redirect_uri"], self.url("/sign-in/callback"), "{location}");
        Attempt { cookie: pages::cookie(&response), state: fields["state"].clone(), nonce: fields["nonce"].clone() }
    }

    fn claims(&self, attempt: &Attempt) -> Value {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        json!({"iss": format!("http://{}", self.server.address), "aud": "kb", "sub": "ann", "nonce": attempt.nonce,
            "iat": now, "exp": now + 300, "realm": {"roles": ["x", "ops"]}})
    }

    /// Returns to the callback while the token endpoint responds with `id_token`.
    async fn finish(&self, attempt: &Attempt, id_token: String) -> RawResponse {
        self.script.lock().unwrap().id_token = id_token;
        let url = self.url(&format!("/sign-in/callback?code=a-code&state={}", attempt.state));
        pages::visit(self.sidecar.admin(), "GET", &url, &attempt.cookie, "").await
    }

    fn key_requests(&self) -> usize {
        self.server.received().iter().filter(|request| request.request_line().starts_with("GET /jwks")).count()
    }
}

fn respond(request: &Received, script: &Script) -> Reply {
    let base = format!("http://{}", request.values("host")[0]);
    match request.request_line().split(' ').nth(1).unwrap_or_default() {
        "/.well-known/openid-configuration" => Reply::json(
            200,
            &json!({"issuer": base, "authorization_endpoint": format!("{base}/authorize"),
                "token_endpoint": format!("{base}/token"), "jwks_uri": format!("{base}/jwks")}),
        ),
        "/jwks" => {
            let mut jwk = Jwk::from_encoding_key(&key(Algorithm::RS256), Algorithm::RS256).expect("a key");
            let keys = script.key_ids.iter().map(|id| {
                jwk.common.key_id = Some((*id).to_owned());
                jwk.clone()
            });
            let keys: Vec<_> = keys.collect();
            Reply::json(200, &json!({ "keys": keys }))
        }
        "/token" => {
            let token = json!({"access_token": "t", "token_type": "Bearer", "id_token": script.id_token});
            Reply::json(200, &token)
        }
        _ => Reply::text(404, "text/plain", ""),
    }
}

fn sign(claims: &Value, algorithm: Algorithm, key_id: &str) -> String {
    let header = Header { kid: Some(key_id.to_owned()), ..Header::new(algorithm) };
    jsonwebtoken::encode(&header, claims, &key(algorithm)).expect("a token")
}

/// A name, the reason that the page gives, and the ID token, from valid claims.
type BadToken = (&'static str, &'static str, fn(&Value) -> String);

fn changed(claims: &Value, name: &str, value: Value) -> Value {
    let mut claims = claims.clone();
    claims[name] = value;
    claims
}

#[tokio::test]
async fn an_id_token_is_accepted_only_if_every_check_passes() {
    let provider = Provider::start().await;
    let bad: [BadToken; 9] = [
        ("another nonce", "nonce", |claims| sign(&changed(claims, "nonce", json!("n")), Algorithm::RS256, "one")),
        ("another client", "another client", |claims| {
            sign(&changed(claims, "aud", json!("x")), Algorithm::RS256, "one")
        }),
        ("no azp", "azp", |claims| sign(&changed(claims, "aud", json!(["kb", "x"])), Algorithm::RS256, "one")),
        ("another issuer", "issuer", |claims| {
            sign(&changed(claims, "iss", json!("https://x")), Algorithm::RS256, "one")
        }),
        ("expired", "expired", |claims| sign(&changed(claims, "exp", json!(1)), Algorithm::RS256, "one")),
        ("another access token", "at_hash", |claims| {
            sign(&changed(claims, "at_hash", json!("x")), Algorithm::RS256, "one")
        }),
        ("no signature", "algorithm", |claims| {
            let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
            format!("{}.{}.", part(&json!({"alg": "none", "kid": "one"})), part(claims))
        }),
        ("the public key as a secret", "algorithm", |claims| sign(claims, Algorithm::HS256, "one")),
        ("a foreign key", "does not publish", |claims| sign(claims, Algorithm::ES256, "one")),
    ];
    for (name, reason, token) in bad {
        let attempt = provider.begin().await;
        let response = provider.finish(&attempt, token(&provider.claims(&attempt))).await;
        assert_eq!(response.status, 502, "{name}: {}", response.text());
        assert!(response.text().contains(reason), "{name}: {}", response.text());
        let set = response.values("set-cookie");
        assert!(set.iter().all(|cookie| cookie.starts_with("keybearer_sign_in=;")), "{name}: {set:?}");
    }
    let attempt = provider.begin().await;
    let response = provider.finish(&attempt, sign(&provider.claims(&attempt), Algorithm::RS256, "one")).await;
    assert_eq!(response.status, 303, "{}\n{}", response.text(), provider.sidecar.log());
    let set = response.values("set-cookie");
    let session = set.iter().find(|cookie| cookie.starts_with("keybearer_session=")).expect("a session");
    assert!(session.contains("; Max-Age=28800") && session.contains("; HttpOnly"), "{session}");
    let session = format!("Cookie: {}\r\n", session.split(';').next().unwrap_or_default());
    assert_eq!(api(provider.sidecar.admin(), "GET", "/session", &session).await.json()["role"], "operator");
    assert_eq!(api(provider.sidecar.admin(), "POST", "/reload", &session).await.status, 401, "without a CSRF token");
    let log = provider.sidecar.log();
    assert!(!log.contains("a-secret-of-this-test") && !log.contains("a-code") && !log.contains("eyJ"), "{log}");
}

#[tokio::test]
async fn rotated_keys_are_requested_again_at_most_once_a_minute() {
    let provider = Provider::start().await;
    let sign_in = async |key_id: &str| {
        let attempt = provider.begin().await;
        let token = sign(&provider.claims(&attempt), Algorithm::RS256, key_id);
        provider.finish(&attempt, token).await.status
    };
    assert_eq!((sign_in("one").await, sign_in("one").await, provider.key_requests()), (303, 303, 1));
    provider.script.lock().unwrap().key_ids = vec!["two"];
    // The keys are less than a minute old: a token with an unknown key causes no request.
    assert_eq!((sign_in("two").await, sign_in("three").await, provider.key_requests()), (502, 502, 1));
}

#[tokio::test]
async fn sign_in_attempts_are_limited_per_address() {
    let provider = Provider::start().await;
    let (admin, url) = (provider.sidecar.admin(), provider.url("/sign-in"));
    let mut statuses = Vec::new();
    for _ in 0..20 {
        statuses.push(pages::visit(admin, "GET", &url, "", "").await.status);
        let lines = "Content-Type: application/json\r\n";
        statuses.push(api(admin, "POST", "/session", lines).await.status);
    }
    let limited = statuses.iter().position(|status| *status == 429);
    assert_eq!(limited, Some(30), "{statuses:?}");
    assert!(statuses[30..].iter().all(|status| *status == 429), "{statuses:?}");
    let refused = api(admin, "POST", "/session", "").await;
    let wait: u64 = refused.header("retry-after").and_then(|wait| wait.parse().ok()).expect("Retry-After");
    assert!((1..=60).contains(&wait) && refused.json()["code"] == "too_many_attempts", "{wait} {}", refused.text());
    let page = pages::visit(admin, "POST", &provider.url("/connect/crm"), &pages::origin(&url), "token=x").await;
    assert_eq!(page.status, 429, "the form of the consent pages counts too: {}", page.text());
    // Requests with a token are not sign-ins.
    assert_eq!(api(admin, "GET", "/connections", "Authorization: Bearer x\r\n").await.status, 401);
}
