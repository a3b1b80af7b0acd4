"""Diagnose settings, services and hardware: what is wrong, and how to fix it."""

from collections.abc import Iterator

from worker.operations.doctor.broker import diagnose_broker
from worker.operations.doctor.detector import diagnose_detector
from worker.operations.doctor.diagnosis import Diagnosis
from worker.operations.doctor.limits import diagnose_limits
from worker.operations.doctor.storage import diagnose_storage
from worker.settings import Settings

__all__ = ["diagnose"]


def diagnose(settings: Settings) -> Iterator[Diagnosis]:
    """Yield every diagnosis, in the order in which an operator would fix faults; read-only."""
    yield from diagnose_limits(settings)
    yield from diagnose_broker(settings)
    yield from diagnose_storage(settings)
    yield from diagnose_detector(settings)
