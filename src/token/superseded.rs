//! Superseded definitions, kept to revoke the tokens that were granted under them.
//!
//! Invariants: definitions are in memory only, so a restart loses them. Beyond [`DEFINITIONS_MAX`] the oldest is
//! evicted.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use super::definition::Definition;
use crate::model::connection::{Connection, Identity};
use crate::model::token::TokenKey;
use crate::sync::lock;

/// Maximum number of definitions, all connections together.
const DEFINITIONS_MAX: usize = 64;

#[derive(Clone, Default)]
pub(super) struct SupersededDefinitions(Arc<Mutex<VecDeque<Arc<Definition>>>>);

impl SupersededDefinitions {
    /// Keeps a definition that was replaced; drops an earlier one with the same identity.
    pub fn keep(&self, definition: Arc<Definition>) {
        if definition.connection.grant.exchanges_caller_token() {
            // Exchanged tokens are never stored, so there is nothing to revoke.
            return;
        }
        let (key, identity) = (definition.connection.token_key(None), definition.connection.identity());
        let mut all = lock(&self.0);
        all.retain(|superseded| !(is_of(superseded, &key) && superseded.connection.identity() == identity));
        all.push_back(definition);
        if all.len() > DEFINITIONS_MAX {
            all.pop_front();
        }
    }

    /// The definition that a token of `key` was granted under.
    pub fn find(&self, key: &TokenKey, identity: &Identity) -> Option<Arc<Definition>> {
        let all = lock(&self.0);
        let found =
            all.iter().find(|superseded| is_of(superseded, key) && superseded.connection.identity() == *identity);
        found.cloned()
    }

    pub fn connections(&self, key: &TokenKey) -> Vec<Arc<Connection>> {
        let all = lock(&self.0);
        all.iter().filter(|superseded| is_of(superseded, key)).map(|superseded| superseded.connection.clone()).collect()
    }
}

fn is_of(superseded: &Definition, key: &TokenKey) -> bool {
    superseded.connection.name == key.connection && superseded.connection.profile == key.profile
}
