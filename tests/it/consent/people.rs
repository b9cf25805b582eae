//! People connect accounts at a real server: one account for each subject, once, and again after a withdrawn consent.
//!
//! Not here: behaviour in a real browser (`consent`).

mod accounts;
mod pages;
mod terminal;
mod pending;

use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;

use crate::rig::config::{Config, Connection, local};
use crate::rig::manager::MANAGER;
use crate::rig::peers::{AuthorizationServer, Upstream, peers_path, python};
use crate::rig::raw::{self, RawResponse};
use crate::rig::sidecar::Sidecar;

const TIMEOUT: Duration = Duration::from_secs(30);
const OPERATOR: &str = "an-operator-of-these-tests-0123456789";
const VIEWER: &str = "a-viewer-of-these-tests-0123456789ab";

/// A connection `crm` of the client `client`, with a route to `api.test`.
fn connection(server: &AuthorizationServer, upstream: &Upstream, top: &str, client: &str, keys: &str) -> String {
    let secret = format!(", client_secret: {client}-secret-0123456789abcdef0123456789abcdef");
    let secret = if client == "p-device" || client == "p-public" { String::new() } else { secret };
    let users = format!(
        "admin: {{users: [{{name: ops, role: manager, token: {MANAGER}}}, {{name: op, role: operator, token: {OPERATOR}}}, \
         {{name: eye, role: viewer, token: {VIEWER}}}]}}\n"
    );
    let crm = Connection::new("crm", server.token_url())
        .client(format_args!("client_id: {client}{secret}"))
        .keys(format_args!(
            "revocation_url: \"{}\", {keys}scopes: [openid, offline_access, api.read]",
            server.revocation_url()
        ))
        .plain("api.test");
    let config = Config::new().top(top).top(users).trust_peers().host("api.test", local(upstream.http_port()));
    config.connection(crm).to_string()
}

fn web(server: &AuthorizationServer) -> String {
    format!("authorization_url: \"{}?prompt=consent\", ", server.authorization_url())
}

/// Follows a link to the server's pages and back, as a person would. Returns the last page, or what `options` select.
async fn act_as_person(link: &str, account: &str, options: &[&str]) -> Value {
    let walk = Command::new(python()).arg(peers_path("person.py")).args([link, account]).args(options).output();
    let output = timeout(TIMEOUT, walk).await.expect("exits before the timeout").expect("the command starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {errors}"))
}

async fn get(sidecar: &Sidecar, lines: &str) -> RawResponse {
    raw::get_through(sidecar.proxy(), "http://api.test/x", lines).await
}

fn link(response: &RawResponse) -> String {
    assert_eq!(
        (response.status, response.json()["action"].as_str()),
        (424, Some("reauthorize")),
        "{}",
        response.text()
    );
    assert!(response.header("retry-after").is_none());
    response.json()["link"].as_str().expect("a link").to_owned()
}
