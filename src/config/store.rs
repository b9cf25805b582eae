//! `store`: where tokens are kept, and under which keys they are sealed.
//!
//! Not here: opening it (`store`), what `{store: NAME}` means (`reading/secret`).

use std::path::Path;

use rustix::fs::Access;
use schemars::JsonSchema;
use serde::Deserialize;
use url::Url;

use super::reading::{Fault, Field, Keys, Sink, Spot, Unit, pem, secret, shape};
use crate::model::secret::SealKey;
use crate::model::{RedisAt, RedisKind, RedisSettings, StoreKind, StoreSettings};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "store", deny_unknown_fields)]
pub struct StoreFile {
    /// One sealed file. Give at most one of `embedded`, `redis` and `memory`.
    #[schemars(extend("examples" = [{"path": "tokens.redb"}]))]
    pub embedded: Field<EmbeddedFile>,
    /// Tokens are kept in memory and lost when the process ends.
    #[schemars(extend("examples" = [{}]))]
    pub memory: Field<MemoryFile>,
    /// Redis or Valkey, shared by replicas: one of them requests each token. Requires `seal_key`, the same for all
    /// replicas.
    #[schemars(extend(
        "examples" = [
            {
                "url": "rediss://redis.internal:6380/0",
                "username": "keybearer",
                "password": {"file": "/run/secrets/redis"}
            }
        ]
    ))]
    pub redis: Field<RedisFile>,
    /// 32 bytes in base64 (`openssl rand -base64 32`). In a list, the first key seals and all of them open. Absent:
    /// generated in the state directory.
    #[schemars(extend("examples" = [{"file": "/run/secrets/seal-key"}, [{"file": "new"}, {"file": "old"}]]))]
    pub seal_key: Field<shape::OneOrMany<shape::Secret>>,
}

impl Keys for StoreFile {}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "redis", deny_unknown_fields)]
pub struct RedisFile {
    /// `redis://HOST:PORT/DATABASE`, `rediss://…` with TLS, or `unix:///PATH`; with `sentinel_primary` a list of
    /// sentinels, with `cluster` of nodes. Credentials have keys of their own; sentinels that require credentials get
    /// the same ones.
    #[schemars(required, extend(
        "examples" = ["rediss://redis.internal:6380/0", ["redis://sentinel-1:26379", "redis://sentinel-2:26379"]]
    ))]
    pub url: Field<shape::OneOrMany<shape::Text>>,
    /// ACL user. Absent: the default user.
    #[schemars(extend("examples" = ["keybearer"]))]
    pub username: Field<shape::Text>,
    /// Password; when it changes, the next connection uses the new one.
    #[schemars(extend("examples" = [{"file": "/run/secrets/redis"}]))]
    pub password: Field<shape::Secret>,
    /// PEM files of the CAs that sign the server's certificate, or (without `cluster`) of that certificate itself,
    /// instead of the platform's roots.
    #[schemars(extend("examples" = [["redis-ca.pem"]]))]
    pub trust: Field<shape::NonemptyList<shape::Text>>,
    /// Prefix of every key and of the channel for change notifications.
    #[schemars(extend("default" = "keybearer:"))]
    pub key_prefix: Field<shape::Text>,
    /// Name by which the sentinels know the primary.
    #[schemars(extend("examples" = ["mymaster"]))]
    pub sentinel_primary: Field<shape::Text>,
    /// Whether the server is a cluster; `url` then lists some of its nodes.
    #[schemars(extend("default" = false))]
    pub cluster: Field<shape::Boolean>,
}

impl Keys for RedisFile {}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "embedded", deny_unknown_fields)]
pub struct EmbeddedFile {
    /// The file, relative to the state directory.
    #[schemars(extend("default" = "tokens.redb"))]
    pub path: Field<shape::Text>,
}

impl Keys for EmbeddedFile {}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "memory", deny_unknown_fields)]
pub struct MemoryFile {}

impl Keys for MemoryFile {}

const FILE: &str = "tokens.redb";
const REDIS_PORT: u16 = 6379;
const KEY_PREFIX: &str = "keybearer:";

