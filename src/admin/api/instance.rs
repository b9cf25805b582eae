//! Operations on the instance as a whole: its configuration, its secrets, its activity.

use axum::routing::{delete, get, post, put};
use schemars::SchemaGenerator;

use crate::admin::actions::{self, ReloadBody, Reloaded};
use crate::admin::activity::{self, ActivityPage, ActivityQuery};
use crate::admin::events;
use crate::admin::openapi::{Input, Operation, Response};
use crate::admin::secrets::{self, SecretBody, SecretName, SecretNames};
use crate::model::Role;

const STORE_UNAVAILABLE: Response = Response::problem(503, "the store is unavailable");
const KEEPS_NOTHING: Response = Response::problem(409, "the store is `memory`, which keeps no secrets");

pub const OPERATIONS: &[Operation] = &[
    Operation {
        id: "reload",
        method: "post",
        path: "/reload",
        role: Role::Manager,
        summary: "Reloads the configuration; all or nothing",
        inputs: &[Input::body::<ReloadBody>()],
        responses: &[
            Response::json::<Reloaded>(200, "the configuration is in force"),
            Response::problem(409, "the instance was started without a configuration file"),
            Response::problem(422, "the configuration has `problems`; the previous one remains active"),
            Response::problem(500, "the configuration could not be applied"),
            Response::problem(503, "another reload is in progress"),
        ],
        handler: || post(actions::reload),
    },
    Operation {
        id: "listSecrets",
        method: "get",
        path: "/secrets",
        role: Role::Manager,
        summary: "The names of the secrets in the store; never a secret",
        inputs: &[],
        responses: &[Response::json::<SecretNames>(200, "the names"), KEEPS_NOTHING, STORE_UNAVAILABLE],
        handler: || get(secrets::list),
    },
    Operation {
        id: "putSecret",
        method: "put",
        path: "/secrets/{secret}",
        role: Role::Manager,
        summary: "Seals a secret in the store, then reloads the configuration, which may refer to it as `{store: NAME}`",
        inputs: &[Input::body::<SecretBody>()],
        responses: &[
            Response::json::<SecretName>(200, "the secret is stored"),
            KEEPS_NOTHING,
            Response::problem(422, "the name or the secret is invalid"),
            STORE_UNAVAILABLE,
        ],
        handler: || put(secrets::put),
    },
    Operation {
        id: "removeSecret",
        method: "delete",
        path: "/secrets/{secret}",
        role: Role::Manager,
        summary: "Removes a secret from the store, then reloads the configuration",
        inputs: &[],
        responses: &[
            Response::json::<SecretName>(200, "the secret is removed"),
            Response::problem(404, "the store has no secret of this name"),
            KEEPS_NOTHING,
            STORE_UNAVAILABLE,
        ],
        handler: || delete(secrets::remove),
    },
    Operation {
        id: "listActivity",
        method: "get",
        path: "/activity",
        role: Role::Viewer,
        summary: "The latest audit records of this replica, and one-minute counts of the last hour for each active connection",
        inputs: &[Input::query::<ActivityQuery>()],
        responses: &[Response::json::<ActivityPage>(200, "a page of records, and the counts")],
        handler: || get(activity::list),
    },
    Operation {
        id: "streamEvents",
        method: "get",
        path: "/events",
        role: Role::Viewer,
        summary: "Server-sent events: token_obtained, token_failed, configuration_reloaded, configuration_refused, lagged",
        inputs: &[],
        responses: &[
            Response::of(
                200,
                "each event has JSON as its data; the stream has no end",
                ("text/event-stream", SchemaGenerator::subschema_for::<String>),
            ),
            Response::problem(503, "too many event streams are open"),
        ],
        handler: || get(events::events),
    },
];
