//! The store in Redis or Valkey, which several replicas share; every record is sealed before it leaves.
//!
//! Not here: the connection (`link`, `way`), what Redis runs for us (`scripts`), names of keys (`names`), what other replicas
//! change (`news`).
//! Holds: a token is written only by who holds its lease and over nothing newer, checked by Redis in one step; whoever
//! asks waits for a bounded time; a value that is too large or of another kind is never fetched; a record ends with what
//! it holds.

mod lease;
mod link;
mod mark;
mod names;
mod news;
mod notes;
mod records;
mod scripts;
mod secrets;
#[cfg(test)]
mod tests;
mod way;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast;
use tokio::time::Instant;

use lease::Held;
use link::Link;
use mark::Mark;
use names::Names;
use records::Removed;
use scripts::{Scripts, Value};
pub use secrets::Lent;

use super::lease::Leases;
use super::seal::Keyring;
use super::sealed::Sealed;
use super::{Lease, News, Note, Page, Refresh, Store, StoreError, StoreFuture, StoredToken};
use crate::clock::Clock;
use crate::model::secret::Secret;
use crate::model::time::WallTime;
use crate::model::token::TokenKey;
use crate::model::{Name, RedisSettings};
use crate::tasks::Tasks;

/// A value of more bytes is not one of ours.
const VALUE_BYTES_MAX: usize = 256 * 1024;
/// Records that are read at once.
const PAGE_MAX: usize = 256;
/// A record stays so long after its last token, for clocks that differ.
const LINGER: Duration = Duration::from_secs(600);
/// How long a refresh token is kept at least, whatever was said of its end. Each refresh begins it anew.
const UNKNOWN_LIFE: Duration = Duration::from_secs(400 * 24 * 3600);
/// How long it is known that a token was refused, or removed.
const ENDED_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Between two looks for a lease that another has.
const LEASE_PAUSE: Duration = Duration::from_millis(50);

/// After one in so many saves some members of the index are looked at, four for each save: at most a quarter has ended.
const SAVES_FOR_A_LOOK: u8 = 4;
const MEMBERS_LOOKED_AT: usize = 16;

const NO_TOKEN: &str = "what lies there was not written by keybearer";
const TOO_LARGE: &str = "it is larger than any record of keybearer";

pub struct RedisStore {
    shared: Arc<Shared>,
    leases: Leases,
    news: broadcast::Sender<News>,
}

/// What leases work with too.
struct Shared {
    link: Link,
    names: Names,
    scripts: Scripts,
    sealed: Sealed,
    lent: Lent,
    /// Names this process to the others.
    instance: String,
}

impl RedisStore {
    /// Connects when it is first used.
    pub fn new(settings: RedisSettings, keyring: Keyring, clock: Clock, tasks: &Tasks, lent: Lent) -> RedisStore {
        let (names, news) = (Names::new(&settings.key_prefix), broadcast::Sender::new(news::QUEUE_MAX));
        let keyring = Arc::new(keyring);
        let mark = Mark::new(names.mark(), keyring.clone(), scripts::mark());
        let shared = Shared {
            link: Link::new(settings, tasks.clone(), (names.probe(), mark), news.clone()),
            names,
            scripts: Scripts::new(),
            sealed: Sealed::new(keyring, clock),
            lent,
            instance: format!("{:016x}", fastrand::u64(..)),
        };
        RedisStore { shared: Arc::new(shared), leases: Leases::default(), news }
    }

    /// Follows what other replicas change, until the program ends.
    pub fn follow(&self, tasks: &Tasks) {
        tasks.spawn("store news", news::follow(self.shared.clone(), self.news.clone()));
        tasks.spawn("store link", news::mend(self.shared.clone()));
    }

    /// Uses these from the next connection on: a password may have changed.
    pub fn renew(&self, settings: RedisSettings) {
        self.shared.link.renew(settings);
    }
}

impl Shared {
    /// A value as a script has found it, `None` if there is none.
    fn found(&self, record: impl Fn() -> String, value: Value) -> Result<Option<Vec<u8>>, StoreError> {
        match value {
            Value::None => Ok(None),
            Value::Bytes(bytes) => Ok(Some(bytes)),
            Value::Foreign => Err(StoreError::Damaged { record: record(), why: NO_TOKEN }),
            Value::Large => Err(StoreError::Damaged { record: record(), why: TOO_LARGE }),
        }
    }

