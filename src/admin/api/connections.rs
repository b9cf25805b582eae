//! Operations on connections.
//!
//! Not here: their tokens (`tokens`), authorizations of people (`people`).

use axum::routing::{delete, get, patch, post, put};

use super::common::UNKNOWN;
use crate::admin::openapi::Operation;
use crate::admin::{connections, definitions, logo, preflight};
use crate::model::Role;

const READ_ONLY: (u16, &str) =
    (409, "the name is defined in a file, `editing` is false, or the store keeps no definitions");
const UNAVAILABLE: (u16, &str) = (503, "the store is unavailable");

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
        method: "put",
        path: "/connections/{name}",
        role: Role::Manager,
        summary: "Keeps a definition in the store and puts it in force; `{set: true}` keeps a secret",
        responses: &[
            (
                200,
                "the changed connection, with its ETag; with `dry_run`: {created, changed, unchanged, removed, fields}",
            ),
            (201, "the new connection, with its ETag"),
            READ_ONLY,
            (412, "the connection has changed since it was read, or does not exist"),
            (422, "{problems: [{connection, path, line, column, code, message, hint}]}"),
            (428, "the connection exists; send `If-Match`"),
            UNAVAILABLE,
        ],
        members: &[],
        handler: || put(definitions::put),
    },
    Operation {
        method: "patch",
        path: "/connections/{name}",
        role: Role::Operator,
        summary: "Changes a definition by a JSON merge patch (RFC 7396); an operator may switch `active`",
        responses: &[
            (200, "the changed connection, with its ETag"),
            UNKNOWN,
            READ_ONLY,
            (412, "the connection has changed since it was read"),
            (422, "{problems: [{connection, path, line, column, code, message, hint}]}"),
            (428, "send `If-Match`"),
            UNAVAILABLE,
        ],
        members: &[],
        handler: || patch(definitions::patch),
    },
    Operation {
        method: "delete",
        path: "/connections/{name}",
        role: Role::Manager,
        summary: "Revokes the tokens of a connection, then removes its definition; `?revoke=false` only forgets the tokens",
        responses: &[
            (200, "{removed, tokens: {revoked, not_revoked, failed, tokens, complete}}"),
            UNKNOWN,
            READ_ONLY,
            (412, "the connection has changed since it was read"),
            (428, "send `If-Match`"),
            UNAVAILABLE,
        ],
        members: &[],
        handler: || delete(definitions::remove),
    },
    Operation {
        method: "post",
        path: "/connections:apply",
        role: Role::Manager,
        summary: "Puts many definitions, all or nothing; `?prune=true` removes all others that were made over the API",
        responses: &[
            (200, "{created, changed, unchanged, removed, fields}: names"),
            READ_ONLY,
            (422, "{problems: [{connection, path, line, column, code, message, hint}]}"),
            UNAVAILABLE,
        ],
        members: &[],
        handler: || post(definitions::apply),
    },
    Operation {
        method: "post",
        path: "/connections/{name}/preflight",
        role: Role::Operator,
        summary: "Checks the connection against its authorization server: DNS, TLS, clock, metadata, client authentication; \
                  a `definition` that is not saved, for managers only",
        responses: &[
            (200, "{checks: [{name, outcome, detail, remedy}]}; outcome is ok, warning, failed or skipped"),
            UNKNOWN,
            (409, "the connection is inactive, or the configuration files have problems"),
            (422, "{problems: [{connection, path, line, column, code, message, hint}]}"),
            (503, "too many preflights are in progress"),
        ],
        members: &[("definition", "a connection that is not saved; absent: the connection in force")],
        handler: || post(preflight::preflight),
    },
    Operation {
        method: "get",
        path: "/connections/{name}/logo",
        role: Role::Viewer,
        summary: "The logo of the connection, fetched once from its `logo_url` and encoded again",
        responses: &[
            (200, "image/png, at most 128 × 128 pixels"),
            (
                404,
                "no connection has this name, or `no_logo`: it has no `logo_url`, or `detail` says why its logo was refused",
            ),
            (503, "the logo is still being fetched; Retry-After"),
        ],
        members: &[],
        handler: || get(logo::get),
    },
];
