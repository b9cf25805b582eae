//! Removing definitions with their tokens: `DELETE connections/{name}`, and `prune` of `connections:apply`.
//!
//! Invariant: a removal that has begun runs to its end, even if the client disconnects.
//! Not here: the revocation of one connection's tokens (`revoke::all`).

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::{Extension, Json};
use futures_util::{StreamExt as _, stream};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::precondition::precondition;
use super::{parse_name, send};
use crate::admin::extract::{Path, Query};
use crate::admin::problem::Problem;
use crate::admin::revoke::all::{RevokedAll, forget_all, revoke_all};
use crate::admin::users::AuthenticatedUser;
use crate::admin::view::RevokedTokens;
use crate::admin::{Admin, Change, Changed};
use crate::model::Name;

/// Connections whose tokens are revoked at the same time.
const CONCURRENT_CONNECTIONS_MAX: usize = 8;
/// Time for the revocations of all connections; the tokens of the rest are forgotten only.
const REVOKE_WAIT: Duration = Duration::from_secs(90);

/// How tokens are removed.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RemovalQuery {
    /// False: the tokens are forgotten, and not revoked at the server.
    #[serde(default = "revokes")]
    revoke: bool,
}

pub fn revokes() -> bool {
    true
}

/// A connection that was removed.
#[derive(Serialize, JsonSchema)]
pub struct RemovedConnection {
    /// Its name.
    removed: String,
    tokens: RevokedTokens,
}

pub async fn remove(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    Query(RemovalQuery { revoke }): Query<RemovalQuery>,
    Extension(user): Extension<AuthenticatedUser>,
    headers: HeaderMap,
) -> Result<Json<RemovedConnection>, Problem> {
    let name = parse_name(&name)?;
    let change = Arc::new(Change::Remove { name: name.clone(), precondition: precondition(&headers)? });
    let (_, tokens) = change_with_removals(&admin, &user, change, revoke).await?;
    Ok(Json(RemovedConnection { removed: name.to_string(), tokens: tokens.report() }))
}

/// Revokes the tokens of what the change removes, makes the change, then forgets what was acquired meanwhile.
///
/// # Errors
/// The change is refused, and no token was revoked; or some tokens cannot be forgotten, and the change was not made.
pub async fn change_with_removals(
    admin: &Admin,
    user: &AuthenticatedUser,
    change: Arc<Change>,
    revoke: bool,
) -> Result<(Changed, RevokedAll), Problem> {
    let (reply, outcome) = oneshot::channel();
    let (own_admin, user) = (admin.clone(), user.clone());
    admin.tasks.spawn("removal", async move {
        // The client may have disconnected.
        let _ = reply.send(run(&own_admin, &user, change, revoke).await);
    });
    outcome.await.unwrap_or_else(|_| {
        let detail = "the instance is stopping; read the connection before you retry";
        Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", detail))
    })
}

async fn run(
    admin: &Admin,
    user: &AuthenticatedUser,
    change: Arc<Change>,
    revoke: bool,
) -> Result<(Changed, RevokedAll), Problem> {
    let planned = send(admin, user, change.clone(), true).await?;
    let tokens = revoke_removed(admin, user, &planned.removed, revoke).await?;
    if !tokens.is_complete {
        let detail = "not every token could be forgotten, so nothing has been removed; retry";
        let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", detail);
        return Err(problem.retry_after(Duration::from_secs(1)).with("tokens", tokens.report()));
    }
    let changed = send(admin, user, change, false).await?;
    if let Err(problem) = revoke_removed(admin, user, &changed.removed, false).await {
        tracing::warn!(code = problem.code(), "tokens acquired during the removal are not forgotten");
    }
    Ok((changed, tokens))
}

/// The outcome for the tokens of all these connections.
async fn revoke_removed(
    admin: &Admin,
    user: &AuthenticatedUser,
    names: &[Name],
    revoke: bool,
) -> Result<RevokedAll, Problem> {
    let deadline = Instant::now() + REVOKE_WAIT;
    let outcomes = stream::iter(names.to_vec()).map(|name| revoke_one(admin, user, name, (revoke, deadline)));
    let outcomes: Vec<_> = outcomes.buffer_unordered(CONCURRENT_CONNECTIONS_MAX).collect().await;
    outcomes.into_iter().try_fold(RevokedAll::nothing(), |all, outcome| Ok(all.and(outcome?)))
}

async fn revoke_one(
    admin: &Admin,
    user: &AuthenticatedUser,
    name: Name,
    (revoke, deadline): (bool, Instant),
) -> Result<RevokedAll, Problem> {
    let snapshot = admin.snapshot.load_full();
    match snapshot.connections.iter().find(|bound| bound.connection.name == name) {
        // The tokens of a definition that a file has shadowed are the file's.
        Some(bound) if bound.connection.written.revision().is_none() => Ok(RevokedAll::nothing()),
        Some(bound) if revoke => match timeout_at(deadline, revoke_all(admin, bound, user)).await {
            Ok(outcome) => outcome,
            Err(_) => forget_all(admin, &name, user).await,
        },
        Some(_) | None => forget_all(admin, &name, user).await,
    }
}
