//! Errands for the refresher, which alone writes the slot: a token or a code from elsewhere, or a wish to revoke.
//!
//! Holds: one at a time; whoever handed it in may go away, and it is proven and kept all the same.

use std::sync::Mutex;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{NoToken, Revoke, TokenSlot};
use crate::clock::Now;
use crate::model::token::{RefreshToken, TokenSet};
use crate::oauth::Consented;
use crate::sync::lock;
use crate::telemetry::audit::Person;

/// What comes from elsewhere.
#[derive(Debug)]
pub enum Handed {
    RefreshToken(RefreshToken),
    /// To be exchanged for a token.
    Consented(Consented),
    /// A token that was asked for when it was not yet known whether there would be one, and when that was.
    Tokens(TokenSet, Now),
}

/// Something that waits to be proven, and who waits for the outcome.
#[derive(Debug)]
pub struct Import {
    pub handed: Handed,
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
    /// Returns once what is handed in has given an access token and it is kept, or why not. It is proven although the
    /// caller goes away.
    pub async fn import(&self, handed: Handed, by: Person, deadline: Instant) -> Result<(), NotImported> {
        let (reply, outcome) = oneshot::channel();
        {
            let mut desk = lock(&self.desk);
            if desk.is_some() {
                return Err(NotImported::Busy);
            }
            if self.is_closed() {
                return Err(NotImported::NotProven(NoToken::Forgotten));
            }
            *desk = Some(Errand::Import(Import { handed, by, reply }));
        }
        self.interest.note_use();
        self.demand.notify_one();
        match tokio::time::timeout_at(deadline, outcome).await {
            Ok(Ok(outcome)) => outcome.map_err(NotImported::NotProven),
            Ok(Err(_)) => Err(NotImported::NotProven(NoToken::Forgotten)),
            Err(_) => Err(NotImported::NotProven(NoToken::WaitTimeout)),
        }
    }

    /// For the refresher, as below.
    pub(in crate::token) fn has_errand(&self) -> bool {
        lock(&self.desk).is_some()
    }

    pub(in crate::token) fn take_errand(&self) -> Option<Errand> {
        lock(&self.desk).take()
    }
}
