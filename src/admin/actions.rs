//! API operations with side effects: refresh, import, test, reload.
//!
//! Invariant: the log names the user of each.
//! Not here: the request of a test (`trial`), the reload itself (`reload`).

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::body::body;
use super::extract::Path;
use super::problem::{Problem, bound, definition, no_file, no_token};
use super::users::AuthenticatedUser;
use super::view::{self, Token};
use super::{Admin, ConfigurationRequest, ReloadOutcome, ReloadRequest, trial};
use crate::model::Name;
use crate::model::token::{REFRESH_TOKEN_BYTES_MAX, RefreshToken, Subject};
use crate::snapshot::{BoundConnection, BoundDefinition};
use crate::telemetry::Clean;
use crate::telemetry::audit::{self, Cause, Kind};
use crate::token::slot::{Credential, NotImported, NotRefreshed, TokenSlot};

/// Longer than the longest token request.
const IMPORT_WAIT: Duration = Duration::from_secs(40);
const RELOAD_WAIT: Duration = Duration::from_secs(30);

/// Selects one token of a connection.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenSelector {
    /// Absent: the default profile.
    #[schemars(regex(pattern = Name::PATTERN))]
    profile: Option<String>,
    /// Required if the connection has a token for each subject.
    #[schemars(regex(pattern = Subject::PATTERN))]
    subject: Option<String>,
}

impl TokenSelector {
    pub fn slot(self, bound: &BoundConnection) -> Result<Arc<TokenSlot>, Problem> {
        subject_slot(definition(bound, self.profile.as_deref())?, self.subject.as_deref())
    }
}

/// The body of an import: a refresh token that was obtained elsewhere.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportBody {
    /// Absent: the default profile.
    #[schemars(regex(pattern = Name::PATTERN))]
    profile: Option<String>,
    /// Required if the connection has a token for each subject.
    #[schemars(regex(pattern = Subject::PATTERN))]
    subject: Option<String>,
    #[schemars(
        required,
        length(max = REFRESH_TOKEN_BYTES_MAX),
        regex(pattern = "^[ -~]+$"),
        extend("writeOnly" = true)
    )]
    refresh_token: Option<String>,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReloadBody {}

/// The outcome of a reload.
#[derive(Serialize, JsonSchema)]
pub struct Reloaded {
    /// `unchanged`: the files match the configuration in force.
    #[schemars(extend("enum" = ["applied", "unchanged"]))]
    outcome: &'static str,
    /// Keys whose changes need a restart.
    restart_required: Vec<&'static str>,
}

pub async fn refresh(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    Extension(user): Extension<AuthenticatedUser>,
    request: Request,
) -> Result<Json<Token>, Problem> {
    let selector: TokenSelector = body(request).await?;
    let snapshot = admin.snapshot.load_full();
    let bound = bound(&snapshot, &name)?;
    let slot = selector.slot(bound)?;
    tracing::info!(user = %user.name, connection = %slot.key.connection, profile = %slot.key.profile, "token refresh requested");
    let deadline = Instant::now() + snapshot.timeouts.token_wait;
    match slot.refresh_now(&admin.clock, deadline, Cause::Person(user.person())).await {
        Ok(()) => Ok(Json(view::token(&slot, admin.clock.now()))),
        Err(NotRefreshed::TooSoon { retry_after }) => {
            let detail = "the token was refreshed on request less than ten seconds ago; retry later";
            Err(Problem::new(StatusCode::CONFLICT, "refreshed_lately", detail).retry_after(retry_after))
        }
        Err(NotRefreshed::NoToken(reason)) => Err(no_token(reason)),
    }
}

pub async fn import(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    Extension(user): Extension<AuthenticatedUser>,
    request: Request,
) -> Result<Json<Token>, Problem> {
    let ImportBody { profile, subject, refresh_token } = body(request).await?;
    let refresh_token = Zeroizing::new(refresh_token.unwrap_or_default());
    let snapshot = admin.snapshot.load_full();
    let bound = bound(&snapshot, &name)?;
    let token = RefreshToken::parse(&refresh_token).ok_or_else(|| {
        let detail = "`refresh_token` is missing, too long, or has characters that are not printable";
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "not_proven", detail)
    })?;
    let slot = TokenSelector { profile, subject }.slot(bound)?;
    tracing::info!(user = %user.name, connection = %slot.key.connection, profile = %slot.key.profile, "refresh token import requested");
    match slot.import(Credential::RefreshToken(token), user.person(), Instant::now() + IMPORT_WAIT).await {
        Ok(()) => Ok(Json(view::token(&slot, admin.clock.now()))),
        Err(NotImported::Busy) => {
            let problem = Problem::new(
                StatusCode::CONFLICT,
                "overloaded",
                "another token of this connection is being imported; retry in a moment",
            );
            Err(problem.retry_after(Duration::from_secs(1)))
        }
        Err(NotImported::NotProven(reason)) => Err(no_token(reason).not_proven()),
    }
}

