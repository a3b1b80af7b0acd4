"""Watches the broker: logs its faults, pauses the intake when it is nearly full, trims the verdict stream."""

import threading
from types import TracebackType
from typing import Self

import redis

from worker.broker.connection import connect
from worker.broker.faults import (
    STOPS_INTAKE,
    BrokerFault,
    FaultName,
    connection_fault,
    server_faults,
    stream_faults,
)
from worker.broker.transport import UnacknowledgedMessages
from worker.broker.verdict_stream import VerdictStream
from worker.settings import Settings
from worker.telemetry.logs import get_logger
from worker.telemetry.metrics import INTAKE_PAUSED

log = get_logger(__name__)


class BrokerWatch:
    """Polls the broker every `seconds` while the `with` block runs.

    Each fault is logged when it begins and when it ends. While one of `STOPS_INTAKE` lasts, no check is
    taken: back-pressure, where a full stream would otherwise lose events.
    """

    def __init__(
        self,
        settings: Settings,
        unacknowledged: UnacknowledgedMessages | None = None,
        *,
        seconds: float = 5.0,
    ) -> None:
        self._settings = settings
        self._unacknowledged = unacknowledged or UnacknowledgedMessages()
        self._client = connect(settings.broker, timeout_seconds=5, retries=0)
        self._verdict_stream = VerdictStream.connect(settings)
        self._seconds = seconds
        self._known: dict[FaultName, BrokerFault] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="broker-watch", daemon=True)

    def poll(self) -> None:
        """Poll once. A server that is away, or does not let this user ask, changes nothing."""
        refusal = self._trim()
        try:
            found = server_faults(self._client) + stream_faults(self._client, self._settings)
        except redis.exceptions.NoPermissionError:
            return
        except redis.RedisError as error:
            if not (fault := connection_fault(error, self._settings.broker)):
                return
            found = [fault]
        faults = {fault.name: fault for fault in found}
        for name in faults.keys() - self._known.keys():
            fault = faults[name]
            log.error("broker_fault_found", fault=name, detail=fault.detail, remedy=fault.remedy)
        for name in self._known.keys() - faults.keys():
            log.info("broker_recovered", fault=name)
        self._known = faults
        if refusal and not faults:
            log.warning("trim_refused", error=str(refusal))
        self._pause_intake(sorted(faults.keys() & STOPS_INTAKE))

    def _trim(self) -> redis.RedisError | None:
        """Trim the verdict stream; return what keeps the broker from it, which its faults explain or not."""
        try:
            self._verdict_stream.trim(
                min_age_seconds=self._settings.verdict_min_age_seconds,
                retention_seconds=self._settings.verdict_retention_seconds,
                spare_length=max(1, self._settings.verdict_stream_max_length * 3 // 4),
            )
        except redis.RedisError as error:
            return error
        return None

    def _pause_intake(self, causes: list[FaultName]) -> None:
        paused = bool(causes)
        if paused != self._unacknowledged.paused:
            log.warning("intake_paused" if paused else "intake_resumed", causes=causes)
        self._unacknowledged.pause(paused=paused)
        INTAKE_PAUSED.set(int(paused))

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
        self._verdict_stream.close()
