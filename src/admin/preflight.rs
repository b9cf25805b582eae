//! `POST preflight`: checks a connection, or a definition that is not saved, against its authorization server.
//!
//! Invariants: a preflight opens no address that the connection may not open; an unsaved definition leaves nothing behind;
//! a bounded number runs at once.
//! Not here: the checks (`oauth`), the validation of a definition (`validate`).

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{OriginalUri, Path, Request, State};
use axum::http::{Method, StatusCode};
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::auth::role_too_low;
use super::body::body_within;
use super::problem::{Problem, bad_request, bound, definition};
use super::users::AuthenticatedUser;
use super::{Admin, record};
use crate::model::connection::Connection;
use crate::model::secret::Secret;
use crate::model::{Name, Role};
use crate::oauth::TokenEndpoint;
use crate::snapshot::{BoundDefinition, Snapshot};
use crate::store::DEFINITION_BYTES_MAX;

/// Preflights that run at once; each takes up to 15 seconds.
pub const PREFLIGHTS_MAX: usize = 4;
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// A definition, and what surrounds it.
const BODY_BYTES_MAX: usize = DEFINITION_BYTES_MAX + 1024;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct PreflightBody {
    definition: Option<Map<String, Value>>,
}

pub async fn preflight(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    OriginalUri(uri): OriginalUri,
    Extension(user): Extension<AuthenticatedUser>,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let PreflightBody { definition } = body_within(BODY_BYTES_MAX, request).await?;
    if definition.is_some() && user.role < Role::Manager {
        return Err(role_too_low(Role::Manager));
    }
    let _permit = admin.preflights.try_acquire().map_err(|_| {
        let detail = "too many preflights are in progress; retry in a moment";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", detail).retry_after(RETRY_AFTER)
    })?;
    let (snapshot, is_saved) = (admin.snapshot.load_full(), definition.is_none());
    let (connection, endpoint) = match definition {
        None => in_force(&snapshot, &name)?,
        Some(definition) => unsaved(&admin, &snapshot, &name, definition).await?,
    };
    tracing::info!(user = %user.name, connection = %name, is_saved, "preflight requested");
    let checks = endpoint.preflight(snapshot.links.callback().as_deref()).await;
    let key = connection.token_key(None);
    record::operation(&admin, &user, (&Method::POST, uri.path()), &key, StatusCode::OK);
    Ok(Json(json!({ "checks": checks })))
}

type Checked = (Arc<Connection>, Arc<TokenEndpoint>);

fn in_force(snapshot: &Snapshot, name: &str) -> Result<Checked, Problem> {
    let BoundDefinition { connection, endpoint, .. } = definition(bound(snapshot, name)?, None)?;
    Ok((connection.clone(), endpoint.clone().ok_or_else(super::actions::inactive)?))
}

/// A definition that is not saved, active or not.
async fn unsaved(
    admin: &Admin,
    snapshot: &Snapshot,
    name: &str,
    definition: Map<String, Value>,
) -> Result<Checked, Problem> {
    let name = Name::parse(name).ok_or_else(|| {
        bad_request("a connection's name has at most 63 of a-z, 0-9, `-` and `_`, and begins with a letter or digit")
    })?;
    let connection = admin.validate(&name, resolve_kept(definition)?).await?;
    // Not the shared clients: they keep the settings of each connection until the next reload.
    match TokenEndpoint::new(connection.clone(), &snapshot.clients.separate()) {
        Ok(endpoint) => Ok((connection, Arc::new(endpoint))),
        Err(error) => {
            let detail = format!("the definition cannot be used: {error}");
            Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "definition_refused", detail))
        }
    }
}

/// The text to validate. A kept secret, `{set: true}`, is refused.
fn resolve_kept(definition: Map<String, Value>) -> Result<Secret, Problem> {
    match kept_member(&definition) {
        None => Ok(Secret::new(Value::from(definition).to_string())),
        Some(path) => {
            let detail = format!("`{path}` is {{set: true}}; send the secret itself, a preflight uses no kept one");
            Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "secret_needed", detail).with("path", path))
        }
    }
}

/// The path of the first `{set: true}` below a map.
fn kept_member(members: &Map<String, Value>) -> Option<String> {
    members.iter().find_map(|(key, value)| Some(format!("{key}{}", kept(value)?)))
}

/// The rest of the path of the first `{set: true}`; empty if it is the value itself.
fn kept(value: &Value) -> Option<String> {
    match value {
        Value::Object(_) if *value == json!({ "set": true }) => Some(String::new()),
        Value::Object(members) => kept_member(members).map(|path| format!(".{path}")),
        Value::Array(items) => {
            let mut items = items.iter().enumerate();
            items.find_map(|(index, item)| Some(format!("[{index}]{}", kept(item)?)))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_kept_secret_is_named_by_its_path() {
        for (definition, expected) in [
            (json!({ "name": "crm", "client_secret": "b", "set": true }), None),
            (json!({ "token_params": {"set": false} }), None),
            (json!({ "client_secret": {"set": true} }), Some("client_secret")),
            (json!({ "client_secret": [{"set": true}, "b"] }), Some("client_secret[0]")),
            (json!({ "profiles": [{"token_params": {"pin": {"set": true}}}] }), Some("profiles[0].token_params.pin")),
        ] {
            let members = definition.as_object().unwrap().clone();
            assert_eq!(kept_member(&members).as_deref(), expected, "{definition}");
            let resolved = resolve_kept(members).map(|text| text.expose().to_owned()).map_err(|problem| problem.code());
            let expected = expected.map_or_else(|| Ok(definition.to_string()), |_| Err("secret_needed"));
            assert_eq!(resolved, expected);
        }
    }
}
