//! Responses that several operations share.

use crate::admin::openapi::{Header, Response};

pub const UNKNOWN: Response = Response::problem(404, "no connection has this name, or it has no such profile");
pub const SUBJECT_REQUIRED: Response =
    Response::problem(422, "the connection has a token for each subject, and none is named; or it has one for all");
pub const SERVER_REFUSED: Response = Response::problem(424, "the authorization server refused, or a person is needed");
pub const NO_TOKEN: Response = Response::problem(503, "the authorization server is unavailable");

pub const ETAG: Header =
    Header { name: "ETag", kind: "string", description: "the revision of a definition that was made over the API" };
