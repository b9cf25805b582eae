//! The keys of a connection and of a profile; the keys of their sections are in the folder.
//!
//! Not here: the readers, because each of them needs several keys of the connection.

mod client;
mod grant;
mod route;
mod token;

use schemars::JsonSchema;
use serde::Deserialize;

pub use self::client::{AuthorizationServerFile, ClientAssertionFile, MutualTlsFile, PkceFile};
pub use self::grant::{ActorTokenFile, AssertionFile, OWN_CLAIMS, SubjectTokenFile};
pub use self::route::{InjectFile, RouteFile, UpstreamTlsFile};
pub use self::token::{
    FailureFile, RefreshRefusedFile, ScriptFile, TokenRejectedFile, TokenRequestFile, TokenResponseFile,
};
use super::keywords::{SameApplication, SendCredentials};
use super::params::{AUTHORIZATION_OWN, TOKEN_REQUEST_OWN, other_names};
use crate::config::reading::{Field, Keys, shape};
use crate::model::connection::{BasicEncoding, GrantKind, Tokens};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "connection", deny_unknown_fields)]
#[schemars(extend("anyOf" = [{"required": ["token_url"]}, {"required": ["issuer"]}]))]
pub struct ConnectionFile {
    /// Unique across all files.
    #[schemars(required, extend("examples" = ["crm"]))]
    pub name: Field<shape::Name>,
    /// false: its requests are refused, and no token is acquired.
    #[schemars(extend("default" = true))]
    pub active: Field<shape::Boolean>,
    /// Free-text note for people.
    #[schemars(extend("examples" = ["The CRM's API, as the billing service"]))]
    pub comments: Field<shape::Text>,
    /// Logo of the service, shown on pages: https; PNG, JPEG, GIF or WebP, of at most 256 KiB and 1024 × 1024 pixels.
    /// Keybearer fetches it once, when a page first shows it, and serves a copy that it encoded itself. It opens no
    /// private address.
    #[schemars(extend("examples" = ["https://www.acme.test/logo.png"]))]
    pub logo_url: Field<shape::Url>,
    /// Application that owns the connection; `accessible_from: application` refers to it.
    #[schemars(extend("examples" = ["billing"]))]
    pub application: Field<shape::Text>,
    /// Names and values that the script reads as `ctx.variables`.
    #[schemars(extend("examples" = [{"tenant": "acme"}]))]
    pub variables: Field<shape::Map<shape::Confidential>>,
    /// Grant that acquires a token.
    #[schemars(extend("default" = "client_credentials"))]
    pub grant: Field<shape::OneOf<GrantKind>>,
    /// Value of `grant_type` in token requests, for servers with a name of their own for the grant.
    #[schemars(extend("examples" = ["account_credentials"]))]
    pub grant_type: Field<shape::Text>,
    /// Client identifier at the authorization server.
    #[schemars(required, extend("examples" = ["billing-service"]))]
    pub client_id: Field<shape::Text>,
    /// Client secret; during a rotation, a list that is tried in order.
    #[schemars(extend("examples" = [{"file": "/run/secrets/crm"}, [{"file": "new"}, {"file": "old"}]]))]
    pub client_secret: Field<shape::OneOrMany<shape::Secret>>,
    /// When the client secret expires (RFC 3339): a forecast. `check` warns from 30 days before.
    #[schemars(extend("examples" = ["2027-05-01T00:00:00Z"]))]
    pub client_secret_expires_at: Field<shape::Timestamp>,
    /// How the client authenticates: with its secret in the body or as HTTP Basic, with a JWT signed by its key or its
    /// secret, with its TLS certificate, or with its identifier only. Without a secret, the default is none.
    #[schemars(extend("default" = "body"))]
    pub send_credentials: Field<shape::OneOf<SendCredentials>>,
    /// With `basic`: form-encodes identifier and secret first (RFC 6749 §2.3.1), or sends them raw, for servers that do
    /// not decode them.
    #[schemars(extend("default" = "form"))]
    pub basic_encoding: Field<shape::OneOf<BasicEncoding>>,
    /// The JWT of `private_key_jwt` or `client_secret_jwt`.
    #[schemars(extend(
        "examples" = [
            {"key": {"file": "/run/secrets/client.key"}, "algorithm": "PS256", "certificate": "client.pem"}
        ]
    ))]
    pub client_assertion: Field<ClientAssertionFile>,
    /// Client certificate for the token and revocation endpoints, with any `send_credentials`: a certificate and its
    /// key, or the name of one under `mutual_tls_profiles`.
    #[schemars(extend(
        "examples" = [{"certificate": "client.pem", "key": {"file": "/run/secrets/client.key"}}, "partner"]
    ))]
    pub mutual_tls: Field<shape::Either<MutualTlsFile, shape::Name>>,
    /// Token endpoint; https, except on loopback. Optional with `issuer`.
    #[schemars(extend("examples" = ["https://login.acme.test/oauth2/token"]))]
    pub token_url: Field<shape::EndpointUrl>,
    /// Revocation endpoint (RFC 7009). Absent: the one in the issuer's metadata; without one, nothing is revoked at the
    /// server.
    #[schemars(extend("examples" = ["https://login.acme.test/oauth2/revoke"]))]
    pub revocation_url: Field<shape::EndpointUrl>,
    /// Authorization endpoint, where a person's browser is sent. Its query is kept, except for names that the grant or
    /// `authorize_params` sets. With it, `grant` defaults to authorization_code.
    #[schemars(extend("examples" = ["https://login.acme.test/oauth2/authorize?prompt=consent"]))]
    pub authorization_url: Field<shape::Url>,
    /// Device authorization endpoint (RFC 8628).
    #[schemars(extend("examples" = ["https://login.acme.test/oauth2/device"]))]
    pub device_authorization_url: Field<shape::EndpointUrl>,
    /// Redirect URI, where the browser returns. Absent: `<public_url>/oauth/callback`.
    #[schemars(extend("examples" = ["https://keys.acme.test/oauth/callback"]))]
    pub redirect_url: Field<shape::Url>,
    /// Additional parameters of the authorization request.
    #[schemars(extend(
        "propertyNames" = other_names(&AUTHORIZATION_OWN),
        "examples" = [{"access_type": "offline", "prompt": "consent"}]
    ))]
    pub authorize_params: Field<shape::Map<shape::Text>>,
    /// Proof Key for Code Exchange (RFC 7636): binds the code to the authorization request.
    #[schemars(extend("examples" = [{"required": true, "method": "S256"}]))]
    pub pkce: Field<PkceFile>,
    /// Issuer whose metadata (RFC 8414, OpenID) supplies the endpoints that are not configured here.
    #[schemars(extend("examples" = ["https://login.acme.test"]))]
    pub issuer: Field<shape::Url>,
    /// Permits http beyond loopback for OAuth endpoints and mounts.
    #[schemars(extend("default" = false))]
    pub allow_cleartext: Field<shape::Boolean>,
    /// How the OAuth endpoints are reached.
    #[schemars(extend("examples" = [{"timeout": "5s"}]))]
    pub authorization_server: Field<AuthorizationServerFile>,
    /// Scopes to request: text that is split at commas and white space, or a list whose items are not split.
    #[schemars(extend("examples" = [["crm.read", "crm.write"], "crm.read,crm.write"]))]
    pub scopes: Field<shape::Either<shape::Text, shape::List<shape::Text>>>,
    /// The `audience` of token requests, for servers that require one.
    #[schemars(extend("examples" = ["https://api.acme.test"]))]
    pub audience: Field<shape::Text>,
    /// The `resource` of token requests (RFC 8707).
    #[schemars(extend("examples" = ["https://api.acme.test"]))]
    pub resource: Field<shape::Text>,
    /// Additional parameters of token requests.
    #[schemars(extend(
        "propertyNames" = other_names(&TOKEN_REQUEST_OWN),
        "default" = {},
        "examples" = [{"tenant": "acme"}]
    ))]
    pub token_params: Field<shape::Map<shape::Confidential>>,
    /// Encoding and headers of token requests, for servers that need more than a form.
    #[schemars(extend("examples" = [{"encoding": "json"}]))]
    pub token_request: Field<TokenRequestFile>,
    /// Where the members of a token response are, for servers that depart from RFC 6749.
    #[schemars(extend("examples" = [{"access_token": "/data/token"}]))]
    pub token_response: Field<TokenResponseFile>,
    /// Rhai script that edits the token request and the token response.
    #[schemars(extend("examples" = [{"file": "token.rhai"}]))]
    pub script: Field<ScriptFile>,
    /// Assumed refresh token lifetime if the token response states none; used only for warnings and a gauge.
    #[schemars(extend("examples" = ["100d"]))]
    pub refresh_token_lifespan: Field<shape::Wait>,
    /// Access token lifetime if the token response states none.
    #[schemars(extend("default" = "1h"))]
    pub default_token_lifetime: Field<shape::Wait>,
    /// How long before expiry a token is refreshed; at most half of its lifetime.
    #[schemars(extend("default" = "5m"))]
    pub refresh_ahead: Field<shape::Duration>,
    /// Remaining lifetime below which a token is not injected; at most a quarter of its lifetime.
    #[schemars(extend("default" = "5s"))]
    pub usable_margin: Field<shape::Duration>,
    /// With `tokens: per_subject`: a stored token is refreshed at least this often, used or not. Absent: only while in
    /// use.
    #[schemars(extend("examples" = ["24h"]))]
    pub keep_warm: Field<shape::Wait>,
    /// shared: one token for all callers. per_subject: one token for each subject (`Keybearer-Subject`, else the
    /// caller's name).
    #[schemars(extend("default" = "shared"))]
    pub tokens: Field<shape::OneOf<Tokens>>,
    /// With `grant: password`: user name of the resource owner.
    #[schemars(extend("examples" = ["integration@acme.test"]))]
    pub username: Field<shape::Text>,
    /// With `grant: password`: password of the resource owner.
    #[schemars(extend("examples" = [{"file": "/run/secrets/crm-password"}]))]
    pub password: Field<shape::Secret>,
    /// With `grant: jwt_bearer`: the JWT that Keybearer signs. With `grant: saml2_bearer`: {file: PATH} of the signed
    /// assertion.
    #[schemars(extend(
        "examples" = [
            {"key": {"file": "/run/secrets/jwt.key"}, "subject": "integration@acme.test"},
            {"file": "assertion.xml"}
        ]
    ))]
    pub assertion: Field<shape::Either<AssertionFile, shape::Secret>>,
    /// With `grant: token_exchange`: the token to exchange, such as a service account's, or the caller's own.
    #[schemars(extend("examples" = [{"from": "caller"}, {"file": "/var/run/secrets/tokens/idp"}]))]
    pub subject_token: Field<shape::Either<SubjectTokenFile, shape::Secret>>,
    /// Type of the subject token: access_token, jwt, id_token, saml2, or a URI. Absent: access_token for a caller's own
    /// token, else jwt.
    #[schemars(extend("examples" = ["jwt"]))]
    pub subject_token_type: Field<shape::Text>,
    /// With `grant: token_exchange`: the type of token to request.
    #[schemars(extend("examples" = ["access_token"]))]
    pub requested_token_type: Field<shape::Text>,
    /// With `grant: token_exchange`: token of the party that acts for the subject.
    #[schemars(extend("examples" = [{"token": {"file": "actor"}, "token_type": "jwt"}]))]
    pub actor_token: Field<shape::Either<ActorTokenFile, shape::Secret>>,
    /// Responses that mean the API rejected the token.
    #[schemars(extend("default" = [{"status": 401}]))]
    pub token_rejected: Field<shape::List<TokenRejectedFile>>,
    /// Callers that may use the connection; `application`: those with the same `application`. Absent: all; an empty
    /// list: none.
    #[schemars(extend("examples" = [["billing"], "application"]))]
    pub accessible_from: Field<shape::Either<shape::List<shape::Name>, shape::OneOf<SameApplication>>>,
    /// Names that `scopes` may use, here and in profiles, each with the scopes to request for it. Absent: any scope.
    #[schemars(extend("propertyNames" = {"minLength": 1}, "examples" = [{"Read": "crm.read", "Write": "crm.write"}]))]
    pub available_scopes: Field<shape::Map<shape::Either<shape::Text, shape::List<shape::Text>>>>,
    /// Additional tokens of the same client, each selected by a route or by the request. A profile inherits the keys
    /// that it does not set.
    #[schemars(extend("examples" = [[{"name": "read-only", "scopes": ["crm.read"]}]]))]
    pub profiles: Field<shape::List<ProfileFile>>,
    /// Requests that get the connection's token.
    #[schemars(extend("examples" = [[{"host": "api.acme.test", "path": "/v1"}]]))]
    pub routes: Field<shape::List<RouteFile>>,
}

