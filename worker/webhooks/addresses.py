"""Which addresses webhooks may connect to: those of the internet, and networks that the operator lists."""

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Literal
from urllib.parse import SplitResult, urlsplit

AddressReason = Literal["malformed", "not_https", "unresolved", "address_refused"]

#: Returns what `socket.getaddrinfo` does.
Resolve = Callable[..., Sequence[tuple[Any, ...]]]

_MAX_URL = 2048
# Of IPv6, only this part is assigned as addresses of the internet.
_GLOBAL_UNICAST = IPv6Network("2000::/3")
# Addresses that stand for one of IPv4, which the network's gateway reaches.
_NAT64 = IPv6Network("64:ff9b::/96")
_PORTS = {"https": 443, "http": 80}


class AddressRefusedError(ValueError):
    """Nothing is sent to this URL; `reason` is one of `AddressReason`, `str()` is the detail."""

    def __init__(self, reason: AddressReason, detail: str) -> None:
        super().__init__(detail)
        self.reason: AddressReason = reason


@dataclass(frozen=True)
class Target:
    """A URL that was checked, and the addresses to connect to."""

    secure: bool
    host: str
    port: int
    #: Path and query.
    path: str
    addresses: tuple[str, ...]

    @property
    def authority(self) -> str:
        """The value of the header Host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS["https" if self.secure else "http"] else f"{host}:{self.port}"


class Addresses:
    """Resolves the hosts of URLs, and refuses those with any address that is not of the internet.

    `networks` lists addresses and networks that are allowed all the same, such as 10.1.0.0/16; only to them
    http:// is allowed.
    """

    def __init__(self, networks: Sequence[str] = (), *, resolve: Resolve = socket.getaddrinfo) -> None:
        self._networks = [ip_network(entry) for entry in networks]
        self._resolve = resolve

    def target(self, url: str) -> Target:
        """Return where to connect for this URL. Raises `AddressRefusedError`."""
        parts, port = _parsed(url)
        host = str(parts.hostname)
        secure = parts.scheme == "https"
        try:
            found = self._resolve(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise AddressRefusedError("unresolved", f"{host} has no address: {error}.") from error
        addresses = tuple(dict.fromkeys(str(entry[4][0]) for entry in found))
        for address in addresses:
            if not self._listed(address):
                if not secure:
                    raise AddressRefusedError(
                        "not_https", "The URL must begin with https:// (or be in DNF_WEBHOOK_NETWORKS)."
                    )
                if not of_the_internet(address):
                    raise AddressRefusedError(
                        "address_refused", f"{host} has the address {address}, which is not of the internet."
                    )
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return Target(secure, host, port, path, addresses)

    def _listed(self, address: str) -> bool:
        own = _unmapped(address)
        return own is not None and any(own in network for network in self._networks)


def of_the_internet(address: str) -> bool:
    """Return whether an address is one that the internet routes, whatever form it is written in."""
    own = _unmapped(address)
    if isinstance(own, IPv6Address):
        if own in _NAT64:
            return of_the_internet(str(IPv4Address(int(own) & 0xFFFFFFFF)))
        if own not in _GLOBAL_UNICAST or own.sixtofour or own.teredo:
            return False
    return own is not None and own.is_global and not own.is_multicast


def _unmapped(address: str) -> IPv4Address | IPv6Address | None:
    try:
        own = ip_address(address)
    except ValueError:
        return None
    return own.ipv4_mapped or own if isinstance(own, IPv6Address) else own


def _parsed(url: str) -> tuple[SplitResult, int]:
    try:
        parts = urlsplit(url)
        port = parts.port
        plain = url.isascii() and url.isprintable() and " " not in url and len(url) <= _MAX_URL
    except ValueError:
        plain = False
    if not plain or parts.scheme not in _PORTS or not parts.hostname or "@" in parts.netloc or parts.fragment:
        raise AddressRefusedError(
            "malformed",
            f"The URL must be https://HOST/PATH, ASCII, at most {_MAX_URL} long, without user or fragment.",
        )
    return parts, _PORTS[parts.scheme] if port is None else port
