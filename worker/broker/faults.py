"""What can be wrong with a broker: one list of faults, each with its detail and its remedy.

The doctor, the broker watch and the client's errors take their words from here.
"""

import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import redis

from worker.broker.connection import connect, tls_options

if TYPE_CHECKING:
    from worker.settings import BrokerSettings, Settings

FaultName = Literal[
    "permission_denied",
    "authentication_failed",
    "certificate_untrusted",
    "client_certificate_refused",
    "tls_failed",
    "evicting",
    "memory_full",
    "memory_low",
    "verdict_stream_full",
    "dead_letters_full",
    "read_only",
    "disk_full",
    "not_durable",
    "cluster_mode",
]

_DETAILS: dict[FaultName, str] = {
    "permission_denied": "The broker's user in DNF_REDIS_URL has too few rights: {cause}.",
    "authentication_failed": "The broker does not accept the user or password in DNF_REDIS_URL: {cause}.",
    "certificate_untrusted": "The broker's certificate is not trusted: {cause}.",
    "client_certificate_refused": "The broker does not accept our certificate: {cause}.",
    "tls_failed": "There is no encrypted connection to the broker: {cause}.",
    "evicting": "The broker deletes keys when its memory is full: queues and verdicts too.",
    "memory_full": "The broker has no memory left and refuses writes.",
    "memory_low": "The broker has used more than {cause} of its memory.",
    "verdict_stream_full": "The verdict stream holds {cause} events that some group has not acknowledged.",
    "dead_letters_full": "{cause} dead letters wait to be redriven or dropped.",
    "read_only": "The broker is a replica and refuses writes.",
    "disk_full": "The broker cannot write its append-only file and refuses writes.",
    "not_durable": "The broker keeps no append-only file: a restart loses queues and verdicts.",
    "cluster_mode": "The broker runs in Redis Cluster mode, where queues and marks are on different nodes.",
}
_REMEDIES: dict[FaultName, str] = {
    "permission_denied": "Give the user the rights of its role in deploy/redis/users.acl.",
    "authentication_failed": "Set the user and password of DNF_REDIS_URL.",
    "certificate_untrusted": "DNF_REDIS_CA_FILE names its authority, and DNF_REDIS_URL its host.",
    "client_certificate_refused": "DNF_REDIS_CERTIFICATE_FILE and DNF_REDIS_KEY_FILE name a valid one that"
    " the broker's authority signed.",
    "tls_failed": "The broker may want a client certificate (DNF_REDIS_CERTIFICATE_FILE, DNF_REDIS_KEY_FILE),"
    " or a redis:// URL.",
    "evicting": "Set maxmemory-policy to noeviction.",
    "memory_full": "Raise maxmemory, or let consumers catch up.",
    "memory_low": "Raise maxmemory, or let consumers catch up; workers take no checks until then.",
    "verdict_stream_full": "Let the slowest group catch up; workers take no checks until then.",
    "dead_letters_full": "Run `dnf-worker dead-letters list`; workers take no checks until then.",
    "read_only": "Let DNF_REDIS_URL name the primary.",
    "disk_full": "Free the broker's disk.",
    "not_durable": "Set appendonly to yes, and appendfsync to always.",
    "cluster_mode": "Use one primary, with replicas (Sentinel or a managed service without cluster mode).",
}

# A broker that accepts a connection says nothing for so long; one that refuses does so sooner.
_REFUSAL_SECONDS = 2.0

#: Faults at which a worker takes no checks: what it published next could be refused.
STOPS_INTAKE: frozenset[FaultName] = frozenset(
    {"memory_full", "memory_low", "verdict_stream_full", "dead_letters_full"}
)
#: Share of the broker's memory beyond which workers take no checks.
MEMORY_LIMIT = 0.9


@dataclass(frozen=True)
class BrokerFault:
    """One fault of the broker, or of the trust between it and these settings; `str()` is text for people."""

    #: Its name in logs.
    name: FaultName
    #: What is wrong, in a sentence.
    detail: str

    @property
    def remedy(self) -> str:
        """What to set or do, in a sentence."""
        return _REMEDIES[self.name]

    def __str__(self) -> str:
        return f"{self.detail} {self.remedy}"


class BrokerRefusedError(Exception):
    """The broker and these settings do not trust each other; `str()` says what to set."""


def server_faults(client: redis.Redis) -> list[BrokerFault]:
    """Return what is wrong with a broker that answers.

    Raises redis.RedisError when it does not answer, or does not let this user ask.
    """
    try:
        info = client.info()
    except redis.ResponseError as error:
        if not str(error).startswith("MISCONF"):
            raise
        # With a full disk a server refuses even the ping of the client's health check.
        return [_fault("disk_full")]
    limit, used = int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
    evicts = bool(limit) and info.get("maxmemory_policy", "noeviction") != "noeviction"
    found: dict[FaultName, bool] = {
        "evicting": evicts,
        "memory_full": bool(limit) and not evicts and used >= limit,
        "memory_low": bool(limit) and not evicts and MEMORY_LIMIT * limit <= used < limit,
        "read_only": info.get("role") == "slave",
        "disk_full": info.get("aof_last_write_status", "ok") != "ok",
        "not_durable": not info.get("aof_enabled"),
        "cluster_mode": bool(info.get("cluster_enabled")),
    }
    return [_fault(name, f"{MEMORY_LIMIT:.0%}") for name, present in found.items() if present]


