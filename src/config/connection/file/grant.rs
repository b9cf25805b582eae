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
    /// Private key in PEM.
    #[schemars(required, extend("examples" = [{"file": "/run/secrets/client.key"}]))]
    pub key: Field<shape::Secret>,
    /// Signature algorithm.
    #[schemars(extend("default" = "RS256"))]
    pub algorithm: Field<shape::OneOf<SigningAlgorithm>>,
    /// The `kid` header parameter.
    #[schemars(extend("examples" = ["2026-01"]))]
    pub key_id: Field<shape::Text>,
    /// The `iss` claim. Absent: the client identifier.
    #[schemars(extend("examples" = ["integration@project.iam.test"]))]
    pub issuer: Field<shape::Text>,
    /// The `sub` claim. Absent: the subject of a `per_subject` connection, else the issuer.
    #[schemars(extend("examples" = ["ann@acme.test"]))]
    pub subject: Field<shape::Text>,
    /// The `aud` claim: token_url, issuer, or any other text.
    #[schemars(extend("default" = "token_url"))]
    pub audience: Field<shape::Text>,
    /// Time from issue to expiry; whole seconds, at most 1h.
    #[schemars(extend("default" = "3m"))]
    pub lifetime: Field<shape::Wait>,
    /// Additional claims; plain numbers and booleans keep their type.
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
    /// caller: the bearer token in the `Authorization` header of the caller's own request.
    #[schemars(required, extend("examples" = ["caller"]))]
    pub from: Field<shape::OneOf<FromCaller>>,
}

impl Keys for SubjectTokenFile {}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "actor_token", deny_unknown_fields)]
pub struct ActorTokenFile {
    /// Token of the actor.
    #[schemars(required, extend("examples" = [{"file": "actor"}]))]
    pub token: Field<shape::Secret>,
    /// Type of the token. Absent: jwt.
    #[schemars(extend("examples" = ["jwt"]))]
    pub token_type: Field<shape::Text>,
}

impl Keys for ActorTokenFile {}