pub async fn test(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    Extension(user): Extension<AuthenticatedUser>,
    request: Request,
) -> Result<Json<trial::TrialResult>, Problem> {
    let requested: trial::TrialRequest = body(request).await?;
    let snapshot = admin.snapshot.load_full();
    let bound = bound(&snapshot, &name)?;
    let definition = definition(bound, requested.profile.as_deref())?;
    let slot = subject_slot(definition, requested.subject.as_deref())?;
    let trial = trial::Trial::new(bound, &definition.connection, requested)?;
    tracing::info!(user = %user.name, connection = %slot.key.connection, profile = %slot.key.profile, "token test requested");
    let (host, path, method) = (trial.host(), trial.path().to_owned(), trial.method().to_owned());
    let injected = trial.injects();
    let result = trial.run(&snapshot, &slot, &admin.clock).await;
    let (status, code) = match &result {
        Ok((status, _)) => (status.as_u16(), None),
        Err(problem) => (problem.status().as_u16(), Some(problem.code())),
    };
    let record = audit::Request {
        user: Some(user.name.as_str()),
        listener: Some("admin"),
        connection: Some(slot.key.connection.as_str()),
        profile: Some(slot.key.profile.as_str()),
        host: Some(Clean(&host)),
        code,
        injected: Some(injected),
        ..audit::Request::new(user.from, &method, &path, status)
    };
    admin.audit.now().admin(admin.clock.now().wall, Kind::Use, &record);
    result.map(|(_, summary)| Json(summary))
}

pub async fn reload(
    State(admin): State<Admin>,
    Extension(user): Extension<AuthenticatedUser>,
    request: Request,
) -> Result<Json<Reloaded>, Problem> {
    let ReloadBody {} = body(request).await?;
    let sender = admin.reload.as_ref().ok_or_else(no_file)?;
    tracing::info!(user = %user.name, "reload requested");
    let (reply, outcome) = oneshot::channel();
    let busy =
        || Problem::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", "a reload is in progress; retry in a moment");
    sender.try_send(ConfigurationRequest::Reload(ReloadRequest { by: user.person(), reply })).map_err(|error| {
        match error {
            mpsc::error::TrySendError::Full(_) => busy().retry_after(Duration::from_secs(1)),
            mpsc::error::TrySendError::Closed(_) => busy(),
        }
    })?;
    match tokio::time::timeout(RELOAD_WAIT, outcome).await {
        Ok(Ok(ReloadOutcome::Applied { restart_required })) => {
            Ok(Json(Reloaded { outcome: "applied", restart_required }))
        }
        Ok(Ok(ReloadOutcome::Unchanged)) => Ok(Json(Reloaded { outcome: "unchanged", restart_required: Vec::new() })),
        Ok(Ok(ReloadOutcome::Refused(problems))) => {
            let detail = "the configuration has problems; the previous one remains active";
            let problem = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "configuration_refused", detail);
            Err(problem.with("problems", json!(problems)))
        }
        Ok(Ok(ReloadOutcome::Failed(error))) => {
            let problem = Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "reload_failed", error);
            Err(problem)
        }
        Ok(Err(_)) | Err(_) => Err(busy()),
    }
}

/// The slot of the shared token, or of the subject's token.
fn subject_slot(bound: &BoundDefinition, subject: Option<&str>) -> Result<Arc<TokenSlot>, Problem> {
    let slots = bound.slots.as_ref().ok_or_else(inactive)?;
    let wrong_subject = |detail| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "subject_required", detail);
    let subject = subject.map(|text| {
        Subject::parse(text).ok_or_else(|| wrong_subject("`subject` is 1 to 128 letters, digits and `._@:+-`"))
    });
    let subject = subject.transpose()?;
    if subject.is_some() && slots.shared().is_some() {
        return Err(wrong_subject("all callers share the token of this connection; omit `subject`"));
    }
    slots
        .slot(subject.as_ref())
        .ok_or_else(|| wrong_subject("the connection has a token for each subject; name one in `subject`"))
}

pub fn inactive() -> Problem {
    Problem::new(StatusCode::CONFLICT, "connection_inactive", "the connection is inactive; remove its `active: false`")
}
