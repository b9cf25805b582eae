//! `POST preflight`: checks a connection against its authorization server.
//!
//! Invariants: a preflight uses the endpoint in force, and so its address policy; a bounded number runs at once.
//! Not here: the checks (`oauth`).

use std::time::Duration;

use axum::extract::{OriginalUri, Request, State};
use axum::http::{Method, StatusCode};
use axum::{Extension, Json};
use schemars::JsonSchema;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::body::body;
use super::extract::Path;
use super::problem::{Problem, bound, definition};
use super::users::AuthenticatedUser;
use super::{Admin, record};
use crate::oauth::Check;

/// Preflights that run at once; each takes up to 15 seconds.
pub const PREFLIGHTS_MAX: usize = 4;
const RETRY_AFTER: Duration = Duration::from_secs(5);

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PreflightBody {
    /// Not supported yet: the definition of a connection that is not in force.
    #[schemars(with = "Option<Map<String, Value>>")]
    definition: Option<IgnoredAny>,
}

/// What a preflight found.
#[derive(Serialize, JsonSchema)]
pub struct Checks {
    checks: Vec<Check>,
}

pub async fn preflight(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    OriginalUri(uri): OriginalUri,
    Extension(user): Extension<AuthenticatedUser>,
    request: Request,
) -> Result<Json<Checks>, Problem> {
    let PreflightBody { definition: unsaved } = body(request).await?;
    if unsaved.is_some() {
        let detail = "a preflight of a definition that is not in force is not supported yet; leave `definition` out";
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "not_supported", detail));
    }
    let snapshot = admin.snapshot.load_full();
    let definition = definition(bound(&snapshot, &name)?, None)?;
    let endpoint = definition.endpoint.as_ref().ok_or_else(super::actions::inactive)?;
    let _permit = admin.preflights.try_acquire().map_err(|_| {
        let detail = "too many preflights are in progress; retry in a moment";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", detail).retry_after(RETRY_AFTER)
    })?;
    tracing::info!(user = %user.name, connection = %name, "preflight requested");
    let checks = endpoint.preflight(snapshot.links.callback().as_deref()).await;
    let key = definition.connection.token_key(None);
    record::operation(&admin, &user, (&Method::POST, uri.path()), &key, StatusCode::OK);
    Ok(Json(Checks { checks }))
}
