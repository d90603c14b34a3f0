"""Reads bit fields and Exp-Golomb codes (ITU-T H.264 9.1) of short headers."""

from __future__ import annotations

from hlsrelay.media.info import MediaError


class Bits:
    """A cursor over the bits of *data*. Reading past the end raises MediaError."""

    def __init__(self, data: bytes) -> None:
        self._bits = f"{int.from_bytes(data):0{len(data) * 8}b}" if data else ""
        self._at = 0

    def read(self, count: int) -> int:
        """Return the next *count* bits as an unsigned number."""
        end = self._at + count
        if end > len(self._bits):
            raise MediaError("a header ends too early")
        value = int(self._bits[self._at : end], 2) if count else 0
        self._at = end
        return value

    def skip(self, count: int) -> None:
        self._at += count

    def ue(self) -> int:
        """Return the next unsigned Exp-Golomb number."""
        one = self._bits.find("1", self._at)
        zeros = one - self._at
        if one < 0 or zeros > 32:
            raise MediaError("a header holds no number where one should be")
        self._at = one
        return self.read(zeros + 1) - 1

    def se(self) -> int:
        """Return the next signed Exp-Golomb number."""
        value = self.ue()
        return (value + 1) // 2 if value % 2 else -(value // 2)