def stream_faults(client: redis.Redis, settings: "Settings") -> list[BrokerFault]:
    """Return which of the two streams is full. Raises redis.RedisError."""
    return [
        _fault(name, length)
        for name, (length, limit) in _stream_lengths(client, settings).items()
        if length >= limit
    ]


def intake_limits(client: redis.Redis, settings: "Settings") -> dict[str, float]:
    """Return the used share, 0..1, of each limit at which workers stop taking checks; 1 and above: reached.

    Memory is absent where the server has no limit. Raises redis.RedisError.
    """
    lengths = _stream_lengths(client, settings)
    shares = {name.removesuffix("_full"): length / limit for name, (length, limit) in lengths.items()}
    memory: Any = client.info("memory")
    if limit := int(memory.get("maxmemory", 0)):
        shares["memory"] = int(memory["used_memory"]) / (MEMORY_LIMIT * limit)
    return shares


def _stream_lengths(client: redis.Redis, settings: "Settings") -> dict[FaultName, tuple[int, int]]:
    """Return the length of each stream and its limit, by the fault of a full one."""
    limits: dict[FaultName, tuple[str, int]] = {
        "verdict_stream_full": (settings.verdict_stream, settings.verdict_stream_max_length),
        "dead_letters_full": (settings.dead_letter_stream, settings.dead_letter_stream_max_length),
    }
    return {name: (int(client.xlen(stream)), limit) for name, (stream, limit) in limits.items()}


def connection_fault(
    error: BaseException, broker: "BrokerSettings", *, seconds: float = _REFUSAL_SECONDS
) -> BrokerFault | None:
    """Return the authentication, permission or certificate fault behind an error, or None.

    A lost connection costs one more, with `seconds` for each of its steps, to find the fault.
    """
    causes = _causes(error)
    for cause in causes:
        match cause:
            case redis.exceptions.NoPermissionError():
                return _fault("permission_denied", cause)
            case redis.AuthenticationError():
                return _fault("authentication_failed", cause)
            case ssl.SSLError() if fault := _tls_fault(cause):
                return fault
    lost = any(isinstance(cause, redis.ConnectionError | redis.TimeoutError | OSError) for cause in causes)
    refusal = _client_certificate_refusal(broker, seconds) if lost else None
    return _tls_fault(refusal) if refusal else None


def verify_trust(broker: "BrokerSettings") -> None:
    """Raise `BrokerRefusedError` when broker and settings do not trust each other, or it is a Redis Cluster.

    A broker that cannot be reached passes: it may come up later.
    """
    with connect(broker, timeout_seconds=5, retries=0) as client:
        try:
            client.ping()
        except redis.RedisError as error:
            if fault := connection_fault(error, broker):
                raise BrokerRefusedError(str(fault)) from error
            return
        with suppress(redis.RedisError):
            for fault in server_faults(client):
                if fault.name == "cluster_mode":
                    raise BrokerRefusedError(str(fault))


def _fault(name: FaultName, cause: object = "") -> BrokerFault:
    return BrokerFault(name, _DETAILS[name].format(cause=str(cause).rstrip(".")))


def _tls_fault(error: ssl.SSLError) -> BrokerFault | None:
    reason = (error.reason or "").replace("_", " ").lower()
    match error:
        case ssl.SSLCertVerificationError():
            return _fault("certificate_untrusted", error.verify_message)
        case ssl.SSLEOFError() | ssl.SSLZeroReturnError():
            return None  # the broker closed the connection, as it does when it restarts
    if "alert" in reason and ("certificate" in reason or "unknown ca" in reason):
        return _fault("client_certificate_refused", reason.rpartition("alert ")[2])
    return _fault("tls_failed", error.reason or error)


def _client_certificate_refusal(broker: "BrokerSettings", seconds: float) -> ssl.SSLError | None:
    """Return how the broker refuses our certificate after the handshake, by one more connection.

    In TLS 1.3 a client finishes before the server has looked at its certificate. What the client writes then
    makes the server's system reset the connection, and the refusal is never read. This connection is silent.
    """
    if not (options := tls_options(broker)):
        return None
    url = urlsplit(broker.url.get_secret_value())
    host, port = url.hostname or "localhost", url.port or 6379
    try:
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
        if certificate := options.get("ssl_certfile"):
            context.load_cert_chain(certificate, options.get("ssl_keyfile"))
        with (
            socket.create_connection((host, port), seconds) as plain,
            context.wrap_socket(plain, server_hostname=host) as encrypted,
        ):
            encrypted.recv(1)
    except ssl.SSLError as error:
        return error
    except OSError:
        pass  # it is away, or accepts the connection and stays silent
    return None


def _causes(error: BaseException | None) -> list[BaseException]:
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain
