//! Keys of the sections for the client and the authorization server.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::config::forward_proxy::ForwardProxyFile;
use crate::config::reading::{Field, Keys, shape};
use crate::model::connection::{Algorithm, Pkce, ServerProxy, Thumbprint};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "client_assertion", deny_unknown_fields)]
pub struct ClientAssertionFile {
    /// Private key in PEM, for `private_key_jwt`.
    #[schemars(extend("examples" = [{"file": "/run/secrets/client.key"}]))]
    pub key: Field<shape::Secret>,
    /// Signature algorithm. Absent: RS256, or HS256 with a secret.
    #[schemars(extend("examples" = ["PS256", "ES256"]))]
    pub algorithm: Field<shape::OneOf<Algorithm>>,
    /// The `kid` header parameter.
    #[schemars(extend("examples" = ["2026-01"]))]
    pub key_id: Field<shape::Text>,
    /// PEM file of the key's certificate, whose thumbprint goes into the header.
    #[schemars(extend("examples" = ["client.pem"]))]
    pub certificate: Field<shape::FilePath>,
    /// Header parameter for the thumbprint. Absent: x5t#S256.
    #[schemars(extend("examples" = ["x5t#S256"]))]
    pub thumbprint: Field<shape::OneOf<Thumbprint>>,
    /// The `aud` claim: token_url, issuer, or any other text.
    #[schemars(extend("default" = "token_url"))]
    pub audience: Field<shape::Text>,
}

impl Keys for ClientAssertionFile {}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "mutual_tls", deny_unknown_fields)]
pub struct MutualTlsFile {
    /// PEM file of the certificate, followed by its chain.
    #[schemars(required, extend("examples" = ["client.pem"]))]
    pub certificate: Field<shape::FilePath>,
    /// Private key of the certificate in PEM.
    #[schemars(required, extend("examples" = [{"file": "/run/secrets/client.key"}]))]
    pub key: Field<shape::Secret>,
}

impl Keys for MutualTlsFile {}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "authorization_server", deny_unknown_fields)]
pub struct AuthorizationServerFile {
    /// PEM files of CA certificates, or of the server's own certificate, instead of the global roots.
    #[schemars(extend("examples" = [["idp-ca.pem"]]))]
    pub trust: Field<shape::NonemptyList<shape::FilePath>>,
    /// Egress proxy for these endpoints: inherit (that of `egress`), none, a URL, or a map with credentials.
    #[schemars(extend("default" = "inherit"))]
    pub proxy: Field<shape::Either<shape::OneOf<ServerProxy>, shape::Either<shape::Url, ForwardProxyFile>>>,
    /// Deadline of a whole call, from the dial to the last byte of the response.
    #[schemars(extend("default" = "10s"))]
    pub timeout: Field<shape::Wait>,
}

impl Keys for AuthorizationServerFile {}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "pkce", deny_unknown_fields)]
pub struct PkceFile {
    /// Whether PKCE is required. false alone does not switch it off: write `method: none` as well.
    #[schemars(extend("default" = true))]
    pub required: Field<shape::Boolean>,
    /// plain and none are only for servers that support nothing better; `check` warns.
    #[schemars(extend("default" = "S256"))]
    pub method: Field<shape::OneOf<Pkce>>,
}

impl Keys for PkceFile {}
