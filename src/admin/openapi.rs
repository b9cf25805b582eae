//! The OpenAPI 3.1 description of the API, from its table of operations.
//!
//! Invariant: each schema is that of a type that a handler reads or writes, or of the configuration.
//! Not here: the table (`api`).

mod operation;
mod schemas;

use serde_json::{Map, Value, json};

use super::consent::FlowId;
use super::cookie;
use super::session::{COOKIE, CSRF_HEADER};
use crate::config;
use crate::model::{Name, Role};
use operation::JSON;
pub use operation::{Content, Header, Input, Operation, RequestHeader, Response, Topic};
use schemas::Schemas;
pub use schemas::{
    connection, connection_in_force, definition, definition_or_null, definition_patch, exported_definition,
    exported_definitions, named_definitions, png,
};

pub const BASE: &str = "/api/v1";

/// Parameters in paths: name, pattern, description.
const PATH_PARAMETERS: [(&str, &str, &str); 3] = [
    ("name", Name::PATTERN, "The name of a connection."),
    ("secret", config::STORED_NAME_PATTERN, "The name of a secret."),
    ("id", FlowId::PATTERN, "The ID of an authorization."),
];

const UNAUTHENTICATED: Response = Response::problem(401, "no valid token, and no valid session");
const FORBIDDEN: Response = Response::problem(403, "the user's role is too low");
const MISDIRECTED: Response = Response::problem(421, "the Host header is not accepted");
const INVALID: Response = Response::problem(400, "the path, the query or the body is invalid");
const BODY_RESPONSES: [Response; 3] = [
    Response::problem(408, "timed out waiting for the rest of the body"),
    Response::problem(413, "the body is too large"),
    Response::problem(415, "the body's media type is not accepted"),
];

/// The OpenAPI document of these operations.
pub fn document(topics: &[Topic]) -> Value {
    let (mut paths, mut schemas) = (Map::new(), Schemas::new());
    for (topic, operation) in topics.iter().flat_map(|topic| topic.operations.iter().map(move |own| (topic, own))) {
        let path = paths.entry(format!("{BASE}{}", operation.path)).or_insert_with(|| json!({}));
        path[operation.method] = describe(operation, topic.tag, &mut schemas);
    }
    let tags = topics.iter().map(|topic| json!({ "name": topic.tag, "description": topic.description }));
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Keybearer",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Times are RFC 3339 in UTC. Errors are application/problem+json (RFC 9457) with a stable `code`.",
        },
        "tags": tags.collect::<Vec<_>>(),
        "paths": paths,
        "components": { "schemas": schemas.finish(), "securitySchemes": security_schemes() },
    })
}

fn security_schemes() -> Value {
    let secure = cookie::full_name(COOKIE, true);
    json!({
        "token": { "type": "http", "scheme": "bearer", "description": "The token of a user." },
        "session": {
            "type": "apiKey",
            "in": "cookie",
            "name": cookie::full_name(COOKIE, false),
            "description": format!("A browser's session; over https the cookie's name is `{secure}`."),
        },
        "csrf": {
            "type": "apiKey",
            "in": "header",
            "name": CSRF_HEADER,
            "description": "The `csrf_token` of the session.",
        },
    })
}

fn describe(operation: &Operation, tag: &str, schemas: &mut Schemas) -> Value {
    let mut description = json!({
        "operationId": operation.id,
        "tags": [tag],
        "summary": operation.summary,
        "x-role": operation.role.as_str(),
        "security": security(operation),
        "responses": responses(operation, schemas),
    });
    let mut parameters = path_parameters(operation);
    for input in operation.inputs {
        match input {
            Input::Query(object) => parameters.extend(query_parameters(schemas.of_request(*object).to_value())),
            Input::Header(header) => parameters.push(header_parameter(header)),
            Input::Content(contents) => {
                let content: Map<_, _> = contents.iter().map(|content| request_content(content, schemas)).collect();
                description["requestBody"] = json!({ "required": true, "content": content });
            }
            Input::Body { object, reference } => {
                let required = schemas.of_request(*object).get("required").is_some();
                let content = json!({ JSON: { "schema": schemas.of_request(*reference) } });
                description["requestBody"] = json!({ "required": required, "content": content });
            }
        }
    }
    if !parameters.is_empty() {
        description["parameters"] = parameters.into();
    }
    description
}

