//! The Lua scripts; Redis runs each atomically. The comment of a script lists its KEYS; its ARGV. What it returns.
//!
//! The version of a record is in bytes 9 to 16, the header of its seal (`store::seal`). A fencing token is at least
//! the time in microseconds, so it grows even if Redis loses all data. Lua's numbers are exact below 2^53. When its
//! memory is full Redis refuses a script whose first write needs memory, hence DEL before SET.

use redis::Script;

use super::value::VALUE_BYTES_MAX;

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

/// A string of at most `most` bytes, or a code of [`super::value::Value`].
const GET: &str = r"
local function get(key, most)
  local kind = redis.call('TYPE', key).ok
  if kind == 'none' then return 0 end
  if kind ~= 'string' then return 1 end
  if redis.call('STRLEN', key) > most then return 2 end
  return redis.call('GET', key)
end
";

/// value; most bytes.
const GET_ONE: &str = "return get(KEYS[1], tonumber(ARGV[1]))";

/// index, then values; most bytes, then their members in the index.
const GET_MANY: &str = r"
local values = {}
for at = 2, #KEYS do
  local value = get(KEYS[at], tonumber(ARGV[1]))
  if value == 0 then redis.call('ZREM', KEYS[1], ARGV[at]) end
  values[at - 1] = value
end
return values
";

/// hash; field, most bytes. The field, or a code of [`super::value::Value`].
const FIELD: &str = r"
local kind = redis.call('TYPE', KEYS[1]).ok
if kind == 'none' then return 0 end
if kind ~= 'hash' then return 1 end
if redis.call('HSTRLEN', KEYS[1], ARGV[1]) > tonumber(ARGV[2]) then return 2 end
return redis.call('HGET', KEYS[1], ARGV[1]) or 0
";

/// mark; most bytes, value, TTL, whether it replaces the existing mark. The existing mark, if it is kept.
const MARK: &str = r"
local found = get(KEYS[1], tonumber(ARGV[1]))
if type(found) == 'string' and ARGV[4] == '0' then
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  return found
end
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 0
";

/// lease, token, index, spending, removed, put off; instance, term. Nothing if another instance has the lease, else:
/// holder, version of its first write, version of the present record or removal, whether the outcome of the last
/// refresh is unknown; remaining and elapsed milliseconds of the shared back-off, and its text. An instance that has
/// the lease already gets it: the reply to its first call was lost.
const TAKE: &str = r"
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

/// spending, token. Whether the outcome of the last refresh is unknown.
const DOUBT: &str = "return in_doubt(KEYS[1], KEYS[2]) and 1 or 0";

/// lease, spending, token, removed; holder, term, version of the record whose refresh token is about to be spent or
/// nothing, TTL of that mark. Whether the lease is held and the record still has that version.
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

/// lease, put off; holder, text of the back-off, its duration.
const PUT_OFF: &str = r"
if not held_by(KEYS[1], ARGV[1]) then return 0 end
local time = redis.call('TIME')
redis.call('DEL', KEYS[2])
redis.call('SET', KEYS[2], string.format('%.0f ', time[1] * 1000000 + time[2]) .. ARGV[2], 'PX', ARGV[3])
return 1
";

/// lease, spending; holder, whether the outcome of the refresh is known.
const RELEASE: &str = r"
if held_by(KEYS[1], ARGV[1]) then redis.call('DEL', KEYS[1]) end
if ARGV[2] == '1' and held_by(KEYS[2], ARGV[1]) then redis.call('DEL', KEYS[2]) end
return 1
";

/// removed; version. Whether the record of that version, or a later one, was removed.
const REMOVED: &str = "return number(KEYS[1]) > tonumber(ARGV[1]) and 1 or 0";

const INDEX: &str = r"
local function put_index(key, member, life)
  if not is(key, 'zset') then redis.call('DEL', key) end
  redis.call('ZADD', key, 0, member)
  if redis.call('PTTL', key) < life then redis.call('PEXPIRE', key, life) end
end
";

/// lease, token, index, spending, removed, put off; holder, version, record, TTL, member, channel, notification. An
/// expired lease suffices if there is no newer record or removal and no other holder has spent the refresh token, so
/// that the outcome of a slow refresh is not lost.
const SAVE: &str = r"
if redis.call('EXISTS', KEYS[1]) == 1 and not held_by(KEYS[1], ARGV[1]) and not held_by(KEYS[4], ARGV[1]) then return 0 end
if latest(KEYS[2], KEYS[5]) >= tonumber(ARGV[2]) then return 0 end
redis.call('DEL', KEYS[2], KEYS[4], KEYS[5], KEYS[6])
redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[4])
put_index(KEYS[3], ARGV[5], tonumber(ARGV[4]))
redis.call('PUBLISH', ARGV[6], ARGV[7])
return 1
";

