//! Cache of the secrets that this process uses, to write them back if Redis loses them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::model::secret::Secret;
use crate::sync::lock;

/// Secrets that this process has read from Redis, with their versions.
#[derive(Clone, Default)]
pub struct SecretsInUse(Arc<Mutex<BTreeMap<String, (u64, Secret)>>>);

impl SecretsInUse {
    /// Secrets by name, each with its version. Never hold the guard across an await.
    pub fn lock(&self) -> MutexGuard<'_, BTreeMap<String, (u64, Secret)>> {
        lock(&self.0)
    }
}
