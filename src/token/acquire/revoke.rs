//! Ends tokens: revoked at the server that has issued them, then forgotten here, whatever the server says.
//!
//! Holds: a token goes to no other server and in no other client's name than those it was granted by and to.

use std::sync::Arc;

use super::kept::Kept;
use super::{Acquirer, Definition, ROUNDS_MAX};
use crate::model::connection::Identity;
use crate::oauth::Failure;
use crate::store::{Lease, Refresh, StoreError, StoredToken};
use crate::token::slot::{Fate, Revoked, Sharers};

const UNKNOWN: &str = "it was granted under an earlier definition of the connection (another server, client, grant or \
                       owner), which is not known since this instance started; revoke it at that server";

impl Acquirer {
    /// Revokes what is kept, the refresh token first, then forgets it whatever the server said. What `sharers` use too is
    /// not revoked.
    pub async fn revoke(&self, definition: &Arc<Definition>, sharers: &Sharers) -> Result<Revoked, StoreError> {
        for _ in 0..ROUNDS_MAX {
            let (_place, lease) = self.right_to_ask(&definition.connection).await?;
            let revoked = self.revoke_leased(definition, sharers, &*lease).await;
            lease.release(revoked.is_ok()).await;
            // Another replica has saved new tokens meanwhile, which are to go too.
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
        let revoked = match self.any_held(&definition.connection).await? {
            None => Revoked::default(),
            Some(held) => match self.issuer(&held, definition) {
                None => all(&held, || Fate::Failed(UNKNOWN.to_owned())),
                Some((issuer, identity)) => match sharers.iter().find(|(of, _)| *of == identity) {
                    Some((_, other)) => all(&held, || Fate::Shared(other.clone())),
                    None => revoke_at(&issuer, &held, lease).await?,
                },
            },
        };
        self.store.forget(&self.slot.key, lease).await?;
        *self.kept() = Kept::default();
        Ok(revoked)
    }

    /// With which definition a token is revoked, and under which identity it was granted: the present one where server and
    /// client are the same (its secret may be newer), else the earlier one, if that is known.
    fn issuer(&self, held: &StoredToken, present: &Arc<Definition>) -> Option<(Arc<Definition>, Identity)> {
        let own = present.connection.identity();
        if held.identity == own || held.identity.is_of_same_grant(&own) {
            return Some((present.clone(), own));
        }
        let former = self.former.find(&self.slot.key, &held.identity)?;
        let issuer = |definition: &Definition| {
            let connection = &definition.connection;
            (connection.endpoints.server.clone(), connection.client_id.clone())
        };
        let chosen = if issuer(&former) == issuer(present) { present.clone() } else { former };
        Some((chosen, held.identity))
    }
}

async fn revoke_at(issuer: &Definition, held: &StoredToken, lease: &dyn Lease) -> Result<Revoked, StoreError> {
    let fate = |outcome: Result<bool, Failure>| match outcome {
        Ok(true) => Fate::Revoked,
        Ok(false) => Fate::NoEndpoint,
        Err(failure) => Fate::Failed(failure.to_string()),
    };
    let mut revoked = Revoked::default();
    // Each call may take as long as the lease is made for.
    if let Refresh::Token(token) = &held.refresh {
        lease.renew(None).await?;
        revoked.refresh_token = fate(issuer.source.revoke(token.expose(), "refresh_token").await);
    }
    lease.renew(None).await?;
    revoked.access_token = fate(issuer.source.revoke(held.access_token.expose(), "access_token").await);
    Ok(revoked)
}

/// The same fate for all that a record has.
fn all(held: &StoredToken, fate: impl Fn() -> Fate) -> Revoked {
    let refresh_token = if matches!(held.refresh, Refresh::Token(_)) { fate() } else { Fate::None };
    Revoked { refresh_token, access_token: fate() }
}
