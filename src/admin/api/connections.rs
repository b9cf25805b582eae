//! Operations on connections.
//!
//! Not here: changing them (`definitions`), their tokens (`tokens`), authorizations of people (`people`).

use axum::routing::{get, post};
use schemars::SchemaGenerator;

use super::common::{ETAG, UNKNOWN};
use crate::admin::body::YAML;
use crate::admin::connections::{self, ConnectionItem, ConnectionQuery, ConnectionsQuery, Export, Page};
use crate::admin::logo;
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
        responses: &[Response::json::<Page<ConnectionItem>>(
            200,
            "a page of connections; with `format=yaml`, all definitions that were made over the API",
        )
        .or(YAML[0], SchemaGenerator::subschema_for::<Export>)],
        handler: || get(connections::list),
    },
    Operation {
        id: "getConnection",
        method: "get",
        path: "/connections/{name}",
        role: Role::Viewer,
        summary: "One connection: its definition as written and its state; `?resolved=true` shows each value with its source",
        inputs: &[Input::query::<ConnectionQuery>()],
        responses: &[
            Response::json_of(200, "the connection; with `format=yaml`, its definition", openapi::connection)
                .or(YAML[0], openapi::exported_definition)
                .with_headers(&[ETAG]),
            UNKNOWN,
        ],
        handler: || get(connections::get),
    },
    Operation {
        id: "preflightConnection",
        method: "post",
        path: "/connections/{name}/preflight",
        role: Role::Operator,
        summary: "Checks the connection against its authorization server: DNS, TLS, clock, metadata, client authentication; \
                  a `definition` that is not saved, for managers only",
        inputs: &[Input::body::<PreflightBody>()],
        responses: &[
            Response::json::<Checks>(200, "the checks in their order"),
            UNKNOWN,
            Response::problem(409, "the connection is inactive, or the configuration files have problems"),
            Response::problem(422, "the definition has problems"),
            Response::problem(503, "too many preflights are in progress"),
        ],
        handler: || post(preflight::preflight),
    },
    Operation {
        id: "getLogo",
        method: "get",
        path: "/connections/{name}/logo",
        role: Role::Viewer,
        summary: "The logo of the connection, fetched once from its `logo_url` and encoded again",
        inputs: &[],
        responses: &[
            Response::of(200, "at most 128 × 128 pixels", ("image/png", openapi::png)),
            Response::problem(
                404,
                "no connection has this name, or `no_logo`: it has no `logo_url`, or `detail` says why its logo was refused",
            ),
            Response::problem(503, "the logo is still being fetched"),
        ],
        handler: || get(logo::get),
    },
];
