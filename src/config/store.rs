//! `store`: where tokens are stored, and the keys that seal them.
//!
//! Not here: opening the store (`store`), resolving `{store: NAME}` (`reading/secret`).

use std::path::Path;

use rustix::fs::Access;
use schemars::JsonSchema;
use serde::Deserialize;
use url::Url;

use super::reading::{Fault, Field, Keys, NodeRef, Section, Sink, pem, secret, shape};
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
    /// Redis or Valkey, shared by replicas; each token is requested by one of them. Requires `seal_key`, the same for
    /// all replicas.
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
    /// sentinels, with `cluster` of nodes. Credentials go into `username` and `password`; sentinels that require
    /// credentials get the same ones.
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
    /// Name of the primary in the configuration of the sentinels.
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

pub fn settings(node: Option<NodeRef<'_>>, state_dir: &Path, sink: &mut Sink) -> StoreSettings {
    let kind = StoreKind::Embedded { path: state_dir.join(FILE) };
    let mut settings = StoreSettings { kind, seal_keys: Vec::new() };
    let Some((node, section)) = node.and_then(|node| Some((node.clone(), node.section::<StoreFile>(sink)?))) else {
        return settings;
    };
    match (section.get(section.keys.embedded), section.get(section.keys.memory), section.get(section.keys.redis)) {
        (None, None, Some(redis)) => {
            if let Some(settings_of_redis) = redis_settings(&redis, sink) {
                settings.kind = StoreKind::Redis(Box::new(settings_of_redis));
            }
            if section.get(section.keys.seal_key).is_none() {
                let hint =
                    "write `seal_key: {file: PATH}` with the same key for every replica (`openssl rand -base64 32`)";
                redis.problem(sink, "`seal_key` is missing, and the replicas that share this store need one", hint);
            }
        }
        (Some(embedded), None, None) => {
            let section = embedded.section::<EmbeddedFile>(sink);
            let path = section.and_then(|section| section.get(section.keys.path)?.line(sink));
            let path = state_dir.join(path.as_deref().unwrap_or(FILE));
            settings.kind = StoreKind::Embedded { path };
        }
        (None, Some(memory), None) => {
            memory.section::<MemoryFile>(sink);
            settings.kind = StoreKind::Memory;
        }
        (None, None, None) => {}
        _ => node.problem(sink, "more than one store is configured", "keep one of `embedded`, `redis` and `memory`"),
    }
    if let Some(keys) = section.get(section.keys.seal_key) {
        if !settings.kind.is_durable() {
            keys.problem(
                sink,
                "`seal_key` has no effect on a store in memory",
                "remove `seal_key`, or write `embedded: {}`",
            );
        }
        settings.seal_keys = seal_keys(&keys, sink);
    }
    settings
}

/// Reads `store.redis`. Problems do not quote the URL, which may contain a password.
fn redis_settings(node: &NodeRef<'_>, sink: &mut Sink) -> Option<RedisSettings> {
    let section = node.section::<RedisFile>(sink)?;
    let keys = &section.keys;
    let url = section.require(keys.url, "url", "write rediss://HOST:PORT/DATABASE", sink)?;
    let urls = if url.is_list() { url.items(sink)? } else { vec![url.clone()] };
    let addresses: Vec<_> = urls.iter().filter_map(|url| url.parse_url(sink, redis_url)).collect();
    let kind = redis_kind(&section, sink);
    if urls.len() != 1 && kind == RedisKind::Server {
        let hint = "write one URL; a list needs `sentinel_primary: NAME` (of sentinels) or `cluster: true` (of nodes)";
        url.problem(sink, format!("lists {} servers", urls.len()), hint);
        return None;
    }
    let (first, others) = addresses.split_first()?;
    if others.iter().any(|other| (other.tls, other.database) != (first.tls, first.database)) {
        url.problem(sink, "the URLs differ in scheme or database", "use the same scheme and database in each");
    }
    let is_node = |address: &RedisAddress| matches!(address.at, RedisAt::Tcp { .. }) && address.database == 0;
    if kind == RedisKind::Cluster && !addresses.iter().all(is_node) {
        url.problem(sink, "is not the URL of a cluster node", "write rediss://HOST:PORT; a cluster has no databases");
    }
    Some(RedisSettings {
        servers: addresses.iter().map(|address| address.at.clone()).collect(),
        kind,
        tls: first.tls,
        trust: section.get(keys.trust).and_then(|node| pem::replacement_roots(&node, sink)),
        database: first.database,
        username: section.get(keys.username).and_then(|node| node.line(sink)),
        password: section.get(keys.password).and_then(|node| secret::secret(&node, sink)),
        key_prefix: match section.get(keys.key_prefix) {
            Some(node) => node.parse(sink, key_prefix)?,
            None => KEY_PREFIX.to_owned(),
        },
    })
}