    /// How long what is kept of a token is of use to anybody.
    fn life(&self, token: &StoredToken) -> Duration {
        let now = self.sealed.clock.now();
        let access = now.until(token.obtained.plus(token.lifetime));
        let refresh = match &token.refresh {
            Refresh::None => Duration::ZERO,
            Refresh::Refused { .. } => ENDED_LIFE,
            Refresh::Token(_) => {
                let stated = token.refresh_life.stated.unwrap_or_default();
                (token.refresh_life.since.unwrap_or_default() + stated).since(now.wall).max(UNKNOWN_LIFE)
            }
        };
        access.max(refresh) + LINGER
    }
}

fn ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

impl Store for RedisStore {
    fn load<'a>(&'a self, key: &'a TokenKey) -> StoreFuture<'a, Option<StoredToken>> {
        Box::pin(async move {
            let own = &self.shared;
            let value = own.scripts.get(&own.link, &own.names.token(key)).await?;
            let Some(sealed) = own.found(|| key.to_string(), value)? else { return Ok(None) };
            // Another replica has more of it: it is neither lost nor to be written over.
            if let Some(unopened) = own.sealed.keyring.of_others(&sealed) {
                let why = format!("Redis: the record {key} cannot be opened: {unopened}");
                return Err(StoreError::Unavailable(why));
            }
            own.sealed.token(key, &sealed).map(Some)
        })
    }

    fn lease<'a>(&'a self, key: &'a TokenKey, term: Duration, patience: Duration) -> StoreFuture<'a, Box<dyn Lease>> {
        Box::pin(async move {
            let end = Instant::now() + patience;
            // Within this process, where another holder is known.
            let own = Arc::new(self.leases.take(key, patience).await?);
            loop {
                if let Some(held) = Held::take(&self.shared, key, term, own.clone()).await? {
                    return Ok(Box::new(held) as Box<dyn Lease>);
                }
                if Instant::now() >= end {
                    return Err(StoreError::LeaseTimeout { key: key.clone() });
                }
                tokio::time::sleep_until((Instant::now() + LEASE_PAUSE).min(end)).await;
            }
        })
    }

    fn save<'a>(&'a self, key: &'a TokenKey, token: StoredToken, lease: &'a dyn Lease) -> StoreFuture<'a, u64> {
        Box::pin(async move {
            let own = &self.shared;
            let lost = || StoreError::LeaseLost { key: key.clone() };
            let fence = lease.fence().ok_or_else(lost)?;
            let (sealed, life) = (own.sealed.seal_token(key, &token, fence.version)?, own.life(&token));
            let mut call = own.scripts.save.prepare_invoke();
            for name in own.names.keys_of(key) {
                call.key(name);
            }
            call.arg(&fence.holder).arg(fence.version).arg(sealed).arg(ms(life));
            call.arg(names::member(key)).arg(own.names.news()).arg(own.news_of(key));
            let saved: bool = own.link.run(&call).await?;
            if !saved {
                return Err(lost());
            }
            own.note_connection(&key.connection, life).await;
            if fastrand::u8(..SAVES_FOR_A_LOOK) == 0 {
                let (shared, connection) = (own.clone(), key.connection.clone());
                own.link.spawn("index", async move { shared.thin_out(&connection).await });
            }
            Ok(fence.version)
        })
    }

    fn forget<'a>(&'a self, key: &'a TokenKey, lease: &'a dyn Lease) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let own = &self.shared;
            let lost = || StoreError::LeaseLost { key: key.clone() };
            let fence = lease.fence().ok_or_else(lost)?;
            let mut call = own.scripts.forget.prepare_invoke();
            for name in own.names.keys_of(key) {
                call.key(name);
            }
            call.arg(&fence.holder).arg(fence.version).arg(ms(ENDED_LIFE)).arg(names::member(key));
            call.arg(own.names.news()).arg(own.news_of(key));
            match own.link.run(&call).await? {
                true => Ok(()),
                false => Err(lost()),
            }
        })
    }

    fn list<'a>(&'a self, connection: &'a Name, after: Option<&'a TokenKey>, limit: usize) -> StoreFuture<'a, Page> {
        Box::pin(async move {
            let own = &self.shared;
            let mut after = match after {
                Some(key) if key.connection > *connection => return Ok(Page::new()),
                Some(key) if key.connection == *connection => Some(names::member(key)),
                _ => None,
            };
            let mut page = Page::new();
            while page.len() < limit {
                let wanted = (limit - page.len()).min(PAGE_MAX);
                let members = own.members(connection, after.as_deref(), wanted).await?;
                let Some(last) = members.last() else { break };
                after = Some(last.clone());
                for (key, value) in own.values(connection, &members).await? {
                    match own.found(|| key.to_string(), value) {
                        Ok(None) => {}
                        Ok(Some(sealed)) => {
                            let token = own.sealed.token(&key, &sealed);
                            page.push((key, token));
                        }
                        Err(damaged) => page.push((key, Err(damaged))),
                    }
                }
            }
            Ok(page)
        })
    }

    fn secret<'a>(&'a self, name: &'a str) -> StoreFuture<'a, Option<Secret>> {
        Box::pin(self.shared.secret(name))
    }

    fn put_secret<'a>(&'a self, name: &'a str, secret: Secret) -> StoreFuture<'a, ()> {
        Box::pin(self.shared.put_secret(name, secret))
    }

    fn remove_secret<'a>(&'a self, name: &'a str) -> StoreFuture<'a, bool> {
        Box::pin(self.shared.remove_secret(name))
    }

    fn secret_names(&self) -> StoreFuture<'_, Vec<String>> {
        Box::pin(self.shared.secret_names())
    }

    fn note<'a>(&'a self, name: &'a str) -> StoreFuture<'a, Option<Note>> {
        Box::pin(self.shared.load_note(name))
    }

    fn put_note<'a>(&'a self, name: &'a str, text: Secret, ends: WallTime, over: Option<u64>) -> StoreFuture<'a, bool> {
        Box::pin(self.shared.save_note(name, text, ends, over))
    }

    fn note_names<'a>(&'a self, prefix: &'a str) -> StoreFuture<'a, Vec<String>> {
        Box::pin(self.shared.names_of_notes(prefix))
    }

    fn was_removed<'a>(&'a self, key: &'a TokenKey, after: u64) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            let own = &self.shared;
            own.link.run(own.scripts.removed.key(own.names.removed(key)).arg(after)).await
        })
    }

    fn is_in_doubt<'a>(&'a self, key: &'a TokenKey) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            let own = &self.shared;
            own.link.run(own.scripts.doubt.key(own.names.spending(key)).key(own.names.token(key))).await
        })
    }

    fn restore<'a>(&'a self, key: &'a TokenKey, token: StoredToken) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let own = &self.shared;
            let sealed = own.sealed.seal_token(key, &token, token.version)?;
            let life = own.life(&token);
            own.import(key, token.version, sealed, life, Removed::Respected).await?;
            own.note_connection(&key.connection, life).await;
            Ok(())
        })
    }

    fn stands(&self) -> StoreFuture<'_, ()> {
        Box::pin(self.shared.link.reach())
    }

    fn shaken(&self) -> Option<Instant> {
        self.shared.link.shaken()
    }

    fn news(&self) -> Option<broadcast::Receiver<News>> {
        Some(self.news.subscribe())
    }
}

