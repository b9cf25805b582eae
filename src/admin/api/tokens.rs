//! Operations on the tokens of a connection.

use axum::routing::{delete, get, post, put};

use super::common::{NO_TOKEN, SERVER_REFUSED, SUBJECT_REQUIRED, UNKNOWN};
use crate::admin::actions::{self, ImportBody, TokenSelector};
use crate::admin::connections::Page;
use crate::admin::openapi::{Input, Operation, Response};
use crate::admin::revoke;
use crate::admin::tokens::{self, TokensQuery};
use crate::admin::trial::{TrialRequest, TrialResult};
use crate::admin::view::{RevokedToken, Token};
use crate::model::Role;

const REVOKED: &[Response] = &[
    Response::json::<RevokedToken>(200, "the outcome at the server"),
    UNKNOWN,
    Response::problem(409, "the connection is inactive, or another command for this token is in progress"),
    SUBJECT_REQUIRED,
    Response::problem(503, "the store is unavailable; nothing was forgotten"),
];

pub const OPERATIONS: &[Operation] = &[
    Operation {
        id: "listTokens",
        method: "get",
        path: "/connections/{name}/tokens",
        role: Role::Viewer,
        summary: "State of its tokens, optionally filtered by `profile`, `subject` and `state`; never a token",
        inputs: &[Input::query::<TokensQuery>()],
        responses: &[
            Response::json::<Page<Token>>(200, "a page of tokens"),
            UNKNOWN,
            Response::problem(503, "the store is unavailable"),
        ],
        handler: || get(tokens::list),
    },
    Operation {
        id: "importToken",
        method: "put",
        path: "/connections/{name}/tokens",
        role: Role::Operator,
        summary: "Imports a refresh token that was obtained elsewhere, if it yields an access token",
        inputs: &[Input::body::<ImportBody>()],
        responses: &[
            Response::json::<Token>(200, "the token's new state"),
            UNKNOWN,
            Response::problem(409, "the connection is inactive, or another import is in progress"),
            Response::problem(422, "the refresh token yielded no access token; nothing has changed"),
        ],
        handler: || put(actions::import),
    },
    Operation {
        id: "refreshToken",
        method: "post",
        path: "/connections/{name}/refresh",
        role: Role::Operator,
        summary: "Refreshes the token now, through the same single flight as the proxy",
        inputs: &[Input::body::<TokenSelector>()],
        responses: &[
            Response::json::<Token>(200, "the token's new state"),
            UNKNOWN,
            Response::problem(409, "the connection is inactive, or its token was refreshed less than ten seconds ago"),
            SUBJECT_REQUIRED,
            SERVER_REFUSED,
            NO_TOKEN,
        ],
        handler: || post(actions::refresh),
    },
    Operation {
        id: "deleteToken",
        method: "delete",
        path: "/connections/{name}/tokens",
        role: Role::Operator,
        summary: "Revokes a token at the server, then forgets it; `?profile&subject` in the query",
        inputs: &[Input::query::<TokenSelector>()],
        responses: REVOKED,
        handler: || delete(revoke::delete),
    },
    Operation {
        id: "revokeToken",
        method: "post",
        path: "/connections/{name}/revoke",
        role: Role::Operator,
        summary: "Revokes a token at the server, then forgets it; `profile` and `subject` in the body",
        inputs: &[Input::body::<TokenSelector>()],
        responses: REVOKED,
        handler: || post(revoke::post),
    },
    Operation {
        id: "testConnection",
        method: "post",
        path: "/connections/{name}/test",
        role: Role::Operator,
        summary: "Sends one request with the token, without a request body; never shows a response body",
        inputs: &[Input::body::<TrialRequest>()],
        responses: &[
            Response::json::<TrialResult>(200, "the status of the response"),
            UNKNOWN,
            Response::problem(409, "the connection is inactive"),
            Response::problem(422, "no route of the connection matches the URL, or the subject is wrong"),
            SERVER_REFUSED,
            Response::problem(502, "the upstream is unreachable"),
            NO_TOKEN,
            Response::problem(504, "the upstream did not respond in time"),
        ],
        handler: || post(actions::test),
    },
];
