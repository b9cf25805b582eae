//! The Lua scripts, which Redis runs atomically.
//!
//! The comment of a script lists its KEYS and its ARGV, and what it returns. The version of a record is in bytes 9 to
//! 16, the header of its seal (`store::seal`). A fencing token is at least the time in microseconds, so it grows even
//! if Redis loses all data. Lua numbers are exact below 2^53. When out of memory, Redis refuses a script whose first
//! write needs memory, hence DEL before SET.

mod definitions;

use redis::Script;

use super::value::VALUE_BYTES_MAX;
use definitions::DefinitionScripts;

const VERSION_OF: &str = r"
local function is(key, kind) return redis.call('TYPE', key).ok == kind end
local function version_in(head)
  if #head < 8 then return 0 end
  local version = 0
  for at = 1, 8 do version = version * 256 + head:byte(at) end
  if version >= 9007199254740992 then return 0 end
  return version
end
local function version_of(key)
  if not is(key, 'string') or redis.call('STRLEN', key) > MOST then return 0 end
  return version_in(redis.call('GETRANGE', key, 9, 16))
end
local function number(key) return is(key, 'string') and tonumber(redis.call('GET', key)) or 0 end
local function latest(token, removed) return math.max(version_of(token), number(removed)) end
local function in_doubt(spending, token)
  if not is(spending, 'string') then return false end
  local version = redis.call('GET', spending):match(':(%d+)$')
  return version ~= nil and tonumber(version) > version_of(token)
end
local function held_by(key, holder) return is(key, 'string') and redis.call('GET', key) == holder end
";

/// Reads a string of at most `limit` bytes, or returns a code of [`super::value::Value`].
const GET: &str = r"
local function get(key, limit)
  local kind = redis.call('TYPE', key).ok
  if kind == 'none' then return 0 end
  if kind ~= 'string' then return 1 end
  if redis.call('STRLEN', key) > limit then return 2 end
  return redis.call('GET', key)
end
";

/// KEYS: value. ARGV: byte limit.
const GET_ONE: &str = "return get(KEYS[1], tonumber(ARGV[1]))";

/// KEYS: index, then the values. ARGV: byte limit, then their members in the index.
const GET_MANY: &str = r"
local values = {}
for at = 2, #KEYS do
  local value = get(KEYS[at], tonumber(ARGV[1]))
  if value == 0 then redis.call('ZREM', KEYS[1], ARGV[at]) end
  values[at - 1] = value
end
return values
";

/// KEYS: hash. ARGV: field, byte limit. Returns the field, or a code of [`super::value::Value`].
const FIELD: &str = r"
local kind = redis.call('TYPE', KEYS[1]).ok
if kind == 'none' then return 0 end
if kind ~= 'hash' then return 1 end
if redis.call('HSTRLEN', KEYS[1], ARGV[1]) > tonumber(ARGV[2]) then return 2 end
return redis.call('HGET', KEYS[1], ARGV[1]) or 0
";

/// KEYS: check record. ARGV: byte limit, value, TTL, 1 to replace an existing one. Returns the existing check record if
/// it is kept.
const CHECK_RECORD: &str = r"
local found = get(KEYS[1], tonumber(ARGV[1]))
if type(found) == 'string' and ARGV[4] == '0' then
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  return found
end
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 0
";

/// KEYS: lease, token, index, spending, removed, backoff. ARGV: instance, term. Returns nothing if another instance has
/// the lease, else: holder, version of its first write, version of the current record or removal, 1 if the outcome of
/// the last refresh is unknown, remaining and elapsed milliseconds of the backoff, and its text. An instance that
/// already has the lease gets it again: the reply to its first call was lost.
const ACQUIRE: &str = r"
if is(KEYS[1], 'string') and redis.call('GET', KEYS[1]):sub(1, #ARGV[1] + 1) ~= ARGV[1] .. ':' then return {} end
local time = redis.call('TIME')
local version = time[1] * 1000000 + time[2]
local before = latest(KEYS[2], KEYS[5])
if before >= version then version = before + 1 end
version = string.format('%.0f', version)
local holder = ARGV[1] .. ':' .. version
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], holder, 'PX', ARGV[2])
local stored = is(KEYS[6], 'string') and redis.call('GETRANGE', KEYS[6], 0, 255) or ''
local at, text = stored:match('^(%d+) (%d+ %a+ [%w_.-]+)$')
local left, age = redis.call('PTTL', KEYS[6]), (time[1] * 1000000 + time[2] - (tonumber(at) or 0)) / 1000
local doubt = in_doubt(KEYS[4], KEYS[2]) and '1' or '0'
return {holder, version, string.format('%.0f', before), doubt, tostring(left), string.format('%.0f', math.max(age, 0)), text or ''}
";

/// KEYS: spending, token. Returns 1 if the outcome of the last refresh is unknown.
const DOUBT: &str = "return in_doubt(KEYS[1], KEYS[2]) and 1 or 0";

