"""Logs each fault of the broker when it begins and when it ends."""

import threading
from types import TracebackType
from typing import Self

import redis

from worker.broker.connection import connect
from worker.broker.faults import BrokerFault, FaultName, connection_fault, server_faults
from worker.settings import BrokerSettings
from worker.telemetry.logs import get_logger

log = get_logger(__name__)


class BrokerWatch:
    """Polls the broker every `seconds` while the `with` block runs, and logs which faults begin and end."""

    def __init__(self, broker: BrokerSettings, *, seconds: float = 5.0) -> None:
        self._broker = broker
        self._client = connect(broker, timeout_seconds=5, retries=0)
        self._seconds = seconds
        self._known: dict[FaultName, BrokerFault] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="broker-watch", daemon=True)

    def poll(self) -> None:
        """Poll once. A server that is away, or does not let this user ask, changes nothing."""
        try:
            found = server_faults(self._client)
        except redis.exceptions.NoPermissionError:
            return
        except redis.RedisError as error:
            if not (fault := connection_fault(error, self._broker)):
                return
            found = [fault]
        faults = {fault.name: fault for fault in found}
        for name in faults.keys() - self._known.keys():
            log.error(
                "broker_fault_found", fault=name, detail=faults[name].detail, remedy=faults[name].remedy
            )
        for name in self._known.keys() - faults.keys():
            log.info("broker_recovered", fault=name)
        self._known = faults

    def _watch(self) -> None:
        while not self._ended.is_set():
            self.poll()
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
