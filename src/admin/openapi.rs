//! The operations of the API as a type, and their description in OpenAPI 3.1.

use axum::routing::MethodRouter;
use serde_json::{Map, Value, json};

use super::Admin;
use crate::model::Role;

pub const BASE: &str = "/api/v1";

/// One method of one path.
pub struct Operation {
    pub method: &'static str,
    /// Relative to [`BASE`].
    pub path: &'static str,
    /// The lowest role that may use it.
    pub role: Role,
    pub summary: &'static str,
    /// Responses in addition to those of every operation.
    pub responses: &'static [(u16, &'static str)],
    /// Members of the JSON body; of a GET, parameters of the query.
    pub members: &'static [(&'static str, &'static str)],
    pub handler: fn() -> MethodRouter<Admin>,
}

/// Responses of every operation.
const COMMON_RESPONSES: [(u16, &str); 3] = [
    (401, "no token, or an unknown one"),
    (403, "the user's role is too low"),
    (421, "the Host header is not accepted"),
];
/// Responses of every operation with a body.
const BODY_RESPONSES: [(u16, &str); 4] = [
    (400, "the body is invalid"),
    (408, "timed out waiting for the rest of the body"),
    (413, "the body is too large"),
    (415, "the body is not JSON"),
];

/// The OpenAPI document of a table of operations.
pub fn document(operations: impl Iterator<Item = &'static Operation>) -> Value {
    let mut paths = Map::new();
    for operation in operations {
        let path = paths.entry(format!("{BASE}{}", operation.path)).or_insert_with(|| json!({}));
        if let Some(methods) = path.as_object_mut() {
            methods.insert(operation.method.to_owned(), describe(operation));
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

fn describe(operation: &Operation) -> Value {
    let body_responses: &[_] = if matches!(operation.method, "post" | "put") { &BODY_RESPONSES } else { &[] };
    let response = |(status, what): &(u16, &str)| (status.to_string(), json!({ "description": what }));
    let responses = operation.responses.iter().chain(&COMMON_RESPONSES).chain(body_responses);
    let responses: Map<_, _> = responses.map(response).collect();
    let mut description = json!({
        "summary": operation.summary,
        "x-role": operation.role.as_str(),
        "responses": responses,
    });
    let mut parameters = Vec::new();
    let in_path =
        [("name", "^[a-z0-9][a-z0-9_-]{0,62}$"), ("secret", "^[A-Za-z0-9._/-]{1,200}$"), ("id", "^[A-Za-z0-9_-]{23}$")];
    for (name, pattern) in in_path {
        if operation.path.contains(&format!("{{{name}}}")) {
            let schema = json!({ "type": "string", "pattern": pattern });
            parameters.push(json!({ "name": name, "in": "path", "required": true, "schema": schema }));
        }
    }
    if operation.method == "get" {
        parameters.extend(operation.members.iter().map(|(name, what)| {
            let kind = match *name {
                "limit" => "integer",
                "resolved" => "boolean",
                _ => "string",
            };
            json!({ "name": name, "in": "query", "description": what, "schema": { "type": kind } })
        }));
    } else if !operation.members.is_empty() {
        let member =
            |(name, what): &(&str, &str)| ((*name).to_owned(), json!({ "type": "string", "description": what }));
        let members: Map<_, _> = operation.members.iter().map(member).collect();
        let schema = json!({ "type": "object", "additionalProperties": false, "properties": members });
        description["requestBody"] = json!({ "content": { "application/json": { "schema": schema } } });
    }
    if !parameters.is_empty() {
        description["parameters"] = parameters.into();
    }
    description
}