/// KEYS: lease, spending, token, removed. ARGV: holder, term, version of the record whose refresh token is about to be
/// spent (empty: none), TTL of that marker. Returns 1 if the lease is held and the record still has that version.
const RENEW: &str = r"
if not held_by(KEYS[1], ARGV[1]) then return 0 end
if ARGV[3] ~= '' and latest(KEYS[3], KEYS[4]) ~= tonumber(ARGV[3]) then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
if ARGV[3] ~= '' then
  redis.call('DEL', KEYS[2])
  redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[4])
end
return 1
";

/// KEYS: lease, backoff. ARGV: holder, text of the backoff, its duration.
const ANNOUNCE_BACKOFF: &str = r"
if not held_by(KEYS[1], ARGV[1]) then return 0 end
local time = redis.call('TIME')
redis.call('DEL', KEYS[2])
redis.call('SET', KEYS[2], string.format('%.0f ', time[1] * 1000000 + time[2]) .. ARGV[2], 'PX', ARGV[3])
return 1
";

/// KEYS: lease, spending. ARGV: holder, 1 if the outcome of the refresh is known.
const RELEASE: &str = r"
if held_by(KEYS[1], ARGV[1]) then redis.call('DEL', KEYS[1]) end
if ARGV[2] == '1' and held_by(KEYS[2], ARGV[1]) then redis.call('DEL', KEYS[2]) end
return 1
";

/// KEYS: removed. ARGV: version. Returns 1 if the record of that version, or a later one, was removed.
const REMOVED: &str = "return number(KEYS[1]) > tonumber(ARGV[1]) and 1 or 0";

const INDEX: &str = r"
local function put_index(key, member, life)
  if not is(key, 'zset') then redis.call('DEL', key) end
  redis.call('ZADD', key, 0, member)
  if redis.call('PTTL', key) < life then redis.call('PEXPIRE', key, life) end
end
";

/// KEYS: lease, token, index, spending, removed, backoff. ARGV: holder, version, record, TTL, member, channel,
/// notification. An expired lease suffices if there is no newer record or removal and no other holder has spent the
/// refresh token, so that the outcome of a slow refresh is not lost.
const SAVE: &str = r"
if redis.call('EXISTS', KEYS[1]) == 1 and not held_by(KEYS[1], ARGV[1]) and not held_by(KEYS[4], ARGV[1]) then return 0 end
if latest(KEYS[2], KEYS[5]) >= tonumber(ARGV[2]) then return 0 end
redis.call('DEL', KEYS[2], KEYS[4], KEYS[5], KEYS[6])
redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[4])
put_index(KEYS[3], ARGV[5], tonumber(ARGV[4]))
redis.call('PUBLISH', ARGV[6], ARGV[7])
return 1
";

/// KEYS: as [`SAVE`]. ARGV: holder, version, TTL of the tombstone, member, channel, notification.
const FORGET: &str = r"
if not held_by(KEYS[1], ARGV[1]) then return 0 end
redis.call('DEL', KEYS[2], KEYS[4], KEYS[6])
if is(KEYS[3], 'zset') then redis.call('ZREM', KEYS[3], ARGV[4]) end
redis.call('SET', KEYS[5], ARGV[2], 'PX', ARGV[3])
redis.call('PUBLISH', ARGV[5], ARGV[6])
return 1
";

/// KEYS: token, index, removed. ARGV: version, record, TTL, member, channel, notification, 1 to respect a removal.
/// Returns 1 if the record was written: there was no record of that version or a newer one, and no later removal.
const IMPORT: &str = r"
if ARGV[7] == '1' and number(KEYS[3]) >= tonumber(ARGV[1]) then return 0 end
if version_of(KEYS[1]) >= tonumber(ARGV[1]) then return 0 end
redis.call('DEL', KEYS[1], KEYS[3])
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
put_index(KEYS[2], ARGV[4], tonumber(ARGV[3]))
redis.call('PUBLISH', ARGV[5], ARGV[6])
return 1
";

/// KEYS: secrets, removed. ARGV: name, record.
const PUT_SECRET: &str = r"
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
if is(KEYS[2], 'hash') then redis.call('HDEL', KEYS[2], ARGV[1]) end
return 1
";

/// KEYS: secrets, removed. ARGV: name, version, TTL of the tombstone. Returns 1 if the secret existed.
const REMOVE_SECRET: &str = r"
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return 0 end
local version = math.max(secret_version(KEYS[1], ARGV[1]), tonumber(ARGV[2]))
redis.call('HDEL', KEYS[1], ARGV[1])
if not is(KEYS[2], 'hash') then redis.call('DEL', KEYS[2]) end
redis.call('HSET', KEYS[2], ARGV[1], string.format('%.0f', version))
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 1
";

/// KEYS: secrets, removed. ARGV: name, version, record. Returns 1 if the secret was written: there was none of that
/// version or a newer one, and no later removal.
const RESTORE_SECRET: &str = r"
local removed = is(KEYS[2], 'hash') and tonumber(redis.call('HGET', KEYS[2], ARGV[1])) or 0
if math.max(removed, secret_version(KEYS[1], ARGV[1])) >= tonumber(ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
";

const SECRET_VERSION: &str = r"
local function secret_version(key, name)
  return version_in((redis.call('HGET', key, name) or ''):sub(10, 17))
end
";

/// Compare and swap. KEYS: token, or catalog. ARGV: current record, resealed record.
const REPLACE: &str = r"
if not is(KEYS[1], 'string') or redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'KEEPTTL')
return 1
";

