//! Revokes a token at its authorization server and forgets it here.
//!
//! Invariant: a grant that another connection or profile also uses, by the current definition or a superseded one, is
//! not revoked at the server.

use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::{Extension, Json};
use tokio::time::Instant;

use super::actions::TokenSelector;
use super::body::body;
use super::extract::{Path, Query};
use super::problem::{Problem, bound, no_token};
use super::users::AuthenticatedUser;
use super::view::{self, RevokedToken};
use super::{Admin, record};
use crate::model::connection::{Basis, Connection};
use crate::model::token::TokenKey;
use crate::snapshot::Snapshot;
use crate::token::slot::{NotRevoked, Sharers};

/// Longer than the two revocation requests.
const REVOKE_WAIT: Duration = Duration::from_secs(40);

pub async fn post(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    Extension(user): Extension<AuthenticatedUser>,
    request: Request,
) -> Result<Json<RevokedToken>, Problem> {
    let selector = body(request).await?;
    revoke(&admin, &name, selector, &user).await
}

pub async fn delete(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    Extension(user): Extension<AuthenticatedUser>,
    Query(selector): Query<TokenSelector>,
) -> Result<Json<RevokedToken>, Problem> {
    revoke(&admin, &name, selector, &user).await
}

async fn revoke(
    admin: &Admin,
    name: &str,
    selector: TokenSelector,
    user: &AuthenticatedUser,
) -> Result<Json<RevokedToken>, Problem> {
    let snapshot = admin.snapshot.load_full();
    let bound = bound(&snapshot, name)?;
    let slot = selector.slot(bound)?;
    let current =
        bound.definition(slot.key.profile.as_str()).map_or(&bound.connection, |definition| &definition.connection);
    let mut sharers = Sharers::new();
    for definition in std::iter::once(current).chain(&admin.cache.superseded_definitions(&slot.key)) {
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
    record::change(admin, (Some(&user.name), user.from), (&Method::POST, &path), &slot.key, (status, None));
    tracing::info!(user = %user.name, connection = %slot.key.connection, profile = %slot.key.profile, ?outcome, "token revocation requested");
    outcome.map(|revoked| Json(view::revoked(&revoked))).map_err(|error| match error {
        NotRevoked::Busy => {
            let problem = Problem::new(
                StatusCode::CONFLICT,
                "overloaded",
                "another command for this token is in progress; retry in a moment",
            );
            problem.retry_after(Duration::from_secs(1))
        }
        NotRevoked::Store(error) => {
            let detail = format!("the store is unavailable, so nothing was forgotten: {error}");
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "store_unavailable", detail)
        }
        NotRevoked::NoToken(reason) => no_token(reason),
    })
}

/// The token key of another connection or profile whose tokens may belong to the same grant at the server.
async fn shares_grant(admin: &Admin, snapshot: &Snapshot, connection: &Connection, key: &TokenKey) -> Option<TokenKey> {
    let definitions = snapshot.connections.iter().flat_map(|bound| bound.connection.definitions());
    for other in definitions.filter(|other| other.token_key(None) != connection.token_key(None)) {
        let same_client = other.endpoints.server == connection.endpoints.server
            && other.client_id == connection.client_id
            && other.grant.kind() == connection.grant.kind()
            && other.grant_type == connection.grant_type;
        if !same_client {
            continue;
        }
        let same_grant = match connection.grant.basis() {
            // Each token is a grant of its own, unless both share one token response.
            Basis::Client => other.name != connection.name || other.identity() == connection.identity(),
            // Only the server knows which person has connected: a token that may be the same person's counts as shared.
            Basis::Person => {
                let key = other.token_key(key.subject.clone());
                !matches!(admin.cache.store().load(&key).await, Ok(None))
            }
            basis @ (Basis::Owner(_) | Basis::Assertion(_) | Basis::SubjectToken(_)) => basis == other.grant.basis(),
        };
        if same_grant {
            return Some(other.token_key(None));
        }
    }
    None
}
