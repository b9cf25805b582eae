//! The admin API from outside: roles, responses, and secrets that it never shows.

mod access;
mod actions;
mod activity;
mod commands;
mod connections;
mod logo;
mod openapi;
mod roles;
mod sessions;
mod tls;
mod views;

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::time::timeout;

use crate::rig::raw::{self, Conn, RawResponse};
use crate::rig::scripted::{Reply, Scripted};
use crate::rig::sidecar::Sidecar;

/// Tokens of the three users, in ascending order of their roles.
const VIEWER: &str = "viewer-token-of-a-test-0123456789";
const OPERATOR: &str = "operator-token-of-a-test-0123456789";
const MANAGER: &str = "manager-token-of-a-test-0123456789";
const CLIENT_SECRET: &str = "the-clients-very-own-secret";
/// Prefix of all access tokens of the scripted server.
const ACCESS_TOKEN: &str = "very-secret-access-token";
const TIMEOUT: Duration = Duration::from_secs(30);

/// Every operation: the statuses for no token, a wrong one, viewer, operator, manager.
const ROWS: [(&str, &str, [u16; 5]); 26] = [
    ("get", "/api/v1/openapi.json", [401, 401, 200, 200, 200]),
    ("get", "/api/v1/connections", [401, 401, 200, 200, 200]),
    ("get", "/api/v1/connections/{name}", [401, 401, 200, 200, 200]),
    // The connection is a file's; the bodies are empty.
    ("put", "/api/v1/connections/{name}", [401, 401, 403, 403, 409]),
    ("patch", "/api/v1/connections/{name}", [401, 401, 403, 400, 400]),
    ("delete", "/api/v1/connections/{name}", [401, 401, 403, 403, 409]),
    ("post", "/api/v1/connections:apply", [401, 401, 403, 403, 400]),
    ("get", "/api/v1/connections/{name}/tokens", [401, 401, 200, 200, 200]),
    // Without a refresh token.
    ("put", "/api/v1/connections/{name}/tokens", [401, 401, 403, 422, 422]),
    ("delete", "/api/v1/connections/{name}/tokens", [401, 401, 403, 200, 200]),
    ("post", "/api/v1/connections/{name}/revoke", [401, 401, 403, 200, 200]),
    ("get", "/api/v1/secrets", [401, 401, 403, 403, 200]),
    // Without a value; no secret of that name.
    ("put", "/api/v1/secrets/{secret}", [401, 401, 403, 403, 422]),
    ("delete", "/api/v1/secrets/{secret}", [401, 401, 403, 403, 404]),
    // The operator has just forced a refresh.
    ("post", "/api/v1/connections/{name}/refresh", [401, 401, 403, 200, 409]),
    ("post", "/api/v1/connections/{name}/test", [401, 401, 403, 200, 200]),
    ("post", "/api/v1/connections/{name}/preflight", [401, 401, 403, 200, 200]),
    // The grant needs no person; there is no such authorization.
    ("post", "/api/v1/connections/{name}/authorize", [401, 401, 403, 409, 409]),
    ("get", "/api/v1/authorizations/{id}", [401, 401, 404, 404, 404]),
    // Without a token in the body.
    ("post", "/api/v1/session", [401, 401, 401, 401, 401]),
    ("get", "/api/v1/session", [401, 401, 200, 200, 200]),
    ("delete", "/api/v1/session", [401, 401, 204, 204, 204]),
    ("post", "/api/v1/reload", [401, 401, 403, 403, 200]),
    ("get", "/api/v1/activity", [401, 401, 200, 200, 200]),
    ("get", "/api/v1/events", [401, 401, 200, 200, 200]),
    // It has no `logo_url`.
    ("get", "/api/v1/connections/{name}/logo", [401, 401, 404, 404, 404]),
];

struct Stage {
    sidecar: Sidecar,
    upstream: Scripted,
    server: Scripted,
}

impl Stage {
    /// Opens a viewer's event stream.
    async fn open_events(&self) -> Conn {
        let admin = self.sidecar.admin();
        let mut events = Conn::open(admin).await;
        let head = format!("GET /api/v1/events HTTP/1.1\r\nHost: {admin}\r\nAuthorization: Bearer {VIEWER}\r\n\r\n");
        events.write(head.as_bytes()).await;
        wait_until(&mut events, ": heartbeat").await;
        events
    }

