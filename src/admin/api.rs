//! The API: one table of operations, the source of the router and of the OpenAPI description.
//!
//! Invariant: an operation is reachable only through the table, with the role given there.
//! Not here: authentication (`auth`), operations that act (`actions`), JSON of connections and tokens (`view`).

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{delete, get, post, put};
use axum::{Json, Router};
use serde_json::{Value, json};

use super::openapi::Operation;
use super::problem::{Problem, bound};
use super::{Admin, actions, auth, consent, events, openapi, revoke, secrets, session, tokens, view};
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
        summary: "All connections with their state",
        responses: &[(200, "{items: [connection]}")],
        members: &[],
        handler: || get(connections),
    },
    Operation {
        method: "get",
        path: "/connections/{name}",
        role: Role::Viewer,
        summary: "One connection with its state",
        responses: &[(200, "the connection"), UNKNOWN],
        members: &[],
        handler: || get(connection),
    },
    Operation {
        method: "get",
        path: "/connections/{name}/tokens",
        role: Role::Viewer,
        summary: "State of its tokens, optionally filtered by `profile`, `subject` and `state`; never a token",
        responses: &[(200, "{items: [token], cursor}"), (400, "the query is invalid"), UNKNOWN],
        members: &[],
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
        path: "/events",
        role: Role::Viewer,
        summary: "Server-sent events of tokens and reloads",
        responses: &[(200, "text/event-stream"), (503, "too many event streams are open")],
        members: &[],
        handler: || get(events::events),
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

async fn connections(State(admin): State<Admin>) -> Json<Value> {
    let (snapshot, now) = (admin.snapshot.load_full(), admin.clock.now());
    let items: Vec<_> = snapshot.connections.iter().map(|bound| view::connection(bound, now)).collect();
    Json(json!({ "items": items }))
}

async fn connection(State(admin): State<Admin>, Path(name): Path<String>) -> Result<Json<Value>, Problem> {
    let snapshot = admin.snapshot.load_full();
    Ok(Json(view::connection(bound(&snapshot, &name)?, admin.clock.now())))
}
