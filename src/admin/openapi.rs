//! What an operation of the API is, and the description of a table of them in OpenAPI 3.1.

use axum::routing::MethodRouter;
use serde_json::{Map, Value, json};

use super::Admin;
use crate::model::Role;

pub const BASE: &str = "/api/v1";

/// One method of one path.
pub struct Operation {
    pub method: &'static str,
    /// Below [`BASE`].
    pub path: &'static str,
    /// The lowest that may.
    pub role: Role,
    pub summary: &'static str,
    /// Answers beside those that every operation has.
    pub answers: &'static [(u16, &'static str)],
    /// Takes a JSON body with these members.
    pub members: &'static [(&'static str, &'static str)],
    pub handler: fn() -> MethodRouter<Admin>,
}

/// Answers that every operation may give.
const ALWAYS: [(u16, &str); 3] =
    [(401, "no token, or nobody's"), (403, "the user's role is too low"), (421, "the Host header is none of ours")];
/// … and those with a body.
const WITH_BODY: [(u16, &str); 4] = [
    (400, "the body is not understood"),
    (408, "the body stopped arriving"),
    (413, "the body is too large"),
    (415, "the body is not JSON"),
];

pub fn document(operations: &[Operation]) -> Value {
    let mut paths = Map::new();
    for operation in operations {
        let path = paths.entry(format!("{BASE}{}", operation.path)).or_insert_with(|| json!({}));
        if let Some(methods) = path.as_object_mut() {
            methods.insert(operation.method.to_owned(), described(operation));
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Keybearer",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Times are RFC 3339 in UTC. Errors are application/problem+json (RFC 9457) with a stable `code`.",
        },
        "paths": paths,
        "components": { "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } } },
        "security": [{ "token": [] }],
    })
}

fn described(operation: &Operation) -> Value {
    let with_body: &[_] = if matches!(operation.method, "post" | "put") { &WITH_BODY } else { &[] };
    let answer = |(status, what): &(u16, &str)| (status.to_string(), json!({ "description": what }));
    let answers: Map<_, _> = operation.answers.iter().chain(&ALWAYS).chain(with_body).map(answer).collect();
    let mut described = json!({
        "summary": operation.summary,
        "x-role": operation.role.as_str(),
        "responses": answers,
    });
    let parameters =
        [("name", "^[a-z0-9][a-z0-9_-]{0,62}$"), ("secret", "^[A-Za-z0-9._/-]{1,200}$"), ("id", "^[A-Za-z0-9_-]{23}$")];
    for (name, pattern) in parameters {
        if operation.path.contains(&format!("{{{name}}}")) {
            let schema = json!({ "type": "string", "pattern": pattern });
            described["parameters"] = json!([{ "name": name, "in": "path", "required": true, "schema": schema }]);
        }
    }
    if !operation.members.is_empty() {
        let member =
            |(name, what): &(&str, &str)| ((*name).to_owned(), json!({ "type": "string", "description": what }));
        let members: Map<_, _> = operation.members.iter().map(member).collect();
        let schema = json!({ "type": "object", "additionalProperties": false, "properties": members });
        described["requestBody"] = json!({ "content": { "application/json": { "schema": schema } } });
    }
    described
}
