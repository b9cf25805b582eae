//! Revokes a token at its authorization server and forgets it here.
//!
//! Invariant: nothing is revoked at the server that another connection or profile also uses, by the present definition or
//! by a superseded one.

use std::time::Duration;

use axum::extract::{Path, Query, Request, State};
use axum::http::{Method, StatusCode};
use axum::{Extension, Json};
use serde_json::Value;
use tokio::time::Instant;

use super::actions::Which;
use super::body::body;
use super::problem::{Problem, bound, no_token};
use super::users::Asker;
use super::{Admin, record, view};
use crate::model::connection::{Basis, Connection};
use crate::model::token::TokenKey;
use crate::snapshot::Snapshot;
use crate::token::slot::{NotRevoked, Sharers};

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
    let own = bound.definition(slot.key.profile.as_str()).map_or(&bound.connection, |own| &own.connection);
    let mut sharers = Sharers::new();
    for definition in std::iter::once(own).chain(&admin.cache.superseded_definitions(&slot.key)) {
        let other = shares_grant(admin, &snapshot, definition, &slot.key).await;
        sharers.extend(other.map(|other| (definition.identity(), other)));
    }
    let outcome = slot.revoke(sharers, Instant::now() + REVOKE_WAIT).await;
    let status = match &outcome {
        Ok(_) => StatusCode::OK,
        Err(NotRevoked::Store(_)) => StatusCode::SERVICE_UNAVAILABLE,
        Err(_) => StatusCode::CONFLICT,
    };
    let path = format!("/api/v1/connections/{name}/revoke");
    record::change(admin, (Some(&asker.name), asker.from), (&Method::POST, &path), &slot.key, (status, None));
    tracing::info!(user = %asker.name, connection = %slot.key.connection, profile = %slot.key.profile, ?outcome, "a token is revoked");
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

/// The token key of another connection or profile whose tokens the server may take for the same grant.
async fn shares_grant(admin: &Admin, snapshot: &Snapshot, own: &Connection, key: &TokenKey) -> Option<TokenKey> {
    let definitions = snapshot.connections.iter().flat_map(|bound| bound.connection.definitions());
    for other in definitions.filter(|other| other.token_key(None) != own.token_key(None)) {
        let alike = other.endpoints.server == own.endpoints.server
            && other.client_id == own.client_id
            && other.grant.kind() == own.grant.kind()
            && other.grant_type == own.grant_type;
        if !alike {
            continue;
        }
        let same = match own.grant.basis() {
            // Each token is a grant by itself, unless it comes from the same token response.
            Basis::Client => other.name != own.name || other.identity() == own.identity(),
            // The server alone knows who has connected; what may be the same person's is left alone.
            Basis::Person => {
                let key = other.token_key(key.subject.clone());
                !matches!(admin.cache.store().load(&key).await, Ok(None))
            }
            basis @ (Basis::Owner(_) | Basis::Assertion(_) | Basis::SubjectToken(_)) => basis == other.grant.basis(),
        };
        if same {
            return Some(other.token_key(None));
        }
    }
    None
}
