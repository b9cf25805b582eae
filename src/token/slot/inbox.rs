//! A mailbox for one command.

use std::sync::Mutex;

use crate::sync::lock;

#[derive(Debug)]
pub struct Inbox<C>(Mutex<Option<C>>);

impl<C> Default for Inbox<C> {
    fn default() -> Inbox<C> {
        Inbox(Mutex::new(None))
    }
}

/// Why a command was not accepted.
pub enum NotSubmitted {
    /// Another command is pending.
    Busy,
    Closed,
}

impl<C> Inbox<C> {
    pub fn put(&self, command: C, is_closed: impl Fn() -> bool) -> Result<(), NotSubmitted> {
        let mut held = lock(&self.0);
        if held.is_some() {
            return Err(NotSubmitted::Busy);
        }
        if is_closed() {
            return Err(NotSubmitted::Closed);
        }
        *held = Some(command);
        Ok(())
    }

    pub fn take(&self) -> Option<C> {
        lock(&self.0).take()
    }

    pub fn is_full(&self) -> bool {
        lock(&self.0).is_some()
    }
}