/// The same keys; holder, version, TTL of the removal, member, channel, notification.
const FORGET: &str = r"
if not held_by(KEYS[1], ARGV[1]) then return 0 end
redis.call('DEL', KEYS[2], KEYS[4], KEYS[6])
if is(KEYS[3], 'zset') then redis.call('ZREM', KEYS[3], ARGV[4]) end
redis.call('SET', KEYS[5], ARGV[2], 'PX', ARGV[3])
redis.call('PUBLISH', ARGV[5], ARGV[6])
return 1
";

/// token, index, removed; version, record, TTL, member, channel, notification, whether a removal is respected. Whether
/// it was written: there was no record as new, and no later removal.
const IMPORT: &str = r"
if ARGV[7] == '1' and number(KEYS[3]) >= tonumber(ARGV[1]) then return 0 end
if version_of(KEYS[1]) >= tonumber(ARGV[1]) then return 0 end
redis.call('DEL', KEYS[1], KEYS[3])
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
put_index(KEYS[2], ARGV[4], tonumber(ARGV[3]))
redis.call('PUBLISH', ARGV[5], ARGV[6])
return 1
";

/// secrets, removed; name, record.
const PUT_SECRET: &str = r"
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
if is(KEYS[2], 'hash') then redis.call('HDEL', KEYS[2], ARGV[1]) end
return 1
";

/// secrets, removed; name, version, TTL of the removal. Whether there was one.
const REMOVE_SECRET: &str = r"
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return 0 end
local version = math.max(secret_version(KEYS[1], ARGV[1]), tonumber(ARGV[2]))
redis.call('HDEL', KEYS[1], ARGV[1])
if not is(KEYS[2], 'hash') then redis.call('DEL', KEYS[2]) end
redis.call('HSET', KEYS[2], ARGV[1], string.format('%.0f', version))
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 1
";

/// secrets, removed; name, version, record. Whether it was written: there was none as new, and no later removal.
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

/// token; present record, resealed record. Compare and swap.
const REPLACE: &str = r"
if not is(KEYS[1], 'string') or redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'KEEPTTL')
return 1
";

/// secrets; present record, resealed record, name. Compare and swap.
const REPLACE_SECRET: &str = r"
if redis.call('HGET', KEYS[1], ARGV[3]) ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], ARGV[3], ARGV[2])
return 1
";

/// secrets, removed; name, version, record, whether it replaces a newer one. Whether it was written.
const IMPORT_SECRET: &str = r"
if ARGV[4] == '0' and secret_version(KEYS[1], ARGV[1]) >= tonumber(ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
if is(KEYS[2], 'hash') then redis.call('HDEL', KEYS[2], ARGV[1]) end
return 1
";

/// connections; name, TTL. The set outlives every record.
const NOTE_CONNECTION: &str = r"
if not is(KEYS[1], 'set') then redis.call('DEL', KEYS[1]) end
redis.call('SADD', KEYS[1], ARGV[1])
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 1
";

/// note, notes of its share, shares; name, record, expiry and now in ms since the Unix epoch, version to replace (0:
/// none), most notes in a share, share, prefix of the notes' keys. Whether no other writer was faster. All notes are in
/// one slot.
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

/// The script of [`super::mark::Mark`].
pub fn mark() -> Script {
    Script::new(&[GET, MARK].concat())
}

pub struct Scripts {
    pub get: Script,
    pub get_many: Script,
    pub field: Script,
    pub take: Script,
    pub doubt: Script,
    pub removed: Script,
    pub renew: Script,
    pub put_off: Script,
    pub release: Script,
    pub save: Script,
    pub forget: Script,
    pub import: Script,
    pub replace: Script,
    pub replace_secret: Script,
    pub import_secret: Script,
    pub put_secret: Script,
    pub remove_secret: Script,
    pub restore_secret: Script,
    pub put_note: Script,
    pub note_connection: Script,
}

impl Scripts {
    pub fn new() -> Scripts {
        let script = |parts: &[&str]| Script::new(&parts.concat());
        let own = VERSION_OF.replace("MOST", &VALUE_BYTES_MAX.to_string());
        Scripts {
            get: script(&[GET, GET_ONE]),
            get_many: script(&[GET, GET_MANY]),
            field: script(&[FIELD]),
            take: script(&[&own, TAKE]),
            doubt: script(&[&own, DOUBT]),
            removed: script(&[&own, REMOVED]),
            renew: script(&[&own, RENEW]),
            put_off: script(&[&own, PUT_OFF]),
            release: script(&[&own, RELEASE]),
            save: script(&[&own, INDEX, SAVE]),
            forget: script(&[&own, FORGET]),
            import: script(&[&own, INDEX, IMPORT]),
            replace: script(&[&own, REPLACE]),
            replace_secret: script(&[REPLACE_SECRET]),
            import_secret: script(&[&own, SECRET_VERSION, IMPORT_SECRET]),
            put_secret: script(&[&own, PUT_SECRET]),
            remove_secret: script(&[&own, SECRET_VERSION, REMOVE_SECRET]),
            restore_secret: script(&[&own, SECRET_VERSION, RESTORE_SECRET]),
            put_note: script(&[&own, PUT_NOTE]),
            note_connection: script(&[&own, NOTE_CONNECTION]),
        }
    }
}
