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
    /// Host of the request. `*.` matches every name below; `:PORT` or `:*` matches ports other than the default ones.
    #[schemars(extend("examples" = ["api.acme.test", "*.acme.test", "acme.test:*"]))]
    pub host: Field<shape::Text>,
    /// Instead of `host`: path on Keybearer itself below which requests match.
    #[schemars(extend("examples" = ["/crm"]))]
    pub mount: Field<shape::UrlPath>,
    /// Base URL that a mount forwards to.
    #[schemars(extend("examples" = ["https://api.acme.test/v1"]))]
    pub upstream: Field<shape::Url>,
    /// Path on the host; requests for it and everything below it match. Not with `mount`.
    #[schemars(extend("default" = "/", "examples" = ["/v1"]))]
    pub path: Field<shape::UrlPath>,
    /// Methods that match. Absent: all.
    #[schemars(extend("examples" = [["GET", "POST"]]))]
    pub methods: Field<shape::NonemptyList<shape::Method>>,
    /// Profile of the connection whose token is injected. Absent: the connection itself.
    #[schemars(extend("examples" = ["read-only"]))]
    pub profile: Field<shape::Name>,
    /// Whether plain http requests are forwarded over TLS, and with which settings. Absent: true, except for loopback
    /// and http mounts.
    #[schemars(extend("examples" = [false, {"trust": ["ca.pem"]}]))]
    pub upstream_tls: Field<shape::Either<shape::Boolean, UpstreamTlsFile>>,
    /// Injection points of the token; none: no token is injected.
    #[schemars(extend(
        "default" = {"header": "Authorization", "scheme": "Bearer"},
        "examples" = [
            "none",
            [{"header": "Authorization"}, {"header": "X-Maps-Token", "scheme": "", "connection": "maps"}]
        ]
    ))]
    pub inject: Field<shape::Either<shape::OneOf<Nowhere>, shape::OneOrMany<InjectFile>>>,
    /// Headers set on each request, replacing any that the caller sent.
    #[schemars(extend(
        "propertyNames" = {"pattern": "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"},
        "default" = {},
        "examples" = [{"Notion-Version": "2022-06-28"}]
    ))]
    pub set_headers: Field<shape::Map<shape::Confidential>>,
    /// What happens if the caller sent a value at the injection point, or another bearer token (`?access_token=`): the
    /// token overwrites it, it is kept and no token is injected, or the request is refused.
    #[schemars(extend("default" = "overwrite"))]
    pub existing: Field<shape::OneOf<Existing>>,
    /// Additional caller credentials to remove before the request is forwarded: `known` (the usual headers and
    /// parameters), or names: X-Api-Key for header and parameter, "?api_key" for the parameter only. Absent: none.
    #[schemars(extend("examples" = ["known", ["known", "X-Internal-Key"], ["X-Api-Key", "?api_key"]]))]
    pub strip: Field<shape::Either<shape::OneOf<Known>, shape::NonemptyList<shape::Text>>>,
    /// Whether a request fails or is forwarded without a token if there is no usable one.
    #[schemars(extend("default" = "fail"))]
    pub without_token: Field<shape::OneOf<WithoutToken>>,
    /// true: matches only requests that name the connection, optionally with a profile: `Keybearer-Connection:
    /// crm/read-only`.
    #[schemars(extend("default" = false))]
    pub only_when_named: Field<shape::Boolean>,
    /// Whether TLS inside a tunnel to the host is intercepted, so that its requests get the token. Absent: true if
    /// `interception` is configured. false: TLS is relayed untouched.
    #[schemars(extend("examples" = [false]))]
    pub intercept: Field<shape::Boolean>,
}

impl Keys for RouteFile {}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "upstream_tls", deny_unknown_fields)]
pub struct UpstreamTlsFile {
    /// PEM files of CA certificates, or of the server's own certificate, instead of the global roots.
    #[schemars(extend("examples" = [["ca.pem"]]))]
    pub trust: Field<shape::NonemptyList<shape::FilePath>>,
    /// Name that the certificate must contain, if it differs from the host.
    #[schemars(extend("examples" = ["internal.acme.test"]))]
    pub server_name: Field<shape::Text>,
    /// Presents the connection's `mutual_tls` certificate, for certificate-bound tokens (RFC 8705).
    #[schemars(extend("default" = false))]
    pub mutual_tls: Field<shape::Boolean>,
}

impl Keys for UpstreamTlsFile {}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "inject", deny_unknown_fields)]
pub struct InjectFile {
    /// Header that carries the token.
    #[schemars(extend("default" = "Authorization", "examples" = ["X-Api-Key"]))]
    pub header: Field<shape::HeaderName>,
    /// Authentication scheme before the token; empty: only the token.
    #[schemars(extend("default" = "Bearer", "examples" = [""]))]
    pub scheme: Field<shape::Word>,
    /// Instead of a header: query parameter that carries the token.
    #[schemars(extend("examples" = ["access_token"]))]
    pub query: Field<shape::Text>,
    /// In a list: connection whose token is injected. Absent: the route's own.
    #[schemars(extend("examples" = ["maps"]))]
    pub connection: Field<shape::Name>,
}

impl Keys for InjectFile {}
