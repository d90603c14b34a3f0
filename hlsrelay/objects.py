"""What is needed of an object store, and S3's way of it: the one door to obstore, which the extra `s3` brings.

Laws:
- A `put` on condition is one step: it replaces what the caller knows, or is refused. Servers that overlook conditions fence nobody; they
  are found out, and refused (`keeps_conditions`).
- Nothing is asked for twice in here: whoever asks knows what has become of it, or that nobody knows.
- Everything ends within its deadline, also where packets vanish.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from hlsrelay.errors import ConfigError, StorageAway

if TYPE_CHECKING:
    from obstore import PutMode
    from obstore.store import S3Store

NEW = ""
"""The tag of what is not there."""
SMALL_WITHIN_S = 5.0
LONGEST_S = 30.0
SLOWEST_BYTES_S = 250_000
"""What takes longer can't be kept up with anyway: a segment lasts some seconds."""
CONNECTED_WITHIN = "3s"


class Raced(Exception):
    """Something else is there than the caller knows of: nothing was written."""


@dataclass(frozen=True, slots=True)
class Found:
    """An object's content, and the tag that names it for a `put` on condition."""

    body: bytes
    tag: str


@dataclass(frozen=True, slots=True)
class Headers:
    """What players and caches are told of an object."""

    content_type: str
    cache_control: str


class Objects(Protocol):
    """An object store below one URL. All raise StorageAway where it does not do what it is asked for."""

    @property
    def url(self) -> str:
        """Where it is, as an operator wrote it."""

    async def get(self, key: str) -> Found | None:
        """Return what is at *key*, None where nothing is."""

    async def put(self, key: str, body: bytes | Path, headers: Headers, *, tag: str | None = None) -> str:
        """Write an object and return its tag. *tag*: only if this is what is there now; NEW: only if nothing is. Raises Raced."""

    async def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; one that is gone already is fine."""

    async def list(self, prefix: str) -> Mapping[str, int]:
        """Return the keys that begin with *prefix*, a folder's name with its '/', and how many bytes each has."""


async def keeps_conditions(objects: Objects, key: str, body: bytes, headers: Headers) -> bool:
    """Say whether a store refuses what it has to refuse; *key* is an object that is there, and *body* what is in it."""
    for tag in (NEW, '"00000000000000000000000000000000"'):
        try:
            await objects.put(key, body, headers, tag=tag)
        except Raced:
            continue
        return False
    return True


def open_objects(url: str) -> Objects:
    """Return the bucket at *url* ('s3://bucket/prefix'); credentials, region and endpoint are in the AWS_ variables. Raises ConfigError."""
    try:
        from obstore.exceptions import BaseError
        from obstore.store import S3Store
    except ImportError:
        raise ConfigError(f"HLSRELAY_STORAGE is {url}, and what S3 needs is not installed: pip install 'hlsrelay[s3]'") from None
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    try:
        store = S3Store(
            bucket,
            prefix=prefix or None,
            client_options={"allow_http": endpoint.startswith("http://"), "connect_timeout": CONNECTED_WITHIN},
            retry_config={"max_retries": 0},
        )
    except (BaseError, ValueError) as error:
        raise ConfigError(f"HLSRELAY_STORAGE is {url}, and the AWS_ variables don't go with it: {_reason(error)}") from None
    return S3Objects(store, url)


class S3Objects:
    """A bucket of S3, or of a server that speaks its language and keeps If-Match and If-None-Match (MinIO, R2)."""

    def __init__(self, store: S3Store, url: str) -> None:
        self.store = store
        self._url = url

    @property
    def url(self) -> str:
        """See Objects."""
        return self._url

    async def get(self, key: str) -> Found | None:
        """See Objects."""
        from obstore import get_async

        try:
            async with self._asking(LONGEST_S):
                answer = await get_async(self.store, key)
                body = bytes(await answer.bytes_async())
        except FileNotFoundError:
            return None
        return Found(body, answer.meta["e_tag"] or "")

    async def put(self, key: str, body: bytes | Path, headers: Headers, *, tag: str | None = None) -> str:
        """See Objects."""
        from obstore import put_async
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        mode: PutMode = "overwrite" if tag is None else {"e_tag": tag} if tag else "create"
        attributes = {"Content-Type": headers.content_type, "Cache-Control": headers.cache_control}
        async with self._asking(_within_s(body.stat().st_size if isinstance(body, Path) else len(body))):
            try:
                answer = await put_async(self.store, key, body, attributes=attributes, mode=mode, use_multipart=False)
            except (AlreadyExistsError, PreconditionError) as error:
                if _has_no_bucket(error):
                    raise FileNotFoundError(str(error)) from None
                raise Raced from None
        return answer["e_tag"] or ""

    async def delete(self, keys: Iterable[str]) -> None:
        """See Objects."""
        from obstore import delete_async

        async with self._asking(SMALL_WITHIN_S):
            await delete_async(self.store, list(keys))

    async def list(self, prefix: str) -> Mapping[str, int]:
        """See Objects."""
        from obstore import list as listed

        async with self._asking(LONGEST_S):
            found = await listed(self.store, prefix.rstrip("/")).collect_async()
        return {one["path"]: one["size"] for one in found}

    @asynccontextmanager
    async def _asking(self, within_s: float) -> AsyncGenerator[None, None]:
        from obstore.exceptions import BaseError

        try:
            async with asyncio.timeout(within_s):
                yield
        except TimeoutError:
            raise StorageAway(f"{self._url}: no answer within {within_s:.0f} s") from None
        except FileNotFoundError as error:
            if _has_no_bucket(error) or "PUT" in str(error):
                raise StorageAway(f"{self._url}: {_reason(error)}") from None
            raise
        except (BaseError, OSError, ValueError) as error:
            raise StorageAway(f"{self._url}: {_reason(error)}") from None


def _within_s(size_bytes: int) -> float:
    return min(LONGEST_S, SMALL_WITHIN_S + size_bytes / SLOWEST_BYTES_S)


def _has_no_bucket(error: Exception) -> bool:
    return "<Code>NoSuchBucket</Code>" in str(error)


def _reason(error: Exception) -> str:
    """Return what went wrong in words that stay the same as long as it does: times and names of objects are left out."""
    text = str(error).partition("\n\nDebug source")[0]
    status = re.search(r"status code: (\d{3}[^:<\n]*)", text)
    code = re.search(r"<Code>([^<]*)</Code>", text)
    if status or code:
        return ", ".join(found.group(1).strip() for found in (status, code) if found)
    return re.sub(r"Error performing .*? in [\d.]+\S*s - ", "", text.partition("\n")[0]).removeprefix("Generic S3 error: ")
