//! `PUT`, `PATCH` and `DELETE connections/{name}`, and `POST connections:apply`: definitions in the store.
//!
//! Invariants: only a manager changes a definition, but for `active`, which an operator switches; no response repeats
//! what a request sent.
//! Not here: making the change (`reload::definitions`), the text of a changed definition (`config::edit`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use super::auth::role_too_low;
use super::body::{JSON, MERGE_PATCH, YAML, text};
use super::problem::{Problem, bad_request, listed, no_file, store_unavailable};
use super::revoke::all::{RevokedAll, forget_all, revoke_all};
use super::users::AuthenticatedUser;
use super::{Admin, Change, ChangeRequest, Changed, ConfigurationRequest, NotChanged, Precondition, view};
use crate::model::connection::Revision;
use crate::model::{Name, Role};
use crate::store::{CHANGE_BYTES_MAX, DEFINITION_BYTES_MAX};

/// Longer than checking and writing the largest change.
const CHANGE_WAIT: Duration = Duration::from_secs(40);
const NAME_INVALID: &str =
    "the name is invalid: write 1 to 63 lower-case letters, digits, `_` and `-`, the first a letter or a digit";
/// Revisions that `If-Match` may list.
const REVISIONS_MAX: usize = 16;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangeQuery {
    /// Checks the change without making it.
    #[serde(default)]
    dry_run: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplyQuery {
    /// Checks the change without making it.
    #[serde(default)]
    dry_run: bool,
    /// Removes the definitions that were made over the API and are not in the request.
    #[serde(default)]
    prune: bool,
}

/// The body of `connections:apply`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ApplyBody {
    /// In the order of their keys, and without duplicate ones.
    connections: Vec<serde_yaml::Mapping>,
}

pub async fn put(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    query: Result<Query<ChangeQuery>, QueryRejection>,
    Extension(user): Extension<AuthenticatedUser>,
    request: Request,
) -> Result<Response, Problem> {
    let (name, Query(query)) = (parse_name(&name)?, query.map_err(invalid_query)?);
    let precondition = precondition(request.headers())?;
    let body = text(request, DEFINITION_BYTES_MAX, &[JSON, YAML]).await?;
    let change = Change::Put { name: name.clone(), body, precondition };
    let changed = send(&admin, &user, change, query.dry_run).await?;
    Ok(respond(&admin, &name, &changed, query.dry_run))
}

pub async fn patch(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    query: Result<Query<ChangeQuery>, QueryRejection>,
    Extension(user): Extension<AuthenticatedUser>,
    request: Request,
) -> Result<Response, Problem> {
    let (name, Query(query)) = (parse_name(&name)?, query.map_err(invalid_query)?);
    let precondition = precondition(request.headers())?;
    let body = text(request, DEFINITION_BYTES_MAX, &[MERGE_PATCH, JSON]).await?;
    let patch: Map<String, Value> = serde_json::from_str(&body).map_err(|error| invalid_json(&error))?;
    if user.role < Role::Manager && !switches_active(&patch) {
        return Err(role_too_low(Role::Manager));
    }
    let change = Change::Merge { name: name.clone(), patch: patch.into(), precondition };
    let changed = send(&admin, &user, change, query.dry_run).await?;
    Ok(respond(&admin, &name, &changed, query.dry_run))
}

