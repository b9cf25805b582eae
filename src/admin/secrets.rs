//! Secrets in the store, to which `{store: NAME}` refers: list, put, remove.
//!
//! Invariants: no response holds a secret; a change requests a reload, and a refused reload does not undo the change.
//! Not here: resolving the references (`config`).

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::Admin;
use super::body::body;
use super::problem::{Problem, store_unavailable};
use super::users::AuthenticatedUser;
use crate::config;
use crate::model::secret::Secret;
use crate::store::StoreError;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct SecretBody {
    #[serde(default)]
    value: String,
}

pub async fn list(State(admin): State<Admin>) -> Result<Json<Value>, Problem> {
    let names = admin.cache.store().secret_names().await.map_err(store_problem)?;
    Ok(Json(json!({ "items": names })))
}

pub async fn put(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    Extension(user): Extension<AuthenticatedUser>,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let SecretBody { value } = body(request).await?;
    let value = Zeroizing::new(value);
    let invalid = |detail: &str| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "secret_refused", detail);
    if !config::is_stored_name(&name) {
        return Err(invalid("a name is 1 to 200 letters, digits and `._-/`"));
    }
    if value.is_empty() {
        return Err(invalid("`value` is missing or empty"));
    }
    admin.cache.store().put_secret(&name, Secret::new(value.as_str())).await.map_err(store_problem)?;
    tracing::info!(user = %user.name, secret = name, "secret stored");
    admin.request_reload(&user);
    Ok(Json(json!({ "name": name })))
}

pub async fn remove(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    Extension(user): Extension<AuthenticatedUser>,
) -> Result<Json<Value>, Problem> {
    if !admin.cache.store().remove_secret(&name).await.map_err(store_problem)? {
        return Err(Problem::new(StatusCode::NOT_FOUND, "secret_unknown", "the store has no secret of this name"));
    }
    tracing::info!(user = %user.name, secret = name, "secret removed");
    admin.request_reload(&user);
    Ok(Json(json!({ "name": name })))
}

fn store_problem(error: StoreError) -> Problem {
    match error {
        StoreError::Unsupported(_) => Problem::new(StatusCode::CONFLICT, "store_keeps_nothing", error.to_string()),
        other => store_unavailable(&other),
    }
}