    async fn start() -> Stage {
        Stage::with("", |_, before| Reply::token(&format!("{ACCESS_TOKEN}-{before}"), 3600)).await
    }

    /// `top`: additional top-level keys. The connections are `crm`, and `off`, which is inactive.
    async fn with<F>(top: &str, reply: F) -> Stage
    where
        F: Fn(&crate::rig::scripted::Received, usize) -> Reply + Send + Sync + 'static,
    {
        let (server, upstream) = (Scripted::start(reply).await, Scripted::upstream().await);
        let users = [("v", "viewer", VIEWER), ("o", "operator", OPERATOR), ("m", "manager", MANAGER)];
        let users = users.map(|(name, role, token)| format!("{{name: {name}, role: {role}, token: {token}}}"));
        let config = format!(
            "{top}admin: {{users: [{}], hosts: [keys.test, \"other.test:99\"]}}\nhosts: {{api.test: \"{}\"}}\n\
             connections:\n- {{name: crm, client_id: the-client, client_secret: {CLIENT_SECRET}, scopes: a b, \
             token_url: \"http://{}/token?key={CLIENT_SECRET}\", \
             token_params: {{hint: {CLIENT_SECRET}}}, routes: [{{host: api.test, path: /v1, upstream_tls: false}}]}}\n\
             - {{name: off, active: false, client_id: a, token_url: \"http://127.0.0.1:1/t\"}}\n",
            users.join(", "),
            upstream.address,
            server.address
        );
        Stage { sidecar: Sidecar::start(&config).await, upstream, server }
    }

    async fn call(&self, method: &str, path: &str, token: &str, body: Option<&Value>) -> RawResponse {
        call(self.sidecar.admin(), method, path, token, body).await
    }
}

async fn call(admin: SocketAddr, method: &str, path: &str, token: &str, body: Option<&Value>) -> RawResponse {
    let lines = if token.is_empty() { String::new() } else { format!("Authorization: Bearer {token}\r\n") };
    let body = body.map(Value::to_string);
    let kind = if body.is_some() { "Content-Type: application/json\r\n" } else { "" };
    send(admin, method, path, &format!("Host: {admin}\r\n{lines}{kind}"), body.unwrap_or_default().as_bytes()).await
}

/// Sends a request with these header lines and this body.
async fn send(admin: SocketAddr, method: &str, path: &str, lines: &str, body: &[u8]) -> RawResponse {
    let method = method.to_uppercase();
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let head = format!("{method} {path} HTTP/1.1\r\n{lines}{length}Connection: close\r\n\r\n");
    raw::send(admin, &[head.as_bytes(), body].concat()).await
}

/// Only the status: the response of `events` never ends.
async fn status(admin: SocketAddr, method: &str, path: &str, token: &str) -> u16 {
    if !path.ends_with("/events") {
        return call(admin, method, path, token, None).await.status;
    }
    let (mut conn, lines) = (Conn::open(admin).await, if token.is_empty() { "" } else { "Authorization: Bearer " });
    let end = if token.is_empty() { "" } else { "\r\n" };
    conn.write(format!("GET {path} HTTP/1.1\r\nHost: {admin}\r\n{lines}{token}{end}\r\n").as_bytes()).await;
    let line = wait_until(&mut conn, "\r\n").await;
    line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
}

/// Reads until `text` has arrived; returns everything read.
async fn wait_until(conn: &mut Conn, text: &str) -> String {
    use tokio::io::AsyncReadExt;
    let mut read = Vec::new();
    let reading = async {
        while !String::from_utf8_lossy(&read).contains(text) {
            let mut buffer = [0; 4096];
            let count = conn.stream.read(&mut buffer).await.expect("bytes");
            assert!(count > 0, "the connection ended before {text:?}");
            read.extend_from_slice(&buffer[..count]);
        }
    };
    timeout(TIMEOUT, reading).await.unwrap_or_else(|_| panic!("{text:?} did not arrive in time"));
    String::from_utf8(read).expect("text")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}
