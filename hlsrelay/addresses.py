"""Which addresses a stream's requests may reach. Names are resolved by others: what they give is judged here.

Laws:
  1. Metadata addresses of clouds are never reached, by any spelling, whatever is allowed.
  2. What is not public unicast (IANA's special-purpose registries, RFC 6890) is reached only inside the networks that the installation
     allows, and only for a source whose own host, as its operator wrote it, is not public.
  3. A source that was public once is public for as long as it is relayed: a name that resolves elsewhere later changes nothing.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from hlsrelay.errors import AddressRefused
from hlsrelay.remembered import remembered
from hlsrelay.settings import Network

Address = IPv4Address | IPv6Address

_METADATA: tuple[Network, ...] = tuple(
    ip_network(text)
    for text in (
        "169.254.169.0/24",  # AWS, Google, Azure, Oracle, OpenStack and most others; AWS's name and time servers
        "169.254.170.0/24",  # AWS containers
        "169.254.0.23/32",  # Tencent
        "169.254.42.42/32",  # Scaleway
        "100.100.100.200/32",  # Alibaba
        "168.63.129.16/32",  # Azure's host: public by its number only
        "192.0.0.192/32",  # Oracle, classic
        "fd00:ec2::/32",  # AWS
        "fd20:ce::/64",  # Google
        "fd00:42::42/128",  # Scaleway
        "fe80::a9fe:a9fe/128",  # OpenStack
    )
)
_METADATA_NAMES = {
    "metadata",
    "metadata.google.internal",
    "metadata.goog",
    "metadata.tencentyun.com",
    "instance-data",
    "instance-data.ec2.internal",
    "metadata.azure.internal",
}
"""Asked of a proxy, a name is resolved where we see nothing of it."""
_SPECIAL_IPV4 = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24",
        "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15",
        "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3",
    )
)  # fmt: skip
_UNICAST_IPV6 = IPv6Network("2000::/3")
_SPECIAL_IPV6 = tuple(IPv6Network(text) for text in ("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20"))
_NAT64 = IPv6Network("64:ff9b::/96")
_LOCAL_NAT64 = IPv6Network("64:ff9b:1::/48")

MOST_PASSED = 64


class AddressPolicy:
    """Which addresses one stream may reach. Checked where sockets are made, so no redirect or literal gets past it.

    *host* is that of the URL that the operator wrote. It decides, when it is resolved, whether the source is public; a name that was
    never resolved here counts as public.
    """

    def __init__(self, allowed: tuple[Network, ...] = (), host: str = "") -> None:
        self._allowed = allowed
        self._host = _plain(host)
        literal = literal_address(host)
        self._private: bool | None = None if literal is None else not is_public(literal)
        self._passed: set[str] = set()
        """Hosts that `check_host` let through: each request asks."""

    def resolved(self, host: str, addresses: Iterable[str]) -> None:
        """Take note of what *host* was resolved to."""
        if _plain(host) == self._host and self._private is not False and literal_address(host) is None:
            self._passed.clear()
            found = [_address(text) for text in addresses]
            self._private = bool(found) and not any(is_public(one) for one in found)

    def check(self, address: str) -> None:
        """Raise AddressRefused unless *address* (an IP address) may be reached."""
        ip = _address(address)
        if _is_metadata(ip):
            raise AddressRefused(f"{ip} is a metadata address: never a source")
        if is_public(ip):
            return
        ip = _same_in_ipv4(ip) or ip
        if not any(ip in network for network in self._allowed):
            span = f"{ip}/{ip.max_prefixlen}"
            raise AddressRefused(f"{ip} is not a public address: to allow it set HLSRELAY_ALLOW_NETWORKS={span} (or a wider range)")
        if not self._private:
            raise AddressRefused(f"{ip} is not a public address, and this source is: it may not lead there")

    def check_host(self, host: str) -> None:
        """Raise AddressRefused where *host* of a URL can be refused without resolving it: a literal by any spelling, a well-known name."""
        if host in self._passed:
            return
        if _plain(host) in _METADATA_NAMES:
            raise AddressRefused(f"{_plain(host)} is a metadata service: never a source")
        if literal := literal_address(host):
            self.check(str(literal))
        if len(self._passed) >= MOST_PASSED:
            self._passed.clear()
        self._passed.add(host)

    def make_socket(self, info: tuple[Any, ...]) -> socket.socket:
        """aiohttp's socket factory: *info* is one getaddrinfo result."""
        return _socket(self, info)


