//! `PUT`, `PATCH` and `DELETE connections/{name}`, and `POST connections:apply`: definitions in the store.
//!
//! Invariants: only a manager changes a definition, except that an operator may switch `active`; no response repeats
//! what a request sent.
//! Not here: making the change (`reload::definitions`), the text of a changed definition (`config::edit`), conditions of a
//! change (`precondition`), responses to changes that were not made (`refusal`), tokens of what is removed (`removal`).

mod precondition;
mod refusal;
mod removal;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use super::auth::role_too_low;
use super::body::{JSON, MERGE_PATCH, YAML, object, text};
use super::extract::{Path, Query};
use super::problem::{Problem, bad_request, no_file};
use super::users::AuthenticatedUser;
use super::view::{self, RevokedTokens, ShownConnection};
use super::{Admin, Change, ChangeRequest, Changed, ConfigurationRequest, NotChanged, openapi};
use crate::model::{Name, Role};
use crate::store::{CHANGE_BYTES_MAX, DEFINITION_BYTES_MAX};
pub use precondition::etag;
use precondition::precondition;
use refusal::refusal;
use removal::change_with_removals;
pub use removal::{RemovalQuery, RemovedConnection, remove};

/// Longer than checking and writing the largest change.
const CHANGE_WAIT: Duration = Duration::from_secs(40);
const NAME_INVALID: &str =
    "the name is invalid: write 1 to 63 lower-case letters, digits, `_` and `-`, the first a letter or a digit";

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeQuery {
    /// Checks the change without making it.
    #[serde(default)]
    dry_run: bool,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApplyQuery {
    /// Checks the change without making it.
    #[serde(default)]
    dry_run: bool,
    /// Removes the definitions that were made over the API and are not in the request.
    #[serde(default)]
    prune: bool,
    /// With `prune`. False: the tokens of what is removed are forgotten, and not revoked at the server.
    #[serde(default = "removal::revokes")]
    revoke: bool,
}

/// Definitions to be put.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApplyBody {
    // In the order of their keys, and without duplicate ones.
    #[schemars(schema_with = "openapi::named_definitions")]
    connections: Vec<serde_yaml::Mapping>,
}

/// The names of the connections that a change concerns.
#[derive(Serialize, JsonSchema)]
pub struct ChangeSummary {
    created: Vec<String>,
    changed: Vec<String>,
    unchanged: Vec<String>,
    removed: Vec<String>,
    /// The top-level keys that differ, of a change of one definition.
    fields: Vec<String>,
    /// With `prune`: the outcome for the tokens of the removed connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<RevokedTokens>,
}