/// Compare and swap. KEYS: hash. ARGV: current record, resealed record, field.
const REPLACE_FIELD: &str = r"
if redis.call('HGET', KEYS[1], ARGV[3]) ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], ARGV[3], ARGV[2])
return 1
";

/// KEYS: secrets, removed. ARGV: name, version, record, 1 to replace a newer one. Returns 1 if it was written.
const IMPORT_SECRET: &str = r"
if ARGV[4] == '0' and secret_version(KEYS[1], ARGV[1]) >= tonumber(ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
if is(KEYS[2], 'hash') then redis.call('HDEL', KEYS[2], ARGV[1]) end
return 1
";

/// KEYS: connections. ARGV: name, TTL. The set outlives every record.
const NOTE_CONNECTION: &str = r"
if not is(KEYS[1], 'set') then redis.call('DEL', KEYS[1]) end
redis.call('SADD', KEYS[1], ARGV[1])
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 1
";

/// KEYS: note, notes of its namespace, namespaces. ARGV: name, record, expiry and now in ms since the Unix epoch,
/// version to replace (0: none), limit of notes per namespace, namespace, prefix of the notes' keys. Returns 1 unless
/// another writer won. All notes are in one slot.
const PUT_NOTE: &str = r"
for at = 2, 3 do
  if not is(KEYS[at], 'zset') then redis.call('DEL', KEYS[at]) end
  redis.call('ZREMRANGEBYSCORE', KEYS[at], '-inf', ARGV[4])
end
if version_of(KEYS[1]) ~= tonumber(ARGV[5]) then return 0 end
local over = redis.call('ZCARD', KEYS[2]) + 1 - ARGV[6]
if ARGV[5] == '0' and over > 0 then
  local first = redis.call('ZPOPMIN', KEYS[2], over)
  for at = 1, #first, 2 do redis.call('DEL', ARGV[8] .. first[at]) end
end
redis.call('SET', KEYS[1], ARGV[2], 'PXAT', ARGV[3])
for at, member in pairs({[2] = ARGV[1], [3] = ARGV[7]}) do
  redis.call('ZADD', KEYS[at], 'GT', ARGV[3], member)
  if redis.call('PTTL', KEYS[at]) < ARGV[3] - ARGV[4] then redis.call('PEXPIREAT', KEYS[at], ARGV[3]) end
end
return 1
";

/// The script of [`super::check_record::CheckRecord`], which is used without the others.
pub fn check_record() -> Script {
    Script::new(&[GET, CHECK_RECORD].concat())
}

pub struct Scripts {
    pub get: Script,
    pub get_many: Script,
    pub field: Script,
    pub acquire: Script,
    pub doubt: Script,
    pub removed: Script,
    pub renew: Script,
    pub backoff: Script,
    pub release: Script,
    pub save: Script,
    pub forget: Script,
    pub import: Script,
    pub replace: Script,
    pub replace_field: Script,
    pub import_secret: Script,
    pub put_secret: Script,
    pub remove_secret: Script,
    pub restore_secret: Script,
    pub put_note: Script,
    pub note_connection: Script,
    pub definitions: DefinitionScripts,
}

impl Scripts {
    pub fn new() -> Scripts {
        let script = |parts: &[&str]| Script::new(&parts.concat());
        let version_of = VERSION_OF.replace("MOST", &VALUE_BYTES_MAX.to_string());
        Scripts {
            get: script(&[GET, GET_ONE]),
            get_many: script(&[GET, GET_MANY]),
            field: script(&[FIELD]),
            acquire: script(&[&version_of, ACQUIRE]),
            doubt: script(&[&version_of, DOUBT]),
            removed: script(&[&version_of, REMOVED]),
            renew: script(&[&version_of, RENEW]),
            backoff: script(&[&version_of, ANNOUNCE_BACKOFF]),
            release: script(&[&version_of, RELEASE]),
            save: script(&[&version_of, INDEX, SAVE]),
            forget: script(&[&version_of, FORGET]),
            import: script(&[&version_of, INDEX, IMPORT]),
            replace: script(&[&version_of, REPLACE]),
            replace_field: script(&[REPLACE_FIELD]),
            import_secret: script(&[&version_of, SECRET_VERSION, IMPORT_SECRET]),
            put_secret: script(&[&version_of, PUT_SECRET]),
            remove_secret: script(&[&version_of, SECRET_VERSION, REMOVE_SECRET]),
            restore_secret: script(&[&version_of, SECRET_VERSION, RESTORE_SECRET]),
            put_note: script(&[&version_of, PUT_NOTE]),
            note_connection: script(&[&version_of, NOTE_CONNECTION]),
            definitions: DefinitionScripts::new(),
        }
    }
}
