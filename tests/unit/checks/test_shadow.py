"""A shadow that fails, hangs or is not there: no check may notice."""

import math
import threading
from collections.abc import Callable, Sequence
from time import monotonic, sleep

import numpy as np
import pytest
from numpy.typing import NDArray

from detector.detector import Finding
from tests.workers.null_worker import NullDetector
from worker.checks.shadow import Shadow
from worker.settings import Settings
from worker.telemetry.metrics import REGISTRY

GREY = np.full((64, 64, 3), 128, dtype=np.uint8)


class _Detector(NullDetector):
    """A null detector that does, at each batch, what the test wants."""

    def __init__(self, act: Callable[[], float]) -> None:
        super().__init__()
        self._act = act

    def examine(self, prepared: Sequence[NDArray[np.float32]]) -> list[Finding]:
        """Do it, and call what it returns the probability."""
        return [Finding(0.0, self._act(), views[0], 1.0, 1.0) for views in prepared]


def _figure(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_what_the_shadow_says_is_compared_by_score_and_by_its_own_verdict() -> None:
    """0.9 beside a serving 0.5: the difference and the disagreement are counted."""
    sum_before = _figure("dnf_shadow_score_difference_count")
    shadow = Shadow(_Detector(lambda: 0.9))
    own = shadow.compare(shadow.submit(GREY), 0.5, "review")
    shadow.close()
    assert own is not None
    assert (own.score, own.verdict, own.model.name) == (0.9, "generated", "null")
    assert _figure("dnf_shadow_score_difference_count") == sum_before + 1
    assert _figure("dnf_shadow_score_difference_bucket", le="0.5") == 1
    assert _figure("dnf_shadow_score_difference_bucket", le="0.2") == 0
    assert _figure("dnf_shadow_disagreements_total", serving="review", shadow="generated") == 1


def _raise() -> float:
    raise RuntimeError("no memory")


@pytest.mark.parametrize("act", [_raise, lambda: math.nan, lambda: 7.0], ids=["raises", "nan", "beyond one"])
def test_a_shadow_that_fails_says_nothing_and_is_counted(act: Callable[[], float]) -> None:
    """An exception of its model, and a score that is none."""
    failures = _figure("dnf_shadow_failures_total")
    shadow = Shadow(_Detector(act))
    assert shadow.compare(shadow.submit(GREY), 0.5, "review") is None
    shadow.close()
    assert _figure("dnf_shadow_failures_total") == failures + 1


def test_a_shadow_that_hangs_costs_its_patience_once() -> None:
    """The first check waits a fifth of a second for it; those that follow do not ask it; closing returns."""
    # With room for hundreds in its queue it is not for want of room that it is not asked.
    hanging = _Detector(lambda: float(threading.Event().wait()))
    shadow = Shadow(hanging, batch_size=100, timeout_seconds=0.2)
    first = shadow.submit(GREY)
    assert first is not None
    began = monotonic()
    assert shadow.compare(first, 0.5, "review") is None
    assert monotonic() - began >= 0.2
    asked = 0
    while shadow.submit(GREY) is not None:
        asked += 1
        assert asked < 50
        sleep(0.02)
    assert shadow.compare(None, 0.5, "review") is None
    shadow.close()


def test_a_shadow_that_cannot_be_loaded_keeps_nothing_from_being_served(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The log says why, and every check counts as failed; without a shadow bundle nothing is counted."""
    failures = _figure("dnf_shadow_failures_total")
    shadow = Shadow.load(Settings(shadow_bundle="/there/is/no/bundle"))
    assert shadow.submit(GREY) is None
    assert shadow.compare(None, 0.5, "review") is None
    assert _figure("dnf_shadow_failures_total") == failures + 1
    said = capfd.readouterr()
    assert "shadow_unavailable" in said.out + said.err
    none = Shadow.load(Settings())
    assert none.submit(GREY) is None
    assert none.compare(None, 0.5, "review") is None
    assert _figure("dnf_shadow_failures_total") == failures + 1
