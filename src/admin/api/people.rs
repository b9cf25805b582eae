//! Operations by which people connect accounts and sign in.
//!
//! Not here: the pages of both (`consent`, `sign_in`).

use axum::routing::{delete, get, post};

use super::common::{SERVER_REFUSED, SUBJECT_REQUIRED, UNKNOWN};
use crate::admin::actions::TokenSelector;
use crate::admin::auth;
use crate::admin::consent::{self, AuthorizationStatus, BegunAuthorization};
use crate::admin::openapi::{Header, Input, Operation, Response};
use crate::admin::session::{self, SignIn, SignedIn};
use crate::model::Role;

pub const OPERATIONS: &[Operation] = &[
    Operation {
        id: "beginAuthorization",
        method: "post",
        path: "/connections/{name}/authorize",
        role: Role::Operator,
        summary: "Begins an authorization, which replaces a pending one: a one-time link, or a user code for another device",
        inputs: &[Input::body::<TokenSelector>()],
        responses: &[
            Response::json::<BegunAuthorization>(201, "a one-time link, or a user code"),
            UNKNOWN,
            Response::problem(
                409,
                "the connection is inactive, its grant needs no person, or a code is being exchanged for the same token",
            ),
            SUBJECT_REQUIRED,
            SERVER_REFUSED,
            Response::problem(500, "the system has no random bytes"),
            Response::problem(503, "the store or the authorization server is unavailable"),
        ],
        handler: || post(consent::authorize),
    },
    Operation {
        id: "getAuthorization",
        method: "get",
        path: "/authorizations/{id}",
        role: Role::Viewer,
        summary: "Status of an authorization: pending, connected, denied, expired or failed",
        inputs: &[],
        responses: &[
            Response::json::<AuthorizationStatus>(200, "the authorization"),
            Response::problem(404, "no authorization has this id"),
            Response::problem(503, "the store is unavailable"),
        ],
        handler: || get(consent::authorization),
    },
    Operation {
        id: "signIn",
        method: "post",
        path: auth::SESSION_PATH,
        role: Role::Viewer,
        summary: "Signs a browser in with a user's token: sets a cookie, returns the CSRF token for requests that change something",
        inputs: &[Input::body::<SignIn>()],
        responses: &[
            Response::json::<SignedIn>(200, "the session").with_headers(&[SET_COOKIE]),
            Response::problem(429, "too many attempts from this address"),
            Response::problem(500, "the session could not be sealed"),
        ],
        handler: || post(session::post),
    },
    Operation {
        id: "getSession",
        method: "get",
        path: auth::SESSION_PATH,
        role: Role::Viewer,
        summary: "Who is signed in, and the CSRF token of a session",
        inputs: &[],
        responses: &[Response::json::<SignedIn>(200, "the user")],
        handler: || get(session::get),
    },
    Operation {
        id: "signOut",
        method: "delete",
        path: auth::SESSION_PATH,
        role: Role::Viewer,
        summary: "Signs the browser out",
        inputs: &[],
        responses: &[Response::empty(204, "the cookie is removed").with_headers(&[SET_COOKIE])],
        handler: || delete(session::delete),
    },
];

const SET_COOKIE: Header =
    Header { name: "Set-Cookie", kind: "string", description: "the session's cookie, or its removal" };