impl Shared {
    /// The names within a connection of its next records.
    async fn members(&self, connection: &Name, after: Option<&[u8]>, limit: usize) -> Result<Vec<Vec<u8>>, StoreError> {
        let from = after.map_or(b"-".to_vec(), |after| [b"(", after].concat());
        let mut call = redis::cmd("ZRANGEBYLEX");
        call.arg(self.names.index(connection)).arg(from).arg("+").arg("LIMIT").arg(0).arg(limit);
        self.link.query(&call).await
    }

    /// The records of some members; those that have ended leave the index.
    async fn values(&self, connection: &Name, members: &[Vec<u8>]) -> Result<Vec<(TokenKey, Value)>, StoreError> {
        let keys: Vec<TokenKey> = members.iter().filter_map(|member| names::key_of(connection, member)).collect();
        let mut call = self.scripts.get_many.prepare_invoke();
        call.key(self.names.index(connection)).arg(VALUE_BYTES_MAX);
        for key in &keys {
            call.key(self.names.token(key)).arg(names::member(key));
        }
        let values: Vec<Value> = self.link.run(&call).await?;
        Ok(keys.into_iter().zip(values).collect())
    }

    /// Looks at some members for those whose records have ended: the index does not grow with all that there ever were.
    async fn thin_out(&self, connection: &Name) {
        let looked = async {
            let call = redis::cmd("ZRANDMEMBER").arg(self.names.index(connection)).arg(MEMBERS_LOOKED_AT).to_owned();
            let members: Vec<Vec<u8>> = self.link.query(&call).await?;
            self.values(connection, &members).await.map(drop)
        };
        if let Err(error) = looked.await {
            tracing::debug!(%connection, %error, "no look for records that have ended");
        }
    }

    /// Puts a connection among those that have records, for as long as one lives; with the next of them, if not now.
    async fn note_connection(&self, connection: &Name, life: Duration) {
        let mut call = self.scripts.note_connection.key(self.names.connections());
        let life = life.max(UNKNOWN_LIFE + LINGER);
        if let Err(error) = self.link.run::<()>(call.arg(connection.as_str()).arg(ms(life))).await {
            tracing::debug!(%connection, %error, "a connection is not yet among those that have records");
        }
    }
}