pub fn settings(spot: Option<Spot<'_>>, state_dir: &Path, sink: &mut Sink) -> StoreSettings {
    let kind = StoreKind::Embedded { path: state_dir.join(FILE) };
    let mut settings = StoreSettings { kind, seal_keys: Vec::new() };
    let Some((spot, unit)) = spot.and_then(|spot| Some((spot.clone(), spot.unit::<StoreFile>(sink)?))) else {
        return settings;
    };
    match (unit.get(unit.keys.embedded), unit.get(unit.keys.memory), unit.get(unit.keys.redis)) {
        (None, None, Some(redis)) => {
            if let Some(settings_of_redis) = redis_settings(&redis, sink) {
                settings.kind = StoreKind::Redis(Box::new(settings_of_redis));
            }
            if unit.get(unit.keys.seal_key).is_none() {
                let hint = "write `seal_key: {file: PATH}`, the same key for every replica: `openssl rand -base64 32`";
                redis.problem(sink, "replicas share this store, and `seal_key` is missing", hint);
            }
        }
        (Some(embedded), None, None) => {
            let unit = embedded.unit::<EmbeddedFile>(sink);
            let path = unit.and_then(|unit| unit.get(unit.keys.path)?.line(sink));
            let path = state_dir.join(path.as_deref().unwrap_or(FILE));
            settings.kind = StoreKind::Embedded { path };
        }
        (None, Some(memory), None) => {
            memory.unit::<MemoryFile>(sink);
            settings.kind = StoreKind::Memory;
        }
        (None, None, None) => {}
        _ => spot.problem(sink, "names several stores", "keep one of `embedded`, `redis` and `memory`"),
    }
    if let Some(keys) = unit.get(unit.keys.seal_key) {
        if !settings.kind.is_durable() {
            keys.problem(sink, "nothing is sealed in memory", "remove `seal_key`, or write `embedded: {}`");
        }
        settings.seal_keys = seal_keys(&keys, sink);
    }
    settings
}

/// `store.redis`; problems do not repeat the URL, which may hold a password.
fn redis_settings(spot: &Spot<'_>, sink: &mut Sink) -> Option<RedisSettings> {
    let unit = spot.unit::<RedisFile>(sink)?;
    let keys = &unit.keys;
    let url = unit.require(keys.url, "url", "write rediss://HOST:PORT/DATABASE", sink)?;
    let urls = if url.is_list() { url.items(sink)? } else { vec![url.clone()] };
    let places: Vec<_> = urls.iter().filter_map(|url| url.secretive(sink, redis_url)).collect();
    let kind = redis_kind(&unit, sink);
    if urls.len() != 1 && kind == RedisKind::Server {
        let hint = "write one URL; with `sentinel_primary: NAME`, those of the sentinels, or with `cluster: true`, of some nodes";
        url.problem(sink, format!("names {} servers", urls.len()), hint);
        return None;
    }
    let (first, others) = places.split_first()?;
    if others.iter().any(|other| (other.tls, other.database) != (first.tls, first.database)) {
        url.problem(sink, "names servers in different ways", "write the same scheme and database in each URL");
    }
    let of_cluster = |place: &RedisAddress| matches!(place.at, RedisAt::Tcp { .. }) && place.database == 0;
    if kind == RedisKind::Cluster && !places.iter().all(of_cluster) {
        url.problem(sink, "names no node of a cluster", "write rediss://HOST:PORT; a cluster has no databases");
    }
    Some(RedisSettings {
        servers: places.iter().map(|place| place.at.clone()).collect(),
        kind,
        tls: first.tls,
        trust: unit.get(keys.trust).and_then(|spot| pem::own_roots(&spot, sink)),
        database: first.database,
        username: unit.get(keys.username).and_then(|spot| spot.line(sink)),
        password: unit.get(keys.password).and_then(|spot| secret::secret(&spot, sink)),
        key_prefix: match unit.get(keys.key_prefix) {
            Some(spot) => spot.parse(sink, key_prefix)?,
            None => KEY_PREFIX.to_owned(),
        },
    })
}