fn redis_kind(section: &Section<'_, RedisFile>, sink: &mut Sink) -> RedisKind {
    let primary = section.get(section.keys.sentinel_primary).and_then(|node| node.line(sink));
    let cluster = section.get(section.keys.cluster);
    match (primary, cluster.as_ref().and_then(|node| node.boolean(sink)).unwrap_or(false)) {
        (Some(primary), false) => RedisKind::Sentinels { primary },
        (None, false) => RedisKind::Server,
        (primary, true) => {
            if let Some(node) = cluster.filter(|_| primary.is_some()) {
                node.problem(sink, "`cluster` and `sentinel_primary` are mutually exclusive", "keep one of the two");
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
    let url = Url::parse(text).map_err(|_| Fault::new("is not a Redis URL", hint))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Fault::new("contains credentials", "write them as `username` and `password: {file: PATH}`"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(Fault::new("has a query or a fragment", hint));
    }
    let tls = match url.scheme() {
        "redis" => false,
        "rediss" => true,
        "unix" if url.host_str().is_none_or(str::is_empty) && url.path().len() > 1 => {
            return Ok(RedisAddress { at: RedisAt::Unix(url.path().into()), tls: false, database: 0 });
        }
        _ => return Err(Fault::new("is not a Redis URL", hint)),
    };
    let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(|| Fault::new("has no host", hint))?;
    let at = RedisAt::Tcp {
        host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
        port: url.port().unwrap_or(REDIS_PORT),
    };
    let database = match url.path().trim_start_matches('/') {
        "" => 0,
        number => number.parse::<u16>().map_err(|_| Fault::new("has a path that is not a database number", hint))?,
    };
    Ok(RedisAddress { at, tls, database: i64::from(database) })
}

fn key_prefix(text: &str) -> Result<String, Fault> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._:/-".contains(&b);
    match (1..=64).contains(&text.len()) && text.bytes().all(plain) {
        true => Ok(text.to_owned()),
        false => Err(Fault::new("is not a valid key prefix", "use 1 to 64 letters, digits and `._:/-`")),
    }
}

/// Reads one key, or a list: the first seals, all open.
fn seal_keys(node: &NodeRef<'_>, sink: &mut Sink) -> Vec<SealKey> {
    let items = if node.is_list() { node.items(sink).unwrap_or_default() } else { vec![node.clone()] };
    if items.is_empty() {
        node.problem(sink, "is an empty list", "write {file: PATH}, or remove `seal_key` to have a key generated");
    }
    let mut keys: Vec<SealKey> = Vec::new();
    for item in &items {
        let Some(text) = secret::secret(item, sink) else { continue };
        match SealKey::parse(text.expose()) {
            None => item.problem(sink, "is not a seal key", "use 32 bytes in base64 (`openssl rand -base64 32`)"),
            Some(key) if keys.contains(&key) => item.problem(sink, "repeats an earlier key", "remove one of the two"),
            Some(key) => keys.push(key),
        }
    }
    keys
}

/// Checks that the store keeps tokens across restarts. If it does not, that is a problem for connections that need a
/// person's consent, and a warning for others.
pub fn check_durability(at: &NodeRef<'_>, store: &StoreSettings, needs_person: bool, sink: &mut Sink) {
    let path = match &store.kind {
        StoreKind::Embedded { path } => path,
        StoreKind::Memory if needs_person => {
            let message = "a connection needs a person's consent, which a store in memory loses at every restart";
            at.warning(sink, message, "write `store: {embedded: {}}`");
            return;
        }
        StoreKind::Memory | StoreKind::Redis(_) => return,
    };
    let or_current = |directory| if directory == Path::new("") { Path::new(".") } else { directory };
    let existing = path.ancestors().skip(1).map(or_current).find(|directory| directory.exists());
    let is_writable = |it: &Path| rustix::fs::access(it, Access::WRITE_OK | Access::EXEC_OK).is_ok();
    if existing.is_some_and(|it| it.is_dir() && is_writable(it)) {
        return;
    }
    let message = format!("{} is not writable", path.display());
    let hint = "set `state_dir` to a writable directory";
    match needs_person {
        true => at.problem(sink, message + ", but a connection needs a person's consent to be stored", hint),
        false => at.warning(sink, message + "; tokens are kept in memory", hint),
    }
}
