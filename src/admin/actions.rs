//! What the API does when it is asked to: refresh, import, test, reload.
//!
//! Not here: the request of a test (`trial`), the reload itself (`reload`).
//! Holds: who asked for what is in the log.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::body::body;
use super::problem::{Problem, bound, definition, no_token};
use super::users::Asker;
use super::{Admin, ReloadRequest, Reloaded, trial, view};
use crate::model::token::{RefreshToken, Subject};
use crate::snapshot::{BoundConnection, BoundDefinition};
use crate::telemetry::Clean;
use crate::telemetry::audit::{self, Cause, Kind};
use crate::token::slot::{Credential, NotImported, NotRefreshed, TokenSlot};

/// Longer than the longest token request that is waited for.
const IMPORT_WAIT: Duration = Duration::from_secs(40);
const RELOAD_WAIT: Duration = Duration::from_secs(30);

/// Which token of a connection is meant.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Which {
    profile: Option<String>,
    subject: Option<String>,
}

impl Which {
    pub fn slot(self, bound: &BoundConnection) -> Result<Arc<TokenSlot>, Problem> {
        subject_slot(definition(bound, self.profile.as_deref())?, self.subject.as_deref())
    }
}

/// A refresh token from elsewhere.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Imported {
    profile: Option<String>,
    subject: Option<String>,
    #[serde(default)]
    refresh_token: String,
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
    let slot = which.slot(bound)?;
    tracing::info!(user = %asker.name, connection = %slot.key.connection, profile = %slot.key.profile, "a refresh is asked for");
    let deadline = Instant::now() + snapshot.timeouts.token_wait;
    match slot.refresh_now(&admin.clock, deadline, Cause::Person(asker.person())).await {
        Ok(()) => Ok(Json(view::token(&slot, admin.clock.now()))),
        Err(NotRefreshed::TooSoon { retry_after }) => {
            let detail = "another token was forced less than ten seconds ago";
            Err(Problem::new(StatusCode::CONFLICT, "refreshed_lately", detail).retry_after(retry_after))
        }
        Err(NotRefreshed::NoToken(reason)) => Err(no_token(reason)),
    }
}

pub async fn import(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    Extension(asker): Extension<Asker>,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let Imported { profile, subject, refresh_token } = body(request).await?;
    let refresh_token = Zeroizing::new(refresh_token);
    let snapshot = admin.snapshot.load_full();
    let bound = bound(&snapshot, &name)?;
    let token = RefreshToken::parse(&refresh_token).ok_or_else(|| {
        let detail = "`refresh_token` is missing, too long, or holds what is no visible character";
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "not_proven", detail)
    })?;
    let slot = Which { profile, subject }.slot(bound)?;
    tracing::info!(user = %asker.name, connection = %slot.key.connection, profile = %slot.key.profile, "a refresh token is handed in");
    match slot.import(Credential::RefreshToken(token), asker.person(), Instant::now() + IMPORT_WAIT).await {
        Ok(()) => Ok(Json(view::token(&slot, admin.clock.now()))),
        Err(NotImported::Busy) => {
            let problem = Problem::new(StatusCode::CONFLICT, "overloaded", "another token is being proven; ask again");
            Err(problem.retry_after(Duration::from_secs(1)))
        }
        Err(NotImported::NotProven(why)) => Err(no_token(why).not_proven()),
    }
}

pub async fn test(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    Extension(asker): Extension<Asker>,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let asked: trial::TrialRequest = body(request).await?;
    let snapshot = admin.snapshot.load_full();
    let bound = bound(&snapshot, &name)?;
    let definition = definition(bound, asked.profile.as_deref())?;
    let slot = subject_slot(definition, asked.subject.as_deref())?;
    let trial = trial::Trial::new(bound, &definition.connection, asked)?;
    tracing::info!(user = %asker.name, connection = %slot.key.connection, profile = %slot.key.profile, "a test is asked for");
    let (host, path, method) = (trial.host(), trial.path().to_owned(), trial.method().to_owned());
    let injected = trial.injects();
    let result = trial.run(&snapshot, &slot, &admin.clock).await;
    let (status, code) = match &result {
        Ok((status, _)) => (status.as_u16(), None),
        Err(problem) => (problem.status().as_u16(), Some(problem.code())),
    };
    let record = audit::Request {
        user: Some(asker.name.as_str()),
        listener: Some("admin"),
        connection: Some(slot.key.connection.as_str()),
        profile: Some(slot.key.profile.as_str()),
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
    sender.try_send(ReloadRequest { by: asker.person(), answer }).map_err(|error| match error {
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

/// The slot of a shared token, or of one subject's.
fn subject_slot(bound: &BoundDefinition, subject: Option<&str>) -> Result<Arc<TokenSlot>, Problem> {
    let slots = bound.slots.as_ref().ok_or_else(inactive)?;
    let unknown = |detail| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "subject_required", detail);
    let subject = subject
        .map(|text| Subject::parse(text).ok_or_else(|| unknown("`subject` is 1 to 128 letters, digits and `._@:+-`")));
    let subject = subject.transpose()?;
    if subject.is_some() && slots.shared().is_some() {
        return Err(unknown("the connection has one token for everybody; leave `subject` out"));
    }
    slots.slot(subject.as_ref()).ok_or_else(|| unknown("the connection has a token for each subject; name one"))
}

fn inactive() -> Problem {
    Problem::new(StatusCode::CONFLICT, "connection_inactive", "the connection has `active: false`")
}
