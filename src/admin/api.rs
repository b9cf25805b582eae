//! The API: one table of operations, the source of the router and of the OpenAPI description.
//!
//! Invariant: an operation is reachable only through the table, with the role given there.
//! Not here: authentication (`auth`), operations with side effects (`actions`), the JSON of connections and tokens
//! (`view`).

mod common;
mod connections;
mod definitions;
mod instance;
mod people;
mod tokens;

use axum::http::StatusCode;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Map, Value};

use super::openapi::{self, Operation, Response, Topic};
use super::problem::Problem;
use super::{Admin, auth};
use crate::model::Role;

const TOPICS: [Topic; 6] = [
    Topic { tag: "connections", description: "Connections and their states", operations: connections::OPERATIONS },
    Topic { tag: "definitions", description: "Changing connections", operations: definitions::OPERATIONS },
    Topic { tag: "tokens", description: "The tokens of a connection", operations: tokens::OPERATIONS },
    Topic { tag: "people", description: "Connecting accounts, and signing in", operations: people::OPERATIONS },
    Topic { tag: "instance", description: "Configuration, secrets, activity", operations: instance::OPERATIONS },
    Topic { tag: "description", description: "This description", operations: DESCRIPTION },
];

const DESCRIPTION: &[Operation] = &[Operation {
    id: "getDescription",
    method: "get",
    path: "/openapi.json",
    role: Role::Viewer,
    summary: "This OpenAPI description",
    inputs: &[],
    responses: &[Response::json::<Map<String, Value>>(200, "OpenAPI 3.1")],
    handler: || get(async || Json(openapi::document(&TOPICS))),
}];

/// The router of the table, with authentication and the fallbacks.
pub fn router(admin: Admin) -> Router {
    let mut router = Router::new();
    for operation in TOPICS.iter().flat_map(|topic| topic.operations) {
        let role = operation.role;
        let checked = from_fn(move |request, next| auth::permit(role, request, next));
        router = router.route(operation.path, (operation.handler)().route_layer(checked));
    }
    router
        .fallback(async || {
            Problem::new(StatusCode::NOT_FOUND, "not_found", "no such resource; see /api/v1/openapi.json")
        })
        .method_not_allowed_fallback(async || {
            let detail = "this resource does not support the method; see /api/v1/openapi.json";
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_refused", detail)
        })
        .layer(from_fn_with_state(admin.clone(), auth::guard))
        .with_state(admin)
}
