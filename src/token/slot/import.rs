//! Errands for the refresher, which alone writes the slot: a refresh token from elsewhere, or a wish to revoke.
//!
//! Holds: one at a time; whoever handed it in may go away, and it is proven and kept all the same.

use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{NoToken, Revoke, TokenSlot};
use crate::model::token::RefreshToken;
use crate::telemetry::audit::Person;

/// A token that waits to be proven, and who waits for the outcome.
#[derive(Debug)]
pub struct Import {
    pub token: RefreshToken,
    /// Who hands it in.
    pub by: Person,
    pub reply: oneshot::Sender<Result<(), NoToken>>,
}

/// What a person asks of the refresher.
#[derive(Debug)]
pub enum Errand {
    Import(Import),
    Revoke(Revoke),
}

/// Where an errand lies until the refresher takes it.
pub(super) type Desk = Mutex<Option<Errand>>;

/// Why a refresh token was not kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotImported {
    /// Another one is being proven.
    Busy,
    /// It gave no access token; nothing has changed.
    NotProven(NoToken),
}

impl TokenSlot {
    /// Returns once the token has given an access token and both are kept, or why not. It is proven although the
    /// caller goes away.
    pub async fn import(&self, token: RefreshToken, by: Person, deadline: Instant) -> Result<(), NotImported> {
        let (reply, outcome) = oneshot::channel();
        {
            let mut desk = self.desk.lock().unwrap_or_else(PoisonError::into_inner);
            if desk.is_some() {
                return Err(NotImported::Busy);
            }
            if self.is_closed() {
                return Err(NotImported::NotProven(NoToken::Forgotten));
            }
            *desk = Some(Errand::Import(Import { token, by, reply }));
        }
        self.used.store(true, Ordering::Relaxed);
        self.demand.notify_one();
        match tokio::time::timeout_at(deadline, outcome).await {
            Ok(Ok(outcome)) => outcome.map_err(NotImported::NotProven),
            Ok(Err(_)) => Err(NotImported::NotProven(NoToken::Forgotten)),
            Err(_) => Err(NotImported::NotProven(NoToken::WaitTimeout)),
        }
    }

    /// For the refresher.
    pub(in crate::token) fn take_errand(&self) -> Option<Errand> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
