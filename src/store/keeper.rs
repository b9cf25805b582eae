//! The one open store of a process: opened when somebody first needs it, be it the configuration that refers to a secret
//! in it or the program that starts.
//!
//! Not here: what opening takes (`embedded`, `seal`). Holds: the file is opened once, and nothing is made by looking.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::{EmbeddedStore, Keyring, OpenError};
use crate::clock::Clock;
use crate::model::secret::{NoVault, Secret, Vault};
use crate::model::{StoreKind, StoreSettings};
use crate::tasks::Tasks;

pub struct Keeper {
    clock: Clock,
    tasks: Tasks,
    open: Mutex<Option<Arc<EmbeddedStore>>>,
}

impl Keeper {
    pub fn new(clock: Clock, tasks: Tasks) -> Keeper {
        Keeper { clock, tasks, open: Mutex::default() }
    }

    /// The embedded store at `path`; made, with its key, where there is none.
    ///
    /// # Errors
    /// A sentence with the path and the way out.
    pub fn open(
        &self,
        path: &Path,
        settings: &StoreSettings,
        state_dir: &Path,
    ) -> Result<Arc<EmbeddedStore>, OpenError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = &*open {
            return Ok(store.clone());
        }
        let keys = Keyring::of(settings, state_dir)?;
        let store = Arc::new(EmbeddedStore::open(path, keys, self.clock.clone(), &self.tasks)?);
        *open = Some(store.clone());
        Ok(store)
    }
}

impl Vault for Keeper {
    fn secret(&self, settings: &StoreSettings, state_dir: &Path, name: &str) -> Result<Option<Secret>, NoVault> {
        let StoreKind::Embedded { path, .. } = &settings.kind else { return Ok(None) };
        let is_open = self.open.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        if !is_open && !path.exists() {
            return Ok(None);
        }
        let store = self.open(path, settings, state_dir).map_err(|error| match error {
            OpenError::InUse { .. } => NoVault::InUse,
            error => NoVault::Failed(error.to_string()),
        })?;
        store.secret_blocking(name).map_err(|error| NoVault::Failed(error.to_string()))
    }
}