/// A token, or a session; with a session, a request that changes something also needs the CSRF token.
fn security(operation: &Operation) -> Value {
    match operation.method {
        _ if operation.is_sign_in() => json!([]),
        "get" => json!([{ "token": [] }, { "session": [] }]),
        _ => json!([{ "token": [] }, { "session": [], "csrf": [] }]),
    }
}

fn path_parameters(operation: &Operation) -> Vec<Value> {
    let used = PATH_PARAMETERS.iter().filter(|(name, ..)| operation.path.contains(&format!("{{{name}}}")));
    let parameter = |(name, pattern, what): &(&str, &str, &str)| {
        let schema = json!({ "type": "string", "pattern": pattern });
        json!({ "name": name, "in": "path", "required": true, "description": what, "schema": schema })
    };
    used.map(parameter).collect()
}

fn header_parameter(header: &RequestHeader) -> Value {
    let RequestHeader { name, description, pattern, example, is_required } = header;
    let schema = json!({ "type": "string", "pattern": pattern });
    json!({
        "name": name, "in": "header", "required": is_required, "description": description, "schema": schema,
        "example": example,
    })
}

fn request_content(content: &Content, schemas: &mut Schemas) -> (String, Value) {
    let schema = schemas.of_request(content.schema);
    (content.media_type.to_owned(), json!({ "schema": schema, "example": (content.example)() }))
}

/// The members of an object as parameters.
fn query_parameters(object: Value) -> Vec<Value> {
    let Value::Object(mut object) = object else { return Vec::new() };
    let required = object.remove("required").unwrap_or_default();
    let is_required = |name: &str| required.as_array().is_some_and(|names| names.contains(&name.into()));
    let Some(Value::Object(properties)) = object.remove("properties") else { return Vec::new() };
    let parameter = |(name, mut schema): (String, Value)| {
        let description = schema.as_object_mut().and_then(|schema| schema.remove("description"));
        // A parameter is present or absent, never null.
        if let Some(Value::Array(types)) = schema.get("type") {
            schema["type"] = types.iter().find(|one| *one != "null").cloned().unwrap_or_default();
        }
        if let Some(Value::Array(values)) = schema.get_mut("enum") {
            values.retain(|one| !one.is_null());
        }
        let required = is_required(&name);
        json!({ "name": name, "in": "query", "required": required, "description": description, "schema": schema })
    };
    properties.into_iter().map(parameter).collect()
}

fn responses(operation: &Operation, schemas: &mut Schemas) -> Map<String, Value> {
    let mut all = vec![&UNAUTHENTICATED, &MISDIRECTED];
    if operation.role > Role::Viewer {
        all.push(&FORBIDDEN);
    }
    if !operation.inputs.is_empty() || operation.path.contains('{') {
        all.push(&INVALID);
    }
    if operation.inputs.iter().any(|input| matches!(input, Input::Body { .. } | Input::Content(_))) {
        all.extend(&BODY_RESPONSES);
    }
    all.extend(operation.responses);
    all.into_iter().map(|response| (response.status.to_string(), describe_response(response, schemas))).collect()
}

fn describe_response(response: &Response, schemas: &mut Schemas) -> Value {
    let implied: &[_] = match response.status {
        401 => &[Header { name: "WWW-Authenticate", kind: "string", description: "the scheme: Bearer" }],
        409 | 429 | 503 => {
            &[Header { name: "Retry-After", kind: "integer", description: "seconds, if a retry may succeed" }]
        }
        _ => &[],
    };
    let header = |Header { name, kind, description }: &Header| {
        ((*name).to_owned(), json!({ "description": description, "schema": { "type": kind } }))
    };
    let mut description = json!({ "description": response.description });
    for (media_type, schema) in response.content.into_iter().flatten() {
        description["content"][media_type] = json!({ "schema": schemas.of_response(schema) });
    }
    let headers: Map<_, _> = implied.iter().chain(response.headers).map(header).collect();
    if !headers.is_empty() {
        description["headers"] = headers.into();
    }
    description
}
