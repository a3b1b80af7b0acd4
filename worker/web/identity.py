"""Who sends a request: a person named by a trusted proxy, by a verified JWT, or by a one-time link.

There are no passwords here. A request has exactly one source of identity; what another source says is refused
or ignored, never merged.
"""

import json
import secrets
import threading
import time
import urllib.request
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any, Literal, cast, get_args

from joserfc import jwt
from joserfc.errors import ClaimError, InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet
from joserfc.jwt import JWTClaimsRegistry

from worker.settings import WebSettings
from worker.telemetry.logs import get_logger

log = get_logger(__name__)

Role = Literal["moderator", "senior", "auditor", "admin"]

#: The cookie of who came by a one-time link.
SESSION_COOKIE = "dnf-session"

_MAX_NAME, _MAX_SUBJECT = 100, 255
# Signatures by a key of which only the public half is here.
_ALGORITHMS = [
    "RS256",
    "RS384",
    "RS512",
    "PS256",
    "PS384",
    "PS512",
    "ES256",
    "ES384",
    "ES512",
    "Ed25519",
    "EdDSA",
]
_LEEWAY_SECONDS = 30
_KEYS_SECONDS, _KEYS_RETRY_SECONDS, _KEYS_TIMEOUT_SECONDS, _KEYS_BYTES = 3600.0, 10.0, 5.0, 1 << 20


class IdentityError(Exception):
    """The request names nobody who may come in; `str()` says why."""


@dataclass(frozen=True)
class Person:
    """Who sends a request."""

    #: The id that proxy or JWT gives; never shown and never in an event.
    subject: str
    #: The name to show to this person and in the audit.
    name: str
    roles: frozenset[Role]

    def may(self, *roles: Role) -> bool:
        """Return whether the person has one of these roles; a senior is a moderator too."""
        own = self.roles | {"moderator"} if "senior" in self.roles else self.roles
        return not own.isdisjoint(roles)


