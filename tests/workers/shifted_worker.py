"""The null worker with a clock that is wrong: `python -m tests.workers.shifted_worker run`.

Python's clocks of the day are ahead by `CLOCK_OFFSET_SECONDS` before anything else is imported. Signatures
for the object store keep the true time: stores refuse other ones.
"""

import datetime as dt
import os
import runpy
import sys
import time
from typing import Any, Self

OFFSET = dt.timedelta(seconds=float(os.environ["CLOCK_OFFSET_SECONDS"]))

_true_time, _TrueDatetime = time.time, dt.datetime


class _InstancesOfDatetime(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _TrueDatetime)


class ShiftedDatetime(_TrueDatetime, metaclass=_InstancesOfDatetime):
    """`datetime` by the shifted clock."""

    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> Self:
        """Return the shifted time."""
        shift = dt.timedelta() if _signs() else OFFSET
        return cls.fromtimestamp(_true_time(), tz) + shift

    @classmethod
    def utcnow(cls) -> Self:
        """Return the shifted time in UTC, naive."""
        return cls.now(dt.UTC).replace(tzinfo=None)


def _signs() -> bool:
    frame: Any = sys._getframe(2)  # noqa: SLF001 - the caller of `now`
    return str(frame.f_globals.get("__name__")).startswith("botocore.")


def _shifted_time() -> float:
    return _true_time() + OFFSET.total_seconds()


if __name__ == "__main__":
    time.time = _shifted_time
    dt.datetime = ShiftedDatetime  # type: ignore[misc]
    runpy.run_module("tests.workers.null_worker", run_name="__main__", alter_sys=True)
