//! What the API does when it is asked to: refresh, test, reload.
//!
//! Not here: the request of a test (`trial`), the reload itself (`reload`).
//! Holds: a request body is JSON, with a bound and a deadline; who asked for what is in the log.

use std::time::Duration;

use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::{Extension, Json};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::auth::Asker;
use super::problem::{Problem, bound, no_token};
use super::{Admin, ReloadAsked, Reloaded, trial, view};
use crate::model::token::default_profile;
use crate::telemetry::Clean;
use crate::telemetry::audit::{self, Kind};
use crate::token::slot::NotRefreshed;

const BODY_BYTES_MAX: usize = 64 * 1024;
const BODY_WAIT: Duration = Duration::from_secs(10);
const RELOAD_WAIT: Duration = Duration::from_secs(30);

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    profile: Option<String>,
}

pub async fn refresh(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    Extension(asker): Extension<Asker>,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let which: Which = body(request).await?;
    let snapshot = admin.snapshot.load_full();
    let bound = bound(&snapshot, &name)?;
    if which.profile.is_some_and(|profile| profile != default_profile().as_str()) {
        return Err(Problem::new(
            StatusCode::NOT_FOUND,
            "profile_unknown",
            "the connection has the profile `default` alone",
        ));
    }
    let slot = bound.slot.as_ref().ok_or_else(inactive)?;
    tracing::info!(user = %asker.name, connection = %bound.connection.name, "a refresh is asked for");
    let deadline = Instant::now() + snapshot.timeouts.token_wait;
    match slot.refresh_now(&admin.clock, deadline, &asker.person()).await {
        Ok(()) => Ok(Json(view::token(slot, admin.clock.now()))),
        Err(NotRefreshed::TooSoon { retry_after }) => {
            let detail = "another token was forced less than ten seconds ago";
            Err(Problem::new(StatusCode::CONFLICT, "refreshed_lately", detail).retry_after(retry_after))
        }
        Err(NotRefreshed::NoToken(reason)) => Err(no_token(reason)),
    }
}

pub async fn test(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    Extension(asker): Extension<Asker>,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let asked: trial::Asked = body(request).await?;
    let snapshot = admin.snapshot.load_full();
    let bound = bound(&snapshot, &name)?;
    let slot = bound.slot.as_ref().ok_or_else(inactive)?;
    let trial = trial::Trial::new(bound, asked)?;
    tracing::info!(user = %asker.name, connection = %bound.connection.name, "a test is asked for");
    let (host, path, method) = (trial.host(), trial.path().to_owned(), trial.method().to_owned());
    let (injected, profile) = (trial.injects(), default_profile());
    let result = trial.run(&snapshot, slot, &admin.clock).await;
    let (status, code) = match &result {
        Ok((status, _)) => (status.as_u16(), None),
        Err(problem) => (problem.status().as_u16(), Some(problem.code())),
    };
    let record = audit::Request {
        user: Some(asker.name.as_str()),
        listener: Some("admin"),
        connection: Some(bound.connection.name.as_str()),
        profile: Some(profile.as_str()),
        host: Some(Clean(&host)),
        code,
        injected: Some(injected),
        ..audit::Request::new(asker.from, &method, &path, status)
    };
    admin.audit.now().admin(admin.clock.now().wall, Kind::Use, &record);
    result.map(|(_, answer)| Json(answer))
}

pub async fn reload(
    State(admin): State<Admin>,
    Extension(asker): Extension<Asker>,
    request: Request,
) -> Result<Json<Value>, Problem> {
    #[derive(Default, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Nothing {}
    let Nothing {} = body(request).await?;
    let Some(sender) = &admin.reload else {
        return Err(Problem::new(
            StatusCode::CONFLICT,
            "no_file",
            "this instance was started without a configuration file",
        ));
    };
    tracing::info!(user = %asker.name, "a reload is asked for");
    let (answer, answered) = oneshot::channel();
    let busy = || Problem::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", "a reload is under way; look again");
    sender.try_send(ReloadAsked { by: asker.person(), answer }).map_err(|error| match error {
        mpsc::error::TrySendError::Full(_) => busy().retry_after(Duration::from_secs(1)),
        mpsc::error::TrySendError::Closed(_) => busy(),
    })?;
    let applied = |outcome: &str, keys: Vec<&str>| Ok(Json(json!({ "outcome": outcome, "restart_required": keys })));
    match tokio::time::timeout(RELOAD_WAIT, answered).await {
        Ok(Ok(Reloaded::Applied { restart_required })) => applied("applied", restart_required),
        Ok(Ok(Reloaded::Unchanged)) => applied("unchanged", Vec::new()),
        Ok(Ok(Reloaded::Refused(problems))) => {
            let detail = "the configuration has problems; the one before stays in force";
            let problem = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "configuration_refused", detail);
            Err(problem.with("problems", json!(problems)))
        }
        Ok(Ok(Reloaded::Failed(error))) => {
            let problem = Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "reload_failed", error);
            Err(problem)
        }
        Ok(Err(_)) | Err(_) => Err(busy()),
    }
}

fn inactive() -> Problem {
    Problem::new(StatusCode::CONFLICT, "connection_inactive", "the connection has `active: false`")
}

/// A JSON body, or nothing at all.
async fn body<T: DeserializeOwned + Default>(request: Request) -> Result<T, Problem> {
    let (parts, body) = request.into_parts();
    let read = tokio::time::timeout(BODY_WAIT, axum::body::to_bytes(body, BODY_BYTES_MAX)).await;
    let bytes = match read {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) => return Err(unread(&error)),
        Err(_) => {
            return Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", "the body stopped arriving"));
        }
    };
    if bytes.is_empty() {
        return Ok(T::default());
    }
    let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/json") {
        let detail = "the body must be application/json";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not_json", detail));
    }
    serde_json::from_slice(&bytes).map_err(|error| {
        // Where, not what: the body is not repeated.
        let detail = format!("the body is not understood (line {}, column {})", error.line(), error.column());
        Problem::new(StatusCode::BAD_REQUEST, "bad_request", detail)
    })
}

fn unread(error: &axum::Error) -> Problem {
    let inner = std::error::Error::source(error);
    if inner.is_some_and(|inner| inner.is::<http_body_util::LengthLimitError>()) {
        let detail = format!("the body is larger than {BODY_BYTES_MAX} bytes");
        return Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail);
    }
    Problem::new(StatusCode::BAD_REQUEST, "bad_request", "the body did not arrive whole")
}