fn redis_kind(unit: &Unit<'_, RedisFile>, sink: &mut Sink) -> RedisKind {
    let primary = unit.get(unit.keys.sentinel_primary).and_then(|spot| spot.line(sink));
    let cluster = unit.get(unit.keys.cluster);
    match (primary, cluster.as_ref().and_then(|spot| spot.boolean(sink)).unwrap_or(false)) {
        (Some(primary), false) => RedisKind::Sentinels { primary },
        (None, false) => RedisKind::Server,
        (primary, true) => {
            if let Some(spot) = cluster.filter(|_| primary.is_some()) {
                spot.problem(sink, "a cluster has no sentinels", "keep one of `cluster` and `sentinel_primary`");
            }
            RedisKind::Cluster
        }
    }
}

/// A parsed Redis URL.
struct RedisAddress {
    at: RedisAt,
    tls: bool,
    database: i64,
}

fn redis_url(text: &str) -> Result<RedisAddress, Fault> {
    let hint = "write rediss://HOST:PORT/DATABASE, redis://HOST:PORT/DATABASE or unix:///PATH";
    let url = Url::parse(text).map_err(|_| Fault::new("is none of Redis", hint))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Fault::new("holds credentials", "write them as `username` and `password: {file: PATH}`"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(Fault::new("holds more than a place", hint));
    }
    let tls = match url.scheme() {
        "redis" => false,
        "rediss" => true,
        "unix" if url.host_str().is_none_or(str::is_empty) && url.path().len() > 1 => {
            return Ok(RedisAddress { at: RedisAt::Unix(url.path().into()), tls: false, database: 0 });
        }
        _ => return Err(Fault::new("is none of Redis", hint)),
    };
    let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(|| Fault::new("names no host", hint))?;
    let at = RedisAt::Tcp {
        host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
        port: url.port().unwrap_or(REDIS_PORT),
    };
    let database = match url.path().trim_start_matches('/') {
        "" => 0,
        number => number.parse::<u16>().map_err(|_| Fault::new("names no database by its number", hint))?,
    };
    Ok(RedisAddress { at, tls, database: i64::from(database) })
}

fn key_prefix(text: &str) -> Result<String, Fault> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._:/-".contains(&b);
    match (1..=64).contains(&text.len()) && text.bytes().all(plain) {
        true => Ok(text.to_owned()),
        false => Err(Fault::new("is no prefix of keys", "use 1 to 64 letters, digits and `._:/-`")),
    }
}

/// One key, or a list of which the first seals and all open.
fn seal_keys(spot: &Spot<'_>, sink: &mut Sink) -> Vec<SealKey> {
    let items = if spot.is_list() { spot.items(sink).unwrap_or_default() } else { vec![spot.clone()] };
    if items.is_empty() {
        spot.problem(sink, "names no key", "write {file: PATH}, or remove `seal_key` to have one made");
    }
    let mut keys: Vec<SealKey> = Vec::new();
    for item in &items {
        let Some(text) = secret::secret(item, sink) else { continue };
        match SealKey::parse(text.expose()) {
            None => item.problem(sink, "is no key", "give 32 bytes in base64: `openssl rand -base64 32`"),
            Some(key) if keys.contains(&key) => item.problem(sink, "is the same key again", "remove one of the two"),
            Some(key) => keys.push(key),
        }
    }
    keys
}

/// Tokens that only a person can give again need a store that outlasts the process; for others memory will do. Problems
/// point `at` this spot.
pub fn check_place(at: &Spot<'_>, store: &StoreSettings, person: bool, sink: &mut Sink) {
    let path = match &store.kind {
        StoreKind::Embedded { path } => path,
        StoreKind::Memory if person => {
            let message = "a connection needs a person, and a store in memory forgets at every restart";
            at.warning(sink, message, "write `store: {embedded: {}}`");
            return;
        }
        StoreKind::Memory | StoreKind::Redis(_) => return,
    };
    let here = |directory| if directory == Path::new("") { Path::new(".") } else { directory };
    let existing = path.ancestors().skip(1).map(here).find(|directory| directory.exists());
    let may_write = |it: &Path| rustix::fs::access(it, Access::WRITE_OK | Access::EXEC_OK).is_ok();
    let writable = existing.is_some_and(|it| it.is_dir() && may_write(it));
    if writable {
        return;
    }
    let message = format!("{} cannot be written", path.display());
    let hint = "set `state_dir` to a directory that may be written";
    match person {
        true => at.problem(sink, message + ", and a connection needs a person", hint),
        false => at.warning(sink, message + "; tokens are kept in memory", hint),
    }
}
