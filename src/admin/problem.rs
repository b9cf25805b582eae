//! Error responses of the API (RFC 9457); every one is built here.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Serialize;
use serde_json::{Map, Value};

use super::view::{DefinitionProblem, RevokedTokens};
use crate::config;
use crate::model::token::default_profile;
use crate::snapshot::{BoundConnection, BoundDefinition, Snapshot};
use crate::store::StoreError;
use crate::token::slot::{Consent, NEEDS_CONSENT_AGAIN, NoToken};

/// An error with a stable code and a sentence that names the remedy.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
    retry_after: Option<Duration>,
    more: Map<String, Value>,
}

/// The body of an error response.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Problem")]
pub struct ProblemBody {
    /// `urn:keybearer:error:` and the code.
    r#type: String,
    title: &'static str,
    status: u16,
    /// A stable name of the error, for programs.
    code: &'static str,
    /// What happened and what to do next.
    detail: String,
    #[serde(flatten)]
    #[schemars(schema_with = "more_members")]
    more: Map<String, Value>,
}

/// The members that some problems have.
fn more_members(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "properties": {
            "error": {
                "type": "string",
                "description": "The authorization server's error code, or our name for the failure.",
            },
            "description": { "type": ["string", "null"], "description": "The authorization server's own words." },
            "path": { "type": "string", "description": "Where a connection that cannot be changed is defined." },
            "problems": {
                "type": "array",
                "items": {
                    "anyOf": [
                        generator.subschema_for::<DefinitionProblem>(),
                        generator.subschema_for::<config::Problem>(),
                    ],
                },
            },
            "tokens": generator.subschema_for::<RevokedTokens>(),
        },
    })
}

impl Problem {
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Problem {
        Problem { status, code, detail: detail.into(), retry_after: None, more: Map::new() }
    }

    pub fn status(&self) -> StatusCode {
        self.status
    }

    pub fn code(&self) -> &'static str {
        self.code
    }

    pub fn retry_after(self, span: Duration) -> Problem {
        Problem { retry_after: Some(span), ..self }
    }

    /// Converts the problem to that of an import whose refresh token yielded no access token.
    pub fn not_proven(self) -> Problem {
        let detail = format!("the refresh token yielded no access token; nothing has changed: {}", self.detail);
        Problem { status: StatusCode::UNPROCESSABLE_ENTITY, code: "not_proven", detail, ..self }
    }

    /// Adds a member.
    pub fn with(mut self, name: &str, value: impl Serialize) -> Problem {
        // Maps with text keys, lists and scalars: this cannot fail.
        self.more.insert(name.to_owned(), serde_json::to_value(value).unwrap_or_default());
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = ProblemBody {
            r#type: format!("urn:keybearer:error:{}", self.code),
            title: self.status.canonical_reason().unwrap_or_default(),
            status: self.status.as_u16(),
            code: self.code,
            detail: self.detail,
            more: self.more,
        };
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"keybearer\""));
        }
        if let Some(span) = self.retry_after {
            // Rounded up: a retry that is too early would be refused again.
            headers.insert(header::RETRY_AFTER, (span.as_secs() + u64::from(span.subsec_nanos() > 0)).into());
        }
        response
    }
}

/// The request's query or body is invalid.
pub fn bad_request(detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "bad_request", detail)
}

/// Finds the connection of this name.
pub fn bound<'a>(snapshot: &'a Snapshot, name: &str) -> Result<&'a BoundConnection, Problem> {
    let found = snapshot.connections.iter().find(|bound| bound.connection.name.as_str() == name);
    found.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "connection_unknown", "no connection has this name"))
}

/// Finds the definition of this profile; `None`: of the default profile.
pub fn definition<'a>(bound: &'a BoundConnection, profile: Option<&str>) -> Result<&'a BoundDefinition, Problem> {
    let default = default_profile();
    bound.definition(profile.unwrap_or(default.as_str())).ok_or_else(|| {
        let names: Vec<_> = bound.definitions.iter().map(|own| format!("`{}`", own.connection.profile)).collect();
        let word = if names.len() == 1 { "profile" } else { "profiles" };
        let detail = format!("the connection has the {word} {}", names.join(", "));
        Problem::new(StatusCode::NOT_FOUND, "profile_unknown", detail)
    })
}

/// There is no configuration file to read.
pub fn no_file() -> Problem {
    Problem::new(StatusCode::CONFLICT, "no_file", "this instance was started without a configuration file")
}

/// The store failed.
pub fn store_unavailable(error: &StoreError) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "store_unavailable", error.to_string())
}

/// Explains why there is no token, with the proxy's error codes.
pub fn no_token(reason: NoToken) -> Problem {
    let unavailable = |detail: String| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "token_unavailable", detail);
    let in_brackets =
        |description: &Option<String>| description.as_deref().map(|text| format!(" ({text})")).unwrap_or_default();
    match reason {
        NoToken::Unavailable { error, description, retry_after } => {
            let problem =
                unavailable(format!("no token from the authorization server: {error}{}", in_brackets(&description)));
            problem.retry_after(retry_after).with("error", error).with("description", description)
        }
        NoToken::Refused { error, description } => {
            let detail = format!("the authorization server refused: {error}{}", in_brackets(&description));
            let problem = Problem::new(StatusCode::FAILED_DEPENDENCY, "token_refused", detail);
            problem.with("error", error).with("description", description)
        }
        NoToken::Script { message } => {
            let detail = format!("the connection's script returned no token: {message}");
            Problem::new(StatusCode::FAILED_DEPENDENCY, "script_failed", detail).with("error", "script_failed")
        }
        NoToken::Person { consent, error } => {
            let detail = match consent {
                Consent::Changed => format!("the connection {NEEDS_CONSENT_AGAIN}: `keybearer connect NAME`"),
                Consent::First | Consent::Again => {
                    format!("a person has to connect an account ({error}): `keybearer connect NAME`")
                }
            };
            Problem::new(StatusCode::FAILED_DEPENDENCY, consent.code(), detail).with("error", error)
        }
        NoToken::WaitTimeout => unavailable("no token arrived within timeouts.token_wait".to_owned()),
        NoToken::Forgotten => Problem::new(
            StatusCode::CONFLICT,
            "configuration_changed",
            "the connection has changed since the request began; retry",
        ),
    }
}