impl Keys for ConnectionFile {
    const NOT_BUILT: &'static [&'static str] = &["provider"];
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "profile", deny_unknown_fields)]
pub struct ProfileFile {
    /// Name in routes, requests, metrics and the API; `default` is the connection itself.
    #[schemars(required, extend("not" = {"const": "default"}, "examples" = ["read-only"]))]
    pub name: Field<shape::Name>,
    /// Grant that acquires the first token; the keys that the grant needs belong to the connection.
    #[schemars(extend("examples" = ["client_credentials"]))]
    pub grant: Field<shape::OneOf<GrantKind>>,
    /// Scopes to request.
    #[schemars(extend("examples" = [["crm.read"]]))]
    pub scopes: Field<shape::Either<shape::Text, shape::List<shape::Text>>>,
    /// The `audience` of its token requests.
    #[schemars(extend("examples" = ["https://api.acme.test"]))]
    pub audience: Field<shape::Text>,
    /// The `resource` of its token requests (RFC 8707).
    #[schemars(extend("examples" = ["https://api.acme.test"]))]
    pub resource: Field<shape::Text>,
    /// Additional parameters of its authorization requests, instead of the connection's.
    #[schemars(extend("propertyNames" = other_names(&AUTHORIZATION_OWN), "examples" = [{"prompt": "consent"}]))]
    pub authorize_params: Field<shape::Map<shape::Text>>,
    /// Additional parameters of its token requests, instead of the connection's.
    #[schemars(extend("propertyNames" = other_names(&TOKEN_REQUEST_OWN), "examples" = [{"tenant": "acme"}]))]
    pub token_params: Field<shape::Map<shape::Confidential>>,
}

impl Keys for ProfileFile {}
