"""What is wrong with the broker, in words, in the log, until it is mended."""

import threading
from types import TracebackType
from typing import Literal, Self

import redis

from worker.broker.connection import distrust
from worker.broker.verdict_stream import connect
from worker.settings import Settings
from worker.telemetry.logs import get_logger

log = get_logger(__name__)

BrokerFault = Literal["untrusted", "evicting", "memory_full", "read_only", "disk_full", "not_durable"]

_DETAILS: dict[BrokerFault, str] = {
    "evicting": "Redis throws keys away when its memory is full, queues among them: set maxmemory-policy"
    " to noeviction.",
    "memory_full": "Redis has no memory left and refuses writes: raise maxmemory, or consume and trim.",
    "read_only": "Redis is a replica and refuses writes: let DNF_REDIS_URL name the primary.",
    "disk_full": "Redis cannot write its append-only file and refuses writes: free its disk.",
    "not_durable": "Redis keeps no append-only file, a restart loses the queue: set appendonly to yes.",
}


def broker_faults(client: redis.Redis) -> dict[BrokerFault, str]:
    """Return what is wrong with the server, each with text that says what to do.

    Raises redis.RedisError when it does not answer, or does not let this user ask.
    """
    try:
        info = client.info()
    except redis.ResponseError as error:
        if not str(error).startswith("MISCONF"):
            raise
        # A server with a full disk refuses even the ping of the client's health check.
        return {"disk_full": _DETAILS["disk_full"]}
    limit = int(info.get("maxmemory", 0))
    evicts = bool(limit) and info.get("maxmemory_policy", "noeviction") != "noeviction"
    found: dict[BrokerFault, bool] = {
        "evicting": evicts,
        "memory_full": bool(limit) and not evicts and int(info["used_memory"]) >= limit,
        "read_only": info.get("role") == "slave",
        "disk_full": info.get("aof_last_write_status", "ok") != "ok",
        "not_durable": not info.get("aof_enabled"),
    }
    return {fault: _DETAILS[fault] for fault, present in found.items() if present}


class BrokerWatch:
    """Looks at the broker every `seconds` while the `with` block runs; logs what begins and ends there."""

    def __init__(self, settings: Settings, *, seconds: float = 5.0) -> None:
        self._settings = settings
        self._client = connect(settings, timeout_seconds=5, retries=0)
        self._seconds = seconds
        self._known: dict[BrokerFault, str] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="broker-watch", daemon=True)

    def look(self) -> None:
        """Look once; a server that does not answer is left to those who need it."""
        try:
            found = broker_faults(self._client)
        except redis.exceptions.NoPermissionError:
            return
        except redis.RedisError as error:
            if not (detail := distrust(error, self._settings)):
                return
            found = {"untrusted": detail}
        for fault in found.keys() - self._known.keys():
            log.error("broker_fault_found", fault=fault, detail=found[fault])
        for fault in self._known.keys() - found.keys():
            log.info("broker_recovered", fault=fault)
        self._known = found

    def _watch(self) -> None:
        while not self._ended.is_set():
            self.look()
            self._ended.wait(self._seconds)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(self._seconds)
        self._client.close()