class ProxyPolicy(AddressPolicy):
    """Which addresses an HTTP proxy may have: it is the operator's own, so all but metadata."""

    def check(self, address: str) -> None:
        try:
            super().check(address)
        except AddressRefused as error:
            if "metadata" in str(error):
                raise


_JUDGED = 1024
"""Of so many addresses it is remembered what they are: each request asks."""


class RefusedSocket(OSError):
    """AddressRefused, in the only family that aiohttp lets through."""


def _socket(policy: AddressPolicy, info: tuple[Any, ...]) -> socket.socket:
    family, kind, protocol, _, address = info
    try:
        policy.check(address[0])
    except AddressRefused as error:
        raise RefusedSocket(str(error)) from error
    made = socket.socket(family, kind, protocol)
    made.setblocking(False)
    return made


@remembered(_JUDGED)
def _is_metadata(ip: Address) -> bool:
    return any(one in network for one in (ip, *embedded(ip)) for network in _METADATA)


@remembered(_JUDGED)
def is_public(ip: Address) -> bool:
    """Return whether *ip* is public unicast: in no special-purpose block, nor a disguise of an address that is."""
    if isinstance(ip, IPv6Address):
        if inner := _same_in_ipv4(ip):
            return is_public(inner)
        return ip in _UNICAST_IPV6 and not any(ip in network for network in _SPECIAL_IPV6)
    return not any(ip in network for network in _SPECIAL_IPV4)


@remembered(_JUDGED)
def literal_address(host: str) -> Address | None:
    """Return the address that *host* spells, as the C library reads it (`127.1`, `0x7f000001`, `2130706433`, `0177.0.0.1`), or None."""
    host = _plain(host)
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761 6.3
        return IPv4Address("127.0.0.1")
    try:
        return _address(host.strip("[]"))
    except ValueError:
        pass
    try:
        *high, low = [_number(part) for part in host.split(".")]
    except ValueError:
        return None
    if len(high) > 3 or any(number > 255 for number in high) or low >= 256 ** (4 - len(high)):
        return None
    return IPv4Address(sum(number << (24 - 8 * index) for index, number in enumerate(high)) + low)


def embedded(ip: Address) -> tuple[IPv4Address, ...]:
    """Return the IPv4 addresses that traffic to *ip* may end at: mapped, compatible, NAT64 (RFC 6052), 6to4 and Teredo."""
    if isinstance(ip, IPv4Address):
        return ()
    last = IPv4Address(ip.packed[12:])
    if ip in _LOCAL_NAT64:  # the prefix is as long as the network likes
        packed = ip.packed
        return (IPv4Address(packed[6:8] + packed[9:11]), IPv4Address(packed[7:8] + packed[9:12]), IPv4Address(packed[9:13]), last)
    if _same_in_ipv4(ip) or ip.packed[:12] == bytes(12):
        return (last,)
    return tuple(one for one in (ip.sixtofour, *(ip.teredo or ())) if one)


def _same_in_ipv4(ip: Address) -> IPv4Address | None:
    """Return the IPv4 address that *ip* is another spelling of: mapped, or through the well-known NAT64 prefix."""
    if isinstance(ip, IPv4Address):
        return None
    return IPv4Address(ip.packed[12:]) if ip in _NAT64 else ip.ipv4_mapped


@remembered(_JUDGED)
def _address(text: str) -> Address:
    return ip_address(text.partition("%")[0])


def _number(text: str) -> int:
    """Return a part of an IPv4 address: decimal, 0octal or 0xhex. Raises ValueError."""
    if not text.isascii() or not text.isalnum() or len(text) > 16:
        raise ValueError(text)
    if text[:2].lower() == "0x":
        return int(text[2:] or "0", 16)
    return int(text, 8) if text[0] == "0" else int(text)


def _plain(host: str) -> str:
    return host.lower().rstrip(".")
