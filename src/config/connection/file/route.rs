//! Keys of a route and of its sections.

use schemars::JsonSchema;
use serde::Deserialize;

use super::super::keywords::{Known, Nowhere};
use crate::config::reading::{Field, Keys, shape};
use crate::model::connection::{Existing, WithoutToken};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "route", deny_unknown_fields)]
#[schemars(extend(
    "oneOf" = [{"required": ["host"]}, {"required": ["mount"]}],
    "dependentRequired" = {"mount": ["upstream"], "upstream": ["mount"]},
    "dependentSchemas" = {"mount": {"properties": {"path": false}}}
))]
pub struct RouteFile {
    /// Requests to this host; `*.` stands for every name below, `:PORT` or `:*` for other ports than the usual ones.
    #[schemars(extend("examples" = ["api.acme.test", "*.acme.test", "acme.test:*"]))]
    pub host: Field<shape::Text>,
    /// Requests to Keybearer itself below this path, in place of `host`.
    #[schemars(extend("examples" = ["/crm"]))]
    pub mount: Field<shape::UrlPath>,
    /// Where a mount leads.
    #[schemars(extend("examples" = ["https://api.acme.test/v1"]))]
    pub upstream: Field<shape::Url>,
    /// Requests for this path of the host and all below it.
    #[schemars(extend("default" = "/", "examples" = ["/v1"]))]
    pub path: Field<shape::UrlPath>,
    /// Requests with these methods. Absent: all.
    #[schemars(extend("examples" = [["GET", "POST"]]))]
    pub methods: Field<shape::NonemptyList<shape::Method>>,
    /// Whose token it carries: a profile of the connection. Absent: the connection's own.
    #[schemars(extend("examples" = ["read-only"]))]
    pub profile: Field<shape::Name>,
    /// Whether plain requests leave over TLS (absent: they do, loopback and http mounts apart), and how.
    #[schemars(extend("examples" = [false, {"trust": ["ca.pem"]}]))]
    pub upstream_tls: Field<shape::Either<shape::Boolean, UpstreamTlsFile>>,
    /// Where the token goes; none: nowhere.
    #[schemars(extend(
        "default" = {"header": "Authorization", "scheme": "Bearer"},
        "examples" = [
            "none",
            [{"header": "Authorization"}, {"header": "X-Maps-Token", "scheme": "", "connection": "maps"}]
        ]
    ))]
    pub inject: Field<shape::Either<shape::OneOf<Nowhere>, shape::OneOrMany<InjectFile>>>,
    /// Headers that each request gets, whatever the caller sent there.
    #[schemars(extend(
        "propertyNames" = {"pattern": "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"},
        "default" = {},
        "examples" = [{"Notion-Version": "2022-06-28"}]
    ))]
    pub set_headers: Field<shape::Map<shape::Text>>,
    /// What the caller sent in the token's place, or as another bearer token (`?access_token=`), is overwritten, kept
    /// instead of the token, or makes the request refused.
    #[schemars(extend("default" = "overwrite"))]
    pub existing: Field<shape::OneOf<Existing>>,
    /// Further credentials that the caller brings and the API must not see: `known` (the usual headers and parameters),
    /// or names: X-Api-Key for header and parameter, "?api_key" for the parameter alone. Absent: none.
    #[schemars(extend("examples" = ["known", ["known", "X-Internal-Key"], ["X-Api-Key", "?api_key"]]))]
    pub strip: Field<shape::Either<shape::OneOf<Known>, shape::NonemptyList<shape::Text>>>,
    /// While there is no usable token the request fails, or is forwarded without one.
    #[schemars(extend("default" = "fail"))]
    pub without_token: Field<shape::OneOf<WithoutToken>>,
    /// It takes part only in requests that name the connection, and perhaps a profile: `Keybearer-Connection:
    /// crm/read-only`.
    #[schemars(extend("default" = false))]
    pub only_when_named: Field<shape::Boolean>,
    /// Whether TLS inside a tunnel to the host is opened, so that its requests get the token. Absent: it is, where
    /// there is `interception`. false: it is relayed as it is.
    #[schemars(extend("examples" = [false]))]
    pub intercept: Field<shape::Boolean>,
}

impl Keys for RouteFile {}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "upstream_tls", deny_unknown_fields)]
pub struct UpstreamTlsFile {
    /// PEM files of CA certificates, or of the server's own, in place of the global roots.
    #[schemars(extend("examples" = [["ca.pem"]]))]
    pub trust: Field<shape::NonemptyList<shape::Text>>,
    /// The name that the certificate must have, where it is not the host.
    #[schemars(extend("examples" = ["internal.acme.test"]))]
    pub server_name: Field<shape::Text>,
    /// Shows the connection's `mutual_tls` certificate, for tokens that are bound to it (RFC 8705).
    #[schemars(extend("default" = false))]
    pub mutual_tls: Field<shape::Boolean>,
}

impl Keys for UpstreamTlsFile {}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "inject", deny_unknown_fields)]
pub struct InjectFile {
    /// The header that carries the token.
    #[schemars(extend("default" = "Authorization", "examples" = ["X-Api-Key"]))]
    pub header: Field<shape::HeaderName>,
    /// The word before the token; empty: the token alone.
    #[schemars(extend("default" = "Bearer", "examples" = [""]))]
    pub scheme: Field<shape::Word>,
    /// In place of a header: the parameter of the query that carries the token.
    #[schemars(extend("examples" = ["access_token"]))]
    pub query: Field<shape::Text>,
    /// In an item of a list: whose token it is. Absent: the connection's own.
    #[schemars(extend("examples" = ["maps"]))]
    pub connection: Field<shape::Name>,
}

impl Keys for InjectFile {}
