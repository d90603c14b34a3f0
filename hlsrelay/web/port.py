"""The listening sockets of a port, which processes of ours on one machine share: who comes is given those of who is there.

Laws:
- A listening socket is closed with its last owner only. What waits in its queue when it is closed the kernel resets, and no process can
  leave a SO_REUSEPORT group but by closing: so who leaves a port to others that have the same socket loses no connection.
- Sockets are given to, and taken from, processes of our own user only, and taken only where they listen at the address that was asked for.
- Who gives none within GIVEN_WITHIN_S stands still, or knows nothing of this: SO_REUSEPORT has us listen beside it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
import struct
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import structlog

from hlsrelay.errors import ConfigError, ResourceBusy

STUCK_CLIENT_MS = 60_000
BACKLOG = 2048
GIVEN_WITHIN_S = 1.0
MOST_SOCKETS = 16

log = structlog.get_logger()


async def listening(http: str, beside: Iterable[str] = ()) -> list[socket.socket]:
    """Return sockets that listen at *http* already: connections queue from now on, and nobody can have the port but one of ours.

    *beside*: names under which processes of ours that have the port may give theirs (`giving`).
    Raises ConfigError for what is no address and ResourceBusy for one that can't be had.
    """
    match = re.fullmatch(r"(?:\[(?P<six>[0-9A-Fa-f:.%\w]+)\]|(?P<host>[^:\[\]/\s]+)):(?P<port>\d{1,5})", http.strip())
    if match is None or int(match["port"]) > 65535:
        raise ConfigError(f"HLSRELAY_HTTP: {http!r} is no address and port; write one such as 127.0.0.1:8080, 0.0.0.0:8080 or [::]:8080")
    host, port = match["six"] or match["host"], int(match["port"])
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(
            f"HLSRELAY_HTTP: {host!r} is no address of a machine ({error.strerror}); write one such as 127.0.0.1:8080"
        ) from None
    family, kind, protocol, _, address = found[0]
    names = tuple(beside) if port else ()
    if given := await asyncio.to_thread(_given, names, family, address):
        return given
    if port and not names:  # a port that is shared can be shared by anybody of this user: whether it is free tells one that is not
        _bound(http, family, kind, protocol, address, shared=False).close()
    return [_bound(http, family, kind, protocol, address, shared=bool(port))]


@contextmanager
def giving(listeners: Sequence[socket.socket], name: str) -> Generator[None, None, None]:
    """Give *listeners* to each process of our user that asks for them by *name*, while the block runs; to nobody where it is empty."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as door:
        door.setblocking(False)

        def give() -> None:
            with suppress(OSError):  # nobody there any more, or one that has gone meanwhile
                asking, _ = door.accept()
                with asking:
                    if _is_ours(asking):
                        socket.send_fds(asking, [b"\0"], [one.fileno() for one in listeners])

        try:
            if name:
                door.bind(_address(name))
                door.listen()
                loop.add_reader(door, give)
        except OSError as error:
            log.warning("port.not_given", name=name, reason=error.strerror)
        try:
            yield
        finally:
            loop.remove_reader(door)


def _given(names: Sequence[str], family: int, address: Any) -> list[socket.socket]:
    """Return the sockets at *address* that the processes of these names give, each once. Blocks."""
    found: dict[int, socket.socket] = {}
    for name in names:
        try:
            sockets = _asked(name)
        except OSError as error:
            log.warning("port.not_taken", name=name, reason=str(error))
            continue
        for one in sockets:
            known = os.fstat(one.fileno()).st_ino in found
            if known or one.family != family or one.getsockname()[:2] != address[:2]:
                one.close()
            else:
                found[os.fstat(one.fileno()).st_ino] = one
    return list(found.values())


def _asked(name: str) -> list[socket.socket]:
    with socket.socket(socket.AF_UNIX) as door:
        door.settimeout(GIVEN_WITHIN_S)
        door.connect(_address(name))
        if not _is_ours(door):
            return []
        _, descriptors, _, _ = socket.recv_fds(door, 1, MOST_SOCKETS, socket.MSG_CMSG_CLOEXEC)  # a child that had one would keep it open
    return [socket.socket(fileno=one) for one in descriptors]


def _address(name: str) -> str:
    """Return an abstract address: of this network namespace, as the port is, and nothing of it is left behind."""
    return f"\0hlsrelay.{name}"


def _is_ours(peer: socket.socket) -> bool:
    _, user, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return bool(user == os.geteuid())


def _bound(http: str, family: int, kind: int, protocol: int, address: Any, *, shared: bool) -> socket.socket:
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared and hasattr(socket, "SO_REUSEPORT"):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # [::] is everybody, whatever the system's default
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # connections inherit it: one that takes nothing any more frees its file and its memory
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STUCK_CLIENT_MS)
        listener.bind(address)
        listener.listen(BACKLOG)  # here and not later: only listen() tells for certain that the port is ours
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise _refused(http, error) from None
    return listener


def _refused(http: str, error: OSError) -> ConfigError | ResourceBusy:
    if error.errno == errno.EADDRINUSE:
        return ResourceBusy(f"HLSRELAY_HTTP: {http} is in use by another program; stop it, or choose another port (0 takes a free one)")
    if error.errno == errno.EACCES:
        return ResourceBusy(f"HLSRELAY_HTTP: this user may not listen at {http}; choose a port from 1024 up")
    return ConfigError(f"HLSRELAY_HTTP: can't listen at {http}: {error.strerror}; write an address of this machine")
