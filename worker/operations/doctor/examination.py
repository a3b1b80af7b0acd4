"""Every check, in the order in which an operator would mend what it finds."""

from collections.abc import Iterator

from worker.operations.doctor.broker import check_broker
from worker.operations.doctor.check import Check
from worker.operations.doctor.detector import check_detector
from worker.operations.doctor.store import check_store
from worker.operations.doctor.timing import check_timing
from worker.settings import Settings


def examine(settings: Settings) -> Iterator[Check]:
    """Yield what is found with these settings; nothing is written anywhere."""
    yield from check_timing(settings)
    yield from check_broker(settings)
    yield from check_store(settings)
    yield from check_detector(settings)
