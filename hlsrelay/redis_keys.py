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

    def stream_pattern(self) -> str:
        """What SCAN matches all streams with; an operator's plain HSET is a registration."""
        return f"{self._escaped()}stream:*"

    def life(self) -> str:
        """String: what tells one life of this Redis from the next, where its data is lost between them."""
        return f"{self.prefix}life"

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


REPORT = """
-- KEYS[1] a stream's hash, ARGV field, value, ...: write what the relay knows, unless the operator has deleted the stream
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV))
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
