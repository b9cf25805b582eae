//! Scripted token endpoints, for cases that real servers cannot produce: requests, responses, scripts, discovery,
//! revocation.
//!
//! Not here: real servers (`token::grants`), invalid responses (`token::lifecycle`).

mod discovery;
mod requests;
mod responses;
mod revocation;
mod scripts;

use crate::rig::manager::MANAGER;
use crate::rig::peers::Peers;
use crate::rig::raw::{self, RawResponse};
use crate::rig::scripted::{Received, Scripted};
use crate::rig::sidecar::Sidecar;

/// The fields of a form.
fn form(request: &Received) -> Vec<(String, String)> {
    url_decoded(std::str::from_utf8(&request.body).unwrap())
}

fn url_decoded(text: &str) -> Vec<(String, String)> {
    let decode = |text: &str| {
        let (mut bytes, mut rest) = (Vec::new(), text.replace('+', " "));
        while let Some(at) = rest.find('%') {
            bytes.extend_from_slice(&rest.as_bytes()[..at]);
            bytes.push(u8::from_str_radix(&rest[at + 1..at + 3], 16).unwrap());
            rest = rest[at + 3..].to_owned();
        }
        bytes.extend_from_slice(rest.as_bytes());
        String::from_utf8(bytes).unwrap()
    };
    let pairs = text.split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap()).map(|(name, value)| (decode(name), decode(value))).collect()
}

fn field(request: &Received, name: &str) -> String {
    form(request).into_iter().find(|(own, _)| own == name).map(|(_, value)| value).unwrap_or_default()
}

fn names(request: &Received) -> Vec<String> {
    form(request).into_iter().map(|(name, _)| name).collect()
}

/// A configuration with one connection, `crm` for `api.test`, with these keys.
fn config(server: &Scripted, upstream: &Scripted, keys: &str) -> String {
    config_of(&format!("token_url: \"http://{}/token\", {keys}", server.address), upstream)
}

fn config_of(keys: &str, upstream: &Scripted) -> String {
    format!(
        "admin: {{users: [{{name: ops, role: manager, token: {MANAGER}}}]}}\nhosts: {{api.test: \"{}\"}}\nconnections:\n\
         - {{name: crm, client_id: id, routes: [{{host: api.test, upstream_tls: false}}], {keys}}}\n",
        upstream.address
    )
}

async fn get(sidecar: &Sidecar, lines: &str) -> RawResponse {
    raw::get_through(sidecar.proxy(), "http://api.test/x", lines).await
}

/// Sends a request; returns the `Authorization` that the upstream received.
async fn injected(sidecar: &Sidecar, upstream: &Scripted) -> String {
    let response = get(sidecar, "").await;
    assert_eq!(response.status, 200, "{}", response.text());
    upstream.received().last().unwrap().values("authorization").join(" ")
}

fn key(name: &str) -> String {
    let (_, key) = Peers::certs().leaf(name);
    key.display().to_string()
}
