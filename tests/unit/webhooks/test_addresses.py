"""Which URLs webhooks are sent to."""

import socket
from typing import Any

import pytest

from worker.webhooks.addresses import Addresses, AddressRefusedError, of_the_internet


def resolving(*addresses: str) -> Any:
    """Return a name service that knows these addresses of every host."""
    return lambda _host, port, **_: [(socket.AF_INET, 1, 6, "", (address, port)) for address in addresses]


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",
        "0.0.0.0",  # noqa: S104
        "224.0.1.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "2001:0:7f00:1::",
        "2001:db8::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
        "not an address",
    ],
)
def test_addresses_of_machines_and_private_networks_are_not_of_the_internet(address: str) -> None:
    """In whatever form they are written: mapped, translated, tunnelled, link-local."""
    assert not of_the_internet(address)


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "2606:4700::1111", "::ffff:93.184.216.34", "64:ff9b::5db8:d822"]
)
def test_addresses_of_the_internet_are_allowed(address: str) -> None:
    """In both families, mapped, and through the translation of networks that have IPv6 only."""
    assert of_the_internet(address)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://example.org/", "malformed"),
        ("https:///hook", "malformed"),
        ("https://user@example.org/", "malformed"),
        ("https://example.org:99999/", "malformed"),
        ("https://example.org/#part", "malformed"),
        ("https://example.org/\r\nHost: other", "malformed"),
        ("https://exämple.org/", "malformed"),
        (f"https://example.org/{'a' * 3000}", "malformed"),
        ("http://example.org/", "not_https"),
    ],
)
def test_a_url_that_is_not_plain_https_is_refused(url: str, reason: str) -> None:
    """Before anything is connected."""
    with pytest.raises(AddressRefusedError) as refused:
        Addresses(resolve=resolving("93.184.216.34")).target(url)
    assert refused.value.reason == reason


def test_a_host_with_one_private_address_among_others_is_refused() -> None:
    """Not only where it is the first."""
    addresses = Addresses(resolve=resolving("93.184.216.34", "10.0.0.1"))
    with pytest.raises(AddressRefusedError, match=r"10\.0\.0\.1") as refused:
        addresses.target("https://example.org/")
    assert refused.value.reason == "address_refused"


def test_a_listed_network_is_allowed_with_and_without_tls() -> None:
    """Also in the mapped form; an address outside of it is not."""
    addresses = Addresses(["10.1.0.0/16"], resolve=resolving("::ffff:10.1.2.3"))
    assert addresses.target("http://inside.example/hook?a=1").path == "/hook?a=1"
    with pytest.raises(AddressRefusedError):
        Addresses(["10.1.0.0/16"], resolve=resolving("10.2.0.1")).target("https://inside.example/")


def test_a_host_without_addresses_is_refused() -> None:
    """The name service's answer is the detail."""

    def unknown(*_: object, **__: object) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    with pytest.raises(AddressRefusedError, match="Name or service not known") as refused:
        Addresses(resolve=unknown).target("https://example.org/")
    assert refused.value.reason == "unresolved"


@pytest.mark.parametrize(
    ("url", "authority"),
    [
        ("https://example.org/", "example.org"),
        ("https://example.org:8443/", "example.org:8443"),
        ("https://[2606:4700::1111]/", "[2606:4700::1111]"),
    ],
)
def test_the_host_header_names_the_host_of_the_url(url: str, authority: str) -> None:
    """Not the address that is connected to; a port that is not the scheme's own is part of it."""
    assert Addresses(resolve=resolving("93.184.216.34")).target(url).authority == authority
