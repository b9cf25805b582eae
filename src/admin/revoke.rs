//! A token is to be of no use any more: revoked at the server, forgotten here.
//!
//! Holds: at the server nothing is revoked that another connection uses, too.

use std::time::Duration;

use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde_json::Value;
use tokio::time::Instant;

use super::actions::{Which, body};
use super::auth::Asker;
use super::problem::{Problem, bound, no_token};
use super::{Admin, view};
use crate::model::Name;
use crate::model::connection::{Connection, Grant};
use crate::model::token::TokenKey;
use crate::snapshot::Snapshot;
use crate::telemetry::audit::{self, Kind};
use crate::token::slot::NotRevoked;

/// Longer than the two calls that are waited for.
const REVOKE_WAIT: Duration = Duration::from_secs(40);

pub async fn post(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    Extension(asker): Extension<Asker>,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let which = body(request).await?;
    revoke(&admin, &name, which, &asker).await
}

pub async fn delete(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    Extension(asker): Extension<Asker>,
    which: Result<Query<Which>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let unclear = |detail: String| Problem::new(StatusCode::BAD_REQUEST, "bad_request", detail);
    let Query(which) = which.map_err(|error| unclear(error.body_text()))?;
    revoke(&admin, &name, which, &asker).await
}

async fn revoke(admin: &Admin, name: &str, which: Which, asker: &Asker) -> Result<Json<Value>, Problem> {
    let snapshot = admin.snapshot.load_full();
    let bound = bound(&snapshot, name)?;
    let slot = which.slot(bound)?;
    let shared = shares_grant(admin, &snapshot, &bound.connection, &slot.key).await;
    let outcome = slot.revoke(shared, Instant::now() + REVOKE_WAIT).await;
    let status = match &outcome {
        Ok(_) => StatusCode::OK,
        Err(NotRevoked::Store(_)) => StatusCode::SERVICE_UNAVAILABLE,
        Err(_) => StatusCode::CONFLICT,
    };
    let path = format!("/api/v1/connections/{name}/revoke");
    let record = audit::Request {
        user: Some(asker.name.as_str()),
        listener: Some("admin"),
        connection: Some(bound.connection.name.as_str()),
        profile: Some(slot.key.profile.as_str()),
        ..audit::Request::new(asker.from, "POST", &path, status.as_u16())
    };
    admin.audit.now().admin(admin.clock.now().wall, Kind::Change, &record);
    tracing::info!(user = %asker.name, connection = %bound.connection.name, ?outcome, "a token is revoked");
    outcome.map(|revoked| Json(view::revoked(&revoked))).map_err(|why| match why {
        NotRevoked::Busy => {
            let problem = Problem::new(StatusCode::CONFLICT, "overloaded", "another errand is under way; ask again");
            problem.retry_after(Duration::from_secs(1))
        }
        NotRevoked::Store(why) => {
            let detail = format!("nothing is forgotten: {why}");
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "store_unavailable", detail)
        }
        NotRevoked::NoToken(why) => no_token(why),
    })
}

/// Another connection whose tokens the server cannot tell from this one's.
async fn shares_grant(admin: &Admin, snapshot: &Snapshot, own: &Connection, key: &TokenKey) -> Option<Name> {
    for other in snapshot.connections.iter().map(|bound| &bound.connection) {
        let alike = other.name != own.name
            && other.endpoints.server == own.endpoints.server
            && other.client_id == own.client_id
            && other.grant.as_str() == own.grant.as_str()
            && other.grant_type == own.grant_type;
        if !alike {
            continue;
        }
        let same = match (&own.grant, &other.grant) {
            (Grant::Saml2Bearer { assertion: one }, Grant::Saml2Bearer { assertion: two }) => one == two,
            (Grant::TokenExchange(one), Grant::TokenExchange(two)) => one.subject_token == two.subject_token,
            // Who has connected is known to the server alone; what may be the same person's is left alone.
            (Grant::AuthorizationCode | Grant::DeviceCode, _) => {
                let key = TokenKey { connection: other.name.clone(), ..key.clone() };
                !matches!(admin.cache.store().load(&key).await, Ok(None))
            }
            (one, two) => one.owner() == two.owner(),
        };
        if same {
            return Some(other.name.clone());
        }
    }
    None
}
