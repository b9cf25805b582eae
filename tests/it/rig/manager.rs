//! Calls of the admin API as a manager.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::raw::{self, RawResponse};
use super::sidecar::Sidecar;

/// The token of the admin user `ops`.
pub const MANAGER: &str = "a-manager-of-these-tests-0123456789";

/// Calls the API as a manager.
pub async fn call(admin: SocketAddr, method: &str, path: &str, body: &Value) -> RawResponse {
    call_as(MANAGER, admin, (method, path), "Content-Type: application/json\r\n", &body.to_string()).await
}

/// Calls the API with a user's token and further header lines.
pub async fn call_as(
    token: &str,
    admin: SocketAddr,
    (method, path): (&str, &str),
    lines: &str,
    body: &str,
) -> RawResponse {
    let head = format!(
        "{method} /api/v1{path} HTTP/1.1\r\nHost: {admin}\r\nAuthorization: Bearer {token}\r\n{lines}\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    raw::send(admin, &[head.as_bytes(), body.as_bytes()].concat()).await
}

/// Imports a refresh token into the connection `crm`.
pub async fn import_refresh_token(sidecar: &Sidecar, token: &str, subject: Option<&str>) -> RawResponse {
    let mut body = json!({ "refresh_token": token });
    if let Some(subject) = subject {
        body["subject"] = subject.into();
    }
    call(sidecar.admin(), "PUT", "/connections/crm/tokens", &body).await
}
