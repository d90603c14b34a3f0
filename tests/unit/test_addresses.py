"""Which addresses a stream may reach: by any spelling, and decided by the host that the operator wrote."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address, ip_network

import pytest

from hlsrelay.addresses import MOST_PASSED, AddressPolicy, ProxyPolicy, embedded, is_public, literal_address
from hlsrelay.errors import AddressRefused
from hlsrelay.settings import Network

ALL: tuple[Network, ...] = (ip_network("0.0.0.0/0"), ip_network("::/0"))
LOOPBACK: tuple[Network, ...] = (ip_network("127.0.0.0/8"), ip_network("::1/128"))

SPECIAL_IPV4 = """
0.0.0.0 0.255.255.255 10.0.0.0 10.255.255.255 100.64.0.0 100.127.255.255 127.0.0.1 127.255.255.255 169.254.1.1 172.16.0.0 172.31.255.255
192.0.0.0 192.0.0.8 192.0.0.170 192.0.0.9 192.0.2.1 192.31.196.1 192.52.193.1 192.88.99.1 192.168.0.0 192.168.255.255 192.175.48.1
198.18.0.0 198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255
"""
SPECIAL_IPV6 = """
:: ::1 ::127.0.0.1 ::10.0.0.1 ::1.1.1.1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:100.64.0.1 ::ffff:0:10.0.0.1 64:ff9b::7f00:1 64:ff9b::a00:1
64:ff9b:1::1 64:ff9b:1:a00:0:100:: 64:ff9b:1::101:101 100::1 100:0:0:1::1 2001::1 2001:0:1:1:0:0:f5ff:fffe 2001:2::1 2001:3::1
2001:4:112::1 2001:10::1 2001:20::1 2001:30::1 2001:1ff:ffff::1 2001:db8::1 2002:7f00:1:: 2002:a00:1:: 2002:101:101:: 2620:4f:8000::1
3fff::1 3fff:fff:ffff::1 5f00::1 fc00::1 fdff::1 fe80::1%eth0 fec0::1 feff::1 ff02::1 ff0e::1
"""


@pytest.mark.parametrize("address", (SPECIAL_IPV4 + SPECIAL_IPV6).split())
def test_no_special_purpose_address_passes_as_public_and_the_setting_is_named(address: str) -> None:
    with pytest.raises(AddressRefused, match="HLSRELAY_ALLOW_NETWORKS"):
        AddressPolicy(host="origin.example").check(address)


PUBLIC = """
1.1.1.1 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 169.253.0.1 172.15.0.1 172.32.0.1 192.167.0.1
198.17.255.255 198.20.0.0 223.255.255.255 2606:4700::1111 2001:200::1 2a00::1 ::ffff:1.1.1.1 64:ff9b::101:101
"""


@pytest.mark.parametrize("address", PUBLIC.split())
def test_public_addresses_are_reached(address: str) -> None:
    AddressPolicy(host="origin.example").check(address)


METADATA = """
169.254.169.254 169.254.170.2 169.254.170.23 169.254.0.23 169.254.42.42 100.100.100.200 168.63.129.16 192.0.0.192
fd00:ec2::254 fd00:ec2::23 fd20:ce::254 fd00:42::42 fe80::a9fe:a9fe%eth0
::ffff:169.254.169.254 64:ff9b::a9fe:a9fe ::169.254.169.254 2002:a9fe:a9fe:: ::ffff:168.63.129.16 64:ff9b:1:a9fe:a9:fe00::
64:ff9b:1::a9fe:a9fe 2001:0:1:1:0:0:5601:5601
"""


@pytest.mark.parametrize("address", METADATA.split())
@pytest.mark.parametrize("host", ["127.0.0.1", "169.254.169.254", "origin.example", ""])
def test_metadata_addresses_are_refused_even_where_all_is_allowed(address: str, host: str) -> None:
    with pytest.raises(AddressRefused, match="metadata"):
        AddressPolicy(ALL, host).check(address)


def test_the_policy_knows_at_least_what_the_standard_library_knows() -> None:
    """Every 1/65536 of IPv4, and the two ends of every block."""
    for high in range(1 << 16):
        for ip in (IPv4Address(high << 16), IPv4Address((high << 16) + 0xFFFF)):
            assert not is_public(ip) or ip.is_global, str(ip)


def test_a_source_with_a_public_address_never_leads_into_an_allowed_network() -> None:
    for host in ("1.1.1.1", "2606:4700::1111", "16843009"):
        policy = AddressPolicy(LOOPBACK, host)
        with pytest.raises(AddressRefused, match="may not lead there"):
            policy.check("127.0.0.1")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "0x7f000001", "localhost", "LOCALHOST.", "x.localhost", "::1"])
def test_a_private_source_that_the_operator_allowed_may_use_both(host: str) -> None:
    policy = AddressPolicy(LOOPBACK, host)
    for address in ("1.1.1.1", "127.0.0.1", "127.0.0.2"):
        policy.check(address)


def test_what_was_connected_to_first_decides_nothing() -> None:
    private = AddressPolicy(LOOPBACK, "camera.example")
    private.check("1.1.1.1")  # a redirect
    private.resolved("camera.example", ["127.0.0.1"])
    private.check("127.0.0.1")
    public = AddressPolicy(LOOPBACK, "origin.example")
    with pytest.raises(AddressRefused, match="may not lead there"):
        public.check("127.0.0.1")  # what another name gave, before the source's was resolved


def test_a_public_name_that_resolves_to_a_private_address_later_stays_public() -> None:
    policy = AddressPolicy(LOOPBACK, "rebinding.example")
    policy.resolved("rebinding.example", ["1.1.1.1"])
    policy.resolved("Rebinding.example.", ["127.0.0.1"])
    with pytest.raises(AddressRefused, match="may not lead there"):
        policy.check("127.0.0.1")


def test_what_a_source_was_let_through_to_while_it_was_private_it_is_asked_about_again_once_it_is_public() -> None:
    policy = AddressPolicy((ip_network("127.0.0.0/8"),), "rebinding.example")
    policy.resolved("rebinding.example", ["127.0.0.1"])
    for _ in range(2):
        policy.check_host("127.0.0.1")
    policy.resolved("rebinding.example", ["1.1.1.1"])
    with pytest.raises(AddressRefused, match="this source is"):
        policy.check_host("127.0.0.1")


def test_hosts_that_were_let_through_are_remembered_in_a_bounded_number() -> None:
    policy = AddressPolicy()
    for number in range(3 * MOST_PASSED):
        policy.check_host(f"edge-{number}.example")
        assert len(policy._passed) <= MOST_PASSED


def test_a_name_with_a_public_and_a_private_address_is_public() -> None:
    policy = AddressPolicy(LOOPBACK, "both.example")
    policy.resolved("both.example", ["127.0.0.1", "1.1.1.1"])
    with pytest.raises(AddressRefused, match="may not lead there"):
        policy.check("127.0.0.1")


def test_other_names_do_not_make_a_source_private() -> None:
    policy = AddressPolicy(LOOPBACK, "origin.example")
    policy.resolved("evil.example", ["127.0.0.1"])
    with pytest.raises(AddressRefused, match="may not lead there"):
        policy.check("127.0.0.1")


def test_a_network_is_allowed_by_the_address_that_is_meant() -> None:
    policy = AddressPolicy((ip_network("10.0.0.0/8"),), "10.1.1.1")
    for address in ("10.2.2.2", "::ffff:10.2.2.2", "64:ff9b::a02:202"):
        policy.check(address)
    for address in ("::10.2.2.2", "2002:a02:202::", "64:ff9b:1::a02:202"):  # where these end is for no setting of IPv4 to say
        with pytest.raises(AddressRefused):
            policy.check(address)


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("0x7f000001", "127.0.0.1"),
        ("0X7F.1", "127.0.0.1"),
        ("0177.0.0.1", "127.0.0.1"),
        ("017700000001", "127.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("127.0.1", "127.0.0.1"),
        ("10.65537", "10.1.0.1"),
        ("0", "0.0.0.0"),
        ("127.0.0.1.", "127.0.0.1"),
        ("[::1]", "::1"),
        ("fe80::1%25eth0", "fe80::1"),
        ("0xa9fea9fe", "169.254.169.254"),
    ],
)
def test_an_address_is_known_by_every_spelling_that_the_c_library_takes(host: str, address: str) -> None:
    assert literal_address(host) == ip_address(address)


@pytest.mark.parametrize(
    "host", ["", "origin.example", "1.2.3.4.5", "256.1.1.1", "4294967296", "0x", "1e3", "a.1", "1..2", "٣", "08", "-1"]
)
def test_names_are_no_addresses(host: str) -> None:
    assert literal_address(host) in (None, ip_address("0.0.0.0")), host
    if host != "0x":
        assert literal_address(host) is None


@pytest.mark.parametrize("host", ["metadata.google.internal", "METADATA.google.internal.", "0xa9fea9fe", "2852039166", "[fd00:ec2::254]"])
def test_a_host_that_names_a_metadata_service_is_refused_unresolved(host: str) -> None:
    with pytest.raises(AddressRefused, match="metadata"):
        AddressPolicy(ALL, "127.0.0.1").check_host(host)


def test_a_proxy_may_be_anywhere_but_at_a_metadata_address() -> None:
    for address in ("127.0.0.1", "10.0.0.1", "1.1.1.1"):
        ProxyPolicy().check(address)
    with pytest.raises(AddressRefused, match="metadata"):
        ProxyPolicy().check("169.254.169.254")


def test_teredo_hides_its_client_by_inversion() -> None:
    assert IPv4Address("10.0.0.1") in embedded(ip_address("2001:0:1:1:0:0:f5ff:fffe"))
