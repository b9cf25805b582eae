//! Operations that change connections.
//!
//! Not here: reading them (`connections`).

use axum::routing::{delete, patch, post, put};
use serde_json::json;

use super::common::{ETAG, UNKNOWN};
use crate::admin::body::{JSON, MERGE_PATCH, YAML};
use crate::admin::definitions::{
    self, ApplyBody, ApplyQuery, ChangeQuery, ChangeSummary, ChangedConnection, RemovalQuery, RemovedConnection,
};
use crate::admin::openapi::{self, Content, Header, Input, Operation, RequestHeader, Response};
use crate::model::Role;

const READ_ONLY: Response =
    Response::problem(409, "the name is defined in a file, `editing` is false, or the store keeps no definitions");
const CHANGED_MEANWHILE: Response =
    Response::problem(412, "the connection has changed since it was read, or does not exist");
const TOO_LARGE: Response = Response::problem(413, "the body, or the definition in the store, is too large");
const REFUSED: Response = Response::problem(422, "`problems` lists the problems of the definitions");
const IF_MATCH_MISSING: Response = Response::problem(428, "the connection exists; send `If-Match`");
const UNAVAILABLE: Response = Response::problem(503, "the store is unavailable, or the change took too long");
const FAILED: Response = Response::problem(500, "the change failed; `detail` has the reason");

const IF_MATCH: RequestHeader = RequestHeader {
    name: "If-Match",
    description: "The ETag of the connection as it was read, or `*` for any.",
    pattern: r#"^(\*|"[0-9a-f]+"(, ?"[0-9a-f]+"){0,15})$"#,
    example: "*",
    is_required: true,
};
const IF_NONE_MATCH: RequestHeader = RequestHeader {
    name: "If-None-Match",
    description: "`*`: there must be no connection of this name.",
    pattern: r"^\*$",
    example: "*",
    is_required: false,
};
const LOCATION: Header = Header { name: "Location", kind: "string", description: "the path of the connection" };

pub const OPERATIONS: &[Operation] = &[
    Operation {
        id: "putConnection",
        method: "put",
        path: "/connections/{name}",
        role: Role::Manager,
        summary: "Keeps a definition in the store and puts it in force; `{set: true}` keeps a secret",
        inputs: &[
            Input::query::<ChangeQuery>(),
            Input::Header(RequestHeader { is_required: false, ..IF_MATCH }),
            Input::Header(IF_NONE_MATCH),
            Input::Content(&[
                Content { media_type: JSON[0], schema: openapi::definition, example },
                Content { media_type: YAML[0], schema: openapi::definition, example },
            ]),
        ],
        responses: &[
            Response::json::<ChangedConnection>(200, "the changed connection; with `dry_run`, what would change")
                .with_headers(&[ETAG]),
            Response::json::<ChangedConnection>(201, "the new connection").with_headers(&[ETAG, LOCATION]),
            READ_ONLY,
            CHANGED_MEANWHILE,
            TOO_LARGE,
            REFUSED,
            IF_MATCH_MISSING,
            FAILED,
            UNAVAILABLE,
        ],
        handler: || put(definitions::put),
    },
    Operation {
        id: "patchConnection",
        method: "patch",
        path: "/connections/{name}",
        role: Role::Operator,
        summary: "Changes a definition by a JSON merge patch (RFC 7396); an operator may switch `active`",
        inputs: &[
            Input::query::<ChangeQuery>(),
            Input::Header(IF_MATCH),
            Input::Content(&[
                Content {
                    media_type: MERGE_PATCH[0],
                    schema: openapi::definition_patch,
                    example: || json!({ "active": true }),
                },
                Content {
                    media_type: JSON[0],
                    schema: openapi::definition_patch,
                    example: || json!({ "active": true }),
                },
            ]),
        ],
        responses: &[
            Response::json::<ChangedConnection>(200, "the changed connection; with `dry_run`, what would change")
                .with_headers(&[ETAG]),
            UNKNOWN,
            READ_ONLY,
            CHANGED_MEANWHILE,
            TOO_LARGE,
            REFUSED,
            IF_MATCH_MISSING,
            FAILED,
            UNAVAILABLE,
        ],
        handler: || patch(definitions::patch),
    },
    Operation {
        id: "deleteConnection",
        method: "delete",
        path: "/connections/{name}",
        role: Role::Manager,
        summary: "Revokes the tokens of a connection, then removes its definition; `?revoke=false` only forgets the tokens",
        inputs: &[Input::query::<RemovalQuery>(), Input::Header(IF_MATCH)],
        responses: &[
            Response::json::<RemovedConnection>(200, "the name of the connection, and the outcome for its tokens"),
            UNKNOWN,
            Response::problem(
                409,
                "as for a change; or `in_use`: other definitions would no longer be valid, `problems` lists why",
            ),
            CHANGED_MEANWHILE,
            IF_MATCH_MISSING,
            FAILED,
            Response::problem(503, "the store is unavailable, or `tokens` lists tokens that could not be forgotten"),
        ],
        handler: || delete(definitions::remove),
    },
    Operation {
        id: "applyConnections",
        method: "post",
        path: "/connections:apply",
        role: Role::Manager,
        summary: "Puts many definitions, all or nothing; `?prune=true` removes all others that were made over the API",
        inputs: &[Input::query::<ApplyQuery>(), Input::body::<ApplyBody>()],
        responses: &[
            Response::json::<ChangeSummary>(200, "the names of the connections; with `dry_run`, what would change"),
            READ_ONLY,
            TOO_LARGE,
            REFUSED,
            FAILED,
            UNAVAILABLE,
        ],
        handler: || post(definitions::apply),
    },
];

fn example() -> serde_json::Value {
    json!({
        "client_id": "the-client",
        "client_secret": "the-secret",
        "token_url": "https://as.example/token",
        "routes": [{ "host": "api.example" }],
    })
}
