//! Operations on connections.
//!
//! Not here: their tokens (`tokens`), authorizations of people (`people`).

use axum::routing::{get, post};

use super::common::UNKNOWN;
use crate::admin::openapi::Operation;
use crate::admin::{connections, preflight};
use crate::model::Role;

pub const OPERATIONS: &[Operation] = &[
    Operation {
        method: "get",
        path: "/connections",
        role: Role::Viewer,
        summary: "A page of the connections by name, each with its state; optionally filtered",
        responses: &[(200, "{items: [short connection], cursor}"), (400, "the query is invalid")],
        members: &[
            ("q", "text in the name, the comments, a host or the client ID; case does not matter"),
            ("state", "a state of connections"),
            ("application", "the application of the connection"),
            ("limit", "items on the page, 1 to 200; absent: 50"),
            ("cursor", "the cursor of the previous page"),
        ],
        handler: || get(connections::list),
    },
    Operation {
        method: "get",
        path: "/connections/{name}",
        role: Role::Viewer,
        summary: "One connection: its definition as written and its state; `?resolved=true` shows each value with its source",
        responses: &[(200, "the connection"), (400, "the query is invalid"), UNKNOWN],
        members: &[("resolved", "true: each key as {value, source}, with the defaults of absent keys")],
        handler: || get(connections::get),
    },
    Operation {
        method: "post",
        path: "/connections/{name}/preflight",
        role: Role::Operator,
        summary: "Checks the connection against its authorization server: DNS, TLS, clock, metadata, client authentication",
        responses: &[
            (200, "{checks: [{name, outcome, detail, remedy}]}; outcome is ok, warning, failed or skipped"),
            UNKNOWN,
            (409, "the connection is inactive"),
            (422, "the definition of a connection that is not in force cannot be checked yet"),
            (503, "too many preflights are in progress"),
        ],
        members: &[],
        handler: || post(preflight::preflight),
    },
];
