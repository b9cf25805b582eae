//! Revokes a slot's tokens at the server that issued them, then forgets them, regardless of the server's response.
//!
//! Invariant: a token is sent only to the server that issued it, and only as the client that it was issued to.

use std::sync::Arc;

use super::{Acquirer, ROUNDS_MAX};
use crate::model::connection::Identity;
use crate::oauth::Failure;
use crate::store::{Lease, Refresh, StoreError, StoredToken};
use crate::token::definition::Definition;
use crate::token::slot::{RevocationOutcome, Revoked, Sharers};
use crate::token::source::Revocation;

const UNKNOWN: &str = "it was granted under an earlier definition of the connection (another server, client, grant or \
                       owner), which this instance no longer knows after its restart; revoke it at that server";

impl Acquirer {
    /// Revokes the refresh token, then the access token, then forgets both. A grant that `sharers` use is not revoked.
    pub async fn revoke(&self, definition: &Arc<Definition>, sharers: &Sharers) -> Result<Revoked, StoreError> {
        for _ in 0..ROUNDS_MAX {
            let (_permit, lease) = self.permit_and_lease(&definition.connection).await?;
            let revoked = self.revoke_leased(definition, sharers, &*lease).await;
            lease.release(revoked.is_ok()).await;
            // After a lost lease, another replica may have stored new tokens, which must also be revoked.
            if !matches!(revoked, Err(StoreError::LeaseLost { .. })) {
                return revoked;
            }
        }
        Err(StoreError::LeaseLost { key: self.slot.key.clone() })
    }

    async fn revoke_leased(
        &self,
        definition: &Arc<Definition>,
        sharers: &Sharers,
        lease: &dyn Lease,
    ) -> Result<Revoked, StoreError> {
        let revoked = match self.record_of_any_definition(&definition.connection).await? {
            None => Revoked::default(),
            Some(record) => match self.issuer(&record, definition) {
                None => all(&record, || RevocationOutcome::Failed(UNKNOWN.to_owned())),
                Some((issuer, identity)) => match sharers.iter().find(|(of, _)| *of == identity) {
                    Some((_, other)) => all(&record, || RevocationOutcome::Shared(other.clone())),
                    None => revoke_at(&issuer, &record, lease).await?,
                },
            },
        };
        self.store.forget(&self.slot.key, lease).await?;
        self.clear_record_cache();
        Ok(revoked)
    }

    /// The definition to revoke a record with, and the identity that it was granted under. The current definition if
    /// server and client are the same (its secret may be newer), else the superseded one, if it is known.
    fn issuer(&self, record: &StoredToken, current: &Arc<Definition>) -> Option<(Arc<Definition>, Identity)> {
        let identity = current.connection.identity();
        if record.identity == identity || record.identity.is_of_same_grant(&identity) {
            return Some((current.clone(), identity));
        }
        let superseded = self.superseded.find(&self.slot.key, &record.identity)?;
        let issuer = |definition: &Definition| {
            let connection = &definition.connection;
            (connection.endpoints.server.clone(), connection.client_id.clone())
        };
        let chosen = if issuer(&superseded) == issuer(current) { current.clone() } else { superseded };
        Some((chosen, record.identity))
    }
}

async fn revoke_at(issuer: &Definition, record: &StoredToken, lease: &dyn Lease) -> Result<Revoked, StoreError> {
    let outcome = |result: Result<Revocation, Failure>| match result {
        Ok(Revocation::Revoked) => RevocationOutcome::Revoked,
        Ok(Revocation::NoEndpoint) => RevocationOutcome::NoEndpoint,
        Err(failure) => RevocationOutcome::Failed(failure.to_string()),
    };
    let mut revoked = Revoked::default();
    // The lease term covers one call, so renew it before each.
    if let Refresh::Token(token) = &record.refresh {
        lease.renew(None).await?;
        revoked.refresh_token = outcome(issuer.source.revoke(token.expose(), "refresh_token").await);
    }
    lease.renew(None).await?;
    revoked.access_token = outcome(issuer.source.revoke(record.access_token.expose(), "access_token").await);
    Ok(revoked)
}

/// The same outcome for every token of a record.
fn all(record: &StoredToken, outcome: impl Fn() -> RevocationOutcome) -> Revoked {
    let refresh_token = if matches!(record.refresh, Refresh::Token(_)) { outcome() } else { RevocationOutcome::None };
    Revoked { refresh_token, access_token: outcome() }
}
