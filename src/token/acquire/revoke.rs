//! Revokes a slot's tokens at the server that issued them, then forgets them, regardless of the server's response.
//!
//! Invariant: a token is sent only to the server that issued it, and only as the client that it was issued to. A token
//! that was granted under a definition with another [`Connection::travel`] is not sent to the current endpoints.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::plan::LEASE_MARGIN;
use super::{Acquirer, ROUNDS_MAX};
use crate::model::connection::{Connection, Identity};
use crate::model::token::{AccessToken, RefreshToken};
use crate::store::{Lease, Refresh, StoreError, StoredToken};
use crate::token::definition::Definition;
use crate::token::slot::{AtServer, RevocationOutcome, Revoked, Sharers};
use crate::token::source::Revocation;

/// Term of a lease taken only to forget.
pub const FORGET_LEASE_TERM: Duration = Duration::from_secs(10);
/// Time to wait for that lease while another holder has it.
pub const FORGET_LEASE_WAIT: Duration = LEASE_MARGIN;

const UNKNOWN: &str = "it was granted under an earlier definition of the connection (another server, client, grant or \
                       owner, or another way that its tokens are sent), which this instance no longer knows after its \
                       restart; revoke it at that server";
const LATE: &str = "the server did not revoke it in time; revoke it there";

impl Acquirer {
    /// Revokes the refresh token, then the access token, then forgets both.
    pub async fn revoke(&self, definition: &Arc<Definition>, at_server: &AtServer) -> Result<Revoked, StoreError> {
        for _ in 0..ROUNDS_MAX {
            let revoked = self.revoke_once(definition, at_server).await;
            // After a lost lease, another replica may have stored new tokens, which must also be revoked.
            if !matches!(revoked, Err(StoreError::LeaseLost { .. })) {
                return revoked;
            }
        }
        Err(StoreError::LeaseLost { key: self.slot.key.clone() })
    }

    async fn revoke_once(&self, definition: &Arc<Definition>, at_server: &AtServer) -> Result<Revoked, StoreError> {
        let AtServer::Revoke { sharers, until } = at_server else {
            return self.forget(definition, RevocationOutcome::NotRequested).await;
        };
        let Ok(held) = timeout_at(*until, self.permit_and_lease(&definition.connection)).await else {
            return self.forget(definition, RevocationOutcome::Failed(LATE.to_owned())).await;
        };
        let (_permit, lease) = held?;
        let revoked = self.revoke_leased(definition, (sharers, *until), &*lease).await;
        lease.release(revoked.is_ok()).await;
        revoked
    }

    async fn revoke_leased(
        &self,
        definition: &Arc<Definition>,
        (sharers, until): (&Sharers, Instant),
        lease: &dyn Lease,
    ) -> Result<Revoked, StoreError> {
        let revoked = match self.record_of_any_definition(&definition.connection).await? {
            None => match self.exchanged_token() {
                Some(token) => revoke_at(definition, (None, &token), until, lease).await?,
                None => Revoked::default(),
            },
            Some(record) => match self.issuer(&record, definition) {
                None => Revoked::all(&record, &RevocationOutcome::Failed(UNKNOWN.to_owned())),
                Some((issuer, identity)) => match sharers.iter().find(|(of, _)| *of == identity) {
                    Some((_, other)) => Revoked::all(&record, &RevocationOutcome::Shared(other.clone())),
                    None => {
                        let refresh_token = match &record.refresh {
                            Refresh::Token(token) => Some(token),
                            Refresh::None | Refresh::Refused { .. } => None,
                        };
                        revoke_at(&issuer, (refresh_token, &record.access_token), until, lease).await?
                    }
                },
            },
        };
        self.store.forget(&self.slot.key, lease).await?;
        self.clear_record_cache();
        Ok(revoked)
    }

    /// The token that a caller's token was exchanged for; it is in the slot only.
    fn exchanged_token(&self) -> Option<AccessToken> {
        self.slot.caller_token()?;
        self.slot.state().token.as_ref().map(|token| token.access_token.clone())
    }

    /// Forgets the tokens without a request to the server; `outcome` is that of each.
    async fn forget(&self, definition: &Definition, outcome: RevocationOutcome) -> Result<Revoked, StoreError> {
        let lease = self.store.lease(&self.slot.key, FORGET_LEASE_TERM, FORGET_LEASE_WAIT).await?;
        let forgotten = async {
            let record = self.record_of_any_definition(&definition.connection).await?;
            self.store.forget(&self.slot.key, &*lease).await?;
            self.clear_record_cache();
            Ok(match record {
                Some(record) => Revoked::all(&record, &outcome),
                None if self.exchanged_token().is_some() => Revoked { access_token: outcome, ..Revoked::default() },
                None => Revoked::default(),
            })
        };
        let forgotten = forgotten.await;
        lease.release(forgotten.is_ok()).await;
        forgotten
    }

    /// The definition to revoke a record with, and the identity that it was granted under. The current definition if it
    /// sends tokens to the same server, as the same client and in the same way (its secret may be newer), else the
    /// superseded one, if it is known.
    fn issuer(&self, record: &StoredToken, current: &Arc<Definition>) -> Option<(Arc<Definition>, Identity)> {
        let identity = current.connection.identity();
        if record.identity == identity || record.identity.is_of_same_grant(&identity) {
            return Some((current.clone(), identity));
        }
        let superseded = self.superseded.find(&self.slot.key, &record.identity)?;
        let issuer = |connection: &Connection| {
            (connection.endpoints.server.clone(), connection.client_id.clone(), connection.travel())
        };
        let is_same = issuer(&superseded.connection) == issuer(&current.connection);
        let chosen = if is_same { current.clone() } else { superseded };
        Some((chosen, record.identity))
    }
}

async fn revoke_at(
    issuer: &Definition,
    (refresh_token, access_token): (Option<&RefreshToken>, &AccessToken),
    until: Instant,
    lease: &dyn Lease,
) -> Result<Revoked, StoreError> {
    let revoke = async |token: &str, hint| {
        if Instant::now() >= until {
            return RevocationOutcome::Failed(LATE.to_owned());
        }
        match timeout_at(until, issuer.source.revoke(token, hint)).await {
            Ok(Ok(Revocation::Revoked)) => RevocationOutcome::Revoked,
            Ok(Ok(Revocation::NoEndpoint)) => RevocationOutcome::NoEndpoint,
            Ok(Err(failure)) => RevocationOutcome::Failed(failure.to_string()),
            Err(_) => RevocationOutcome::Failed(LATE.to_owned()),
        }
    };
    let mut revoked = Revoked::default();
    // The lease term covers one call, so renew it before each.
    if let Some(token) = refresh_token {
        lease.renew(None).await?;
        revoked.refresh_token = revoke(token.expose(), "refresh_token").await;
    }
    lease.renew(None).await?;
    revoked.access_token = revoke(access_token.expose(), "access_token").await;
    Ok(revoked)
}
