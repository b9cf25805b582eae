//! The connection `crm` of a real authorization server, with the host `api.test` of a real upstream.

use super::config::{Config, Connection, local};
use super::peers::{AuthorizationServer, Upstream};
use super::raw::{self, RawResponse};
use super::sidecar::Sidecar;

/// A connection of the client `person` that waits for a refresh token. `keys` are further ones of the connection.
pub fn person(server: &AuthorizationServer, upstream: &Upstream, top: &str, keys: &str) -> String {
    connection(server, upstream, top, &format!("client_id: person, client_secret: person-secret{keys}"))
}

pub fn connection(server: &AuthorizationServer, upstream: &Upstream, top: &str, keys: &str) -> String {
    let crm = Connection::new("crm", server.token_url()).client(keys).keys("scopes: [api.read]").plain("api.test");
    let config = Config::new().top(top).manager().trust_peers().host("api.test", local(upstream.http_port()));
    config.connection(crm).to_string()
}

pub async fn get(sidecar: &Sidecar, lines: &str) -> RawResponse {
    raw::get_through(sidecar.proxy(), "http://api.test/x", lines).await
}
