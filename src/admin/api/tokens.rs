//! Operations on the tokens of a connection.

use axum::routing::{delete, get, post, put};

use super::common::{NO_TOKEN, PROFILE, SUBJECT, UNKNOWN};
use crate::admin::openapi::Operation;
use crate::admin::{actions, revoke, tokens};
use crate::model::Role;

const REVOKED: &[(u16, &str)] = &[
    (200, "{forgotten, refresh_token: {outcome, reason}, access_token: {outcome, reason}}: the outcome at the server"),
    UNKNOWN,
    (409, "the connection is inactive, or another command for this token is in progress"),
    (503, "the store is unavailable; nothing was forgotten"),
];

pub const OPERATIONS: &[Operation] = &[
    Operation {
        method: "get",
        path: "/connections/{name}/tokens",
        role: Role::Viewer,
        summary: "State of its tokens, optionally filtered by `profile`, `subject` and `state`; never a token",
        responses: &[(200, "{items: [token], cursor}"), (400, "the query is invalid"), UNKNOWN],
        members: &[
            PROFILE,
            SUBJECT,
            ("state", "a state of tokens"),
            ("limit", "items on the page, 1 to 1000; absent: 100"),
            ("cursor", "the cursor of the previous page"),
        ],
        handler: || get(tokens::list),
    },
    Operation {
        method: "put",
        path: "/connections/{name}/tokens",
        role: Role::Operator,
        summary: "Imports a refresh token that was obtained elsewhere, if it yields an access token",
        responses: &[
            (200, "the token's new state"),
            UNKNOWN,
            (409, "the connection is inactive, or another import is in progress"),
            (422, "the refresh token yielded no access token; nothing has changed"),
        ],
        members: &[("refresh_token", "the refresh token"), PROFILE, SUBJECT],
        handler: || put(actions::import),
    },
    Operation {
        method: "post",
        path: "/connections/{name}/refresh",
        role: Role::Operator,
        summary: "Refreshes the token now, through the same single flight as the proxy",
        responses: &[(200, "the token's new state"), NO_TOKEN[0], NO_TOKEN[1], NO_TOKEN[2], NO_TOKEN[3]],
        members: &[PROFILE, SUBJECT],
        handler: || post(actions::refresh),
    },
    Operation {
        method: "delete",
        path: "/connections/{name}/tokens",
        role: Role::Operator,
        summary: "Revokes a token at the server, then forgets it; `?profile&subject` in the query",
        responses: REVOKED,
        members: &[],
        handler: || delete(revoke::delete),
    },
    Operation {
        method: "post",
        path: "/connections/{name}/revoke",
        role: Role::Operator,
        summary: "Revokes a token at the server, then forgets it; `profile` and `subject` in the body",
        responses: REVOKED,
        members: &[PROFILE, SUBJECT],
        handler: || post(revoke::post),
    },
    Operation {
        method: "post",
        path: "/connections/{name}/test",
        role: Role::Operator,
        summary: "Sends one request with the token, without a request body; never shows a response body",
        responses: &[
            (200, "{token, url, method, status, duration_ms}"),
            NO_TOKEN[0],
            NO_TOKEN[1],
            (422, "no route of the connection matches the URL"),
            NO_TOKEN[2],
            (502, "the upstream is unreachable"),
            NO_TOKEN[3],
            (504, "the upstream did not respond in time"),
        ],
        members: &[
            ("url", "absent: the URL of the first route that names one host"),
            ("method", "GET or HEAD; absent: GET"),
            PROFILE,
            SUBJECT,
        ],
        handler: || post(actions::test),
    },
];
