//! A store in Redis or Valkey, shared by several replicas. Every record is sealed before it leaves the process.
//!
//! Not here: connecting (`link`, `endpoint`), the Lua scripts (`scripts`), key names (`names`), the state shared by the
//! store, its leases and its background tasks (`backend`).
//! Invariants: a token is written only under its lease and never over a newer one, which Redis checks atomically; every
//! call has a timeout; a value that is too large or of a foreign type is never fetched; every token and note has a TTL.

mod backend;
mod check_record;
mod definitions;
mod definitions_in_use;
mod endpoint;
mod lease;
mod link;

mod names;
mod notifications;
mod notes;
mod records;
mod scripts;
mod secrets;
mod secrets_in_use;
#[cfg(test)]
mod tests;
mod ttl;
mod value;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast;
use tokio::time::Instant;

use super::codec::RecordCodec;
use super::lease::ProcessLeases;
use super::seal::Keyring;
use super::{
    Catalog, CatalogChange, DefinitionStore, Lease, Note, NoteStore, Page, SecretStore, SharedStore, StoreError,
    StoreFuture, StoredText, StoredToken, TokenStore,
};
use crate::clock::Clock;
use crate::model::connection::Revision;
use crate::model::secret::Secret;
use crate::model::time::WallTime;
use crate::model::token::TokenKey;
use crate::model::{Name, RedisSettings};
use crate::tasks::Tasks;
use backend::Backend;
use check_record::CheckRecord;
use definitions_in_use::DefinitionsInUse;
use lease::RedisLease;
use link::Link;
use names::Names;
use scripts::Scripts;
pub use secrets_in_use::SecretsInUse;
use ttl::{TOMBSTONE_TTL, ms};

/// Maximum number of records read in one call.
const PAGE_MAX: usize = 256;
/// Poll interval of a lease that another replica holds.
const LEASE_POLL_INTERVAL: Duration = Duration::from_millis(50);

/// One save in this many also prunes the index: it checks [`INDEX_SAMPLE`] members, four per save, so that at most a
/// quarter of the index is expired.
const SAVES_PER_INDEX_CHECK: u8 = 4;
const INDEX_SAMPLE: usize = 16;

/// A store in Redis or Valkey, shared by replicas; records are sealed before they leave the process.
pub struct RedisStore {
    backend: Arc<Backend>,
    leases: ProcessLeases,
}

impl RedisStore {
    /// Connects on first use.
    pub fn new(
        settings: RedisSettings,
        keyring: Keyring,
        clock: Clock,
        tasks: &Tasks,
        secrets_in_use: SecretsInUse,
    ) -> RedisStore {
        let (names, notifications) =
            (Names::new(&settings.key_prefix), broadcast::Sender::new(notifications::QUEUE_MAX));
        let keyring = Arc::new(keyring);
        let check_record = CheckRecord::new(names.check_record(), keyring.clone(), scripts::check_record());
        let backend = Backend {
            link: Link::new(settings, tasks.clone(), names.probe(), check_record, notifications.clone()),
            names,
            scripts: Scripts::new(),
            codec: RecordCodec::new(keyring, clock),
            secrets_in_use,
            definitions_in_use: DefinitionsInUse::default(),
            notifications,
            instance: format!("{:016x}", fastrand::u64(..)),
        };
        RedisStore { backend: Arc::new(backend), leases: ProcessLeases::default() }
    }

    /// Subscribes to the changes of other replicas and reconnects after outages, until the program exits.
    pub fn follow(&self, tasks: &Tasks) {
        tasks.spawn("store notifications", notifications::follow(self.backend.clone()));
        tasks.spawn("store link", notifications::reconnect(self.backend.clone()));
        tasks.spawn("store definitions", definitions::poll(self.backend.clone()));
    }

    /// Applies `settings` to the next connection; a password may have changed.
    pub fn reconfigure(&self, settings: RedisSettings) {
        self.backend.link.reconfigure(settings);
    }
}

impl TokenStore for RedisStore {
    fn load<'a>(&'a self, key: &'a TokenKey) -> StoreFuture<'a, Option<StoredToken>> {
        Box::pin(async move {
            let Backend { codec, names, .. } = &*self.backend;
            let value = self.backend.get(&names.token(key)).await?;
            let Some(sealed) = value.bytes(|| key.to_string())? else { return Ok(None) };
            // Another replica can open the record, so it is not lost and must not be overwritten.
            if let Some(error) = codec.keyring.readable_elsewhere(&sealed) {
                let why = format!("Redis: the record {key} cannot be opened: {error}");
                return Err(StoreError::Unavailable(why));
            }
            codec.token(key, &sealed).map(Some)
        })
    }

    fn lease<'a>(&'a self, key: &'a TokenKey, term: Duration, wait: Duration) -> StoreFuture<'a, Box<dyn Lease>> {
        Box::pin(async move {
            let deadline = Instant::now() + wait;
            // Callers in this process queue here; only a lease of another replica is polled.
            let local = Arc::new(self.leases.acquire(key, wait).await?);
            loop {
                if let Some(lease) = RedisLease::acquire(&self.backend, key, term, local.clone()).await? {
                    return Ok(Box::new(lease) as Box<dyn Lease>);
                }
                if Instant::now() >= deadline {
                    return Err(StoreError::LeaseTimeout { key: key.clone() });
                }
                tokio::time::sleep_until((Instant::now() + LEASE_POLL_INTERVAL).min(deadline)).await;
            }
        })
    }

