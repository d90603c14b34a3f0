"""AES-128 segments (RFC 8216 5.2) in the clear, for the encoder only: players get them as they came."""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7

from hlsrelay.media.info import MediaError
from hlsrelay.model import Key

BLOCK_BYTES = 16


def can_decrypt(keys: tuple[Key, ...]) -> bool:
    """Return whether *keys* are what `decrypted` knows: one whole-segment AES-128 key."""
    return len(keys) == 1 and keys[0].method == "AES-128" and keys[0].keyformat == "identity"


def decrypted(data: bytes, key: Key, secret: bytes) -> bytes:
    """Return the segment *data*, encrypted with AES-128 in CBC mode and PKCS7 padding, in the clear. Raises MediaError."""
    try:
        iv = int(key.iv or "", 16).to_bytes(BLOCK_BYTES)
        if len(secret) != BLOCK_BYTES:
            raise MediaError(f"the key has {len(secret)} bytes, not {BLOCK_BYTES}")
        cipher = Cipher(algorithms.AES(secret), modes.CBC(iv)).decryptor()
        padded = cipher.update(data) + cipher.finalize()
        unpadder = PKCS7(BLOCK_BYTES * 8).unpadder()
        return unpadder.update(padded) + unpadder.finalize()
    except (ValueError, OverflowError) as error:
        raise MediaError(f"the segment can't be decrypted: {error}") from error