/// True if it changes nothing but `active`.
fn switches_active(patch: &Map<String, Value>) -> bool {
    patch.iter().all(|(key, value)| key == "active" && value.is_boolean())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemovalQuery {
    /// False: the tokens are forgotten, and not revoked at the server.
    #[serde(default = "revokes")]
    revoke: bool,
}

fn revokes() -> bool {
    true
}

/// Revokes the tokens, removes the definition, then forgets what was acquired meanwhile.
pub async fn remove(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    query: Result<Query<RemovalQuery>, QueryRejection>,
    Extension(user): Extension<AuthenticatedUser>,
    headers: HeaderMap,
) -> Result<Json<Value>, Problem> {
    let (name, Query(query)) = (parse_name(&name)?, query.map_err(invalid_query)?);
    let precondition = precondition(&headers)?;
    let removal = || Change::Remove { name: name.clone(), precondition: precondition.clone() };
    send(&admin, &user, removal(), true).await?;
    let snapshot = admin.snapshot.load_full();
    let bound = snapshot.connections.iter().find(|bound| bound.connection.name == name);
    // The tokens of a definition that a file has shadowed are the file's.
    let is_shadowed = bound.is_some_and(|bound| bound.connection.written.revision().is_none());
    let forget = async || match is_shadowed {
        true => Ok(RevokedAll::nothing()),
        false => forget_all(&admin, &name, &user).await,
    };
    let tokens = match bound.filter(|_| query.revoke && !is_shadowed) {
        Some(bound) => revoke_all(&admin, bound, &user).await?,
        None => forget().await?,
    };
    if !tokens.is_complete {
        let detail = "not every token could be forgotten, so the definition is still in force; retry";
        let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", detail);
        return Err(problem.retry_after(Duration::from_secs(1)).with("tokens", tokens.json()));
    }
    send(&admin, &user, removal(), false).await?;
    if let Err(problem) = forget().await {
        tracing::warn!(connection = %name, code = problem.code(), "tokens acquired during the removal are not forgotten");
    }
    Ok(Json(json!({ "removed": name.as_str(), "tokens": tokens.json() })))
}

pub async fn apply(
    State(admin): State<Admin>,
    query: Result<Query<ApplyQuery>, QueryRejection>,
    Extension(user): Extension<AuthenticatedUser>,
    request: Request,
) -> Result<Response, Problem> {
    let Query(ApplyQuery { dry_run, prune }) = query.map_err(invalid_query)?;
    let body = text(request, CHANGE_BYTES_MAX, &[JSON]).await?;
    let ApplyBody { connections } = serde_json::from_str(&body).map_err(|error| invalid_json(&error))?;
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
    let changed = send(&admin, &user, Change::Apply { definitions, prune }, dry_run).await?;
    Ok(Json(summary(&changed)).into_response())
}

/// Sends a change to the task that puts configurations in force, and waits for its outcome.
pub async fn send(admin: &Admin, user: &AuthenticatedUser, change: Change, dry_run: bool) -> Result<Changed, Problem> {
    let sender = admin.reload.as_ref().ok_or_else(no_file)?;
    let (reply, outcome) = oneshot::channel();
    let request = ChangeRequest { by: user.person(), change: Arc::new(change), dry_run, reply };
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
    let shown = bound.map_or_else(|| summary(changed), |bound| view::connection(bound, now));
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

fn summary(changed: &Changed) -> Value {
    let Changed { created, changed, unchanged, removed, fields, .. } = changed;
    let [created, changed, unchanged, removed] =
        [created, changed, unchanged, removed].map(|names| names.iter().map(|name| name.as_str()).collect::<Vec<_>>());
    json!({
        "created": created, "changed": changed, "unchanged": unchanged, "removed": removed, "fields": fields,
    })
}

/// The entity tag of a revision.
pub fn etag(revision: Revision) -> HeaderValue {
    // Hexadecimal digits in quotes are always a valid value.
    HeaderValue::from_str(&format!("\"{revision}\"")).unwrap_or(HeaderValue::from_static("\"\""))
}

/// Reads `If-Match` and `If-None-Match`.
pub fn precondition(headers: &HeaderMap) -> Result<Precondition, Problem> {
    let lists = |name| -> Result<Option<Vec<&str>>, Problem> {
        let values = headers.get_all(name).iter().map(|value| value.to_str());
        let values: Vec<_> =
            values.collect::<Result<_, _>>().map_err(|_| bad_request("the precondition is invalid"))?;
        Ok((!values.is_empty()).then(|| values.iter().flat_map(|value| value.split(',')).map(str::trim).collect()))
    };
    match (lists(header::IF_MATCH)?, lists(header::IF_NONE_MATCH)?) {
        (None, None) => Ok(Precondition::Absent),
        (None, Some(tags)) if tags == ["*"] => Ok(Precondition::New),
        (Some(tags), None) if tags == ["*"] => Ok(Precondition::Existing),
        (Some(tags), None) if tags.len() <= REVISIONS_MAX => {
            // Another tag, or a weak one, matches no revision.
            let revision = |tag: &&str| Revision::parse(tag.strip_prefix('"')?.strip_suffix('"')?);
            Ok(Precondition::Revisions(tags.iter().filter_map(revision).collect()))
        }
        _ => Err(bad_request("send `If-Match` with the ETag of `GET`, or `If-None-Match: *` for a new connection")),
    }
}

pub fn parse_name(text: &str) -> Result<Name, Problem> {
    Name::parse(text).ok_or_else(|| bad_request(NAME_INVALID))
}

fn invalid_query(error: QueryRejection) -> Problem {
    bad_request(error.body_text())
}

/// Names the position only: the body may hold secrets.
fn invalid_json(error: &serde_json::Error) -> Problem {
    bad_request(format!("the body is not valid for this operation (line {}, column {})", error.line(), error.column()))
}

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
        NotChanged::PreconditionFailed => {
            let detail = "the connection has changed since it was read, or does not exist; read it again";
            Problem::new(StatusCode::PRECONDITION_FAILED, "precondition_failed", detail)
        }
        NotChanged::Refused(problems) => {
            let code = problems.iter().find_map(|(_, problem)| problem.code).unwrap_or("definition_refused");
            let detail = "the definition has problems; nothing has changed";
            let problem = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, code, detail);
            problem.with("problems", listed(&problems))
        }
        NotChanged::InUse(problems) => {
            let detail = "other connections would no longer be valid; change them first".to_owned();
            conflict("in_use", detail).with("problems", listed(&problems))
        }
        NotChanged::Files(problems) => {
            let detail = "the configuration files have problems, so no change can be put in force; correct them first";
            conflict("configuration_refused", detail.to_owned()).with("problems", json!(problems))
        }
        NotChanged::TooLarge(why) => Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", why),
        NotChanged::Store(error) => store_unavailable(&error),
        NotChanged::Contended => {
            let detail = "other replicas keep changing the definitions; retry in a moment";
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", detail).retry_after(Duration::from_secs(1))
        }
        NotChanged::Failed(why) => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "change_failed", why),
    }
}
