//! Sign-in to the admin API at an OpenID provider: oidc-provider in a real browser, and a scripted one for ID tokens that
//! no real provider sends.
//!
//! Not here: sign-in with a user's token (`admin`, `consent`).

mod browser;
mod links;
mod scripted_provider;

use std::net::SocketAddr;

use crate::rig::pages;
use crate::rig::raw::RawResponse;

/// Calls the API with these header lines.
async fn api(admin: SocketAddr, method: &str, path: &str, lines: &str) -> RawResponse {
    pages::visit(admin, method, &format!("http://localhost:{}/api/v1{path}", admin.port()), lines, "").await
}

/// The header line that presents the session cookie among these cookies.
fn session_of(cookies: &[serde_json::Value]) -> Option<String> {
    let session = cookies.iter().find(|cookie| cookie["name"] == "keybearer_session")?;
    Some(format!("Cookie: keybearer_session={}\r\n", session["value"].as_str()?))
}
