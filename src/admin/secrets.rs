//! The secrets that `{store: NAME}` means: their names, and how one is put there or taken away.
//!
//! Not here: what the configuration makes of them (`config`). Holds: no answer has a secret; the configuration is read
//! again after a change, and a refusal of it changes nothing else.

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::Admin;
use super::body::body;
use super::problem::{Problem, store_unavailable};
use super::users::Asker;
use crate::config;
use crate::model::secret::Secret;
use crate::store::StoreError;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Put {
    #[serde(default)]
    value: String,
}

pub async fn list(State(admin): State<Admin>) -> Result<Json<Value>, Problem> {
    let names = admin.cache.store().secret_names().await.map_err(refused)?;
    Ok(Json(json!({ "items": names })))
}

pub async fn put(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    Extension(asker): Extension<Asker>,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let Put { value } = body(request).await?;
    let value = Zeroizing::new(value);
    let unfit = |detail: &str| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "secret_refused", detail);
    if !config::is_stored_name(&name) {
        return Err(unfit("a name is 1 to 200 letters, digits and `._-/`"));
    }
    if value.is_empty() {
        return Err(unfit("`value` is missing or empty"));
    }
    admin.cache.store().put_secret(&name, Secret::new(value.as_str())).await.map_err(refused)?;
    tracing::info!(user = %asker.name, secret = name, "a secret was put into the store");
    admin.read_again(&asker);
    Ok(Json(json!({ "name": name })))
}

pub async fn remove(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    Extension(asker): Extension<Asker>,
) -> Result<Json<Value>, Problem> {
    if !admin.cache.store().remove_secret(&name).await.map_err(refused)? {
        return Err(Problem::new(StatusCode::NOT_FOUND, "secret_unknown", "the store has no secret of this name"));
    }
    tracing::info!(user = %asker.name, secret = name, "a secret was removed from the store");
    admin.read_again(&asker);
    Ok(Json(json!({ "name": name })))
}

fn refused(error: StoreError) -> Problem {
    match error {
        StoreError::Unsupported(_) => Problem::new(StatusCode::CONFLICT, "store_keeps_nothing", error.to_string()),
        other => store_unavailable(&other),
    }
}
