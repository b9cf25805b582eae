//! Keys of the sections that a grant needs.

use schemars::JsonSchema;
use serde::Deserialize;

use super::super::keywords::{FromCaller, SigningAlgorithm};
use crate::config::reading::{Field, Keys, shape};

/// Claims that have their own key, or that are generated for each assertion.
pub const OWN_CLAIMS: [&str; 6] = ["iss", "sub", "aud", "exp", "iat", "jti"];

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "assertion", deny_unknown_fields)]
pub struct AssertionFile {
    /// The private key in PEM.
    #[schemars(required, extend("examples" = [{"file": "/run/secrets/client.key"}]))]
    pub key: Field<shape::Secret>,
    /// How it is signed.
    #[schemars(extend("default" = "RS256"))]
    pub algorithm: Field<shape::OneOf<SigningAlgorithm>>,
    /// The header's `kid`.
    #[schemars(extend("examples" = ["2026-01"]))]
    pub key_id: Field<shape::Text>,
    /// The `iss`. Absent: the client identifier.
    #[schemars(extend("examples" = ["integration@project.iam.test"]))]
    pub issuer: Field<shape::Text>,
    /// The `sub`. Absent: the subject of a `per_subject` connection, else the issuer.
    #[schemars(extend("examples" = ["ann@acme.test"]))]
    pub subject: Field<shape::Text>,
    /// The `aud`: token_url, issuer, or a text of its own.
    #[schemars(extend("default" = "token_url"))]
    pub audience: Field<shape::Text>,
    /// From issue to expiry; whole seconds, at most 1h.
    #[schemars(extend("default" = "3m"))]
    pub lifetime: Field<shape::Wait>,
    /// Further claims; plain numbers and booleans stay what they are.
    #[schemars(extend(
        "propertyNames" = {"not": {"enum": OWN_CLAIMS}},
        "default" = {},
        "examples" = [{"scope": "https://www.googleapis.com/auth/calendar"}]
    ))]
    pub claims: Field<shape::Map<shape::Any>>,
}

impl Keys for AssertionFile {}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "subject_token", deny_unknown_fields)]
pub struct SubjectTokenFile {
    /// The bearer token of the caller's own request, in its place.
    #[schemars(required, extend("examples" = ["caller"]))]
    pub from: Field<shape::OneOf<FromCaller>>,
}

impl Keys for SubjectTokenFile {}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "actor_token", deny_unknown_fields)]
pub struct ActorTokenFile {
    /// The token.
    #[schemars(required, extend("examples" = [{"file": "actor"}]))]
    pub token: Field<shape::Secret>,
    /// Its kind. Absent: jwt.
    #[schemars(extend("examples" = ["jwt"]))]
    pub token_type: Field<shape::Text>,
}

impl Keys for ActorTokenFile {}
