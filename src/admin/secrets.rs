//! Secrets in the store, to which `{store: NAME}` refers: list, put, remove.
//!
//! Invariants: no response holds a secret; a change requests a reload, and a refused reload does not undo the change.
//! Not here: resolving the references (`config`).

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::Admin;
use super::body::body;
use super::extract::Path;
use super::problem::{Problem, store_unavailable};
use super::users::AuthenticatedUser;
use crate::config;
use crate::model::secret::Secret;
use crate::store::StoreError;

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretBody {
    #[schemars(required, length(min = 1), extend("writeOnly" = true))]
    value: Option<String>,
}

/// The names of the secrets in the store.
#[derive(Serialize, JsonSchema)]
pub struct SecretNames {
    items: Vec<String>,
}

/// The secret that was stored or removed.
#[derive(Serialize, JsonSchema)]
pub struct SecretName {
    name: String,
}

pub async fn list(State(admin): State<Admin>) -> Result<Json<SecretNames>, Problem> {
    let items = admin.cache.store().secret_names().await.map_err(store_problem)?;
    Ok(Json(SecretNames { items }))
}

pub async fn put(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    Extension(user): Extension<AuthenticatedUser>,
    request: Request,
) -> Result<Json<SecretName>, Problem> {
    let SecretBody { value } = body(request).await?;
    let value = Zeroizing::new(value.unwrap_or_default());
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
    Ok(Json(SecretName { name }))
}

pub async fn remove(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    Extension(user): Extension<AuthenticatedUser>,
) -> Result<Json<SecretName>, Problem> {
    if !admin.cache.store().remove_secret(&name).await.map_err(store_problem)? {
        return Err(Problem::new(StatusCode::NOT_FOUND, "secret_unknown", "the store has no secret of this name"));
    }
    tracing::info!(user = %user.name, secret = name, "secret removed");
    admin.request_reload(&user);
    Ok(Json(SecretName { name }))
}

fn store_problem(error: StoreError) -> Problem {
    match error {
        StoreError::Unsupported(_) => Problem::new(StatusCode::CONFLICT, "store_keeps_nothing", error.to_string()),
        other => store_unavailable(&other),
    }
}
