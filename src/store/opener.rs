//! Opens the store that a configuration means: when the program starts, or earlier for a secret that the configuration
//! refers to.
//!
//! Not here: opening a file (`embedded::file`), the connection to Redis (`redis::link`), the seal keys (`keys`).
//! Invariants: a process opens the file once; `peek` creates and changes nothing; reading the configuration waits for
//! Redis for a bounded time.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

use super::counted::Counted;
use super::embedded::EmbeddedStore;
use super::error::OpenError;
use super::memory::MemoryStore;
use super::redis::{RedisStore, SecretsInUse};
use super::seal::Keyring;
use super::{SecretStore as _, Store};
use crate::clock::Clock;
use crate::model::secret::{Secret, Vault, VaultError};
use crate::model::{Model, RedisSettings, StoreKind, StoreSettings};
use crate::sync::lock;
use crate::tasks::Tasks;
use crate::telemetry::metrics::Metrics;

/// The driver of a reader's connection runs only while a secret is read, so an idle connection may be dead.
const READER_IDLE_MAX: Duration = Duration::from_secs(1);

/// Opens the store that a configuration means, with its operations counted. Falls back to memory, with a warning, if
/// the file cannot be written and no connection needs a person.
pub fn open(model: &Model, opener: &StoreOpener, metrics: &Metrics) -> Result<Arc<dyn Store>, OpenError> {
    let person = model.connections.iter().any(|connection| connection.needs_person());
    let store: Arc<dyn Store> = match &model.store.kind {
        StoreKind::Memory => Arc::new(MemoryStore::default()),
        StoreKind::Embedded { path } => match opener.embedded(path, &model.store, &model.state_dir) {
            Ok(store) => {
                store.sweep(&opener.tasks);
                store
            }
            Err(error @ OpenError::Unwritable { .. }) if !person => {
                tracing::warn!(%error, "store not writable; tokens are kept in memory only, and lost when this process ends");
                Arc::new(MemoryStore::default())
            }
            Err(error) => return Err(error),
        },
        StoreKind::Redis(redis) => {
            let store = opener.redis(redis, &model.store, &model.state_dir)?;
            store.follow(&opener.tasks);
            store
        }
    };
    Ok(Arc::new(Counted::new(store, metrics)))
}

/// Opens the store of a process, once.
pub struct StoreOpener {
    clock: Clock,
    tasks: Tasks,
    embedded: Mutex<Option<Arc<EmbeddedStore>>>,
    redis: Mutex<Option<Arc<RedisStore>>>,
    secrets_in_use: SecretsInUse,
    reader: Mutex<Option<SecretReader>>,
}

/// A Redis store for reading the configuration, which cannot await.
struct SecretReader {
    settings: StoreSettings,
    runtime: Runtime,
    store: RedisStore,
    used: Instant,
}

impl StoreOpener {
    pub fn new(clock: Clock, tasks: Tasks) -> StoreOpener {
        let (embedded, redis, secrets_in_use, reader) = Default::default();
        StoreOpener { clock, tasks, embedded, redis, secrets_in_use, reader }
    }

    /// The store in Redis, on the current runtime.
    pub fn redis(
        &self,
        redis: &RedisSettings,
        settings: &StoreSettings,
        state_dir: &Path,
    ) -> Result<Arc<RedisStore>, OpenError> {
        let keys = Keyring::of(settings, state_dir)?;
        let in_use = self.secrets_in_use.clone();
        let store = Arc::new(RedisStore::new(redis.clone(), keys, self.clock.clone(), &self.tasks, in_use));
        *lock(&self.redis) = Some(store.clone());
        Ok(store)
    }

