"""Every Redis key and script of hlsrelay. What they hold: design, section 8."""

from __future__ import annotations

STREAM_ID = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"


class Keys:
    """Key names under one prefix."""

    def __init__(self, prefix: str = "hlsrelay:") -> None:
        self.prefix = prefix

    def stream(self, stream_id: str) -> str:
        """Hash: the operator's fields and the relay's."""
        return f"{self.prefix}stream:{stream_id}"

    def figures(self, stream_id: str) -> str:
        """Hash: those fields of the relay's that change with the segments (fields.FIGURES)."""
        return f"{self.prefix}stat:{stream_id}"

    def queue(self) -> str:
        """List: a doorbell. Who pushes a stream's id has one node look at it at once; an entry that is lost or doubled does no harm."""
        return f"{self.prefix}queue"

    def position(self, stream_id: str) -> str:
        """String: where the numbering of a stream stands, for an owner that has none of its files (ledger.packed)."""
        return f"{self.prefix}pos:{stream_id}"

    def stream_pattern(self) -> str:
        """What SCAN matches all streams with; an operator's plain HSET is a registration."""
        return f"{self._escaped()}stream:*"

    def life(self) -> str:
        """String: what tells one life of this Redis from the next, where its data is lost between them."""
        return f"{self.prefix}life"

    def nodes(self) -> str:
        """Sorted set: the sessions of hlsrelay processes, each with the end of its lease in milliseconds of Redis' own clock."""
        return f"{self.prefix}nodes"

    def node(self, session: str) -> str:
        """Hash: what the process of a session tells of itself."""
        return f"{self.prefix}node:{session}"

    def meta(self) -> str:
        """Hash: `beat`, when any session was renewed last; `grace`, until when nobody is declared dead; in ms of Redis' clock."""
        return f"{self.prefix}meta"

    def vitals(self, incarnation: str) -> str:
        """String with an expiry: what an hlsrelay process tells of its memory and its children (statuses)."""
        return f"{self.prefix}ps:{incarnation}"

    def vitals_pattern(self) -> str:
        """What SCAN matches all of them with."""
        return f"{self._escaped()}ps:*"

    def _escaped(self) -> str:
        return "".join(f"\\{char}" if char in "*?[]\\" else char for char in self.prefix)

    def stream_id(self, key: str) -> str:
        """Return the id in a key of `stream`."""
        return key[len(self.prefix) + len("stream:") :]


_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

BEAT = f"""
-- KEYS nodes, a session's hash, meta, life; ARGV session, lease in ms, when it came last and the life that was then (0: never), what a
-- next life is to be called, field, value, ...: renew a session's lease; returns when that was, and the life.
-- Where nobody came for longer than a lease lasts, Redis itself was away or stood still: none is declared dead until all had time to come.
-- Where Redis has forgotten that we came (not so long ago that it had to) and tells the same life all the same, it went back to an older
-- state: another life begins.
-- The lease is in the sorted set alone, of which nobody is told; all are told where a hash is written to, so that is done only where it
-- becomes another one, and its expiry is set anew once in many leases. Who was over for long is forgotten, a few at a time.
{_NOW}
local lease = tonumber(ARGV[2])
local last = tonumber(redis.call('HGET', KEYS[3], 'beat') or '0')
if now - last > lease or now < last then redis.call('HSET', KEYS[3], 'grace', now + lease) end
local kept = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or '0')
local life = redis.call('GET', KEYS[4])
local came = tonumber(ARGV[3])
if not life or (came > 0 and life == ARGV[4] and kept < came + lease and now - came < 20 * lease) then
    life = ARGV[5]
    redis.call('SET', KEYS[4], life)
end
redis.call('HSET', KEYS[3], 'beat', now)
redis.call('ZADD', KEYS[1], now + lease, ARGV[1])
local flat, told, is_new = redis.call('HGETALL', KEYS[2]), {{}}, false
for i = 1, #flat, 2 do told[flat[i]] = flat[i + 1] end
for i = 6, #ARGV, 2 do is_new = is_new or told[ARGV[i]] ~= ARGV[i + 1] end
if is_new then redis.call('HSET', KEYS[2], unpack(ARGV, 6)) end
if redis.call('PTTL', KEYS[2]) < 500 * lease then redis.call('PEXPIRE', KEYS[2], 1000 * lease) end
local first = redis.call('ZRANGE', KEYS[1], 0, 15, 'WITHSCORES')
for i = 1, #first, 2 do
    if tonumber(first[i + 1]) > now - 20 * lease then break end
    redis.call('ZREM', KEYS[1], first[i])
    redis.call('DEL', string.sub(KEYS[2], 1, -1 - #ARGV[1]) .. first[i])
end
return {{now, life}}
"""

