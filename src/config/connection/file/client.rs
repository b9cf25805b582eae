//! Keys of the sections for the client and the authorization server.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::config::forward_proxy::ForwardProxyFile;
use crate::config::reading::{Field, Keys, shape};
use crate::model::connection::{Algorithm, Pkce, ServerProxy, Thumbprint};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "client_assertion", deny_unknown_fields)]
pub struct ClientAssertionFile {
    /// The private key in PEM, for `private_key_jwt`.
    #[schemars(extend("examples" = [{"file": "/run/secrets/client.key"}]))]
    pub key: Field<shape::Secret>,
    /// How it is signed. Absent: RS256, with a secret HS256.
    #[schemars(extend("examples" = ["PS256", "ES256"]))]
    pub algorithm: Field<shape::OneOf<Algorithm>>,
    /// The header's `kid`.
    #[schemars(extend("examples" = ["2026-01"]))]
    pub key_id: Field<shape::Text>,
    /// The key's certificate in PEM, of which the header has a thumbprint.
    #[schemars(extend("examples" = ["client.pem"]))]
    pub certificate: Field<shape::Text>,
    /// Which thumbprint. Absent: x5t#S256.
    #[schemars(extend("examples" = ["x5t#S256"]))]
    pub thumbprint: Field<shape::OneOf<Thumbprint>>,
    /// The `aud`: token_url, issuer, or a text of its own.
    #[schemars(extend("default" = "token_url"))]
    pub audience: Field<shape::Text>,
}

impl Keys for ClientAssertionFile {}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "mutual_tls", deny_unknown_fields)]
pub struct MutualTlsFile {
    /// PEM file of the certificate, its chain behind it.
    #[schemars(required, extend("examples" = ["client.pem"]))]
    pub certificate: Field<shape::Text>,
    /// Its private key in PEM.
    #[schemars(required, extend("examples" = [{"file": "/run/secrets/client.key"}]))]
    pub key: Field<shape::Secret>,
}

impl Keys for MutualTlsFile {}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "authorization_server", deny_unknown_fields)]
pub struct AuthorizationServerFile {
    /// PEM files of CA certificates, or of the server's own, in place of the global roots.
    #[schemars(extend("examples" = [["idp-ca.pem"]]))]
    pub trust: Field<shape::NonemptyList<shape::Text>>,
    /// A proxy for these endpoints: its URL, a map with credentials, none, or inherit.
    #[schemars(extend("default" = "inherit"))]
    pub proxy: Field<shape::Either<shape::OneOf<ServerProxy>, shape::Either<shape::Url, ForwardProxyFile>>>,
    /// Timeout of a whole call, from the dial to the last byte of the response.
    #[schemars(extend("default" = "10s"))]
    pub timeout: Field<shape::Wait>,
}

impl Keys for AuthorizationServerFile {}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "pkce", deny_unknown_fields)]
pub struct PkceFile {
    /// Sent with every authorization.
    #[schemars(extend("default" = true))]
    pub required: Field<shape::Boolean>,
    /// plain and none only for servers that can do no better; `check` warns.
    #[schemars(extend("default" = "S256"))]
    pub method: Field<shape::OneOf<Pkce>>,
}

impl Keys for PkceFile {}
