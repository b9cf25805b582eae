//! The one open store of a process: opened when somebody first needs it, be it the configuration that refers to a secret
//! in it or the program that starts.
//!
//! Not here: what opening takes (`embedded`, `redis`, `seal`). Holds: the file is opened once, and nothing is made by
//! looking; whoever reads the configuration waits for Redis a bounded time.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

use super::redis::Lent;
use super::{EmbeddedStore, Keyring, OpenError, RedisStore, Store};
use crate::clock::Clock;
use crate::model::secret::{NoVault, Secret, Vault};
use crate::model::{RedisSettings, StoreKind, StoreSettings};
use crate::sync::lock;
use crate::tasks::Tasks;

pub struct Keeper {
    clock: Clock,
    tasks: Tasks,
    open: Mutex<Option<Arc<EmbeddedStore>>>,
    /// Of the program.
    redis: Mutex<Option<Arc<RedisStore>>>,
    /// What the configuration was given of Redis.
    lent: Lent,
    /// Of whoever reads the configuration.
    reader: Mutex<Option<Reader>>,
}

/// A store of Redis that is used where nothing can be awaited.
struct Reader {
    /// What it was opened for.
    settings: StoreSettings,
    runtime: Runtime,
    store: RedisStore,
    used: Instant,
}

/// Nobody drives a reader's connection between two readings, so that it may have ended.
const READER_IDLE_MAX: Duration = Duration::from_secs(1);

impl Keeper {
    pub fn new(clock: Clock, tasks: Tasks) -> Keeper {
        let (open, redis, reader) = Default::default();
        Keeper { clock, tasks, open, redis, lent: Lent::default(), reader }
    }

    pub fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// The store in Redis, on the current runtime.
    pub fn redis(
        &self,
        redis: &RedisSettings,
        settings: &StoreSettings,
        state_dir: &Path,
    ) -> Result<Arc<RedisStore>, OpenError> {
        let keys = Keyring::of(settings, state_dir)?;
        let store = Arc::new(RedisStore::new(redis.clone(), keys, self.clock.clone(), &self.tasks, self.lent.clone()));
        *lock(&self.redis) = Some(store.clone());
        Ok(store)
    }

    /// The secret of a name in Redis. Blocks.
    fn secret_of_redis(
        &self,
        redis: &RedisSettings,
        settings: &StoreSettings,
        state_dir: &Path,
        name: &str,
    ) -> Result<Option<Secret>, NoVault> {
        let failed = |error: &dyn std::fmt::Display| NoVault::Failed(error.to_string());
        let mut reader = lock(&self.reader);
        if reader.as_ref().is_none_or(|it| it.settings != *settings || it.used.elapsed() > READER_IDLE_MAX) {
            let runtime = Builder::new_current_thread().enable_all().build().map_err(|error| failed(&error))?;
            let keys = Keyring::of(settings, state_dir).map_err(|error| failed(&error))?;
            let store = {
                let _in = runtime.enter();
                RedisStore::new(redis.clone(), keys, self.clock.clone(), &self.tasks, self.lent.clone())
            };
            *reader = Some(Reader { settings: settings.clone(), runtime, store, used: Instant::now() });
        }
        let Some(Reader { runtime, store, used, .. }) = &mut *reader else { return Ok(None) };
        // A runtime of its own must not be driven from within another.
        let read = std::thread::scope(|scope| scope.spawn(|| runtime.block_on(store.secret(name))).join());
        *used = Instant::now();
        read.unwrap_or_else(|_| Ok(None)).map_err(|error| failed(&error))
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
        let mut open = lock(&self.open);
        if let Some(store) = &*open {
            return Ok(store.clone());
        }
        let keys = Keyring::of(settings, state_dir)?;
        let store = Arc::new(EmbeddedStore::open(path, keys, self.clock.clone(), &self.tasks)?);
        *open = Some(store.clone());
        Ok(store)
    }
}

impl Keeper {
    /// What a configuration's store keeps, to look at: nothing is made and nothing changed by that. `None`: nothing outlasts the
    /// process, or nothing is there yet. To be called on a runtime.
    pub fn look(&self, settings: &StoreSettings, state_dir: &Path) -> Result<Option<Arc<dyn Store>>, OpenError> {
        let path = match &settings.kind {
            StoreKind::Memory => return Ok(None),
            StoreKind::Redis(redis) => return Ok(Some(self.redis(redis, settings, state_dir)?)),
            StoreKind::Embedded { path } => path,
        };
        if let Some(store) = &*lock(&self.open) {
            return Ok(Some(store.clone()));
        }
        if !path.metadata().is_ok_and(|file| file.len() > 0) {
            return Ok(None);
        }
        let keys = Keyring::of(settings, state_dir)?;
        Ok(Some(Arc::new(EmbeddedStore::open_unchanged(path, keys, self.clock.clone(), &self.tasks)?)))
    }
}

impl Vault for Keeper {
    fn secret(&self, settings: &StoreSettings, state_dir: &Path, name: &str) -> Result<Option<Secret>, NoVault> {
        let path = match &settings.kind {
            StoreKind::Embedded { path } => path,
            StoreKind::Memory => return Ok(None),
            StoreKind::Redis(redis) => {
                return self.secret_of_redis(redis, settings, state_dir, name);
            }
        };
        let is_open = lock(&self.open).is_some();
        if !is_open && !path.exists() {
            return Ok(None);
        }
        let store = self.open(path, settings, state_dir).map_err(|error| match error {
            OpenError::InUse { .. } => NoVault::InUse,
            error => NoVault::Failed(error.to_string()),
        })?;
        store.secret_blocking(name).map_err(|error| NoVault::Failed(error.to_string()))
    }

    fn follow(&self, settings: &StoreSettings) {
        match &settings.kind {
            StoreKind::Redis(redis) => {
                if let Some(store) = &*lock(&self.redis) {
                    store.renew((**redis).clone());
                }
            }
            StoreKind::Embedded { .. } | StoreKind::Memory => {}
        }
    }
}