class OneTimeLinks:
    """Links that let one browser in each, and the sessions of those browsers, while this process lives."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._unused: dict[str, Person] = {}
        self._sessions: dict[str, Person] = {}

    def create(self, *roles: Role) -> str:
        """Return the secret of a new link for a person with these roles."""
        secret = secrets.token_urlsafe(32)
        with self._lock:
            name = f"{roles[0].capitalize()} {len(self._unused) + len(self._sessions) + 1}"
            self._unused[secret] = Person(subject=f"link:{name}", name=name, roles=frozenset(roles))
        return secret

    def open(self, secret: str) -> str | None:
        """Use a link up and return the session that it opens; None for one that is used or unknown."""
        with self._lock:
            person = self._unused.pop(secret, None)
            if person is None:
                return None
            session = secrets.token_urlsafe(32)
            self._sessions[session] = person
            return session

    def person(self, session: str) -> Person | None:
        """Return whose session this is."""
        with self._lock:
            return self._sessions.get(session)


class Identities:
    """Reads the person from a request, in the one way that the settings choose."""

    def __init__(self, settings: WebSettings, links: OneTimeLinks | None = None) -> None:
        self._settings = settings
        self._links = links
        self._proxies = [ip_network(entry) for entry in settings.trusted_proxies]
        self._keys = _Keys(settings.jwt_keys) if settings.jwt_keys else None

    def person(self, headers: Mapping[str, str], cookies: Mapping[str, str], peer: str | None) -> Person:
        """Return who sends a request with these headers (names in lower case) from this address.

        Raises `IdentityError`.
        """
        if self._links is not None:
            return _by_session(self._links, cookies)
        if self._keys is not None:
            return self._by_token(headers, self._keys)
        return self._by_proxy(headers, peer)

    def _by_proxy(self, headers: Mapping[str, str], peer: str | None) -> Person:
        subject = headers.get(self._settings.user_header.lower(), "").strip()
        if not self._trusted(peer):
            if subject:
                log.warning("identity_header_refused", peer=peer)
            raise IdentityError("Identity headers are accepted from the addresses of trusted proxies only.")
        if not subject:
            raise IdentityError("The proxy named nobody.")
        groups = headers.get(self._settings.groups_header.lower(), "")
        name = headers.get(self._settings.name_header.lower(), "").strip()
        return self._person(subject, name, [part.strip() for part in groups.split(",")])

    def _by_token(self, headers: Mapping[str, str], keys: "_Keys") -> Person:
        text = headers.get(self._settings.jwt_header.lower(), "").strip()
        scheme, _, rest = text.partition(" ")
        token = rest.strip() if scheme.lower() == "bearer" else text
        if not token:
            raise IdentityError("There is no token.")
        claims = keys.claims(token, issuer=self._settings.jwt_issuer, audience=self._settings.jwt_audience)
        groups = claims.get(self._settings.jwt_groups_claim, [])
        names = groups.split(",") if isinstance(groups, str) else groups if isinstance(groups, list) else []
        name = next((claims[key] for key in ("name", "preferred_username", "email") if claims.get(key)), "")
        return self._person(str(claims["sub"]), str(name), [str(group).strip() for group in names])

    def _person(self, subject: str, name: str, groups: Collection[str]) -> Person:
        if len(subject) > _MAX_SUBJECT:
            raise IdentityError(f"The person's id has more than {_MAX_SUBJECT} characters.")
        roles = {role for role, named in self._settings.roles.items() if not named.isdisjoint(groups)}
        return Person(subject, name[:_MAX_NAME] or subject[:_MAX_NAME], frozenset(cast("set[Role]", roles)))

    def _trusted(self, peer: str | None) -> bool:
        try:
            address: IPv4Address | IPv6Address = ip_address(peer or "")
        except ValueError:
            return False
        # A socket for both families shows IPv4 addresses as ::ffff:192.0.2.1.
        if isinstance(address, IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        return any(address in network for network in self._proxies)


def _by_session(links: OneTimeLinks, cookies: Mapping[str, str]) -> Person:
    person = links.person(cookies.get(SESSION_COOKIE, ""))
    if person is None:
        raise IdentityError("Open the one-time link that this command printed when it started.")
    return person


class _Keys:
    """The public keys of who signs the tokens, read again when a token names an unknown one."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._keys: KeySet | None = None
        self._read_at = 0.0

    def claims(self, token: str, *, issuer: str, audience: str) -> dict[str, Any]:
        """Return the claims of a token that is signed, current and meant for us. Raises `IdentityError`."""
        registry = JWTClaimsRegistry(
            leeway=_LEEWAY_SECONDS,
            iss={"essential": True, "value": issuer},
            aud={"essential": True, "value": audience},
            sub={"essential": True},
            exp={"essential": True},
        )
        try:
            try:
                decoded = jwt.decode(token, self._current(), algorithms=_ALGORITHMS)
            except InvalidKeyIdError:
                decoded = jwt.decode(token, self._current(_KEYS_RETRY_SECONDS), algorithms=_ALGORITHMS)
            registry.validate(decoded.claims)
        except ClaimError as error:
            raise IdentityError(f"The token's claim {error.claim} is missing, wrong or expired.") from error
        except (JoseError, ValueError) as error:
            log.warning("token_refused", error=type(error).__name__)
            raise IdentityError("The token is not signed by the key of its issuer.") from error
        return decoded.claims

    def _current(self, max_age_seconds: float = _KEYS_SECONDS) -> KeySet:
        with self._lock:
            now = time.monotonic()
            if self._keys is None or now - self._read_at > max_age_seconds:
                try:
                    self._keys = KeySet.import_key_set(json.loads(self._read()))
                    self._read_at = now
                except (OSError, ValueError, JoseError) as error:
                    log.exception("token_keys_unreadable", source=self._source)
                    if self._keys is None:
                        raise IdentityError("The keys that verify tokens cannot be read.") from error
            return self._keys

    def _read(self) -> bytes:
        if "://" not in self._source:
            return Path(self._source).read_bytes()
        # The setting admits https:// alone.
        request = urllib.request.Request(self._source, headers={"Accept": "application/json"})  # noqa: S310
        with urllib.request.urlopen(request, timeout=_KEYS_TIMEOUT_SECONDS) as reply:  # noqa: S310  # nosec B310
            data: bytes = reply.read(_KEYS_BYTES)
            return data


ROLE_NAMES: tuple[Role, ...] = get_args(Role)
