//! The API: one table of operations, the source of the router and of the OpenAPI description.
//!
//! Invariant: an operation is reachable only through the table, with the role given there.
//! Not here: authentication (`auth`), operations with side effects (`actions`), the JSON of connections and tokens
//! (`view`).

use axum::http::StatusCode;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{delete, get, post, put};
use axum::{Json, Router};

use super::openapi::Operation;
use super::problem::Problem;
use super::{
    Admin, actions, activity, auth, connections, consent, events, logo, openapi, preflight, revoke, secrets, session,
    tokens,
};
use crate::model::Role;

const SUBJECT: (&str, &str) =
    ("subject", "the subject of the token; required if the connection has a token for each subject");
const PROFILE: (&str, &str) = ("profile", "the profile; absent: default");
const UNKNOWN: (u16, &str) = (404, "no connection has this name, or it has no such profile");
const NO_TOKEN: [(u16, &str); 4] = [
    UNKNOWN,
    (409, "the connection is inactive, or its token was refreshed less than ten seconds ago"),
    (424, "the authorization server refused"),
    (503, "the authorization server is unavailable"),
];

const REVOKED: &[(u16, &str)] = &[
    (200, "{forgotten, refresh_token: {outcome, reason}, access_token: {outcome, reason}}: the outcome at the server"),
    UNKNOWN,
    (409, "the connection is inactive, or another command for this token is in progress"),
    (503, "the store is unavailable; nothing was forgotten"),
];

const OPERATIONS: &[Operation] = &[
    Operation {
        method: "get",
        path: "/openapi.json",
        role: Role::Viewer,
        summary: "This OpenAPI description",
        responses: &[(200, "OpenAPI 3.1")],
        members: &[],
        handler: || get(async || Json(openapi::document(OPERATIONS))),
    },
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
    Operation {
        method: "post",
        path: "/connections/{name}/authorize",
        role: Role::Operator,
        summary: "Begins an authorization, which replaces a pending one: a one-time link, or a user code for another device",
        responses: &[
            (
                201,
                "{id, expires_at, authorization_url}, or {id, expires_at, user_code, verification_uri, verification_uri_complete, interval}",
            ),
            UNKNOWN,
            (
                409,
                "the connection is inactive, its grant needs no person, or a code is being exchanged for the same token",
            ),
            (422, "the connection has a token for each subject; name one in `subject`"),
            NO_TOKEN[2],
            (503, "the store or the authorization server is unavailable"),
        ],
        members: &[PROFILE, SUBJECT],
        handler: || post(consent::authorize),
    },
    Operation {
        method: "get",
        path: "/authorizations/{id}",
        role: Role::Viewer,
        summary: "Status of an authorization: pending, connected, denied, expired or failed",
        responses: &[
            (200, "{id, connection, profile, subject, status, error, description, expires_at}"),
            (404, "no authorization has this id"),
        ],
        members: &[],
        handler: || get(consent::authorization),
    },
    Operation {
        method: "post",
        path: auth::SESSION_PATH,
        role: Role::Viewer,
        summary: "Signs a browser in with a user's token: sets a cookie, returns the CSRF token for requests that change something",
        responses: &[
            (200, "{user, role, csrf_token, expires_at}"),
            (429, "too many attempts from this address; Retry-After"),
        ],
        members: &[("token", "the user's token")],
        handler: || post(session::post),
    },
    Operation {
        method: "get",
        path: auth::SESSION_PATH,
        role: Role::Viewer,
        summary: "Who is signed in, and the CSRF token of a session",
        responses: &[(200, "{user, role, csrf_token, expires_at}; the last two are null with a bearer token")],
        members: &[],
        handler: || get(session::get),
    },
    Operation {
        method: "delete",
        path: auth::SESSION_PATH,
        role: Role::Viewer,
        summary: "Signs the browser out",
        responses: &[(204, "the cookie is removed")],
        members: &[],
        handler: || delete(session::delete),
    },
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

/// The router of the table, with authentication and the fallbacks.
pub fn router(admin: Admin) -> Router {
    let mut router = Router::new();
    for operation in OPERATIONS {
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
