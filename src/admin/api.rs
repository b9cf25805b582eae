//! The API: one table of operations, from which the router and its description are made, and what it shows.
//!
//! Not here: who may ask (`auth`), what changes something (`actions`), how things look (`view`).
//! Holds: an operation is reachable only through the table, with the role that stands there.

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

const SUBJECT: (&str, &str) = ("subject", "whose token is meant, of a connection with one for each subject");
const PROFILE: (&str, &str) = ("profile", "which of its profiles; absent: default");
const UNKNOWN: (u16, &str) = (404, "no connection, or none of its profiles, has this name");
const NO_TOKEN: [(u16, &str); 4] = [
    UNKNOWN,
    (409, "the connection is inactive, or its token was refreshed a moment ago"),
    (424, "the authorization server refused"),
    (503, "the authorization server cannot be used"),
];

const REVOKED: &[(u16, &str)] = &[
    (200, "{forgotten, refresh_token: {outcome, reason}, access_token: {outcome, reason}}: what the server made of it"),
    UNKNOWN,
    (409, "the connection is inactive, or another errand is under way"),
    (503, "the store cannot be used; nothing is forgotten"),
];

const OPERATIONS: &[Operation] = &[
    Operation {
        method: "get",
        path: "/openapi.json",
        role: Role::Viewer,
        summary: "This description",
        answers: &[(200, "OpenAPI 3.1")],
        members: &[],
        handler: || get(async || Json(openapi::document(OPERATIONS))),
    },
    Operation {
        method: "get",
        path: "/connections",
        role: Role::Viewer,
        summary: "All connections with their state",
        answers: &[(200, "{items: [connection]}")],
        members: &[],
        handler: || get(connections),
    },
    Operation {
        method: "get",
        path: "/connections/{name}",
        role: Role::Viewer,
        summary: "One connection with its state",
        answers: &[(200, "the connection"), UNKNOWN],
        members: &[],
        handler: || get(connection),
    },
    Operation {
        method: "get",
        path: "/connections/{name}/tokens",
        role: Role::Viewer,
        summary: "The state of its tokens, of all profiles or by `profile`, `subject` and `state`; never a token",
        answers: &[(200, "{items: [token], cursor}"), (400, "the query is not understood"), UNKNOWN],
        members: &[],
        handler: || get(tokens::list),
    },
    Operation {
        method: "put",
        path: "/connections/{name}/tokens",
        role: Role::Operator,
        summary: "Takes over a refresh token from elsewhere, if it gives an access token",
        answers: &[
            (200, "the token's new state"),
            UNKNOWN,
            (409, "the connection is inactive, or another token is being proven"),
            (422, "it gave no access token; nothing has changed"),
        ],
        members: &[("refresh_token", "the refresh token"), PROFILE, SUBJECT],
        handler: || put(actions::import),
    },
    Operation {
        method: "post",
        path: "/connections/{name}/refresh",
        role: Role::Operator,
        summary: "Gets another token now, through the same single flight as the proxy",
        answers: &[(200, "the token's new state"), NO_TOKEN[0], NO_TOKEN[1], NO_TOKEN[2], NO_TOKEN[3]],
        members: &[PROFILE, SUBJECT],
        handler: || post(actions::refresh),
    },
    Operation {
        method: "delete",
        path: "/connections/{name}/tokens",
        role: Role::Operator,
        summary: "Revokes a token at the server, then forgets it; `?profile&subject` in the query",
        answers: REVOKED,
        members: &[],
        handler: || delete(revoke::delete),
    },
    Operation {
        method: "post",
        path: "/connections/{name}/revoke",
        role: Role::Operator,
        summary: "The same, with the token named in the body",
        answers: REVOKED,
        members: &[PROFILE, SUBJECT],
        handler: || post(revoke::post),
    },
    Operation {
        method: "post",
        path: "/connections/{name}/test",
        role: Role::Operator,
        summary: "Sends one request with the token, without a body either way",
        answers: &[
            (200, "{token, url, method, status, duration_ms}"),
            NO_TOKEN[0],
            NO_TOKEN[1],
            (422, "no route of the connection takes the URL"),
            NO_TOKEN[2],
            (502, "the upstream cannot be reached"),
            NO_TOKEN[3],
            (504, "the upstream did not answer in time"),
        ],
        members: &[("url", "absent: the first route's own"), ("method", "GET or HEAD; absent: GET"), PROFILE, SUBJECT],
        handler: || post(actions::test),
    },
    Operation {
        method: "post",
        path: "/connections/{name}/authorize",
        role: Role::Operator,
        summary: "Begins a person's part, in place of the pending one: a link to confirm once, or a code to type elsewhere",
        answers: &[
            (
                201,
                "{id, expires_at, authorization_url}, or {id, expires_at, user_code, verification_uri, verification_uri_complete, interval}",
            ),
            UNKNOWN,
            (
                409,
                "the connection is inactive, its grant needs nobody, or a code is being exchanged for the same token",
            ),
            (422, "the connection has a token for each subject; name one"),
            NO_TOKEN[2],
            (503, "the store or the authorization server cannot be used"),
        ],
        members: &[("profile", "the profile; absent: default"), SUBJECT],
        handler: || post(consent::authorize),
    },
    Operation {
        method: "get",
        path: "/authorizations/{id}",
        role: Role::Viewer,
        summary: "What has come of it: pending, connected, denied, expired or failed",
        answers: &[
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
        summary: "Signs a browser in with a user's token: a cookie, and what its page must send with every change",
        answers: &[(200, "{user, role, csrf_token, expires_at}")],
        members: &[("token", "the user's token")],
        handler: || post(session::post),
    },
    Operation {
        method: "delete",
        path: auth::SESSION_PATH,
        role: Role::Viewer,
        summary: "Signs the browser out",
        answers: &[(204, "the cookie is gone")],
        members: &[],
        handler: || delete(session::delete),
    },
    Operation {
        method: "post",
        path: "/reload",
        role: Role::Manager,
        summary: "Reads the configuration again; all or nothing",
        answers: &[
            (200, "{outcome, restart_required}"),
            (409, "there is no file to read again"),
            (422, "{problems: [{file, line, column, path, message, hint}]}"),
            (503, "too many reloads wait"),
        ],
        members: &[],
        handler: || post(actions::reload),
    },
    Operation {
        method: "get",
        path: "/secrets",
        role: Role::Manager,
        summary: "The names of the secrets in the store; never a secret",
        answers: &[(200, "{items: [name]}"), (503, "the store cannot be used")],
        members: &[],
        handler: || get(secrets::list),
    },
    Operation {
        method: "put",
        path: "/secrets/{secret}",
        role: Role::Manager,
        summary: "Seals a secret in the store, then reads the configuration again, where `{store: NAME}` may mean it",
        answers: &[(200, "{name}"), (422, "the name or the secret is refused"), (503, "the store cannot be used")],
        members: &[("value", "the secret")],
        handler: || put(secrets::put),
    },
    Operation {
        method: "delete",
        path: "/secrets/{secret}",
        role: Role::Manager,
        summary: "Removes a secret from the store",
        answers: &[(200, "{name}"), (404, "the store has none of this name"), (503, "the store cannot be used")],
        members: &[],
        handler: || delete(secrets::remove),
    },
    Operation {
        method: "get",
        path: "/events",
        role: Role::Viewer,
        summary: "Server-sent events: tokens and reloads as they happen",
        answers: &[(200, "text/event-stream"), (503, "too many listen already")],
        members: &[],
        handler: || get(events::events),
    },
];

/// The router of the table, with everything around it.
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
            let detail = "this resource has other methods; see /api/v1/openapi.json";
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
