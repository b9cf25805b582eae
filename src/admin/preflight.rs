//! `POST preflight`: checks a connection, or a definition that is not saved, against its authorization server.
//!
//! Invariants: a preflight opens no address that the connection may not open; an unsaved definition leaves nothing behind;
//! a bounded number runs at once.
//! Not here: the checks (`oauth`), the validation of a definition (`definitions`, `reload`).

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{OriginalUri, Request, State};
use axum::http::{Method, StatusCode};
use axum::{Extension, Json};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::auth::role_too_low;
use super::body::body_within;
use super::extract::Path;
use super::problem::{Problem, bound, definition};
use super::users::AuthenticatedUser;
use super::{Admin, Change, Precondition, definitions, openapi, record};
use crate::model::Role;
use crate::model::connection::Connection;
use crate::oauth::{Check, TokenEndpoint};
use crate::snapshot::{BoundDefinition, Snapshot};
use crate::store::DEFINITION_BYTES_MAX;

/// Preflights that run at once; each takes up to 15 seconds.
pub const PREFLIGHTS_MAX: usize = 4;
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// A definition, and what surrounds it.
const BODY_BYTES_MAX: usize = DEFINITION_BYTES_MAX + 1024;

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PreflightBody {
    /// A connection that is not saved, for managers only; absent: the connection in force.
    #[serde(default)]
    #[schemars(schema_with = "openapi::definition_or_null")]
    definition: Option<Map<String, Value>>,
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
        Some(definition) => unsaved(&admin, &user, &snapshot, (&name, definition)).await?,
    };
    tracing::info!(user = %user.name, connection = %name, is_saved, "preflight requested");
    let checks = endpoint.preflight(snapshot.links.callback().as_deref()).await;
    let key = connection.token_key(None);
    record::operation(&admin, &user, (&Method::POST, uri.path()), &key, StatusCode::OK);
    Ok(Json(Checks { checks }))
}

type Checked = (Arc<Connection>, Arc<TokenEndpoint>);

fn in_force(snapshot: &Snapshot, name: &str) -> Result<Checked, Problem> {
    let BoundDefinition { connection, endpoint, .. } = definition(bound(snapshot, name)?, None)?;
    Ok((connection.clone(), endpoint.clone().ok_or_else(super::actions::inactive)?))
}

/// A definition that is not saved, active or not; `{set: true}` takes the kept secret as a save would.
async fn unsaved(
    admin: &Admin,
    user: &AuthenticatedUser,
    snapshot: &Snapshot,
    (name, definition): (&str, Map<String, Value>),
) -> Result<Checked, Problem> {
    let name = definitions::parse_name(name)?;
    let body = Zeroizing::new(Value::from(definition).to_string());
    let change = Change::Put { name, body, precondition: Precondition::Unconditional };
    let cannot_be_used = |why: &dyn Display| {
        let detail = format!("the definition cannot be used: {why}");
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "definition_refused", detail)
    };
    let changed = definitions::send(admin, user, Arc::new(change), true).await?;
    let connection = changed.connection.ok_or_else(|| cannot_be_used(&"it is not in the configuration"))?;
    // Not the shared clients: they keep the settings of each connection until the next reload.
    let endpoint = TokenEndpoint::new(connection.clone(), &snapshot.clients.separate());
    let endpoint = endpoint.map_err(|error| cannot_be_used(&error))?;
    Ok((connection, Arc::new(endpoint)))
}
