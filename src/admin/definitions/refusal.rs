//! Responses to changes that were not made.

use std::time::Duration;

use axum::http::StatusCode;

use crate::admin::NotChanged;
use crate::admin::problem::{Problem, store_unavailable};
use crate::admin::view::problems_of_definitions;

/// The response to a change that was not made.
pub fn refusal(reason: NotChanged) -> Problem {
    let conflict = |code, detail: String| Problem::new(StatusCode::CONFLICT, code, detail);
    match reason {
        NotChanged::ReadOnly { name: Some(name), path } => {
            let detail = format!("`{name}` is defined in {path}; change it there");
            conflict("read_only", detail).with("path", path)
        }
        NotChanged::ReadOnly { name: None, path } => {
            let detail = "`editing: false` makes files the only source of connections".to_owned();
            conflict("read_only", detail).with("path", path)
        }
        NotChanged::NotKept => {
            let detail = "`store: memory` keeps no definitions; configure `store: {embedded: {}}` or redis".to_owned();
            conflict("definitions_not_kept", detail)
        }
        NotChanged::Unknown => Problem::new(
            StatusCode::NOT_FOUND,
            "connection_unknown",
            "no connection of this name was made over the API",
        ),
        NotChanged::PreconditionRequired => {
            let detail = "the connection exists; send `If-Match` with the ETag of `GET connections/{name}`";
            Problem::new(StatusCode::PRECONDITION_REQUIRED, "precondition_required", detail)
        }
        NotChanged::PreconditionFailed(detail) => {
            Problem::new(StatusCode::PRECONDITION_FAILED, "precondition_failed", detail)
        }
        NotChanged::Refused(problems) => {
            let code = problems.iter().find_map(|(_, problem)| problem.code).unwrap_or("definition_refused");
            let detail = "the definition has problems; nothing has changed";
            let problem = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, code, detail);
            problem.with("problems", problems_of_definitions(&problems))
        }
        NotChanged::InUse(problems) => {
            let detail = "other connections would no longer be valid; change them first".to_owned();
            conflict("in_use", detail).with("problems", problems_of_definitions(&problems))
        }
        NotChanged::Files(problems) => {
            let detail = "the configuration files have problems, so no change can be put in force; correct them first";
            conflict("configuration_refused", detail.to_owned()).with("problems", problems)
        }
        NotChanged::TooLarge(why) => Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", why),
        NotChanged::Store(error) => store_unavailable(&error),
        NotChanged::Unclear(error) => {
            let detail = format!("{error}; the change may have been made: read the connection before you retry");
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "store_unavailable", detail)
        }
        NotChanged::Contended => {
            let detail = "other replicas keep changing the definitions; retry in a moment";
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", detail).retry_after(Duration::from_secs(1))
        }
        NotChanged::Failed(why) => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "change_failed", why),
    }
}