    /// Reads a secret from Redis. Blocks.
    fn secret_from_redis(
        &self,
        redis: &RedisSettings,
        settings: &StoreSettings,
        state_dir: &Path,
        name: &str,
    ) -> Result<Option<Secret>, VaultError> {
        let failed = |error: &dyn std::fmt::Display| VaultError::Failed(error.to_string());
        let mut reader = lock(&self.reader);
        if reader.as_ref().is_none_or(|it| it.settings != *settings || it.used.elapsed() > READER_IDLE_MAX) {
            let runtime = Builder::new_current_thread().enable_all().build().map_err(|error| failed(&error))?;
            let keys = Keyring::of(settings, state_dir).map_err(|error| failed(&error))?;
            let store = {
                let _in = runtime.enter();
                let in_use = self.secrets_in_use.clone();
                RedisStore::new(redis.clone(), keys, self.clock.clone(), &self.tasks, in_use)
            };
            *reader = Some(SecretReader { settings: settings.clone(), runtime, store, used: Instant::now() });
        }
        let Some(SecretReader { runtime, store, used, .. }) = &mut *reader else { return Ok(None) };
        // Another runtime must not be driven on a thread of the current one.
        let read = std::thread::scope(|scope| scope.spawn(|| runtime.block_on(store.secret(name))).join());
        *used = Instant::now();
        read.unwrap_or_else(|_| Ok(None)).map_err(|error| failed(&error))
    }

    /// The embedded store at `path`, created with its key if it does not exist.
    pub fn embedded(
        &self,
        path: &Path,
        settings: &StoreSettings,
        state_dir: &Path,
    ) -> Result<Arc<EmbeddedStore>, OpenError> {
        let mut embedded = lock(&self.embedded);
        if let Some(store) = &*embedded {
            return Ok(store.clone());
        }
        let keys = Keyring::of(settings, state_dir)?;
        let store = Arc::new(EmbeddedStore::open(path, keys, self.clock.clone(), &self.tasks)?);
        *embedded = Some(store.clone());
        Ok(store)
    }
}

impl StoreOpener {
    /// The store of a configuration, to read only: creates and changes nothing. `None`: it is in memory, or does not
    /// exist yet. Call it on a runtime.
    pub fn peek(&self, settings: &StoreSettings, state_dir: &Path) -> Result<Option<Arc<dyn Store>>, OpenError> {
        let path = match &settings.kind {
            StoreKind::Memory => return Ok(None),
            StoreKind::Redis(redis) => return Ok(Some(self.redis(redis, settings, state_dir)?)),
            StoreKind::Embedded { path } => path,
        };
        if let Some(store) = &*lock(&self.embedded) {
            return Ok(Some(store.clone()));
        }
        if !path.metadata().is_ok_and(|file| file.len() > 0) {
            return Ok(None);
        }
        let keys = Keyring::of(settings, state_dir)?;
        Ok(Some(Arc::new(EmbeddedStore::open_unchanged(path, keys, self.clock.clone(), &self.tasks)?)))
    }
}

impl Vault for StoreOpener {
    fn secret(&self, settings: &StoreSettings, state_dir: &Path, name: &str) -> Result<Option<Secret>, VaultError> {
        let path = match &settings.kind {
            StoreKind::Embedded { path } => path,
            StoreKind::Memory => return Ok(None),
            StoreKind::Redis(redis) => return self.secret_from_redis(redis, settings, state_dir, name),
        };
        let is_open = lock(&self.embedded).is_some();
        if !is_open && !path.exists() {
            return Ok(None);
        }
        let store = self.embedded(path, settings, state_dir).map_err(|error| match error {
            OpenError::InUse { .. } => VaultError::InUse,
            error => VaultError::Failed(error.to_string()),
        })?;
        store.secret_blocking(name).map_err(|error| VaultError::Failed(error.to_string()))
    }

    fn apply(&self, settings: &StoreSettings) {
        match &settings.kind {
            StoreKind::Redis(redis) => {
                if let Some(store) = &*lock(&self.redis) {
                    store.reconfigure((**redis).clone());
                }
            }
            StoreKind::Embedded { .. } | StoreKind::Memory => {}
        }
    }
}