/// The connection as `GET` shows it; of a dry run, what would change.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
pub enum ChangedConnection {
    Made(#[schemars(schema_with = "openapi::connection_in_force")] Box<ShownConnection>),
    Summary(ChangeSummary),
}

pub async fn put(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    Query(query): Query<ChangeQuery>,
    Extension(user): Extension<AuthenticatedUser>,
    request: Request,
) -> Result<Response, Problem> {
    let name = parse_name(&name)?;
    let precondition = precondition(request.headers())?;
    let body = text(request, DEFINITION_BYTES_MAX, &[JSON, YAML]).await?;
    let change = Change::Put { name: name.clone(), body, precondition };
    let changed = send(&admin, &user, Arc::new(change), query.dry_run).await?;
    Ok(respond(&admin, &name, &changed, query.dry_run))
}

pub async fn patch(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    Query(query): Query<ChangeQuery>,
    Extension(user): Extension<AuthenticatedUser>,
    request: Request,
) -> Result<Response, Problem> {
    let name = parse_name(&name)?;
    let precondition = precondition(request.headers())?;
    let body = text(request, DEFINITION_BYTES_MAX, &[MERGE_PATCH, JSON]).await?;
    let patch: Map<String, Value> = object(&body)?;
    if user.role < Role::Manager && !switches_active(&patch) {
        return Err(role_too_low(Role::Manager));
    }
    let change = Change::Merge { name: name.clone(), patch: patch.into(), precondition };
    let changed = send(&admin, &user, Arc::new(change), query.dry_run).await?;
    Ok(respond(&admin, &name, &changed, query.dry_run))
}

/// True if it changes nothing but `active`.
fn switches_active(patch: &Map<String, Value>) -> bool {
    patch.iter().all(|(key, value)| key == "active" && value.is_boolean())
}

pub async fn apply(
    State(admin): State<Admin>,
    Query(ApplyQuery { dry_run, prune, revoke }): Query<ApplyQuery>,
    Extension(user): Extension<AuthenticatedUser>,
    request: Request,
) -> Result<Json<ChangeSummary>, Problem> {
    let body = text(request, CHANGE_BYTES_MAX, &[JSON]).await?;
    let ApplyBody { connections } = object(&body)?;
    let mut definitions = BTreeMap::new();
    for (index, definition) in connections.iter().enumerate() {
        let name = definition.get("name").and_then(|name| Name::parse(name.as_str()?));
        let invalid = || bad_request(format!("connections[{index}]: {NAME_INVALID}"));
        let name = name.ok_or_else(invalid)?;
        let text = serde_json::to_string(definition).map_err(|_| invalid())?;
        let text = Zeroizing::new(text);
        if text.len() > DEFINITION_BYTES_MAX {
            return Err(refusal(NotChanged::TooLarge("a definition has at most 256 KiB")));
        }
        if definitions.insert(name.clone(), text).is_some() {
            return Err(bad_request(format!("two definitions are named `{name}`")));
        }
    }
    let change = Arc::new(Change::Apply { definitions, prune });
    if dry_run || !prune {
        return Ok(Json(summary(&send(&admin, &user, change, dry_run).await?)));
    }
    let (changed, tokens) = change_with_removals(&admin, &user, change, revoke).await?;
    Ok(Json(ChangeSummary { tokens: Some(tokens.report()), ..summary(&changed) }))
}

/// Sends a change to the task that puts configurations in force, and waits for its outcome.
pub async fn send(
    admin: &Admin,
    user: &AuthenticatedUser,
    change: Arc<Change>,
    dry_run: bool,
) -> Result<Changed, Problem> {
    let sender = admin.reload.as_ref().ok_or_else(no_file)?;
    let (reply, outcome) = oneshot::channel();
    let request = ChangeRequest { by: user.person(), change, dry_run, reply };
    let done = async {
        sender.send(ConfigurationRequest::Change(request)).await.ok()?;
        outcome.await.ok()
    };
    match tokio::time::timeout(CHANGE_WAIT, done).await {
        Ok(Some(outcome)) => outcome.map_err(refusal),
        Ok(None) | Err(_) => {
            let detail = "the change took too long and may still be made; read the connection before you retry";
            Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", detail).retry_after(Duration::from_secs(5)))
        }
    }
}

/// The connection as `GET` shows it, with its ETag; of a dry run, what would change.
fn respond(admin: &Admin, name: &Name, changed: &Changed, dry_run: bool) -> Response {
    if dry_run {
        return Json(summary(changed)).into_response();
    }
    let status = if changed.created.is_empty() { StatusCode::OK } else { StatusCode::CREATED };
    let (snapshot, now) = (admin.snapshot.load_full(), admin.clock.now());
    let bound = snapshot.connections.iter().find(|bound| bound.connection.name == *name);
    let shown = bound.map(|bound| ChangedConnection::Made(Box::new(view::connection(bound, now))));
    let shown = shown.unwrap_or_else(|| ChangedConnection::Summary(summary(changed)));
    let mut response = (status, Json(shown)).into_response();
    if let Some(revision) = changed.revision {
        response.headers_mut().insert(header::ETAG, etag(revision));
    }
    if status == StatusCode::CREATED
        && let Ok(location) = HeaderValue::from_str(&format!("/api/v1/connections/{name}"))
    {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

fn summary(changed: &Changed) -> ChangeSummary {
    let Changed { created, changed, unchanged, removed, fields, .. } = changed;
    let [created, changed, unchanged, removed] =
        [created, changed, unchanged, removed].map(|names| names.iter().map(|name| name.to_string()).collect());
    ChangeSummary { created, changed, unchanged, removed, fields: fields.clone(), tokens: None }
}

pub fn parse_name(text: &str) -> Result<Name, Problem> {
    Name::parse(text).ok_or_else(|| bad_request(NAME_INVALID))
}
