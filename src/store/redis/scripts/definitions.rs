//! The Lua scripts of definitions. All their keys are in one slot of a cluster.
//!
//! Invariant: a revision in the hash is pending or named by the catalog. A script adds a revision and its pending mark
//! together, and only while the catalog is the one that the writer has read; the script that puts a new catalog into
//! force removes the marks of its revisions and the revisions that it supersedes.

use redis::Script;

use crate::store::seal::NONCE_END;

/// Identifies a sealed record: its header, with version and nonce. Empty: there is none.
const HEAD: &str = "local function head(key) return redis.call('GETRANGE', key, 0, LAST) end\n";

/// KEYS: hash. ARGV: byte limit of a value, byte limit of the reply, fields. Returns the values of the first fields,
/// at least one, each as a code of [`super::super::value::Value`] or as its text.
const FIELDS: &str = r"
local kind = redis.call('TYPE', KEYS[1]).ok
local values, bytes = {}, 0
for at = 3, #ARGV do
  if kind ~= 'hash' then
    values[at - 2] = kind == 'none' and 0 or 1
  else
    local length = redis.call('HSTRLEN', KEYS[1], ARGV[at])
    bytes = bytes + length
    if at > 3 and bytes > tonumber(ARGV[2]) then break end
    values[at - 2] = length == 0 and 0 or length > tonumber(ARGV[1]) and 2 or redis.call('HGET', KEYS[1], ARGV[at])
  end
end
return values
";

/// Writes revisions as pending. KEYS: catalog, revisions, pending. ARGV: head of the catalog, then fields and records. A
/// revision that is in force stays. Returns 1 unless the catalog has another head.
const STAGE: &str = r"
if head(KEYS[1]) ~= ARGV[1] then return 0 end
local time = redis.call('TIME')
for at = 2, #ARGV, 2 do
  if redis.call('HEXISTS', KEYS[2], ARGV[at]) == 0 or redis.call('ZSCORE', KEYS[3], ARGV[at]) then
    redis.call('ZADD', KEYS[3], time[1], ARGV[at])
    redis.call('HSET', KEYS[2], ARGV[at], ARGV[at + 1])
  end
end
return 1
";

/// Replaces the catalog. KEYS: catalog, revisions, pending. ARGV: head of the catalog, new catalog, age in seconds at
/// which a pending revision is abandoned, channel, notification, number of staged revisions, their fields, superseded
/// fields. Returns 1 if the catalog was replaced, and 0 if it has another head, or a staged revision is lost; then the
/// pending ones of the staged revisions are removed. Removes abandoned revisions in any case, at most 1000.
const SWAP: &str = r"
local function each(from, last, work)
  for at = from, last, 1000 do work(unpack(ARGV, at, math.min(at + 999, last))) end
end
local last = 6 + tonumber(ARGV[6])
local abandoned = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', redis.call('TIME')[1] - ARGV[3], 'LIMIT', 0, 1000)
if #abandoned > 0 then
  redis.call('HDEL', KEYS[2], unpack(abandoned))
  redis.call('ZREM', KEYS[3], unpack(abandoned))
end
local won = head(KEYS[1]) == ARGV[1]
for at = 7, last do won = won and redis.call('HEXISTS', KEYS[2], ARGV[at]) == 1 end
if not won then
  for at = 7, last do
    if redis.call('ZREM', KEYS[3], ARGV[at]) == 1 then redis.call('HDEL', KEYS[2], ARGV[at]) end
  end
  return 0
end
each(7, last, function(...) redis.call('ZREM', KEYS[3], ...) end)
each(last + 1, #ARGV, function(...) redis.call('HDEL', KEYS[2], ...) end)
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[2])
redis.call('PUBLISH', ARGV[4], ARGV[5])
return 1
";

pub struct DefinitionScripts {
    pub fields: Script,
    pub stage: Script,
    pub swap: Script,
}

impl DefinitionScripts {
    pub fn new() -> DefinitionScripts {
        let head = HEAD.replace("LAST", &(NONCE_END - 1).to_string());
        DefinitionScripts {
            fields: Script::new(FIELDS),
            stage: Script::new(&[&head, STAGE].concat()),
            swap: Script::new(&[&head, SWAP].concat()),
        }
    }
}
