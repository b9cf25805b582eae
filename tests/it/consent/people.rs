//! People connect accounts at a real server: each for itself, once, and again when the server has let go.
//!
//! Not here: what a browser shows and does (`consent`).

mod accounts;
mod pages;
mod terminal;
mod unfinished;

use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;

use crate::rig::config::{Config, Connection, local};
use crate::rig::manager::MANAGER;
use crate::rig::peers::{AuthorizationServer, Upstream, peers_path, python};
use crate::rig::raw::{self, RawResponse};
use crate::rig::sidecar::Sidecar;

const PATIENCE: Duration = Duration::from_secs(30);
const OPERATOR: &str = "an-operator-of-these-tests-0123456789";
const VIEWER: &str = "a-viewer-of-these-tests-0123456789ab";

/// A connection `crm` of the client `client_id`, for whose token `api.test` asks.
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

/// A person follows a link to the server's pages and back: the last page, or with `options` what they say.
async fn person(link: &str, account: &str, options: &[&str]) -> Value {
    let walk = Command::new(python()).arg(peers_path("person.py")).args([link, account]).args(options).output();
    let output = timeout(PATIENCE, walk).await.expect("the person comes back").expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"))
}

async fn ask(sidecar: &Sidecar, lines: &str) -> RawResponse {
    raw::get_through(sidecar.proxy(), "http://api.test/x", lines).await
}

fn link(answer: &RawResponse) -> String {
    assert_eq!((answer.status, answer.json()["action"].as_str()), (424, Some("reauthorize")), "{}", answer.text());
    assert!(answer.header("retry-after").is_none());
    answer.json()["link"].as_str().expect("a link").to_owned()
}
