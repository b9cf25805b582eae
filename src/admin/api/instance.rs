//! Operations on the instance as a whole: its configuration, its secrets, its activity.

use axum::routing::{delete, get, post, put};

use crate::admin::openapi::Operation;
use crate::admin::{actions, activity, events, secrets};
use crate::model::Role;

pub const OPERATIONS: &[Operation] = &[
    Operation {
        method: "post",
        path: "/reload",
        role: Role::Manager,
        summary: "Reloads the configuration; all or nothing",
        responses: &[
            (200, "{outcome, restart_required}"),
            (409, "the instance was started without a configuration file"),
            (422, "{problems: [{file, line, column, path, message, hint}]}"),
            (503, "another reload is in progress"),
        ],
        members: &[],
        handler: || post(actions::reload),
    },
    Operation {
        method: "get",
        path: "/secrets",
        role: Role::Manager,
        summary: "The names of the secrets in the store; never a secret",
        responses: &[(200, "{items: [name]}"), (503, "the store is unavailable")],
        members: &[],
        handler: || get(secrets::list),
    },
    Operation {
        method: "put",
        path: "/secrets/{secret}",
        role: Role::Manager,
        summary: "Seals a secret in the store, then reloads the configuration, which may refer to it as `{store: NAME}`",
        responses: &[(200, "{name}"), (422, "the name or the secret is invalid"), (503, "the store is unavailable")],
        members: &[("value", "the secret")],
        handler: || put(secrets::put),
    },
    Operation {
        method: "delete",
        path: "/secrets/{secret}",
        role: Role::Manager,
        summary: "Removes a secret from the store, then reloads the configuration",
        responses: &[(200, "{name}"), (404, "the store has no secret of this name"), (503, "the store is unavailable")],
        members: &[],
        handler: || delete(secrets::remove),
    },
    Operation {
        method: "get",
        path: "/activity",
        role: Role::Viewer,
        summary: "The latest audit records of this replica, and one-minute counts of the last hour for each active connection",
        responses: &[(200, "{items: [record], cursor, minutes}"), (400, "the query is invalid")],
        members: &[
            ("connection", "the name of a connection"),
            ("event", "use, denial, refresh or change"),
            ("since", "a time; no earlier record is shown"),
            ("cursor", "the cursor of the previous page"),
        ],
        handler: || get(activity::list),
    },
    Operation {
        method: "get",
        path: "/events",
        role: Role::Viewer,
        summary: "Server-sent events about tokens and reloads",
        responses: &[(200, "text/event-stream"), (503, "too many event streams are open")],
        members: &[],
        handler: || get(events::events),
    },
];
