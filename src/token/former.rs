//! Definitions that are no longer in force: they alone know how to revoke the tokens granted under them.
//!
//! Invariants: they are in memory only, so a restart loses them. Beyond the bound the oldest leave first.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use super::definition::Definition;
use crate::model::connection::{Connection, Identity};
use crate::model::token::TokenKey;
use crate::sync::lock;

/// Bound over all connections.
const DEFINITIONS_MAX: usize = 64;

#[derive(Clone, Default)]
pub(super) struct FormerDefinitions(Arc<Mutex<VecDeque<Arc<Definition>>>>);

impl FormerDefinitions {
    /// Keeps a replaced definition, instead of an earlier one with the same identity.
    pub fn keep(&self, definition: Arc<Definition>) {
        if definition.connection.grant.exchanges_caller_token() {
            // Its tokens are never stored.
            return;
        }
        let (key, identity) = (definition.connection.token_key(None), definition.connection.identity());
        let mut all = lock(&self.0);
        all.retain(|former| !(is_of(former, &key) && former.connection.identity() == identity));
        all.push_back(definition);
        if all.len() > DEFINITIONS_MAX {
            all.pop_front();
        }
    }

    /// The definition under which a token of `key` was granted.
    pub fn find(&self, key: &TokenKey, identity: &Identity) -> Option<Arc<Definition>> {
        let all = lock(&self.0);
        let found = all.iter().find(|former| is_of(former, key) && former.connection.identity() == *identity);
        found.cloned()
    }

    pub fn connections(&self, key: &TokenKey) -> Vec<Arc<Connection>> {
        let all = lock(&self.0);
        all.iter().filter(|former| is_of(former, key)).map(|former| former.connection.clone()).collect()
    }
}

fn is_of(former: &Definition, key: &TokenKey) -> bool {
    former.connection.name == key.connection && former.connection.profile == key.profile
}