CLAIM = f"""
-- KEYS a stream's hash, nodes, meta; ARGV session, lease in ms, epoch, a session known to be dead or nothing, field, value, ...: take a
-- stream that no living session has, or whose hash is of before that epoch: Redis went back to an older state.
-- Returns the fencing epoch, which rises with each claim, over the loss of all data too; or 0 where there is no such stream,
-- -1 where a living session has it, -2 where its session may yet come back (BEAT; or Redis' clock jumped, and nobody came since), or
-- where the lease of who claims is over.
{_NOW}
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
if tonumber(redis.call('ZSCORE', KEYS[2], ARGV[1]) or now) < now then return -2 end
local owner = redis.call('HGET', KEYS[1], 'session') or ''
local told, ours = tonumber(redis.call('HGET', KEYS[1], 'epoch') or '0') or 0, tonumber(ARGV[3])
if owner ~= '' and owner ~= ARGV[1] and owner ~= ARGV[4] and told >= ours then
    if tonumber(redis.call('ZSCORE', KEYS[2], owner) or '0') >= now then return -1 end
    if now < tonumber(redis.call('HGET', KEYS[3], 'grace') or '0') then return -2 end
    if now - tonumber(redis.call('HGET', KEYS[3], 'beat') or '0') > tonumber(ARGV[2]) then return -2 end
end
local epoch = math.max(told + 1, ours + 1, now)
redis.call('HSET', KEYS[1], 'session', ARGV[1], 'epoch', string.format('%d', epoch), unpack(ARGV, 5))
return epoch
"""

SESSIONS = f"""
-- KEYS nodes; ARGV what the keys of sessions' hashes begin with: Redis' time, then of each session its name, the end of its lease, its hash
{_NOW}
local found = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
local told = {{now}}
for i = 1, #found, 2 do
    told[#told + 1] = {{found[i], found[i + 1], redis.call('HGETALL', ARGV[1] .. found[i])}}
end
return told
"""

LEASES = f"""
-- KEYS nodes; ARGV what the keys of sessions' hashes begin with, names of sessions: Redis' time, how many sessions there are, the names and
-- the ends of the leases that are over, the end of the next one ('' without), then of each of the named, where it is there, its name, the
-- end of its lease, its hash
{_NOW}
local over, ends, at, some = {{}}, '', 0, nil
repeat
    some = redis.call('ZRANGE', KEYS[1], at, at + 7, 'WITHSCORES')
    for i = 1, #some, 2 do
        if tonumber(some[i + 1]) >= now then
            ends = some[i + 1]
            break
        end
        over[#over + 1] = some[i]
        over[#over + 1] = some[i + 1]
    end
    at = at + 8
until ends ~= '' or #some < 16
local told = {{now, redis.call('ZCARD', KEYS[1]), over, ends}}
for i = 2, #ARGV do
    local until_ = redis.call('ZSCORE', KEYS[1], ARGV[i])
    if until_ then told[#told + 1] = {{ARGV[i], until_, redis.call('HGETALL', ARGV[1] .. ARGV[i])}} end
end
return told
"""

HASHES = """
-- KEYS hashes of streams: each as field, value, ..., empty where it is not there; one answer of many costs who asks a tenth of many answers
local told = {}
for i = 1, #KEYS do told[i] = redis.call('HGETALL', KEYS[i]) end
return told
"""

REPORT = """
-- KEYS a stream's hash, its figures, its position; ARGV epoch, position, n, n words of field, value, ... for the hash, the same for the
-- figures: write what the relay knows, and where it stands (empty: as before); figures and positions are kept for a week. 0, and nothing is
-- written, where the operator has deleted the stream; -1 where another claim was made since that epoch (empty: whoever has it).
-- The hash names the epoch of the position too: a stream that is deleted, and registered anew under its id, does not go on from there.
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
if ARGV[1] ~= '' and (redis.call('HGET', KEYS[1], 'epoch') or '') ~= ARGV[1] then return -1 end
if ARGV[2] ~= '' then
    if redis.call('HGET', KEYS[1], 'carried') ~= ARGV[1] then redis.call('HSET', KEYS[1], 'carried', ARGV[1]) end
    redis.call('SET', KEYS[3], ARGV[1] .. ' ' .. ARGV[2], 'EX', 604800)
end
local n = tonumber(ARGV[3])
if n > 0 then redis.call('HSET', KEYS[1], unpack(ARGV, 4, n + 3)) end
if #ARGV > n + 3 then
    redis.call('HSET', KEYS[2], unpack(ARGV, n + 4))
    redis.call('EXPIRE', KEYS[2], 604800)
end
return 1
"""

REGISTER = """
-- KEYS[1] a stream's hash, ARGV field, value, ...: write a new stream; 0 where one of that id exists
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV))
return 1
"""

CHANGE = """
-- KEYS[1] a stream's hash, ARGV n, n fields to delete, field, value, ...: change a stream that exists; 0 where none does
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local n = tonumber(ARGV[1])
for i = 2, n + 1 do redis.call('HDEL', KEYS[1], ARGV[i]) end
if #ARGV > n + 1 then redis.call('HSET', KEYS[1], unpack(ARGV, n + 2)) end
return 1
"""
