//! Keys of the sections for token requests, token responses and rejected tokens.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::config::reading::{Field, Keys, shape};
use crate::model::connection::{RequestEncoding, ResponseEncoding, TimeUnit};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "token_request", deny_unknown_fields)]
pub struct TokenRequestFile {
    /// Encoding of the parameters.
    #[schemars(extend("default" = "form"))]
    pub encoding: Field<shape::OneOf<RequestEncoding>>,
    /// Additional headers of token requests; a value may be a secret.
    #[schemars(extend("default" = {}, "examples" = [{"X-Api-Version": "7"}]))]
    pub headers: Field<shape::Map<shape::Either<shape::Confidential, shape::Secret>>>,
}

impl Keys for TokenRequestFile {}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "token_response", deny_unknown_fields)]
pub struct TokenResponseFile {
    /// Encoding of the response.
    #[schemars(extend("default" = "json"))]
    pub encoding: Field<shape::OneOf<ResponseEncoding>>,
    /// JSON pointer (RFC 6901) to the access token.
    #[schemars(extend("default" = "/access_token"))]
    pub access_token: Field<shape::Text>,
    /// JSON pointer (RFC 6901) to the refresh token.
    #[schemars(extend("default" = "/refresh_token"))]
    pub refresh_token: Field<shape::Text>,
    /// JSON pointer to the token type, which must be Bearer; `any` skips the check.
    #[schemars(extend("default" = "/token_type"))]
    pub token_type: Field<shape::Text>,
    /// JSON pointer to the granted scopes.
    #[schemars(extend("default" = "/scope"))]
    pub scope: Field<shape::Text>,
    /// JSON pointer to the lifetime of the access token.
    #[schemars(extend("default" = "/expires_in"))]
    pub expires_in: Field<shape::Text>,
    /// Unit of `expires_in`.
    #[schemars(extend("default" = "s"))]
    pub expires_in_unit: Field<shape::OneOf<TimeUnit>>,
    /// JSON pointer to an absolute expiry time, which takes precedence over `expires_in`: Unix seconds or milliseconds,
    /// RFC 3339, or an HTTP date.
    #[schemars(extend("examples" = ["/expires_at"]))]
    pub expires_at: Field<shape::Text>,
    /// JSON pointer to the lifetime of the refresh token in seconds.
    #[schemars(extend("default" = "/refresh_token_expires_in"))]
    pub refresh_token_expires_in: Field<shape::Text>,
    /// JSON pointer to the error code.
    #[schemars(extend("default" = "/error"))]
    pub error: Field<shape::Text>,
    /// JSON pointer to the error description.
    #[schemars(extend("default" = "/error_description"))]
    pub error_description: Field<shape::Text>,
    /// Member that marks a 2xx response as a failure.
    #[schemars(extend("examples" = [{"pointer": "/ok", "equals": false}]))]
    pub failure: Field<FailureFile>,
    /// Error responses that mean the refresh token was refused, in addition to those of RFC 6749. A connection that
    /// needs a person then waits for consent; any other uses its own grant.
    #[schemars(extend(
        "examples" = [[{"status": 403, "error": "unauthorized_client", "description_contains": "refresh_token"}]]
    ))]
    pub refresh_refused: Field<shape::List<RefreshRefusedFile>>,
}

impl Keys for TokenResponseFile {}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "refresh_refused", deny_unknown_fields)]
#[schemars(extend("minProperties" = 1))]
pub struct RefreshRefusedFile {
    /// Status of the response; below 400 only with another condition.
    #[schemars(range(min = 200, max = 599), extend("examples" = [403]))]
    pub status: Field<shape::Integer>,
    /// Error code, as the server sends it.
    #[schemars(extend("examples" = ["unauthorized_client"]))]
    pub error: Field<shape::Text>,
    /// Text in the error description; case-insensitive.
    #[schemars(extend("examples" = ["refresh_token"]))]
    pub description_contains: Field<shape::Text>,
}

impl Keys for RefreshRefusedFile {}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "failure", deny_unknown_fields)]
pub struct FailureFile {
    /// JSON pointer to the member.
    #[schemars(required, extend("examples" = ["/ok"]))]
    pub pointer: Field<shape::Text>,
    /// Value that means failure.
    #[schemars(required, extend("examples" = [false]))]
    pub equals: Field<shape::Text>,
}

impl Keys for FailureFile {}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "script", deny_unknown_fields)]
#[schemars(extend("minProperties" = 1, "maxProperties" = 1))]
pub struct ScriptFile {
    /// Path of the script.
    #[schemars(extend("examples" = ["token.rhai"]))]
    pub file: Field<shape::FilePath>,
    /// The script itself.
    #[schemars(extend("examples" = ["fn token_request(request, ctx) { request }"]))]
    pub source: Field<shape::Text>,
}

impl Keys for ScriptFile {}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "token_rejected", deny_unknown_fields)]
#[schemars(extend(
    "dependentRequired" = {
        "header": ["contains"],
        "contains": ["header"],
        "pointer": ["equals"],
        "equals": ["pointer"]
    }
))]
pub struct TokenRejectedFile {
    /// Status of the API's response; below 400 only with another condition.
    #[schemars(required, range(min = 200, max = 599), extend("examples" = [401, 419]))]
    pub status: Field<shape::Integer>,
    /// Header of the response.
    #[schemars(extend("examples" = ["WWW-Authenticate"]))]
    pub header: Field<shape::Text>,
    /// Text in the header; case-insensitive.
    #[schemars(extend("examples" = ["invalid_token"]))]
    pub contains: Field<shape::Text>,
    /// JSON pointer (RFC 6901) into a JSON body of at most 64 KiB.
    #[schemars(extend("examples" = ["/0/errorCode"]))]
    pub pointer: Field<shape::Text>,
    /// Value at the pointer.
    #[schemars(extend("examples" = ["INVALID_SESSION_ID"]))]
    pub equals: Field<shape::Text>,
}

impl Keys for TokenRejectedFile {}
