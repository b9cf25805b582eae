//! Operations by which people connect accounts and sign in.
//!
//! Not here: the pages of both (`consent`, `sign_in`).

use axum::routing::{delete, get, post};

use super::common::{NO_TOKEN, PROFILE, SUBJECT, UNKNOWN};
use crate::admin::openapi::Operation;
use crate::admin::{auth, consent, session};
use crate::model::Role;

pub const OPERATIONS: &[Operation] = &[
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
];