    fn save<'a>(&'a self, key: &'a TokenKey, token: StoredToken, lease: &'a dyn Lease) -> StoreFuture<'a, u64> {
        Box::pin(async move {
            let Backend { link, codec, names, scripts, .. } = &*self.backend;
            let lost = || StoreError::LeaseLost { key: key.clone() };
            let fence = lease.fence().ok_or_else(lost)?;
            let (sealed, ttl) = (codec.seal_token(key, &token, fence.version)?, ttl::of(&token, codec.clock.now()));
            let mut call = scripts.save.prepare_invoke();
            for name in names.keys_of(key) {
                call.key(name);
            }
            call.arg(&fence.holder).arg(fence.version).arg(sealed).arg(ms(ttl));
            call.arg(names::member(key)).arg(names.notifications()).arg(self.backend.notification_for(key));
            let saved: bool = link.run(&call).await?;
            if !saved {
                return Err(lost());
            }
            self.backend.note_connection(&key.connection, ttl).await;
            if fastrand::u8(..SAVES_PER_INDEX_CHECK) == 0 {
                let (backend, connection) = (self.backend.clone(), key.connection.clone());
                link.spawn("index", async move { backend.prune_index(&connection, INDEX_SAMPLE).await });
            }
            Ok(fence.version)
        })
    }

    fn forget<'a>(&'a self, key: &'a TokenKey, lease: &'a dyn Lease) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let Backend { link, names, scripts, .. } = &*self.backend;
            let lost = || StoreError::LeaseLost { key: key.clone() };
            let fence = lease.fence().ok_or_else(lost)?;
            let mut call = scripts.forget.prepare_invoke();
            for name in names.keys_of(key) {
                call.key(name);
            }
            call.arg(&fence.holder).arg(fence.version).arg(ms(TOMBSTONE_TTL)).arg(names::member(key));
            call.arg(names.notifications()).arg(self.backend.notification_for(key));
            match link.run(&call).await? {
                true => Ok(()),
                false => Err(lost()),
            }
        })
    }

    fn list<'a>(&'a self, connection: &'a Name, after: Option<&'a TokenKey>, limit: usize) -> StoreFuture<'a, Page> {
        Box::pin(async move {
            let mut after = match after {
                Some(key) if key.connection > *connection => return Ok(Page::new()),
                Some(key) if key.connection == *connection => Some(names::member(key)),
                _ => None,
            };
            let mut page = Page::new();
            while page.len() < limit {
                let wanted = (limit - page.len()).min(PAGE_MAX);
                let members = self.backend.members(connection, after.as_deref(), wanted).await?;
                let Some(last) = members.last() else { break };
                after = Some(last.clone());
                for (key, value) in self.backend.values(connection, &members).await? {
                    match value.bytes(|| key.to_string()) {
                        Ok(None) => {}
                        Ok(Some(sealed)) => {
                            let token = self.backend.codec.token(&key, &sealed);
                            page.push((key, token));
                        }
                        Err(damaged) => page.push((key, Err(damaged))),
                    }
                }
            }
            Ok(page)
        })
    }

    fn shared(&self) -> Option<Arc<dyn SharedStore>> {
        Some(self.backend.clone())
    }
}

impl SecretStore for RedisStore {
    fn secret<'a>(&'a self, name: &'a str) -> StoreFuture<'a, Option<Secret>> {
        Box::pin(self.backend.secret(name))
    }

    fn put_secret<'a>(&'a self, name: &'a str, secret: Secret) -> StoreFuture<'a, ()> {
        Box::pin(self.backend.put_secret(name, secret))
    }

    fn remove_secret<'a>(&'a self, name: &'a str) -> StoreFuture<'a, bool> {
        Box::pin(self.backend.remove_secret(name))
    }

    fn secret_names(&self) -> StoreFuture<'_, Vec<String>> {
        Box::pin(self.backend.secret_names())
    }
}

impl NoteStore for RedisStore {
    fn note<'a>(&'a self, name: &'a str) -> StoreFuture<'a, Option<Note>> {
        Box::pin(self.backend.load_note(name))
    }

    fn put_note<'a>(
        &'a self,
        name: &'a str,
        text: Secret,
        expires_at: WallTime,
        replaces: Option<u64>,
    ) -> StoreFuture<'a, bool> {
        Box::pin(self.backend.save_note(name, text, expires_at, replaces))
    }

    fn note_names<'a>(&'a self, prefix: &'a str) -> StoreFuture<'a, Vec<String>> {
        Box::pin(self.backend.note_names(prefix))
    }
}

impl DefinitionStore for RedisStore {
    fn catalog(&self) -> StoreFuture<'_, Catalog> {
        Box::pin(self.backend.catalog())
    }

    fn definitions<'a>(&'a self, revisions: &'a [(Name, Revision)]) -> StoreFuture<'a, Vec<StoredText>> {
        Box::pin(self.backend.definition_texts(revisions))
    }

    fn change_definitions<'a>(&'a self, over: &'a Catalog, change: CatalogChange) -> StoreFuture<'a, Option<Catalog>> {
        Box::pin(self.backend.change_definitions(over, change))
    }
}
