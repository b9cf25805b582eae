//! Limits of a manager's definitions, checked at every key of a connection.
//!
//! `table` has a row for each key of the schema. `references`: reading files and variables; `kept` and `published`:
//! moving a secret to another server; `private`: reaching inside the network; `round_trip`: what GET shows, sent back;
//! `seeds`: keys that describe a connection and limit its use.

mod kept;
mod private;
mod published;
mod references;
mod round_trip;
mod seeds;
mod table;

use std::fmt::Write as _;

use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::{Value, json};

use super::{JSON, MANAGER};
use crate::rig::config::Config;
use crate::rig::manager::call_as;
use crate::rig::peers::Peers;
use crate::rig::raw::{self, RawResponse};
use crate::rig::scripted::{Received, Reply, Scripted};
use crate::rig::sidecar::Sidecar;

/// An instance, and the servers that its definitions name.
struct Fields {
    sidecar: Sidecar,
    /// `as.test`
    server: Scripted,
    /// `api.test`
    upstream: Scripted,
    /// `other.test`, which must never receive a secret.
    other: Scripted,
}

/// Longest excerpt of a request that leaks a secret, in characters.
const EXCERPT_CHARS_MAX: usize = 300;

impl Fields {
    /// `top`: further top-level keys. The servers speak plain HTTP.
    async fn start(top: &str, environment: &[(&str, String)]) -> Fields {
        let (server, upstream, other) = (server("http").await, Scripted::upstream().await, server("http").await);
        let addresses = [server.address, upstream.address, other.address];
        let sidecar = Sidecar::start_in(config(addresses, top), environment).await;
        Fields { sidecar, server, upstream, other }
    }

    async fn call(&self, method: &str, path: &str, body: &Value) -> RawResponse {
        let lines =
            format!("{JSON}{}", if ["PUT", "PATCH", "DELETE"].contains(&method) { "If-Match: *\r\n" } else { "" });
        call_as(MANAGER, self.sidecar.admin(), (method, path), &lines, &body.to_string()).await
    }

    /// Makes the connection `own`.
    async fn create(&self, definition: &Value) -> RawResponse {
        let lines = format!("{JSON}If-None-Match: *\r\n");
        call_as(MANAGER, self.sidecar.admin(), ("PUT", "/connections/own"), &lines, &definition.to_string()).await
    }

    /// Replaces the connection `own`.
    async fn replace(&self, definition: &Value) -> RawResponse {
        self.call("PUT", "/connections/own", definition).await
    }

    async fn get(&self) -> Value {
        self.call("GET", "/connections/own", &Value::Null).await.json()
    }

    async fn remove(&self) {
        let removed = self.call("DELETE", "/connections/own?revoke=false", &Value::Null).await;
        assert_eq!(removed.status, 200, "{}", removed.text());
    }

    /// Makes the connection request a new token and use it. Returns every response.
    async fn exercise(&self) -> String {
        let mut shown = String::new();
        let mut note = |what: &str, response: RawResponse| {
            writeln!(shown, "{what}: {} {}", response.status, response.text()).expect("text");
        };
        note("revoke", self.call("POST", "/connections/own/revoke", &json!({})).await);
        for url in ["http://api.test/v1", "http://other.test/v1"] {
            note(url, raw::get_through(self.sidecar.proxy(), url, "").await);
        }
        for operation in ["authorize", "test"] {
            note(operation, self.call("POST", &format!("/connections/own/{operation}"), &json!({})).await);
        }
        shown + &self.get().await.to_string()
    }
}

/// An authorization server with metadata, reached by this scheme.
async fn server(scheme: &'static str) -> Scripted {
    let reply = move |request: &Received, before: usize| {
        let line = request.request_line();
        let host = request.values("host").first().map_or("", |host| *host).to_owned();
        if line.contains("/.well-known/") {
            let issuer = format!("{scheme}://{host}");
            return Reply::json(200, &json!({ "issuer": issuer, "token_endpoint": format!("{issuer}/token") }));
        }
        if line.contains("/device") {
            return Reply::json(
                200,
                &json!({
                    "device_code": "d", "user_code": "u", "verification_uri": "https://as.test/v", "expires_in": 60,
                }),
            );
        }
        Reply::json(
            200,
            &json!({
                "access_token": format!("token-{before}"), "token_type": "Bearer", "expires_in": 3600, "refresh_token": "r",
            }),
        )
    };
    Scripted::start(reply).await
}

/// The callers `local`, by address and in the application `billing`, and `named`; the profile `partner`.
fn config([server, upstream, other]: [std::net::SocketAddr; 3], top: &str) -> String {
    let (certificate, key) = Peers::certs().leaf("mtls-ca-issued");
    let top = format!(
        "admin: {{users: [{{name: m, role: manager, token: {MANAGER}}}]}}\nlog: {{level: debug, requests: all}}\ntimeouts: {{token_wait: 1s}}\n\
         callers: [{{name: local, cidr: [127.0.0.0/8], application: billing}}, {{name: named, secret: abc}}]\n\
         mutual_tls_profiles: {{partner: {{certificate: \"{}\", key: {{file: \"{}\"}}}}}}\n{top}",
        certificate.display(),
        key.display(),
    );
    let config = Config::new().top(top).host("as.test", server).host("api.test", upstream).host("other.test", other);
    let file =
        "- {name: file, client_id: a, client_secret: b, token_url: \"http://as.test/token\", allow_cleartext: true}\n";
    format!("{config}{file}")
}

/// The definition that a row changes.
fn base() -> Value {
    json!({
        "name": "own", "client_id": "id", "client_secret": "the-own-secret", "token_url": "http://as.test/token",
        "revocation_url": "http://as.test/revoke", "allow_cleartext": true,
        "routes": [{"host": "api.test", "upstream_tls": false}],
    })
}

/// The first request that contains the secret, as it is or in HTTP Basic.
fn leak(received: &[Received], secret: &str) -> Option<String> {
    let basic = |request: &Received| {
        let values = [request.values("authorization"), request.values("proxy-authorization")].concat();
        let decoded = values.iter().filter_map(|value| BASE64_STANDARD.decode(value.strip_prefix("Basic ")?).ok());
        decoded.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).collect::<String>()
    };
    let text = |request: &Received| {
        format!("{}\n{}\n{}", request.head, String::from_utf8_lossy(&request.body), basic(request))
    };
    received
        .iter()
        .map(text)
        .find(|text| text.contains(secret))
        .map(|text| text.chars().take(EXCERPT_CHARS_MAX).collect())
}

/// The paths of the problems in a response, with `[]` for each index.
fn problem_paths(response: &RawResponse) -> Vec<String> {
    let problems = response.json()["problems"].as_array().cloned().unwrap_or_default();
    problems.iter().map(|problem| unindexed(problem["path"].as_str().unwrap_or_default())).collect()
}

fn unindexed(path: &str) -> String {
    let mut parts = path.split('[');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |path, part| path + "[]" + part.split_once(']').map_or("", |(_, rest)| rest))
}
