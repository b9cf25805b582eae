//! Revokes a token at its authorization server and forgets it here.
//!
//! Invariant: a grant that another connection or profile also uses, by the current definition or a superseded one, is
//! not revoked at the server.
//! Not here: all tokens of a connection (`all`), the requests to the server (`token::acquire`).

pub mod all;
#[cfg(test)]
mod tests;

use std::sync::Arc;
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
use crate::token::slot::{AtServer, NotRevoked, Sharers};

/// Longer than the two revocation requests.
const REVOKE_WAIT: Duration = Duration::from_secs(40);
/// Time to forget the tokens once the requests have ended.
const FORGET_WAIT: Duration = Duration::from_secs(4);

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
    let own = slot.key.clone();
    let is_other = |other: &Connection| (&other.name, &other.profile) != (&own.connection, &own.profile);
    let sharers = sharers(admin, &granting(admin, &snapshot, (current, &slot.key), is_other), &slot.key).await;
    let until = Instant::now() + REVOKE_WAIT;
    let outcome = slot.revoke(AtServer::Revoke { sharers, until }, until + FORGET_WAIT).await;
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

/// A definition that a token may have been granted under, with the other definitions that use the same client.
struct Granting {
    definition: Arc<Connection>,
    others: Vec<Arc<Connection>>,
}

/// The `current` definition of the token `key`, and the superseded ones. `is_other`: a grant that it shares is spared.
fn granting(
    admin: &Admin,
    snapshot: &Snapshot,
    (current, key): (&Arc<Connection>, &TokenKey),
    is_other: impl Fn(&Connection) -> bool,
) -> Vec<Granting> {
    let with_others = |definition: Arc<Connection>| {
        let same_client = |other: &&Arc<Connection>| {
            other.endpoints.server == definition.endpoints.server
                && other.client_id == definition.client_id
                && other.grant.kind() == definition.grant.kind()
                && other.grant_type == definition.grant_type
        };
        let all = snapshot.connections.iter().flat_map(|bound| bound.connection.definitions());
        let others = all.filter(same_client).filter(|other| is_other(other)).cloned().collect();
        Granting { definition, others }
    };
    std::iter::once(current.clone()).chain(admin.cache.superseded_definitions(key)).map(with_others).collect()
}

/// The keys of other tokens that may belong to the same grant at the server as the token `key`.
async fn sharers(admin: &Admin, granting: &[Granting], key: &TokenKey) -> Sharers {
    let mut sharers = Sharers::new();
    for Granting { definition, others } in granting {
        for other in others {
            if shares_grant(admin, definition, other, key).await {
                sharers.push((definition.identity(), other.token_key(None)));
                break;
            }
        }
    }
    sharers
}

/// True if a token of `other`, which uses the same client, may belong to the same grant at the server.
async fn shares_grant(admin: &Admin, connection: &Connection, other: &Connection, key: &TokenKey) -> bool {
    match connection.grant.basis() {
        // Each token is a grant of its own, unless both share one token response.
        Basis::Client => other.name != connection.name || other.identity() == connection.identity(),
        // Only the server knows which person has connected: a token that may be the same person's counts as shared.
        Basis::Person => {
            let key = other.token_key(key.subject.clone());
            !matches!(admin.cache.store().load(&key).await, Ok(None))
        }
        basis @ (Basis::Owner(_) | Basis::Assertion(_) | Basis::SubjectToken(_)) => basis == other.grant.basis(),
    }
}
