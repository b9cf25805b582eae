//! The connection `crm` with a real authorization server, and the host `api.test` with a real upstream.

use super::config::{Config, Connection, local};
use super::peers::{AuthorizationServer, Upstream};
use super::raw::{self, RawResponse};
use super::sidecar::Sidecar;

/// A connection of the client `person` that needs an imported refresh token. `keys`: further keys of the connection.
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
