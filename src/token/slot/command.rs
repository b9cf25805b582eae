//! Commands from people to the refresher, the slot's only writer.
//!
//! Invariant: at most one command is pending. It is executed even if its sender is dropped.

use super::TokenSlot;
use super::import::Import;
use super::inbox::NotSubmitted;
use super::revoke::Revoke;

#[derive(Debug)]
pub enum Command {
    Import(Import),
    Revoke(Revoke),
}

impl From<Import> for Command {
    fn from(import: Import) -> Command {
        Command::Import(import)
    }
}

impl From<Revoke> for Command {
    fn from(revoke: Revoke) -> Command {
        Command::Revoke(revoke)
    }
}

impl TokenSlot {
    pub(super) fn submit(&self, command: impl Into<Command>) -> Result<(), NotSubmitted> {
        self.inbox.put(command.into(), || self.is_closed())?;
        self.demand.notify_one();
        Ok(())
    }

    pub(super) fn has_command(&self) -> bool {
        self.inbox.is_full()
    }

    /// For the refresher: takes the pending command.
    pub(in crate::token) fn take_command(&self) -> Option<Command> {
        self.inbox.take()
    }
}
