//! Operations on connections.
//!
//! Not here: their tokens (`tokens`), authorizations of people (`people`).

use axum::routing::{get, post};

use super::common::UNKNOWN;
use crate::admin::connections::{self, ConnectionItem, ConnectionQuery, ConnectionsQuery, Page};
use crate::admin::openapi::{self, Input, Operation, Response};
use crate::admin::preflight::{self, Checks, PreflightBody};
use crate::model::Role;

pub const OPERATIONS: &[Operation] = &[
    Operation {
        id: "listConnections",
        method: "get",
        path: "/connections",
        role: Role::Viewer,
        summary: "A page of the connections by name, each with its state; optionally filtered",
        inputs: &[Input::query::<ConnectionsQuery>()],
        responses: &[Response::json::<Page<ConnectionItem>>(200, "a page of connections")],
        handler: || get(connections::list),
    },
    Operation {
        id: "getConnection",
        method: "get",
        path: "/connections/{name}",
        role: Role::Viewer,
        summary: "One connection: its definition as written and its state; `?resolved=true` shows each value with its source",
        inputs: &[Input::query::<ConnectionQuery>()],
        responses: &[Response::json_of(200, "the connection", openapi::connection), UNKNOWN],
        handler: || get(connections::get),
    },
    Operation {
        id: "preflightConnection",
        method: "post",
        path: "/connections/{name}/preflight",
        role: Role::Operator,
        summary: "Checks the connection against its authorization server: DNS, TLS, clock, metadata, client authentication",
        inputs: &[Input::body::<PreflightBody>()],
        responses: &[
            Response::json::<Checks>(200, "the checks in their order"),
            UNKNOWN,
            Response::problem(409, "the connection is inactive"),
            Response::problem(422, "the definition of a connection that is not in force cannot be checked yet"),
            Response::problem(503, "too many preflights are in progress"),
        ],
        handler: || post(preflight::preflight),
    },
];
