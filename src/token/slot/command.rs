//! Commands of people to the refresher, which alone writes the slot.
//!
//! Invariant: one command at a time. It is carried out even if its sender goes away.

use std::sync::Mutex;

use super::TokenSlot;
use super::import::Import;
use super::revoke::Revoke;
use crate::sync::lock;

#[derive(Debug)]
pub enum Command {
    Import(Import),
    Revoke(Revoke),
}

/// Holds the command until the refresher takes it.
pub(super) type Inbox = Mutex<Option<Command>>;

/// Why a command was not accepted.
pub(super) enum NotSubmitted {
    /// Another command waits.
    Busy,
    Closed,
}

impl TokenSlot {
    pub(super) fn submit(&self, command: Command) -> Result<(), NotSubmitted> {
        {
            let mut inbox = lock(&self.inbox);
            if inbox.is_some() {
                return Err(NotSubmitted::Busy);
            }
            if self.is_closed() {
                return Err(NotSubmitted::Closed);
            }
            *inbox = Some(command);
        }
        self.demand.notify_one();
        Ok(())
    }

    pub(super) fn has_command(&self) -> bool {
        lock(&self.inbox).is_some()
    }

    /// For the refresher.
    pub(in crate::token) fn take_command(&self) -> Option<Command> {
        lock(&self.inbox).take()
    }
}
